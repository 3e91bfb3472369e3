"""Upload releases to model repositories of the Hugging Face Hub, and delete them when the subject is forgotten.

What a release is stays in the store; a repository is a copy of one release at a time, with a tag for each. Which
repositories a subject has is written down before anything is sent, so that forgetting knows of them whatever happens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.policy import store_task
from tasks.release.hub.index import HubRecord, Origin, found, index_key, note, take_back
from tasks.release.hub.repository import Repository, differing, hash_of, is_file
from tasks.settings import Settings, hub_token
from tasks.store.protocol import Store, StoreError
from tasks.store.releases import (
    INDEX,
    MANIFEST,
    SIGNATURE,
    Index,
    Manifest,
    fetch,
    release_key,
    releases,
    releases_key,
    relist,
)
from tasks.workspace.scratch import scratch
from tasks.workspace.tombstones import ForgottenError, delete_sent, refuse_if_forgotten, taking_back
from zimage.core.errors import InputError
from zimage.permission import today

TOKEN_BLOCK = "hf-token"


@dataclass(frozen=True)
class Uploaded:
    """Where a release is on the hub.

    Args:
        repository: `owner/name`.
        release: Its name, which is the tag's.
        is_new: False where it had been there before.
    """

    repository: str
    release: str
    is_new: bool


@store_task("publish to the hub", run_name="publish {subject} to the hub", tag="cpu")
def publish_to_hub(settings: Settings, store: Store, subject: str, release: str, name: str) -> Uploaded:
    """Put a release that is in the store into the repository `name`, in one commit, and tag it with its name.

    Who reads the repository has the release before or this one, whole. A repository that is not there is made, private.

    Raises:
        InputError: the person does not agree (any more), the hub refuses, the repository holds something else, or the
            subject was forgotten: meanwhile sent, the release is taken off the hub again.
        StoreError: the hub or the store did not answer, or somebody else changed the repository; run again.
    """
    repository = Repository.connect(name, endpoint=settings.hub, token=_token())
    with scratch(settings.workspace(subject), "hub") as folder:
        manifest = fetch(store, subject, release, folder)
        _check_consent(manifest)
        files = {each: folder / each for each in [*(file.name for file in manifest.files), MANIFEST]}
        if (folder / SIGNATURE).is_file():
            files[SIGNATURE] = folder / SIGNATURE
        with _unless_forgotten(settings, store, subject, release) as claimed:
            head, record = _claimed(store, subject, repository, settings.hub)
            claimed.append(record)
            is_new = release not in repository.tags()
            if is_new and differing(there := repository.files(head), files):
                refuse_if_forgotten(store, subject, settings.workspace(subject))
                gone = sorted(set(there) - set(files))
                head = repository.commit(title_of(release), files, without=gone, parent=head)
                _check_same(repository, head, files)
            if is_new:
                repository.tag(release, head)
            _check_same(repository, release, files)
    return Uploaded(name, release, is_new=is_new)


def delete(settings: Settings, store: Store, subject: str) -> None:
    """Delete a subject from the hub: repositories that publishing created, and the releases in others.

    Raises:
        InputError: history is left in a repository that publishing did not make, or it cannot be told; the remedy too.
        StoreError: the hub did not answer; run again.
    """
    for record in found(store, subject):
        _take_off(settings, record, _names(store, subject))


def _take_off(settings: Settings, record: HubRecord, names: list[str]) -> None:
    """Delete a repository, or remove these releases from one that publishing did not create."""
    if record.endpoint != settings.hub:
        raise InputError(
            f"{record.name} has releases of this subject on the hub at {record.endpoint or 'huggingface.co'}; "
            "set HF_ENDPOINT to it."
        )
    repository = Repository.connect(record.name, endpoint=settings.hub, token=_token())
    head = repository.head()
    if head is None:
        _check_gone(repository)
    elif _origin(record, repository, head) == "made":
        repository.delete()
        if repository.head() is not None:
            raise StoreError(f"{record.name} is still on the hub; run again, or look whether it was renamed.")
    else:
        _withdraw(repository, head, names)


@contextmanager
def _unless_forgotten(settings: Settings, store: Store, subject: str, release: str) -> Iterator[list[HubRecord]]:
    """Run the block, which uploads a release; if the subject is forgotten meanwhile, the release is removed again.

    The block gets a list, and adds what is known of the repository.

    Raises:
        InputError: the subject was forgotten before or meanwhile, or history is left; the remedy too.
    """
    claimed: list[HubRecord] = []

    def take_back(forgotten: ForgottenError) -> None:
        try:
            for record in claimed or found(store, subject):
                note(store, subject, record)  # and the release: should this fail, `forget` has to know
                relist(store, subject, release)
                _take_off(settings, record, [release])
        except StoreError as error:
            raise InputError(f"{forgotten} It may still be on the hub ({error}); run `forget` again.") from None
        delete_sent(store, [index_key(subject), releases_key(subject)], forgotten)

    with taking_back(store, subject, settings.workspace(subject), take_back):
        yield claimed


def title_of(release: str) -> str:
    """Return the title of a release's commit."""
    return f"Release {release}"


