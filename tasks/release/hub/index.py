"""Record in the store which Hugging Face repositories hold releases of a subject, before anything is uploaded."""

from typing import Literal

from tasks.store.protocol import Store, changed
from tasks.store.releases import Document

Origin = Literal["making", "made", "found"]


class HubRecord(Document):
    """A repository to which releases of a subject were, or were going to be, uploaded."""

    name: str
    """`owner/name`."""
    endpoint: str
    """The hub's address; "" for huggingface.co."""
    origin: Origin
    """making: nobody knows yet whether it was made; made: by publishing; found: somebody else's, used by publishing."""


class HubIndex(Document):
    """All repositories of a subject; read by its key, since listings may lag behind."""

    repositories: list[HubRecord]


def index_key(subject: str) -> str:
    """Return the key of a subject's record of repositories."""
    return f"subjects/{subject}/hub.json"


def found(store: Store, subject: str) -> list[HubRecord]:
    """Return the repositories with releases of a subject, as far as the store knows; nothing is asked of the hub."""
    index = store.read(index_key(subject))
    return HubIndex.model_validate_json(index.content).repositories if index else []


def lines(records: list[HubRecord]) -> list[str]:
    """Return the listing of repositories for a person."""
    ours = {"made": "made by publishing: is deleted", "making": "perhaps made by publishing", "found": "not made by us"}
    return [f"hub        {each.name}, {ours[each.origin]}" for each in records] or ["hub        none"]


def note(store: Store, subject: str, record: HubRecord) -> None:
    """Replace the record of a repository."""
    changed(store, index_key(subject), HubIndex(repositories=[]), lambda index: _with(index, record, record))


def take_back(store: Store, subject: str, record: HubRecord, before: HubRecord | None) -> None:
    """Restore the record of a repository from before `record`, or delete it if there was none."""
    changed(store, index_key(subject), HubIndex(repositories=[]), lambda index: _with(index, record, before))


def _with(index: HubIndex, place: HubRecord, record: HubRecord | None) -> HubIndex:
    if record in index.repositories:
        return index
    others = [each for each in index.repositories if (each.name, each.endpoint) != (place.name, place.endpoint)]
    return HubIndex(repositories=[*others, record] if record else others)
