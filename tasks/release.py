"""What a release is, where it lies, and reading one: a folder-like key whose manifest was written last.

`subjects/<subject>/releases/<n>-<hash>/` is a release if its manifest is there, and nothing otherwise. Numbers are
given out by an index that is read by its key: listings may lag behind on some stores.
"""

import datetime
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.store import Store, changed
from zimage.errors import InputError

MANIFEST = "manifest.json"
INDEX = "index.json"
RELEASE_NAME = r"^[1-9][0-9]{0,8}-[0-9a-f]{8}$"

Verdict = Literal["pass", "provisional", "fail"]
Use = Literal["non-commercial", "commercial"]


class Part(BaseModel):
    """Base of what is stored as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PublishedFile(Part):
    """A file of a release."""

    name: str
    sha256: str
    bytes: int


class Agreed(Part):
    """What the person agreed to, as far as a release has to tell."""

    scope: list[str]
    may_publish: bool
    expires: datetime.date
    document_sha256: str


class Manifest(Part):
    """What a release is made of and where it comes from; written last, so that a release with it is whole."""

    schema_version: Literal[1] = 1
    subject: str
    release: str
    published_at: datetime.datetime
    verdict: Verdict
    why: str
    use: Use
    lora: str
    strength: float
    trigger: str
    consent: Agreed
    engines: list[str]
    licences: dict[str, str]
    files: list[PublishedFile]
    params: dict[str, Any]
    code: dict[str, str]
    code_commit: str | None
    dvc_lock: dict[str, Any]
    packages: dict[str, str]


class Listed(Part):
    """A release that was begun: its name and the hash of its content."""

    name: str
    content: str


class Index(Part):
    """All releases that were begun, in the order of their numbers."""

    releases: list[Listed]


def releases_key(subject: str) -> str:
    """Return the key below which all releases of a subject lie."""
    return f"subjects/{subject}/releases"


def release_key(subject: str, name: str) -> str:
    """Return the key of a release."""
    return f"{releases_key(subject)}/{name}"


def described(name: str, path: Path) -> PublishedFile:
    """Return a file as a manifest names it."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return PublishedFile(name=name, sha256=sha256, bytes=path.stat().st_size)


def content_hash(files: Iterable[PublishedFile]) -> str:
    """Return the SHA-256 of names and contents, whatever their order."""
    lines = sorted(f"{file.name} {file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def numbered(store: Store, subject: str, content: str) -> str:
    """Return the name of the release with this content: the one that was begun, or one with the next number.

    Raises:
        StoreError: others wrote the index each time.
    """

    def listed(index: Index) -> Index:
        begun = index.releases
        if any(each.content == content for each in begun):
            return index
        number = int(begun[-1].name.split("-")[0]) + 1 if begun else 1
        return Index(releases=[*begun, Listed(name=f"{number}-{content[:8]}", content=content)])

    index = changed(store, f"{releases_key(subject)}/{INDEX}", Index(releases=[]), listed)
    return next(each.name for each in index.releases if each.content == content)


def relist(store: Store, subject: str, name: str) -> None:
    """Write a release that was begun into the index again, after all of it was deleted."""

    def listed(index: Index) -> Index:
        if any(each.name == name for each in index.releases):
            return index
        return Index(releases=[*index.releases, Listed(name=name, content="")])

    changed(store, f"{releases_key(subject)}/{INDEX}", Index(releases=[]), listed)


def manifest_of(store: Store, subject: str, name: str) -> Manifest | None:
    """Return the manifest of a release, or None where there is none: what lies there was begun and never finished."""
    found = store.read(f"{release_key(subject, name)}/{MANIFEST}")
    return None if found is None else Manifest.model_validate_json(found.content)


def releases(store: Store, subject: str) -> Iterator[Manifest]:
    """Yield the finished releases of a subject, the newest first; each is read when it is asked for."""
    found = store.read(f"{releases_key(subject)}/{INDEX}")
    for listed in reversed(Index.model_validate_json(found.content).releases if found else []):
        manifest = manifest_of(store, subject, listed.name)
        if manifest is not None:
            yield manifest


def fetch(store: Store, subject: str, name: str, folder: Path) -> Manifest:
    """Write all files of a release into `folder` and return its manifest; every file's hash is checked on arrival.

    Raises:
        InputError: there is no such release, or a file in the store is not what was published; nothing bad is left.
    """
    manifest = manifest_of(store, subject, name)
    if manifest is None:
        raise InputError(f"{subject} has no release {name}; the index of its releases says which there are.")
    for file in manifest.files:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and described(file.name, target) == file:
            continue
        store.get(f"{release_key(subject, name)}/{file.name}", target, max_bytes=file.bytes)
        if described(file.name, target) != file:
            target.unlink()
            raise InputError(
                f"{release_key(subject, name)}/{file.name} in the store is not what was published (SHA-256 "
                f"{file.sha256[:12]}… was expected); publish the same workspace again, which mends it."
            )
    return manifest
