"""Check the store that ZIMAGE_STORE names: rights, conditional writes, versions, encryption, each with its remedy.

An object is written below `probe/` and deleted again, where these keys may delete.
"""

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from tasks.settings import Settings, from_environment
from tasks.store.s3 import SERVERS, ConflictError, FolderStore, S3Store, open_store, store_errors
from zimage.cli.doctor import Finding
from zimage.core.errors import InputError

ROLES = "infra/access says what each role may; examine with the keys of whoever set the store up"


def examine_environment() -> list[Finding]:
    """Return what was found of the store that the environment names."""
    try:
        return examine(from_environment())
    except InputError as error:
        return [Finding("store", "missing", "ZIMAGE_STORE names none", str(error))]
    except ImportError as error:
        return [Finding("store", "missing", str(error), "`pip install -c constraints.txt -e .[pipeline]`")]


def examine(settings: Settings) -> list[Finding]:
    """Return what was found of the store: reach, rights, conditions, versions, encryption."""
    refused: tuple[type[Exception], ...] = (InputError, *store_errors())
    try:
        store = open_store(settings.store)
        store.list_children("subjects")
    except refused as error:
        remedy = str(error) if isinstance(error, InputError) else f"{error}; start its server, or correct ZIMAGE_STORE"
        return [Finding("store", "missing", f"{settings.store} cannot be read", remedy)]
    if isinstance(store, S3Store):
        return [_reached(settings), *_bucket(store)]
    assert isinstance(store, FolderStore)
    return [_reached(settings), *_folder(store.root)]


def _reached(settings: Settings) -> Finding:
    return Finding("store", "present", f"{settings.store}{f' at {settings.endpoint}' if settings.endpoint else ''}")


def _bucket(store: S3Store) -> list[Finding]:
    key = f"probe/{uuid4().hex}"
    rights = _tried("store rights", lambda: _rights(store, key))
    if rights.state == "present":
        conditions = _tried("store conditions", lambda: _conditions(store, key))
    else:
        conditions = Finding("store conditions", "without", "not tried, as a probe could not be deleted", ROLES)
    return [
        rights,
        conditions,
        _tried("store versions", lambda: _versions(store, key)),
        _tried("store encryption", lambda: _encryption(store)),
    ]


def _tried(subject: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except InputError as error:
        return Finding(subject, "missing", "not usable", str(error))
    except store_errors() as error:
        return Finding(subject, "missing", str(error), "run `zimage doctor` again; then look at the server's own log")


def _rights(store: S3Store, key: str) -> Finding:
    store.read(key)
    store.require_deletable(key)
    return Finding("store rights", "present", "these keys may list, read and delete")


def _conditions(store: S3Store, key: str) -> Finding:
    """Write, compare and swap; the store itself looks whether its server honours the conditions of that."""
    try:
        first = store.compare_and_swap(key, b"probe", None)
        store.compare_and_swap(key, b"probe again", first)
        try:
            store.compare_and_swap(key, b"too late", first)
        except ConflictError:
            return Finding("store conditions", "present", "If-Match and If-None-Match are honoured")
        return Finding(
            "store conditions", "missing", "a write with an old If-Match was taken", f"use another server; {SERVERS}"
        )
    finally:
        with suppress(InputError):  # the line on versions reports that uploads cannot be listed
            store.delete(key)


def _versions(store: S3Store, key: str) -> Finding:
    store.inventory(key)
    status = store.versioning()
    if status == "Enabled":
        return Finding("store versions", "present", "kept, and `forget` can list and delete them")
    remedy = "switch versioning on (infra/access/versioning.json): a damaged object is then mended from an earlier one"
    return Finding("store versions", "without", f"{status or 'none'}: what is overwritten is gone", remedy)


def _encryption(store: S3Store) -> Finding:
    found = store.encryption()
    if found:
        return Finding("store encryption", "present", found)
    remedy = "give the bucket a key (infra/access/encryption.json), or encrypt the disks of its server"
    return Finding("store encryption", "without", "the server tells of none", remedy)


def _folder(root: Path) -> list[Finding]:
    made = next(each for each in (root, *root.parents) if each.is_dir())
    try:
        with TemporaryDirectory(dir=made, prefix=".probe-") as folder:
            rights = Finding("store rights", "present", "its folder can be written")
            conditions = _links_and_locks(Path(folder))
    except OSError as error:
        remedy = f"let this user write in {made}, or name another folder in ZIMAGE_STORE"
        return [Finding("store rights", "missing", f"{made} cannot be written ({error.strerror})", remedy)]
    return [
        rights,
        conditions,
        Finding("store versions", "without", "a folder keeps none", "use a bucket with versioning, or backups"),
        Finding("store encryption", "without", "a folder has none", "use an encrypted file system"),
    ]


def _links_and_locks(folder: Path) -> Finding:
    """Try what compare-and-swap in a folder stands on."""
    path = folder / "probe"
    try:
        with path.open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.link(path, folder / "link")
    except OSError as error:
        remedy = "put the store on a local disk or NFS 4; exFAT and some network file systems have neither"
        return Finding("store conditions", "missing", f"no hard links or no locks here ({error.strerror})", remedy)
    return Finding("store conditions", "present", "hard links and locks work here")
