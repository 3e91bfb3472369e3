"""The pictures that training reads, with the variants of their captions."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, Tag

from zimage.captions.subject import Subject
from zimage.captions.template import subject as named
from zimage.core.errors import InputError
from zimage.core.section import PLAIN, Section, told_by_keys
from zimage.model.base import identify_files
from zimage.photos.rows import CropRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Size, Tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
NOT_NAMED: Mapping[str, Any] = {}
SIDES = {"left": "right", "right": "left", "左": "右", "右": "左"}


class ClassPictures(Section):
    """Pictures of other members of the class, for prior preservation."""

    folder: str
    """PNG, JPEG or WebP files, each with its caption in a .txt of the same name, or none."""
    identity: str
    """`sha256:<hex>` over the folder's files."""


class MadeClassPictures(Section):
    """Pictures of other members of the class that the base generates, where nobody has such pictures."""

    number: int = Field(ge=1)
    """Pictures; diffusers' DreamBooth scripts make 100."""
    prompts: list[str] = Field(min_length=1)
    """Texts, which come in turn and become the captions; {class} stands for the class noun, such as "a woman"."""
    steps: int = Field(ge=1)
    """Euler steps; Base 28 to 50, Turbo 8."""
    guidance_scale: float = Field(ge=0)
    """As diffusers' ZImagePipeline counts: 0 none; Base 3 to 4."""
    seed: int = Field(ge=0)
    """Decides their noise."""


ClassPicturesItem = Annotated[
    Annotated[ClassPictures, Tag("(ClassPictures)")]
    | Annotated[MadeClassPictures, Tag("(MadeClassPictures)")]
    | Annotated[None, Tag(PLAIN)],
    told_by_keys(ClassPictures, MadeClassPictures),
]


