"""Delete a subject everywhere: workspace, caches, store with all object versions, and Prefect's records.

Whatever interrupts it, running it again finishes it. Pointers go first and manifests second, so that a reader never
meets half a release; a tombstone is begun before and ended after, and nothing is published in between.
"""

import contextlib
import os
import platform
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from tasks.policy import LEASE_S
from tasks.prefect_api import runs as forget_runs
from tasks.prefect_api.lease import leased
from tasks.prefect_api.runs import Runs, runs_of
from tasks.release.channels import channel
from tasks.release.hub import hub
from tasks.release.hub import index as hub_index
from tasks.release.hub.index import HubRecord
from tasks.settings import DEMO, Settings, site_cache
from tasks.store.protocol import Inventory, Store, StoreError, clear
from tasks.store.releases import INDEX, MANIFEST, releases_key
from tasks.store.s3 import open_store
from tasks.transfer import scan_index
from tasks.transfer.state import state_key
from tasks.workspace import tombstones
from tasks.workspace.tombstones import Counts, Tombstone
from tasks.workspace.workspace import lock_path, locked_workspace
from zimage.consent import read_consent
from zimage.core.errors import InputError
from zimage.core.lock import Holder, holder_of
from zimage.evaluation.wording import quantity

ENDS_WITHIN_S = 60.0
LOOK_EVERY_S = 0.2
LEASE_ENDS_WITHIN_S = 2.0 * LEASE_S  # of a holder that was lost or cancelled


@dataclass(frozen=True)
class Found:
    """Everything stored about a subject on this machine, in the store and on Prefect's server.

    Args:
        workspace: Its folder here; it may be absent.
        files: How many files lie there.
        file_bytes: How many bytes they have.
        stored: What lies in the store.
        pointers: What the channels point to.
        runs: What Prefect knows.
        consent_ends: The last day of the consent, if there is one; "unreadable" for what is none.
        repositories: Which have releases on the hub.
        remembered: What DVC remembers of the workspace outside of it: folders.
        logs: Logs of a stack on this machine that name the subject; they tell of others too, and stay.
    """

    workspace: Path
    files: int
    file_bytes: int
    stored: Inventory
    pointers: dict[str, str]
    runs: Runs
    consent_ends: str
    repositories: list[HubRecord]
    remembered: list[Path]
    logs: list[Path]

    @property
    def is_empty(self) -> bool:
        """Return whether nothing of the subject is left."""
        here = self.workspace.exists() or self.remembered
        return not (here or self.runs.runs or self.runs.artifacts or self.runs.tables) and self.stored.is_empty

    def counts(self) -> Counts:
        """Return counts only, without names."""
        return Counts(
            files=self.files,
            objects=self.stored.objects,
            versions=self.stored.versions,
            uploads=self.stored.uploads,
            bytes=self.stored.bytes + self.file_bytes,
            runs=len(self.runs.runs),
            artifacts=len(self.runs.artifacts) + len(self.runs.tables),
            repositories=len(self.repositories),
        )

    def lines(self) -> list[str]:
        """Return the listing for a person."""
        stored, runs = self.stored, self.runs
        known = f"{quantity(len(runs.runs), 'run')} with their logs, {quantity(len(runs.artifacts), 'artifact')}, "
        known += f"lines in {quantity(len(runs.tables), 'table')} about all"
        pointing = ", ".join(f"{name} at {release}" for name, release in self.pointers.items())
        return [
            f"workspace  {quantity(self.files, 'file')}, {_mb(self.file_bytes)}: {self.workspace}",
            f"DVC        {_told(self.remembered)}",
            f"store      {quantity(stored.objects, 'object')} in {quantity(stored.versions, 'version')}, "
            f"{quantity(stored.uploads, 'unfinished upload')}, "
            f"{_mb(stored.bytes)}",
            f"channels   {pointing or 'none'}",
            *hub_index.lines(self.repositories),
            f"Prefect    {known}",
            f"events     {_diary(runs)}",
            f"logs       {_told(self.logs)}{'; delete them by hand: they tell of others too' if self.logs else ''}",
            f"consent    {self.consent_ends or 'none here'}",
        ]


