import contextlib
import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import boto3
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.events import emit_event
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

from tasks.prefect_api.artifacts import (
    Bar,
    Offer,
    _show_decisions,
    artifact_key,
    end_progress,
    overview,
    show_offer,
    show_page_again,
)
from tasks.prefect_api.runs import delete, runs_of
from tasks.settings import PROJECT, Settings
from tasks.store.s3 import FolderStore, S3Store
from tasks.transfer.staleness import Finding
from tasks.workspace.tombstones import Counts, begin, finish
from tests.tasks.finished import finished, write
from zimage.core.errors import InputError
from zimage.evaluation.wording import TOY, cells, unbroken

TRAIN = {"name": "train", "done": 0, "total": 1000}


@flow
def shown(subject: str, stage: str, events: list[dict[str, Any]]) -> None:
    bar = Bar(subject, stage)
    for event in events:
        bar.update(event)


def artifact(key: str) -> Artifact:
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    assert isinstance(found.id, UUID)
    return found


def test_a_bar_tells_step_loss_speed_and_time_left(prefect_server: None) -> None:
    shown("eve", "train", [TRAIN | {"done": 200, "loss": 0.123456, "steps_per_s": 3.2168, "left_s": 249}])

    found = artifact("eve-train-progress")
    assert found.data == 20.0
    assert found.description == "train 200 of 1000, 4 min left, loss 0.123, 3.22 steps/s"


def test_a_bar_that_is_full_keeps_the_last_numbers(prefect_server: None) -> None:
    shown("ann", "train", [TRAIN | {"done": 990, "loss": 0.5, "left_s": 3700}, TRAIN | {"done": 1000}])

    assert artifact("ann-train-progress").description == "train 1000 of 1000, loss 0.5"


LATE = TRAIN | {"done": 420, "loss": 0.5, "steps_per_s": 3.2, "peak_gb": 2.1, "left_s": 3480}


@pytest.mark.parametrize(
    ("how", "share", "text"),
    [
        ("finished", 100.0, "finished: train 420 of 1000, loss 0.5"),
        ("failed", 42.0, "failed: train 420 of 1000, loss 0.5"),
        ("cancelled", 42.0, "cancelled: train 420 of 1000, loss 0.5"),
    ],
)
def test_a_bar_whose_stage_has_ended_says_how_and_counts_no_time(
    how: str, share: float, text: str, prefect_server: None
) -> None:
    @flow
    def ends() -> None:
        bar = Bar(f"tim-{how}", "train")
        bar.update(LATE)
        bar.end(how)

    ends()

    found = artifact(f"tim-{how}-train-progress")
    assert (found.data, found.description) == (share, text)


def test_the_bar_of_a_process_that_was_killed_says_so_when_its_run_is_ended_by_others(prefect_server: None) -> None:
    @flow(on_failure=[end_progress])
    def killed() -> None:
        Bar("sue", "encode").update({"name": "encode", "done": 5, "total": 5})
        ended = Bar("sue", "detect")
        ended.update({"name": "detect", "done": 5, "total": 5})
        ended.end("finished")
        Bar("sue", "train").update(LATE)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        killed()

    assert artifact("sue-train-progress").description == "failed: train 420 of 1000, loss 0.5"
    assert artifact("sue-detect-progress").description == "finished: detect 5 of 5"


def test_a_bar_of_work_nobody_can_count_tells_what_is_done(prefect_server: None) -> None:
    shown("joe", "ingest", [{"name": "ingest", "done": 57, "total": 0}])

    assert artifact("joe-ingest-progress").description == "57 done"


def test_a_page_of_a_stage_that_was_not_run_gets_a_new_link(tmp_path: Path, prefect_server: None) -> None:
    settings = Settings(PROJECT, tmp_path / "workspaces", str(tmp_path / "store"), pages="http://127.0.0.1:1")
    page = settings.workspace("kim") / "data" / "evaluate" / "report.html"

    @flow
    def again() -> None:
        for stage in ("train", "evaluate"):
            show_page_again(settings, settings.workspace("kim"), stage, shared=True)

    again()
    page.parent.mkdir(parents=True)
    page.write_text("<p>report")
    again()

    found = artifact("kim-report")
    assert str(found.data).startswith("[Report of kim](file:///")  # nobody serves this store
    assert "; the link opens it until 20" in str(found.description)


