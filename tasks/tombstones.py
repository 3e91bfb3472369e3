"""What remains of a forgotten subject: that something was forgotten, when and how much; nothing of the person."""

import datetime
import hashlib
from collections.abc import Callable

from tasks.release import Part
from tasks.store import Store, changed
from zimage.errors import InputError


class Counts(Part):
    """How much was forgotten."""

    files: int = 0
    objects: int = 0
    versions: int = 0
    uploads: int = 0
    bytes: int = 0
    runs: int = 0
    artifacts: int = 0
    repositories: int = 0
    """On the hub."""


class Forgotten(Part):
    """One forgetting; without an end it was interrupted, or is under way."""

    begun_at: datetime.datetime
    finished_at: datetime.datetime | None = None
    counts: Counts


class Tombstone(Part):
    """All forgettings of one pseudonym, which is kept as its SHA-256 only."""

    subject_sha256: str
    forgotten: list[Forgotten]


def key_of(subject: str) -> str:
    """Return where the tombstone of a subject lies."""
    return f"tombstones/{_hash(subject)}.json"


def begin(store: Store, subject: str, counts: Counts) -> None:
    """Write that a forgetting has begun, unless an interrupted one goes on; from then on nothing is published."""

    def begun(before: Tombstone) -> Tombstone:
        if _is_open(before):
            return before
        new = Forgotten(begun_at=_now(), counts=counts)
        return before.model_copy(update={"forgotten": [*before.forgotten, new]})

    _change(store, subject, begun)


def finish(store: Store, subject: str) -> Tombstone:
    """Write that the forgetting which was begun has ended; return the tombstone."""

    def finished(before: Tombstone) -> Tombstone:
        *earlier, last = before.forgotten
        ended = last if last.finished_at else last.model_copy(update={"finished_at": _now()})
        return before.model_copy(update={"forgotten": [*earlier, ended]})

    return _change(store, subject, finished)


def refuse_while_forgetting(store: Store, subject: str) -> None:
    """Pass unless a forgetting of the subject was begun and not ended.

    Raises:
        InputError: it was; what would be stored now might stay.
    """
    found = store.read(key_of(subject))
    if found is not None and _is_open(Tombstone.model_validate_json(found.content)):
        raise InputError(
            "This subject is being forgotten, or that was interrupted; finish it with `python -m flows forget` first."
        )


def _change(store: Store, subject: str, change: Callable[[Tombstone], Tombstone]) -> Tombstone:
    fresh = Tombstone(subject_sha256=_hash(subject), forgotten=[])
    return changed(store, key_of(subject), fresh, change)


def _is_open(tombstone: Tombstone) -> bool:
    return bool(tombstone.forgotten) and tombstone.forgotten[-1].finished_at is None


def _hash(subject: str) -> str:
    return hashlib.sha256(subject.encode()).hexdigest()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