def find(settings: Settings, subject: str, *, this_run: UUID | str | None = None) -> Found:
    """List everything stored about `subject` except the calling run; changes nothing.

    Raises:
        InputError: it is the demo, which is no person's.
    """
    if subject == DEMO:
        raise InputError("The demo is no person's, and lies in the project itself; `make clean` removes its results.")
    store, workspace = open_store(settings.store), settings.workspace(subject)
    sizes = list(_sizes(workspace))
    pointers = {name: channel(store, subject, name) for name in ("staging", "production")}
    return Found(
        workspace=workspace,
        files=len(sizes),
        file_bytes=sum(sizes),
        stored=sum((store.inventory(key) for key in _keys(subject)), Inventory()),
        pointers={name: found.release for name, found in pointers.items() if found},
        runs=runs_of(subject, but=this_run),
        consent_ends=_consent_ends(workspace / "data" / "consent.yaml"),
        repositories=hub_index.found(store, subject),
        remembered=_remembered(site_cache(), workspace),
        logs=_naming(settings.logs, subject),
    )


def forget(
    settings: Settings,
    subject: str,
    *,
    shared: bool,
    cancel: bool = False,
    this_run: UUID | str | None = None,
) -> Tombstone:
    """Delete everything stored about `subject`, and return its tombstone, which remains.

    Args:
        settings: Where things are.
        subject: Whom to forget.
        shared: Other machines may work on the subject: its lease is taken, so that none of them does meanwhile. A lost
            holder's ends by itself and is waited for.
        cancel: End who works on the subject first.
        this_run: The run that asks.

    Raises:
        InputError: a run holds the subject and must not be cancelled, or did not end although it was; or something is
            left on the hub that a person has to delete.
        StoreError: something is left all the same, or the store did not answer; run again.
    """
    found = find(settings, subject, this_run=this_run)
    if found.runs.working:
        refuse_or_cancel(found.runs, cancel=cancel)
    store = open_store(settings.store)
    alone = leased(subject, wait_s=LEASE_ENDS_WITHIN_S) if shared else contextlib.nullcontext()
    with alone:
        with held_to_forget(found.workspace, cancel=cancel):
            tombstones.begin(store, subject, found.counts())
            try:
                hub.delete(settings, store, subject)  # while the store still says what there is
            except (InputError, StoreError):
                erase_but_names(store, found.workspace, subject)
                raise
            erase(store, found.workspace, subject, found.counts())
            for folder in found.remembered:
                shutil.rmtree(folder, ignore_errors=True)  # somebody else's is listed again
        forget_runs.delete(runs_of(subject, but=this_run), subject)
        left = find(settings, subject, this_run=this_run)
        if not left.is_empty:
            raise StoreError("Something is left; run again. Left are:\n" + "\n".join(left.lines()))
        return tombstones.finish(store, subject)


def erase(store: Store, workspace: Path, subject: str, counts: Counts) -> None:
    """Write the tombstone, and delete everything about `subject` from the store and this machine."""
    tombstones.begin(store, subject, counts)
    empty(store, subject)
    if workspace.exists():
        _remove(workspace)


def erase_but_names(store: Store, workspace: Path, subject: str) -> None:
    """Delete all but the names of releases and repositories, which are needed to finish the deletion on the hub."""
    _unpublish(store, subject)
    names = {f"{releases_key(subject)}/{INDEX}", hub_index.index_key(subject)}
    for below in (*_keys(subject), scan_index.INDEX):
        store.delete(below, only=lambda key: key not in names)
    if workspace.exists():
        _remove(workspace)


