"""A finished workspace in, a release out."""

from prefect import flow
from prefect.logging import get_run_logger

from flows.spec import PublishSpec
from tasks import publish as publishing
from tasks.publish import Release
from tasks.settings import from_environment
from tasks.storage import open_store
from tasks.workspace import held


@flow(name="publish", flow_run_name="publish {spec.subject}")
def publish(spec: PublishSpec) -> Release:
    """Return the release of what the subject's workspace holds."""
    settings = from_environment()
    workspace = settings.workspace(spec.subject)
    with held(workspace):
        release = publishing.publish(
            workspace,
            spec.subject,
            open_store(settings.store),
            accept_provisional=spec.accept_provisional,
            use=spec.use,
        )
    if release.notice:
        get_run_logger().warning("%s", release.notice)
    return release
