"""Client of one model repository on the Hugging Face Hub; the only module that talks to the hub."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tasks.store.protocol import StoreError
from zimage.core.errors import InputError

MAIN = "main"
GIT_ATTRIBUTES = ".gitattributes"  # the hub's own, made with each repository
TIMEOUT_S = 60.0  # of connecting, and of each step of sending and receiving; huggingface_hub itself waits for ever
TOLD_CHARACTERS = 200  # of what the hub says, which may be a page

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Repository:
    """A model repository, which may not exist yet.

    Args:
        api: huggingface_hub's client, with the token.
        name: `owner/name`.
    """

    api: Any
    name: str

    @classmethod
    def connect(cls, name: str, *, endpoint: str, token: str) -> "Repository":
        """Return the repository; nothing is asked of the hub yet.

        Files go by LFS over plain HTTP: the hub's newer protocol (Xet) leaves traces of what it sends in a cache of its
        own, outside the subject's workspace, where nobody forgets them.
        """
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.utils.tqdm import disable_progress_bars

        constants.HF_HUB_DISABLE_XET = True
        disable_progress_bars()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings name signed addresses
        huggingface_hub.set_client_factory(_client)
        return cls(huggingface_hub.HfApi(endpoint=endpoint or None, token=token), name)

    def head(self) -> str | None:
        """Return the last commit, or None where there is no such repository for this token."""
        found = self._asked(lambda: self.api.model_info(self.name), absent=None)
        return str(found.sha) if found else None

    def create(self) -> bool:
        """Make the repository, private, and return True; return False where it is there already."""
        return bool(self._asked(lambda: self.api.create_repo(self.name, private=True), taken=None))

    def tags(self) -> dict[str, str]:
        """Return the commit of each tag."""
        refs = self._asked(lambda: self.api.list_repo_refs(self.name))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def history(self) -> dict[str, str]:
        """Return the title of each commit that leads to the last one."""
        return {commit.commit_id: commit.title for commit in self._asked(lambda: self.api.list_repo_commits(self.name))}

    def files(self, revision: str) -> dict[str, Any]:
        """Return what the hub says of each file of a revision, but for its own."""
        entries = self._asked(lambda: list(self.api.list_repo_tree(self.name, recursive=True, revision=revision)))
        return {each.path: each for each in entries if hasattr(each, "blob_id") and each.path != GIT_ATTRIBUTES}

    def commit(self, title: str, files: Mapping[str, Path], *, without: Iterable[str], parent: str) -> str:
        """Write and remove files in one commit on top of `parent`, and return it; a reader sees all of it or nothing.

        Raises:
            StoreError: somebody else made a commit in between, or the hub did not answer.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        removed = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in without]
        added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]

        def send() -> Any:
            # A .gitignore in the repository would leave files out, without a word; an empty one takes its place.
            self.api.preupload_lfs_files(self.name, added, gitignore_content="", free_memory=False)
            return self.api.create_commit(self.name, [*removed, *added], commit_message=title, parent_commit=parent)

        made = self._asked(send)
        return str(made.oid)

    def tag(self, name: str, commit: str) -> None:
        """Give a commit a name; one that was given before stays where it is."""
        self._asked(lambda: self.api.create_tag(self.name, tag=name, revision=commit, exist_ok=True))

    def untag(self, name: str) -> None:
        """Take the name of a commit away, if there is such a name."""
        self._asked(lambda: self.api.delete_tag(self.name, tag=name), absent=None)

    def delete(self) -> None:
        """Delete the repository with all its history, if it is there."""
        self._asked(lambda: self.api.delete_repo(self.name, missing_ok=True))

    def is_seen_if_there(self) -> bool:
        """Return whether the token is the owner's: to others the hub denies that a private repository exists."""
        who = self._asked(self.api.whoami)
        return self.name.split("/")[0] in [who["name"], *(each["name"] for each in who.get("orgs", []))]

    def _asked(self, ask: Callable[[], Answer], **instead: Answer | None) -> Any:
        """Return the answer, or `instead` if the repository is `absent` or `taken`."""
        with self._told():
            from huggingface_hub.errors import HfHubHTTPError

            try:
                return ask()
            except HfHubHTTPError as error:
                state = {404: "absent", 409: "taken"}.get(error.response.status_code, "")
                if state in instead:
                    return instead[state]
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Translate errors of the hub and the connection into ours, with the remedy and without an address."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        try:
            yield
        except OfflineModeIsEnabled:
            raise InputError("HF_HUB_OFFLINE is set, so nothing goes to the hub; unset it where this runs.") from None
        except HFValidationError as error:
            raise InputError(f"`{self.name}` is no name of a repository on the hub: {error}") from None
        except HfHubHTTPError as error:
            raise self._as_ours(error) from None
        except (httpx2.HTTPError, OSError) as error:
            raise self._away(error) from None
        except RuntimeError as error:  # how huggingface_hub tells of a file that was not taken
            cause = error.__cause__
            raise (self._as_ours(cause) if isinstance(cause, HfHubHTTPError) else self._away(cause or error)) from None
        except ValueError as error:
            raise InputError(f"The hub does not take this for {self.name}: {_short(str(error))}") from None

    def _as_ours(self, error: Any) -> Exception:
        status, said = error.response.status_code, _short(error.server_message or "")
        match status:
            case 401:
                return InputError(
                    f"The hub does not know this token (401); set HF_TOKEN to one that may write {self.name}."
                )
            case 403:
                return InputError(
                    f"The hub forbids this token to write {self.name} (403); give it the permission to write, or set "
                    f"HF_TOKEN to another. {said}".strip()
                )
            case 404:
                return InputError(
                    f"There is no repository {self.name} on the hub for this token (404); check the name, and whose "
                    "token HF_TOKEN is."
                )
            case 409 | 412:
                return StoreError(f"{self.name} was changed by somebody else at the same time ({status}); run again.")
            case 408 | 429:
                return StoreError(f"The hub asks to wait ({status}); run again later. {said}".strip())
            case _ if status >= 500:
                return StoreError(f"The hub failed ({status}); run again later. {said}".strip())
            case _:
                return InputError(f"The hub does not take this for {self.name} ({status}). {said}".strip())

    def _away(self, error: BaseException) -> StoreError:
        return StoreError(
            f"The hub did not answer ({type(error).__name__}); {self.name} is whole, old or new: run again."
        )


def differing(there: Mapping[str, Any], files: Mapping[str, Path]) -> list[str]:
    """Return the files that are missing on one side or differ, by the hub's own hashes."""
    names = sorted({*there, *files})
    return [name for name in names if name not in there or name not in files or not _is(there[name], files[name])]


def hash_of(entry: Any) -> str:
    """Return the hash by which the hub identifies content: SHA-256 of large files, git's blob hash of others."""
    return str(entry.lfs.sha256 if entry.lfs else entry.blob_id)


def is_file(entry: Any, content: bytes) -> bool:
    """Return whether the hub's entry of a file matches this content."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return hash_of(entry) == (hashlib.sha256(content) if entry.lfs else git).hexdigest()


def _is(entry: Any, path: Path) -> bool:
    if not entry.lfs:
        return is_file(entry, path.read_bytes())
    with path.open("rb") as file:
        return hash_of(entry) == hashlib.file_digest(file, "sha256").hexdigest()


def _client() -> Any:
    """Return huggingface_hub's HTTP client, which does not wait for ever."""
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.timeout = TIMEOUT_S
    return client


def _short(text: str) -> str:
    """Return the beginning of what a server says, in one line."""
    return " ".join(text.split())[:TOLD_CHARACTERS]
