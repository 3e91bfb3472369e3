"""Run a phase on another machine through its deployment: start it, wait for it, restart it if its worker is lost."""

import datetime
import time
from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType, TaskRun, WorkPoolStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed

from tasks.log import names_in_log
from tasks.policy import DEAD_AFTER, NEVER_BEGAN, PART_WAITS_S, PHASES, SERVER_AWAY_S, SERVER_ERRORS
from tasks.prefect_api.lost import Silence, cancel_parts, end_if_lost, is_dead
from tasks.prefect_api.run_labels import reasons_now, run_name, run_tags
from tasks.prefect_api.runs import PAGE, WORKS, subject_of
from tasks.stages import NAMES
from tasks.workspace.dvc import StageFailedError
from tasks.workspace.workspace import Outcome
from zimage.core.errors import InputError
from zimage.core.signatures import STAGES

LOOK_EVERY_S = 2.0
UNTAKEN_AFTER = datetime.timedelta(seconds=15)  # workers look every few seconds
REFUSAL = "InputError: "
SERVER_WAS_AWAY = "ConcurrencySlotAcquisitionError: "  # Prefect's task, where it began while no server answered
COMPLETED = Completed().name or ""


class SubjectAsked(Protocol):
    """The request of a flow about one subject."""

    @property
    def subject(self) -> str:
        """The subject of the run."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return it as plain data."""


def run_phase(phase: str, spec: SubjectAsked, *, as_part: bool = True) -> dict[str, Outcome]:
    """Run a phase on another machine, and return the outcomes of its stages.

    Args:
        phase: Its name, which is that of its flow and of its deployment.
        spec: What it is asked.
        as_part: It belongs to this run; a phase that may wait for a person must not (Prefect suspends no part of a
        run).

    Raises:
        InputError: the phase refused its input, in its own words; or it is not deployed.
        StageFailedError: it failed otherwise, was cancelled, or was lost too often.
    """
    lost = server_away = 0
    for attempt in count(_first_attempt(phase)):
        try:
            run = wait_for(start(phase, spec, attempt=attempt, as_part=as_part))
        except TerminationSignal:
            cancel_parts_if_cancelled()
            raise
        assert run.state is not None
        refused_slot = SERVER_WAS_AWAY in (run.state.message or "")
        if not (run.state.is_crashed() or refused_slot):
            break
        get_run_logger().warning("`%s` was lost with its worker: %s", run.name, run.state.message)
        if refused_slot or run.run_count == 0:  # its process could not reach the server
            server_away += 1
        else:
            lost += 1
        if lost > PHASES[phase].lost or server_away > NEVER_BEGAN:
            break
    assert run.state is not None
    if run.state.is_completed():
        return outcomes(run)
    said = run.state.message or run.state.name or ""
    if REFUSAL in said:
        raise InputError(said.partition(REFUSAL)[2], names=names_in_log(run))
    raise StageFailedError(f"`{run.name}` ended as {run.state.name}: {said}")


def start(
    phase: str, spec: SubjectAsked, *, attempt: int | str = 0, as_part: bool = True, reasons: Sequence[str] = ()
) -> FlowRun:
    """Start the run of a phase, unless this attempt of the parent has started it already; return it.

    Args:
        phase: Its name.
        spec: What it is asked.
        attempt: Tells this start apart from others of this run.
        as_part: See `run_phase`.
        reasons: Why it is started; empty where the reasons of this run are its own.

    Raises:
        InputError: there is no such deployment on this server.
    """
    why = reasons or reasons_now()
    try:
        return run_deployment(  # type: ignore[return-value]
            f"{phase}/{phase}",
            parameters={"spec": spec.model_dump(mode="json")},
            timeout=0,
            flow_run_name=run_name(phase, spec.subject, why),
            tags=run_tags(phase, spec.subject, why),
            idempotency_key=_key(phase, attempt),
            as_subflow=as_part,
        )
    except ObjectNotFound:
        raise InputError(f"This Prefect server has no deployment `{phase}/{phase}`; `make serve` makes them.") from None


def at_work(flow: str) -> dict[str, str]:
    """Return the name of a run of `flow` for each subject that has one which was to start by now and has not ended.

    Waiting for a worker, for a retry or for a person is being at work. What a schedule has planned for later is not,
    nor is a run that cannot end any more.
    """
    others = [each for each in StateType if each not in TERMINAL_STATES]
    due = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=others)),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.datetime.now(datetime.UTC)),
    )
    of = FlowFilter(name=FlowFilterName(any_=[flow]))
    found: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while page := client.read_flow_runs(flow_filter=of, flow_run_filter=due, limit=PAGE, offset=len(found)):
            found += page
        return {subject_of(run): run.name for run in found if not is_dead(client, run, DEAD_AFTER)}


