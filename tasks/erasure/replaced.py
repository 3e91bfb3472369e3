"""Delete replaced photos and results of a subject some days after they were replaced.

DVC keeps whatever it has seen, so a photo that was taken out of an album would stay, with all that was made of it: in
the cache of each workspace, and in the store. Here an object is live if `dvc.lock` or a `.dvc` file names it, or a
listing that one of them names. When an object is first found not to be live is written down, in the workspace for its
cache and in the store for the store; ZIMAGE_REPLACED_DAYS later it is deleted, with all its versions. Until then DVC
restores it where somebody goes back to earlier photos or values. Nothing of one subject is shared with another: each
has a cache and a prefix of its own.
"""

import datetime
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.logging import get_run_logger

from tasks.settings import DEMO, Settings
from tasks.store.protocol import Store, changed
from tasks.store.releases import Document
from tasks.store.s3 import open_store, store_errors
from tasks.transfer.state import read_state
from tasks.workspace.workspace import write_changed
from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_trusted
from zimage.curation.contact_sheet import THUMBNAILS

DIR = ".dir"  # ends the name of a folder's listing
SINCE = Path(".dvc", "replaced.json")  # in a workspace
Read = Callable[[str], bytes | None]


class Replaced(Document):
    """When each object, by its path, was first found to be replaced."""

    since: dict[str, datetime.datetime]

    def after(self, present: Iterable[str], live: Collection[str], now: datetime.datetime) -> "Replaced":
        """Return this, with what is present and not live since `now` unless it was known before, and nothing else."""
        return Replaced(since={path: self.since.get(path, now) for path in sorted(present) if path not in live})

    def due(self, now: datetime.datetime, days: float) -> set[str]:
        """Return what was replaced `days` ago or earlier."""
        return {path for path, since in self.since.items() if now - since >= datetime.timedelta(days=days)}


def collect_here(settings: Settings, subject: str) -> None:
    """Delete objects that were replaced long enough ago from the cache of a workspace that this process has locked."""
    if subject == DEMO:
        return
    folder = settings.workspace(subject)
    cache, note = folder / ".dvc" / "cache", folder / SINCE
    now = datetime.datetime.now(datetime.UTC)
    before = Replaced.model_validate_json(note.read_bytes()) if note.is_file() else Replaced(since={})
    found = before.after(present_here(cache), live_here(cache, named_here(folder)), now)
    due = found.due(now, settings.replaced_days)
    for path in due:
        (cache / path).unlink(missing_ok=True)
    left = Replaced(since={path: since for path, since in found.since.items() if path not in due})
    write_changed(note, left.model_dump_json())
    if due:
        for remembered in (folder / ".dvc" / "tmp" / "site" / "repo").glob("*"):  # hashes of files that are gone too
            shutil.rmtree(remembered)
        get_run_logger().info("deleted %d files that were replaced, from the cache of %s", len(due), subject)


def collect_in_store(settings: Settings, subject: str) -> None:
    """Delete objects that were replaced long enough ago from the store; a failing store is only reported.

    The subject must be leased: what another machine has sent and not handed over yet would count as replaced.
    """
    away: tuple[type[Exception], ...] = (InputError, *store_errors())
    try:
        _collect_in_store(settings, subject)
    except away as error:
        get_run_logger().warning("Replaced photos and results were not deleted from the store: %s", error)


def _collect_in_store(settings: Settings, subject: str) -> None:
    store = open_store(settings.store)
    now = datetime.datetime.now(datetime.UTC)
    present = present_in(store, subject)
    live = live_in(store, subject)

    def looked_at(before: Replaced) -> Replaced:
        return before.after(present, live, now)

    found = changed(store, since_key(subject), Replaced(since={}), looked_at)
    if due := found.due(now, settings.replaced_days):
        delete_from(store, subject, due)
        changed(
            store,
            since_key(subject),
            found,
            lambda before: Replaced(since={path: since for path, since in before.since.items() if path not in due}),
        )
        get_run_logger().info("deleted %d files that were replaced, from the store", len(due))


