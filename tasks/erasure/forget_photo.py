"""Delete one photo of a subject everywhere, with everything that was made from albums that contained it.

A result that was made of an album with the photo is deleted as a whole: faces and crops carry the photo, and captions,
LoRAs and reports were made of all photos together. What was replaced before is deleted too, whatever it was made of, as
it would be after ZIMAGE_REPLACED_DAYS. Releases stay as they were published, and are named.
"""

import contextlib
import hashlib
import json
import mmap
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from tasks.erasure.forget import LEASE_ENDS_WITHIN_S, held_to_forget, refuse_or_cancel
from tasks.erasure.replaced import (
    DIR,
    SINCE,
    live_here,
    live_in,
    named_by,
    named_here,
    object_path,
    present_here,
    since_key,
)
from tasks.prefect_api.lease import leased
from tasks.prefect_api.runs import drop_photo, runs_of
from tasks.release.hub import index as hub_index
from tasks.settings import DEMO, Settings
from tasks.store.protocol import Store, StoreError
from tasks.store.releases import releases
from tasks.store.s3 import open_store
from tasks.transfer.state import checkout, commit, read_state, track_inputs
from tasks.workspace.subject import choices
from tasks.workspace.tombstones import admit
from tasks.workspace.workspace import is_tracked, lock_path, pull, write_changed
from zimage.core.errors import InputError
from zimage.core.folder import aside_of, fetched_beside, refused_of
from zimage.core.jsonl import read_rows
from zimage.core.plain_yaml import dump
from zimage.core.signatures import STAGES
from zimage.photos.cache import cache_of
from zimage.photos.rows import PhotoRow

ALBUM = Path("data", "photos")
Listings = dict[str, list[dict[str, str]]]  # the entries of each folder that DVC knows, by the MD5 of its listing


@dataclass(frozen=True)
class Photo:
    """A photo by its content.

    Args:
        sha256: Of the file's bytes; results name the photo by the first 16 digits.
        md5: Of the file's bytes; DVC names the photo by it.
    """

    sha256: str
    md5: str

    @property
    def marks(self) -> list[str]:
        """Return the texts that identify the photo, such as its hashes."""
        return [self.sha256[:16], self.md5]


@dataclass(frozen=True)
class FoundPhoto:
    """Everything stored about a photo.

    Args:
        album: Files of the present album with its content.
        results: The present results were made of an album with it.
        made: MD5s of the photo and of the files that were made of it alone, as far as a listing names them.
        here: Files in this machine's cache with the photo or made of albums that held it.
        stored: The same in the store.
        released: Releases that were learned with the photo.
        unknown: Releases of which nothing tells any more what album they were learned with.
    """

    album: list[str]
    results: bool
    made: set[str]
    here: int
    stored: int
    released: list[str]
    unknown: list[str]

    def lines(self) -> list[str]:
        """Return the listing for a person."""
        results = "were made of an album with it" if self.results else "were not made with it"
        return [
            f"album      {', '.join(self.album) or 'not in it'}",
            f"results    the present ones {results}",
            f"cache      {self.here} files of it, or of results that were made with it",
            f"store      {self.stored} files of it, or of results that were made with it",
            *self._releases(),
        ]

    def _releases(self) -> Iterator[str]:
        if self.released:
            yield (
                f"releases   {', '.join(self.released)} were learned with this photo and stay as they were published: "
                "nothing takes a photo out of a LoRA; `python -m flows forget` without --photo deletes all releases"
            )
        if self.unknown:
            yield f"releases   {', '.join(self.unknown)}: nothing tells any more whether these were learned with it"


def find_photo(settings: Settings, subject: str, given: str) -> FoundPhoto:
    """List everything stored about a photo; changes nothing.

    Args:
        settings: Where things are.
        subject: The subject whose album has or had it.
        given: A file with its content, its name in an album, or its SHA-256.

    Raises:
        InputError: no such photo is known, or it is the demo's.
    """
    store, folder = open_store(settings.store), settings.workspace(subject)
    listings = _listings(store, folder, subject)
    return _found(store, folder, subject, _identified(store, folder, subject, given, listings), listings)


