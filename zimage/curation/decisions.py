"""Decide for each photo whether it is trained on, held out, reviewed or rejected, by measurements on all photos.

In this order: whose face it is, whether it is good enough, whether it can be shown alone, whether it says anything that
a better photo does not, and only then who is held out. A human's override wins over every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zimage.core.errors import InputError
from zimage.curation.bursts import DuplicateParams, Moment, Sameness, bursts, groups, near_duplicates
from zimage.curation.crops import CropParams, head_plan, plans
from zimage.curation.overrides import Override
from zimage.curation.photo_decision import PhotoDecision
from zimage.curation.quality_limits import COVERED, QualityParams, faults, is_covered
from zimage.curation.same_shot import same_shots
from zimage.curation.split import Candidate, SplitParams, held_out
from zimage.curation.subject_match import (
    Match,
    Person,
    PhotoFaces,
    SubjectParams,
    centroid,
    is_dominant,
    match,
    noteworthy,
    people_in,
    rival,
)
from zimage.faces.engine import EngineInfo, between
from zimage.faces.observation import Observation
from zimage.faces.quality import score, unlikeness, usual_texture
from zimage.photos.rows import PhotoRow, Session

EXAMPLES_NAMED = 3
USUAL_FROM, USUAL_YAW_DEG = 5, 25.0  # faces from which a usual face is known, and how far they may be turned
UNSURE = 1.2  # times min_score: below, a detector takes other things for faces as well
# Mean chroma below which a photo is black and white, measured on its thumbnail, which has what the whole photo has to
# 0.005. 127 colour photos of packages and of public faces: 0.053 at least (0.028 at half the saturation); their grey
# copies: 0.000; grey scans with a faint cast and noise: 0.018 at most; sepia copies: 0.057 and more: colour.
GREY = 0.02
SHARED = "It is from a session that is also trained on, so a score against it says little about other days."
WELL_DEG = 40.0  # lora-dataset-studio scores faces up to this yaw: frontal and three-quarter


@dataclass(frozen=True)
class PersonSeen:
    """A person in a substantial part of the photos.

    Args:
        photos: In how many.
        faces: The photo and the place of the face in it, those that are most like the others first.
    """

    photos: int
    faces: list[tuple[PhotoDecision, int]]


@dataclass(frozen=True)
class Rules:
    """Limits of all decisions; `min_score` is the least detector score of a face."""

    min_score: float
    subject: SubjectParams
    quality: QualityParams
    duplicates: DuplicateParams
    split: SplitParams
    crops: CropParams


def opened(
    rows: Sequence[PhotoRow], seen: dict[str, Observation], overrides: dict[str, Override]
) -> list[PhotoDecision]:
    """Return an undecided case for each file, in the given order.

    Args:
        rows: What ingest says of each file.
        seen: What was seen on each kept photo, by its short hash.
        overrides: A human's decisions, by short hash.
    """
    return [_case(row, seen, overrides) for row in rows]


def curate(
    cases: list[PhotoDecision],
    people: list[PersonSeen],
    *,
    references: NDArray[np.float32] | None,
    info: EngineInfo,
    rules: Rules,
) -> None:
    """Decide on every file.

    Args:
        cases: As `opened` returns them; what was decided stays in them, also where this raises.
        people: Is empty, and gets who is in a substantial part of the photos, the subject first.
        references: Embeddings of the subject's face in reference photos, (N, D); None where none were given.
        info: The engine that saw.
        rules: All that decides.

    Raises:
        InputError: no face at all, more than one person who may be meant, or too few photos left.
    """
    _sort_out_faceless(cases)
    subject = _subject(cases, people, _referred(cases, references, rules.subject), info)
    _tell_whose(cases, subject, info, rules)
    _check_quality(cases, rules.quality)
    _plan_crops(cases, info, rules.crops)
    _rank(cases, rules.quality)
    _thin_out(cases, info, rules.duplicates)
    _split(cases, rules.split)


def _case(row: PhotoRow, seen: dict[str, Observation], overrides: dict[str, Override]) -> PhotoDecision:
    """Return a file's case; of files with the same bytes only the first has a picture, and the human's decision."""
    if row.status == "kept":
        return PhotoDecision(row, seen[row.photo], overrides.get(row.photo))
    return PhotoDecision(row, None, None if row.reason == "same_file" else overrides.get(row.photo))


def _sort_out_faceless(cases: list[PhotoDecision]) -> None:
    for case in cases:
        if case.override is not None and case.override.decision == "reject":
            case.end("reject", "override", case.override.reason)
        elif case.seen is None:
            case.end("reject", case.row.reason or "unreadable", case.row.detail)
        elif not case.seen.faces:
            case.end("reject", "no_face", "No face was found, also not in finer steps or with a border.")
        if case.insisted and (case.seen is None or not case.seen.faces):
            raise InputError(
                f"decisions.yaml asks for {case.row.photo}, but no face can be seen in it "
                f"({case.detail.rstrip('.')}); remove that line or replace the photo.",
                names=f"{case.row.photo} is {case.row.name}",
            )
    if not any(case.open for case in cases):
        raise InputError(
            f"No face was found in any of the {len(cases)} photos; add photos that show the person's face, "
            "upright and at least 80 px wide."
        )


def _referred(
    cases: Sequence[PhotoDecision], references: NDArray[np.float32] | None, params: SubjectParams
) -> NDArray[np.float32] | None:
    """Return the reference embeddings, with those of the photos that params.yaml names.

    Raises:
        InputError: a photo is not there, or does not show one face that is clearly the largest.
    """
    found = [] if references is None else list(references)
    for named in params.reference:
        photo = next((case for case in cases if named in {case.row.name, case.row.photo}), None)
        faces = photo.seen.faces if photo and photo.seen else []
        if photo is None or not is_dominant([face.measured.side_px for face in faces]):
            lacks = "is not among the photos" if photo is None else "shows not one face, or several of about one size"
            raise InputError(
                "A photo that detect.subject.reference (--reference) names "
                f"{lacks}; name a photo of the album that shows the person alone, by its name or by its code.",
                names=f"It is {named}",
            )
        found.append(faces[0].embedding)
    return np.stack(found) if found else None


def _subject(
    cases: list[PhotoDecision], people: list[PersonSeen], references: NDArray[np.float32] | None, info: EngineInfo
) -> NDArray[np.float32]:
    """Return the centroid of the subject's faces, (1, D); `people` gets who else is in many photos.

    Raises:
        InputError: another person may be meant as well, and no references say who is.
    """
    faced = [case for case in cases if case.open and case.seen is not None and case.seen.faces]
    album = [_faces_of(case) for case in faced]
    found = people_in(album, info)
    subject = centroid(references, info.metric) if references is not None else found[0].centroid
    if references is not None:
        found.sort(key=lambda one: float(between(one.centroid, subject, info.metric)[0, 0]))
    people += [_person(one, faced) for one in noteworthy(found, len(faced))]
    other = rival(found) if references is None else None
    if other is not None:
        first, second = (
            ", ".join(dict.fromkeys(faced[photo].row.name for photo, _ in one.faces[:EXAMPLES_NAMED]))
            for one in (found[0], other)
        )
        raise InputError(
            f"More than one person may be meant: one is in {found[0].photos} of {len(faced)} photos with a face, "
            f"another in {other.photos} ({other.without_first} of them without the first); name a photo of the album "
            "that shows the right person alone with --reference (detect.subject.reference in params.yaml: its name or "
            "code), put 1 to 5 photos of that person into overrides/reference, or take the other's photos out.",
            names=f"One is in {first}; the other in {second}",
        )
    return subject


def _faces_of(case: PhotoDecision) -> PhotoFaces:
    assert case.seen is not None
    faces = case.seen.faces
    return PhotoFaces([face.measured.side_px for face in faces], np.stack([face.embedding for face in faces]))


def _person(one: Person, faced: Sequence[PhotoDecision]) -> PersonSeen:
    return PersonSeen(one.photos, [(faced[photo], face) for photo, face in one.faces])


def _tell_whose(
    cases: list[PhotoDecision],
    subject: NDArray[np.float32],
    info: EngineInfo,
    rules: Rules,
) -> None:
    sure = rules.subject.doubtful_from * info.threshold
    for case in cases:
        if case.seen is None or not case.seen.faces:
            continue
        case.match = match(np.stack([face.embedding for face in case.seen.faces]), subject, info.metric)
        if case.open:
            _doubt(case, case.match, sure, info.threshold, rules)


def _doubt(case: PhotoDecision, found: Match, sure: float, threshold: float, rules: Rules) -> None:
    """Decide against a photo whose nearest face is not surely the subject's, or is not the only such face."""
    near, following, count = found.distance, found.next_distance, len(found.distances)
    face = case.subject.measured
    if near > threshold and face.score < UNSURE * rules.min_score:
        case.end("reject", "no_face", "What was found is hardly a face, and like none of the subject's.")
    elif near > sure and face.covering is not None and is_covered(face, rules.quality):
        whose = f"Whose face it is stays unsure: it is {near:.2f} away, and up to {sure:.2f} is sure."
        detail = f"{COVERED[face.covering]} {whose}"
        case.end("reject", face.covering, detail)
    elif near > threshold:
        whose = f"None of the {count} faces is the subject's" if count > 1 else "The face is not the subject's"
        detail = f"{whose}: the nearest is {near:.2f} away, and {threshold:g} is the most."
        case.end("reject", "wrong_person", detail)
    elif near > sure:
        detail = f"The face may be another person's: it is {near:.2f} away, and up to {sure:.2f} is sure."
        case.end("review", "doubtful_person", detail)
    elif following is not None and following <= sure:
        case.end("review", "two_alike", f"Two faces look like the subject ({near:.2f} and {following:.2f} away).")


