"""Flow `score`: score LoRA files of any tool, finished pictures or a base model against real photos of a person."""

from prefect import flow

from flows.spec import ScoreSpec
from tasks.phases.phase import working_on
from tasks.phases.scoring import Asked, Scored, run_score
from tasks.prefect_api.artifacts import end_progress
from tasks.prefect_api.run_labels import name_this_run, tag_this_run
from tasks.settings import from_environment
from tasks.store.s3 import open_store
from tasks.workspace.tombstones import admit


@flow(
    name="score",
    flow_run_name=name_this_run,
    on_running=[tag_this_run],
    on_failure=[end_progress],
    on_crashed=[end_progress],
    on_cancellation=[end_progress],
)
def score(spec: ScoreSpec) -> Scored:
    """Score what is named, and return what was found and where it lies in the store.

    The subject needs no workspace: photos and consent are given, or the consent is the one that is known already.
    """
    settings = from_environment()
    workspace = settings.workspace(spec.subject)
    shared = spec.placement == "pools"
    with working_on(settings, workspace, shared=shared, makes=True):
        if shared:
            admit(open_store(settings.store), spec.subject, workspace)
        return run_score(settings, spec.subject, asked(spec), shared=shared)


def asked(spec: ScoreSpec) -> Asked:
    """Return what a spec asks for, as the task takes it."""
    fields = spec.model_dump(exclude={"subject", "placement", "values"})
    return Asked(**fields, values=spec.chosen())
