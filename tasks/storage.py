"""Where things outlive a workspace: a folder, or S3 behind the same few verbs. The only importer of boto3.

Keys are relative, with `/` between their parts. An object is either absent or whole, at every instant.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from zimage.errors import InputError

LOCKS = ".locks"
AT_ONCE = 1000  # the most keys one DeleteObjects request takes (S3 API reference)


class ConflictError(RuntimeError):
    """Somebody else wrote in between; read again and decide again."""


@dataclass(frozen=True)
class Stored:
    """An object's content with the tag of this very version of it."""

    content: bytes
    tag: str


class Store(Protocol):
    """What both kinds of store can do."""

    def put_if_absent(self, key: str, source: Path) -> bool:
        """Store a file under `key` and return True; return False, and change nothing, where the key is taken."""
        ...

    def get(self, key: str, target: Path) -> None:
        """Write the object to the file `target`.

        Raises:
            InputError: there is no such object.
        """
        ...

    def read(self, key: str) -> Stored | None:
        """Return a small object, or None where the key is free."""
        ...

    def swap(self, key: str, content: bytes, tag: str | None) -> str:
        """Replace the version `tag` of a small object (None: there is none yet) and return the new version's tag.

        Raises:
            ConflictError: the object is no longer that version.
        """
        ...

    def keys(self, below: str) -> list[str]:
        """Return the keys below the folder-like key `below` (all with ""), sorted."""
        ...

    def delete(self, below: str) -> int:
        """Delete every version of every object below `below`; return how many versions there were."""
        ...


def open_store(address: str) -> Store:
    """Return the store at a folder or at `s3://bucket/prefix`; endpoint and keys of S3 are boto3's own settings.

    Raises:
        InputError: the address is neither.
    """
    parts = urlsplit(address)
    if parts.scheme == "s3" and parts.netloc:
        return S3Store.connect(parts.netloc, parts.path.strip("/"))
    if "://" in address:
        raise InputError(f"{address} is no store; give a folder or s3://bucket/prefix (ZIMAGE_STORE).")
    return FolderStore(Path(address).expanduser().absolute())


@dataclass(frozen=True)
class FolderStore:
    """A store in a folder; its versions are told apart by the SHA-256 of their content."""

    root: Path

    def put_if_absent(self, key: str, source: Path) -> bool:
        """See Store; the file appears by a hard link from beside its place, which fails where the name is taken."""
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._locks()) as temporary:
            aside = Path(temporary) / "object"
            shutil.copyfile(source, aside)
            _flush(aside)
            try:
                os.link(aside, target)
            except FileExistsError:
                return False
        return True

    def get(self, key: str, target: Path) -> None:
        """See Store."""
        path = self._path(key)
        if not path.is_file():
            raise InputError(f"There is no {key} in the store {self.root}.")
        shutil.copyfile(path, target)

    def read(self, key: str) -> Stored | None:
        """See Store."""
        path = self._path(key)
        if not path.is_file():
            return None
        content = path.read_bytes()
        return Stored(content, _tag(content))

    def swap(self, key: str, content: bytes, tag: str | None) -> str:
        """See Store; a lock file per key makes comparing and replacing one step."""
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(key):
            now = self.read(key)
            if (now.tag if now else None) != tag:
                raise ConflictError(f"{key} was changed by somebody else")
            with tempfile.TemporaryDirectory(dir=self._locks()) as temporary:
                aside = Path(temporary) / "object"
                aside.write_bytes(content)
                _flush(aside)
                aside.replace(target)
        return _tag(content)

    def keys(self, below: str) -> list[str]:
        """See Store."""
        return sorted(key for key in self._keys() if key.startswith(_as_folder(below)))

    def delete(self, below: str) -> int:
        """See Store; folders that became empty go too."""
        keys = self.keys(below)
        for key in keys:
            path = self._path(key)
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self.root or any(parent.iterdir()):
                    break
                parent.rmdir()
        return len(keys)

    def _keys(self) -> Iterator[str]:
        for path in self.root.rglob("*"):
            key = path.relative_to(self.root).as_posix()
            if path.is_file() and not key.startswith(f"{LOCKS}/"):
                yield key

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not all(parts) or {".", ".."} & set(parts) or parts[0] == LOCKS:
            raise InputError(f"`{key}` is no key of a store; keys are names joined by single slashes.")
        return self.root.joinpath(*parts)

    def _locks(self) -> Path:
        folder = self.root / LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        name = hashlib.sha256(key.encode()).hexdigest()
        with (self._locks() / name).open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True)
