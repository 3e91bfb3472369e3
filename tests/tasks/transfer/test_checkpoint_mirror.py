import hashlib
import json
import shutil
import threading
from pathlib import Path

import boto3
import pytest
import torch
from prefect import flow
from prefect.client.schemas.objects import State

from tasks.erasure.forget import erase
from tasks.settings import PROJECT, Settings
from tasks.store.s3 import FolderStore, S3Store
from tasks.transfer.checkpoint_mirror import CheckpointMirror, fetch_unfinished, forget_unfinished, key_of
from tasks.workspace.tombstones import Counts, finish
from tests.album import Album
from tests.tasks.faults import unwell
from zimage.core.errors import InputError
from zimage.core.folder import aside_of, fetched_beside
from zimage.training.checkpoint import TrainingState, read_states, write_state


def machine(tmp_path: Path, name: str) -> Settings:
    return Settings(project=PROJECT, workspaces=tmp_path / name, store=str(tmp_path / "store"))


def aside(settings: Settings) -> Path:
    return aside_of(settings.workspace("ada") / "data" / "train")


def trained(settings: Settings, *steps: int, run: str = "this run") -> None:
    """What a training leaves beside its output after these checkpoints: the last two states."""
    (aside(settings) / "checkpoints").mkdir(parents=True, exist_ok=True)
    for step in steps:
        (aside(settings) / "checkpoints" / f"step-{step:06d}.safetensors").write_text(f"lora {step} of {run}")
        state = TrainingState(step, {"values": torch.full((4,), float(step))}, devices=("a CPU",))
        write_state(aside(settings) / "resume", state, run=run)
        (aside(settings) / "loss.csv").write_text(f"step\n{step}\n")


def kept(settings: Settings, *steps: int, run: str = "this run") -> None:
    keeper = CheckpointMirror(settings, "ada")
    for step in steps:
        trained(settings, step, run=run)
        keeper.sync()


def sha256_of(settings: Settings, name: str) -> str:
    return hashlib.sha256((aside(settings) / name).read_bytes()).hexdigest()


def waiting(settings: Settings) -> Path:
    return fetched_beside(aside(settings))


@flow
def fetched(settings: Settings) -> list[str]:
    """Return what waits for the stage to be taken over."""
    fetch_unfinished.fn(settings, "ada")
    return sorted(path.relative_to(waiting(settings)).as_posix() for path in waiting(settings).rglob("*.*"))


def test_another_machine_gets_the_last_checkpoint_and_all_before_it(tmp_path: Path, prefect_server: None) -> None:
    kept(machine(tmp_path, "one"), 50, 100)
    other = machine(tmp_path, "two")

    assert fetched(other) == [
        "checkpoints/step-000050.safetensors",
        "checkpoints/step-000100.safetensors",
        "loss.csv",
        "resume/step-000100.safetensors",
    ]
    (state,) = read_states(waiting(other) / "resume", run="this run")
    assert state.step == 100
    assert (waiting(other) / "loss.csv").read_text() == "step\n100\n"
    assert not aside(other).exists()


def test_a_file_that_grows_while_it_is_kept_is_kept_as_it_was(tmp_path: Path, prefect_server: None) -> None:
    settings, ended = machine(tmp_path, "one"), threading.Event()
    trained(settings, 50)

    def grow() -> None:
        with (aside(settings) / "loss.csv").open("a") as file:
            while not ended.wait(0.0001):
                file.write("51,0.5\n")
                file.flush()

    growing = threading.Thread(target=grow)
    growing.start()
    kept(settings, *range(100, 400, 50))
    ended.set()
    growing.join()

    stored = {path.name: path for path in (tmp_path / "store" / key_of("ada")).iterdir() if path.suffix != ".json"}
    assert len(stored) > 6
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == name for name, path in stored.items())


