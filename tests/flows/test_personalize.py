"""The whole pipeline on real photos, with real stages, a real server and a model too small to learn much."""

import base64
import contextlib
import datetime
import hashlib
import io
import json
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from PIL import Image
from PIL.ExifTags import TAGS
from PIL.PngImagePlugin import PngInfo
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import TaskRun
from prefect.events import emit_event
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

from flows.__main__ import main
from flows.learn import learn
from flows.spec import LearnSpec
from tasks.release.publish import publish as publish_task
from tasks.settings import PROJECT, from_environment
from tasks.store.s3 import FolderStore
from tasks.transfer.state import State, state_key
from tasks.workspace.dvc import run as run_dvc
from tasks.workspace.subject import Choices, set_up
from tasks.workspace.workspace import Outcome, bring_up_to_date
from tests.agreed import agreed
from zimage.consent import Consent
from zimage.core.errors import InputError
from zimage.core.folder import aside_of
from zimage.core.params import with_values
from zimage.core.signatures import STAGES
from zimage.demo import make_demo_photos
from zimage.model.base import Base

NUM_PHOTOS = 16
Rows = dict[tuple[str, int], str]
SMALL = {
    "subject.class_noun": "woman",
    "ingest.min_photos": 6,
    "detect.split.min_train": 4,
    "detect.duplicates.same_shot": None,
    "detect.crops.side_px": 64,
    "train.steps": 4,
    "train.batch_size": 2,
    "train.micro_batch_size": 2,
    "train.rank": 2,
    "train.checkpoint_every": 2,
    "train.schedule.warmup_steps": 1,
    "evaluate.sampling.side_px": 64,
    "evaluate.sampling.steps": 2,
    "evaluate.seeds.test": 1,
    "evaluate.sweep.strengths": [1.0],
    "evaluate.resampling.resamples": 200,
}


SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")
PLANTED = "planted-by-the-test"
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta exif:GPSLatitude='29,33.6N' dc:creator='" + PLANTED.encode() + b"'/>"
# 29 degrees, 33 minutes, 36 seconds north, as the demo's photos have it: rationals in either byte order.
PLACE = [struct.pack(f"{order}6I", 29, 1, 33, 1, 36, 1) for order in "<>"]


def planted(jpeg: bytes) -> bytes:
    """Return a JPEG, which has a place in its Exif data, with a packet of XMP and a comment that tell more."""
    assert any(place in jpeg for place in PLACE)
    segments = ((0xE1, XMP), (0xFE, PLANTED.encode()))
    new = b"".join(struct.pack(">BBH", 0xFF, kind, len(said) + 2) + said for kind, said in segments)
    return jpeg[:2] + new + jpeg[2:]


