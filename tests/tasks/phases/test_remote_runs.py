"""Phases that other machines run, on a real server; what a worker would do to them is done here."""

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Cancelled, Completed, Crashed, Failed, Pending, Running

from flows.learn import learn
from flows.spec import LearnSpec
from tasks.phases import remote_runs as elsewhere
from tasks.phases.remote_runs import run_phase, start
from tasks.policy import NEVER_BEGAN, PHASES
from tasks.prefect_api.lost import Silence

SPEC = LearnSpec(subject="ada-elsewhere", placement="pools")


@flow(name="parent-of-learn")
def parent() -> None:
    """What `personalize` does for a phase."""
    run_phase("learn", SPEC)


@pytest.fixture
def client(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """A client of a server that has a deployment of `learn` and no worker."""
    monkeypatch.setattr(elsewhere, "LOOK_EVERY_S", 0.05)
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(learn), "learn")
        yield client
        for run in phases(client):
            client.delete_flow_run(run.id)
        client.delete_deployment(deployment)


def phases(client: SyncPrefectClient) -> list[FlowRun]:
    """All runs of `learn` for the subject here, the first one first."""
    found = [run for run in client.read_flow_runs() if run.parameters.get("spec") == SPEC.model_dump(mode="json")]
    return sorted(found, key=lambda run: str(run.created))


def retried(client: SyncPrefectClient, run: FlowRun) -> State[None]:
    """Run a run again, as a click on Retry in the UI or an automation does."""
    client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    state: State[None] = run_flow(parent, flow_run=client.read_flow_run(run.id), return_type="state")  # type: ignore[assignment]
    return state


