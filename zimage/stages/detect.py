"""Stage `detect`: find the subject's face, select photos by quality, split training and hold-out, and cut crops."""

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from zimage.core.errors import InputError
from zimage.core.folder import METRICS, check_out, made_aside, refused_of, share
from zimage.core.jsonl import read_rows, write_metrics, write_rows
from zimage.core.progress import Progress
from zimage.core.section import Section
from zimage.curation.bursts import DuplicateParams
from zimage.curation.contact_sheet import SHEET, THUMBNAILS, PersonShown, Portrait, Tile, contact_sheet
from zimage.curation.crops import CropParams, holdout_plan
from zimage.curation.cutting import ALIGNED, Cutter, Job, read_cuts
from zimage.curation.decisions import PersonSeen, Rules, curate, opened
from zimage.curation.manifest import manifest_row, set_metrics
from zimage.curation.overrides import Override, read_overrides
from zimage.curation.photo_decision import PhotoDecision
from zimage.curation.quality_limits import QualityParams
from zimage.curation.references import read_references
from zimage.curation.split import SplitParams
from zimage.curation.subject_match import SubjectParams
from zimage.faces.engine import EngineInfo, EngineParams, open_engine, require_pinned_pack
from zimage.faces.observation import Observation, Observer, read_observation
from zimage.photos.cache import Cache, cache_of, salt
from zimage.photos.rows import CropRow, Cut, ManifestRow, PhotoRow
from zimage.photos.worker_pool import Lost, WorkerPool

logger = logging.getLogger(__name__)

PORTRAITS = 6  # faces of each person on the contact sheet


class DetectParams(Section):
    """Face engine, limits of photos, split and crops."""

    engine: EngineParams
    """What finds and compares faces."""
    subject: SubjectParams
    """Whose photos these are."""
    quality: QualityParams
    """What is good enough."""
    duplicates: DuplicateParams
    """What shows the same."""
    split: SplitParams
    """What is held out."""
    crops: CropParams
    """What is cut out."""


def detect(ingest: Path, overrides: Path, out: Path, *, params: DetectParams) -> None:
    """Write the photos worth training on as crops with face masks, and a decision with its reason for every photo.

    Args:
        ingest: photos.jsonl and photos/ as ingest wrote them.
        overrides: May hold decisions.yaml (see zimage.curation.overrides) and reference/ with photos of the subject.
        out: manifest.jsonl, crops.jsonl, train/, holdout/, masks/, aligned/, contact_sheet.html with its pictures in
            thumbnails/, and metrics.json. Where the photos are refused, table and sheet are in <out>.refused instead.
        params: Face engine, limits of photos, split and crops.

    Raises:
        InputError: see `check_out`; no face in any photo, more than one person who may be meant, or too few photos.
    """
    check_out(out, (ingest, overrides), holds="manifest.jsonl")
    shutil.rmtree(refused_of(out), ignore_errors=True)
    decisions = read_overrides(overrides)
    require_pinned_pack(params.engine, "detect.engine")
    engine = open_engine(params.engine)
    seen_cache, cuts_cache = _caches(out, engine.info, params.engine)
    work = partial(
        _Work,
        Observer(params.engine, ingest, seen_cache.folder, seen_cache.salt),
        Cutter(cuts_cache.folder, cuts_cache.salt),
    )
    with WorkerPool(work, Path) as pool:
        rows, seen = _looked_at(read_rows(ingest / "photos.jsonl", PhotoRow), pool, seen_cache)
        album = _Album(opened(rows, seen, decisions), [], engine.info, _unused(decisions, rows))
        _decide(album, overrides, out, params)
        cases = album.cases
        jobs = {case.row.photo: _job(case, ingest, engine.info, params.crops) for case in cases if case.chosen}
        with made_aside(out) as aside:
            crops = list(_cut(cases, jobs, pool, cuts_cache, aside))
            manifest = _write_tables(aside, album, jobs, crops)
            write_rows(aside / "crops.jsonl", crops)
            metrics = set_metrics(manifest, crops, engine.info, album.unused)
            write_metrics(aside / METRICS, metrics | {"people": [one.photos for one in album.people]})
    seen_cache.prune()
    cuts_cache.prune()
    counts = Counter(case.decision for case in cases)
    logger.info("decided: %s", ", ".join(f"{count} {decision}" for decision, count in counts.items()))
    _say_who(album, out)


