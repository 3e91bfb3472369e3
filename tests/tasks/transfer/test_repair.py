"""Objects that were damaged in the store: found by who fetches them, mended by who has them, or else made again."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
import yaml
from prefect import flow

from tasks.erasure.forget import erase
from tasks.log import log_line
from tasks.release.publish import publish
from tasks.settings import PROJECT, Settings
from tasks.store.s3 import S3Store, Store, open_store
from tasks.transfer.repair import fetching, made_by, read_by
from tasks.transfer.state import State, checkout, commit, track_inputs
from tasks.workspace.dvc import FetchFailedError
from tasks.workspace.sources import Source
from tasks.workspace.subject import Choices
from tasks.workspace.tombstones import Counts, finish
from tasks.workspace.workspace import Outcome, bring_up_to_date, push
from tests.tasks.finished import finished, write
from zimage.core.errors import InputError

CHOICES = Choices(preset="tiny", base=None, values={})
ONE = (
    "mkdir data/one && for each in x y z; do cat data/photos/1.jpg > data/one/$each; echo $each >> data/one/$each; done"
)
STAGES = {
    "one": {"cmd": ONE, "deps": ["data/photos"], "outs": ["data/one"]},
    "two": {"cmd": "mkdir data/two && cat data/one/* > data/two/all", "deps": ["data/one"], "outs": ["data/two"]},
}
MADE = {each: f"face\n{each}\n".encode() for each in "xyz"}
OBJECTS = "subjects/ada/dvc/files/md5"


@flow
def prepared(settings: Settings) -> State:
    """What the first phase does."""
    before = checkout(settings, "ada")
    folder = settings.workspace("ada")
    write(folder / "data/photos/1.jpg", b"face\n")
    track_inputs(folder)
    bring_up_to_date(folder, "one", on_line=log_line, shared=True)
    photos = {"photos": Source(address="somewhere", seen="so")}
    return commit(settings, "ada", before, stages=("one",), sources=photos, choices=CHOICES, run="prepare ada")


@flow
def prepared_again(settings: Settings) -> State:
    """What a phase does that changes nothing but where the photos come from."""
    before = checkout(settings, "ada")
    photos = {"photos": Source(address="elsewhere", seen="so")}
    return commit(settings, "ada", before, stages=("one",), sources=photos, choices=CHOICES, run="prepare ada")


@flow
def learnt_and_lost(settings: Settings) -> None:
    """What is there when the machine of the second phase is lost after it sent its results, before it handed over."""
    checkout(settings, "ada")
    folder = settings.workspace("ada")
    bring_up_to_date(folder, "two", on_line=log_line, shared=True)
    push(folder, ["two"], on_line=log_line)


@flow
def learnt(settings: Settings) -> bytes:
    """What the second phase does, up to the handing over."""
    checkout(settings, "ada")
    folder = settings.workspace("ada")

    def ask() -> Outcome:
        return bring_up_to_date(folder, "two", on_line=log_line, shared=True)

    fetching(settings, "ada", ask, wants=read_by(folder, "two"))
    return (folder / "data/two/all").read_bytes()


@flow
def fetched(settings: Settings) -> None:
    """A fetch that DVC has refused once, which a repair lets pass."""
    folder = settings.workspace("ada")
    refusals = [FetchFailedError("Checkout failed for following targets:")]

    def once() -> None:
        if refusals:
            raise refusals.pop()

    fetching(settings, "ada", once, wants=[*made_by(folder, ["one"]), "data/photos"])


@flow
def forgotten_then_fetched(settings: Settings) -> None:
    """A phase that still works on a person when all of them is forgotten on another machine, whence a fetch fails."""
    store, folder = open_store(settings.store), settings.workspace("ada")

    def ask() -> None:
        erase(store, folder.with_name("of another machine"), "ada", Counts())
        finish(store, "ada")
        raise FetchFailedError("Checkout failed for following targets:")

    fetching(settings, "ada", ask, wants=[*made_by(folder, ["one"]), "data/photos"])


@pytest.fixture(scope="module")
def shared(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, a machine that has prepared, and the store to which it handed over."""
    place = tmp_path_factory.mktemp("shared")
    write(place / "project/dvc.yaml", json.dumps({"stages": STAGES}).encode())
    write(place / "project/code.yaml", b"one: sha256:00\n")
    write(place / "project/.dvcignore", b"")
    shutil.copy(PROJECT / "params.yaml", place / "project")
    prepared(at(place))
    return place


