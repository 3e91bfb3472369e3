"""A release in pools, on a real server."""

import json
from pathlib import Path

import pytest

from flows.publish import publish
from flows.spec import PublishSpec
from tasks.settings import from_environment
from tests.tasks.finished import INSIGHTFACE, finished
from zimage.core.errors import InputError
from zimage.core.jsonl import write_rows
from zimage.evaluation.review import FORMAT, ITEMS, Item, Kind, identity_of

KINDS: tuple[Kind, ...] = ("picture", "real", "impostor")


def test_a_result_that_only_the_machine_that_made_it_has_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None
) -> None:
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.setenv("ZIMAGE_STORE", str(tmp_path / "store"))
    finished(from_environment().workspace("ada-here"))

    with pytest.raises(
        InputError, match="no finished result of ada-here: run `personalize` with placement `pools`, or"
    ):
        publish(PublishSpec(subject="ada-here", placement="pools", accept_provisional=True))

    assert (from_environment().workspace("ada-here") / "data" / "train").is_dir()


def test_a_review_is_taken_before_the_gate_looks_and_refused_if_it_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None
) -> None:
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.setenv("ZIMAGE_STORE", str(tmp_path / "store"))
    workspace = finished(from_environment().workspace("ada-here"), "fail")
    items = [Item(id=kind, kind=kind, name="a", prompt=None, engine_same=kind != "impostor") for kind in KINDS]
    write_rows(workspace / "data/evaluate" / ITEMS, items)
    answers = {"picture": "yes", "real": "yes", "impostor": "yes"}
    given = tmp_path / "review.json"
    given.write_text(json.dumps({"format": FORMAT, "review": identity_of(items), "answers": answers}))

    with pytest.raises(InputError, match="1 of 1 photos of other people were not recognised; let somebody answer who"):
        publish(PublishSpec(subject="ada-here", review=str(given)))
    assert not (workspace / "data/review.json").exists()


def test_a_score_of_another_lora_stops_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None
) -> None:
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.setenv("ZIMAGE_STORE", str(tmp_path / "store"))
    finished(from_environment().workspace("ada-here"), engine=INSIGHTFACE)
    given = tmp_path / "metrics.json"
    given.write_text(json.dumps({"protocol": 2, "results": {}, "differences": [], "uses": {}}))

    with pytest.raises(InputError, match="The score is of other LoRAs than the one that is published"):
        publish(PublishSpec(subject="ada-here", score=str(given)))
    assert not list((tmp_path / "store").rglob("manifest.json"))
