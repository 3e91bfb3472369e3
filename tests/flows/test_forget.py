"""Forgetting a person on a real server, with what real runs leave."""

import contextlib
import datetime
import fcntl
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_HOME, temporary_settings
from prefect.states import Running

from flows.__main__ import main
from flows.forget import forget
from flows.learn import learn as real_learn
from flows.prepare import prepare
from flows.promote import promote
from flows.publish import publish
from flows.spec import ForgetSpec, LearnSpec, PrepareSpec, PromoteSpec, PublishSpec
from tasks.prefect_api.lease import leased
from tasks.prefect_api.runs import delete, runs_of
from tasks.release.publish import publish as publish_task
from tasks.settings import PROJECT
from tasks.store.s3 import FolderStore
from tasks.workspace.workspace import lock_path, make, track
from tests.flows.stack_parts import until
from tests.tasks.finished import finished, write
from tests.tasks.hub_server import Hub
from zimage.core.errors import InputError

ADA = "ada-of-the-test"


@task(name="train", task_run_name="train {subject}")
def work(subject: str) -> None:
    get_run_logger().info("a photo of %s", subject)
    create_table_artifact([{"number": "loss", "value": 0.1}], key=f"{subject}-train", description=subject)


@flow(name="learn", flow_run_name="learn {spec.subject}")
def learn(spec: LearnSpec) -> None:
    """Leaves what a real one leaves, without hours of work: a run, a task run, log lines and an artifact."""
    get_run_logger().info("learning %s", spec.subject)
    work(spec.subject)


@flow(name="retrain", flow_run_name="retrain")
def scan() -> None:
    rows = [{"subject": each, "why": "photos changed"} for each in (ADA, f"{ADA}-2")]
    create_table_artifact(rows, key="retrain")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None) -> Iterator[Path]:
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.setenv("ZIMAGE_STORE", str(tmp_path / "store"))
    yield tmp_path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Path:
    """Workspaces and a store with another person of almost the same name, whom no test changes."""
    folder = tmp_path_factory.mktemp("other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIMAGE_WORKSPACES", str(folder / "workspaces"))
        patch.setenv("ZIMAGE_STORE", str(folder / "store"))
        promoted(folder, f"{ADA}-2")
    return folder


@pytest.fixture
def ada(places: Path, other: Path) -> Path:
    """A person who was learnt, published twice and promoted; and another of almost the same name."""
    shutil.copytree(other, places, dirs_exist_ok=True)
    promoted(places, ADA)
    return places / "workspaces" / ADA


def promoted(places: Path, subject: str) -> None:
    """Learn, publish twice and promote a person."""
    delete(runs_of(subject), subject)  # of other tests on this server
    workspace = finished(places / "workspaces" / subject, seed=1)
    publish_task.fn(workspace, subject, FolderStore(places / "store"))
    finished(workspace, seed=2)
    publish(PublishSpec(subject=subject))
    promote(PromoteSpec(subject=subject, channel="production"))
    learn(LearnSpec(subject=subject))


def test_nothing_is_promoted_after_the_consent_in_the_workspace_was_withdrawn(ada: Path) -> None:
    consent = ada / "data" / "consent.yaml"
    consent.write_text(consent.read_text().replace("may_publish: true", "may_publish: false"))

    with pytest.raises(InputError, match="says may_publish: false"):
        promote(PromoteSpec(subject=ADA, channel="staging"))


def snapshot(places: Path) -> dict[str, bytes]:
    return {str(path.relative_to(places)): path.read_bytes() for path in places.rglob("*") if path.is_file()}


def test_by_default_it_only_lists(ada: Path, places: Path) -> None:
    before = snapshot(places)

    listing = forget(ForgetSpec(subject=ADA))

    assert listing.tombstone is None
    assert snapshot(places) == before
    told = "\n".join(listing.lines)
    assert "channels   production at 2-" in told
    assert "Prefect    3 runs with their logs, 2 artifacts, lines in 0 tables about all" in told
    assert "consent    until 2999-12-31" in told
    until = re.search(r"events     Prefect's tell names of runs until ([-0-9]+ [:0-9]+) UTC; nobody can", told)
    assert until is not None  # seven days if nobody chose, and the hour between two sweeps
    kept = datetime.datetime.fromisoformat(until[1]) - datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    assert datetime.timedelta(days=7) < kept < datetime.timedelta(days=7, hours=1)


