"""Import a subject's photos into the workspace from a folder, an archive or a bucket prefix."""

import filecmp
import hashlib
import logging
import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from tasks.store.bucket import Bucket, Listed
from zimage.core.errors import InputError
from zimage.core.folder import aside_of, made_aside
from zimage.photos.decode import KNOWN, begins_like_a_picture
from zimage.photos.given_file import Given, TooManyFilesError
from zimage.photos.kinds import HEAD_BYTES, is_sidecar, kind_refusal
from zimage.photos.sources import given

logger = logging.getLogger(__name__)

# What a prefix may hold; more is no album, but a bucket that was named by mistake.
MOST_FILES, MOST_BYTES = 100_000, 50_000_000_000
MOST_BYTES_AN_ENTRY = 200_000_000  # of an archive, which is read at once; no photo is larger
SPARE_BYTES = 2_000_000_000  # that a disk keeps when photos have been fetched
AT_ONCE = 8
NAME_BYTES = 200  # of one part of a path; file systems take 255, and files made aside are called a little longer
STRANGE = "renamed"
NAMED = 5  # files in a sentence


@contextmanager
def brought(source: str, target: Path) -> Iterator[Path | None]:
    """Yield a copy of `source`, which replaces `target` at the end of the block; None if they are equal.

    On failure, the block's too, `target` is as it was.

    Args:
        source: A folder, an archive file (which stays one), or `s3://bucket/prefix`; is only read.
        target: `data/photos` of a workspace; a folder, or a file where the source is an archive.

    Raises:
        InputError: there is nothing at `source`, it cannot be read, or it is too large to be photos.
        StoreError: its bucket is away.
    """
    if source.startswith("s3://"):
        with _objects(Bucket.at(source), target) as aside:
            yield aside
        return
    path = Path(source).expanduser()
    refuse_absent(source)
    with _folder(path, target) if path.is_dir() else _file(path, target) as aside:
        yield aside


def refuse_absent(source: str) -> None:
    """Pass if there is a file or a folder at `source`, which is no address of a bucket.

    Raises:
        InputError: there is not.
    """
    path = Path(source).expanduser()
    if not path.is_dir() and not path.is_file():
        raise InputError(
            f"There are no photos at {source}; name a folder, a zip or tar archive, or s3://bucket/prefix."
        )


def refuse_without_pictures(folder: Path, source: str, *, least: int = 1) -> None:
    """Pass if some files of a folder or archive begin like pictures; whether they are, `ingest` finds out.

    Args:
        folder: What came from `source`.
        source: As the user named it.
        least: How many have to.

    Raises:
        InputError: there are none or fewer, or an archive cannot be read.
    """
    files = given(folder, max_files=MOST_FILES, max_bytes=MOST_BYTES_AN_ENTRY)
    causes: list[str] = []
    try:
        found = sum(1 for _ in islice(filter(partial(_begins_like_a_picture, causes), files), least))
    except TooManyFilesError:
        raise TooManyFilesError(source) from None
    except InputError as error:  # it names the workspace's file, which the user does not know
        found, causes = 0, [" " + str(error).replace(str(folder), source)]
    if 0 < found < least:
        raise InputError(
            f"There are only {found} photos at {source}, and ingest.min_photos asks for {least}; add photos of the "
            "person."
        )
    if not found:
        raise InputError(
            f"There are no photos at {source} ({KNOWN}); name a folder, a zip or tar archive, or s3://bucket/prefix "
            f"that holds some.{causes[0] if causes else ''}"
        )


def _begins_like_a_picture(causes: list[str], one: Given) -> bool:
    """Return whether a file may be a photo; the first cause why one is not is added to `causes`."""
    refusal, head = one.refusal, b""
    if one.path is not None:
        with one.path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    elif one.content is not None:
        head = one.content[:HEAD_BYTES]
    refusal = refusal or kind_refusal(head)
    if refusal is not None and not causes and not is_sidecar(one.name):
        causes.append(f" One file was refused: {refusal[1]}")
    return refusal is None and begins_like_a_picture(head)


def places(keys: Sequence[str]) -> dict[str, str]:
    """Return a relative path for each key, which is the key itself wherever that can be a file of its own.

    A key that leads out of the folder, is no path, is too long, or differs from an earlier one (in order) by case or
    by the way its accents are written, gets a name by its hash: on some disks it would be, or replace, another file.
    """
    taken: set[str] = set()
    folders = {STRANGE}
    found = {}
    for key in sorted(keys):
        folded = _folded(key)
        above = [_folded(key[:at]) for at, letter in enumerate(key) if letter == "/"]
        usable = _is_path(key) and folded not in taken | folders and not taken.intersection(above)
        found[key] = key if usable else _by_hash(key)
        taken.add(_folded(found[key]))
        folders.update(above if usable else [])
    return found


