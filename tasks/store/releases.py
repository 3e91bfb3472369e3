"""The documents of a release, their keys in the store, and reading a release.

`subjects/<subject>/releases/<n>-<hash>/` is a release if its manifest is there, and nothing otherwise. Numbers are
given out by an index that is read by its key: listings may lag behind on some stores.
"""

import datetime
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tasks.store.protocol import Store, changed, checked_key
from tasks.store.signature import is_signature
from zimage.core.errors import InputError
from zimage.core.folder import write_whole

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"  # where a release was fetched to
INDEX = "index.json"
RELEASE_NAME = r"^[1-9][0-9]{0,8}-[0-9a-f]{8}$"

Verdict = Literal["pass", "provisional", "fail"]
Use = Literal["non-commercial", "commercial"]


class Document(BaseModel):
    """Base of what is stored as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# Names lead nowhere else than below the release, here and where it is fetched to, and can be printed.
FileName = Annotated[str, AfterValidator(checked_key)]


class PublishedFile(Document):
    """A file of a release."""

    name: FileName
    sha256: str
    bytes: int = Field(ge=0)


class Agreed(Document):
    """What the person agreed to, as far as a release has to tell."""

    scope: list[str]
    may_publish: bool
    expires: datetime.date
    document_sha256: str


class Share(Document):
    """A share of pictures with its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class ScoredUse(Document):
    """A way in which the LoRA of a release was measured by `zimage score`, and what it is used with there."""

    use: str
    """Its name, such as `Z-Image-Turbo, merged`; "" for the settings of params.yaml."""
    base: str
    """Public name of the base model."""
    identity: str
    """What pins the base; see `zimage.model.base.Base`."""
    variant: Literal["base", "turbo"] | None
    strength: float
    strengths: list[float]
    """All that were scored; the lowest to which none is shown to be better was chosen, by these same pictures."""
    side_px: int
    steps: int
    guidance_scale: float
    shift: float
    sampler: str
    precision: str
    merged_weights: str | None
    """Precision to which weights were rounded with the LoRA in them; null where it stayed apart."""
    survival: float | None
    """Share of the LoRA's change that merging left; null where it stayed apart."""
    verdict: str | None
    same_of_all: Share | None
    """Share of all pictures that are the same person."""
    protocol: int
    """Version of infra/protocol.md."""


class Manifest(Document):
    """What a release is made of and where it comes from; written last, so that a release with it is whole."""

    schema_version: Literal[1] = 1
    subject: str
    release: str
    published_at: datetime.datetime
    verdict: Verdict
    why: str
    use: Use
    lora: FileName
    strength: float
    trigger: str
    uses: list[ScoredUse] = []
    consent: Agreed
    engines: list[str]
    licences: dict[str, str]
    files: list[PublishedFile]
    params: dict[str, Any]
    code: dict[str, str]
    code_commit: str | None
    dvc_lock: dict[str, Any]
    packages: dict[str, str]


class Listed(Document):
    """A release that was begun: its name and the hash of its content."""

    name: str
    content: str


class Index(Document):
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


@dataclass(frozen=True)
class Published:
    """A finished release as it lies in a store.

    Args:
        manifest: What it is made of.
        content: The manifest's bytes.
        signature: What the publisher signed these bytes with; None where it was not signed.
    """

    manifest: Manifest
    content: bytes
    signature: bytes | None

    def require_signer(self, public: Any) -> None:
        """Pass if the owner of a public key (see `tasks.store.signature.public_key`) signed the manifest.

        Raises:
            InputError: it is not signed, was changed after it was signed, or somebody else signed it.
        """
        manifest = self.manifest
        if self.signature is None:
            raise InputError(
                f"{manifest.release} of {manifest.subject} is not signed, so nobody knows whose it is; ask its "
                "publisher to sign it, or fetch it without --key if you trust the store."
            )
        if not is_signature(self.signature, self.content, public):
            raise InputError(
                f"The signature of {manifest.release} of {manifest.subject} was not made with this key for this "
                "manifest: the release was changed, or somebody else signed it; use none of its files, and ask its "
                "publisher."
            )