def forget_photo(
    settings: Settings,
    subject: str,
    given: str,
    *,
    shared: bool,
    cancel: bool = False,
    this_run: UUID | str | None = None,
) -> list[str]:
    """Delete everything stored about a photo, verify that, and return lines about what could not be reached.

    Args:
        settings: Where things are.
        subject: The subject whose album has or had it.
        given: See `find_photo`.
        shared: Other machines may work on the subject: its lease is taken.
        cancel: End who works on the subject first.
        this_run: The run that asks.

    Raises:
        InputError: no such photo is known, a run is at work on the subject, or the album is an archive.
        StoreError: something is left all the same; run again.
    """
    runs = runs_of(subject, but=this_run)
    if runs.working:
        refuse_or_cancel(runs, cancel=cancel)
    store, folder = open_store(settings.store), settings.workspace(subject)
    was_here = folder.exists()
    alone = leased(subject, wait_s=LEASE_ENDS_WITHIN_S) if shared else contextlib.nullcontext()
    with alone, held_to_forget(folder, cancel=cancel):
        listings = _listings(store, folder, subject)
        photo = _identified(store, folder, subject, given, listings)
        found = _found(store, folder, subject, photo, listings)
        if folder.exists() or read_state(store, subject).state is not None:
            _take_out(settings, store, subject, photo)
        _delete_unneeded(store, folder, subject)
        drop_photo(runs, subject, photo.sha256[:16])
        left = [*_left_here(folder, photo, found.made), *_left_in_store(store, subject, found.made)]
        if not was_here and folder.exists():
            shutil.rmtree(folder)
    if left:
        raise StoreError("Something of the photo is left; run again. Left are:\n" + "\n".join(left))
    return _unreached(settings, store, subject, folder, photo)


def _identified(store: Store, folder: Path, subject: str, given: str, listings: Listings) -> Photo:
    if subject == DEMO:
        raise InputError("The demo is no person's, and lies in the project itself.")
    for path in (Path(given).expanduser(), folder / ALBUM / given):
        if path.is_file():
            return _photo(path.read_bytes())
    rows = folder / "data" / "ingest" / "photos.jsonl"
    for row in read_rows(rows, PhotoRow) if rows.is_file() else []:
        if row.sha256 is not None and given in (row.name, row.sha256, row.photo):
            return Photo(row.sha256, _md5_of(store, folder, subject, row.sha256, listings))
    for md5 in {entry["md5"] for entries in listings.values() for entry in entries if entry["relpath"] == given}:
        content = _content(store, folder, subject, md5)
        if content is not None:
            return _photo(content)
    raise InputError(
        f"No photo {given} of {subject} is known here; name a file that holds it, or its name in the album."
    )


def _photo(content: bytes) -> Photo:
    return Photo(hashlib.sha256(content).hexdigest(), hashlib.md5(content, usedforsecurity=False).hexdigest())


def _md5_of(store: Store, folder: Path, subject: str, sha256: str, listings: Listings) -> str:
    """Return the MD5 of the photo with this SHA-256; its SHA-256 where it lies in an archive, which has one MD5."""
    files = (path for path in (folder / ALBUM).rglob("*") if path.is_file())
    for path in files:
        photo = _photo(path.read_bytes())
        if photo.sha256 == sha256:
            return photo.md5
    return sha256


def _content(store: Store, folder: Path, subject: str, md5: str) -> bytes | None:
    cached = folder / ".dvc" / "cache" / object_path(md5)
    if cached.is_file():
        return cached.read_bytes()
    found = store.read(f"subjects/{subject}/dvc/{object_path(md5)}")
    return found.content if found else None


