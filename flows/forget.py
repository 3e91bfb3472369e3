"""A person out of everything: listed first, deleted when that is asked for."""

from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as this_run
from prefect.settings import PREFECT_API_URL

from flows.spec import ForgetSpec
from flows.temporary import TemporaryServer
from tasks.forget import find
from tasks.forget import forget as forget_subject
from tasks.forget_runs import FORGET, delete_run
from tasks.run_labels import tag_this_run
from tasks.settings import from_environment
from tasks.shown import show_forgotten, show_listing
from tasks.tombstones import Tombstone


@dataclass(frozen=True)
class Listing:
    """What was found, and what became of it.

    Args:
        lines: What there was.
        tombstone: What remains; None where nothing was to be deleted.
    """

    lines: list[str]
    tombstone: Tombstone | None


def delete_itself(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Delete the run that has forgotten: it was asked for the subject by its pseudonym."""
    if flow_run.parameters["spec"].get("delete", False):
        delete_run(flow_run.id)


# Its name, its tags and its log name nobody.
@flow(name=FORGET, flow_run_name=FORGET, on_running=[tag_this_run], on_completion=[delete_itself])
def forget(spec: ForgetSpec) -> Listing:
    """Return what there is of the subject, or was."""
    settings = from_environment()
    found = find(settings, spec.subject, this_run=this_run.id)
    lines = found.lines()
    if not spec.delete:
        if not found.is_empty:  # a list of nothing would only tell of somebody who was forgotten
            show_listing(spec.subject, lines)
        return Listing(lines, None)
    api = PREFECT_API_URL.value()
    shared = bool(api) and not TemporaryServer.is_at(api)  # others know it, and its leases last
    tombstone = forget_subject(settings, spec.subject, shared=shared, cancel=spec.cancel, this_run=this_run.id)
    show_forgotten(tombstone)
    get_run_logger().info("Forgotten: %s", tombstone.forgotten[-1].counts)
    return Listing(lines, tombstone)
