"""Channels `staging` and `production`: pointers to releases, moved by compare-and-swap, with their history.

A reader that follows a pointer finds a whole release at every instant: a pointer is only ever set to a release whose
manifest is there, and that is written last.
"""

import datetime
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal
from uuid import uuid4

from tasks.store.protocol import ForbiddenError, Store, changed
from tasks.store.releases import MANIFEST, Document, Manifest, Published, download, manifest_of, published, releases
from tasks.store.signature import public_key
from tasks.transfer.staleness import consents
from tasks.workspace.tombstones import refuse_while_forgetting
from zimage.consent import require
from zimage.core.errors import InputError
from zimage.permission import today

Name = Literal["staging", "production"]
SHOWN = 10  # releases that a refusal names


class Move(Document):
    """One move of a pointer."""

    id: str
    """Unlike that of all other moves, so that a move whose answer was lost is found again and not made twice."""
    at: datetime.datetime
    kind: Literal["promote", "rollback"]
    release: str


class Channel(Document):
    """A pointer with the history of its moves; the last move is its value."""

    history: list[Move]

    @property
    def release(self) -> str:
        """Return the name of the release it points to."""
        return self.history[-1].release


def channel_key(subject: str, name: Name) -> str:
    """Return the key of a pointer."""
    return f"subjects/{subject}/channels/{name}.json"


def channel(store: Store, subject: str, name: Name) -> Channel | None:
    """Return a pointer; None before the first promotion."""
    found = store.read(channel_key(subject, name))
    return None if found is None else Channel.model_validate_json(found.content)


def promote(
    store: Store,
    subject: str,
    name: Name,
    release: str = "",
    *,
    workspace: Path | None = None,
    accept_provisional: bool = False,
) -> Move:
    """Point a channel to a release (the newest, if none is named) and return the move; the last one, if it was there.

    Args:
        store: Where releases and the state are.
        subject: The subject.
        name: The channel.
        release: A name; "" for the newest.
        workspace: The subject's workspace on this machine, if any; the consent in it counts too.
        accept_provisional: Let a provisional release into production.

    Raises:
        InputError: there is no such release, the consent has ended or excludes publication, or it is provisional and
            production is asked for.
    """
    manifest = promotable(store, subject, name, release, workspace=workspace, accept_provisional=accept_provisional)
    move = _new("promote", manifest.release)
    return _moved(store, subject, name, lambda history: None if _at(history) == manifest.release else move)


def promotable(
    store: Store, subject: str, name: Name, release: str, *, workspace: Path | None, accept_provisional: bool
) -> Manifest:
    """Return the manifest of a release (the newest, if none is named) that `promote` would take, by the same arguments.

    Raises:
        InputError: see `promote`.
    """
    refuse_while_forgetting(store, subject)
    manifest = _release(store, subject, release)
    _refuse_without_consent(store, subject, manifest, workspace)
    _check(manifest, name, accept_provisional=accept_provisional)
    return manifest


def fetch_current(
    store: Store, subject: str, name: Name, folder: Path, *, workspace: Path | None = None, key: Path | None = None
) -> Published:
    """Write the files of the release that a channel points to into `folder`, and return it.

    Args:
        store: Where releases and the state are.
        subject: The subject.
        name: The channel.
        folder: Made where it is not there; what it holds of the release already is checked and not fetched again.
        workspace: The subject's workspace on this machine, if any; the consent in it counts too.
        key: A PEM file with the public key of who must have signed the release; None if anybody may have.

    Raises:
        InputError: nothing was promoted, the consent has ended or excludes publication, a file is damaged, or the
            release was not signed with this key; then no folder is made.
    """
    public = public_key(key) if key else None
    refuse_while_forgetting(store, subject)
    pointer = channel(store, subject, name)
    if pointer is None:
        raise InputError(
            f"{subject} has no release in {name}; `python -m flows promote --subject {subject} --channel {name}` puts "
            "one there."
        )
    release = published(store, subject, pointer.release)
    if release is None:
        raise _no_release(store, subject, pointer.release)
    if key:
        release.require_signer(public)
    try:
        _refuse_without_consent(store, subject, release.manifest, workspace)
    except ForbiddenError:  # a reader's keys open releases, and not what is known of a person
        _refuse_after_the_last_day(release.manifest)
    download(store, release, folder)
    return release


