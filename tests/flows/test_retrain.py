"""What `retrain` starts and what it leaves alone, on a real server with a deployment that no worker takes from."""

import datetime
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import ArtifactSort
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Completed, Failed, Pending, Running, Scheduled, Suspended

from flows.personalize import personalize
from flows.retrain import retrain
from flows.server.stack import DEPLOYMENTS
from flows.spec import RetrainSpec
from tasks.phases import remote_runs as elsewhere
from tasks.prefect_api.runs import runs_of
from tasks.release.channels import Channel, Move, channel_key
from tasks.release.publish import publish as publish_task
from tasks.settings import PROJECT, Settings, from_environment
from tasks.store.s3 import FolderStore
from tasks.transfer.staleness import read_project
from tests.tasks.finished import finished as published
from tests.tasks.transfer.test_staleness import finished

ADA, EVE = "ada-of-retrain", "eve-of-retrain"
DECLARED = yaml.safe_load(DEPLOYMENTS.read_text(encoding="utf-8"))
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

    def table(self, key: str = "retrain") -> list[dict[str, str]]:
        of = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
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
    assert run.name == f"personalize {ADA} (photos changed)"
    assert set(run.tags) == {"phase:personalize", f"subject:{ADA}", "why:photos changed"}
    assert (row["subject"], row["what was done"]) == (ADA, f"started: {run.name}")
    assert row["what changed"].endswith("photos changed")

    assert retrain(RetrainSpec()) == {"changed": 1, "unchanged": 1}

    assert [each.id for each in place.runs(ADA)] == [run.id]
    (row,) = place.table()
    assert row["what changed"].endswith("photos changed")
    assert row["what was done"] == f"skipped: {run.name} is at work on it already"
    assert place.runs(EVE) == []


def test_an_overview_tells_of_every_subject_its_state_its_release_its_channels_and_what_is_due(
    place: Place, tmp_path: Path
) -> None:
    store = FolderStore(tmp_path / "store")
    release = publish_task.fn(published(tmp_path / EVE, "provisional"), EVE, store, accept_provisional=True)
    move = Move(id="0", at=datetime.datetime.now(datetime.UTC), kind="promote", release=release.name)
    store.compare_and_swap(channel_key(EVE, "staging"), Channel(history=[move]).model_dump_json().encode(), None)

    retrain(RetrainSpec(only_look=True))

    ada, eve = place.table("subjects")
    assert (ada["subject"], ada["state"], ada["newest release"], ada["staging"]) == (ADA, "changed", "none", "")
    assert ada["due"].endswith("photos changed")
    assert eve == {
        **{"subject": EVE, "state": "unchanged", "due": "nothing", "consent until": "2999-12-31"},
        **{"newest release": f"{release.name}: provisional", "staging": release.name, "production": ""},
    }
    told = [each for each in place.client.read_artifacts() if each.key == "subjects"]
    assert {each.id for each in told} <= {each.id for each in runs_of(EVE).tables}  # of which `forget` takes out lines


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