def _claimed(store: Store, subject: str, repository: Repository, endpoint: str) -> tuple[str, HubRecord]:
    """Return the repository's last commit and what is known of it, once it is there, written down, and may be written.

    Raises:
        InputError: it holds something that is no release of this subject.
    """

    def record(origin: Origin) -> HubRecord:
        return HubRecord(name=repository.name, endpoint=endpoint, origin=origin)

    known = {(each.name, each.endpoint): each for each in found(store, subject)}.get((repository.name, endpoint))
    head = repository.head()
    if head is None:
        note(store, subject, record("making"))
        try:
            known = record("made" if repository.create() else "found")
        except InputError:  # it was certainly not made
            take_back(store, subject, record("making"), known)
            raise
        note(store, subject, known)
        head = repository.head()
        if head is None:
            raise StoreError(f"{repository.name} was made, and the hub does not show it yet; run again.")
    there = repository.files(head)
    if there and not _is_ours(store, subject, there.get(MANIFEST)):
        raise InputError(
            f"{repository.name} holds what is no release of this subject ({', '.join(sorted(there)[:3])}); name a "
            "repository that is empty or not there yet."
        )
    claimed = record(_origin(known, repository, head) if known else "found")
    note(store, subject, claimed)
    return head, claimed


def _origin(record: HubRecord, repository: Repository, head: str) -> Origin:
    """Return a repository's origin; an empty one whose creation was interrupted is ours."""
    if record.origin != "making":
        return record.origin
    return "found" if repository.files(head) else "made"


def _is_ours(store: Store, subject: str, entry: Any) -> bool:
    """Return whether the hub's entry of a manifest is that of a release of this subject."""
    names = (manifest.release for manifest in releases(store, subject))
    return entry is not None and any(is_file(entry, _manifest(store, subject, name)) for name in names)


def _check_same(repository: Repository, revision: str, files: Mapping[str, Path]) -> None:
    """Pass if a revision on the hub is, file for file, the release."""
    names = differing(repository.files(revision), files)
    if names:
        raise InputError(
            f"{revision} in {repository.name} is not what was published ({', '.join(names[:3])}); delete that tag "
            "there, and run again."
        )


def _check_gone(repository: Repository) -> None:
    if not repository.is_seen_if_there():
        raise InputError(
            f"The hub shows no {repository.name} to this token, whose owner is somebody else, so nobody knows whether "
            "it is gone; set HF_TOKEN to its owner's."
        )


def _withdraw(repository: Repository, head: str, names: list[str]) -> None:
    """Remove all releases from a repository that publishing did not create.

    Raises:
        InputError: its history still has them.
    """
    titles = {title_of(name) for name in names}
    brought = [commit for commit, title in repository.history().items() if title in titles]
    for name in sorted(set(repository.tags()) & set(names)):
        repository.untag(name)
    there = repository.files(head)
    contents = {(name, hash_of(each)) for commit in brought for name, each in repository.files(commit).items()}
    gone = sorted(name for name, each in there.items() if (name, hash_of(each)) in contents)
    if gone:
        repository.commit("Withdraw all releases", {}, without=gone, parent=head)
    if brought:
        raise InputError(
            f"{repository.name} was not made by publishing, so it is not deleted: its releases are taken out, and its "
            f"history still has {len(brought)} of them. Delete it, or rewrite its history (`super_squash_history` of "
            "huggingface_hub), and run again."
        )


def _names(store: Store, subject: str) -> list[str]:
    """Return the names of all releases that were begun; by the index, which an eraser may read."""
    index = store.read(f"{releases_key(subject)}/{INDEX}")
    return [each.name for each in Index.model_validate_json(index.content).releases] if index else []


def _manifest(store: Store, subject: str, release: str) -> bytes:
    stored = store.read(f"{release_key(subject, release)}/{MANIFEST}")
    assert stored is not None, "its release was just read"
    return stored.content


def _check_consent(manifest: Manifest) -> None:
    if not manifest.consent.may_publish or manifest.consent.expires < today():
        raise InputError(
            f"{manifest.release} does not go to the hub: its consent ended on {manifest.consent.expires} or excludes "
            "publishing; ask for a new one and publish again."
        )


def _token() -> str:
    """Return the token: from the environment, or from a Secret block of Prefect's server."""
    token = hub_token()
    if token:
        return token
    from prefect.blocks.system import Secret

    try:
        block = Secret.load(TOKEN_BLOCK)
    except ValueError:
        raise InputError(
            "There is no token for the hub; set HF_TOKEN to one that may write, or make a Secret block "
            f"`{TOKEN_BLOCK}` on Prefect's server."
        ) from None
    assert isinstance(block, Secret), "nobody awaits here"
    return str(block.get())
