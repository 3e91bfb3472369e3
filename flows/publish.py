"""A finished workspace in, a release out."""

from prefect import flow

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
        store = open_store(settings.store)
        return publishing.publish(workspace, spec.subject, store, accept_provisional=spec.accept_provisional)
