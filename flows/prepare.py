"""Photos in, crops out: the leg that needs no GPU."""

from prefect import flow

from flows.spec import PrepareSpec
from tasks.detect import detect
from tasks.ingest import ingest
from tasks.settings import from_environment
from tasks.subject import set_up
from tasks.workspace import Outcome, held, is_up_to_date
from zimage.params import parsed


@flow(name="prepare", flow_run_name="prepare {spec.subject}")
def prepare(spec: PrepareSpec) -> dict[str, Outcome]:
    """Return what became of `ingest` and `detect`, in a workspace that was made or brought up to date for them."""
    settings = from_environment()
    workspace = settings.workspace(spec.subject)
    with held(workspace):
        set_up(
            settings,
            spec.subject,
            photos=spec.photos,
            consent=spec.consent,
            base=spec.base,
            preset=spec.preset,
            values=parsed(spec.values),
        )
        known = is_up_to_date(workspace, "detect")
        return {stage.name: stage(workspace, known=known).result() for stage in (ingest, detect)}