class S3Store:
    """A store under a prefix of a bucket; conditional requests decide who was first, the server checks SHA-256."""

    client: Any
    bucket: str
    prefix: str

    @classmethod
    def connect(cls, bucket: str, prefix: str) -> "S3Store":
        """Return the store; nothing is asked of the server yet."""
        import boto3
        from botocore.config import Config

        config = Config(retries={"mode": "standard", "max_attempts": 5})
        return cls(boto3.client("s3", config=config), bucket, prefix)

    def put_if_absent(self, key: str, source: Path) -> bool:
        """See Store; `If-None-Match: *`."""
        with source.open("rb") as body:
            try:
                self._put(key, body, IfNoneMatch="*")
            except ConflictError:
                return False
        return True

    def get(self, key: str, target: Path) -> None:
        """See Store."""
        from botocore.exceptions import ClientError

        try:
            self.client.download_file(self.bucket, self._full(key), str(target))
        except ClientError as error:
            if _code(error) in {"NoSuchKey", "404"}:
                raise InputError(f"There is no {key} in s3://{self.bucket}/{self.prefix}.") from None
            raise

    def read(self, key: str) -> Stored | None:
        """See Store; the tag is the ETag."""
        from botocore.exceptions import ClientError

        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self._full(key))
        except ClientError as error:
            if _code(error) in {"NoSuchKey", "404"}:
                return None
            raise
        return Stored(answer["Body"].read(), answer["ETag"])

    def swap(self, key: str, content: bytes, tag: str | None) -> str:
        """See Store; `If-Match` with the ETag, or `If-None-Match: *` where there was nothing."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        return str(self._put(key, content, **condition)["ETag"])

    def keys(self, below: str) -> list[str]:
        """See Store."""
        full = self._full(_as_folder(below))
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=full)
        return sorted(self._short(found["Key"]) for page in pages for found in page.get("Contents", []))

    def delete(self, below: str) -> int:
        """See Store; delete markers and unfinished uploads go too."""
        full = self._full(_as_folder(below))
        versions = self._versions(full)
        for start in range(0, len(versions), AT_ONCE):
            some = {"Objects": versions[start : start + AT_ONCE], "Quiet": True}
            failed = self.client.delete_objects(Bucket=self.bucket, Delete=some).get("Errors", [])
            if failed:
                raise RuntimeError(f"{len(failed)} objects could not be deleted, the first is {failed[0]}")
        uploads = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=full)
        for upload in [upload for page in uploads for upload in page.get("Uploads", [])]:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        return len(versions)

    def _versions(self, full: str) -> "list[dict[str, str]]":
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=full)
        kinds = ("Versions", "DeleteMarkers")
        found = [entry for page in pages for kind in kinds for entry in page.get(kind, [])]
        return [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in found]

    def _put(self, key: str, body: Any, **condition: str) -> Any:
        from botocore.exceptions import ClientError

        try:
            return self.client.put_object(
                Bucket=self.bucket, Key=self._full(key), Body=body, ChecksumAlgorithm="SHA256", **condition
            )
        except ClientError as error:
            # 409 is how some servers answer the loser of a race, 404 how If-Match meets a deleted object.
            if _code(error) in {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey"}:
                raise ConflictError(f"{key} was changed by somebody else") from None
            raise

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _short(self, full: str) -> str:
        return full.removeprefix(f"{self.prefix}/") if self.prefix else full


def _as_folder(key: str) -> str:
    """Return `key` with a slash at its end, so that `ada` does not mean `adam` too."""
    return f"{key.rstrip('/')}/" if key else ""


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
