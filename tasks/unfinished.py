"""Training that has not ended yet, kept in the store so that another machine can go on from its last checkpoint.

Only `train` takes long enough to be worth it. Its checkpoints lie in the folder in which its output is made; whether
they belong to the run that finds them, the stage itself decides by their run's hash.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from prefect.logging import get_run_logger

from tasks.policy import store_task
from tasks.settings import Settings
from tasks.storage import ConflictError, MissingError, Store, open_store, store_errors
from tasks.tombstones import ForgottenError, unless_forgotten
from zimage.errors import InputError
from zimage.folder import aside_of
from zimage.section import Section

STAGE = "train"
RESUME = "resume/step-*.safetensors"


class Kept(Section):
    """The files of one moment of a training."""

    last: str
    """The checkpoint that was the last."""
    files: dict[str, str]
    """The SHA-256 of each, by path."""


def key_of(subject: str) -> str:
    """Return below which key the unfinished training of `subject` is kept."""
    return f"subjects/{subject}/unfinished"


class Keeper:
    """Copies a training's files into the store whenever there is a new checkpoint."""

    def __init__(self, settings: Settings, subject: str) -> None:
        self._store = open_store(settings.store)
        self._subject, self._workspace = subject, settings.workspace(subject)
        self._key = key_of(subject)
        self._aside = aside_of(self._workspace / "data" / STAGE)
        self._last = last_checkpoint(self._aside)
        self._whole: set[str] = set()

    def look(self) -> None:
        """Keep what is there, if there is a new checkpoint; a store that fails costs this copy and nothing else.

        Raises:
            ForgottenError: the subject was forgotten meanwhile; nothing is kept, and the training ends.
        """
        last = last_checkpoint(self._aside)
        if last in (self._last, ""):
            return
        self._last = last
        try:
            with unless_forgotten(self._store, self._subject, self._workspace) as written:
                written.append(self._key)
                self._keep(last)
        except ForgottenError:
            raise
        except _failures() as error:
            get_run_logger().warning("The checkpoint %s could not be kept in the store: %s", last, error)

    def _keep(self, last: str) -> None:
        index = _index_of(self._key)
        before = self._store.read(index)
        files = {}
        state = self._aside / "resume" / last
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
        kept = Kept(last=last, files=files)
        self._store.swap(index, kept.model_dump_json(indent=2).encode(), before.tag if before else None)

    def _put(self, sha256: str, path: Path) -> None:
        """Put a file, in the place of a damaged one too; once this has looked at one, it is not looked at again."""
        key = f"{self._key}/{sha256}"
        if sha256 in self._whole:
            return
        if not self._store.put_if_absent(key, path) and not self._store.holds(key, path):
            self._store.mend(key, path)
        self._whole.add(sha256)


@store_task("find unfinished")
def fetch_unfinished(settings: Settings, subject: str) -> None:
    """Put an unfinished training of another machine where the stage looks for its own, if that is not there.

    One that is damaged or not complete in the store is left there: the stage goes on with what is here, or begins anew.

    Raises:
        InputError: it names files outside the stage's folder.
    """
    aside = aside_of(settings.workspace(subject) / "data" / STAGE)
    store = open_store(settings.store)
    found = store.read(_index_of(key_of(subject)))
    if found is None:
        return
    kept = Kept.model_validate_json(found.content)
    if last_checkpoint(aside) >= kept.last:
        return
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in kept.files):
        raise InputError(f"{key_of(subject)}/index.json names files outside its folder; it is none of ours: delete it.")
    aside.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=aside.parent, prefix=".fetched.") as temporary:
        fetched = Path(temporary)
        for sha256 in set(kept.files.values()):
            if not _is_whole(store, f"{key_of(subject)}/{sha256}", fetched / sha256):
                get_run_logger().warning("An unfinished training was damaged in the store, and is not gone on with.")
                return
        for name, sha256 in sorted(kept.files.items(), key=lambda one: PurePosixPath(one[0]).match(RESUME)):
            part = fetched / "part"
            shutil.copyfile(fetched / sha256, part)
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            part.replace(aside / name)  # the state last, and at once: where it is, all is taken to be
    get_run_logger().info("An unfinished training was fetched: %s", kept.last)


def forget_unfinished(settings: Settings, subject: str) -> None:
    """Remove the copy, its index first; the training has ended, and a store that fails takes nothing from it."""
    store = open_store(settings.store)
    try:
        store.delete(_index_of(key_of(subject)))
        store.delete(key_of(subject))
    except _failures() as error:
        get_run_logger().warning("What was kept of the training in the store is still there: %s", error)


def last_checkpoint(aside: Path) -> str:
    """Return the name of the last checkpoint of a training, or ""; names sort as their steps do."""
    return max((path.name for path in aside.glob(RESUME)), default="")


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