def _check_quality(cases: list[PhotoDecision], params: QualityParams) -> None:
    for case in cases:
        if not case.open:
            continue
        broken = faults(case.size, case.subject.measured, params)
        framed = case.seen.frame if case.seen else 0.0
        if broken:
            case.end("reject", broken[0].reason, " ".join(fault.detail for fault in broken))
        elif framed > params.max_frame:
            detail = f"Plain bars take {framed:.0%} of it, as in a screenshot; crop the photo out of it and add that."
            case.end("review", "screenshot", detail)


def _plan_crops(cases: list[PhotoDecision], info: EngineInfo, params: CropParams) -> None:
    for case in cases:
        if not case.open:
            continue
        box = case.subject.measured.box_xyxy
        case.plans = plans(case.size, box, case.other_boxes, info.points_kind, params)
        if not case.plans:
            case.end("reject", "not_alone", "The subject cannot be cropped without another face.")
            case.plans = [head_plan(case.size, box, info.points_kind, params)]


def _rank(cases: list[PhotoDecision], params: QualityParams) -> None:
    standing = [case for case in cases if case.open]
    steady = [case.subject for case in standing if abs(case.subject.measured.yaw_deg or 0) <= USUAL_YAW_DEG]
    usual = usual_texture(steady) if len(steady) >= USUAL_FROM else None
    for case in standing:
        face = case.subject.measured
        if usual is not None and abs(face.yaw_deg or 0) <= USUAL_YAW_DEG:
            case.unlike = unlikeness(case.subject.texture, usual)
        case.quality = score(
            face_px=face.side_px,
            good_px=params.good_face_px,
            sharpness=face.sharpness,
            luma=face.luma,
            clipped=face.clipped,
            yaw_deg=face.yaw_deg,
            unlike=case.unlike or 0.0,
        )


