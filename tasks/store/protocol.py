"""The protocol of a store: a few operations, and objects that are absent or whole at every instant.

Keys are relative, with `/` between their parts. No part begins with a dot: such names are a store's own.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel

from zimage.core.errors import InputError

MAX_SMALL_BYTES = 64 * 2**20  # of what is read into memory: states, pointers, manifests
MAX_FILE_BYTES = 64 * 2**30  # of what is fetched to disk; the largest LoRA has some GB
MAX_KEY_BYTES = 900  # S3 takes 1024 with the prefix
TRIES = 20  # of a change that others are first with
LISTINGS = 10  # of what is to be deleted

Document = TypeVar("Document", bound=BaseModel)


class ConflictError(RuntimeError):
    """Somebody else wrote in between; read again and decide again."""


class StoreError(RuntimeError):
    """The store did not do what was asked, and trying again later may help; what it did before stays."""


class MissingError(InputError):
    """There is no such object."""


class ForbiddenError(InputError):
    """These keys may not do that."""


@dataclass(frozen=True)
class Stored:
    """An object's content with the tag of this very version of it."""

    content: bytes
    tag: str


@dataclass(frozen=True)
class Inventory:
    """What lies below a key.

    Args:
        objects: Objects a reader finds.
        versions: All versions of them and of deleted ones, with the marks of deletions.
        uploads: Uploads that were begun and not ended.
        bytes: Of all versions.
    """

    objects: int = 0
    versions: int = 0
    uploads: int = 0
    bytes: int = 0

    def __add__(self, other: "Inventory") -> "Inventory":
        """Return what lies at both places."""
        return Inventory(
            self.objects + other.objects,
            self.versions + other.versions,
            self.uploads + other.uploads,
            self.bytes + other.bytes,
        )

    @property
    def is_empty(self) -> bool:
        """Return whether nothing is left, not even of what was deleted before."""
        return not (self.objects or self.versions or self.uploads)


class Store(Protocol):
    """What both kinds of store can do."""

    @property
    def listing_lag_s(self) -> float:
        """How far a listing may lag behind what was written or deleted; 0 where it never does."""
        ...

    @property
    def link_max_s(self) -> int:
        """For how long a link may hold."""
        ...

    def require_usable(self, key: str) -> None:
        """Pass if the store keeps its promises; asked before the first photo of a subject is stored.

        Args:
            key: Of an object that is about to be written and does not exist yet.

        Raises:
            InputError: the store would overwrite what others wrote, or could not delete all there is of a subject.
        """
        ...

    def put_if_absent(self, key: str, source: Path) -> bool:
        """Store a file under `key` and return True; return False, and change nothing, where the key is taken."""
        ...

    def link_if_absent(self, key: str, source: Path) -> None:
        """Store a file that nobody writes again by a hard link; change nothing where that fails or the key is taken."""
        ...

    def holds(self, key: str, source: Path) -> bool:
        """Return whether the object is, byte for byte, the file `source`."""
        ...

    def overwrite(self, key: str, source: Path) -> None:
        """Put `source` in the place of an object that is damaged, or missing from a whole that was begun."""
        ...

    def get(self, key: str, target: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """Write the object to the file `target`, whole or not at all.

        Raises:
            MissingError: there is no such object.
            InputError: it is larger than `max_bytes`.
        """
        ...

    def read(self, key: str) -> Stored | None:
        """Return a small object, or None where the key is free."""
        ...

    def compare_and_swap(self, key: str, content: bytes, tag: str | None) -> str:
        """Replace the version `tag` of a small object (None: there is none yet) and return the new version's tag.

        Raises:
            ConflictError: the object is no longer that version.
        """
        ...

    def keys(self, below: str) -> list[str]:
        """Return the keys below the folder-like key `below` (all with ""), sorted."""
        ...

    def list_children(self, below: str) -> list[str]:
        """Return the first parts of the keys below the folder-like key `below`, sorted; nothing deeper is looked at."""
        ...

    def stamps(self, below: str) -> dict[str, str]:
        """Return, for each key below `below`, something that changes when the object does; none is opened."""
        ...

    def is_stamped(self, key: str, tag: str, stamp: str) -> bool:
        """Return whether the version `tag` of an object, as it was just read, surely is the one with this stamp."""
        ...

    def sizes(self, below: str) -> dict[str, int]:
        """Return the size in bytes of each object below `below`, by its key; none is opened."""
        ...

    def inventory(self, below: str) -> Inventory:
        """Return what lies at `below` and below it, deleted versions included."""
        ...

    def earlier(self, key: str, target: Path) -> Iterator[None]:
        """Write each version of the object but the latest to `target`, the newest first; if the store has versions."""
        ...

    def delete(self, below: str, *, only: Callable[[str], bool] = lambda _: True) -> int:
        """Delete every version of the object `below` and of all below it; return how many versions there were.

        Args:
            below: A key.
            only: Whether the objects with this key are deleted, and not left.
        """
        ...

    def link(self, key: str, *, seconds: int) -> str:
        """Return an address that opens this one object for a short while."""
        ...


def changed(store: Store, key: str, fresh: Document, change: Callable[[Document], Document]) -> Document:
    """Return the document at `key` as `change` left it, written by compare-and-swap; not written if it left it so.

    Args:
        store: Where it is.
        key: Of a small JSON object.
        fresh: The document where the key is free.
        change: Gets the document as it stands, and is asked again whenever somebody else wrote in between.

    Raises:
        StoreError: somebody else did each time.
    """
    for _ in range(TRIES):
        found = store.read(key)
        before = type(fresh).model_validate_json(found.content) if found else fresh
        after = change(before)
        if found and after == before:
            return before
        try:
            store.compare_and_swap(key, after.model_dump_json(indent=2).encode(), found.tag if found else None)
        except ConflictError:
            continue
        return after
    raise StoreError(f"{key} was changed by others {TRIES} times in a row; run again.")


def clear(store: Store, *below: str) -> None:
    """Delete every version of the objects `below` and of all below them.

    It is done when nothing is listed so long after that a listing which lags behind would have caught up.

    Raises:
        StoreError: the listing is not empty after many tries.
    """
    left = list(below)
    for _ in range(LISTINGS):
        for key in left:
            store.delete(key)
        time.sleep(store.listing_lag_s)
        left = [key for key in left if not store.inventory(key).is_empty]
        if not left:
            return
    raise StoreError(f"The store still lists {store.inventory(left[0])} of the subject; run again.")


def checked_key(key: str) -> str:
    """Return a key that is one.

    Raises:
        InputError: it could mean something else than it says: empty parts, parts that begin with a dot, control
            characters, or too many characters.
    """
    parts = key.split("/")
    sound = all(part and not part.startswith(".") and part.isprintable() for part in parts) and "\\" not in key
    if not sound or len(key.encode()) > MAX_KEY_BYTES:
        raise InputError(f"`{key[:80]!r}` is no key of a store; keys are plain names joined by single slashes.")
    return key


def as_folder(key: str) -> str:
    """Return `key` with a slash at its end, so that `ada` does not mean `adam` too."""
    return f"{key.rstrip('/')}/" if key else ""