def _listings(store: Store, folder: Path, subject: str) -> Listings:
    """Return what each listing lists, of those in this machine's cache and in the store, by the listing's MD5."""
    top = f"subjects/{subject}/dvc/files/md5"
    stored = {"".join(key.split("/")[-2:]) for key in store.keys(top)}
    cached = {"".join(path.split("/")[-2:]) for path in present_here(folder / ".dvc" / "cache")}
    found = {}
    for md5 in sorted(each for each in stored | cached if each.endswith(DIR)):
        content = _content(store, folder, subject, md5)
        found[md5] = json.loads(content) if content else []
    return found


def _found(store: Store, folder: Path, subject: str, photo: Photo, listings: Listings) -> FoundPhoto:
    entries = [entry for entries in listings.values() for entry in entries]
    others = {entry["md5"] for entry in entries if photo.sha256[:16] not in entry["relpath"]}  # such as an empty mask
    made = {entry["md5"] for entry in entries} - others | {photo.md5}
    with_it = {md5 for md5, entries in listings.items() if made & {entry["md5"] for entry in entries}}
    paths = {object_path(md5) for md5 in made | with_it}
    stored = {key.removeprefix(f"subjects/{subject}/dvc/") for key in store.keys(f"subjects/{subject}/dvc")}
    released, unknown = [], []
    for manifest in releases(store, subject):
        outs = {out["md5"] for stage in manifest.dvc_lock.get("stages", {}).values() for out in stage.get("outs", [])}
        if outs & with_it:
            released.append(manifest.release)
        elif not outs & set(listings):
            unknown.append(manifest.release)
    album = folder / ALBUM
    files = sorted(path for path in album.rglob("*") if path.is_file()) if album.is_dir() else []
    state = read_state(store, subject).state
    named = named_here(folder) | (named_by(state.lock, state.inputs.values()) if state else set())
    return FoundPhoto(
        album=[path.relative_to(album).as_posix() for path in files if _photo(path.read_bytes()) == photo],
        results=bool(named & with_it),
        made=made,
        here=len(paths & present_here(folder / ".dvc" / "cache")),
        stored=len(paths & stored),
        released=released,
        unknown=unknown,
    )


def _take_out(settings: Settings, store: Store, subject: str, photo: Photo) -> None:
    """Take a photo out of the album and delete the present results if they were made with it; where work is shared,
    the state says so afterwards.

    Raises:
        InputError: the album is an archive that holds it.
    """
    folder = settings.workspace(subject)
    taken = checkout(settings, subject) if read_state(store, subject).state is not None else None
    if taken is None:
        admit(store, subject, folder)
    album = folder / ALBUM
    if not album.exists() and is_tracked(album):
        pull(folder, [f"{ALBUM}.dvc"], on_line=lambda _: None)
    if album.is_file() and _rows_name(folder, photo):
        raise InputError(
            f"The album of {subject} is an archive with this photo; pack one without it, give it to `personalize` with "
            "--photos, and run this again."
        )
    for path in [path for path in album.rglob("*") if path.is_file() and _photo(path.read_bytes()) == photo]:
        path.unlink()
    overrides = folder / "data" / "overrides"
    for path in [path for path in overrides.rglob("*") if path.is_file()]:
        if path.stem.startswith(photo.sha256[:16]) or _photo(path.read_bytes()) == photo:
            path.unlink()
    if taken is not None:
        track_inputs(folder)
    if _uses(folder, store, subject, photo):
        _delete_results(folder)
    if taken is not None and taken.state is not None:
        sources, run = taken.state.sources, "forget"
        commit(settings, subject, taken, stages=(), sources=sources, choices=choices(folder), run=run)


def _rows_name(folder: Path, photo: Photo) -> bool:
    rows = folder / "data" / "ingest" / "photos.jsonl"
    return rows.is_file() and any(row.sha256 == photo.sha256 for row in read_rows(rows, PhotoRow))