def test_the_database_of_prefect_that_was_not_asked_is_named(ada: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with temporary_settings({PREFECT_HOME: home}):
        without = forget(ForgetSpec(subject=ADA)).lines
        (home / "prefect.db").touch()
        listed = forget(ForgetSpec(subject=ADA)).lines

    assert not any(line.startswith("not here") for line in without)
    said = "ask again without PREFECT_API_URL, for runs that had no server or one before 0.2.0"
    assert listed[-1] == f"not here   {home / 'prefect.db'}: {said}"


def test_nothing_of_the_person_is_left_anywhere_and_everything_of_others(ada: Path, places: Path) -> None:
    others = {name: content for name, content in snapshot(places).items() if f"{ADA}-2" in name}
    scan()

    listing = forget(ForgetSpec(subject=ADA, delete=True))

    assert listing.tombstone is not None
    counts = listing.tombstone.forgotten[-1].counts
    assert counts.runs == 3 and counts.artifacts == 3 and counts.objects == 30 and counts.files > 10
    assert not ada.exists()
    after = snapshot(places)
    assert {name: content for name, content in after.items() if f"{ADA}-2" in name} == others
    (tombstone,) = (name for name in after if name not in others and not name.startswith("store/.locks"))
    assert ADA not in tombstone and ADA.encode() not in after[tombstone]
    assert "flow_run" in tables_naming(f"{ADA}-2")
    # Events are the server's own diary: no interface deletes them, and they go by themselves (infra/retention.md).
    assert tables_naming(ADA) <= {"events", "event_resources"}

    with get_client(sync_client=True) as client:  # one that was killed is not in the way
        client.create_flow_run(forget, parameters={"spec": {"subject": ADA}}, name="forget", state=Running())
    again = forget(ForgetSpec(subject=ADA, delete=True))

    assert again.lines[0].startswith("workspace  0 files")
    assert again.tombstone is not None and len(again.tombstone.forgotten) == 2


def test_artifacts_of_runs_that_were_deleted_before_are_found_and_deleted(ada: Path) -> None:
    scan()
    APILogHandler().flush()  # what arrives after its run was deleted stays until the server's daily sweep
    with get_client(sync_client=True) as client:  # as the UI deletes runs
        scans = [run for run in client.read_flow_runs() if run.name == "retrain"]
        for run in [*runs_of(ADA).runs, *scans]:
            client.delete_flow_run(run.id)
    assert "artifact" in tables_naming(ADA)
    until("Prefect deletes the logs of deleted runs, a little later", lambda: "log" not in tables_naming(ADA), 120)

    listing = forget(ForgetSpec(subject=ADA, delete=True))

    assert listing.tombstone is not None
    counts = listing.tombstone.forgotten[-1].counts
    assert (counts.runs, counts.artifacts) == (0, 3)
    assert tables_naming(ADA) <= {"events", "event_resources"}
    assert "artifact" in tables_naming(f"{ADA}-2")


def test_a_person_whose_consent_is_none_is_listed_and_forgotten_like_others(ada: Path) -> None:
    (ada / "data" / "consent.yaml").write_bytes(b"pseudonym: \xff")

    assert "consent    unreadable" in forget(ForgetSpec(subject=ADA)).lines
    listing = forget(ForgetSpec(subject=ADA, delete=True))

    assert listing.tombstone is not None
    assert not ada.exists()


def test_what_dvc_remembered_outside_a_workspace_goes_even_after_the_workspace(
    ada: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(places / "site"))  # which DVC follows rather than a workspace
    others = ada.with_name(f"{ADA}-2")
    for workspace in (ada, others):
        make(workspace, PROJECT)
        track(workspace, ["data/photos"])
    shutil.rmtree(ada)
    remembered = [path for path in (places / "site" / "repo").iterdir() if remembers(path, ada)]
    assert len(remembered) == 1

    assert f"DVC        {remembered[0]}" in forget(ForgetSpec(subject=ADA)).lines
    forget(ForgetSpec(subject=ADA, delete=True))

    (left,) = (places / "site" / "repo").iterdir()
    assert remembers(left, others)
    assert "DVC        none" in forget(ForgetSpec(subject=ADA)).lines


def remembers(folder: Path, workspace: Path) -> bool:
    return f"{workspace}/data/photos/IMG_1.jpg".encode() in (folder / "hashes" / "local" / "cache.db").read_bytes()


def test_logs_of_a_stack_that_name_the_person_are_listed_and_left_to_the_operator(ada: Path) -> None:
    logs = ada.parent / ".logs"
    logs.mkdir()
    (logs / "cpu.log").write_text(f"learn {ADA}-2 has begun\n")
    (logs / "gpu.log").write_text(f"learn {ADA}-2 has begun\nlearn {ADA}: 3 photos\n")

    listing = forget(ForgetSpec(subject=ADA, delete=True))

    assert f"logs       {logs}/gpu.log; delete them by hand: they tell of others too" in listing.lines
    assert listing.tombstone is not None
    assert (logs / "gpu.log").is_file()


def tables_naming(subject: str) -> set[str]:
    """The tables of the server's database that hold a pseudonym."""
    path = str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2]
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        lines = [(name, str(line)) for name in tables for line in database.execute(f'select * from "{name}"')]
    return {name for name, line in lines if re.search(rf"{subject}(?!-2)", line)}


