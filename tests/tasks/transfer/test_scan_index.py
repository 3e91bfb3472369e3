"""The index of states: that it saves opening them, and that it hides no change, whoever makes one and however."""

import datetime
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from tasks.erasure.forget import empty
from tasks.settings import PROJECT, Settings
from tasks.store.s3 import FolderStore, S3Store, Store
from tasks.transfer.scan_index import INDEX
from tasks.transfer.staleness import Finding, Project, read_project, scan, scan_all
from tasks.transfer.state import State, read_state, state_key
from tests.tasks.transfer import test_staleness as test_scan
from tests.tasks.transfer.test_staleness import CHOICES, CONSENT, TODAY
from zimage.consent import Consent

SUBJECTS = ["ada", "eve", "joe"]
TICK_S = 0.02  # Linux tells times of files in ticks of up to 10 ms


@pytest.fixture
def bucket(s3: None) -> Iterator[S3Store]:
    client = boto3.client("s3")
    client.create_bucket(Bucket="scanned")
    store = replace(S3Store.connect("scanned", "project"), listing_lag_s=0.0)
    yield store
    store.delete("")
    client.delete_bucket(Bucket="scanned")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "store", tick_s=TICK_S)
    found: Store = request.getfixturevalue("bucket")
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(project=PROJECT, workspaces=tmp_path / "workspaces", store=str(tmp_path / "elsewhere"))


@pytest.fixture
def project() -> Project:
    return read_project(PROJECT)


@pytest.fixture
def states(settings: Settings, project: Project) -> dict[str, State]:
    """Three finished subjects, whose photos and consent lie in folders."""
    return {subject: test_scan.finished(settings, project, subject) for subject in SUBJECTS}


def put(store: Store, subject: str, state: State) -> None:
    found = store.read(state_key(subject))
    store.compare_and_swap(state_key(subject), state.model_dump_json().encode(), found.tag if found else None)
    settle(store)


def settle(store: Store) -> None:
    """Let what was written be as old as it would be at the next scan."""
    if isinstance(store, FolderStore):
        time.sleep(2 * TICK_S)


def opened(settings: Settings, store: Store, project: Project) -> list[Finding]:
    """What is found where every state is opened."""
    found = [scan(settings, store, project, subject, TODAY) for subject in SUBJECTS]
    return [finding for finding in found if finding]


def requests(store: S3Store, ask: Callable[[], object]) -> list[str]:
    made: list[str] = []
    store.client.meta.events.register("before-call.s3", lambda model, **_: made.append(model.name), unique_id="count")
    ask()
    store.client.meta.events.unregister("before-call.s3", unique_id="count")
    return sorted(made)


def test_states_that_did_not_change_are_not_opened(
    settings: Settings, bucket: S3Store, project: Project, states: dict[str, State]
) -> None:
    for subject, state in states.items():
        put(bucket, subject, state)
    first = requests(bucket, lambda: scan_all(settings, bucket, project, TODAY))
    assert first.count("GetObject") == 1 + len(SUBJECTS)

    again = requests(bucket, lambda: scan_all(settings, bucket, project, TODAY))
    assert again == ["GetObject", "ListObjectsV2", "ListObjectsV2"]

    put(bucket, "eve", states["eve"].model_copy(update={"version": 2}))
    one = requests(bucket, lambda: scan_all(settings, bucket, project, TODAY))
    assert one.count("GetObject") == 2
    assert requests(bucket, lambda: scan_all(settings, bucket, project, TODAY)) == again