def _uses(folder: Path, store: Store, subject: str, photo: Photo) -> bool:
    """Return whether the current results were made from an album with the photo; True if that is unknown."""
    if not (folder / "dvc.lock").is_file():
        return False
    if (folder / "data" / "ingest" / "photos.jsonl").is_file():
        return _rows_name(folder, photo)
    listings = _listings(store, folder, subject)
    entries = [entry for md5 in named_here(folder) for entry in listings.get(md5, [])]
    named = {entry["relpath"] for entry in entries}
    return "photos.jsonl" not in named or any(photo.sha256[:16] in name for name in named)


def _delete_results(folder: Path) -> None:
    write_changed(folder / "dvc.lock", dump({"schema": "2.0", "stages": {}}))
    for stage in STAGES:
        out = folder / "data" / stage
        for path in (out, aside_of(out), fetched_beside(aside_of(out)), refused_of(out)):
            shutil.rmtree(path, ignore_errors=True)


def _delete_unneeded(store: Store, folder: Path, subject: str) -> None:
    """Delete all that current photos and results do not need, from the workspace and from the store's versions."""
    for stage in STAGES:
        shutil.rmtree(cache_of(folder / "data" / stage), ignore_errors=True)
    cache = folder / ".dvc" / "cache"
    for path in present_here(cache) - live_here(cache, named_here(folder)):
        (cache / path).unlink()
    (folder / SINCE).unlink(missing_ok=True)
    for remembered in lock_path(folder).parent.glob("*"):  # what DVC remembers of files
        if remembered.is_dir():
            shutil.rmtree(remembered)
        elif remembered != lock_path(folder):
            remembered.unlink()
    _delete_from_store(store, subject)


def _delete_from_store(store: Store, subject: str) -> int:
    """Delete the objects that the state does not need, and return the number of deleted versions."""
    top = f"subjects/{subject}"
    keys = {f"{top}/{path}" for path in live_in(store, subject)}
    below = (f"{top}/dvc", f"{top}/pages", f"{top}/unfinished", since_key(subject))
    return sum(store.delete(each, only=lambda key: key not in keys) for each in below)


def _left_here(folder: Path, photo: Photo, made: set[str]) -> Iterator[str]:
    """Yield the files of a workspace that contain the photo, results made from it, or its hash."""
    marks = [mark.encode() for mark in photo.marks]
    for path in folder.rglob("*") if folder.exists() else ():
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file() or name == "data/overrides/decisions.yaml":
            continue
        named = any(mark in name.replace("/", "") for mark in photo.marks)
        if named or _md5(path) in made or any(_holds(path, mark) for mark in marks):
            yield f"workspace  {path}"


def _left_in_store(store: Store, subject: str, made: set[str]) -> Iterator[str]:
    """Yield the objects of the store with the photo or what was made of it, and how many others had to go once more."""
    top = f"subjects/{subject}/dvc/"
    made_keys = {object_path(md5) for md5 in made}
    yield from (f"store      {key}" for key in store.keys(top.rstrip("/")) if key.removeprefix(top) in made_keys)
    if versions := _delete_from_store(store, subject):
        yield f"store      {versions} versions came after the first listing"


def _holds(path: Path, mark: bytes) -> bool:
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(mark) >= 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unreached(settings: Settings, store: Store, subject: str, folder: Path, photo: Photo) -> list[str]:
    """Return the places that no deletion here reaches, each with the remedy."""
    decisions = folder / "data" / "overrides" / "decisions.yaml"
    state = read_state(store, subject).state
    origin = state.sources["photos"].address if state and "photos" in state.sources else "where the album came from"
    hub = hub_index.found(store, subject)
    return [
        f"not here   {origin}: take the photo out there too, or the next `personalize` brings it back",
        "not here   workspaces on other machines: run this on each that has worked on the subject",
        "not here   logs of runs may name the file; they go with the runs",
        *(["not here   repositories on the hub hold the releases named above"] if hub else []),
        *(
            [f"not here   {decisions} decides about {photo.sha256[:16]}: take out that line, there and at its origin"]
            if decisions.is_file() and _holds(decisions, photo.sha256[:16].encode())
            else []
        ),
    ]
