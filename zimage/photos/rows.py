"""Rows of the outputs of ingest and detect: photos, decisions and crops."""

from typing import Literal

from zimage.core.jsonl import Row

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Decision = Literal["train", "holdout", "review", "reject"]
Session = Literal["apart", "shared", "unknown"]


class PhotoRow(Row):
    """One file that was given to ingest, kept or not."""

    photo: str
    """First 16 hex digits of the SHA-256 of the file's bytes (of its name if unreadable)."""
    sha256: str | None
    """SHA-256 of the file's bytes; null where they were not read."""
    name: str
    """Name inside the folder or archive, with / between folders."""
    size_bytes: int
    """Size of the file as given."""
    status: Literal["kept", "rejected"]
    reason: str | None
    """Code of the reason for a rejection, such as truncated or not_an_image."""
    detail: str
    """The reason as a sentence; empty for a photo that is kept without remarks."""
    notes: list[str]
    """What was done to the picture, such as 'rotated as its EXIF says'."""
    file: str | None
    """The clean picture inside the ingest folder: photos/<photo>.jpg, .png and so on; see zimage.photos.clean."""
    format: str | None
    """Format by content, such as JPEG, whatever the name says."""
    width: int | None
    """In px, of the picture as it is read (upright)."""
    height: int | None
    """In px, of the picture as it is read (upright)."""
    taken_at: float | None
    """In s after the earliest photo of the set; null where the file does not say."""


class FaceRow(Row):
    """One face in one photo, in px of the photo."""

    box_xyxy: Box
    score: float
    """The detector's own score; not comparable between engines."""
    distance: float | None
    """To the subject's centroid, in the engine's metric; null before it is known."""


class ManifestRow(Row):
    """What was decided about one file that was given, with every number behind it."""

    photo: str
    sha256: str | None
    name: str
    decision: Decision
    reason: str
    """Reason code, such as kept, holdout, no_face, wrong_person, near_duplicate, blurred."""
    detail: str
    """The reason as a sentence."""
    override: str | None
    """The reason a human gave in overrides/decisions.yaml; null where none did."""
    engine_id: str
    width: int | None
    height: int | None
    faces: list[FaceRow]
    """All faces found, largest first."""
    subject_face: int | None
    """Index in `faces` of the subject; null where the subject was not found."""
    attempt: str | None
    """The detector's attempt that found the faces: plain, finer or padded."""
    distance: float | None
    """Of the subject's face to the subject's centroid, in the engine's metric."""
    face_side_px: float | None
    """Square root of the area of the subject's face box."""
    sharpness: float | None
    """See zimage.faces.quality.sharpness; faces in focus have 11 and more, below about 5 they look blurred."""
    face_luma: float | None
    """Mean luma of the face, 0 to 1."""
    clipped: float | None
    """Share of the face's pixels that are black or blown out, 0 to 1."""
    occlusion: float | None
    """Share of the aligned face unlike the subject's usual face, 0 to 1."""
    covering: Literal["mask", "sunglasses"] | None = None
    """What covers the subject's face; null where nothing was seen."""
    yaw_deg: float | None
    """Positive where the nose points to the picture's right."""
    roll_deg: float | None
    """Positive where the head leans clockwise."""
    quality: float | None
    """0 to 1, ranks photos that passed the hard limits."""
    dhash: str | None
    """64-bit difference hash of the photo, hex."""
    burst: int | None
    """Number of the burst: one session, with all copies of its photos; on one side of the split where possible."""
    shot: int | None
    """Number of the shot: copies of one photo, which are always on one side of the split."""
    session: Session | None
    """Of a held-out photo: whether its burst is trained on too (shared); unknown where it has no capture time."""
    duplicate_of: str | None
    """The photo that was kept in this one's place."""
    aligned: str | None
    """5-point aligned face for scoring: aligned/<photo>.png."""
    crops: list[str]
    """Files of crops.jsonl that were made of this photo."""


class Cut(Row):
    """One picture that was cut out of a photo; boxes and points are in its own px."""

    kind: Literal["full", "head"]
    """The original framing, or head and shoulders."""
    width: int
    """In px; of training crops a multiple of the bucket step."""
    height: int
    """In px; of training crops a multiple of the bucket step."""
    scale: float
    """Px of the crop for one px of the photo; above 1 the photo was enlarged."""
    face_box_xyxy: Box
    """May reach beyond the crop."""
    points_xy: list[Point]
    """The engine's five points (see zimage.faces.landmarks)."""
    yaw_deg: float | None
    """See ManifestRow."""
    roll_deg: float | None
    """See ManifestRow."""
    sharpness: float
    """See zimage.faces.quality.sharpness; of the face in the photo."""
    face_luma: float
    """Mean luma of the face, 0 to 1."""
    chroma: float
    """Mean colourfulness of the crop, 0 (black and white) to 1."""
    warmth: float
    """Mean red minus mean blue of the crop, -1 (blue light) to 1 (orange light)."""
    background_rgb: tuple[int, int, int]
    """Median colour beside and above the head, 0 to 255."""


class CropRow(Cut):
    """One picture to train on, at the size of its bucket, or to score against, at the photo's own resolution."""

    file: str
    """`train/<photo>-full.png`, `train/<photo>-head.png` or `holdout/<photo>.png`."""
    photo: str
    """First 16 hex digits of the SHA-256 of the photo it is of."""
    split: Literal["train", "holdout"]
    mask: str | None
    """`masks/<name of the crop>.png`: 8 bits, 255 on the face, soft at its edge; null where none was made."""
    burst: int
    """Number of the photo's burst."""
    session: Session | None = None
    """Of a held-out crop; see ManifestRow."""