def _thin_out(cases: list[PhotoDecision], info: EngineInfo, params: DuplicateParams) -> None:
    standing = [case for case in cases if case.open]
    moments = [
        Moment(
            photo=case.row.photo,
            taken_at=case.row.taken_at,
            dhash=case.seen.dhash if case.seen else 0,
            embedding=case.subject.embedding,
            quality=(case.quality or 0.0) + case.insisted,  # what a human insists on stands for others
            size_bytes=case.row.size_bytes,
            in_colour=case.insisted or case.seen is None or case.seen.chroma >= GREY,
        )
        for case in standing
    ]
    same = Sameness(params.same_bits, params.same_face * info.threshold, info.metric, _copies(standing, info, params))
    one_shot = same.one_shot(moments)
    shot_of = groups(len(moments), one_shot)
    burst_of = bursts(moments, shot_of, gap_s=params.burst_gap_s)
    stands_for = near_duplicates(moments, one_shot, same)
    names = {case.row.photo: case.row.name for case in standing}
    for case, shot, burst in zip(standing, shot_of, burst_of, strict=True):
        case.shot, case.burst, case.duplicate_of = shot, burst, stands_for.get(case.row.photo)
        if case.duplicate_of is not None:
            case.end("reject", "near_duplicate", f"It shows the same as {names[case.duplicate_of]}, which is better.")


