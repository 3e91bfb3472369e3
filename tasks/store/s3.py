"""A store in an S3 bucket, and `open_store`, which also opens one in a folder. One of two importers of boto3's client.

S3 is asked as if every answer could be lost: who wrote an object is written into it, so that a request that was tried
again after a lost answer is distinguished from one that came too late.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from tasks.store.folder import LOCKS, FolderStore
from tasks.store.pages import KINDS
from tasks.store.protocol import (
    MAX_FILE_BYTES,
    MAX_SMALL_BYTES,
    ConflictError,
    ForbiddenError,
    Inventory,
    MissingError,
    Store,
    Stored,
    StoreError,
    as_folder,
    checked_key,
)
from zimage.core.errors import InputError

__all__ = ["LOCKS", "ConflictError", "FolderStore", "Inventory", "MissingError", "S3Store", "Store", "StoreError",
           "Stored", "open_store", "store_errors"]  # fmt: skip

AT_ONCE = 1000  # the most keys one DeleteObjects request takes (S3 API reference)
PART_BYTES = 16 * 2**20  # of a file that is sent in parts; S3 takes 5 MiB to 5 GiB, and 10,000 of them
CONNECTIONS = 16  # of the pool, for parallel requests
TRIES = 5  # where an answer's body broke off, or a condition could not be decided; boto3 itself tries all else again
LINK_MAX_S = 24 * 3600  # a person looks the next morning; a role's keys may end sooner
LISTING_LAG_S = 1.0  # Amazon's does not lag (since 2020-12), others may
ABSENT = frozenset({"NoSuchKey", "404", "NotFound", "ServerSideEncryptionConfigurationNotFoundError"})
TAKEN = frozenset({"PreconditionFailed", "412"})
UNDECIDED = frozenset({"ConditionalRequestConflict", "409"})  # others wrote or deleted meanwhile; nothing was stored
SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
UNSUPPORTED = frozenset({"NotImplemented", "501", "MethodNotAllowed", "405"})
SERVERS = "infra/access/servers.md lists servers that were tried"
NO_TAG = f'"{32 * "0"}"'  # the tag of no object: a condition that cannot hold
HEADERS = {"IfMatch": "If-Match", "IfNoneMatch": "If-None-Match"}
FORBIDDEN = frozenset({"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"})

Answer = TypeVar("Answer")
# What servers were seen to honour by this process: their endpoint, the bucket, and the header of the condition.
_honoured: set[tuple[str, str, str]] = set()


def open_store(address: str, *, pages: str = "") -> Store:
    """Return the store at a folder or at `s3://bucket/prefix`; endpoint and keys of S3 are boto3's own settings.

    Args:
        address: Of the store.
        pages: Where a browser finds it: the server of a folder's pages, or an endpoint other than the one used here.

    Raises:
        InputError: the address is neither, or that of a file.
    """
    parts = urlsplit(address)
    if parts.scheme == "s3" and parts.netloc:
        return S3Store.connect(parts.netloc, parts.path.strip("/"), pages=pages)
    if "://" in address:
        raise InputError(f"{address} is no store; give a folder or s3://bucket/prefix (ZIMAGE_STORE).")
    folder = Path(address).expanduser().absolute()
    for path in (folder, *folder.parents):
        if path.is_file():
            raise InputError(
                f"{address} is no store, as {path} is a file; give a folder or s3://bucket/prefix (ZIMAGE_STORE)."
            )
    return FolderStore(folder, pages=pages)


def _client(endpoint: str = "") -> Any:
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "max_attempts": TRIES}
    config = Config(retries=retries, signature_version="s3v4", max_pool_connections=CONNECTIONS)
    return boto3.client("s3", config=config, endpoint_url=endpoint or None)


def store_errors() -> tuple[type[Exception], ...]:
    """Return what a store raises when it is away or unwell."""
    return OSError, StoreError


@dataclass(frozen=True)
class S3Store:
    """A store under a prefix of a bucket; conditional requests decide who was first, the server checks SHA-256.

    Args:
        client: Of boto3.
        bucket: Its name.
        prefix: Below which the store lies.
        pages: The endpoint that links lead to, where it is another for browsers than for `client`.
        part_bytes: Of a file that is sent in parts.
        listing_lag_s: See Store.
        link_max_s: See Store.
    """

    client: Any
    bucket: str
    prefix: str
    pages: str = ""
    part_bytes: int = PART_BYTES
    listing_lag_s: float = LISTING_LAG_S
    link_max_s: int = LINK_MAX_S

    @classmethod
    def connect(cls, bucket: str, prefix: str, *, pages: str = "") -> "S3Store":
        """Return the store; nothing is asked of the server yet."""
        return cls(_client(), bucket, prefix, pages)

    def require_usable(self, key: str) -> None:
        """See Store; `key` has to be free."""
        self.inventory(key)
        self._require_if_match(key, b"", hashlib.sha256(b"").digest())

    def put_if_absent(self, key: str, source: Path) -> bool:
        """See Store; `If-None-Match: *`. Large files go in parts, and go on where an earlier attempt stopped."""
        if source.stat().st_size > self.part_bytes:
            return self._put_parts(key, source)
        with source.open("rb") as body:
            try:
                self._put(key, body, hashlib.file_digest(body, "sha256").digest(), IfNoneMatch="*")
            except ConflictError:
                return False
        return True

    def link_if_absent(self, key: str, source: Path) -> None:
        """See Store; a bucket shares no file system."""

    def holds(self, key: str, source: Path) -> bool:
        """See Store; by the server's own checksum where it has one of the kind we send, else by fetching."""
        found = self._head(key)
        if found is None or self._length(found, key) != source.stat().st_size:
            return False
        expected = _checksums(source, self.part_bytes)
        if found.get("ChecksumSHA256") in expected:
            return True
        return self._fetched_sha256(key) == expected[0]

    def overwrite(self, key: str, source: Path) -> None:
        """See Store."""
        with source.open("rb") as body:
            self._put(key, body, hashlib.file_digest(body, "sha256").digest())

    def get(self, key: str, target: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """See Store."""
        found = self._head(key)
        if found is None:
            raise MissingError(f"There is no {key} in {self._address()}.")
        length = self._length(found, key)
        if length > max_bytes:
            raise InputError(f"{key} in {self._address()} has {length} bytes, more than {max_bytes}; not fetched.")
        part = target.with_name(f".{target.name}.part")
        try:
            with self._told("get"):
                self.client.download_file(self.bucket, self._full(key), str(part))
            part.rename(target)
        except _AbsentError:  # deleted since it was looked at
            raise MissingError(f"There is no {key} in {self._address()}.") from None
        finally:
            part.unlink(missing_ok=True)

    def read(self, key: str) -> Stored | None:
        """See Store; the tag is the ETag."""

        def once() -> Stored | None:
            try:
                answer = self._ask("get_object", Key=self._full(key))
            except _AbsentError:
                return None
            if self._length(answer, key) > MAX_SMALL_BYTES:
                raise InputError(
                    f"{key} in {self._address()} is larger than {MAX_SMALL_BYTES} bytes; it is none of ours."
                )
            return Stored(answer["Body"].read(), answer["ETag"])

        return self._until_whole(once)

    def compare_and_swap(self, key: str, content: bytes, tag: str | None) -> str:
        """See Store; `If-Match` with the ETag, or `If-None-Match: *` where there was nothing."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        return self._put(key, content, hashlib.sha256(content).digest(), **condition)

    def keys(self, below: str) -> list[str]:
        """See Store."""
        return sorted(self._short(found["Key"]) for found in self._listed(below))

    def list_children(self, below: str) -> list[str]:
        """See Store."""
        full = self._full(as_folder(below))
        pages = list(self._pages("list_objects_v2", Prefix=full, Delimiter="/"))
        found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
        found += [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return sorted(each.removeprefix(full).rstrip("/") for each in found)

    def stamps(self, below: str) -> dict[str, str]:
        """See Store; the ETag."""
        return {self._short(found["Key"]): found["ETag"] for found in self._listed(below)}

    def is_stamped(self, key: str, tag: str, stamp: str) -> bool:
        """See Store; both are the ETag."""
        return tag == stamp

    def sizes(self, below: str) -> dict[str, int]:
        """See Store."""
        return {self._short(found["Key"]): int(found["Size"]) for found in self._listed(below)}

    def inventory(self, below: str) -> Inventory:
        """See Store."""
        versions = self._versions(below)
        return Inventory(
            objects=sum(entry["IsLatest"] and "Size" in entry for entry in versions),  # a mark has no size
            versions=len(versions),
            uploads=len(self._uploads(below)),
            bytes=sum(entry.get("Size", 0) for entry in versions),
        )

    def earlier(self, key: str, target: Path) -> Iterator[None]:
        """See Store."""
        for version in self._versions(key):
            if version["Key"] == self._full(key) and "Size" in version and not version["IsLatest"]:
                with self._told("get"):
                    wanted = {"VersionId": version["VersionId"]}
                    self.client.download_file(self.bucket, self._full(key), str(target), ExtraArgs=wanted)
                yield

    def delete(self, below: str, *, only: Callable[[str], bool] = lambda _: True) -> int:
        """See Store; delete markers and unfinished uploads go too."""
        count = self._delete_versions(below, only)
        for upload in self._uploads(below):
            if only(self._short(upload["Key"])):
                self._abort(upload["Key"], upload["UploadId"])
        return count

    def _delete_versions(self, below: str, only: Callable[[str], bool] = lambda _: True) -> int:
        versions = [
            {name: each[name] for name in ("Key", "VersionId") if name in each}
            for each in self._versions(below)
            if only(self._short(each["Key"]))
        ]
        for start in range(0, len(versions), AT_ONCE):
            some = {"Objects": versions[start : start + AT_ONCE], "Quiet": True}
            failed = self._ask("delete_objects", Delete=some).get("Errors", [])
            if any(each.get("Code") in FORBIDDEN for each in failed):
                raise ForbiddenError(
                    f"{self._address()} forbids `delete_objects` to these keys (AccessDenied); infra/access says which "
                    "role may."
                )
            if failed:
                raise StoreError(f"{len(failed)} objects could not be deleted, the first is {failed[0]}; run again.")
        return len(versions)

    def link(self, key: str, *, seconds: int) -> str:
        """See Store; signed, so that it holds for one object and this long only."""
        if not 0 < seconds <= self.link_max_s:
            raise InputError(
                f"A link may hold for up to {self.link_max_s} s, not for {seconds}; make a new one instead."
            )
        asked = {"Bucket": self.bucket, "Key": self._full(key)}
        kind = KINDS.get(PurePosixPath(key).suffix)
        if kind is not None:
            asked["ResponseContentType"] = kind  # else a browser would save it
        client = _client(self.pages) if self.pages else self.client
        return str(client.generate_presigned_url("get_object", Params=asked, ExpiresIn=seconds))

    def versioning(self) -> str:
        """Return `Enabled`, `Suspended`, or "" where the bucket never kept versions or its server keeps none."""
        try:
            return str(self._ask("get_bucket_versioning").get("Status", ""))
        except _UnsupportedError:
            return ""

    def encryption(self) -> str:
        """Return how the bucket encrypts what is put there, as `aws:kms KEY` or `AES256`; "" where that is unknown."""
        try:
            rules = self._ask("get_bucket_encryption")["ServerSideEncryptionConfiguration"]["Rules"]
        except (_AbsentError, _UnsupportedError):
            return ""
        default = rules[0].get("ApplyServerSideEncryptionByDefault", {}) if rules else {}
        return f"{default.get('SSEAlgorithm', '')} {default.get('KMSMasterKeyID', '')}".strip()

    def require_deletable(self, key: str) -> None:
        """Pass if these keys may delete an object, tried with one that must not exist: `null` is never its version.

        Raises:
            InputError: they may not.
        """
        some = {"Objects": [{"Key": self._full(key), "VersionId": "null"}], "Quiet": True}
        for error in self._ask("delete_objects", Delete=some).get("Errors", []):
            if error.get("Code") in FORBIDDEN:
                raise InputError(f"{self._address()} forbids these keys to delete ({error['Code']}).")

    def _put(self, key: str, body: IO[bytes] | bytes, sha256: bytes, **condition: str) -> str:
        """Put an object and return its tag.

        The first conditional request of a process to a bucket stands between two that must fail: a server that ignores
        a condition shows it there, before it overwrites what others wrote.

        Raises:
            ConflictError: the condition does not hold, and not because of an earlier try of this very request.
            InputError: the server ignores conditions or refuses them.
        """
        if condition and not self._is_honoured("If-None-Match"):
            self._require_condition_by_looking(key, **condition)
            self._require_if_match(key, body, sha256)
        writer = uuid4().hex
        tag = self._put_once(key, body, sha256, writer, **condition)
        if condition and not self._is_honoured("If-None-Match"):
            self._require_if_none_match(key, body, sha256, writer)
        return tag

    def _put_once(self, key: str, body: IO[bytes] | bytes, sha256: bytes, writer: str, **condition: str) -> str:
        for _ in range(TRIES):
            try:
                return str(self._ask_to_put(key, body, sha256, writer, **condition)["ETag"])
            except _UndecidedError:
                continue
            except (_TakenError, _AbsentError):  # 404 is how If-Match meets a deleted object
                return self._written_by(key, writer)
        raise StoreError(f"{key} in {self._address()} was written or deleted by others {TRIES} times; run again.")

    def _ask_to_put(self, key: str, body: IO[bytes] | bytes, sha256: bytes, writer: str, **condition: str) -> Any:
        if not isinstance(body, bytes):
            body.seek(0)
        try:
            return self._ask(
                "put_object",
                Key=self._full(key),
                Body=body,
                Metadata={"writer": writer},
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=_text(sha256),
                **condition,
            )
        except _UnsupportedError:
            if not condition:
                raise
            raise self._unfit(", ".join(HEADERS[name] for name in condition), "does not implement") from None

    def _require_condition_by_looking(self, key: str, **condition: str) -> None:
        """Pass if a condition holds now, without a word to the server about it.

        Raises:
            ConflictError: it does not.
        """
        found = self._head(key)
        if (found["ETag"] if found else None) != condition.get("IfMatch"):
            raise ConflictError(f"{key} was changed by somebody else")

    def _require_if_match(self, key: str, body: IO[bytes] | bytes, sha256: bytes) -> None:
        """Pass if the server refuses to put an object with a condition that cannot hold; nothing is left of that.

        Args:
            key: Of the object that is about to be put.
            body: Its content: what a server that ignores the condition stores.
            sha256: Of the content.

        Raises:
            InputError: the server ignores the condition or refuses it.
        """
        if self._is_honoured("If-Match"):
            return
        is_new = self._head(key) is None
        try:
            answer = self._ask_to_put(key, body, sha256, uuid4().hex, IfMatch=NO_TAG)
        except (_TakenError, _AbsentError, _UndecidedError):
            self._honours("If-Match")
            return
        except ForbiddenError:  # a policy may ask for another condition, as that of manifests does
            return
        if is_new:
            self._delete_versions(key)
        raise self._unfit("If-Match", "ignores", answer)

    def _require_if_none_match(self, key: str, body: IO[bytes] | bytes, sha256: bytes, writer: str) -> None:
        """Pass if the server refuses to put once more, as if it was not there, what was put a moment ago.

        Raises:
            InputError: the server ignores the condition.
        """
        try:
            answer = self._ask_to_put(key, body, sha256, writer, IfNoneMatch="*")
        except _TakenError:
            self._honours("If-None-Match")
        except _UndecidedError:  # the next request will show it
            return
        else:
            raise self._unfit("If-None-Match", "ignores", answer)

    def _is_honoured(self, header: str) -> bool:
        return (self.client.meta.endpoint_url, self.bucket, header) in _honoured

    def _honours(self, header: str) -> None:
        _honoured.add((self.client.meta.endpoint_url, self.bucket, header))

    def _unfit(self, header: str, does: str, answer: Any = None) -> InputError:
        name = (answer or {}).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("server", "")
        return InputError(
            f"The server of {self._address()}{f' ({name})' if name else ''} {does} the condition {header} of a write, "
            f"so one writer would overwrite another without a word; use another server ({SERVERS}) or a folder."
        )

    def _written_by(self, key: str, writer: str) -> str:
        """Return the tag of what is there if `writer` wrote it: the answer to its first try was lost."""
        found = self._head(key)
        if found is None or found["Metadata"].get("writer") != writer:
            raise ConflictError(f"{key} was changed by somebody else")
        return str(found["ETag"])

    def _put_parts(self, key: str, source: Path) -> bool:
        """Send a file in parts: those that an earlier attempt has sent are not sent again."""
        full = self._full(key)
        if self._head(key) is not None:
            return False
        begun = [upload["UploadId"] for upload in self._uploads(key)]
        upload = begun[0] if begun else self._begin(full)
        try:
            parts = self._sent(full, upload, source)
            self._ask(
                "complete_multipart_upload",
                Key=full,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
        except _TakenError:
            self._abort(full, upload)
            return False
        except _UndecidedError:  # such an upload can never be completed (S3 API reference)
            self._abort(full, upload)
            raise StoreError(
                f"{key} in {self._address()} was written or deleted by others meanwhile; run again."
            ) from None
        except _AbsentError:  # completed by a try whose answer was lost, or by another sender of the same file
            if self._head(key) is None:
                raise StoreError(f"The upload of {key} to {self._address()} is gone; run again.") from None
            return False
        return True

    def _begin(self, full: str) -> str:
        return str(self._ask("create_multipart_upload", Key=full, ChecksumAlgorithm="SHA256")["UploadId"])

    def _sent(self, full: str, upload: str, source: Path) -> list[dict[str, Any]]:
        """Return all parts of the file as the server has them, sent where they were missing."""
        pages = list(self._pages("list_parts", Key=full, UploadId=upload))
        there = {part["PartNumber"]: part for page in pages for part in page.get("Parts", [])}
        parts = []
        for number, content in enumerate(_pieces(source, self.part_bytes), start=1):
            checksum, part = _text(hashlib.sha256(content).digest()), there.get(number)
            if part is None or not _is_part(part, content, checksum):
                part = self._ask(
                    "upload_part", Key=full, UploadId=upload, PartNumber=number, Body=content, ChecksumSHA256=checksum
                )
            parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumSHA256": checksum})
        return parts

    def _abort(self, full: str, upload: str) -> None:
        try:
            self._ask("abort_multipart_upload", Key=full, UploadId=upload)
        except _AbsentError:
            return

    def _uploads(self, below: str) -> list[dict[str, Any]]:
        """Return the unfinished uploads of the key `below` and of all keys below it."""
        pages = self._pages("list_multipart_uploads", Prefix=self._full(below))
        return self._at_or_below(below, [found for page in pages for found in page.get("Uploads", [])])

    def _versions(self, below: str) -> list[dict[str, Any]]:
        """Return the versions, marks of deletions included, of the key `below` and of all keys below it."""
        kinds = ("Versions", "DeleteMarkers")
        try:
            pages = list(self._pages("list_object_versions", Prefix=self._full(below)))
        except _UnsupportedError:
            if self.versioning():
                raise InputError(
                    f"{self._address()} keeps versions, and its server cannot list them, so nobody could be forgotten; "
                    f"switch versioning off in a new bucket, or use another server ({SERVERS})."
                ) from None
            return self._unversioned(below)
        found = self._at_or_below(below, [entry for page in pages for kind in kinds for entry in page.get(kind, [])])
        objects = [] if found else self._unversioned(below)  # a server that takes the request for another lists none
        if objects and self.versioning():
            raise StoreError(f"{self._address()} lists objects and no versions of them; run again.")
        return found or objects

    def _unversioned(self, below: str) -> list[dict[str, Any]]:
        """Return the objects at and below a key as `_versions` does, in a bucket that keeps no versions."""
        pages = self._pages("list_objects_v2", Prefix=self._full(below))
        objects = self._at_or_below(below, [entry for page in pages for entry in page.get("Contents", [])])
        return [{**each, "IsLatest": True} for each in objects]

    def _at_or_below(self, below: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        full = self._full(below)
        return [entry for entry in entries if entry["Key"] == full or entry["Key"].startswith(as_folder(full))]

    def _listed(self, below: str) -> Iterator[dict[str, Any]]:
        for page in self._pages("list_objects_v2", Prefix=self._full(as_folder(below))):
            yield from page.get("Contents", [])

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._ask("head_object", Key=self._full(key), ChecksumMode="ENABLED")
        except _AbsentError:
            return None
        return found

    def _length(self, answer: dict[str, Any], key: str) -> int:
        """Return the size an answer tells; one that was cut off before it tells none."""
        if "ContentLength" not in answer:
            raise StoreError(f"{self._address()} answered for {key} without its size; run again.")
        return int(answer["ContentLength"])

    def _fetched_sha256(self, key: str) -> str:
        def once() -> str:
            digest = hashlib.sha256()
            for chunk in self._ask("get_object", Key=self._full(key))["Body"].iter_chunks(2**20):
                digest.update(chunk)
            return _text(digest.digest())

        return self._until_whole(once)

    def _until_whole(self, once: Callable[[], Answer]) -> Answer:
        """Return what `once` reads, tried again while the connection breaks off or a body is not what was sent."""
        from botocore.exceptions import BotoCoreError

        for _ in range(TRIES - 1):
            try:
                return once()
            except BotoCoreError:
                continue
        with self._told("get_object"):
            return once()

    def _pages(self, operation: str, **request: Any) -> Iterator[dict[str, Any]]:
        with self._told(operation):
            yield from self.client.get_paginator(operation).paginate(Bucket=self.bucket, **request)

    def _ask(self, operation: str, **request: Any) -> Any:
        with self._told(operation):
            return getattr(self.client, operation)(Bucket=self.bucket, **request)

    @contextmanager
    def _told(self, operation: str) -> Iterator[None]:
        """Raise what S3 or the way to it says as one of our own errors, with the remedy."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        try:
            yield
        except ClientError as error:
            raise self._as_ours(error, operation) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise InputError(
                f"There are no keys for {self._address()}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give "
                "the machine a role."
            ) from None
        except (BotoCoreError, Boto3Error) as error:
            raise StoreError(f"{self._address()} did not answer `{operation}`: {error}") from error

    def _as_ours(self, error: Any, operation: str) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ABSENT | {"NoSuchUpload"}:
            return _AbsentError(str(error))
        if code in TAKEN:
            return _TakenError(str(error))
        if code in UNDECIDED:
            return _UndecidedError(str(error))
        if code in UNSUPPORTED:
            return _UnsupportedError(
                f"The server of {self._address()} does not implement `{operation}` ({code}); use another server "
                f"({SERVERS}) or a folder."
            )
        if code in SKEWED:
            return StoreError(
                f"{self._address()} refuses this machine's clock; set it (NTP), more than 15 minutes off are too many."
            )
        if code in FORBIDDEN:
            return ForbiddenError(
                f"{self._address()} forbids `{operation}` to these keys ({code}); infra/access says which role may."
            )
        if code == "NoSuchBucket":
            return InputError(
                f"There is no bucket {self.bucket}; make it as infra/access says, or correct ZIMAGE_STORE."
            )
        return StoreError(f"{self._address()} answered `{operation}` with {code}: {error}")

    def _address(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def _full(self, key: str) -> str:
        """Return the key in the bucket; one that ends with a slash is the beginning of many."""
        if key:
            checked_key(key.removesuffix("/"))
        return f"{self.prefix}/{key}" if self.prefix else key

    def _short(self, full: str) -> str:
        return full.removeprefix(f"{self.prefix}/") if self.prefix else full


class _AbsentError(StoreError):
    """There is no such object, version or upload."""


class _TakenError(StoreError):
    """The condition of a conditional request does not hold."""


class _UnsupportedError(InputError):
    """The server does not know such a request, or a header of it."""


class _UndecidedError(StoreError):
    """The server did not say whether the condition of a conditional request holds."""


def _pieces(source: Path, size: int) -> Iterator[bytes]:
    with source.open("rb") as file:
        while piece := file.read(size):
            yield piece


def _checksums(source: Path, size: int) -> tuple[str, str]:
    """Return the SHA-256 of a file as S3 tells it: of the whole, and of the digests of its parts."""
    whole, parts, count = hashlib.sha256(), hashlib.sha256(), 0
    for piece in _pieces(source, size):
        whole.update(piece)
        parts.update(hashlib.sha256(piece).digest())
        count += 1
    return _text(whole.digest()), f"{_text(parts.digest())}-{count}"


def _is_part(part: dict[str, Any], content: bytes, checksum: str) -> bool:
    """Return whether the server has this part already; by ETag where it keeps no checksum."""
    if "ChecksumSHA256" in part:
        return bool(part["ChecksumSHA256"] == checksum)
    return str(part["ETag"]).strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest()


def _text(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
