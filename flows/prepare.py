"""Flow `prepare`, the CPU phase: ingest the photos and detect, select and crop the faces."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.spec import PrepareSpec
from tasks.erasure.replaced import collect_here, collect_in_store
from tasks.phases.phase import bring, require_consent, up_to_date, working_on
from tasks.prefect_api.artifacts import end_progress
from tasks.prefect_api.run_labels import name_this_run, tag_this_run
from tasks.release.files import raw_params
from tasks.settings import Settings, from_environment
from tasks.stages import detect, ingest
from tasks.transfer.state import Taken, checkout, commit, track_inputs
from tasks.workspace.subject import choices, set_up
from tasks.workspace.workspace import Outcome
from zimage.evaluation.wording import TOY
from zimage.model.base import is_packaged

STAGES = (ingest, detect)


@flow(
    name="prepare",
    flow_run_name=name_this_run,
    on_running=[tag_this_run],
    on_failure=[end_progress],
    on_crashed=[end_progress],
    on_cancellation=[end_progress],
)
def prepare(spec: PrepareSpec) -> dict[str, Outcome]:
    """Create or update the workspace, run `ingest` and `detect`, and return their outcomes."""
    settings = from_environment()
    workspace = settings.workspace(spec.subject)
    if spec.placement == "pools":
        with working_on(settings, workspace, shared=True):
            return _shared(settings, spec, checkout(settings, spec.subject))
    with working_on(settings, workspace, shared=False, makes=True):
        set_up(settings, spec.subject, **given(spec), **chosen(spec))
        _warn_of_toy(workspace)
        require_consent(workspace, STAGES, None)
        outcomes = up_to_date(workspace, STAGES, shared=False)
        collect_here(settings, spec.subject)
        return outcomes


def _shared(settings: Settings, spec: PrepareSpec, taken: Taken) -> dict[str, Outcome]:
    workspace = settings.workspace(spec.subject)
    sources = bring(settings, spec.subject, taken, given(spec), **chosen(spec))
    _warn_of_toy(workspace)
    require_consent(workspace, STAGES, taken.state)
    track_inputs(workspace)
    outcomes = up_to_date(workspace, STAGES, shared=True)
    commit(
        settings,
        spec.subject,
        taken,
        stages=tuple(outcomes),
        sources=sources,
        choices=choices(workspace),
        run=flow_run.name,
    )
    collect_here(settings, spec.subject)
    collect_in_store(settings, spec.subject)
    return outcomes


def _warn_of_toy(workspace: Path) -> None:
    """Warn, before any work, that a LoRA of the toy base does nothing with the real model."""
    if is_packaged(raw_params(workspace)["base"]["model"]):
        get_run_logger().warning("%s", TOY)


def given(spec: PrepareSpec) -> dict[str, Any]:
    """Return the addresses of the inputs that are given, "" for those that are not."""
    return {"photos": spec.photos, "consent": spec.consent, "overrides": spec.overrides}


def chosen(spec: PrepareSpec) -> dict[str, Any]:
    """Return the chosen values as arguments of `tasks.workspace.subject.set_up`."""
    return {"base": spec.base, "preset": spec.preset, "engine": spec.engine, "values": spec.chosen()}
