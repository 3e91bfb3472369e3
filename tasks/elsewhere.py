"""A leg on a machine of its own: started through its deployment, waited for, started again if its worker is lost."""

import datetime
import time
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType, TaskRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelling
from pydantic import BaseModel

from tasks.dvc import StageFailedError
from tasks.forget_runs import PAGE, subject_of
from tasks.policy import LEGS, PARENT_LOST, SERVER_AWAY_S, SERVER_ERRORS
from tasks.stage import NAMES
from tasks.workspace import Outcome
from zimage.errors import InputError
from zimage.signatures import STAGES

LOOK_EVERY_S = 2.0
REFUSAL = "InputError: "


def run_leg(leg: str, spec: BaseModel, *, as_part: bool = True) -> dict[str, Outcome]:
    """Return what became of the stages of a leg that another machine ran.

    Args:
        leg: Its name, which is that of its flow and of its deployment.
        spec: What it is asked.
        as_part: It belongs to this run; a leg that may wait for a person must not (Prefect suspends no part of a run).

    Raises:
        InputError: the leg refused its input, in its own words; or it is not deployed.
        StageFailedError: it failed otherwise, was cancelled, or was lost too often.
    """
    run = None
    first = _first_attempt(leg)
    for attempt in range(first, first + LEGS[leg].lost + 1):
        try:
            run = wait_for(start(leg, spec, attempt=attempt, as_part=as_part))
        except TerminationSignal:
            cancel_parts_if_cancelled()
            raise
        assert run.state is not None
        if not run.state.is_crashed():
            break
        get_run_logger().warning("`%s` was lost with its worker: %s", run.name, run.state.message)
    assert run is not None and run.state is not None
    if run.state.is_completed():
        return outcomes(run)
    said = run.state.message or run.state.name or ""
    if REFUSAL in said:
        raise InputError(said.partition(REFUSAL)[2])
    raise StageFailedError(f"`{run.name}` ended as {run.state.name}: {said}")


def refuse_if_lost_too_often() -> None:
    """Let a run that was lost with its worker again and again end (infra/automations.yaml, zimage-go-on).

    Raises:
        StageFailedError: it was.
    """
    if flow_run.run_count > PARENT_LOST + 1:
        raise StageFailedError(f"This run was lost with its worker {flow_run.run_count - 1} times; it is given up.")


def start(leg: str, spec: BaseModel, *, attempt: int | str = 0, as_part: bool = True) -> FlowRun:
    """Return the run of a leg, started unless this attempt of this run has started it before.

    Raises:
        InputError: there is no such deployment on this server.
    """
    try:
        return run_deployment(  # type: ignore[return-value]
            f"{leg}/{leg}",
            parameters={"spec": spec.model_dump(mode="json")},
            timeout=0,
            idempotency_key=_key(leg, attempt),
            as_subflow=as_part,
        )
    except ObjectNotFound:
        raise InputError(f"This Prefect server has no deployment `{leg}/{leg}`; `make serve` makes them.") from None


def at_work(flow: str) -> dict[str, str]:
    """Return the name of a run of `flow` for each subject that has one which was to start by now and has not ended.

    Waiting for a worker, for a retry or for a person is being at work. What a schedule has planned for later is not.
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
    return {subject_of(run): run.name for run in found}


def wait_for(run: FlowRun) -> FlowRun:
    """Return the run once it has ended; a server that is away is waited for."""
    seen = time.monotonic()
    while not (run.state and run.state.is_final()):
        time.sleep(LOOK_EVERY_S)
        try:
            with get_client(sync_client=True) as client:
                run = client.read_flow_run(run.id)
        except SERVER_ERRORS:
            if time.monotonic() - seen > SERVER_AWAY_S:
                raise
        else:
            seen = time.monotonic()
    return run


def outcomes(run: FlowRun) -> dict[str, Outcome]:
    """Return what became of each stage, as the states of the run's tasks tell it, in pipeline order."""
    of = {name: outcome for outcome, name in NAMES.items()}
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    found = {_stage(task): of[task.state_name] for task in tasks if task.state_name in of}
    return {stage: found[stage] for stage in STAGES if stage in found}


def cancel_parts(parent: FlowRun) -> None:
    """Cancel all legs that a cancelled run has started and that have not ended; Prefect leaves them running."""
    parts = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent.id]))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=parts):
            if not (run.state and run.state.is_final()):
                client.set_flow_run_state(run.id, Cancelling(message="The run it is part of was cancelled."))


def cancel_parts_if_cancelled() -> None:
    """Cancel this run's legs if it is being cancelled; a worker that only stops leaves them to go on."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(flow_run.id))
    if run.state and (run.state.is_cancelling() or run.state.is_cancelled()):
        cancel_parts(run)


def _first_attempt(leg: str) -> int:
    """Return the first attempt of this run at a leg that has not ended in vain by now.

    That is one to begin where a person retries a run that failed, and one under way, or finished, where the run goes on
    after its worker was lost.
    """
    attempt = 0
    with get_client(sync_client=True) as client:
        while _ended_in_vain(client, _key(leg, attempt)):
            attempt += 1
    return attempt


def _ended_in_vain(client: SyncPrefectClient, key: str) -> bool:
    by_key = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    found = client.read_flow_runs(flow_run_filter=by_key)
    state = found[0].state if found else None
    return state is not None and state.is_final() and not state.is_completed()


def _key(leg: str, attempt: int | str) -> str:
    return f"{flow_run.id}-{leg}-{attempt}"


def _stage(task: TaskRun) -> str:
    return task.name.split()[0]