class Picture:
    """A picture that will be an item, read only when its turn comes."""

    def __init__(
        self, path: Path, file: str, captions: Sequence[str], *, photo: str = "", mirrored: bool = False
    ) -> None:
        self.path, self.file, self.photo, self.mirrored = path, file, photo, mirrored
        self.captions = [_sides_exchanged(text) for text in captions] if mirrored else list(captions)
        self.mask: Path | None = None
        self.size: tuple[int, int] | None = None  # what it is cut to, in px; None for its own
        self.repeats = 1  # times in a round of training
        self.weight = 1.0  # factor of its loss

    def pixels(self) -> "NDArray[np.uint8]":
        """Return (H, W, 3)."""
        return self._turned(_read(self.path, "RGB", self.size))

    def face(self) -> "NDArray[np.uint8] | None":
        """Return (H, W), 255 on the face."""
        return None if self.mask is None else self._turned(_read(self.mask, "L", self.size))

    def _turned(self, image: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
        return image[:, ::-1] if self.mirrored else image


def crop_pictures(
    detect: Path,
    crops: Sequence[CropRow],
    captions: dict[str, list[str]],
    *,
    mirror: bool,
    also_px: Sequence[int] = (),
    repeats: Mapping[str, int] = NOT_NAMED,
    weights: Mapping[str, float] = NOT_NAMED,
) -> list[Picture]:
    """Return the training crops and, where wanted, each mirrored, and each of them at smaller sizes too.

    Args:
        detect: The folder of the detect stage.
        crops: Its rows.
        captions: Of each crop's file.
        mirror: Also each mirrored.
        also_px: Sides of squares of the area that a smaller copy has; none is made that would not be smaller.
        repeats: How often the crops of a photo come in a round of training, by the photo; once where it is absent.
        weights: What the loss of the crops of a photo is multiplied with, by the photo; 1 where it is absent.
    """
    pictures = []
    for crop in crops:
        for mirrored in (False, True)[: 1 + mirror]:
            for size in (None, *_smaller_sizes(crop, also_px)):
                picture = Picture(
                    detect / crop.file, crop.file, captions[crop.file], photo=crop.photo, mirrored=mirrored
                )
                picture.mask, picture.size = detect / crop.mask if crop.mask else None, size
                picture.repeats, picture.weight = repeats.get(crop.photo, 1), weights.get(crop.photo, 1.0)
                pictures.append(picture)
    return pictures


def _smaller_sizes(crop: CropRow, sides: Sequence[int]) -> list[tuple[int, int]]:
    """Return width and height, in multiples of 16 px, of a crop with the area of a square of each side."""
    from zimage.model.latents import PIXELS_A_TOKEN

    found = []
    for side in sides:
        share = side / (crop.width * crop.height) ** 0.5
        if share < 1:
            width, height = (
                max(1, round(each * share / PIXELS_A_TOKEN)) * PIXELS_A_TOKEN for each in (crop.width, crop.height)
            )
            found.append((width, height))
    return [size for size in dict.fromkeys(found) if size[0] * size[1] < crop.width * crop.height]


def class_pictures(wanted: ClassPictures, sizes: Sequence[tuple[int, int]], subject: Subject) -> list[Picture]:
    """Return the pictures of others, each to be cut to that of the crops' sizes whose shape is nearest.

    Raises:
        InputError: the folder holds no pictures, or others than those that were pinned.
    """
    folder = Path(wanted.folder).expanduser()
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise InputError(
            f"encode.class_pictures names {folder}, which holds no PNG, JPEG or WebP; "
            "put pictures there, or set it to null."
        )
    found = identify_files([*paths, *folder.glob("*.txt")], folder)
    if found != wanted.identity:
        raise InputError(
            f"The class pictures in {folder} are {found}, but params.yaml pins {wanted.identity}; "
            f"restore them, or set encode.class_pictures.identity to {found} if the change is meant."
        )
    pictures = []
    for path in paths:
        own = path.with_suffix(".txt")
        text = own.read_text(encoding="utf-8").strip() if own.is_file() else f"a photo of a {subject.class_noun}"
        picture = Picture(path, path.name, [text])
        picture.size = _nearest(sizes, _shape_of(path))
        pictures.append(picture)
    return pictures


def held_out_pictures(
    detect: Path, crops: Sequence[CropRow], sizes: Sequence[tuple[int, int]], subject: Subject
) -> list[Picture]:
    """Return held-out crops under a plain caption, each to be cut to the training crops' size nearest in shape."""
    caption = f"a photo of {named(subject.trigger, subject.class_noun, 'en')}"
    pictures = []
    for crop in crops:
        picture = Picture(detect / crop.file, crop.file, [caption], photo=crop.photo)
        picture.size = _nearest(sizes, crop.width / crop.height)
        pictures.append(picture)
    return pictures


def without_trigger(text: str, subject: Subject) -> str:
    """Return a caption of any member of the class: "ohzw woman" becomes "a woman"."""
    for language in ("en", "zh"):
        text = text.replace(
            named(subject.trigger, subject.class_noun, language), named("", subject.class_noun, language)
        )
    return re.sub(rf"\b{re.escape(subject.trigger)}\b ?", "", text)


def on_latents(face: "NDArray[np.uint8]", size: "Size") -> "Tensor":
    """Return (h, w) in [0, 1]: how much of each latent's square of pixels is face."""
    import numpy as np
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    share = torch.from_numpy(np.array(face, order="C")).float() / 255
    return adaptive_avg_pool2d(share[None], (size[0], size[1]))[0]


def _sides_exchanged(text: str) -> str:
    return re.sub(r"\b(left|right)\b|[左右]", lambda found: SIDES[found[0]], text)


def _nearest(sizes: Sequence[tuple[int, int]], shape: float) -> tuple[int, int]:
    """Return the size whose width over height is nearest to a shape."""
    return min(sizes, key=lambda size: abs(shape - size[0] / size[1]))


def _shape_of(path: Path) -> float:
    from PIL import Image

    with Image.open(path) as image:
        return image.width / image.height


def _read(path: Path, mode: str, size: tuple[int, int] | None) -> "NDArray[np.uint8]":
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert(mode)
        return np.asarray(upright if size is None else ImageOps.fit(upright, size, Image.Resampling.LANCZOS))