def test_a_store_that_was_away_for_a_moment_is_asked_again(tmp_path: Path, prefect_server: None) -> None:
    kept(machine(tmp_path, "one"), 50)
    store, hidden = tmp_path / "store", tmp_path / "hidden"
    store.rename(hidden)
    store.write_text("not mounted")
    failed: list[str] = []

    @flow
    def learn() -> None:
        def come_back(_task: object, _run: object, state: State) -> bool:
            failed.append(state.name or "")
            store.unlink()
            hidden.rename(store)
            return True

        task = fetch_unfinished.with_options(retry_delay_seconds=0, retry_condition_fn=come_back)
        task(machine(tmp_path, "two"), "ada")

    learn()

    assert failed == ["Failed"]
    assert (waiting(machine(tmp_path, "two")) / "resume" / "step-000050.safetensors").is_file()


def test_what_was_damaged_in_the_store_is_not_gone_on_with(tmp_path: Path, prefect_server: None) -> None:
    kept(machine(tmp_path, "one"), 50)
    state = sha256_of(machine(tmp_path, "one"), "resume/step-000050.safetensors")
    stored = tmp_path / "store" / key_of("ada") / state
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")

    assert fetched(machine(tmp_path, "two")) == []


def test_what_an_interrupted_deletion_left_is_not_gone_on_with(tmp_path: Path, prefect_server: None) -> None:
    kept(machine(tmp_path, "one"), 50)
    lora = sha256_of(machine(tmp_path, "one"), "checkpoints/step-000050.safetensors")
    (tmp_path / "store" / key_of("ada") / lora).unlink()
    other = machine(tmp_path, "two")
    trained(other, 25)

    assert fetched(other) == []
    assert (aside(other) / "resume" / "step-000025.safetensors").is_file()


def test_what_is_damaged_or_gone_in_the_store_is_mended_by_the_next_copy(tmp_path: Path, prefect_server: None) -> None:
    kept(machine(tmp_path, "one"), 50, 100)
    stored, one = tmp_path / "store" / key_of("ada"), machine(tmp_path, "one")
    lora, state = (sha256_of(one, f"{name}.safetensors") for name in ("checkpoints/step-000050", "resume/step-000100"))
    (stored / lora).unlink()
    (stored / state).write_text("damaged")
    other = machine(tmp_path, "two")

    kept(other, 50, 100)

    for sha256 in (lora, state):
        assert hashlib.sha256((stored / sha256).read_bytes()).hexdigest() == sha256


def test_a_fetch_that_was_killed_is_done_again(tmp_path: Path, prefect_server: None) -> None:
    kept(machine(tmp_path, "one"), 50, 100)
    other = machine(tmp_path, "two")
    aside(other).parent.mkdir(parents=True)
    waiting(other).write_text("in the way")  # so that it ends there

    with pytest.raises(NotADirectoryError):
        fetched(other)
    waiting(other).unlink()

    assert len(fetched(other)) == 4


def test_a_later_step_of_an_old_run_hides_no_step_of_the_current_one(tmp_path: Path, prefect_server: None) -> None:
    kept(machine(tmp_path, "one"), 200, 400)
    other = machine(tmp_path, "two")
    trained(other, 600, 800, run="old run")

    assert "resume/step-000400.safetensors" in fetched(other)
    assert sorted(path.name for path in (aside(other) / "resume").iterdir()) == [
        "step-000600.safetensors",
        "step-000800.safetensors",
    ]


def test_the_same_step_of_another_run_is_kept_in_its_place(tmp_path: Path, prefect_server: None) -> None:
    one = machine(tmp_path, "one")
    kept(one, 200, 400, run="old run")
    keeper = CheckpointMirror(one, "ada")
    shutil.rmtree(aside(one))  # as the stage does where another run begins

    trained(one, 400)
    keeper.sync()

    index = json.loads((tmp_path / "store" / key_of("ada") / "index.json").read_text())
    assert index["run"] == "this run" and index["last"] == "step-000400.safetensors"
    assert len(index["files"]) == 3


