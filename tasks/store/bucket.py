"""Read the files below a prefix of an S3 bucket as a source of photos, with checked sizes and content."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.store.s3 import S3Store, StoreError, open_store
from zimage.core.errors import InputError

ATTEMPTS = 3  # at one object; the client repeats requests by itself, but not bodies that break off
CHUNK_BYTES = 1 << 20
MD5 = re.compile(r'"?([0-9a-f]{32})"?')
WAITS = frozenset({"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException"})


@dataclass(frozen=True)
class Listed:
    """An object as the server lists it.

    Args:
        key: Below the prefix; whatever the one who put it there called it.
        size_bytes: Of its content.
        etag: Of this very version.
    """

    key: str
    size_bytes: int
    etag: str

    def is_content_of(self, path: Path) -> bool:
        """Return whether a file surely holds this content; False also where the ETag says nothing about content."""
        found = MD5.fullmatch(self.etag)
        if found is None or not path.is_file() or path.stat().st_size != self.size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, _md5).hexdigest() == found[1]


@dataclass(frozen=True)
class Bucket:
    """A prefix to read from."""

    store: S3Store

    @classmethod
    def at(cls, address: str) -> "Bucket":
        """Return the prefix that `s3://bucket/prefix` names; nothing is asked of the server yet.

        Raises:
            InputError: the address names no bucket, or this machine's S3 settings name no region.
        """
        with _told(address):
            store = open_store(address)
        assert isinstance(store, S3Store)
        return cls(store)

    @property
    def address(self) -> str:
        """The prefix as `s3://bucket/prefix`."""
        return f"s3://{self.store.bucket}/{self.store.prefix}".rstrip("/")

    def listed(self, most: int) -> list[Listed]:
        """Return the objects by key, without the empty ones by which some tools mark folders.

        Raises:
            InputError: the bucket cannot be listed, or holds more than `most` objects there.
            StoreError: it is away, or asks to wait.
        """
        below = f"{self.store.prefix}/" if self.store.prefix else ""
        found: list[Listed] = []
        with _told(self.address):
            pages = self.store.client.get_paginator("list_objects_v2").paginate(Bucket=self.store.bucket, Prefix=below)
            for page in pages:
                found += [_listed(one, below) for one in page.get("Contents", []) if not _marks_a_folder(one, below)]
                if len(found) > most:
                    raise InputError(f"{self.address} holds more than {most} files; name a prefix with photos only.")
        return sorted(found, key=lambda one: one.key)

    def itself(self) -> tuple["Bucket", Listed] | None:
        """Return the object whose key is the whole prefix, and the prefix it lies in; None if there is none.

        Raises:
            InputError: the bucket cannot be listed.
            StoreError: it is away, or asks to wait.
        """
        above, _, name = self.store.prefix.rpartition("/")
        with _told(self.address):  # of all keys that begin with it, it is listed first
            answer = self.store.client.list_objects_v2(Bucket=self.store.bucket, Prefix=self.store.prefix, MaxKeys=1)
        for entry in answer.get("Contents", []):
            if entry["Key"] == self.store.prefix:
                return Bucket(replace(self.store, prefix=above)), Listed(name, entry["Size"], entry["ETag"])
        return None

    def fetch(self, listed: Listed, target: Path) -> None:
        """Write the listed version of an object to a file, after checking every byte that arrived.

        Raises:
            InputError: it was changed or removed since it was listed, or the server's copy is damaged.
            StoreError: the bucket is away, or asks to wait.
        """
        from botocore.exceptions import BotoCoreError

        for attempt in range(1, ATTEMPTS + 1):
            with _told(f"{self.address}/{listed.key}"):
                try:
                    self._copy(listed, target)
                    return
                except (BotoCoreError, _DamagedError) as error:
                    if attempt == ATTEMPTS:
                        raise _ours(error)(
                            f"{self.address}/{listed.key} did not arrive as it was stored, {ATTEMPTS} times "
                            f"({' '.join(str(error).split())[:200]}); put it there again, or check the connection."
                        ) from None

    def _copy(self, listed: Listed, target: Path) -> None:
        answer = self.store.client.get_object(
            Bucket=self.store.bucket,
            Key=f"{self.store.prefix}/{listed.key}" if self.store.prefix else listed.key,
            IfMatch=listed.etag,
            ChecksumMode="ENABLED",  # the client compares what the server has on record
        )
        content, size_bytes = _md5(), 0
        with target.open("wb") as file:
            for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
                size_bytes += len(chunk)
                if size_bytes > listed.size_bytes:
                    break
                content.update(chunk)
                file.write(chunk)
        if size_bytes != listed.size_bytes:
            raise _DamagedError(f"it has {listed.size_bytes} bytes, others came")
        found = MD5.fullmatch(listed.etag)
        if found and not _says_nothing_of_content(answer) and content.hexdigest() != found[1]:
            raise _DamagedError("its MD5 is another than its ETag")


class _DamagedError(Exception):
    """What came is not what is stored."""


def _listed(entry: dict[str, Any], below: str) -> Listed:
    return Listed(entry["Key"].removeprefix(below), entry["Size"], entry["ETag"])


def _marks_a_folder(entry: dict[str, Any], below: str) -> bool:
    key = entry["Key"].removeprefix(below)
    return entry["Size"] == 0 and (not key or key.endswith("/"))


def _says_nothing_of_content(answer: dict[str, Any]) -> bool:
    """Return whether the ETag is no MD5 although it looks like one: under keys of KMS or of the customer (S3 API)."""
    return "kms" in answer.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in answer


def _md5(content: bytes = b"") -> Any:
    return hashlib.md5(content, usedforsecurity=False)


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Say in one sentence what S3 objects to: everything that it can is about an address, a right or a connection.

    Raises:
        InputError: the address, the settings or the rights are wrong.
        StoreError: it may pass by itself.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        answer = error.response.get("Error", {})
        if answer.get("Code") in {"PreconditionFailed", "412", "NoSuchKey", "404"}:
            raise InputError(f"{address} was changed or removed while it was read; run again.") from None
        raise _ours(error)(
            f"{address} cannot be read ({answer.get('Code')}: {answer.get('Message')}); "
            "check the bucket, the prefix, and the right to list and get."
        ) from None
    except BotoCoreError as error:
        raise _ours(error)(
            f"{address} cannot be reached ({' '.join(str(error).split())}); check AWS_ENDPOINT_URL_S3, "
            "AWS_DEFAULT_REGION and the credentials of this machine."
        ) from None


def _ours(error: Exception) -> type[InputError] | type[StoreError]:
    """Return this project's error for an error of S3 or the network; it says whether a retry can help."""
    from botocore import exceptions as known

    if isinstance(error, known.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        waits = status >= 500 or status == 429 or error.response.get("Error", {}).get("Code") in WAITS
    else:
        waits = isinstance(error, (known.ConnectionError, known.HTTPClientError, known.IncompleteReadError))
    return StoreError if waits else InputError