@contextmanager
def worker(*states: State, begins: bool = True) -> Iterator[None]:
    """A worker that begins one phase after the other, if it begins them at all, and ends them in these states."""
    over = threading.Event()

    def work() -> None:
        scheduled = FlowRunFilterStateType(any_=[StateType.SCHEDULED])
        waiting = FlowRunFilter(state=FlowRunFilterState(type=scheduled))
        left = list(states)
        with get_client(sync_client=True) as client:
            while left and not over.wait(0.05):
                for run in client.read_flow_runs(flow_run_filter=waiting):
                    if run.parameters.get("spec") == SPEC.model_dump(mode="json"):
                        for state in ([Running()] if begins else []) + [left.pop(0)]:
                            client.set_flow_run_state(run.id, state, force=True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize("ending", [Failed(), Cancelled()], ids=lambda state: state.name)
def test_a_failed_run_that_a_person_retries_starts_its_phase_anew(client: SyncPrefectClient, ending: State) -> None:
    run = client.create_flow_run(parent)
    with worker(ending, Completed()):
        assert run_flow(parent, flow_run=run, return_type="state").is_failed()  # type: ignore[union-attr]
        assert len(phases(client)) == 1

        assert retried(client, run).is_completed()

    first, second = phases(client)
    assert first.state is not None and first.state.type == ending.type
    assert second.state is not None and second.state.is_completed()


def test_a_phase_that_failed_because_the_server_was_away_is_started_again(client: SyncPrefectClient) -> None:
    said = "ConcurrencySlotAcquisitionError: Unable to acquire concurrency slots on ['tag:cpu']"
    tries = [Failed(message=f"Flow run encountered an exception: {said}")] * (PHASES["learn"].lost + 2)
    with worker(*tries, Completed()):
        assert run_flow(parent, flow_run=client.create_flow_run(parent), return_type="state").is_completed()  # type: ignore[union-attr]

    assert len(phases(client)) == len(tries) + 1


def test_a_phase_whose_process_ended_before_it_began_is_no_loss(client: SyncPrefectClient) -> None:
    tries = [Crashed()] * (PHASES["learn"].lost + 2)
    with worker(*tries, Completed(), begins=False):
        assert run_flow(parent, flow_run=client.create_flow_run(parent), return_type="state").is_completed()  # type: ignore[union-attr]

    assert len(phases(client)) == len(tries) + 1


def test_a_phase_that_never_begins_is_given_up(client: SyncPrefectClient) -> None:
    with worker(*[Crashed()] * (NEVER_BEGAN + 2), begins=False):
        assert run_flow(parent, flow_run=client.create_flow_run(parent), return_type="state").is_failed()  # type: ignore[union-attr]

    assert len(phases(client)) == NEVER_BEGAN + 1


def test_a_run_whose_phase_was_lost_too_often_gets_all_attempts_when_it_is_retried(client: SyncPrefectClient) -> None:
    run, most = client.create_flow_run(parent), PHASES["learn"].lost + 1
    with worker(*[Crashed()] * (most + 1), Completed()):
        assert run_flow(parent, flow_run=run, return_type="state").is_failed()  # type: ignore[union-attr]
        assert len(phases(client)) == most

        assert retried(client, run).is_completed()

    assert len(phases(client)) == most + 2


@pytest.mark.parametrize("meanwhile", [Running(), Completed()], ids=lambda state: state.name)
def test_a_run_that_goes_on_finds_its_phase_under_way_or_finished(client: SyncPrefectClient, meanwhile: State) -> None:
    @flow(name="parent-of-learn")
    def lost() -> None:
        start("learn", SPEC)

    run = client.create_flow_run(lost)
    run_flow(lost, flow_run=run)
    (phase,) = phases(client)
    client.set_flow_run_state(phase.id, meanwhile, force=True)
    client.set_flow_run_state(run.id, Crashed(), force=True)
    ending = threading.Timer(1, lambda: client.set_flow_run_state(phase.id, Completed(), force=True))
    ending.start()

    assert retried(client, run).is_completed()

    ending.join()
    assert [each.id for each in phases(client)] == [phase.id]


def test_a_phase_that_nobody_takes_is_given_up_and_cancelled(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "PART_WAITS_S", 0.5)

    state = run_flow(parent, flow_run=client.create_flow_run(parent), return_type="state")

    (phase,) = phases(client)
    assert state.is_failed()  # type: ignore[union-attr]
    assert "was Scheduled for" in str(state.message)  # type: ignore[union-attr]
    assert phase.state is not None and phase.state.is_cancelled()


PAUSED = "the work pool `elsewhere` is paused; resume it in the UI or by `prefect work-pool resume elsewhere`."
ABSENT = "no worker of the pool `elsewhere` is running; start one by `python -m flows work elsewhere`."


@pytest.fixture
def pool(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The work pool of `learn`, whose runs count as waiting at once."""
    monkeypatch.setattr(elsewhere, "UNTAKEN_AFTER", datetime.timedelta(0))
    made = client.create_work_pool(WorkPoolCreate(name="elsewhere", type="process"))
    learning = client.read_deployment_by_name("learn/learn")
    client.update_deployment(learning.id, DeploymentUpdate(work_pool_name=made.name))
    yield made.name
    client.delete_work_pool(made.name)


def warnings_while(
    client: SyncPrefectClient, caplog: pytest.LogCaptureFixture, enough: Callable[[], bool]
) -> list[str]:
    """What a parent warns of while its phase waits, which ends once there is enough."""

    def end() -> None:
        begun = time.monotonic()
        while not (phases(client) and enough()) and time.monotonic() - begun < 60:
            time.sleep(0.05)
        for run in phases(client):
            client.set_flow_run_state(run.id, Completed(), force=True)

    ending = threading.Thread(target=end)
    ending.start()
    assert run_flow(parent, return_type="state").is_completed()  # type: ignore[union-attr]
    ending.join()
    return [each.getMessage() for each in caplog.records if " waits: " in each.getMessage()]


@pytest.mark.parametrize(("paused", "reason"), [(True, PAUSED), (False, ABSENT)])
def test_a_phase_that_no_worker_can_take_says_why_once(
    client: SyncPrefectClient, pool: str, caplog: pytest.LogCaptureFixture, paused: bool, reason: str
) -> None:
    client.update_work_pool(pool, WorkPoolUpdate(is_paused=paused))

    (said,) = warnings_while(client, caplog, lambda: reason in caplog.text)

    assert said == f"`{phases(client)[0].name}` waits: {reason}"


def test_a_phase_whose_worker_is_there_says_nothing(
    client: SyncPrefectClient, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.send_worker_heartbeat(pool, "one")
    looked = time.monotonic() + 1

    assert warnings_while(client, caplog, lambda: time.monotonic() > looked) == []


def test_a_phase_that_no_worker_begins_is_started_again_by_who_waits_for_it(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "Silence", lambda: Silence(lost_after_s=60, pending_s=1))
    with worker(Pending(), Completed()):
        state = run_flow(parent, flow_run=client.create_flow_run(parent), return_type="state")

    first, second = phases(client)
    assert state.is_completed()  # type: ignore[union-attr]
    assert first.state is not None and first.state.is_crashed()
    assert second.state is not None and second.state.is_completed()