def test_whatever_happens_between_scans_the_index_hides_none_of_it(
    settings: Settings, store: Store, project: Project, states: dict[str, State], tmp_path: Path
) -> None:
    pick = random.Random(0)
    for subject, state in states.items():
        put(store, subject, state)
    projects = [project, replace(project, code={**project.code, "train": "sha256:00"})]
    seen: set[str] = set()
    now = project

    def choose_other_values(subject: str) -> None:
        chosen = CHOICES.model_copy(update={"values": {"train.steps": pick.choice([4, 8])}})
        put(store, subject, states[subject].model_copy(update={"choices": chosen}))

    def write_past_the_code(subject: str) -> None:  # as who restores a backup does
        state = states[subject].model_copy(update={"lock": pick.choice(["", states[subject].lock])})
        content = state.model_dump_json().encode()
        if isinstance(store, S3Store):
            store.client.put_object(Bucket=store.bucket, Key=f"project/{state_key(subject)}", Body=content)
        else:
            assert isinstance(store, FolderStore)
            before = (store.root / state_key(subject)).stat() if (store.root / state_key(subject)).exists() else None
            (store.root / state_key(subject)).write_bytes(content)
            if before:
                os.utime(store.root / state_key(subject), ns=(before.st_mtime_ns, before.st_mtime_ns))

    def add_a_photo(subject: str) -> None:
        photos = Path(states[subject].sources["photos"].address)
        photos.mkdir(exist_ok=True)
        (photos / f"{pick.random()}.jpg").write_bytes(b"photo")

    def move_the_photos(subject: str) -> None:
        photos = Path(states[subject].sources["photos"].address)
        if photos.exists():
            shutil.move(photos, tmp_path / str(pick.random()))

    def hand_over_another_consent(subject: str) -> None:
        expires = TODAY + datetime.timedelta(days=pick.choice([-1, 30]))
        consent = Consent(**CONSENT | {"expires": expires})
        put(store, subject, test_scan.moved(states[subject], consent))

    def forget(subject: str) -> None:
        empty(store, subject)

    for _ in range(40):
        subject = pick.choice(SUBJECTS)
        pick.choice([choose_other_values, write_past_the_code, add_a_photo, move_the_photos, hand_over_another_consent,
                     forget, choose_other_values])(subject)  # fmt: skip
        now = pick.choice([now, now, now, *projects])

        found = scan_all(settings, store, now, TODAY)

        assert found == opened(settings, store, now)
        seen |= {finding.verdict for finding in found}
    assert seen == {"unchanged", "changed", "stopped"}


def test_a_state_that_was_written_while_it_was_read_is_read_again(
    settings: Settings, project: Project, states: dict[str, State], tmp_path: Path
) -> None:
    """A file system tells times in ticks: a file may be written again within one, and look as it did."""
    store = FolderStore(tmp_path / "store")
    found = store.compare_and_swap(state_key("ada"), states["ada"].model_dump_json().encode(), None)
    assert found

    scan_all(settings, store, project, TODAY)

    index = store.read(INDEX)
    assert index is None or b'"ada"' not in index.content
    exact = FolderStore(store.root, tick_s=TICK_S)
    settle(exact)
    scan_all(settings, exact, project, TODAY)
    index = store.read(INDEX)
    assert index is not None and b'"ada"' in index.content


@pytest.mark.parametrize("content", [b"", b"nothing of ours", b"\xff\x00"])
def test_an_index_that_cannot_be_read_is_none(
    settings: Settings, store: Store, project: Project, states: dict[str, State], content: bytes
) -> None:
    put(store, "ada", states["ada"])
    scan_all(settings, store, project, TODAY)
    before = store.read(INDEX)
    assert before is not None
    head = before.content.splitlines()[0]
    store.compare_and_swap(INDEX, head + b"\n" + content, before.tag)

    assert scan_all(settings, store, project, TODAY) == opened(settings, store, project)
    after = store.read(INDEX)
    assert after is not None and after.content == before.content


def test_nobody_is_left_in_the_index_after_forgetting(
    settings: Settings, store: Store, project: Project, states: dict[str, State]
) -> None:
    for subject, state in states.items():
        put(store, subject, state)
    scan_all(settings, store, project, TODAY)

    empty(store, "ada")

    assert store.inventory(INDEX).is_empty
    assert read_state(store, "ada").state is None
    assert [finding.subject for finding in scan_all(settings, store, project, TODAY)] == ["eve", "joe"]
    index = store.read(INDEX)
    assert index is not None and b'"ada"' not in index.content
