"""Retries, time-outs and limits of stages, phases, stores and lost runs, all in one place.

photos, gate, settings  InputError: never tried again, they do not change by waiting
a stage                 as often as its policy says; finished stages stay finished, training resumes from a checkpoint
the store               STORE_RETRY_AFTER_S; in pools a bucket that photos or a consent come from, too
a lost worker           noticed by `python -m flows watch`: a run of any flow whose heartbeats stopped (LOST_AFTER_S),
                        or that no worker began (PENDING_S), ends as Crashed, or as Cancelled if it was being cancelled.
                        One that is suspended is left alone. A parent starts its phase again elsewhere, as often as the
                        phase says, once its lease has run out (LEASE_S). Runs of GOES_ON that are nobody's part go on
                        as the same run, PARENT_LOST times: `personalize` finds its phases, which went on meanwhile, by
                        the keys it started them with. A process that ended before its flow began, such as while the
                        server was started anew, is no loss (NEVER_BEGAN). `prepare` or `learn` that a person started
                        alone, `score`, `promote` and `forget` are only reported
a stopped stack         the same, and does not count as a loss: after the next start such runs go on
a person's retry        of a failed `personalize` starts the phase that failed anew, with all its attempts
the server away         waited for, SERVER_AWAY_S
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import httpx
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.tasks import Task

from tasks.workspace.workspace import Outcome
from zimage.core.errors import InputError


@dataclass(frozen=True)
class Policy:
    """Retries and time-out of a stage.

    Args:
        place: The kind of machine it wants.
        retries: How often it is tried again after a failure that may pass by itself; what it finished stays.
        timeout_s: When it is given up, with all its processes.
    """

    place: Literal["cpu", "gpu"]
    retries: int
    timeout_s: int


HOUR_S = 3600
POLICIES = {
    # Nothing but the photos decides about these two; but disk and store may be away for a while.
    "ingest": Policy("cpu", retries=2, timeout_s=1 * HOUR_S),
    "detect": Policy("cpu", retries=2, timeout_s=2 * HOUR_S),
    # A GPU may be lost or taken by someone else for a while.
    "caption": Policy("gpu", retries=2, timeout_s=2 * HOUR_S),
    "encode": Policy("gpu", retries=2, timeout_s=2 * HOUR_S),
    "train": Policy("gpu", retries=2, timeout_s=24 * HOUR_S),  # goes on from its last checkpoint
    "evaluate": Policy("gpu", retries=2, timeout_s=6 * HOUR_S),
}
RETRY_AFTER_S = [10.0, 60.0]
STORE_RETRY_AFTER_S = [2.0, 10.0, 30.0, 60.0]


@dataclass(frozen=True)
class PhasePolicy:
    """Pool, attempts and time-outs of a phase on another machine.

    Args:
        pool: The work pool whose workers take it.
        lost: How often it is started again when its worker was lost.
    """

    pool: Literal["cpu", "gpu"]
    lost: int


PHASES = {
    "prepare": PhasePolicy("cpu", lost=2),
    "learn": PhasePolicy("gpu", lost=3),
    "publish": PhasePolicy("cpu", lost=2),
}
PARENT_LOST = 3  # how often a run of GOES_ON goes on after its worker was lost
# How often a run is started again whose process ended before the flow began, as all do that start while the server is
# started anew: Prefect's engine asks the server once for its run and exits.
NEVER_BEGAN = 10
CRASH_SETTLES_S = 20  # Prefect's process worker reports one exit of a run's process twice, some seconds apart (3.9.1)
HEARTBEAT_S = 30  # the least that Prefect takes
LOST_AFTER_S = 90  # three heartbeats: one that is sent as the server dies arrives with the next one
# From when a worker has taken a run to when it begins. A process takes seconds; a job may wait for a machine.
PENDING_S = {"process": 600, "other": 24 * HOUR_S}
DEAD_AFTER = datetime.timedelta(hours=1)  # a silence that a watch would not have let pass
FLOWS = ["personalize", "prepare", "learn", "publish", "score", "retrain", "promote", "forget"]
# Started twice, each does what it does once: `promote` may move a channel back, and a person waits for `forget`.
GOES_ON = ["personalize", "publish", "retrain"]
GOES_ON_WITHIN = datetime.timedelta(days=14)
PART_WAITS_S = 14 * 24 * HOUR_S  # for a worker, or a person, before its parent gives it up
LEASE_S = 60  # the least that Prefect takes; renewed at three quarters of it
LEASE_WAIT_S = 600  # for a subject that somebody else works on
SERVER_AWAY_S = 600
SERVER_ERRORS = (httpx.TransportError, PrefectHTTPStatusError)  # it is away, or starts anew

P = ParamSpec("P")
R = TypeVar("R")
StageTask = Task[P, State[Outcome]]


def stage_task(stage: str, function: Callable[P, State[Outcome]]) -> StageTask[P]:
    """Return `function` as the Prefect task of a stage; DVC is the cache, so Prefect keeps none."""
    policy = POLICIES[stage]
    return Task(
        function,
        name=stage,
        task_run_name=f"{stage} {{workspace.name}}",
        tags={policy.place},
        retries=policy.retries,
        retry_delay_seconds=RETRY_AFTER_S,
        retry_condition_fn=may_pass,
        timeout_seconds=policy.timeout_s,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )


def store_task(
    name: str, *, run_name: str = "", tag: str = "store", retry_after_s: Sequence[float] = STORE_RETRY_AFTER_S
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return a decorator that makes a function a Prefect task which waits for a store, or the hub, that is away."""

    def decorated(function: Callable[P, R]) -> Task[P, R]:
        return Task(
            function,
            name=name,
            task_run_name=run_name or f"{name} {{subject}}",
            tags={tag},
            retries=len(retry_after_s),
            retry_delay_seconds=list(retry_after_s),
            retry_condition_fn=may_pass,
            cache_policy=NO_CACHE,
            persist_result=False,
            log_prints=False,
        )

    return decorated


def may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry can help; an InputError does not change by waiting."""
    return not isinstance(state.data, InputError)