def test_what_waits_for_a_decision_tells_verdict_figures_and_the_toy_and_no_path_of_a_machine(
    tmp_path: Path, prefect_server: None
) -> None:
    settings = Settings(PROJECT, tmp_path / "workspaces", str(tmp_path / "store"), pages="http://127.0.0.1:1")
    workspace = finished(settings.workspace("tom"), "provisional")
    metrics = workspace / "data" / "evaluate" / "metrics.json"
    found = json.loads(metrics.read_text())
    metrics.write_text(json.dumps(found | {"sampled": {**found.get("sampled", {}), "packaged": True}}))

    @flow
    def offered() -> Offer:
        return show_offer(settings, workspace, shared=True)

    text = offered().text

    assert text.startswith(f"**tom: provisional.** {unbroken(found['why'])}\n\n[The report](file:///")
    assert "|" not in text  # the dialog breaks no line of a table
    for value, says in cells(found):
        colon = ":" if value == "not measured" else ""
        assert unbroken(f"\n- **{value}{colon}** {says}\n") in text
    assert unbroken(TOY) in text
    assert str(settings.workspaces) not in text and "lora.safetensors" not in text


@pytest.mark.parametrize("one", ["ada_b", "ada-b", "a_da-b"])
def test_every_pseudonym_has_keys_that_prefect_takes(one: str, prefect_server: None) -> None:
    shown(one, "train", [TRAIN])

    artifact(artifact_key(one, "train-progress"))
    assert len({artifact_key(subject, "loss") for subject in ("ada_b", "ada-b", "a_da-b")}) == 3


def test_no_page_of_a_person_who_was_forgotten_is_stored(tmp_path: Path, prefect_server: None) -> None:
    settings = Settings(PROJECT, tmp_path / "workspaces", str(tmp_path / "store"), pages="http://127.0.0.1:1")
    write(settings.workspace("lee") / "data" / "evaluate" / "report.html", b"<html>a face")
    store = FolderStore(tmp_path / "store")
    begin(store, "lee", Counts())
    finish(store, "lee")

    @flow
    def again() -> None:
        show_page_again(settings, settings.workspace("lee"), "evaluate", shared=True)

    with pytest.raises(InputError, match="was forgotten after that was made"):
        again()
    assert store.keys("subjects/lee") == []


@flow
def tells_of_photos(workspace: Path) -> None:
    for decision in ("train", "reject"):
        row = {"photo": "0123456789abcdef", "decision": decision, "reason": f"a-{decision}"}
        write(workspace / "data" / "detect" / "manifest.jsonl", json.dumps(row).encode() + b"\n")
        _show_decisions(workspace.name, workspace)
    bar = Bar(workspace.name, "train")
    bar.update(TRAIN | {"done": 500, "loss": 0.12345})
    bar.update(TRAIN | {"done": 1000, "loss": 0.54321})


def test_what_is_shown_is_in_artifacts_and_in_no_event_also_after_it_was_forgotten(
    tmp_path: Path, prefect_server: None
) -> None:
    tells_of_photos(tmp_path / "zed")
    (shown_last, _) = sorted(artifacts("zed-photos"), key=lambda each: each.created, reverse=True)
    assert json.loads(shown_last.data)[0]["reason"] == "a-reject"
    assert artifact("zed-train-progress").description == "train 1000 of 1000, loss 0.543"

    delete(runs_of("zed"), "zed")

    told = [event for event in events_until_now() if "zed-photos" in event or "zed-train-progress" in event]
    assert artifacts("zed-photos") == []
    assert len(told) >= 4
    assert [event for event in told if re.search("0123456789abcdef|a-train|a-reject|loss", event)] == []


def artifacts(key: str) -> list[Artifact]:
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def events_until_now() -> list[str]:
    """Return all events that the server has, once it has written down one that is emitted now."""
    path = str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2]
    marker = f"test.marker.{uuid4()}"
    emit_event(marker, resource={"prefect.resource.id": "test.marker"})
    until = time.monotonic() + 60
    while True:
        with contextlib.closing(sqlite3.connect(path)) as database:
            events = [str(row) for row in database.execute("select * from events")]
        if any(marker in event for event in events):
            return events
        assert time.monotonic() < until
        time.sleep(0.5)


SHOWN = ["ada", "bob", "eve", "joe"]
MEETS_WITHIN_S = 60.0


@pytest.fixture
def bucket(s3: None) -> Iterator[S3Store]:
    client = boto3.client("s3")
    client.create_bucket(Bucket="shown")
    yield replace(S3Store.connect("shown", "project"), listing_lag_s=0.0)
    client.delete_bucket(Bucket="shown")


def test_subjects_without_a_release_are_looked_at_side_by_side_with_one_request_each(bucket: S3Store) -> None:
    made: list[str] = []
    two_at_once = threading.Barrier(2)

    def count(model: object, **_: object) -> None:
        made.append(str(model))
        two_at_once.wait(MEETS_WITHIN_S)  # no request goes out before another one is about to

    bucket.client.meta.events.register("before-call.s3", count)
    rows = overview([Finding(subject, "unchanged", "", None) for subject in SHOWN], bucket)

    assert [row["subject"] for row in rows] == SHOWN
    assert {(row["newest release"], row["staging"], row["production"]) for row in rows} == {("none", "", "")}
    assert len(made) == len(SHOWN)
