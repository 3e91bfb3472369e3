"""Find runs whose process is gone by missing heartbeats, end them, and restart those that can be restarted.

Prefect leaves a run in its state when its process dies with its worker. An automation sees each event once; what
it missed, or waits for while somebody updates it, is never acted on. This looks at the states themselves, so that a
server, a worker or this watch may be killed at any time: the next look finds what is still to be done.
"""

import datetime
import logging
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from itertools import pairwise
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Crashed, Failed

from tasks.policy import (
    CRASH_SETTLES_S,
    FLOWS,
    GOES_ON,
    GOES_ON_WITHIN,
    LOST_AFTER_S,
    NEVER_BEGAN,
    PARENT_LOST,
    PENDING_S,
    SERVER_ERRORS,
)
from tasks.prefect_api.artifacts import end_bars
from tasks.prefect_api.runs import PAGE, WORKS, subject_of

logger = logging.getLogger(__name__)

HEARTBEAT = "prefect.flow-run.heartbeat"
STOPPED = "Execution was aborted by"  # Prefect's message for a run whose process was asked to end


class Silence:
    """Measures for how long runs have had no new state and no heartbeat.

    For a run that began, the time is counted by the clock of this process, from when it first looks at the run: while
    nobody looked, or the server was away, heartbeats could be missed. A run that waits to begin has none to miss: the
    server's clock tells how old its state is, however often server and watch were started anew.

    Args:
        lost_after_s: How long a run that began may be silent.
        pending_s: How long a process worker may take to begin a run. In other pools a job may wait for a machine, so
            that `PENDING_S` says how long.
    """

    def __init__(self, lost_after_s: float = LOST_AFTER_S, pending_s: float = PENDING_S["process"]) -> None:
        self._lost_after_s, self._pending_s = lost_after_s, pending_s
        self._signs: dict[UUID, tuple[object, float]] = {}
        self._kinds: dict[str, str] = {}

    def begin_again(self) -> None:
        """Restart every heartbeat window, so that a server that was down does not count live runs as lost."""
        self._signs.clear()

    def reason(self, client: SyncPrefectClient, run: FlowRun) -> str | None:
        """Return why a run that is under way counts as lost; None while it does not."""
        assert run.state is not None
        if run.state.is_pending():
            limit_s = self._pending_limit_s(client, run)
            silent_s = (_server_time(client) - run.state.timestamp).total_seconds()
            return f"Its worker was lost before it began, within {limit_s:.0f} s." if silent_s > limit_s else None
        sign = run.state.id, _last_heartbeat(client, run)
        known, since = self._signs.get(run.id, (None, 0.0))
        if sign != known:
            self._signs[run.id] = sign, time.monotonic()
            return None
        if time.monotonic() - since > self._lost_after_s:
            return f"Its worker was lost, no heartbeat came for {self._lost_after_s:.0f} s."
        return None

    def _pending_limit_s(self, client: SyncPrefectClient, run: FlowRun) -> float:
        pool = run.work_pool_name
        if pool and pool not in self._kinds:
            self._kinds[pool] = client.read_work_pool(pool).type
        kind = self._kinds[pool] if pool else "process"
        return self._pending_s if kind == "process" else PENDING_S["other"]


class Watch:
    """Checks all runs of this project's flows repeatedly.

    Args:
        silence: How long they have been silent.
    """

    def __init__(self, silence: Silence) -> None:
        self._silence = silence

    def look(self) -> None:
        """End lost runs, and restart those that can be restarted; wait while the server is away."""
        try:
            with get_client(sync_client=True) as client:
                for run in _runs(client, FLOWS, WORKS):
                    end_if_lost(client, run, self._silence)
                now = _server_time(client)
                # A crash may be reported once more, which would end the next attempt.
                ended = FlowRunFilterEndTime(
                    after_=now - GOES_ON_WITHIN, before_=now - datetime.timedelta(seconds=CRASH_SETTLES_S)
                )
                for flow in GOES_ON:
                    for run in _runs(client, [flow], {StateType.CRASHED}, ended=ended):
                        _go_on(client, flow, run)
        except SERVER_ERRORS as error:
            logger.warning("The Prefect server does not answer; looking again: %s", error)
            self._silence.begin_again()


def end_if_lost(client: SyncPrefectClient, run: FlowRun, silence: Silence) -> None:
    """End a run under way that has been silent for too long; with its parts, if it was being cancelled."""
    reason = silence.reason(client, run)
    if reason is None or run.state is None:
        return
    if run.state.is_cancelling():
        cancel_parts(client, run)
        _set(client, run, Cancelled(message=reason))
    else:
        _set(client, run, Crashed(message=reason))


