"""Find objects that are damaged or missing in the DVC remote, and restore them from copies with the same hash.

DVC refuses what is damaged on arrival, but never sends it again: for `push` an object is there if its name is, and all
of a folder is there if its listing is. So contents are compared here, where a fetch has failed, and what no copy was
found of is noted in the store, for the machines that may still have one. After a push sizes are compared, by one
listing: what was cut off is sent again by a machine that has it. A record of the run cache that was cut off makes DVC
fail (a KeyError, 3.67); it is emptied, which DVC takes for none.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import yaml

from tasks.log import log_line
from tasks.settings import Settings
from tasks.store.protocol import changed
from tasks.store.releases import INDEX, MANIFEST, Document, Index, Manifest, release_key, releases_key
from tasks.store.s3 import Store, open_store
from tasks.workspace.dvc import FetchFailedError, StageFailedError
from tasks.workspace.tombstones import unless_forgotten
from tasks.workspace.workspace import write_changed
from zimage.core.errors import InputError, first_of
from zimage.core.plain_yaml import dump, load_trusted

DIR = ".dir"  # ends the name of a folder's listing
SHOWN = 3
Answer = TypeVar("Answer")


class Lost(Document):
    """An object of which no sound copy was found."""

    md5: str
    """Its name: the MD5 of its content; that of a folder's listing ends with `.dir`."""
    path: str
    """The file or folder in the workspace that it stands for."""
    owner: str
    """The name of the object that `dvc.lock` or a `.dvc` file names: itself, or the listing of its folder."""


class Losses(Document):
    """All objects of a subject that are known to be lost."""

    lost: list[Lost]


def fetching(settings: Settings, subject: str, ask: Callable[[], Answer], *, wants: Iterable[str]) -> Answer:
    """Call `ask`, which lets DVC fetch `wants` (paths in the workspace), again after a repair; return its result.

    Raises:
        InputError: some objects are damaged or missing, and there is no other copy; which, and what to do.
        FetchFailedError: it failed although nothing is damaged.
    """
    try:
        return ask()
    except StageFailedError as error:
        with _objects(settings, subject) as objects:
            if not objects.empty_broken_runs() and not (isinstance(error, FetchFailedError) and objects.mend(wants)):
                raise
    return ask()


def pushing(settings: Settings, subject: str, push: Callable[[], None], *, wants: Iterable[str]) -> None:
    """Let DVC `push` the paths `wants` of the workspace, and send again what the store has shorter than this machine.

    Raises:
        FetchFailedError: it failed, although nothing is shorter; it reads the listings of folders that are there.
    """
    with _objects(settings, subject) as objects:
        wanted = set(wants)
        objects.link(wanted)
        try:
            push()
        except FetchFailedError:
            if not objects.mend_shortened(wanted):
                raise
            push()
        objects.mend_shortened(wanted)


def mend_noted(settings: Settings, subject: str, *, remake: bool = False) -> None:
    """Re-upload objects that other machines reported missing, if a copy is here.

    With `remake`, a stage with lost results is removed from this workspace's `dvc.lock`, so that it runs again.
    """
    with _objects(settings, subject) as objects:
        objects.mend_noted(remake=remake)


def read_by(folder: Path, stage: str) -> list[str]:
    """Return the paths that a stage reads."""
    found = _yaml(folder / "dvc.yaml")["stages"][stage].get("deps", [])
    return [each if isinstance(each, str) else next(iter(each)) for each in found]


def made_by(folder: Path, stages: Iterable[str]) -> list[str]:
    """Return the output paths of the stages that have been run."""
    found = _yaml(folder / "dvc.lock").get("stages", {})
    return [out["path"] for stage in stages for out in found.get(stage, {}).get("outs", [])]


