import importlib

import pytest
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from tasks.policy import POLICIES, StageTask, may_pass
from zimage.core.errors import InputError
from zimage.core.signatures import STAGES


def task_of(stage: str) -> StageTask[...]:
    found: StageTask[...] = getattr(importlib.import_module("tasks.stages"), stage)
    return found


def test_every_stage_has_a_policy() -> None:
    assert tuple(POLICIES) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_task_is_named_after_its_stage_and_follows_its_policy(stage: str) -> None:
    task, policy = task_of(stage), POLICIES[stage]

    assert task.name == stage
    assert task.tags == {policy.place}
    assert task.retries == policy.retries
    assert task.timeout_seconds == policy.timeout_s


@pytest.mark.parametrize("stage", STAGES)
def test_only_dvc_remembers_results(stage: str) -> None:
    assert task_of(stage).cache_policy == NO_CACHE
    assert task_of(stage).persist_result is False


@pytest.mark.parametrize(("error", "again"), [(InputError("bad photos"), False), (RuntimeError("lost GPU"), True)])
def test_what_the_user_gave_is_not_tried_again(error: Exception, again: bool) -> None:
    run = TaskRun(task_key="train", dynamic_key="0")

    assert may_pass(task_of("train"), run, Failed(data=error)) is again
