"""What all phases share: lock the subject, check the consent, run the stages in order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.log import log_names
from tasks.policy import StageTask, store_task
from tasks.prefect_api.lease import leased
from tasks.settings import Settings
from tasks.store.s3 import open_store
from tasks.transfer.state import State, Taken, consent_of
from tasks.workspace.dvc import preloaded
from tasks.workspace.sources import Source, look, source
from tasks.workspace.subject import set_up
from tasks.workspace.tombstones import admit
from tasks.workspace.workspace import Outcome, is_up_to_date, locked_stages, locked_workspace
from zimage.core.errors import InputError
from zimage.permission import require_for, today


@contextmanager
def working_on(settings: Settings, workspace: Path, *, shared: bool, makes: bool = False) -> Iterator[None]:
    """Lock the workspace, and lease the subject if other machines share the work, after its tombstone was checked.

    Args:
        settings: Where things are.
        workspace: The subject's; it must be there, unless other machines share the work.
        shared: Other machines share the work.
        makes: The workspace may be absent, as it is going to be made.

    Raises:
        InputError: somebody else holds it, it is not there, or its subject was forgotten.
    """
    if not (shared or makes):
        require_workspace(workspace)
    with preloaded():
        if not shared:
            with locked_workspace(workspace):
                locked_stages(workspace)
                admit(open_store(settings.store), settings.subject(workspace), workspace)
                yield
            return
        with leased(workspace.name), locked_workspace(workspace):
            try:
                yield
            except InputError as refusal:
                log_names(refusal)  # whoever started this on another machine reads them there
                raise


def require_workspace(workspace: Path) -> None:
    """Pass if the subject has a workspace on this machine.

    Raises:
        InputError: it has none.
    """
    if not workspace.is_dir():
        raise InputError(f"{workspace.name} has no workspace {workspace}; run `prepare` or `personalize` first.")


def up_to_date(
    workspace: Path, stages: Sequence[StageTask[...]], *, shared: bool, after: str = ""
) -> dict[str, Outcome]:
    """Bring the stages of a phase up to date in order, and return their outcomes.

    Args:
        workspace: The subject's workspace.
        stages: Their tasks.
        shared: Other machines share the work.
        after: The last stage of the phase before, which must not be stale: its machine may not be of this kind.

    Raises:
        InputError: the phase before is stale, or a stage refused its input.
    """
    known = is_up_to_date(workspace, stages[-1].name, shared=shared)
    if shared and after and not known and not is_up_to_date(workspace, after, shared=True):
        raise InputError(
            f"{workspace.name} is not prepared for this code and these settings; run `prepare` or `personalize` first."
        )
    return {stage.name: stage(workspace, known=known, shared=shared).result() for stage in stages}


def require_consent(workspace: Path, stages: Sequence[StageTask[...]], before: State | None) -> None:
    """Pass if the person agreed to a phase and still does; asked of each phase, for DVC leaves out stages that would
    ask.

    Args:
        workspace: The subject's workspace; a consent that lies there counts.
        stages: The phase's tasks.
        before: What was handed over; its consent counts where none lies here. None where nothing was.

    Raises:
        InputError: no consent is known, or it has ended or does not cover what the phase does.
    """
    consent = consent_of(workspace, before)
    if consent is None:
        raise InputError(
            f"{workspace.name} is not prepared: no consent is known here; run `personalize` with --consent."
        )
    require_for([stage.name for stage in stages], consent, today())


@store_task("bring")
def bring(
    settings: Settings,
    subject: str,
    taken: Taken,
    given: Mapping[str, str],
    *,
    base: str,
    preset: str,
    engine: str,
    values: dict[str, Any],
) -> dict[str, Source]:
    """Bring the inputs that this machine can read into the workspace, and return the sources of all.

    A bucket that is away is waited for.

    Args:
        settings: Where things are.
        subject: The subject.
        taken: What the phase began with.
        given: Addresses of photos, consent and overrides; "" where none was given.
        base: See `set_up`, as the others.
        preset: A name in presets.yaml.
        engine: A face engine.
        values: New values by `section.key`.

    Raises:
        InputError: something does not exist, or photos or consent were never given.
        StoreError: a bucket stayed away.
    """
    sources = sources_of(given, taken.state)
    addresses = {name: address or readable(sources, name) for name, address in given.items()}
    set_up(settings, subject, **addresses, base=base, preset=preset, engine=engine, values=values)
    return sources


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