def since_key(subject: str) -> str:
    """Return the key of the record of replaced objects."""
    return f"subjects/{subject}/replaced.json"


def present_here(cache: Path) -> set[str]:
    """Return the objects and run records in a cache, by path."""
    below = (path for top in ("files", "runs") for path in (cache / top).rglob("*"))
    return {path.relative_to(cache).as_posix() for path in below if path.is_file()}


def present_in(store: Store, subject: str) -> set[str]:
    """Return the objects, records of runs and pages in the store, by the key below the subject's."""
    top = f"subjects/{subject}/"
    keys = {key.removeprefix(top) for below in ("dvc/files", "dvc/runs", "pages") for key in store.keys(top + below)}
    return keys


def live_here(cache: Path, named: Collection[str]) -> set[str]:
    """Return what is live in a cache, by path; see `live`."""

    def read(path: str) -> bytes | None:
        file = cache / path
        return file.read_bytes() if file.is_file() else None

    return live(named, [path for path in present_here(cache) if path.startswith("runs/")], read)


def live_in(store: Store, subject: str) -> set[str]:
    """Return what is live in the store, by the key below the subject's.

    Pages never are, for their links expire; the pictures of a contact sheet are if the sheet is.
    """
    state = read_state(store, subject).state
    named = named_by(state.lock, state.inputs.values()) if state else set()
    top = f"subjects/{subject}/dvc/"
    runs = [key.removeprefix(top) for key in store.keys(f"{top}runs")]

    def read(path: str) -> bytes | None:
        found = store.read(top + path)
        return found.content if found else None

    found = live(named, runs, read)
    pictures = {f"pages/{THUMBNAILS}/{''.join(path.split('/')[-2:])}.jpg" for path in found}
    return {f"dvc/{path}" for path in found} | pictures


def live(named: Collection[str], runs: Iterable[str], read: Read) -> set[str]:
    """Return the paths of all objects that are needed: those named, what their listings list, and records of the runs.

    Args:
        named: MD5s, as `dvc.lock` and `.dvc` files name objects.
        runs: Paths of records of runs; one is live if all that it made is.
        read: Returns the content at a path, or None where nothing lies there.
    """
    found = set(map(object_path, named))
    for md5 in named:
        listing = read(object_path(md5)) if md5.endswith(DIR) else None
        found |= {object_path(entry["md5"]) for entry in json.loads(listing or b"[]")}
    return found | {run for run in runs if made_by_run(read(run)) <= set(named)}


def made_by_run(record: bytes | None) -> set[str]:
    """Return the MD5s of what a run made, by its record; one that cannot be read names what nobody needs."""
    try:
        outs = (yaml.safe_load(record or b"") or {})["outs"]
        return {out["md5"] for out in outs}
    except (yaml.YAMLError, KeyError, TypeError):
        return {""}


def object_path(md5: str) -> str:
    """Return where in a cache or a remote of DVC an object lies."""
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def named_here(folder: Path) -> set[str]:
    """Return the MD5s that a workspace names."""
    lock = folder / "dvc.lock"
    texts = [path.read_text(encoding="utf-8") for path in sorted((folder / "data").glob("*.dvc"))]
    return named_by(lock.read_text(encoding="utf-8") if lock.is_file() else "", texts)


def named_by(lock: str, inputs: Iterable[str]) -> set[str]:
    """Return the MD5s that a `dvc.lock` and `.dvc` files, given as text, name."""
    stages: Mapping[str, Any] = (load_trusted(lock) or {}).get("stages", {}) if lock else {}
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    outs += [out for text in inputs for out in load_trusted(text)["outs"]]
    return {out["md5"] for out in outs}


def delete_from(store: Store, subject: str, paths: Collection[str]) -> int:
    """Delete every version of objects in the store; return how many versions there were."""
    keys = {f"subjects/{subject}/{path}" for path in paths}
    return store.delete(f"subjects/{subject}", only=keys.__contains__)