def cancel_parts(client: SyncPrefectClient, parent: FlowRun) -> None:
    """Cancel all runs that a run has started and that have not ended."""
    parts = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent.id]))
    for run in client.read_flow_runs(flow_run_filter=parts):
        if not (run.state and run.state.is_final()):
            client.set_flow_run_state(run.id, Cancelling(message="The run it is part of was cancelled."))


def is_dead(client: SyncPrefectClient, run: FlowRun, after: datetime.timedelta) -> bool:
    """Return whether a run that has not ended cannot end: nothing will start it, or it has been silent for long.

    Args:
        client: Of the server.
        run: Any run.
        after: How long a silence is that nobody who watches would have let pass.
    """
    assert run.state is not None
    if run.state.type not in WORKS:
        return run.state.is_scheduled() and run.deployment_id is None
    signs = [run.state.timestamp, _last_heartbeat(client, run)]
    return _now() - max(sign for sign in signs if sign) > after


def _go_on(client: SyncPrefectClient, flow: str, run: FlowRun) -> None:
    """Restart a crashed run as the same run, or fail it if it was lost too often.

    Left alone are runs that no worker would take, parts of a run, which starts them again itself, and runs that a newer
    one of the same subject has followed.
    """
    assert run.state is not None
    if run.deployment_id is None or run.parent_task_run_id is not None or _is_followed(client, flow, run):
        return
    lost, never_began = crashes(client.read_flow_run_states(run.id))
    if lost > PARENT_LOST:
        _set(client, run, Failed(message=f"This run was lost with its worker {lost} times; it is given up."))
    elif never_began > NEVER_BEGAN:
        said = run.state.message or ""
        _set(client, run, Failed(message=f"This run did not begin in {never_began} tries; it is given up. {said}"))
    else:
        _set(client, run, AwaitingRetry(message="Its worker was lost or stopped; another one takes it."))


def crashes(states: Sequence[State]) -> tuple[int, int]:
    """Return how often a run was lost while it ran, and how often its process ended before the flow began.

    A run whose process was asked to end was not lost, and a crash that is reported twice counts once.

    Args:
        states: All states of the run, in any order.
    """
    in_order = sorted(states, key=lambda state: state.timestamp)
    lost = never_began = 0
    for before, state in pairwise(in_order):
        if state.type is not StateType.CRASHED or before.type is StateType.CRASHED:
            continue
        if not before.is_running():
            never_began += 1
        elif not (state.message or "").startswith(STOPPED):
            lost += 1
    return lost, never_began


def _is_followed(client: SyncPrefectClient, flow: str, run: FlowRun) -> bool:
    later = FlowRunFilterExpectedStartTime(after_=run.expected_start_time, before_=_now())
    others = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        flow_run_filter=FlowRunFilter(expected_start_time=later),
        limit=PAGE,
    )
    return any(other.id != run.id and subject_of(other) == subject_of(run) for other in others)


def _runs(
    client: SyncPrefectClient,
    flows: list[str],
    states: set[StateType] | frozenset[StateType],
    *,
    ended: FlowRunFilterEndTime | None = None,
) -> Iterator[FlowRun]:
    of = FlowFilter(name=FlowFilterName(any_=flows))
    wanted = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=sorted(states))),
        end_time=ended,
    )
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_filter=of, flow_run_filter=wanted, limit=PAGE, offset=len(found)):
        found += page
    yield from found


def _set(client: SyncPrefectClient, run: FlowRun, state: State) -> None:
    """Set a run's state, unless its state changed since it was read."""
    try:
        now = client.read_flow_run(run.id)
        if now.state is None or run.state is None or now.state.id != run.state.id:
            return
        client.set_flow_run_state(run.id, state)
        if state.is_final():
            end_bars(client, run.id, (state.name or "ended").lower())
    except ObjectNotFound:  # it was deleted
        return
    logger.info("`%s` (run %s) is %s now: %s", run.name, run.id, state.name, state.message)


def _last_heartbeat(client: SyncPrefectClient, run: FlowRun) -> datetime.datetime | None:
    found = client.read_events(
        EventFilter(
            event=EventNameFilter(name=[HEARTBEAT]), resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"])
        ),
        limit=1,
    ).events
    return found[0].occurred if found else None


def _server_time(client: SyncPrefectClient) -> datetime.datetime:
    return parsedate_to_datetime(client.request("GET", "/health").headers["date"])


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