@dataclass(frozen=True)
class Run:
    """What a person sees of a run."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Ada:
    """A subject whose workspace was run twice."""

    workspace: Path
    arguments: list[str]
    first: Run
    second: Run


def run(*arguments: str) -> Run:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*arguments])
    return Run(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIMAGE_WORKSPACES", str(folder / "workspaces"))
        patch.setenv("ZIMAGE_STORE", str(folder / "store"))
        for name in SECRETS:
            patch.setenv(name, f"{PLANTED}-{name}")
        yield folder


@pytest.fixture(scope="module")
def ada(places: Path, database_before: Rows, tiny_base: Base) -> Ada:
    photos = places / "photos"
    make_demo_photos(photos, seed=1)
    for superfluous in sorted(photos.glob("IMG_1*.jpg"))[NUM_PHOTOS:]:
        superfluous.unlink()
    for photo in photos.glob("IMG_1*.jpg"):
        photo.write_bytes(planted(photo.read_bytes()))
    values = [f"--set={key}={json.dumps(value)}" for key, value in SMALL.items()]
    given = ["--photos", str(photos), "--consent", str(agreed(places, "ada")), "--base", tiny_base.model, *values]
    arguments = ["personalize", "--subject", "ada"]
    first = run(*arguments, *given)
    return Ada(places / "workspaces" / "ada", arguments, first, run(*arguments))


def test_photos_become_a_lora_a_score_and_a_report(ada: Ada) -> None:
    assert ada.first.code == 0, ada.first.err
    assert "stages   " + ", ".join(f"{stage} ran" for stage in STAGES) in ada.first.out
    assert (ada.workspace / "data" / "train" / "lora.safetensors").stat().st_size > 0
    assert (ada.workspace / "data" / "evaluate" / "report.html").stat().st_size > 0


def test_the_last_lines_say_the_verdict_and_where_things_are(ada: Ada) -> None:
    metrics = json.loads((ada.workspace / "data" / "evaluate" / "metrics.json").read_text())

    assert f"verdict  {metrics['verdict']}: " in ada.first.out
    assert f"report   {ada.workspace}/data/evaluate/report.html" in ada.first.out


def test_a_poor_score_is_a_result_and_no_failure(ada: Ada) -> None:
    assert "verdict  fail" in ada.first.out
    assert ada.first.code == 0


def test_a_second_run_skips_everything_and_says_so(ada: Ada) -> None:
    assert ada.second.code == 0, ada.second.err
    assert ada.second.out.startswith("Everything was up to date; nothing was run.\n")
    assert ada.second.out.splitlines()[1:] == ada.first.out.splitlines()[1:]


def test_dvc_by_itself_finds_nothing_to_do_after_a_flow(ada: Ada) -> None:
    for stage in STAGES:
        assert bring_up_to_date(ada.workspace, stage, on_line=lambda _: None) is Outcome.UNCHANGED


def test_a_stage_called_by_hand_gives_the_same_bytes(ada: Ada, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zimage", "train", str(ada.workspace / "data" / "encode"), str(tmp_path / "train")]

    subprocess.run([*command, "--params", str(ada.workspace / "params.yaml")], cwd=PROJECT, check=True)

    by_flow = (ada.workspace / "data" / "train" / "lora.safetensors").read_bytes()
    assert (tmp_path / "train" / "lora.safetensors").read_bytes() == by_flow


def test_how_a_machine_uses_its_memory_makes_nothing_stale(
    ada: Ada, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "ada"
    shutil.copytree(ada.workspace, workspace)
    params = workspace / "params.yaml"
    params.write_text(with_values(params.read_text(), {"machine.checkpointing": "full"}, "test"))
    monkeypatch.setenv("ZIMAGE_MACHINE", "offloaded_blocks=1")

    assert bring_up_to_date(workspace, "evaluate", on_line=lambda _: None) is Outcome.UNCHANGED


def test_the_same_lora_is_not_evaluated_again_and_another_is(ada: Ada, tmp_path: Path) -> None:
    workspace, lines = tmp_path / "ada", list[str]()
    shutil.copytree(ada.workspace, workspace)
    numbers, lora = (workspace / "data" / "train" / name for name in ("metrics.json", "lora.safetensors"))
    before = numbers.read_bytes(), lora.read_bytes()

    run_dvc(workspace, ["repro", "--force", "--single-item", "train"], on_line=lines.append)

    assert "Running stage 'train':" in lines
    assert (numbers.read_bytes() == before[0], lora.read_bytes() == before[1]) == (False, True)  # times differ
    assert bring_up_to_date(workspace, "evaluate", on_line=lambda _: None) is Outcome.UNCHANGED
    params = workspace / "params.yaml"
    params.write_text(with_values(params.read_text(), {"train.seed": 1}, "test"))
    assert bring_up_to_date(workspace, "evaluate", on_line=lambda _: None) is Outcome.RAN
    assert lora.read_bytes() != before[1]


def task_runs(subject: str) -> list[TaskRun]:
    with get_client(sync_client=True) as client:
        parts = [FlowRunFilter(name=FlowRunFilterName(like_=f"{flow} {subject} (")) for flow in ("prepare", "learn")]
        return [run for part in parts for run in client.read_task_runs(flow_run_filter=part)]


def test_the_ui_shows_what_ran_and_what_was_skipped(ada: Ada) -> None:
    expected = sorted((stage, name) for stage in STAGES for name in ("Completed", "Unchanged"))
    until = time.monotonic() + 60
    while (states := states_of("ada")) != expected and time.monotonic() < until:  # a server writes them down later
        time.sleep(0.5)

    assert states == expected


def states_of(subject: str) -> list[tuple[str, str | None]]:
    return sorted((each.name.split()[0], each.state_name) for each in task_runs(subject))


def test_progress_and_numbers_are_artifacts(ada: Ada) -> None:
    with get_client(sync_client=True) as client:
        keys = ArtifactFilterKey(any_=["ada-train-progress", "ada-train", "ada-evaluate"])
        found = {each.key: each for each in client.read_artifacts(artifact_filter=ArtifactFilter(key=keys))}

    assert found["ada-train-progress"].data == 100.0
    numbers = {row["number"]: row["value"] for row in json.loads(found["ada-evaluate"].data)}
    assert numbers["verdict"] == "fail"
    assert "ada-train" in found


def test_no_secret_and_no_place_is_in_anything_that_a_run_leaves(ada: Ada, places: Path, tmp_path: Path) -> None:
    metrics = ada.workspace / "data" / "evaluate" / "metrics.json"
    passed = tmp_path / "ada"
    shutil.copytree(ada.workspace, passed)
    (passed / metrics.relative_to(ada.workspace)).write_text(metrics.read_text().replace('"fail"', '"pass"'))
    consent = passed / "data" / "consent.yaml"
    said = yaml.safe_load(consent.read_text())
    said |= {"scope": ["training", "evaluation", "publication"], "may_publish": True}
    consent.write_text(yaml.safe_dump(said))
    release = publish_task.fn(passed, "ada", FolderStore(tmp_path / "store"))
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2])

    left = [path for path in ada.workspace.rglob("*") if path.is_file()]
    given = [path for path in left if path.is_relative_to(ada.workspace / "data" / "photos")]
    files = [*(set(left) - set(given)), *database.parent.glob(f"{database.name}*")]
    files += [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    told = {path: found for path in files if (found := tells(path.read_bytes()))}

    assert all(tells(path.read_bytes()) for path in given if path.name.startswith("IMG_1"))
    assert release.is_new and len(files) > 100
    kinds = {"dvc.lock", "params.yaml", "subject.yaml", "report.html", "lora.safetensors", "scores.csv", database.name}
    assert kinds <= {path.name for path in files}
    assert b"ada-train-progress" in database.read_bytes() + b"".join(
        path.read_bytes() for path in files if path.name.startswith(f"{database.name}-wal")
    )
    assert told == {}
    assert tells((ada.first.out + ada.first.err + ada.second.out + ada.second.err).encode()) == []


def tells(content: bytes) -> list[bytes]:
    """Return what of the planted secrets and places some content holds."""
    said = (PLANTED.encode(), *PLACE, b"29,33.6N", b"GPSLatitude", b"GPSInfo")
    return [each for each in said if any(each in one for one in unpacked(content))]


def unpacked(content: bytes) -> Iterator[bytes]:
    """Yield some content, and what lies in it packed: pictures in a page, and what pictures say of themselves."""
    yield content
    for packed in re.findall(rb"base64,((?:[A-Za-z0-9+/]{4})+[A-Za-z0-9+/=]{0,4})", content):
        yield from unpacked(base64.b64decode(packed))
    if content.startswith((b"\x89PNG", b"\xff\xd8")):
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()  # a PNG may say something after its pixels, and may have packed it
            exif = {TAGS.get(tag, tag): value for tag, value in picture.getexif().items()}
            yield repr((picture.info, exif)).encode()


def test_what_is_packed_is_found_too() -> None:
    """A search that cannot find is no search."""
    said, packed = PngInfo(), io.BytesIO()
    said.add_text("Comment", PLANTED, zip=True)
    Image.new("RGB", (8, 8)).save(packed, "png", pnginfo=said)
    page = b'<img src="data:image/png;base64,' + base64.b64encode(packed.getvalue()) + b'">'

    assert PLANTED.encode() not in packed.getvalue() + page
    assert tells(packed.getvalue()) == tells(page) == [PLANTED.encode()]
    assert tells(b'<img src="data:image/png;base64,' + base64.b64encode(PLACE[0]) + b'">') == [PLACE[0]]


def test_only_the_stages_behind_a_change_run_again(ada: Ada) -> None:
    """Runs last of those that look at the workspace: it changes it."""
    changed = run(*ada.arguments, "--set", "evaluate.sampling.steps=1")

    assert "train unchanged, evaluate ran" in changed.out
    restored = run(*ada.arguments, "--set", f"evaluate.sampling.steps={SMALL['evaluate.sampling.steps']}")
    assert "train unchanged, evaluate restored" in restored.out


def test_another_trigger_makes_stale_all_that_has_words_and_is_told_at_the_end(ada: Ada) -> None:
    changed = run(*ada.arguments, "--trigger", "zmkl")
    restored = run(*ada.arguments, "--trigger", "ohzw")

    assert (
        "stages   ingest unchanged, detect unchanged, caption ran, encode ran, train ran, evaluate ran" in changed.out
    )
    assert "\nprompt   a photo of zmkl woman\n" in changed.out
    assert "detect unchanged, caption restored, encode restored, train restored, evaluate restored" in restored.out
    assert "\nprompt   a photo of ohzw woman\n" in restored.out


def test_publishing_what_failed_is_refused_and_the_result_is_kept(ada: Ada, places: Path) -> None:
    scope = ["training", "evaluation", "publication"]
    consent = agreed(places / "all", "ada", scope=scope, may_publish=True)

    refused = run(*ada.arguments, "--consent", str(consent), "--publish", "provisional")

    assert refused.code == 2
    assert "flows: Not published, the verdict is fail; the report says why. Outside its limit" in refused.err
    assert "report   " in refused.out
    assert not (places / "store").exists() or not any((places / "store").rglob("*.safetensors"))


def test_a_consent_that_ended_since_photos_were_taken_in_stops_every_way_of_training(ada: Ada) -> None:
    """DVC finds `ingest`, which asked while the consent held, unchanged, and does not run it again."""
    eve = ada.workspace.parent / "eve"
    shutil.copytree(ada.workspace, eve)
    ends_on(eve, datetime.date(2020, 1, 1))
    (arguments := [*ada.arguments])[-1] = "eve"

    refused = run(*arguments, "--set", "train.steps=2")
    learnt = run("learn", "--subject", "eve")

    assert refused.code == learnt.code == 2
    assert "expired on 2020-01-01; ask for a new one before going on" in refused.err
    assert "expired on 2020-01-01; ask for a new one before going on" in learnt.err
    assert task_runs("eve") == []
    set_up(from_environment(), "eve", values={"train.steps": 2})  # a refused run has written nothing
    assert bring_up_to_date(eve, "encode", on_line=lambda _: None) is Outcome.UNCHANGED
    with pytest.raises(InputError, match="expired on 2020-01-01"):  # `dvc repro`: the stage itself asks
        bring_up_to_date(eve, "train", on_line=lambda _: None)


def ends_on(workspace: Path, last: datetime.date) -> None:
    """Write into consent and lock what would be there if the consent had been given to that day."""
    path, lock = workspace / "data" / "consent.yaml", workspace / "dvc.lock"
    before = path.read_bytes()
    path.write_text(yaml.safe_dump(yaml.safe_load(before) | {"expires": last}))
    was, now = (hashlib.md5(content).hexdigest() for content in (before, path.read_bytes()))
    text = lock.read_text()
    assert was in text
    lock.write_text(text.replace(was, now).replace(f"size: {len(before)}\n", f"size: {path.stat().st_size}\n"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"expires": datetime.date(2020, 1, 1)}, "expired on 2020-01-01; ask for a new one before going on"),
        ({"scope": ["training"]}, "covers training but not evaluation; ask for it"),
        (None, "zoe is not prepared: no consent is known here; run `personalize` with --consent."),
        ({}, "zoe is not prepared for this code and these settings; run `prepare` or `personalize` first."),
    ],
)
def test_a_machine_of_a_pool_asks_the_consent_that_was_handed_over(
    places: Path, prefect_server: None, changes: dict[str, object] | None, said: str
) -> None:
    agreed = yaml.safe_load((PROJECT / "data" / "consent.yaml").read_text())
    state = State(
        version=1,
        writer="prepare",
        choices=Choices(preset="tiny", base=None, values={}),
        sources={},
        inputs={},
        lock="schema: '2.0'\nstages: {}\n",
        consent=None if changes is None else Consent(**agreed | changes),
    )
    store = FolderStore(places / "pools")
    before = store.read(state_key("zoe"))
    store.compare_and_swap(state_key("zoe"), state.model_dump_json().encode(), before.tag if before else None)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError) as refused:
        patch.setenv("ZIMAGE_STORE", str(places / "pools"))
        learn(LearnSpec(subject="zoe", placement="pools"))

    assert said in str(refused.value)


@pytest.fixture(scope="module")
def database_before(prefect_server: None) -> Rows:
    """The rows that other tests left on this server."""
    return rows_of_database()


def rows_of_database() -> Rows:
    """Return every row of every table of the server's database, by table and row id."""
    path = str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2]
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        return {
            (table, row[0]): repr(row[1:])
            for table in tables
            for row in database.execute(f'select rowid, * from "{table}"')
        }


