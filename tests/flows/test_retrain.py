"""What `retrain` starts and what it leaves alone, on a real server with a deployment that no worker takes from."""

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import ArtifactSort
from prefect.states import Cancelled, Completed, Pending, Running, Scheduled, Suspended

from flows.personalize import personalize
from flows.retrain import retrain
from flows.spec import RetrainSpec
from tasks.forget_runs import runs_of
from tasks.scan import read_project
from tasks.settings import PROJECT, Settings, from_environment
from tests.tasks.test_scan import finished

ADA, EVE = "ada-of-retrain", "eve-of-retrain"
FAR = datetime.date(2999, 12, 31)


@dataclass(frozen=True)
class Place:
    """Two subjects in a store, of whom `ada` has a new photo, and the server."""

    client: SyncPrefectClient

    def runs(self, subject: str) -> list[FlowRun]:
        return runs_of(subject).runs

    def working(self, subject: str, state: State) -> FlowRun:
        """A run of `personalize` in a state."""
        asked = {"spec": {"subject": subject, "placement": "pools"}}
        return self.client.create_flow_run(personalize, parameters=asked, name="working", state=state)

    def table(self) -> list[dict[str, str]]:
        of = ArtifactFilter(key=ArtifactFilterKey(any_=["retrain"]))
        newest = self.client.read_artifacts(artifact_filter=of, sort=ArtifactSort.CREATED_DESC, limit=1)[0]
        rows: list[dict[str, str]] = json.loads(str(newest.data))
        return rows


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None) -> Iterator[Place]:
    settings = Settings(project=PROJECT, workspaces=tmp_path / "workspaces", store=str(tmp_path / "store"))
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(settings.workspaces))
    monkeypatch.setenv("ZIMAGE_STORE", settings.store)
    project = read_project(PROJECT)
    ada = finished(settings, project, ADA, expires=FAR)
    finished(settings, project, EVE, expires=FAR)
    (Path(ada.sources["photos"].address) / "2.jpg").write_bytes(b"two")
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(personalize), "personalize")
        yield Place(client)
        for run in [*runs_of(ADA).runs, *runs_of(EVE).runs]:
            client.delete_flow_run(run.id)
        client.delete_deployment(deployment)


def test_a_subject_with_a_new_photo_is_started_and_the_next_night_it_is_not_started_again(place: Place) -> None:
    assert retrain(RetrainSpec()) == {"changed": 1, "unchanged": 1}
    (run,) = place.runs(ADA)
    (row,) = place.table()
    assert (row["subject"], row["run"]) == (ADA, run.name)
    assert row["reason"].endswith("photos changed")

    assert retrain(RetrainSpec()) == {"changed": 1, "unchanged": 1}

    assert [each.id for each in place.runs(ADA)] == [run.id]
    (row,) = place.table()
    assert row["run"] == ""
    assert row["reason"].endswith(f"photos changed; `{run.name}` is at work on it already")
    assert place.runs(EVE) == []


@pytest.mark.parametrize("state", [Pending(), Running(), Suspended()], ids=lambda state: state.name)
def test_whatever_has_not_ended_is_at_work(place: Place, state: State) -> None:
    run = place.working(ADA, state)

    retrain(RetrainSpec())

    assert [each.id for each in place.runs(ADA)] == [run.id]


@pytest.mark.parametrize("state", [Completed(), Cancelled()], ids=lambda state: state.name)
def test_what_has_ended_is_in_nobody_s_way(place: Place, state: State) -> None:
    place.working(ADA, state)
    place.working(EVE, Running())

    retrain(RetrainSpec())

    assert len(place.runs(ADA)) == 2


def test_a_run_that_is_planned_for_later_is_in_nobody_s_way(place: Place) -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    place.working(ADA, Scheduled(scheduled_time=later))

    retrain(RetrainSpec())

    assert len(place.runs(ADA)) == 2


def test_only_looking_starts_nothing_and_tells_what_is_at_work(place: Place) -> None:
    retrain(RetrainSpec(only_look=True))
    assert place.runs(ADA) == []
    assert "at work" not in place.table()[0]["reason"]

    place.working(ADA, Running())
    retrain(RetrainSpec(only_look=True))

    assert place.table()[0]["reason"].endswith("; `working` is at work on it already")


def test_who_was_only_run_on_this_machine_is_named(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    (from_environment().workspaces / "joe").mkdir(parents=True)
    (from_environment().workspaces / ".logs").mkdir()
    with caplog.at_level("WARNING"):
        retrain(RetrainSpec(only_look=True))

    (said,) = [each.getMessage() for each in caplog.records if "not looked at" in each.getMessage()]
    assert said.startswith("not looked at, for they were only run on this machine: joe; run `personalize`")