def published(store: Store, subject: str, name: str) -> Published | None:
    """Return a release with its signature, or None where there is no manifest: it was begun and never finished.

    Raises:
        InputError: what lies there is no manifest of this release.
    """
    found = _manifest(store, subject, name)
    if found is None:
        return None
    manifest, content = found
    signature = store.read(signature_key(subject, name, content))
    return Published(manifest, content, signature.content if signature else None)


def _manifest(store: Store, subject: str, name: str) -> tuple[Manifest, bytes] | None:
    """Return the manifest of a release and its bytes; see `published`."""
    if not re.fullmatch(RELEASE_NAME, name):
        raise InputError(f"{name!r} is no name of a release; one is a number, - and 8 of 0-9 and a-f.")
    key = f"{release_key(subject, name)}/{MANIFEST}"
    found = store.read(key)
    if found is None:
        return None
    try:
        manifest = Manifest.model_validate_json(found.content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise InputError(
            f"{key} in the store is no manifest ({where}: {fault['msg']}); delete it and publish the same workspace "
            "again, which writes it anew."
        ) from None
    if (manifest.subject, manifest.release) != (subject, name):
        raise InputError(
            f"{key} in the store is the manifest of {manifest.release!r} of {manifest.subject!r}; delete it and "
            "publish the same workspace again, which writes it anew."
        )
    return manifest, found.content


def signature_key(subject: str, name: str, manifest: bytes) -> str:
    """Return where the signature of a manifest lies, next to it.

    It has the manifest's hash in its name: publishers who write the same release at once sign different manifests, each
    before it tries to write its own, so that whichever manifest is the release's has its signature.
    """
    return f"{release_key(subject, name)}/manifest-{hashlib.sha256(manifest).hexdigest()[:16]}.sig"


def manifest_of(store: Store, subject: str, name: str) -> Manifest | None:
    """Return the manifest of a release, or None where there is none: what lies there was begun and never finished.

    Raises:
        InputError: see `published`.
    """
    found = _manifest(store, subject, name)
    return None if found is None else found[0]


def releases(store: Store, subject: str) -> Iterator[Manifest]:
    """Yield the finished releases of a subject, the newest first; each is read when it is asked for."""
    found = store.read(f"{releases_key(subject)}/{INDEX}")
    for listed in reversed(Index.model_validate_json(found.content).releases if found else []):
        manifest = manifest_of(store, subject, listed.name)
        if manifest is not None:
            yield manifest


def fetch(store: Store, subject: str, name: str, folder: Path) -> Manifest:
    """Write all files of a release into `folder` and return its manifest; its signer is not asked for.

    Raises:
        InputError: there is no such release, or see `download`.
    """
    found = published(store, subject, name)
    if found is None:
        raise InputError(f"{subject} has no release {name}; the index of its releases says which there are.")
    download(store, found, folder)
    return found.manifest


def download(store: Store, release: Published, folder: Path) -> None:
    """Write all files of a release, its manifest and the signature into `folder`; hashes are checked on arrival.

    Raises:
        InputError: a file in the store is not what was published; nothing bad is left.
    """
    manifest = release.manifest
    key = release_key(manifest.subject, manifest.release)
    folder.mkdir(parents=True, exist_ok=True)
    for file in manifest.files:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and described(file.name, target) == file:
            continue
        store.get(f"{key}/{file.name}", target, max_bytes=file.bytes)
        if described(file.name, target) != file:
            target.unlink()
            raise InputError(
                f"{key}/{file.name} in the store is not what was published (SHA-256 {file.sha256[:12]}… was expected); "
                "publish the same workspace again, which mends it."
            )
    write_whole(folder / MANIFEST, release.content)
    (folder / SIGNATURE).unlink(missing_ok=True)
    if release.signature is not None:
        write_whole(folder / SIGNATURE, release.signature)
