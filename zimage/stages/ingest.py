"""Stage `ingest`: decode photos to clean pictures, one row per file, after the consent was read."""

import datetime
import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from zimage.consent import read_consent, require
from zimage.core.errors import InputError
from zimage.core.folder import check_out, made_aside, refused_of, share
from zimage.core.jsonl import write_metrics, write_rows
from zimage.core.progress import Progress
from zimage.core.section import Section
from zimage.curation.contact_sheet import SHEET, THUMBNAILS, Tile, contact_sheet
from zimage.curation.manifest import unseen_row
from zimage.faces.observation import THUMBNAIL_PX, THUMBNAIL_QUALITY
from zimage.photos.cache import Cache, cache_of, salt
from zimage.photos.clean import read_clean
from zimage.photos.decode import Limits
from zimage.photos.given_file import Given
from zimage.photos.intake import PICTURE, Intake, Taken, memory_needed
from zimage.photos.kinds import SIDECAR
from zimage.photos.pictures import fitted, jpeg
from zimage.photos.rows import PhotoRow
from zimage.photos.sources import expected, given
from zimage.photos.worker_pool import Lost, mapped

logger = logging.getLogger(__name__)

EXAMPLES_SHOWN = 3


class IngestParams(Section):
    """Limits of files and pictures."""

    min_photos: Annotated[int, Field(ge=1)]
    """Photos that must be left after all refusals."""
    max_files: Annotated[int, Field(ge=1)]
    """Files that are looked at; the rest get a row and nothing more."""
    max_file_mb: Annotated[int, Field(ge=1)]
    """MB (10^6 bytes); larger files are not read."""
    max_megapixels: Annotated[int, Field(ge=1)]
    """MP; larger pictures are not decoded."""
    max_side_px: Annotated[int, Field(ge=64)]
    """Px; larger pictures are used at this long side."""


def ingest(photos: Path, consent: Path, out: Path, *, params: IngestParams) -> None:
    """Write the photos of a folder or archive as pictures without metadata, and a row for each file but sidecars.

    The day is read from the clock, only to refuse a consent that has expired; nothing written depends on it.

    Args:
        photos: A folder, a zip or a tar; it is never changed.
        consent: The subject's consent.yaml (see zimage.consent).
        out: photos.jsonl, photos/ with the clean pictures (see zimage.photos.clean) and metrics.json. Where too few can
            be used, photos.jsonl and a contact sheet are in <out>.refused instead.
        params: Limits of files and pictures.

    Raises:
        InputError: see `check_out`; consent is missing, expired or excludes training; there are no photos, or too
            few can be used.
    """
    require(read_consent(consent), "training", datetime.datetime.now(tz=datetime.UTC).date())
    check_out(out, (photos, consent), holds="photos.jsonl")
    shutil.rmtree(refused_of(out), ignore_errors=True)
    cache = Cache(cache_of(out), salt("zimage.photos.intake", f"{params.max_side_px} {params.max_megapixels}"))
    with made_aside(out) as aside:
        (aside / "photos").mkdir()
        found = list(_taken_in(photos, aside, cache, params))
        rows = _with_times_from_zero([row for row in found if row.reason != SIDECAR[0]])
        sidecars = len(found) - len(rows)
        try:
            _check(rows, photos, params)
        except InputError as refusal:
            raise _with_evidence(refusal, rows, aside, out) from None
        write_rows(aside / "photos.jsonl", rows)
        write_metrics(aside / "metrics.json", _metrics(rows, sidecars))
    cache.prune()
    if sidecars:
        logger.info("left out %d files that go with photos, such as .json, .AAE and __MACOSX", sidecars)
    logger.info("took in %d of %d files from %s", sum(row.status == "kept" for row in rows), len(rows), photos)


def _taken_in(photos: Path, aside: Path, cache: Cache, params: IngestParams) -> Iterator[PhotoRow]:
    """Yield a row for each file, in order; kept pictures are in `aside` by then."""
    max_bytes = params.max_file_mb * 1_000_000
    limits = Limits(max_megapixels=params.max_megapixels, max_side_px=params.max_side_px)
    files = given(photos, max_files=params.max_files, max_bytes=max_bytes)
    first_names: dict[str, str] = {}
    work = partial(Intake, limits, max_bytes, cache.folder, cache.salt)
    with Progress("ingest", expected(photos)) as progress:
        for one, taken in mapped(work, files, Taken, memory_bytes=memory_needed(limits, max_bytes)):
            row = _row(one, taken, first_names)
            if row.file is not None and isinstance(taken, Taken) and taken.entry is not None:
                cache.keep(taken.entry)
                share((taken.entry / PICTURE).with_suffix(Path(row.file).suffix), aside / row.file)
            progress.advance()
            yield row


