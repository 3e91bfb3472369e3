"""Tombstones of forgotten subjects: they count erasures, hold nothing of the person, and stop late writers.

A workspace stores how many erasures of its subject had begun when it was created. If the tombstone counts more, the
workspace is a leftover, and nothing of it is uploaded. Every sender checks this before and after an upload: an erasure
that begins after the second check finds the uploaded objects by itself.

The senders check, not the store object of a phase: a store sees one object at a time and would read the tombstone twice
for each, while a sender reads it twice for all objects of a release, a state or a page, and knows which of them to
delete again.
"""

import datetime
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.settings import DEMO
from tasks.store.protocol import Store, StoreError, changed, clear
from tasks.store.releases import Document
from tasks.workspace.workspace import write_changed
from zimage.core.errors import InputError
from zimage.core.folder import make_private

MARK = Path(".dvc", "forgettings")  # in a workspace


class ForgottenError(InputError):
    """The subject is being forgotten, or was."""


class Counts(Document):
    """Counts of deleted things."""

    files: int = 0
    objects: int = 0
    versions: int = 0
    uploads: int = 0
    bytes: int = 0
    runs: int = 0
    artifacts: int = 0
    repositories: int = 0
    """On the hub."""


class Forgotten(Document):
    """One forgetting; without an end it was interrupted, or is under way."""

    begun_at: datetime.datetime
    finished_at: datetime.datetime | None = None
    counts: Counts


class Tombstone(Document):
    """All forgettings of one pseudonym, which is stored as its SHA-256 only."""

    subject_sha256: str
    forgotten: list[Forgotten]


def key_of(subject: str) -> str:
    """Return the key of a subject's tombstone."""
    return f"tombstones/{_hash(subject)}.json"


def begin(store: Store, subject: str, counts: Counts) -> None:
    """Record that an erasure begins, unless an interrupted one continues; nothing is published after that."""

    def begun(before: Tombstone) -> Tombstone:
        if _is_open(before):
            return before
        new = Forgotten(begun_at=_now(), counts=counts)
        return before.model_copy(update={"forgotten": [*before.forgotten, new]})

    _change(store, subject, begun)


def finish(store: Store, subject: str) -> Tombstone:
    """Record that the erasure has ended, and return the tombstone."""

    def finished(before: Tombstone) -> Tombstone:
        *earlier, last = before.forgotten
        ended = last if last.finished_at else last.model_copy(update={"finished_at": _now()})
        return before.model_copy(update={"forgotten": [*earlier, ended]})

    return _change(store, subject, finished)


def refuse_while_forgetting(store: Store, subject: str) -> None:
    """Pass unless an erasure of the subject has begun and not ended.

    Raises:
        InputError: it has; an object stored now might remain.
    """
    _ended(store, subject)


def admit(store: Store, subject: str, workspace: Path) -> None:
    """Allow work in a workspace, and store in it how often its subject had been erased.

    Raises:
        InputError: the subject is being forgotten, or was since the workspace was made.
    """
    if subject == DEMO:
        return
    forgotten = _ended(store, subject)
    if (workspace / "data").exists() or (workspace / ".dvc" / "config").exists():
        _refuse_leftover(workspace, forgotten)
    make_private(workspace)
    (workspace / MARK).parent.mkdir(parents=True, exist_ok=True)
    write_changed(workspace / MARK, f"{len(forgotten)}\n")


def refuse_if_forgotten(store: Store, subject: str, workspace: Path) -> None:
    """Pass unless an erasure of the subject has begun since its workspace was created.

    Raises:
        InputError: it was.
    """
    _refuse_leftover(workspace, _ended(store, subject))


@contextmanager
def unless_forgotten(store: Store, subject: str, workspace: Path) -> Iterator[list[str]]:
    """Run the block, which uploads data of a workspace; if the subject is forgotten meanwhile, delete the uploads.

    The block gets a list, and adds the key below which it is about to write: all there is of it in the store then came
    after the forgetting.

    Raises:
        InputError: the subject was forgotten before or meanwhile, and whether something is left of what was sent.
    """
    written: list[str] = []
    with taking_back(store, subject, workspace, lambda forgotten: delete_sent(store, written, forgotten)):
        yield written


@contextmanager
def taking_back(
    store: Store, subject: str, workspace: Path, take_back: Callable[[ForgottenError], None]
) -> Iterator[None]:
    """Run the block, which uploads data of a workspace; if the subject is forgotten meanwhile, call `take_back`.

    Raises:
        ForgottenError: the subject was forgotten before or meanwhile.
    """
    refuse_if_forgotten(store, subject, workspace)
    try:
        yield
    finally:
        try:
            refuse_if_forgotten(store, subject, workspace)
        except ForgottenError as forgotten:
            take_back(forgotten)
            raise


def delete_sent(store: Store, written: list[str], forgotten: ForgottenError) -> None:
    """Delete what was written of a subject that was forgotten.

    Raises:
        InputError: it could not be deleted; these keys may not, or the store is away.
    """
    try:
        for key in written:
            clear(store, key)
    except (InputError, StoreError, OSError) as error:
        raise ForgottenError(
            f"{forgotten} What was sent meanwhile could not be taken back ({error}); run `forget` again."
        ) from None


def _ended(store: Store, subject: str) -> list[Forgotten]:
    """Return all forgettings of a subject.

    Raises:
        InputError: the last one has not ended.
    """
    found = store.read(key_of(subject))
    if found is None:
        return []
    tombstone = Tombstone.model_validate_json(found.content)
    if _is_open(tombstone):
        raise ForgottenError(
            "This subject is being forgotten, or that was interrupted; finish it with `python -m flows forget` first."
        )
    return tombstone.forgotten


def _refuse_leftover(workspace: Path, forgotten: list[Forgotten]) -> None:
    if _known(workspace, forgotten) < len(forgotten):
        raise ForgottenError(
            f"The subject of {workspace} was forgotten after that was made, so nothing of it is stored: remove that "
            "folder, and begin with photos and consent if the person has agreed anew."
        )


def _known(workspace: Path, forgotten: list[Forgotten]) -> int:
    """Return how many erasures are older than a workspace, by its mark or, without one, by its age."""
    mark, config = workspace / MARK, workspace / ".dvc" / "config"
    if mark.is_file():
        return int(mark.read_text(encoding="utf-8"))
    if not config.is_file():
        return 0
    made = datetime.datetime.fromtimestamp(config.stat().st_mtime, datetime.UTC)
    return sum(each.finished_at is not None and each.finished_at < made for each in forgotten)


def _change(store: Store, subject: str, change: Callable[[Tombstone], Tombstone]) -> Tombstone:
    fresh = Tombstone(subject_sha256=_hash(subject), forgotten=[])
    return changed(store, key_of(subject), fresh, change)


def _is_open(tombstone: Tombstone) -> bool:
    return bool(tombstone.forgotten) and tombstone.forgotten[-1].finished_at is None


def _hash(subject: str) -> str:
    return hashlib.sha256(subject.encode()).hexdigest()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
