"""Flow `learn`, the GPU phase: caption, encode, train and evaluate."""

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.spec import LearnSpec
from tasks.erasure.replaced import collect_here
from tasks.phases.phase import require_consent, up_to_date, working_on
from tasks.prefect_api.artifacts import end_progress, warn_of_verdict
from tasks.prefect_api.run_labels import name_this_run, tag_this_run
from tasks.settings import Settings, from_environment
from tasks.stages import caption, encode, evaluate, train
from tasks.transfer.checkpoint_mirror import fetch_unfinished, forget_unfinished
from tasks.transfer.state import checkout, commit
from tasks.workspace.subject import choices
from tasks.workspace.workspace import Outcome

STAGES = (caption, encode, train, evaluate)


@flow(
    name="learn",
    flow_run_name=name_this_run,
    on_running=[tag_this_run],
    on_failure=[end_progress],
    on_crashed=[end_progress],
    on_cancellation=[end_progress],
)
def learn(spec: LearnSpec) -> dict[str, Outcome]:
    """Run `caption`, `encode`, `train` and `evaluate`, and return their outcomes."""
    settings = from_environment()
    workspace = settings.workspace(spec.subject)
    shared = spec.placement == "pools"
    with working_on(settings, workspace, shared=shared):
        outcomes = _shared(settings, spec.subject) if shared else _local(workspace)
        collect_here(settings, spec.subject)
        if outcomes["evaluate"] is Outcome.RAN:
            warn_of_verdict(workspace)
    return outcomes


def _local(workspace: Path) -> dict[str, Outcome]:
    require_consent(workspace, STAGES, None)
    return up_to_date(workspace, STAGES, shared=False)


def _shared(settings: Settings, subject: str) -> dict[str, Outcome]:
    workspace = settings.workspace(subject)
    taken = checkout(settings, subject)
    require_consent(workspace, STAGES, taken.state)
    fetch_unfinished(settings, subject)
    outcomes = up_to_date(workspace, STAGES, shared=True, after="detect")
    commit(
        settings,
        subject,
        taken,
        stages=tuple(outcomes),
        sources={},
        choices=choices(workspace),
        run=flow_run.name,
    )
    forget_unfinished(settings, subject)
    return outcomes
