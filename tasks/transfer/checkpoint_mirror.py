"""Copy the checkpoints of a running training to the store, so that another machine can resume it.

Only `train` takes long enough to be worth it. Its resume states lie in the folder in which its output is made, and name
the run that they belong to, as the index in the store does. Only the stage knows which run to resume, as it computes
the run's identity from its inputs; so a downloaded state waits in a separate folder until the stage takes it over.
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


class CheckpointIndex(Section):
    """The files of a training at one checkpoint."""

    run: str
    """The identity of the run they belong to (see `zimage.training.checkpoint.run_identity`)."""
    last: str
    """The name of the file of its last state."""
    files: dict[str, str]
    """The SHA-256 of each, by path."""


def key_of(subject: str) -> str:
    """Return the key prefix of the unfinished training of `subject`."""
    return f"subjects/{subject}/unfinished"


class LastState(NamedTuple):
    """The last resume state of a training."""

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
        """Upload the training's files if there is a new checkpoint; if the store fails, only this copy is lost.

        Raises:
            ForgottenError: the subject was forgotten meanwhile; nothing stays in the store, and the training ends.
        """
        last = last_state(self._aside)
        if last in (self._last, None):
            return
        self._last = last
        try:
            with unless_forgotten(self._store, self._subject, self._workspace) as written:
                written.append(self._key)
                self._upload(last)
        except ForgottenError:
            raise
        except _failures() as error:
            get_run_logger().warning("The checkpoint %s could not be uploaded to the store: %s", last.name, error)

    def _upload(self, last: LastState) -> None:
        index = _index_of(self._key)
        before = self._store.read(index)
        files = {}
        state = self._aside / "resume" / last.name
        others = sorted(path for path in self._aside.rglob("*.*") if path.is_file() and path.parent != state.parent)
        for path in [state, *others]:  # the state first: two checkpoints later it is gone
            try:
                with _unchanging(path) as moment:
                    sha256 = hashlib.sha256(moment.read_bytes()).hexdigest()
                    self._put(sha256, moment)
            except FileNotFoundError:
                if path == state:
                    return
                continue  # a temporary name; it has been renamed
            files[path.relative_to(self._aside).as_posix()] = sha256
        new = CheckpointIndex(run=last.run, last=last.name, files=files)
        self._store.compare_and_swap(index, new.model_dump_json(indent=2).encode(), before.tag if before else None)

    def _put(self, sha256: str, path: Path) -> None:
        """Upload a file unless the store has it whole; a damaged object is overwritten. Each is checked once."""
        key = f"{self._key}/{sha256}"
        if sha256 in self._whole:
            return
        if not self._store.put_if_absent(key, path) and not self._store.holds(key, path):
            self._store.overwrite(key, path)
        self._whole.add(sha256)


@store_task("find unfinished")
def fetch_unfinished(settings: Settings, subject: str) -> None:
    """Download the unfinished training of another machine to where the stage looks for it, unless it is here already.

    One that is damaged or incomplete in the store, or of another version, stays there: the stage resumes from what is
    here, or starts from the beginning.

    Raises:
        InputError: it names files outside the stage's folder.
    """
    aside = aside_of(settings.workspace(subject) / "data" / STAGE)
    store = open_store(settings.store)
    found = store.read(_index_of(key_of(subject)))
    if found is None:
        return
    try:
        index = CheckpointIndex.model_validate_json(found.content)
    except ValidationError:
        get_run_logger().warning("The unfinished training in the store is of another version; it is not resumed.")
        return
    waiting = fetched_beside(aside)
    if any(_has(folder, index) for folder in (aside, waiting)):
        return
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in index.files):
        raise InputError(f"{key_of(subject)}/index.json names files outside its folder; it is not ours: delete it.")
    aside.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=aside.parent, prefix=".fetched.") as temporary:
        objects, whole = Path(temporary) / "objects", Path(temporary) / "whole"
        objects.mkdir()
        for sha256 in set(index.files.values()):
            if not _is_whole(store, f"{key_of(subject)}/{sha256}", objects / sha256):
                get_run_logger().warning("The unfinished training in the store is damaged and is not resumed.")
                return
        for name, sha256 in index.files.items():
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(objects / sha256, whole / name)
        shutil.rmtree(waiting, ignore_errors=True)
        whole.rename(waiting)
    get_run_logger().info("An unfinished training was fetched: %s", index.last)


def forget_unfinished(settings: Settings, subject: str) -> None:
    """Delete the copy, its index first. The training has ended, so a store that fails is only reported."""
    store = open_store(settings.store)
    try:
        store.delete(_index_of(key_of(subject)))
        store.delete(key_of(subject))
    except _failures() as error:
        get_run_logger().warning("The unfinished training could not be deleted from the store: %s", error)


def last_state(aside: Path) -> LastState | None:
    """Return the last state of the training in a folder, which has states of one run only; None where it has none."""
    for path in sorted(aside.glob(RESUME), reverse=True):
        with contextlib.suppress(LoraFileError, FileNotFoundError, KeyError):  # damaged; removed; of another version
            return LastState(read_header(path).metadata["run"], path.name)
    return None


def _has(folder: Path, index: CheckpointIndex) -> bool:
    """Return whether a folder has this state or a later one of the same run."""
    last = last_state(folder)
    return last is not None and last.run == index.run and last.name >= index.last


@contextmanager
def _unchanging(path: Path) -> Iterator[Path]:
    """Yield a file whose content does not change: weights, which are whole, or a copy of another file."""
    if path.suffix == ".safetensors":
        yield path
        return
    with TemporaryDirectory() as temporary:
        yield Path(shutil.copyfile(path, Path(temporary) / path.name))


def _index_of(key: str) -> str:
    return f"{key}/index.json"


def _is_whole(store: Store, key: str, target: Path) -> bool:
    """Download an object to `target` and return whether its SHA-256 is the one in its key."""
    try:
        store.get(key, target)
    except MissingError:
        return False
    return hashlib.sha256(target.read_bytes()).hexdigest() == key.rpartition("/")[2]


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors of a store that is unreachable, failing, changed by others, or forbidden to these keys."""
    return ConflictError, InputError, *store_errors()