def test_an_index_of_another_version_is_left_alone_and_replaced_by_the_next_checkpoint(
    tmp_path: Path, prefect_server: None
) -> None:
    kept(machine(tmp_path, "one"), 50)
    index = tmp_path / "store" / key_of("ada") / "index.json"
    older = json.loads(index.read_text())
    del older["run"]
    index.write_text(json.dumps(older))
    other = machine(tmp_path, "two")

    assert fetched(other) == []
    kept(other, 100)
    assert "resume/step-000100.safetensors" in fetched(machine(tmp_path, "three"))


@pytest.mark.parametrize("name", ["../../planted.txt", "/tmp/planted.txt", "resume/../../../planted.txt"])
def test_what_would_lie_elsewhere_is_not_fetched(tmp_path: Path, prefect_server: None, name: str) -> None:
    kept(machine(tmp_path, "one"), 50)
    index = tmp_path / "store" / key_of("ada") / "index.json"
    index.write_text(index.read_text().replace("loss.csv", name))

    with pytest.raises(InputError, match=r"subjects/ada/unfinished/index\.json names files outside its folder"):
        fetched(machine(tmp_path, "two"))


def test_a_machine_that_is_further_keeps_what_it_has(tmp_path: Path, prefect_server: None) -> None:
    kept(machine(tmp_path, "one"), 50)
    other = machine(tmp_path, "two")
    trained(other, 50, 100)
    (aside(other) / "loss.csv").write_text("my own")

    assert fetched(other) == []
    assert (aside(other) / "loss.csv").read_text() == "my own"


def test_what_was_there_before_is_not_sent_again(tmp_path: Path) -> None:
    settings = machine(tmp_path, "one")
    trained(settings, 50)

    CheckpointMirror(settings, "ada").sync()

    assert FolderStore(Path(settings.store)).keys(key_of("ada")) == []


def test_a_store_that_is_away_costs_the_copy_and_not_the_training(
    tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "subjects").write_text("no folder")

    @flow
    def training() -> bool:
        kept(machine(tmp_path, "one"), 50)
        return True

    assert training()


def test_a_store_that_forbids_a_copy_costs_the_copy_and_not_the_training(
    tmp_path: Path, prefect_server: None, album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(project=PROJECT, workspaces=tmp_path / "one", store="s3://album/project")

    @flow
    def training() -> bool:
        kept(settings, 50)
        return True

    with unwell("403 Forbidden", "AccessDenied", times=99) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        assert training()


def test_what_cannot_be_deleted_when_a_training_has_ended_is_told_and_no_failure(
    tmp_path: Path, prefect_server: None, album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(project=PROJECT, workspaces=tmp_path / "one", store="s3://album/project")
    kept(settings, 50)

    @flow
    def ended() -> bool:
        forget_unfinished(settings, "ada")
        return True

    with unwell("403 Forbidden", "AccessDenied", times=99, method="POST") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        assert ended()


def test_of_a_copy_the_index_is_deleted_first(tmp_path: Path, album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(project=PROJECT, workspaces=tmp_path / "one", store="s3://album/project")
    kept(settings, 50)
    session, deleted = boto3.Session(), []
    session.events.register("before-call.s3.DeleteObjects", lambda params, **_: deleted.append(params["body"]))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)

    forget_unfinished(settings, "ada")

    assert [b"unfinished/index.json" in each for each in deleted] == [True, False]
    assert S3Store.connect("album", "project").keys("subjects/ada") == []


def test_of_a_person_who_is_forgotten_while_it_trains_nothing_more_is_kept(
    tmp_path: Path, prefect_server: None
) -> None:
    settings, store = machine(tmp_path, "one"), FolderStore(tmp_path / "store")
    kept(settings, 50)
    erase(store, tmp_path / "workspace-of-another-machine", "ada", Counts())
    finish(store, "ada")

    with pytest.raises(InputError, match="was forgotten after that was made"):
        kept(settings, 100)

    assert store.keys("subjects/ada") == []


def test_a_training_that_ended_leaves_no_copy(tmp_path: Path) -> None:
    settings = machine(tmp_path, "one")
    kept(settings, 50)

    forget_unfinished(settings, "ada")

    assert FolderStore(Path(settings.store)).keys("subjects/ada") == []