def at(place: Path) -> Settings:
    return Settings(project=place / "project", workspaces=place / "first", store=str(place / "store"))


@pytest.fixture
def first(shared: Path, tmp_path: Path) -> Settings:
    """The machine that has prepared, with a store in a folder."""
    shutil.copytree(shared, tmp_path, dirs_exist_ok=True)
    return at(tmp_path)


@pytest.fixture
def first_s3(first: Settings, s3: None, s3_server: str) -> Iterator[Settings]:
    """The same with a store in a bucket that keeps versions."""
    client = boto3.client("s3")
    client.create_bucket(Bucket="repair")
    client.put_bucket_versioning(Bucket="repair", VersioningConfiguration={"Status": "Enabled"})
    store = S3Store.connect("repair", "project")
    for path in (path for path in Path(first.store).rglob("*") if path.is_file() and ".locks" not in path.parts):
        store.put_if_absent(path.relative_to(first.store).as_posix(), path)
    yield replace(first, store="s3://repair/project", endpoint=s3_server)
    store.delete("")
    client.delete_bucket(Bucket="repair")


def elsewhere(settings: Settings) -> Settings:
    """Another machine, with nothing but code, settings and store."""
    return replace(settings, workspaces=settings.workspaces.parent / "second")


def object_of(content: bytes) -> str:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return f"{OBJECTS}/{md5[:2]}/{md5[2:]}"


def listing(settings: Settings) -> str:
    (out,) = yaml.safe_load((settings.workspace("ada") / "dvc.lock").read_text())["stages"]["one"]["outs"]
    return f"{OBJECTS}/{out['md5'][:2]}/{out['md5'][2:]}"


def spoil(store: Store, content: bytes, how: str, tmp_path: Path) -> str:
    """Flip a bit of an object, cut it off, or lose it, with all its versions; its key comes back."""
    key = object_of(content)
    store.delete(key)
    spoilt = {"flipped": bytes([content[0] ^ 1]) + content[1:], "cut off": content[:-2]}
    if how in spoilt:
        write(tmp_path / "spoilt", spoilt[how])
        store.overwrite(key, tmp_path / "spoilt")
    return key


def has(store: Store, key: str, tmp_path: Path) -> bool:
    store.get(key, tmp_path / "got")
    name = key.removeprefix(OBJECTS).replace("/", "").removesuffix(".dir")
    return hashlib.md5((tmp_path / "got").read_bytes(), usedforsecurity=False).hexdigest() == name


def forget_copies(settings: Settings, *, but: str = "") -> None:
    """Let a machine have nothing any more of what it made."""
    for name in {".dvc/cache", "data/one"} - {but}:
        shutil.rmtree(settings.workspace("ada") / name)


HOW = {"x": "flipped", "y": "cut off", "z": "lost"}


def test_a_store_in_a_folder_shares_its_objects_with_the_cache_of_the_machine_that_sent_them(shared: Path) -> None:
    objects, cache = shared / "store" / OBJECTS, at(shared).workspace("ada") / ".dvc" / "cache" / "files" / "md5"
    sent = {path.relative_to(objects) for path in objects.rglob("*") if path.is_file()}

    assert len([path for path in sent if path.name.endswith(".dir")]) >= 2 and len(sent) >= len(MADE) + 3
    assert all((objects / path).samefile(cache / path) for path in sent)


def test_what_was_damaged_is_named_and_mended_by_a_machine_that_has_it(first_s3: Settings, tmp_path: Path) -> None:
    store, second = open_store(first_s3.store), elsewhere(first_s3)
    keys = {each: spoil(store, MADE[each], HOW[each], tmp_path) for each in "xyz"}

    with pytest.raises(InputError) as refused:
        learnt(second)

    assert not (second.workspace("ada") / "data/two").exists()
    for each, key in keys.items():
        assert f"data/one/{each} (MD5 {key.removeprefix(OBJECTS).replace('/', '')}, {key})" in str(refused.value)
    assert "; run `personalize` again" in str(refused.value)

    prepared(first_s3)

    assert all(has(store, key, tmp_path) for key in keys.values())
    assert learnt(second) == b"".join(MADE.values())