def test_a_run_that_is_at_work_on_the_person_has_to_be_cancelled_first(ada: Path) -> None:
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(learn, parameters={"spec": {"subject": ADA}}, name="learn it", state=Running())
    with pytest.raises(InputError, match=r"`learn it` is at work on this subject; .* or cancel it with --cancel"):
        forget(ForgetSpec(subject=ADA, delete=True))
    assert (ada / "data").is_dir()

    forget(ForgetSpec(subject=ADA, delete=True, cancel=True))

    assert not ada.exists()
    assert run.id not in {each.id for each in runs_of(ADA).runs}


HOLDS = """
import os, signal, sys, time
from pathlib import Path
from tasks.workspace.workspace import locked_workspace
with locked_workspace(Path(sys.argv[1])):
    try:
        print("in", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        time.sleep(3)
        Path(sys.argv[2]).write_text("tidied up")
"""


def test_who_holds_the_workspace_is_asked_to_end_once_and_tidies_up(places: Path, tmp_path: Path) -> None:
    workspace = finished(places / "workspaces" / ADA, seed=1)
    command = [sys.executable, "-c", HOLDS, str(workspace), str(tmp_path / "tidy")]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"in\n"

        forget(ForgetSpec(subject=ADA, delete=True, cancel=True))

    assert (tmp_path / "tidy").read_text() == "tidied up"
    assert not workspace.exists()


def test_a_process_of_another_machine_is_not_taken_for_one_of_this(places: Path) -> None:
    workspace = finished(places / "workspaces" / ADA, seed=1)
    path = lock_path(workspace)
    path.parent.mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"]) as stranger, path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{stranger.pid} another-machine")
        file.flush()
        with pytest.raises(InputError, match=rf"worked on by process {stranger.pid} on another-machine; wait for it"):
            forget(ForgetSpec(subject=ADA, delete=True, cancel=True))

        assert stranger.poll() is None
        stranger.kill()


@flow(name="learn", flow_run_name="learn {spec.subject}")
def learn_elsewhere(spec: LearnSpec, store: Path, holds: threading.Event) -> None:
    """A phase on another machine: it ends some time after it was cancelled, and stores something up to its end."""
    with leased(spec.subject):
        holds.set()
        with get_client(sync_client=True) as client:
            while not client.read_flow_run(flow_run.id).state.is_cancelling():
                time.sleep(0.1)
        for number in range(10):
            time.sleep(0.1)
            write(store / "subjects" / spec.subject / "dvc" / str(number), b"a face")


def test_a_phase_on_another_machine_has_ended_before_anything_is_deleted(places: Path) -> None:
    store, holds = places / "store", threading.Event()
    phase = threading.Thread(target=learn_elsewhere, args=(LearnSpec(subject="eve"), store, holds))
    phase.start()
    assert holds.wait(timeout=60)
    with pytest.raises(InputError, match=r"`learn eve` is at work on this subject; .* or cancel it with --cancel"):
        forget(ForgetSpec(subject="eve", delete=True))

    listing = forget(ForgetSpec(subject="eve", delete=True, cancel=True))

    phase.join(timeout=60)
    assert listing.tombstone is not None
    assert [path for path in (store / "subjects").rglob("*") if path.is_file()] == []


