"""Score one picture by face engines, training photos and prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zimage.captions.template import Language
from zimage.evaluation.rows import Scored
from zimage.evaluation.score.clip import Clip
from zimage.evaluation.score.copies import Originals, most_alike
from zimage.evaluation.score.following import template_following
from zimage.evaluation.score.likeness import Embeddings, Likeness, Targets, likeness, rank_among
from zimage.evaluation.score.properties import properties
from zimage.faces.engine import Engine, EngineParams, Face, open_engine
from zimage.faces.looks import looks_of
from zimage.photos.pictures import fitted, read_rgb
from zimage.photos.worker_pool import Lost, WorkerPool


@dataclass(frozen=True)
class SearchedPicture:
    """A picture to be searched for faces.

    Args:
        file: Where it lies.
        long_px: Its long side is brought down to this first; None leaves it.
        engines: How many of the engines look, the first ones; None for all.
    """

    file: Path
    long_px: int | None = None
    engines: int | None = None


@dataclass(frozen=True)
class Finder:
    """The work of one process that looks for faces.

    Args:
        params: The engines, opened at the first picture.
    """

    params: Sequence[EngineParams]

    @cached_property
    def engines(self) -> list[Engine]:
        """The opened engines."""
        return [open_engine(one) for one in self.params]

    def __call__(self, seen: SearchedPicture) -> list[list[dict[str, Any]]]:
        """Return the faces in a picture, largest first, by each engine; see Face.as_plain."""
        picture = read_rgb(seen.file)
        if seen.long_px is not None:
            picture = fitted(picture, seen.long_px)
        return [[face.as_plain() for face in engine.find(picture)] for engine in self.engines[: seen.engines]]


class Search:
    """Detects faces on all cores, in processes that are started once for a whole evaluation. Use as a context manager.

    Args:
        params: The engines that look, in the order in which they answer.
    """

    def __init__(self, params: Sequence[EngineParams]) -> None:
        self.params = list(params)
        self._pool = WorkerPool(partial(Finder, self.params), list[list[dict[str, Any]]])

    def __enter__(self) -> "Search":
        self._pool.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    def faces_in(self, pictures: Sequence[SearchedPicture]) -> Iterator[list[list[Face]]]:
        """Yield the faces in each picture, largest first, by each engine."""
        for seen, found in self._pool.mapped(pictures):
            if isinstance(found, Lost):
                raise RuntimeError(f"{seen.file} could not be searched for faces: {found.detail}")
            yield [[Face.from_plain(face) for face in faces] for faces in found]


@dataclass(frozen=True)
class PictureScorer:
    """What pictures are held against.

    Args:
        targets: The real photos in the primary engine.
        second: The same in an independent second engine, or None.
        originals: The training crops that may come back.
        clip: Prompt following, or None where no model is present.
        gallery: Faces of other people in the primary engine, (N, D), among which the person is ranked; None for none.
    """

    targets: Targets
    second: Targets | None
    originals: Originals
    clip: Clip | None
    gallery: Embeddings | None = None

    def scored(
        self, image_rgb: NDArray[np.uint8], found: Sequence[Sequence[Face]], text: str, language: Language
    ) -> Scored:
        """Return the scores of a picture (H, W, 3).

        Args:
            image_rgb: The picture.
            found: Its faces by the primary engine, and by the second where that has looked.
            text: What it was asked to show.
            language: Of the text.
        """
        first = likeness(found[0], self.targets)
        second: Likeness | None = likeness(found[1], self.second) if self.second and len(found) > 1 else None
        copy_of, correlation = most_alike(image_rgb, self.originals)
        looks = looks_of(image_rgb, first.face, self.targets.info.points_kind)
        named = properties(text, image_rgb, found[0], language)
        judged_by_clip = self.clip is not None and language in self.clip.languages
        return Scored(
            faces=first.faces,
            distance=first.distance,
            median_distance=first.median_distance,
            same=first.same,
            closeness=first.closeness,
            matching_faces=first.matching_faces,
            nearest_photo=first.nearest_photo,
            nearest_distance=first.nearest_distance,
            training_distance=first.training_distance,
            copy_of=copy_of,
            likeness_to_copy=correlation,
            yaw_deg=first.face.yaw_deg if first.face else None,
            second_distance=second.distance if second else None,
            second_same=second.same if second else None,
            following=template_following(text, image_rgb, first.face, language),
            clip=self.clip.agreement(image_rgb, text) if self.clip and judged_by_clip else None,
            rank=rank_among(first, self.gallery, self.targets.info),
            contrast=looks.contrast,
            saturation=looks.saturation,
            skin=looks.skin,
            face_luma=looks.face_luma,
            face_share=looks.face_share,
            blur=looks.blur,
            noise=looks.noise,
            blocking=looks.blocking,
            properties=" ".join(named),
            properties_found=" ".join(name for name, holds in named.items() if holds),
        )