def wait_until_events_are_written() -> None:
    """Return once the server has written all events that were emitted before."""
    marker = emit_event(f"test.marker.{uuid4()}", resource={"prefect.resource.id": "test.marker"})
    assert marker is not None
    until = time.monotonic() + 60
    while not any(table == "events" and marker.event in row for (table, _), row in rows_of_database().items()):
        assert time.monotonic() < until
        time.sleep(0.5)


def personal_facts(workspace: Path) -> dict[str, list[str]]:
    """Return regular expressions of what nothing outside a workspace may hold after its subject was forgotten."""
    data = workspace / "data"
    rows = [json.loads(line) for line in (data / "detect" / "manifest.jsonl").read_text().splitlines()]
    photos = [path.read_bytes() for path in (data / "photos").iterdir()]
    lock = yaml.safe_load((workspace / "dvc.lock").read_text())
    outputs = [out["md5"] for stage in lock["stages"].values() for out in stage["outs"]]
    figures = json.loads((data / "evaluate" / "metrics.json").read_text())
    return {
        "photo hash": [*(row["photo"] for row in rows), *(hashlib.sha256(photo).hexdigest() for photo in photos)],
        "result hash": [md5.removesuffix(".dir") for md5 in outputs],
        "photo name": [r"IMG_1\d{3}"],
        "likeness": [re.escape(figures["why"][:40]), r"number\W+verdict\W+value"],
        "trigger": [r"\bzmkl\b"],
        "link": [re.escape(f"{workspace}/data"), "report.html", r"(?<!\.refused/)contact_sheet\.html"],
    }