def test_a_run_that_cannot_end_is_in_nobody_s_way(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing starts a run that is scheduled without a deployment, and a long silence is that of a dead process."""
    place.working(ADA, Scheduled())
    retrain(RetrainSpec())
    assert len(place.runs(ADA)) == 2

    (other,) = [run for run in place.runs(ADA) if run.name != "working"]
    place.client.set_flow_run_state(other.id, Pending(), force=True)
    monkeypatch.setattr(elsewhere, "DEAD_AFTER", datetime.timedelta(seconds=-1))
    retrain(RetrainSpec())
    assert len(place.runs(ADA)) == 3


def test_only_looking_starts_nothing_and_tells_what_is_at_work(place: Place) -> None:
    retrain(RetrainSpec(only_look=True))
    assert place.runs(ADA) == []
    assert place.table()[0]["what was done"] == "skipped: this run only looked"

    place.working(ADA, Running())
    retrain(RetrainSpec(only_look=True))

    assert place.table()[0]["what was done"] == "skipped: working is at work on it already"


@dataclass(frozen=True)
class Week:
    """A week of nights that passed while no worker took a run."""

    place: Place
    deployment: UUID

    def late(self) -> list[FlowRun]:
        """The runs that Prefect plans for the week, in the order of their nights."""
        now = datetime.datetime.now(datetime.UTC)
        week = {
            "start_time": (now - datetime.timedelta(days=7)).isoformat(),
            "end_time": now.isoformat(),
            "min_runs": 7,
        }
        self.place.client.request("POST", "/deployments/{id}/schedule", path_params={"id": self.deployment}, json=week)
        of = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[self.deployment]))
        found = self.place.client.read_flow_runs(flow_run_filter=of)
        return sorted((each for each in found if each.auto_scheduled), key=lambda each: str(each.expected_start_time))

    def ended(self, run: FlowRun) -> str:
        """Run a run as a worker does, and return the name of its last state."""
        state = run_flow(retrain, flow_run=run, parameters=run.parameters, return_type="state")
        return str(state.name)  # type: ignore[union-attr]


@pytest.fixture
def week(place: Place) -> Iterator[Week]:
    (declared,) = next(each for each in DECLARED["deployments"] if each["name"] == "retrain")["schedules"]
    nightly = CronSchedule(cron=declared["cron"], timezone=declared["timezone"])
    deployment = place.client.create_deployment(
        place.client.create_flow(retrain),
        "retrain",
        schedules=[DeploymentScheduleCreate(schedule=nightly, active=True)],
        parameters={"spec": {}},
    )
    yield Week(place, deployment)
    place.client.delete_deployment(deployment)


@pytest.mark.parametrize("seed", range(2))
def test_after_a_week_one_late_run_catches_up_whichever_prefect_starts_first(week: Week, seed: int) -> None:
    late = week.late()
    random.Random(seed).shuffle(late)

    assert [week.ended(run) for run in late] == ["Completed", *["Skipped"] * 6]
    assert len(week.place.runs(ADA)) == 1


def test_a_late_run_that_failed_catches_up_with_nothing(week: Week) -> None:
    first, second, *_ = week.late()
    week.place.client.set_flow_run_state(first.id, Running(), force=True)
    week.place.client.set_flow_run_state(first.id, Failed(), force=True)

    assert week.ended(second) == "Completed"


def test_a_late_run_is_made_though_somebody_only_looked_meanwhile(week: Week) -> None:
    late = week.late()
    look = week.place.client.create_flow_run_from_deployment(week.deployment, parameters={"spec": {"only_look": True}})
    assert week.ended(look) == "Completed"

    assert week.ended(late[0]) == "Completed"
    assert len(week.place.runs(ADA)) == 1


def test_what_a_person_starts_is_never_skipped(week: Week) -> None:
    assert week.ended(week.late()[0]) == "Completed"
    now = week.place.client.create_flow_run_from_deployment(week.deployment)

    assert week.ended(now) == "Completed"


def test_who_was_only_run_on_this_machine_is_named(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    (from_environment().workspaces / "joe" / ".dvc").mkdir(parents=True)
    (from_environment().workspaces / "joe" / ".dvc" / "config").write_text("[core]\n", encoding="utf-8")
    (from_environment().workspaces / "eve" / ".dvc").mkdir(parents=True)  # as `score` leaves it: nobody to train
    (from_environment().workspaces / ".logs").mkdir()
    with caplog.at_level("WARNING"):
        retrain(RetrainSpec(only_look=True))

    (said,) = [each.getMessage() for each in caplog.records if "only run on this machine" in each.getMessage()]
    assert said.startswith("joe: it was only run on this machine; run personalize")
    assert place.table()[-1]["subject"] == "joe"
    assert place.table()[-1]["what was done"] == "skipped: it was not looked at"