def empty(store: Store, subject: str) -> None:
    """Delete every version of all objects of `subject` in the store: pointers, then manifests, then the rest.

    Raises:
        StoreError: the listing is not empty after many tries.
    """
    _unpublish(store, subject)
    clear(store, *_keys(subject), scan_index.INDEX)  # the index tells of all subjects, and is made anew


def _unpublish(store: Store, subject: str) -> None:
    """Delete the pointers to releases, then the manifests, so that no release is complete any more."""
    store.delete(f"subjects/{subject}/channels")
    store.delete(releases_key(subject), only=lambda key: key.endswith(f"/{MANIFEST}"))


def _keys(subject: str) -> tuple[str, str]:
    """Return the keys, and key prefixes, of all objects of a subject."""
    return f"subjects/{subject}", state_key(subject)


def refuse_or_cancel(runs: Runs, *, cancel: bool) -> None:
    """Cancel the runs that are under way, or refuse.

    Raises:
        InputError: there are some, and they must not be cancelled.
    """
    names = ", ".join(f"`{run.name}`" for run in runs.working)
    if not cancel:
        raise InputError(f"{names} is at work on this subject; wait for it to end, or cancel it with --cancel.")
    forget_runs.cancel(runs.working)


@contextlib.contextmanager
def held_to_forget(workspace: Path, *, cancel: bool) -> Iterator[None]:
    """Lock the workspace, if it exists; with `cancel`, end a process of this machine that holds the lock first.

    Raises:
        InputError: another process holds it, and does not end or is on another machine.
    """
    if not workspace.exists():
        yield
        return
    deadline = time.monotonic() + (ENDS_WITHIN_S if cancel else 0.0)
    asked: Holder | None = None
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked_workspace(workspace))
                break
            except InputError:
                holder = holder_of(lock_path(workspace))
                if time.monotonic() >= deadline or (holder and holder.host != platform.node()):
                    raise
                if holder and holder != asked:  # once: a second time would cut off what it tidies up
                    asked = holder
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(holder.pid, signal.SIGINT)
                time.sleep(LOOK_EVERY_S)
        yield


def _remove(workspace: Path) -> None:
    """Remove a workspace; targets of its symbolic links stay."""
    if workspace.is_symlink():
        raise InputError(f"{workspace} is a link; remove what it leads to by hand, for it is not known to be ours.")
    shutil.rmtree(workspace)


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_symlink() or path.is_file():
                yield path.lstat().st_size


def _remembered(site: Path, workspace: Path) -> list[Path]:
    """Return the folders of DVC's databases that name files of a workspace, which may be deleted already.

    Only workspaces of versions that left DVC's `site_cache_dir` at its default have any.
    """
    within = os.fsencode(f"{workspace.resolve()}/")
    return [folder for folder in sorted(site.glob("repo/*")) if any(within in content for content in _contents(folder))]


def _contents(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*.db*"):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # deleted meanwhile, or not readable
            if path.is_file() and not path.is_symlink():
                yield path.read_bytes()


def _naming(logs: Path, subject: str) -> list[Path]:
    """Return the log files that contain the pseudonym as a word."""
    word = re.compile(rf"(?<![a-z0-9_-]){re.escape(subject)}(?![a-z0-9_-])".encode())
    found = []
    for path in sorted(logs.glob("*.log")):
        with path.open("rb") as file:
            if any(word.search(line) for line in file):
                found.append(path)
    return found


def _told(paths: list[Path]) -> str:
    return ", ".join(map(str, paths)) or "none"


def _consent_ends(consent: Path) -> str:
    """Return what a listing says of a consent; an unreadable one does not prevent the deletion."""
    if not consent.is_file():
        return ""
    try:
        return f"until {read_consent(consent).expires}"
    except InputError:
        return "unreadable"


def _diary(runs: Runs) -> str:
    if runs.told_until is None:
        return "none of Prefect's tells a run's name"
    return f"Prefect's tell names of runs until {runs.told_until:%Y-%m-%d %H:%M} UTC; nobody can delete them sooner"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
