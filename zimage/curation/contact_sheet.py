"""Write the contact sheet as an HTML file whose pictures lie in a folder beside it and load on scrolling."""

from collections.abc import Sequence
from dataclasses import dataclass

from zimage.core.assets import read_asset
from zimage.photos.rows import Box, Decision, ManifestRow

SHEET = "contact_sheet.html"
THUMBNAILS = "thumbnails"  # the folder beside the sheet
TITLES: dict[Decision, tuple[str, str]] = {
    "train": ("Trained on", "What the model learns from."),
    "holdout": ("Held out", "Never trained on: generated pictures are scored against these."),
    "review": ("For you to look at", "In doubt, and left out until you decide."),
    "reject": ("Left out", "And why."),
}
UNDECIDED = ("Nothing against it", "Not decided, for the photos as a whole were refused.")
PORTRAIT_PX, AROUND = 104, 0.35  # side of a face on the sheet; what is shown around it, in sides of its box


@dataclass(frozen=True)
class Tile:
    """One photo on the sheet.

    Args:
        row: All that is known of it.
        picture: Width and height in px of its small JPEG, thumbnails/<photo>.jpg; None where there is none.
        regions: What was cut out of it, in px of the photo.
    """

    row: ManifestRow
    picture: tuple[int, int] | None
    regions: list[Box]


@dataclass(frozen=True)
class Portrait:
    """A face on the sheet; the browser crops it out of a thumbnail.

    Args:
        tile: The photo.
        face: Place of the face in its row.
    """

    tile: Tile
    face: int

    @property
    def style(self) -> str:
        """Place and size of the small picture behind a window of PORTRAIT_PX."""
        row = self.tile.row
        assert row.width is not None and row.height is not None
        left, top, right, bottom = row.faces[self.face].box_xyxy
        side = max(right - left, bottom - top) * (1 + 2 * AROUND)
        scale = PORTRAIT_PX / max(side, 1.0)
        x, y = (left + right - side) / 2, (top + bottom - side) / 2
        width, height = row.width * scale, row.height * scale
        return f"left:{-x * scale:.1f}px;top:{-y * scale:.1f}px;width:{width:.1f}px;height:{height:.1f}px"


@dataclass(frozen=True)
class PersonShown:
    """A person in many photos: the number of photos, and example faces."""

    photos: int
    portraits: list[Portrait]


def contact_sheet(
    tiles: list[Tile],
    *,
    engine: str,
    unused_overrides: list[str],
    people: Sequence[PersonShown] = (),
    refusal: str = "",
) -> str:
    """Return the sheet as HTML; it loads nothing but the small pictures in THUMBNAILS, beside it.

    Args:
        tiles: One for each file that was given.
        engine: What found and compared the faces, for the footer; empty where nothing did.
        unused_overrides: Hashes that a human decided about, but that no photo has.
        people: Who is in a substantial part of the photos; shown where there is more than one.
        refusal: Why the photos as a whole were refused; empty where they were not.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "words": lambda code: code.replace("_", " ")}
    template = environment.from_string(read_asset("contact_sheet.html.jinja"))
    titles = TITLES | ({"train": UNDECIDED} if refusal else {})
    groups = [
        (decision, *titles[decision], _ordered([tile for tile in tiles if tile.row.decision == decision]))
        for decision in TITLES
    ]
    return template.render(
        thumbnails=THUMBNAILS,
        groups=groups,
        total=len(tiles),
        engine=engine,
        unused_overrides=unused_overrides,
        people=people if len(people) > 1 else (),
        refusal=refusal,
    )


def _ordered(tiles: list[Tile]) -> list[Tile]:
    """Return the tiles in reading order: the best photos first, rejected ones grouped by reason."""
    return sorted(tiles, key=lambda tile: (_order(tile.row), -(tile.row.quality or 0), tile.row.name))


def _order(row: ManifestRow) -> str:
    return row.reason if row.decision in {"review", "reject"} else ""


def _percent(box: Box, width: int, height: int) -> str:
    """Return a box in px as the CSS of an element over the photo."""
    left, right = (min(max(100 * x / width, 0.0), 100.0) for x in (box[0], box[2]))
    top, bottom = (min(max(100 * y / height, 0.0), 100.0) for y in (box[1], box[3]))
    return f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"