def test_a_list_and_a_promotion_are_shown_and_what_stays_of_a_forgetting_names_nobody(ada: Path) -> None:
    forget(ForgetSpec(subject=ADA))

    promoted = newest_artifact(f"{ADA}-promote")
    assert f"**The channel production of {ADA} points to {releases(ada)[1]}**, pass: " in promoted
    assert f"promoted | {releases(ada)[1]} |" in promoted
    listed = newest_artifact(f"{ADA}-forget")
    assert f"**All there is of {ADA}. Nothing was deleted**" in listed
    assert "| channels | production at 2-" in listed

    forget(ForgetSpec(subject=ADA, delete=True))

    assert newest_artifact(f"{ADA}-forget") == newest_artifact(f"{ADA}-promote") == ""
    forgotten = newest_artifact("forgotten")
    assert "**A person was forgotten on 2" in forgotten
    assert "| runs with their logs | 4 |" in forgotten
    assert ADA not in forgotten
    forget(ForgetSpec(subject=ADA))
    assert newest_artifact(f"{ADA}-forget") == ""


def newest_artifact(key: str) -> str:
    """The text of the newest artifact of a key, or ""."""
    of = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=of, sort=ArtifactSort.CREATED_DESC, limit=1)
    return str(found[0].data) if found else ""


def test_from_the_shell_it_lists_and_then_deletes(ada: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forget", "--subject", ADA]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Nothing was deleted; `--delete` deletes all of it."
    assert main(["forget", "--subject", ADA, "--delete"]) == 0
    assert capsys.readouterr().out.startswith("Deleted, and a second listing was empty:\nworkspace  ")
    assert not ada.exists()


# huggingface_hub sends files to httpx2 in a manner that httpx2 does not like any more.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_from_the_shell_a_release_goes_to_the_hub_and_forgetting_takes_it_off(
    places: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(places / "workspaces" / ADA)
    assert main(["publish", "--subject", ADA, "--hub-repository", "lab/ada"]) == 0
    assert re.search(r"^hub      lab/ada, with the tag 1-[0-9a-f]{8}$", capsys.readouterr().out, re.MULTILINE)
    assert len(hub.repos["lab/ada"].tags) == 1

    assert main(["forget", "--subject", ADA]) == 0
    assert "hub        lab/ada, made by publishing: is deleted" in capsys.readouterr().out
    assert "lab/ada" in hub.repos
    hub.faults["info"] = 403
    assert main(["forget", "--subject", ADA, "--delete"]) == 2
    assert "forbids this token to write lab/ada" in capsys.readouterr().err
    assert not (places / "workspaces" / ADA).exists()  # all else is gone meanwhile, but for what tells of the hub
    assert FolderStore(places / "store").keys(f"subjects/{ADA}") == [
        f"subjects/{ADA}/{name}" for name in ("hub.json", "releases/index.json")
    ]
    hub.faults.clear()
    assert main(["forget", "--subject", ADA, "--delete"]) == 0

    assert hub.repos == {}
    assert "lab/ada" not in "".join(path.read_text("latin-1") for path in places.rglob("*.json"))


def test_what_another_machine_still_has_of_a_forgotten_person_is_not_worked_on(
    ada: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ada, places / "elsewhere" / ADA)
    forget(ForgetSpec(subject=ADA, delete=True))
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(places / "elsewhere"))

    for phase in (
        lambda: prepare(PrepareSpec(subject=ADA)),
        lambda: real_learn(LearnSpec(subject=ADA)),
        lambda: publish(PublishSpec(subject=ADA)),
    ):
        with pytest.raises(InputError, match=rf"The subject of {places}/elsewhere/{ADA} was forgotten after that was"):
            phase()
    assert FolderStore(places / "store").keys(f"subjects/{ADA}") == []


def test_the_demo_is_nobody(places: Path) -> None:
    with pytest.raises(InputError, match=r"The demo is no person's, and lies in the project itself; `make clean`"):
        forget(ForgetSpec(subject="demo"))


def test_from_the_shell_a_release_is_promoted_and_taken_back(ada: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", "--subject", ADA, "--channel", "production", "--release", releases(ada)[0]]) == 0
    assert capsys.readouterr().out.startswith(f"channel  {releases(ada)[0]} (promote at ")
    assert main(["promote", "--subject", ADA, "--channel", "production", "--back"]) == 0
    assert capsys.readouterr().out.startswith(f"channel  {releases(ada)[1]} (rollback at ")


def releases(ada: Path) -> list[str]:
    index = ada.parents[1] / "store" / "subjects" / ADA / "releases" / "index.json"
    return [each["name"] for each in json.loads(index.read_text())["releases"]]
