"""The rows in which ingest and detect hand over photos, decisions and crops."""

from typing import Literal

from pydantic import Field

from zimage.records import Row

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Decision = Literal["train", "holdout", "review", "reject"]


class PhotoRow(Row):
    """One file that was given to ingest, kept or not."""

    photo: str = Field(description="first 16 hex digits of the SHA-256 of the file's bytes (of its name if unreadable)")
    sha256: str | None = Field(description="SHA-256 of the file's bytes; null where they were not read")
    name: str = Field(description="name inside the folder or archive, with / between folders")
    size_bytes: int = Field(description="size of the file as given")
    status: Literal["kept", "rejected"]
    reason: str | None = Field(description="code of the reason for a rejection, such as truncated or not_an_image")
    detail: str = Field(description="the reason as a sentence; empty for a photo that is kept without remarks")
    notes: list[str] = Field(description="what was done to the picture, such as 'rotated as its EXIF says'")
    file: str | None = Field(description="the kept picture inside the ingest folder: photos/<photo>.png")
    format: str | None = Field(description="format by content, such as JPEG, whatever the name says")
    width: int | None = Field(description="px, of the kept picture (upright)")
    height: int | None = Field(description="px, of the kept picture (upright)")
    taken_at: float | None = Field(
        description="s after the earliest photo of the set; null where the file does not say"
    )


class FaceRow(Row):
    """One face in one photo, in px of the photo."""

    box_xyxy: Box
    score: float = Field(description="the detector's own score; not comparable between engines")
    distance: float | None = Field(
        description="to the subject's centroid, in the engine's metric; null before it is known"
    )


class ManifestRow(Row):
    """What was decided about one file that was given, with every number behind it."""

    photo: str
    sha256: str | None
    name: str
    decision: Decision
    reason: str = Field(
        description="reason code, such as kept, holdout, no_face, wrong_person, near_duplicate, blurred"
    )
    detail: str = Field(description="the reason as a sentence")
    override: str | None = Field(description="the reason a human gave in overrides/decisions.yaml; null where none did")
    engine_id: str
    width: int | None
    height: int | None
    faces: list[FaceRow] = Field(description="all faces found, largest first")
    subject_face: int | None = Field(
        description="index in `faces` of the subject; null where the subject was not found"
    )
    attempt: str | None = Field(description="the detector's attempt that found the faces: plain, finer or padded")
    distance: float | None = Field(
        description="of the subject's face to the subject's centroid, in the engine's metric"
    )
    face_side_px: float | None = Field(description="square root of the area of the subject's face box")
    sharpness: float | None = Field(
        description="see zimage.faces.quality.sharpness; below about 20 a face looks blurred"
    )
    face_luma: float | None = Field(description="mean luma of the face, 0 to 1")
    clipped: float | None = Field(description="share of the face's pixels that are black or blown out, 0 to 1")
    occlusion: float | None = Field(description="share of the aligned face unlike the subject's usual face, 0 to 1")
    yaw_deg: float | None = Field(description="positive where the nose points to the picture's right")
    roll_deg: float | None = Field(description="positive where the head leans clockwise")
    quality: float | None = Field(description="0 to 1, ranks photos that passed the hard limits")
    dhash: str | None = Field(description="64-bit difference hash of the photo, hex")
    burst: int | None = Field(description="number of the burst; photos of one burst stay on one side of the split")
    duplicate_of: str | None = Field(description="the photo that was kept in this one's place")
    aligned: str | None = Field(description="5-point aligned face for scoring: aligned/<photo>.png")
    crops: list[str] = Field(description="files of crops.jsonl that were made of this photo")


class CropRow(Row):
    """One picture to train or to score with, already at the size of its bucket."""

    file: str = Field(description="train/<photo>-full.png, train/<photo>-head.png or holdout/<photo>.png")
    photo: str
    split: Literal["train", "holdout"]
    kind: Literal["full", "head"]
    width: int = Field(description="px, a multiple of the bucket step")
    height: int = Field(description="px, a multiple of the bucket step")
    scale: float = Field(description="px of the crop for one px of the photo; above 1 the photo was enlarged")
    face_box_xyxy: Box = Field(description="px of the crop; may reach beyond its border")
    points_xy: list[Point] = Field(description="the engine's five points, px of the crop")
    mask: str | None = Field(description="masks/<crop's name>.png: 8-bit, 255 on the face; null where none was made")
    yaw_deg: float | None
    roll_deg: float | None
    sharpness: float
    face_luma: float = Field(description="mean luma of the face, 0 to 1")
    chroma: float = Field(description="mean colourfulness of the crop, 0 (black and white) to 1")
    warmth: float = Field(description="mean red minus mean blue of the crop, -1 (blue light) to 1 (orange light)")
    background_rgb: tuple[int, int, int] = Field(description="median colour outside the head, 0 to 255")
    burst: int