@contextmanager
def _folder(source: Path, target: Path) -> Iterator[Path | None]:
    files, refused = _regular(source)
    if refused:
        more = ", …" if len(refused) > NAMED else ""
        logger.warning(
            "%d of %d entries in %s are no files of it that can be read, and stay there: %s%s",
            *(len(refused), len(refused) + len(files), source, ", ".join(map(ascii, refused[:NAMED])), more),
        )
    if target.is_dir() and _same(files, target):
        yield None
        return
    with made_aside(target) as aside:
        for name, path in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, aside / name)
        yield aside
        _clear_file(target)


def _regular(source: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the files below a folder by name, and the names of what is none or must not be read.

    Links to folders, and those that lead out of the folder, are not followed.

    A name that is no text, from a disk of another time, becomes one by its hash: DVC ends at it (3.67).
    """
    files: dict[str, Path] = {}
    unread: list[OSError] = []
    refused: list[str] = []
    inside = source.resolve()
    for here, folders, names in os.walk(source, onerror=unread.append):
        refused += [_name(Path(here, each), source) for each in folders if Path(here, each).is_symlink()]
        for path in (Path(here, each) for each in names):
            name = _name(path, source)
            if _is_readable(path) and path.resolve().is_relative_to(inside):
                files[name if _is_text(name) else _by_hash(name)] = path
            else:
                refused.append(name)
    return files, sorted(refused + [_name(Path(error.filename), source) for error in unread])


def _is_text(name: str) -> bool:
    return name.encode("utf-8", "ignore").decode() == name


def _is_readable(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode) and os.access(path, os.R_OK)
    except OSError:
        return False


@contextmanager
def _file(source: Path, target: Path) -> Iterator[Path | None]:
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        yield None
        return
    aside = aside_of(target)
    if aside.is_dir():
        shutil.rmtree(aside)
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, aside)
        yield aside
        if target.is_dir():
            shutil.rmtree(target)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _objects(bucket: Bucket, target: Path) -> Iterator[Path | None]:
    found = bucket.listed(MOST_FILES)
    if not found:
        raise InputError(f"There are no photos at {bucket.address}; check the bucket and the prefix.")
    _check_size(found, bucket.address, target)
    place = places([one.key for one in found])
    if strange := [f"{key!r}: {name}" for key, name in place.items() if name != key]:
        logger.warning("%d keys cannot be file names: %s", len(strange), "; ".join(strange[:NAMED]))
    present = {one.key for one in found if one.is_content_of(target / place[one.key])}
    if len(present) == len(found) and _names(target) == sorted(place.values()):
        yield None
        return
    with made_aside(target) as aside:

        def bring(one: Listed) -> None:
            path = aside / place[one.key]
            path.parent.mkdir(parents=True, exist_ok=True)
            if one.key in present:
                shutil.copy2(target / place[one.key], path)
            else:
                bucket.fetch(one, path)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                list(pool.map(bring, found))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        logger.info("fetched %d of %d files from %s", len(found) - len(present), len(found), bucket.address)
        yield aside
        _clear_file(target)


def _check_size(found: Sequence[Listed], address: str, target: Path) -> None:
    total = sum(one.size_bytes for one in found)
    largest = max(found, key=lambda one: one.size_bytes)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free - SPARE_BYTES
    if total > min(MOST_BYTES, free):
        limit = f"at most {_gb(MOST_BYTES)} are taken" if free > MOST_BYTES else f"this disk has {_gb(max(free, 0))}"
        raise InputError(
            f"{address} holds {_gb(total)} in {len(found)} files, the largest with "
            f"{_gb(largest.size_bytes)}, and {limit}; name a prefix with photos only, or make room.",
            names=f"The largest is {largest.key}",
        )


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def _is_path(key: str) -> bool:
    parts = key.split("/")
    return all(
        part not in {"", ".", ".."} and part.isprintable() and len(part.encode("utf-8", "replace")) <= NAME_BYTES
        for part in parts
    )


def _by_hash(key: str) -> str:
    suffix = re.search(r"\.[A-Za-z0-9]{1,8}$", key)
    return f"{STRANGE}/{hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()[:16]}{suffix[0] if suffix else ''}"


def _folded(key: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", key).casefold())


def _clear_file(target: Path) -> None:
    if target.is_file():
        target.unlink()


def _same(files: dict[str, Path], folder: Path) -> bool:
    """Return whether a folder holds just these files with this content."""
    return sorted(files) == _names(folder) and all(
        filecmp.cmp(path, folder / name, shallow=False) for name, path in files.items()
    )


def _names(folder: Path) -> list[str]:
    return sorted(_name(path, folder) for path in _walked(folder))


def _walked(folder: Path) -> Iterator[Path]:
    for here, _, names in os.walk(folder):
        yield from (Path(here, each) for each in names)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
