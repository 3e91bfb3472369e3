"""Write the decisions as a table with one row per given file, and the metrics of the set."""

import statistics
from collections import Counter
from collections.abc import Sequence

from zimage.curation.photo_decision import PhotoDecision
from zimage.faces.engine import EngineInfo
from zimage.photos.rows import CropRow, FaceRow, ManifestRow, PhotoRow


def manifest_row(case: PhotoDecision, crops: Sequence[CropRow], info: EngineInfo) -> ManifestRow:
    """Return everything that is known of one file; `crops` are those that were made of it."""
    face = case.subject.measured if case.match is not None else None
    return ManifestRow(
        photo=case.row.photo,
        sha256=case.row.sha256,
        name=case.row.name,
        decision=case.decision,
        reason=case.reason,
        detail=" ".join(filter(None, [case.detail, _turned(case)])),
        override=case.override.reason if case.override else None,
        engine_id=info.engine_id,
        width=case.seen.width if case.seen else case.row.width,
        height=case.seen.height if case.seen else case.row.height,
        faces=_faces(case),
        subject_face=case.match.face if case.match else None,
        attempt=face.attempt if face else None,
        distance=case.match.distance if case.match else None,
        face_side_px=face.side_px if face else None,
        sharpness=face.sharpness if face else None,
        face_luma=face.luma if face else None,
        clipped=face.clipped if face else None,
        occlusion=case.unlike,
        covering=face.covering if face else None,
        yaw_deg=face.yaw_deg if face else None,
        roll_deg=face.roll_deg if face else None,
        quality=case.quality,
        dhash=f"{case.seen.dhash:016x}" if case.seen else None,
        burst=case.burst,
        shot=case.shot,
        session=case.session,
        duplicate_of=case.duplicate_of,
        aligned=f"aligned/{case.row.photo}.png" if crops else None,
        crops=[crop.file for crop in crops],
    )


def _turned(case: PhotoDecision) -> str:
    turns = case.seen.turns if case.seen else 0
    return f"It lay {'upside down' if turns == 2 else 'on its side'}, and was turned upright." if turns else ""


def unseen_row(row: PhotoRow) -> ManifestRow:
    """Return what is known of a file before anybody looked for faces in it."""
    nothing = EngineInfo("", "l2", 0.0, {}, "", embedded=True, points_kind="centres", aligned_px=0)
    case = PhotoDecision(row, None)
    if row.status == "rejected":
        case.end("reject", row.reason or "unreadable", row.detail)
    return manifest_row(case, [], nothing)


def _faces(case: PhotoDecision) -> list[FaceRow]:
    if case.seen is None:
        return []
    distances: Sequence[float | None] = case.match.distances if case.match else [None] * len(case.seen.faces)
    return [
        FaceRow(box_xyxy=face.measured.box_xyxy, score=face.measured.score, distance=distance)
        for face, distance in zip(case.seen.faces, distances, strict=True)
    ]


def set_metrics(
    manifest: Sequence[ManifestRow], crops: Sequence[CropRow], info: EngineInfo, unused: Sequence[str]
) -> dict[str, object]:
    """Return the metrics of the set; `unused` are hashes in decisions.yaml that no photo has."""
    decisions = Counter(row.decision for row in manifest)
    against = Counter(row.reason for row in manifest if row.decision in {"review", "reject"})
    kept = [row for row in manifest if row.decision in {"train", "holdout"}]
    return {
        "photos": len(manifest),
        **{decision: decisions[decision] for decision in ("train", "holdout", "review", "reject")},
        "against": dict(sorted(against.items())),
        "overridden": sum(row.override is not None for row in manifest),
        "overrides_unused": list(unused),
        "crops": dict(sorted(Counter(f"{crop.split}_{crop.kind}" for crop in crops).items())),
        "bursts": len({row.burst for row in kept}),
        "holdout_sessions": {
            which: sum(row.session == which for row in kept) for which in ("apart", "shared", "unknown")
        },
        "face_px_median": _median([row.face_side_px for row in kept]),
        "sharpness_median": _median([row.sharpness for row in kept]),
        "yaw_deg_median": _median([None if row.yaw_deg is None else abs(row.yaw_deg) for row in kept]),
        "distance_median": _median([row.distance for row in kept]),
        "distance_max": max((row.distance for row in kept if row.distance is not None), default=None),
        "engine": {
            "id": info.engine_id,
            "metric": info.metric,
            "threshold": info.threshold,
            "embedded": info.embedded,
            "licence": info.licence,
            "model_sha256": info.model_sha256,
        },
    }


def _median(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return round(statistics.median(present), 3) if present else None
