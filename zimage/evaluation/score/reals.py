"""The person's real photos, held out and trained on, as a face engine sees them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zimage.core.errors import InputError
from zimage.evaluation.score.copies import Originals, originals_of
from zimage.evaluation.score.likeness import Targets, targets_of
from zimage.evaluation.score.picture import Search, SearchedPicture
from zimage.faces.engine import open_engine
from zimage.faces.looks import Looks, looks_of
from zimage.photos.pictures import fitted, read_rgb
from zimage.photos.rows import CropRow, Session


@dataclass(frozen=True)
class RealPhoto:
    """A real photo as it is shown and scored.

    Args:
        photo: Its content hash.
        file: The crop that stands for it.
    """

    photo: str
    file: Path


@dataclass(frozen=True)
class Reals:
    """The real photos of a subject.

    Args:
        holdout: Held-out photos.
        training: One crop of each training photo: the one with the larger face.
        crops: All training crops, by name.
        sessions: Of each held-out photo; see zimage.photos.rows.ManifestRow.
    """

    holdout: list[RealPhoto]
    training: list[RealPhoto]
    crops: dict[str, Path]
    sessions: list[Session | None]

    def originals(self) -> Originals:
        """Return what generated pictures may be copies of."""
        return originals_of([(name, read_rgb(path)) for name, path in self.crops.items()])

    def targets(self, search: Search, side_px: int) -> list[Targets]:
        """Return the targets by each engine; training photos are searched at the size of the generated pictures.

        At that size a real photo gets the score that a perfect picture would get, which is what the ceiling means.
        """
        seen = [SearchedPicture(one.file, None) for one in self.holdout] + [
            SearchedPicture(one.file, side_px) for one in self.training
        ]
        found = list(zip([*self.holdout, *self.training], search.faces_in(seen), strict=True))
        held = len(self.holdout)
        return [
            targets_of(
                open_engine(one).info,
                [(real.photo, faces[number]) for real, faces in found[:held]],
                [(real.photo, faces[number]) for real, faces in found[held:]],
            )
            for number, one in enumerate(search.params)
        ]

    def looks(self, search: Search, side_px: int) -> list[Looks]:
        """Return how each held-out photo looks at the size of the generated pictures."""
        seen = [SearchedPicture(one.file, side_px, engines=1) for one in self.holdout]
        kind = open_engine(search.params[0]).info.points_kind
        return [
            looks_of(fitted(read_rgb(real.file), side_px), faces[0][0] if faces[0] else None, kind)
            for real, faces in zip(self.holdout, search.faces_in(seen), strict=True)
        ]


def reals_of(detect: Path, crops: Sequence[CropRow]) -> Reals:
    """Return the real photos in the folder of the detect stage.

    Raises:
        InputError: nothing was held out, or nothing was kept for training.
    """
    largest = largest_faces(crop for crop in crops if crop.split == "train")
    holdout = [RealPhoto(crop.photo, detect / crop.file) for crop in crops if crop.split == "holdout"]
    if not holdout or not largest:
        lacking = "held-out" if not holdout else "training"
        raise InputError(
            f"{detect} holds no {lacking} crop, so nothing can be scored; add photos, or lower detect's limits."
        )
    training = [RealPhoto(crop.photo, detect / crop.file) for crop in largest]
    return Reals(
        holdout,
        training,
        {crop.file: detect / crop.file for crop in crops if crop.split == "train"},
        [crop.session for crop in crops if crop.split == "holdout"],
    )


def largest_faces(crops: Iterable[CropRow]) -> list[CropRow]:
    """Return one crop of each photo: the one in which the face takes the largest share."""
    largest: dict[str, CropRow] = {}
    for crop in crops:
        if _face_share(crop) > _face_share(largest.get(crop.photo)):
            largest[crop.photo] = crop
    return list(largest.values())


def _face_share(crop: CropRow | None) -> float:
    return 0.0 if crop is None else (crop.face_box_xyxy[3] - crop.face_box_xyxy[1]) / crop.height
