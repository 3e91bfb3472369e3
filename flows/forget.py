"""Flow `forget`: list, and on request delete, everything that is stored about a person or about one photo."""

from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as this_run
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from flows.server.temporary import TemporaryServer
from flows.spec import ForgetSpec
from tasks.erasure.forget import find
from tasks.erasure.forget import forget as forget_subject
from tasks.erasure.forget_photo import find_photo, forget_photo
from tasks.prefect_api.artifacts import show_forgotten, show_listing
from tasks.prefect_api.run_labels import tag_this_run
from tasks.prefect_api.runs import FORGET, delete_run
from tasks.settings import Settings, from_environment
from tasks.workspace.tombstones import Tombstone


@dataclass(frozen=True)
class Listing:
    """What exists about a subject, and whether it was deleted.

    Args:
        lines: What there was.
        tombstone: What remains of a person; None where nothing was to be deleted, or one photo.
        unreached: What no deletion here reaches, of one photo that was deleted; None where none was.
    """

    lines: list[str]
    tombstone: Tombstone | None = None
    unreached: list[str] | None = None


def delete_itself(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Delete the run that has forgotten: it was asked for the subject by its pseudonym."""
    if flow_run.parameters["spec"].get("delete", False):
        delete_run(flow_run.id)


# Its name, its tags and its log name nobody.
@flow(name=FORGET, flow_run_name=FORGET, on_running=[tag_this_run], on_completion=[delete_itself])
def forget(spec: ForgetSpec) -> Listing:
    """List everything about a subject, and delete it if asked; return the listing."""
    settings = from_environment()
    api = PREFECT_API_URL.value()
    shared = bool(api) and not TemporaryServer.is_at(api)  # others know it, and its leases last
    if spec.photo:
        return _photo(settings, spec, shared=shared)
    found = find(settings, spec.subject, this_run=this_run.id)
    lines = found.lines()
    lines += _other_database(shared=shared)
    if not spec.delete:
        if not found.is_empty:  # a list of nothing would only tell of somebody who was forgotten
            show_listing(spec.subject, lines)
        return Listing(lines)
    tombstone = forget_subject(settings, spec.subject, shared=shared, cancel=spec.cancel, this_run=this_run.id)
    show_forgotten(tombstone)
    get_run_logger().info("Forgotten: %s", tombstone.forgotten[-1].counts)
    return Listing(lines, tombstone)


def _other_database(*, shared: bool) -> list[str]:
    """Return a line on the database of Prefect on this machine that this run does not reach, if there is one."""
    home = PREFECT_HOME.value()
    if shared:
        path, how = home / "prefect.db", "without PREFECT_API_URL, for runs that had no server or one before 0.2.0"
    else:
        path, how = home / "postgres", "with PREFECT_API_URL while `make serve` runs, for the runs of that server"
    return [f"not here   {path}: ask again {how}"] if path.exists() else []


def _photo(settings: Settings, spec: ForgetSpec, *, shared: bool) -> Listing:
    """List everything about a photo, and delete it if asked, with earlier runs that only listed; return the listing."""
    lines = [*find_photo(settings, spec.subject, spec.photo).lines(), *_other_database(shared=shared)]
    unreached = None
    if spec.delete:
        asked = {"shared": shared, "cancel": spec.cancel, "this_run": this_run.id}
        unreached = forget_photo(settings, spec.subject, spec.photo, **asked)
    get_run_logger().info("%s", "\n".join([*lines, *(unreached or [])]))
    return Listing(lines, unreached=unreached)
