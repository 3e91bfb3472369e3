from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact

from tasks.settings import PROJECT, Settings
from tasks.shown import Bar, artifact_key, show_page_again
from tasks.storage import FolderStore
from tasks.tombstones import Counts, begin, finish
from tests.tasks.finished import write
from zimage.errors import InputError

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
    assert found.description == "train 200 of 1000, loss 0.123, 3.22 steps/s, 4 min left"


def test_a_bar_that_is_full_keeps_the_last_numbers(prefect_server: None) -> None:
    shown("ann", "train", [TRAIN | {"done": 990, "loss": 0.5, "left_s": 3700}, TRAIN | {"done": 1000}])

    assert artifact("ann-train-progress").description == "train 1000 of 1000, loss 0.5"


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