def rollback(store: Store, subject: str, name: Name, *, workspace: Path | None = None) -> Move:
    """Point a channel to the release before and return the move; done twice, it goes back two.

    `workspace` is the subject's on this machine, if any; the consent in it counts too.

    Raises:
        InputError: there is none before, or it may not be used any more.
    """
    refuse_while_forgetting(store, subject)
    fresh = uuid4().hex

    def back(history: Sequence[Move]) -> Move:
        before = standing(history)[:-1]
        if not before:
            raise InputError(f"{subject} has no release before this one in {name}; there is nothing to roll back to.")
        manifest = _release(store, subject, before[-1])
        _refuse_without_consent(store, subject, manifest, workspace)
        _check(manifest, name, accept_provisional=True)
        return _new("rollback", before[-1]).model_copy(update={"id": fresh})

    return _moved(store, subject, name, back)


def standing(history: Sequence[Move]) -> list[str]:
    """Return the releases that are not rolled back, the current one last."""
    stack: list[str] = []
    for move in history:
        if move.kind == "promote":
            stack.append(move.release)
        else:
            stack.pop()
    return stack


def _moved(store: Store, subject: str, name: Name, decide: Callable[[Sequence[Move]], Move | None]) -> Move:
    """Move the pointer as `decide` says, which returns None if the last move is right already; return the move."""
    tried = ""

    def moved(channel: Channel) -> Channel:
        nonlocal tried
        if any(move.id == tried for move in channel.history):  # it was made, and only the answer was lost
            return channel
        move = decide(channel.history)
        if move is None:
            return channel
        refuse_while_forgetting(store, subject)
        _release(store, subject, move.release)
        tried = move.id
        return Channel(history=[*channel.history, move])

    history = changed(store, channel_key(subject, name), Channel(history=[]), moved).history
    made = next((move for move in history if move.id == tried), history[-1])
    _take_back_if_forgotten(store, subject, name)
    return made


def _take_back_if_forgotten(store: Store, subject: str, name: Name) -> None:
    """Pass unless all was forgotten between the last look and the move, by somebody who had looked at pointers before.

    Raises:
        InputError: it was; the pointer is gone.
    """
    now = channel(store, subject, name)
    if now is not None and manifest_of(store, subject, now.release) is None:
        store.delete(channel_key(subject, name))
        raise InputError("This subject was forgotten meanwhile; publish again first, if it is new.")


def _release(store: Store, subject: str, name: str) -> Manifest:
    if not name:
        newest = next(releases(store, subject), None)
        if newest is None:
            raise InputError(f"{subject} has no release yet; run the flow `publish` first.")
        return newest
    manifest = manifest_of(store, subject, name)
    if manifest is None:
        raise _no_release(store, subject, name)
    return manifest


def _no_release(store: Store, subject: str, name: str) -> InputError:
    newest_first = [each.release for each in islice(releases(store, subject), SHOWN + 1)]
    there = ", ".join([*reversed(newest_first[:SHOWN])]) or "none"
    earlier = " and earlier ones" if len(newest_first) > SHOWN else ""
    return InputError(f"{subject} has no release {name} with a {MANIFEST}; there are: {there}{earlier}.")


def _refuse_without_consent(store: Store, subject: str, manifest: Manifest, workspace: Path | None) -> None:
    """Pass if the subject agrees to publication today; the release's copy counts where nothing newer is known."""
    known = consents(store, subject, workspace)
    for consent in known:
        require(consent, "publication", today())
    if not known:
        _refuse_after_the_last_day(manifest)


def _refuse_after_the_last_day(manifest: Manifest) -> None:
    """Pass if the consent that the release was published with holds today."""
    if manifest.consent.expires < today():
        raise InputError(
            f"The consent behind {manifest.release} expired on {manifest.consent.expires}; ask for a new one and "
            "publish again, or run the flow `forget`."
        )


def _check(manifest: Manifest, name: Name, *, accept_provisional: bool) -> None:
    if name == "production" and manifest.verdict != "pass" and not accept_provisional:
        raise InputError(
            f"{manifest.release} is {manifest.verdict}: {manifest.why} It may be in staging; "
            "`--accept-provisional` puts it into production all the same."
        )


def _at(history: Sequence[Move]) -> str:
    return history[-1].release if history else ""


def _new(kind: Literal["promote", "rollback"], release: str) -> Move:
    return Move(id=uuid4().hex, at=datetime.datetime.now(datetime.UTC), kind=kind, release=release)