def _row(one: Given, taken: Taken | Lost, first_names: dict[str, str]) -> PhotoRow:
    """Return the row of one file; `first_names` remembers the name under which each content came first."""
    if isinstance(taken, Lost):
        taken = Taken(None, one.size_bytes, reason="crashed", detail=taken.detail)
    elif taken.sha256 is not None and taken.reason is None:
        first = first_names.get(taken.sha256)
        if first is None:
            first_names[taken.sha256] = one.name
        else:
            taken = Taken(taken.sha256, taken.size_bytes, reason="same_file", detail=f"The same bytes as {first}.")
    photo = (taken.sha256 or hashlib.sha256(one.name.encode()).hexdigest())[:16]
    facts = taken.facts if taken.reason is None else None
    return PhotoRow(
        photo=photo,
        sha256=taken.sha256,
        name=one.name,
        size_bytes=taken.size_bytes,
        status="rejected" if facts is None else "kept",
        reason=taken.reason,
        detail=taken.detail,
        notes=facts.notes if facts else [],
        file=f"photos/{photo}{facts.suffix}" if facts else None,
        format=facts.format if facts else None,
        width=facts.width if facts else None,
        height=facts.height if facts else None,
        taken_at=facts.taken_s if facts else None,
    )


def _with_times_from_zero(rows: list[PhotoRow]) -> list[PhotoRow]:
    """Return the rows with capture times counted from the earliest: enough for bursts, and no date is kept."""
    first = min((row.taken_at for row in rows if row.taken_at is not None), default=0.0)
    return [
        row if row.taken_at is None else row.model_copy(update={"taken_at": round(row.taken_at - first, 3)})
        for row in rows
    ]


def _check(rows: list[PhotoRow], photos: Path, params: IngestParams) -> None:
    kept = sum(row.status == "kept" for row in rows)
    if not rows:
        raise InputError(f"{photos} is empty; put at least {params.min_photos} photos of the person into it.")
    if kept < params.min_photos:
        raise InputError(
            f"Only {kept} of the {len(rows)} files in {photos} can be used, and ingest.min_photos asks for "
            f"{params.min_photos}{_refusals(rows)}; add photos of the person.{_commonest(rows)}",
            names=_refused(rows),
        )


def _with_evidence(refusal: InputError, rows: list[PhotoRow], taken_in: Path, out: Path) -> InputError:
    """Leave table and contact sheet beside the output, and return the refusal with their place."""
    place = refused_of(out)
    with made_aside(place) as aside:
        (aside / THUMBNAILS).mkdir()
        tiles = []
        for row in rows:
            size = None
            if row.file is not None and row.width is not None and row.height is not None:
                small = fitted(read_clean(taken_in / row.file, max(row.width, row.height)), THUMBNAIL_PX)
                (aside / THUMBNAILS / f"{row.photo}.jpg").write_bytes(jpeg(small, THUMBNAIL_QUALITY))
                size = small.shape[1], small.shape[0]
            tiles.append(Tile(unseen_row(row), size, []))
        write_rows(aside / "photos.jsonl", rows)
        sheet = contact_sheet(tiles, engine="", unused_overrides=[], refusal=str(refusal))
        (aside / SHEET).write_text(sheet, encoding="utf-8")
    return InputError(f"{refusal} {place / SHEET} shows every file with its reason.", names=refusal.names)


def _refusals(rows: list[PhotoRow]) -> str:
    """Return the refusals as a clause such as ` (2 truncated, 1 empty)`."""
    counts = [f"{len(names)} {reason.replace('_', ' ')}" for reason, names in _names_by_reason(rows).items()]
    return f" ({', '.join(counts)})" if counts else ""


def _commonest(rows: list[PhotoRow]) -> str:
    """Return the cause and remedy of the commonest refusal as a sentence; those of copies would name a photo."""
    details = Counter(row.detail for row in rows if row.detail and row.reason not in (None, "same_file"))
    return f" The commonest refusal: {details.most_common(1)[0][0]}" if details else ""


def _refused(rows: list[PhotoRow]) -> str:
    """Return which files were refused, as a sentence such as `Refused: truncated a.jpg, b.jpg; empty c.jpg`."""
    clauses = []
    for reason, names in _names_by_reason(rows).items():
        more = ", …" if len(names) > EXAMPLES_SHOWN else ""
        clauses.append(f"{reason.replace('_', ' ')} {', '.join(names[:EXAMPLES_SHOWN])}{more}")
    return f"Refused: {'; '.join(clauses)}" if clauses else ""


def _names_by_reason(rows: list[PhotoRow]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.reason is not None:
            found.setdefault(row.reason, []).append(row.name)
    return dict(sorted(found.items()))


def _metrics(rows: list[PhotoRow], sidecars: int) -> dict[str, object]:
    reasons = Counter(row.reason for row in rows if row.reason is not None)
    kept = [row for row in rows if row.status == "kept"]
    return {
        "files": len(rows),
        "kept": len(kept),
        "rejected": len(rows) - len(kept),
        "sidecars": sidecars,
        "rejected_by_reason": dict(sorted(reasons.items())),
        "kept_by_format": dict(sorted(Counter(str(row.format) for row in kept).items())),
        "kept_without_capture_time": sum(row.taken_at is None for row in kept),
    }
