"""Prefect tasks of the six stages: DVC brings a stage up to date while Prefect shows its progress."""

import contextlib
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.runtime import task_run
from prefect.states import Completed

from tasks.log import log_line
from tasks.policy import StageTask, stage_task
from tasks.prefect_api.artifacts import FINISHED, Bar, how_stopped, in_store, show_page_again, show_results
from tasks.prefect_api.training_page import TrainingPage
from tasks.settings import from_environment
from tasks.transfer.checkpoint_mirror import STAGE as TRAIN
from tasks.transfer.checkpoint_mirror import CheckpointMirror
from tasks.transfer.repair import fetching, read_by
from tasks.transfer.staleness import why
from tasks.workspace.tombstones import ForgottenError
from tasks.workspace.workspace import Outcome, bring_up_to_date
from zimage.core.signatures import STAGES

# Outcomes of stages that ran and whose results are not shown yet, by task; one process makes all attempts of a task.
_unshown: dict[str, Outcome] = {}

NAMES = {Outcome.RAN: "Completed", Outcome.RESTORED: "Restored", Outcome.UNCHANGED: "Unchanged"}


def up_to_date(workspace: Path, stage: str, *, known: bool, shared: bool) -> State[Outcome]:
    """Return the task's final state, named by what DVC did; its result is the outcome.

    Args:
        workspace: The subject's workspace.
        stage: The stage that shall be up to date.
        known: DVC was asked for the whole phase and found it up to date, so that it need not be asked again.
        shared: Other machines share the work: the stage's inputs are downloaded, and its checkpoints uploaded.

    Raises:
        InputError: the stage refused its input.
        StageFailedError: it failed otherwise.
    """
    settings = from_environment()
    if known:
        log_line(f"Stage '{stage}' didn't change, nothing to do")
        show_page_again(settings, workspace, stage, shared=shared)
        return Completed(name=NAMES[Outcome.UNCHANGED], data=Outcome.UNCHANGED)
    bar = Bar(settings.subject(workspace), stage)
    mirror = CheckpointMirror(settings, workspace.name) if shared and stage == TRAIN else None
    page = TrainingPage(settings, workspace) if in_store(settings, shared=shared) and stage == TRAIN else None

    def follow(event: dict[str, Any]) -> None:
        bar.update(event)
        if page is not None:
            page.refresh()
        if mirror is not None:
            mirror.sync()

    reason = why(workspace, stage)

    def ask() -> Outcome:
        return bring_up_to_date(workspace, stage, on_line=log_line, on_progress=follow, shared=shared)

    try:
        outcome = fetching(settings, workspace.name, ask, wants=read_by(workspace, stage)) if shared else ask()
    except BaseException as error:
        bar.end("failed" if isinstance(error, Exception) else how_stopped())
        if mirror is not None:  # a stopped training has just written the state of its last step
            with contextlib.suppress(ForgottenError):
                mirror.sync()
        raise
    bar.end(FINISHED)
    attempted = str(task_run.id)
    outcome = _unshown.get(attempted, outcome)
    if outcome is Outcome.UNCHANGED:
        show_page_again(settings, workspace, stage, shared=shared)
        return Completed(name=NAMES[outcome], message=f"{stage}: nothing it reads changed", data=outcome)
    if page is not None:
        page.end()
    _unshown[attempted] = outcome  # an attempt after this one will find it unchanged
    show_results(settings, workspace, stage, shared=shared)
    _unshown.pop(attempted)
    because = reason or "what it reads changed"
    return Completed(name=NAMES[outcome], message=f"{stage}: {outcome}, because {because}", data=outcome)


def _task(stage: str) -> StageTask[...]:
    def bring_up(workspace: Path, *, known: bool = False, shared: bool = False) -> State[Outcome]:
        return up_to_date(workspace, stage, known=known, shared=shared)

    bring_up.__doc__ = f"Bring `data/{stage}` up to date (see zimage/stages/{stage}.py)."
    return stage_task(stage, bring_up)


ingest, detect, caption, encode, train, evaluate = (_task(stage) for stage in STAGES)