def _copies(standing: Sequence[PhotoDecision], info: EngineInfo, params: DuplicateParams) -> frozenset[frozenset[str]]:
    """Return the pairs of photos, by short hash, whose faces are copies of one shot."""
    if params.same_shot is None or not standing:
        return frozenset()
    pairs = same_shots(
        [case.subject for case in standing],
        np.stack([case.subject.embedding for case in standing]),
        correlation=params.same_shot,
        threshold=info.threshold,
        metric=info.metric,
    )
    return frozenset(frozenset((standing[i].row.photo, standing[j].row.photo)) for i, j in pairs)


def _split(cases: list[PhotoDecision], params: SplitParams) -> None:
    standing = [case for case in cases if case.open]
    candidates = [
        Candidate(
            photo=case.row.photo,
            burst=case.burst if case.burst is not None else -1,
            shot=case.shot if case.shot is not None else -1,
            taken_at=case.row.taken_at,
            shows_well=abs(case.subject.measured.yaw_deg or 0) <= WELL_DEG,
            forced=case.override is not None and case.override.decision == "holdout",
        )
        for case in standing
    ]
    held = held_out(
        candidates,
        share=params.holdout_share,
        at_least=params.min_holdout,
        min_train=params.min_train,
        seed=params.seed,
    )
    training = [case for case in standing if case.row.photo not in held]
    if len(training) < params.min_train or not held:
        raise InputError(_too_few(cases, len(training), len(held), params))
    for case in standing:
        if case.row.photo in held:
            case.decision, case.reason = "holdout", "override" if _wants(case, "holdout") else "holdout"
            case.session = _session(case, training)
            if case.session == "shared":
                case.detail = f"{case.detail} {SHARED}".strip()
        elif _wants(case, "keep"):
            case.reason = "override"
    surplus = sorted(training, key=lambda case: (-case.insisted, -(case.quality or 0)))[params.max_train :]
    for case in surplus:
        case.end("reject", "surplus", f"{params.max_train} better photos are trained on.")


def _session(case: PhotoDecision, training: Sequence[PhotoDecision]) -> Session:
    """Return how far a held-out photo's session is from those that are trained on."""
    if any(case.burst == other.burst for other in training):
        return "shared"
    return "unknown" if case.row.taken_at is None else "apart"


def _wants(case: PhotoDecision, choice: str) -> bool:
    return case.override is not None and case.override.decision == choice


def _too_few(cases: list[PhotoDecision], training: int, held: int, params: SplitParams) -> str:
    against: dict[str, int] = {}
    for case in cases:
        if not case.open:
            against[case.reason] = against.get(case.reason, 0) + 1
    told = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(against.items()))
    against_them = f" (against the others: {told})" if told else ""
    if training >= params.min_train:
        return (
            f"The {training} photos that passed, of {len(cases)}, are copies of one shot{against_them}, so none can be "
            "held out to score against; add photos of the person from other occasions."
        )
    return (
        f"Of {len(cases)} photos only {training} are left for training beside {held} held out, and "
        f"split.min_train asks for {params.min_train}{against_them}; add photos of the person from other occasions."
    )
