"""Allow one phase at a time for each subject on all machines, by a Prefect concurrency lease that expires."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, StateType
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from tasks.policy import LEASE_S, LEASE_WAIT_S, PHASES, SERVER_ERRORS
from tasks.prefect_api.runs import FORGET, limit_of, subject_of
from zimage.core.errors import InputError

FIRST_TRY_S = 1.0


@contextmanager
def leased(subject: str, *, wait_s: float = LEASE_WAIT_S) -> Iterator[None]:
    """Lease the subject for the length of the block; a second run logs who holds the lease, and waits.

    A holder that dies holds on for `LEASE_S` at most. A lease that could not be renewed does not stop the work: the
    state is only written if nobody else has written it.

    Raises:
        InputError: it was still held after `wait_s`, and by whom; or it was forgotten while this waited.
    """
    name = limit_of(subject)
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
    stack = ExitStack()
    if not _acquired(stack, name, FIRST_TRY_S):
        get_run_logger().info("Waiting: %s is being worked on by %s", subject, _holders(subject))
        if not _acquired(stack, name, wait_s):
            raise InputError(
                f"{subject} is still being worked on by {_holders(subject)}; wait for it to end, or cancel it."
            )
    try:
        yield
    finally:
        _let_go(stack, subject)


def _let_go(stack: ExitStack, subject: str) -> None:
    """Release the lease; if the server is away it expires, and the finished work is kept."""
    try:
        stack.close()
    except SERVER_ERRORS as error:
        get_run_logger().warning("%s is held for up to %d s more, as the server is away: %s", subject, LEASE_S, error)


def _acquired(stack: ExitStack, name: str, timeout_s: float) -> bool:
    holder = ConcurrencyLeaseHolder(type="flow_run", id=flow_run.id) if flow_run.id else None
    lease = concurrency(
        name,
        timeout_seconds=timeout_s,
        lease_duration=LEASE_S,
        strict=True,
        holder=holder,
        raise_on_lease_renewal_failure=False,
    )
    try:
        stack.enter_context(lease)
    except TimeoutError:
        return False
    except ConcurrencySlotAcquisitionError:
        if _exists(name):
            raise
        raise InputError(
            "The subject was forgotten while this run waited for it; start it again if it is new."
        ) from None
    return True


def _exists(name: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            return False
    return True


def _holders(subject: str) -> str:
    """Return the names of the subject's running phases and erasures; a lost run may be missing."""
    names = FlowRunFilterName(any_=[FORGET, *(f"{phase} {subject}" for phase in PHASES)])
    running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING]))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=names, state=running))
    others = [
        f"`{each.name}` (run {each.id})"
        for each in found
        if str(each.id) != str(flow_run.id) and (each.name != FORGET or subject_of(each) == subject)
    ]
    return ", ".join(others) or f"a run that was lost and will be given up within {LEASE_S} s"