@dataclass(frozen=True)
class _Work:
    """The work of one process: it observes every photo, and cuts those that were chosen later."""

    observer: Observer
    cutter: Cutter

    def __call__(self, item: PhotoRow | Job) -> Path:
        """Return the cache folder of what was seen on a photo, or of what was cut out of it."""
        return self.observer(item) if isinstance(item, PhotoRow) else self.cutter(item)


@dataclass(frozen=True)
class _Album:
    """All photos of a run with their decisions so far.

    Args:
        cases: Every file.
        people: Who is in a substantial part of the photos, the subject first.
        info: The engine that found them.
        unused: Hashes that a human decided about, but that no photo has.
    """

    cases: list[PhotoDecision]
    people: list[PersonSeen]
    info: EngineInfo
    unused: list[str]


def _decide(album: _Album, overrides: Path, out: Path, params: DetectParams) -> None:
    """Decide on every photo; where the photos are refused, leave table and contact sheet beside the output."""
    try:
        curate(
            album.cases,
            album.people,
            references=read_references(overrides / "reference", params.engine, album.info),
            info=album.info,
            rules=Rules(
                params.engine.min_score, params.subject, params.quality, params.duplicates, params.split, params.crops
            ),
        )
    except InputError as refusal:
        raise _with_evidence(refusal, album, out) from None


def _with_evidence(refusal: InputError, album: _Album, out: Path) -> InputError:
    """Leave table and contact sheet beside the output, and return the refusal with their place."""
    place = refused_of(out)
    with made_aside(place) as aside:
        _write_tables(aside, album, {}, [], refusal=str(refusal))
    sheet = f"{place / SHEET} shows every photo with its reason and its code for decisions.yaml."
    return InputError(f"{refusal} {sheet}", names=refusal.names)


def _say_who(album: _Album, out: Path) -> None:
    """Warn that other people are in many of the photos."""
    first, *others = album.people
    if others:
        logger.warning(
            "the subject is in %d photos, and other people are in many as well (%s); %s shows whose face was taken, "
            "and detect.subject.reference names a photo of somebody else",
            first.photos,
            ", ".join(str(one.photos) for one in others),
            out / SHEET,
        )


def _caches(out: Path, info: EngineInfo, engine: EngineParams) -> tuple[Cache, Cache]:
    """Return the caches of observations and crops; neither depends on a threshold, so no salt contains one."""
    sees = f"{info.engine_id} {info.model_sha256} {engine.min_score}"
    return (
        Cache(cache_of(out) / "seen", salt("zimage.faces.observation", sees)),
        Cache(cache_of(out) / "cuts", salt("zimage.curation.cutting")),
    )


def _looked_at(
    rows: list[PhotoRow], pool: WorkerPool[PhotoRow | Job, Path], cache: Cache
) -> tuple[list[PhotoRow], dict[str, Observation]]:
    """Return what was seen on each kept photo, and the rows: those of photos that no process survived are rejected."""
    kept = [row for row in rows if row.status == "kept"]
    seen: dict[str, Observation] = {}
    lost: dict[str, str] = {}
    with Progress("detect", len(kept)) as progress:
        for row, (_, entry) in zip(kept, pool.mapped(kept), strict=True):
            if isinstance(entry, Lost):
                lost[row.photo] = entry.detail
            else:
                cache.keep(entry)
                seen[row.photo] = read_observation(entry)
            progress.advance()
    return [_rejected(row, lost[row.photo]) if row.photo in lost else row for row in rows], seen


def _rejected(row: PhotoRow, detail: str) -> PhotoRow:
    return row.model_copy(update={"status": "rejected", "reason": "crashed", "detail": detail})