@dataclass(frozen=True)
class Objects:
    """The objects of a subject in the store, and the places that may have copies.

    Args:
        store: Where they should be.
        subject: The subject.
        folder: This machine's workspace.
        scratch: A file for what is looked at.
    """

    store: Store
    subject: str
    folder: Path
    scratch: Path

    def mend(self, wants: Iterable[str]) -> bool:
        """Return whether any object of the paths `wants` had to be mended.

        Raises:
            InputError: one could not be; it is noted, so that a machine that has it can.
        """
        mended, lost = 0, []
        for each in self._all(set(wants)):
            if self._is_here(each) or self._sound(each):
                continue
            if self._mended(each):
                mended += 1
            else:
                lost.append(each)
        if lost:
            self._note(lambda noted: [*noted, *(each for each in lost if each not in noted)])
            raise InputError(self._sentence(lost))
        return bool(mended)

    def link(self, wants: set[str]) -> None:
        """Store the objects of the paths `wants` by hard links where that is possible; DVC would copy them.

        A listing comes after what it lists, because DVC takes it for a sign that all of that is there.
        """
        for each in reversed(list(self._all(wants))):
            if self._cached(each).is_file():
                self.store.link_if_absent(self._key(each), self._cached(each))

    def mend_noted(self, *, remake: bool) -> None:
        """See the function of this name."""
        found = self.store.read(self._notes)
        noted = Losses.model_validate_json(found.content).lost if found else []
        if not noted:
            return
        named = set(_named(self.folder).values())
        done = [each for each in noted if each.owner not in named or self._mended(each)]
        if done:
            self._note(lambda now: [each for each in now if each not in done])
        if remake:
            _unlock(self.folder, {each.owner for each in noted if each not in done})

    def mend_shortened(self, wants: set[str]) -> bool:
        """Return whether the store had any object of the paths `wants`, or a record of a run, in another size."""
        sizes = self.store.sizes(f"subjects/{self.subject}/dvc")
        found = [(self._key(each), self._cached(each), each.md5) for each in self._all(wants)]
        found += [(self._run_key(path), path, "") for path in self._runs() if self._run_key(path) in sizes]
        shortened = [
            (key, path)
            for key, path, md5 in found
            if path.is_file() and sizes.get(key) != path.stat().st_size and (_has(path, md5) if md5 else _is_run(path))
        ]
        for key, path in shortened:
            self.store.overwrite(key, path)
            log_line(
                f"{key} had {sizes.get(key, 0)} of {path.stat().st_size} bytes in the store; mended from the cache."
            )
        return bool(shortened)

    def empty_broken_runs(self) -> bool:
        """Return whether a record of a run that DVC fetched was broken; it is emptied in the store and deleted here."""
        broken = [path for path in self._runs() if path.stat().st_size and not _is_run(path)]
        self.scratch.write_bytes(b"")
        for path in broken:
            self.store.overwrite(self._run_key(path), self.scratch)
            path.unlink()
            log_line(f"{self._run_key(path)} was damaged in the store; what it says of a run is not used.")
        return bool(broken)

    def _runs(self) -> list[Path]:
        return [path for path in self._cache.glob("runs/*/*/*") if path.is_file()]

    def _run_key(self, path: Path) -> str:
        return f"subjects/{self.subject}/dvc/{path.relative_to(self._cache).as_posix()}"

    def _all(self, wants: set[str]) -> Iterator[Lost]:
        """Yield each object of some paths; a listing comes before what it lists, which it needs to be sound for."""
        for path, md5 in _named(self.folder).items():
            if path not in wants:
                continue
            top = Lost(md5=md5, path=path, owner=md5)
            yield top
            for entry in self._listing(top) if md5.endswith(DIR) else []:
                yield Lost(md5=entry["md5"], path=f"{path}/{entry['relpath']}", owner=md5)

    def _listing(self, top: Lost) -> list[dict[str, str]]:
        if self._is_here(top):
            path = self._cached(top)
        elif self._sound(top):
            path = self.scratch
        else:
            return []
        listed: list[dict[str, str]] = json.loads(path.read_bytes())
        return listed

    def _is_here(self, each: Lost) -> bool:
        return _has(self._cached(each), each.md5)

    def _sound(self, each: Lost) -> bool:
        """Return whether the store has the object undamaged; if so, it is in the scratch file."""
        key = self._key(each)
        if key.rpartition("/")[2] not in self.store.list_children(key.rpartition("/")[0]):
            return False
        self.store.get(key, self.scratch)
        return _has(self.scratch, each.md5)

    def _mended(self, each: Lost) -> bool:
        for where, copy in self._copies(each):
            if _has(copy, each.md5):
                return self._sent(each, where, copy)
        return False

    def _sent(self, each: Lost, where: str, copy: Path) -> bool:
        """Return whether a copy was uploaded in the object's place; a publisher's keys may not do that."""
        try:
            self.store.overwrite(self._key(each), copy)
        except InputError as error:
            log_line(f"{each.path} ({each.md5}) is damaged or missing in the store, and could not be mended: {error}")
            return False
        log_line(f"{each.path} ({each.md5}) was damaged or missing in the store; mended from {where}.")
        return True

    def _copies(self, each: Lost) -> Iterator[tuple[str, Path]]:
        """Yield places with a possible copy and its file, nearest first; the caller checks the hash."""
        yield "this machine's cache", self._cached(each)
        yield "this machine's workspace", self._in_workspace(each)
        for _ in self._allowed(self.store.earlier(self._key(each), self.scratch)):
            yield "an earlier version in the store", self.scratch
        for name in self._allowed(self._released(Path(each.path).suffix)):
            yield f"the release {name}", self.scratch

    def _in_workspace(self, each: Lost) -> Path:
        """Return the file, or the folder's listing, written as DVC writes it."""
        path = self.folder / each.path
        if not each.md5.endswith(DIR):
            return path
        files = sorted(file for file in path.rglob("*") if file.is_file())
        entries = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
        self.scratch.write_text(json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True))
        return self.scratch

    def _released(self, suffix: str) -> Iterator[str]:
        """Write each released file with such a name to the scratch file, and yield its release."""
        index = self.store.read(f"{releases_key(self.subject)}/{INDEX}")
        for listed in Index.model_validate_json(index.content).releases if index else []:
            key = release_key(self.subject, listed.name)
            manifest = self.store.read(f"{key}/{MANIFEST}")
            for file in Manifest.model_validate_json(manifest.content).files if manifest else []:
                if Path(file.name).suffix == suffix:
                    self.store.get(f"{key}/{file.name}", self.scratch)
                    yield listed.name

    def _allowed(self, copies: Iterator[Any]) -> Iterator[Any]:
        """Yield copies; places that these keys may not read are logged and skipped."""
        try:
            yield from copies
        except InputError as error:
            log_line(f"No copy was looked for there: {error}")

    def _note(self, change: Callable[[list[Lost]], list[Lost]]) -> None:
        changed(self.store, self._notes, Losses(lost=[]), lambda before: Losses(lost=change(before.lost)))

    def _sentence(self, lost: list[Lost]) -> str:
        shown = first_of([f"{each.path} (MD5 {each.md5}, {self._key(each)})" for each in lost], SHOWN)
        return (
            f"Damaged or missing in the store, with no sound copy found: {shown}; run `personalize` again, with "
            "photos and consent if they are among these: who has a copy sends it anew, or their stage is run again."
        )

    def _key(self, each: Lost) -> str:
        return f"subjects/{self.subject}/dvc/files/md5/{each.md5[:2]}/{each.md5[2:]}"

    def _cached(self, each: Lost) -> Path:
        return self._cache / "files" / "md5" / each.md5[:2] / each.md5[2:]

    @property
    def _cache(self) -> Path:
        return self.folder / ".dvc" / "cache"

    @property
    def _notes(self) -> str:
        return f"subjects/{self.subject}/dvc/lost.json"