def completed_since_due() -> list[FlowRun]:
    """Return the runs of this run's deployment that began after this run was due, and completed.

    None where no schedule started this run: what a person asks for is done. Prefect starts runs that became due while
    it or all workers were away, some or all of them, in any order.
    """
    found: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(flow_run.id))
        if not run.auto_scheduled or run.deployment_id is None:
            return []
        since = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
            start_time=FlowRunFilterStartTime(after_=run.expected_start_time),
            state=FlowRunFilterState(name=FlowRunFilterStateName(any_=[COMPLETED])),
        )
        while page := client.read_flow_runs(flow_run_filter=since, limit=PAGE, offset=len(found)):
            found += page
    return found


def wait_for(run: FlowRun) -> FlowRun:
    """Return the run once it has ended; a server that is away is waited for, and a run that is lost is ended.

    If no worker takes the run although it is due, the log says why.

    Raises:
        StageFailedError: nobody took the run, or resumed it, within `PART_WAITS_S`; it is cancelled.
    """
    seen, said, silence = time.monotonic(), "", Silence()
    state, since = None, seen
    while not (run.state and run.state.is_final()):
        time.sleep(LOOK_EVERY_S)
        try:
            with get_client(sync_client=True) as client:
                run = client.read_flow_run(run.id)
                if (reason := _not_taken(client, run)) not in ("", said):
                    said = reason
                    get_run_logger().warning("`%s` waits: %s", run.name, reason)
                if run.state and run.state.type in WORKS:
                    end_if_lost(client, run, silence)
        except SERVER_ERRORS:
            silence.begin_again()
            if time.monotonic() - seen > SERVER_AWAY_S:
                raise
            continue
        seen = time.monotonic()
        if run.state and (run.state.id != state or run.state.type in WORKS):
            state, since = run.state.id, seen
        elif seen - since > PART_WAITS_S:
            _give_up(run)
    return run


def _not_taken(client: SyncPrefectClient, run: FlowRun) -> str:
    """Return why no worker can take a run that is due, and the remedy; "" where one can, or has."""
    if run.state is None or not run.state.is_scheduled() or run.work_pool_name is None:
        return ""
    if run.estimated_start_time_delta < UNTAKEN_AFTER:
        return ""
    pool = client.read_work_pool(run.work_pool_name)
    if pool.is_paused:
        return (
            f"the work pool `{pool.name}` is paused; resume it in the UI or by `prefect work-pool resume {pool.name}`."
        )
    if pool.status == WorkPoolStatus.NOT_READY:
        return f"no worker of the pool `{pool.name}` is running; start one by `python -m flows work {pool.name}`."
    return ""


def _give_up(run: FlowRun) -> None:
    assert run.state is not None
    message = (
        f"`{run.name}` was {run.state.name} for {PART_WAITS_S // (24 * 3600)} days and is given up; start a worker of "
        "its pool, or resume what is suspended, and run again."
    )
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Cancelled(message=message))
    raise StageFailedError(message)


def outcomes(run: FlowRun) -> dict[str, Outcome]:
    """Return the outcome of each stage in pipeline order, read from the states of the run's tasks."""
    of = {name: outcome for outcome, name in NAMES.items()}
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    found = {_stage(task): of[task.state_name] for task in tasks if task.state_name in of}
    return {stage: found[stage] for stage in STAGES if stage in found}


def cancel_parts_if_cancelled() -> None:
    """Cancel this run's phases if it is being cancelled; a worker that only stops leaves them to go on."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(flow_run.id))
        if run.state and (run.state.is_cancelling() or run.state.is_cancelled()):
            cancel_parts(client, run)


def _first_attempt(phase: str) -> int:
    """Return the first attempt number of a phase whose run has not failed.

    That is one to begin where a person retries a run that failed, and one under way, or finished, where the run goes on
    after its worker was lost.
    """
    attempt = 0
    with get_client(sync_client=True) as client:
        while _ended_in_vain(client, _key(phase, attempt)):
            attempt += 1
    return attempt


def _ended_in_vain(client: SyncPrefectClient, key: str) -> bool:
    by_key = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    found = client.read_flow_runs(flow_run_filter=by_key)
    state = found[0].state if found else None
    return state is not None and state.is_final() and not state.is_completed()


def _key(phase: str, attempt: int | str) -> str:
    return f"{flow_run.id}-{phase}-{attempt}"


def _stage(task: TaskRun) -> str:
    return task.name.split()[0]