def found_in(rows: Rows, facts: dict[str, list[str]]) -> dict[str, set[str]]:
    """Return the tables in which each kind of personal fact is found."""
    patterns = {kind: re.compile("|".join(each)) for kind, each in facts.items()}
    return {
        kind: tables
        for kind, pattern in patterns.items()
        if (tables := {table for (table, _), row in rows.items() if pattern.search(row)})
    }


def test_photos_that_cannot_be_used_end_with_the_stage_s_sentence(ada: Ada, places: Path, prefect_server: None) -> None:
    (places / "broken").mkdir()
    for number in range(12):  # they begin like photos, which is all that is looked at before a run exists
        (places / "broken" / f"{number}.jpg").write_bytes((places / "photos" / "IMG_1001.jpg").read_bytes()[:4000])
    (places / "broken" / "11.jpg").rename(places / "broken" / "Grandmas_house.jpg")

    refused = run(
        *("personalize", "--subject", "bob", "--photos", str(places / "broken")),
        *("--consent", str(agreed(places, "bob")), "--class-noun", "man"),
    )

    assert refused.code == 2
    sentence = "Only 0 of the 12 files in data/photos can be used"
    assert f"flows: {sentence}" in refused.err
    assert refused.err.count(sentence) == 1
    assert "Traceback" not in refused.err
    assert not (places / "workspaces" / "bob" / "data" / "ingest").exists()
    assert not aside_of(places / "workspaces" / "bob" / "data" / "ingest").exists()
    assert [(each.name, each.run_count) for each in task_runs("bob")] == [("ingest bob", 1)]
    with get_client(sync_client=True) as client:
        states = [each.state for each in (*client.read_flow_runs(), *client.read_task_runs()) if each.state]
    messages = [state.message or "" for state in states]
    assert any("Only 0 of the 12 files" in message for message in messages)
    assert not any("Grandma" in message for message in messages)  # events and notifications quote these


