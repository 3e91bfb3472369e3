"""Copy the checkpoints of a running training to the store, so that another machine can resume it.

Only `train` takes long enough to be worth it. Its states lie in the folder in which its output is made, and name the
run that they belong to, as the index in the store does. Which run is to go on only the stage knows, which computes its
identity from what it reads; so what is fetched waits in a folder of its own for the stage to take it over.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from prefect.logging import get_run_logger
from pydantic import ValidationError

from tasks.policy import store_task
from tasks.settings import Settings
from tasks.store.s3 import ConflictError, MissingError, Store, open_store, store_errors
from tasks.workspace.tombstones import ForgottenError, unless_forgotten
from zimage.core.errors import InputError
from zimage.core.folder import aside_of, fetched_beside
from zimage.core.section import Section
from zimage.lora.files.header import LoraFileError, read_header

STAGE = "train"
RESUME = "resume/step-*.safetensors"


class Kept(Section):
    """The files of one moment of a training."""

    run: str
    """The identity of the run they belong to (see `zimage.training.checkpoint.run_identity`)."""
    last: str
    """The name of the file of its last state."""
    files: dict[str, str]
    """The SHA-256 of each, by path."""


def key_of(subject: str) -> str:
    """Return below which key the unfinished training of `subject` is kept."""
    return f"subjects/{subject}/unfinished"


class LastState(NamedTuple):
    """The last state that a training left."""

    run: str
    """The identity of its run."""
    name: str
    """Of its file; the names of one run's states sort as their steps do."""


class CheckpointMirror:
    """Copies a training's files into the store whenever there is a new checkpoint."""

    def __init__(self, settings: Settings, subject: str) -> None:
        self._store = open_store(settings.store)
        self._subject, self._workspace = subject, settings.workspace(subject)
        self._key = key_of(subject)
        self._aside = aside_of(self._workspace / "data" / STAGE)
        self._last = last_state(self._aside)
        self._whole: set[str] = set()

    def sync(self) -> None:
        """Keep what is there, if there is a new checkpoint; a store that fails costs this copy and nothing else.

        Raises:
            ForgottenError: the subject was forgotten meanwhile; nothing is kept, and the training ends.
        """
        last = last_state(self._aside)
        if last in (self._last, None):
            return
        self._last = last
        try:
            with unless_forgotten(self._store, self._subject, self._workspace) as written:
                written.append(self._key)
                self._keep(last)
        except ForgottenError:
            raise
        except _failures() as error:
            get_run_logger().warning("The checkpoint %s could not be kept in the store: %s", last.name, error)

    def _keep(self, last: LastState) -> None:
        index = _index_of(self._key)
        before = self._store.read(index)
        files = {}
        state = self._aside / "resume" / last.name
        others = sorted(path for path in self._aside.rglob("*.*") if path.is_file() and path.parent != state.parent)
        for path in [state, *others]:  # the state first: two checkpoints later it is gone
            try:
                with _as_it_is(path) as moment:
                    sha256 = hashlib.sha256(moment.read_bytes()).hexdigest()
                    self._put(sha256, moment)
            except FileNotFoundError:
                if path == state:
                    return
                continue  # it was being made, and has its name by now
            files[path.relative_to(self._aside).as_posix()] = sha256
        kept = Kept(run=last.run, last=last.name, files=files)
        self._store.compare_and_swap(index, kept.model_dump_json(indent=2).encode(), before.tag if before else None)

    def _put(self, sha256: str, path: Path) -> None:
        """Put a file, in the place of a damaged one too; once this has looked at one, it is not looked at again."""
        key = f"{self._key}/{sha256}"
        if sha256 in self._whole:
            return
        if not self._store.put_if_absent(key, path) and not self._store.holds(key, path):
            self._store.overwrite(key, path)
        self._whole.add(sha256)


@store_task("find unfinished")
def fetch_unfinished(settings: Settings, subject: str) -> None:
    """Put an unfinished training of another machine where the stage finds it, unless it is here already.

    One that is damaged or not complete in the store, or of another version, is left there: the stage goes on with what
    is here, or begins anew.

    Raises:
        InputError: it names files outside the stage's folder.
    """
    aside = aside_of(settings.workspace(subject) / "data" / STAGE)
    store = open_store(settings.store)
    found = store.read(_index_of(key_of(subject)))
    if found is None:
        return
    try:
        kept = Kept.model_validate_json(found.content)
    except ValidationError:
        get_run_logger().warning("An unfinished training in the store is of another version, and is not gone on with.")
        return
    waiting = fetched_beside(aside)
    if any(_has(folder, kept) for folder in (aside, waiting)):
        return
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in kept.files):
        raise InputError(f"{key_of(subject)}/index.json names files outside its folder; it is none of ours: delete it.")
    aside.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=aside.parent, prefix=".fetched.") as temporary:
        objects, whole = Path(temporary) / "objects", Path(temporary) / "whole"
        objects.mkdir()
        for sha256 in set(kept.files.values()):
            if not _is_whole(store, f"{key_of(subject)}/{sha256}", objects / sha256):
                get_run_logger().warning("An unfinished training was damaged in the store, and is not gone on with.")
                return
        for name, sha256 in kept.files.items():
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(objects / sha256, whole / name)
        shutil.rmtree(waiting, ignore_errors=True)
        whole.rename(waiting)
    get_run_logger().info("An unfinished training was fetched: %s", kept.last)


def forget_unfinished(settings: Settings, subject: str) -> None:
    """Remove the copy, its index first; the training has ended, and a store that fails takes nothing from it."""
    store = open_store(settings.store)
    try:
        store.delete(_index_of(key_of(subject)))
        store.delete(key_of(subject))
    except _failures() as error:
        get_run_logger().warning("What was kept of the training in the store is still there: %s", error)


def last_state(aside: Path) -> LastState | None:
    """Return the last state of the training in a folder, which has states of one run only; None where it has none."""
    for path in sorted(aside.glob(RESUME), reverse=True):
        with contextlib.suppress(LoraFileError, FileNotFoundError, KeyError):  # damaged; removed; of another version
            return LastState(read_header(path).metadata["run"], path.name)
    return None


def _has(folder: Path, kept: Kept) -> bool:
    """Return whether a folder has this state or a later one of the same run."""
    last = last_state(folder)
    return last is not None and last.run == kept.run and last.name >= kept.last


@contextmanager
def _as_it_is(path: Path) -> Iterator[Path]:
    """Yield a file with the content of one moment: weights have their name when they are whole, all else may grow."""
    if path.suffix == ".safetensors":
        yield path
        return
    with TemporaryDirectory() as temporary:
        yield Path(shutil.copyfile(path, Path(temporary) / path.name))


def _index_of(key: str) -> str:
    return f"{key}/index.json"


def _is_whole(store: Store, key: str, target: Path) -> bool:
    """Return whether the object is there and is what its name says, fetched to `target`."""
    try:
        store.get(key, target)
    except MissingError:
        return False
    return hashlib.sha256(target.read_bytes()).hexdigest() == key.rpartition("/")[2]


def _failures() -> tuple[type[Exception], ...]:
    """Return what a store raises that is away, unwell, changed by others, or closed to these keys."""
    return ConflictError, InputError, *store_errors()
