"""What all legs share: holding the subject, its stages in order, where its inputs come from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks.dvc import at_hand
from tasks.handover import State
from tasks.lease import leased
from tasks.policy import StageTask
from tasks.settings import Settings
from tasks.sources import Source, look, source
from tasks.storage import open_store
from tasks.tombstones import admit
from tasks.workspace import Outcome, held, is_up_to_date
from zimage.errors import InputError


@contextmanager
def working_on(settings: Settings, workspace: Path, *, shared: bool) -> Iterator[None]:
    """Hold the workspace, and the subject too where other machines share the work (and whoever takes it is admitted).

    Raises:
        InputError: somebody else holds it, or its subject was forgotten.
    """
    with at_hand():
        if not shared:
            with held(workspace):
                admit(open_store(settings.store), settings.subject(workspace), workspace)
                yield
            return
        with leased(workspace.name), held(workspace):
            yield


def up_to_date(
    workspace: Path, stages: Sequence[StageTask[...]], *, shared: bool, after: str = ""
) -> dict[str, Outcome]:
    """Return what became of the stages of a leg, brought up to date in their order.

    Args:
        workspace: The subject's workspace.
        stages: Their tasks.
        shared: Other machines share the work.
        after: The last stage of the leg before, which must not be stale: its machine may not be of this kind.

    Raises:
        InputError: the leg before is stale, or a stage refused its input.
    """
    known = is_up_to_date(workspace, stages[-1].name, shared=shared)
    if shared and after and not known and not is_up_to_date(workspace, after, shared=True):
        raise InputError(
            f"{workspace.name} is not prepared for this code and these settings; run `prepare` or `personalize` first."
        )
    return {stage.name: stage(workspace, known=known, shared=shared).result() for stage in stages}


def sources_of(given: Mapping[str, str], before: State | None) -> dict[str, Source]:
    """Return where inputs come from now, looked at before they are read: given addresses win over remembered ones.

    A remembered place that cannot be seen from this machine stays as it was.
    """
    found = dict(before.sources) if before else {}
    for name, address in given.items():
        known = found[name].address if name in found else ""
        if address or (known and look(known)):
            found[name] = source(address or known)
    return found


def readable(sources: Mapping[str, Source], name: str) -> str:
    """Return the address of an input that can be read from here, or ""."""
    return sources[name].address if name in sources and look(sources[name].address) else ""
