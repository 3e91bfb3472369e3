"""Rows of scores.csv: what is known of each generated picture."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from zimage.captions.template import Language
from zimage.core.jsonl import Row
from zimage.evaluation.generate.suite import Half, Kind


class Scored(Row):
    """A picture against the held-out photos. Distances are the engine's; smaller is closer."""

    faces: int
    """How many faces were found."""
    distance: float | None
    """Of the largest face to the centroid of the held-out photos; null without a face."""
    median_distance: float | None
    """Of the largest face to each held-out photo, median."""
    same: bool
    """Whether `distance` is within the engine's threshold. Without a face: false."""
    closeness: float
    """1 at distance 0, one half at the threshold, 0 at twice the threshold and without a face."""
    matching_faces: int
    """How many of all faces are within the threshold: more than one where another person got this face."""
    nearest_photo: str | None
    """The training photo whose face is nearest."""
    nearest_distance: float | None
    """How near."""
    training_distance: float | None = None
    """Of the largest face to the centroid of the training photos; null without a face."""
    copy_of: str | None
    """The training crop that the whole picture is most like."""
    likeness_to_copy: float
    """Correlation of the two pictures at 32 x 32 px of grey, -1 to 1."""
    yaw_deg: float | None
    """Turn of the largest face."""
    second_distance: float | None
    """`distance` by the second engine; null where there is none, it finds no face, or it does not look: at a LoRA's
    pictures that choose, and at those that ask for others."""
    second_same: bool | None
    """Whether that is within the second engine's threshold; null where no second engine looks."""
    following: float | None
    """Share of the prompt's phrases that are found again in the picture; null for prompts in free words."""
    clip: float | None
    """Cosine of picture and prompt in CLIP; null where CLIP is absent."""
    rank: int | None = None
    """1 + how many other people of the gallery are nearer to the largest face than half of the held-out photos are; the
    last without a face, null without a gallery."""
    contrast: float | None = None
    """Standard deviation of the luma, 0 to 0.5."""
    saturation: float | None = None
    """Mean distance of the strongest from the weakest channel, 0 to 1."""
    skin: float | None = None
    """Fine structure of the largest face (zimage.faces.quality.sharpness); null without a face."""
    face_luma: float | None = None
    """Mean luma of that face, 0 to 1."""
    face_share: float | None = None
    """Its height over the picture's."""
    blur: float | None = None
    """Of the whole picture, 0 for sharp to 1 (zimage.faces.degradation)."""
    noise: float | None = None
    """Standard deviation of its noise in levels of 255."""
    blocking: float | None = None
    """Jumps between blocks of 8 px over those within; 1 for none."""
    properties: str = ""
    """What a prompt in free words names and could be measured (zimage.evaluation.score.properties), by space."""
    properties_found: str = ""
    """Of those, what the picture has."""


class PictureRow(Scored):
    """A generated picture: what was asked, by which weights, and how it scored."""

    file: str
    """Inside the evaluate folder: pictures/<weights>/<prompt>-<seed>.png."""
    prompt: str
    kind: Kind
    aspect: str
    language: Language
    half: Half
    seed: int
    weights: Literal["base", "lora"]
    checkpoint: str | None
    """Name of the LoRA's file; null for the base model."""
    strength: float
    """0 for the base model."""
    text: str
    """The prompt as it was asked."""
    engine: str
    """Who measured the distances."""
    threshold: float
    """Same person up to this distance."""
    second_engine: str | None
    """Who measured the second distances; null where nobody did."""


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV with a header; true and false as 1 and 0, nothing as an empty field."""
    table = [row.model_dump() for row in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]) if table else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in line.items()} for line in table)


def read_csv(path: Path) -> list[PictureRow]:
    """Return the rows that `write_csv` wrote of generated pictures; numbers have six decimals there."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    unknown = {name for name, field in PictureRow.model_fields.items() if type(None) in get_args(field.annotation)}
    return [
        PictureRow.model_validate(
            {name: None if value == "" and name in unknown else value for name, value in line.items()}, strict=False
        )
        for line in lines
    ]


def read_tested(path: Path) -> list[PictureRow]:
    """Return the rows of the chosen LoRA on the half of the prompts that chose nothing: no other LoRA is asked them."""
    return [row for row in read_csv(path) if row.weights == "lora" and row.half == "test"]


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return round(value, 6) if isinstance(value, float) else value