def test_everything_of_a_subject_is_in_its_workspace(ada: Ada) -> None:
    lock = yaml.safe_load((ada.workspace / "dvc.lock").read_text())
    paths = [entry["path"] for stage in lock["stages"].values() for entry in (*stage["deps"], *stage["outs"])]

    assert paths
    assert all(not Path(path).is_absolute() and ".." not in Path(path).parts for path in paths)
    config: Any = (ada.workspace / ".dvc" / "config").read_text()
    assert "no_scm = true" in config
    assert re.search(r'type = "(hardlink|reflink),copy"', config)


def test_after_forget_the_whole_database_holds_nothing_of_the_person_but_names_of_runs(
    ada: Ada, places: Path, database_before: Rows
) -> None:
    facts = personal_facts(ada.workspace)
    assert all(facts.values())
    wait_until_events_are_written()
    before = {key: row for key, row in rows_of_database().items() if database_before.get(key) != row}
    assert {kind for kind, tables in found_in(before, facts).items() if "artifact" in tables} >= {
        "photo hash",
        "likeness",
        "link",
    }

    assert run("forget", "--subject", "ada", "--delete").code == 0

    wait_until_events_are_written()
    after = {key: row for key, row in rows_of_database().items() if database_before.get(key) != row}
    assert found_in(after, facts) == {}
    assert {table for (table, _), row in after.items() if re.search(r"\bada\b", row)} <= {"events", "event_resources"}