def _job(case: PhotoDecision, ingest: Path, info: EngineInfo, params: CropParams) -> Job:
    """Return what to cut out of a photo that is trained on or held out."""
    assert case.seen is not None and case.row.file is not None
    box = case.subject.measured.box_xyxy
    held = holdout_plan(case.size, box, case.other_boxes, info.points_kind, params)
    return Job(
        picture=ingest / case.row.file,
        long_px=max(case.size),
        turns=case.seen.turns,
        identity=case.seen.entry.name,
        plans=(held,) if case.decision == "holdout" else tuple(case.plans),
        face=case.subject.measured,
        points_xy=tuple((float(x), float(y)) for x, y in case.subject.points_xy),
        points_kind=info.points_kind,
        aligned_px=info.aligned_px,
    )


def _cut(
    cases: list[PhotoDecision],
    jobs: dict[str, Job],
    pool: WorkerPool[PhotoRow | Job, Path],
    cache: Cache,
    aside: Path,
) -> Iterator[CropRow]:
    """Write crops, masks and aligned faces, and yield the crops' rows in the order of the photos."""
    for folder in ("train", "holdout", "masks", "aligned"):
        (aside / folder).mkdir()
    chosen = [case for case in cases if case.chosen]
    cuts = pool.mapped(jobs[case.row.photo] for case in chosen)
    with Progress("crop", len(chosen)) as progress:
        for case, (_, entry) in zip(chosen, cuts, strict=True):
            if isinstance(entry, Lost):
                raise RuntimeError(f"cutting {jobs[case.row.photo].picture} failed: {entry.detail}")
            cache.keep(entry)
            share(entry / ALIGNED, aside / "aligned" / f"{case.row.photo}.png")
            yield from (_placed(cut, case, entry, aside) for cut in read_cuts(entry))
            progress.advance()


def _placed(cut: Cut, case: PhotoDecision, entry: Path, aside: Path) -> CropRow:
    """Copy one crop and its mask to their places, and return its row."""
    photo = case.row.photo
    split: Literal["train", "holdout"] = "holdout" if case.decision == "holdout" else "train"
    name = f"{photo}.png" if split == "holdout" else f"{photo}-{cut.kind}.png"
    share(entry / f"{cut.kind}.png", aside / split / name)
    share(entry / f"{cut.kind}-mask.png", aside / "masks" / name)
    assert case.burst is not None
    placed = {"file": f"{split}/{name}", "photo": photo, "split": split, "mask": f"masks/{name}", "burst": case.burst}
    placed["session"] = case.session
    return CropRow.model_validate({**cut.model_dump(), **placed})


def _unused(decisions: dict[str, Override], rows: list[PhotoRow]) -> list[str]:
    """Return the hashes a human decided about that no photo has, after warning of each."""
    unused = sorted(set(decisions) - {row.photo for row in rows})
    for photo in unused:
        logger.warning("decisions.yaml decides about %s, but no photo has this hash", photo)
    return unused


def _write_tables(
    aside: Path, album: _Album, jobs: dict[str, Job], crops: list[CropRow], *, refusal: str = ""
) -> list[ManifestRow]:
    """Write the table of decisions and the contact sheet with its pictures, and return the table."""
    of_photo: dict[str, list[CropRow]] = {}
    for crop in crops:
        of_photo.setdefault(crop.photo, []).append(crop)
    cases, info = album.cases, album.info
    manifest = [manifest_row(case, of_photo.get(case.row.photo, []) if case.chosen else [], info) for case in cases]
    (aside / THUMBNAILS).mkdir()
    for case in cases:
        if case.seen is not None:
            share(case.seen.thumbnail, aside / THUMBNAILS / f"{case.row.photo}.jpg")
    tiles = [
        Tile(
            row=row,
            picture=case.seen.size_of_thumbnail if case.seen else None,
            regions=[plan.region.box_xyxy for plan in jobs[row.photo].plans]
            if row.photo in jobs and case.chosen
            else [],
        )
        for case, row in zip(cases, manifest, strict=True)
    ]
    tile_of = dict(zip(map(id, cases), tiles, strict=True))
    people = [
        PersonShown(one.photos, [Portrait(tile_of[id(case)], face) for case, face in one.faces[:PORTRAITS]])
        for one in album.people
    ]
    sheet = contact_sheet(tiles, engine=info.engine_id, unused_overrides=album.unused, people=people, refusal=refusal)
    write_rows(aside / "manifest.jsonl", manifest)
    (aside / SHEET).write_text(sheet, encoding="utf-8")
    return manifest