@contextmanager
def _objects(settings: Settings, subject: str) -> Iterator["Objects"]:
    store, folder = open_store(settings.store), settings.workspace(subject)
    with unless_forgotten(store, subject, folder) as written:
        written.append(f"subjects/{subject}/dvc")
        (folder / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)  # what is fetched is forgotten with the workspace
        with TemporaryDirectory(dir=folder / ".dvc" / "tmp") as scratch:
            yield Objects(store, subject, folder, Path(scratch) / "object")


def _named(folder: Path) -> dict[str, str]:
    """Return the name of the object behind each path that `dvc.lock` and `.dvc` files of a workspace name."""
    stages = _yaml(folder / "dvc.lock").get("stages", {}).values()
    outs = [out for stage in stages for out in stage.get("outs", [])]
    named = {out["path"]: out["md5"] for out in outs}
    for path in sorted((folder / "data").glob("*.dvc")):
        named |= {f"data/{out['path']}": out["md5"] for out in _yaml(path)["outs"]}
    return named


def _unlock(folder: Path, names: set[str]) -> None:
    """Take the stages that have made such objects out of `dvc.lock`, so that they are run again."""
    lock = _yaml(folder / "dvc.lock")
    stages: Mapping[str, Any] = lock.get("stages", {})
    left = {name: each for name, each in stages.items() if not names & {out["md5"] for out in each.get("outs", [])}}
    if len(left) < len(stages):
        log_line(f"These stages run again, as their results are lost: {', '.join(sorted(set(stages) - set(left)))}")
        write_changed(folder / "dvc.lock", dump({**lock, "stages": left}))


def _yaml(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_trusted(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found or {}


def _is_run(path: Path) -> bool:
    """Return whether a file is a record of a run as DVC writes it, as far as DVC needs it whole to read it."""
    try:
        found = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        return False
    return isinstance(found, dict) and all("path" in out for out in found.get("outs") or [{}])


def _has(path: Path, md5: str) -> bool:
    return path.is_file() and _md5(path) == md5.removesuffix(DIR)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