def test_a_stage_whose_results_nobody_has_any_more_is_run_again(first: Settings, tmp_path: Path) -> None:
    store, second = open_store(first.store), elsewhere(first)
    forget_copies(first)
    keys = [spoil(store, MADE[each], HOW[each], tmp_path) for each in "xyz"]
    with pytest.raises(InputError, match="Damaged or missing in the store, with no sound copy found: data/one/x"):
        learnt(second)

    prepared(first)

    assert all(has(store, key, tmp_path) for key in keys)
    assert learnt(second) == b"".join(MADE.values())


def test_a_damaged_listing_of_a_folder_is_written_anew_from_the_folder(first: Settings, tmp_path: Path) -> None:
    store, key = open_store(first.store), listing(first)
    forget_copies(first, but="data/one")
    write(tmp_path / "spoilt", b"[")
    store.overwrite(key, tmp_path / "spoilt")
    with pytest.raises(InputError, match=r"no sound copy found: data/one \(MD5 [0-9a-f]{32}\.dir"):
        learnt(elsewhere(first))

    prepared(first)

    assert learnt(elsewhere(first)) == b"".join(MADE.values())


@pytest.mark.parametrize("kind", ["first", "first_s3"])
def test_what_was_cut_off_in_the_store_is_mended_by_the_next_push_of_a_machine_that_has_it(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    settings: Settings = request.getfixturevalue(kind)
    store, keys = open_store(settings.store), [listing(settings), *map(object_of, MADE.values())]
    for key, left in zip(keys, (b"[", b"fac", b"", b"f"), strict=True):
        write(tmp_path / "spoilt", left)
        store.overwrite(key, tmp_path / "spoilt")

    prepared_again(settings)

    assert all(has(store, key, tmp_path) for key in keys)


def test_a_record_of_a_run_that_was_cut_off_keeps_no_stage_from_running(first: Settings, tmp_path: Path) -> None:
    learnt_and_lost(first)
    runs, store = "subjects/ada/dvc/runs", open_store(first.store)
    (record,) = [
        path for path in Path(first.store, runs).rglob("*") if path.is_file() and b"data/two" in path.read_bytes()
    ]
    key = record.relative_to(first.store).as_posix()
    write(tmp_path / "spoilt", record.read_bytes()[:20])
    store.overwrite(key, tmp_path / "spoilt")

    assert learnt(elsewhere(first)) == b"".join(MADE.values())
    assert store.sizes(runs)[key] == 0  # which the next push of a machine that has it mends


def test_an_earlier_version_in_the_store_is_a_copy(first_s3: Settings, tmp_path: Path) -> None:
    store, key = open_store(first_s3.store), object_of(MADE["x"])
    forget_copies(first_s3)
    for spoilt in (b"face", b""):
        write(tmp_path / "spoilt", spoilt)
        store.overwrite(key, tmp_path / "spoilt")

    fetched(first_s3)

    assert has(store, key, tmp_path)


def test_a_release_is_a_copy(first: Settings, tmp_path: Path) -> None:
    store = open_store(first.store)
    workspace = finished(tmp_path / "finished" / "ada", seed=1)
    publish.fn(workspace, "ada", store)
    lora = (workspace / "data/train/checkpoints/step-000400.safetensors").read_bytes()
    key = spoil(store, lora, "cut off", tmp_path)
    md5 = key.removeprefix(OBJECTS).replace("/", "")
    lock = {"stages": {"one": {"outs": [{"path": "data/one.safetensors", "md5": md5}]}}}
    write(first.workspace("ada") / "dvc.lock", json.dumps(lock).encode())

    fetched(first)

    assert has(store, key, tmp_path)


def test_what_is_whole_is_no_excuse_for_a_fetch_that_failed(first: Settings) -> None:
    forget_copies(first)
    with pytest.raises(FetchFailedError, match="Checkout failed"):
        fetched(first)


def test_photos_that_nobody_has_are_asked_for(first: Settings, tmp_path: Path) -> None:
    store = open_store(first.store)
    forget_copies(first, but="data/one")
    (first.workspace("ada") / "data/photos/1.jpg").unlink()
    key = spoil(store, b"face\n", "lost", tmp_path)

    with pytest.raises(InputError, match=r"found: data/photos/1\.jpg .* again, with photos and consent if they are"):
        fetched(first)

    prepared(first)
    assert has(store, key, tmp_path)


def test_nothing_of_a_person_who_was_forgotten_is_mended(first: Settings) -> None:
    shutil.rmtree(first.workspace("ada") / ".dvc" / "cache")
    with pytest.raises(InputError, match="was forgotten after that was made"):
        forgotten_then_fetched(first)

    assert open_store(first.store).keys("subjects/ada") == []
