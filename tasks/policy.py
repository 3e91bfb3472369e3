"""How each stage is run: where, how often it is tried, how long it may take. The one place for all of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from tasks.workspace import Outcome
from zimage.errors import InputError


@dataclass(frozen=True)
class Policy:
    """How a stage is run.

    Args:
        place: The kind of machine it wants.
        retries: How often it is tried again after a failure that may pass by itself; its finished part is kept.
        timeout_s: When it is given up, with all its processes.
    """

    place: Literal["cpu", "gpu"]
    retries: int
    timeout_s: int


HOUR_S = 3600
POLICIES = {
    # Nothing but the photos and the disk decides about these two, and neither changes by waiting.
    "ingest": Policy("cpu", retries=0, timeout_s=1 * HOUR_S),
    "detect": Policy("cpu", retries=0, timeout_s=2 * HOUR_S),
    # A GPU may be lost or taken by someone else for a while.
    "caption": Policy("gpu", retries=1, timeout_s=2 * HOUR_S),
    "encode": Policy("gpu", retries=1, timeout_s=2 * HOUR_S),
    "train": Policy("gpu", retries=2, timeout_s=24 * HOUR_S),  # goes on from its last checkpoint
    "evaluate": Policy("gpu", retries=1, timeout_s=6 * HOUR_S),
}
RETRY_AFTER_S = 10

P = ParamSpec("P")
StageTask = Task[P, State[Outcome]]


def stage_task(function: Callable[P, State[Outcome]]) -> StageTask[P]:
    """Return `function` as the Prefect task of the stage it is named after; DVC is the cache, so Prefect keeps none."""
    policy = POLICIES[function.__name__]
    return Task(
        function,
        name=function.__name__,
        task_run_name=f"{function.__name__} {{workspace.name}}",
        tags={policy.place},
        retries=policy.retries,
        retry_delay_seconds=RETRY_AFTER_S,
        retry_condition_fn=may_pass,
        timeout_seconds=policy.timeout_s,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )


def may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether trying again can help: what the user gave does not change by waiting."""
    return not isinstance(state.data, InputError)
