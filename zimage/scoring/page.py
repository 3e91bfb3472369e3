"""Write score.html: what was found, the table of measures, and all pictures of a prompt side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zimage.core.assets import read_asset
from zimage.evaluation.compare import MEASURES, Difference
from zimage.evaluation.generate.image_cache import Sampling
from zimage.evaluation.protocol import PROTOCOL_VERSION
from zimage.evaluation.score.reals import Reals
from zimage.photos.pictures import jpeg_uri, read_rgb

if TYPE_CHECKING:
    from zimage.scoring.score import Result

SIDE_PX, QUALITY, REFERENCES = 224, 86, 8
SAYS = {measure.name: measure.says for measure in MEASURES}
SHOWN = (
    ("same_of_all", "same person, of all pictures"),
    ("second_same", "same person by the second engine"),
    ("face_found", "a face is found"),
    ("distance", "distance to the photos' centroid"),
    ("gain", "gain: 0 base model, 1 real photos"),
    ("leak_rise", "shows the person uncalled, above the base"),
    ("variety_ratio", "variety within a prompt, over the base's"),
    ("following", "of the prompt found in the picture"),
    ("clip", "agreement with the prompt (CLIP)"),
)


def write_page(
    folder: Path,
    results: Sequence["Result"],
    found: Sequence[Difference],
    lines: Sequence[str],
    reals: Reals,
    *,
    sampling: Sampling,
    seeds: int,
) -> None:
    """Write the page; it holds real photos of the person, and nothing in it is loaded from elsewhere.

    Args:
        folder: Gets score.html; the pictures lie in it.
        results: Each LoRA, the base and each folder.
        found: Their differences.
        lines: What a person should read first.
        reals: The real photos.
        sampling: How pictures were made.
        seeds: Pictures of each prompt.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(read_asset("score.html.jinja")).render(
        lines=lines,
        names=[one.name for one in results],
        table=_table(results),
        rules=[(one.name, one.judgement) for one in results if one.judgement],
        differences=[(SAYS[one.measure], one, _range(one.value, one.low, one.high, signed=True)) for one in found],
        references=[_uri(real.file) for real in reals.holdout[:REFERENCES]],
        photos=len(reals.holdout),
        sheet=_sheet(folder, results),
        sampling=sampling,
        seeds=seeds,
        protocol=PROTOCOL_VERSION,
    )
    (folder / "score.html").write_text(page, encoding="utf-8")


def _table(results: Sequence["Result"]) -> list[tuple[str, list[str]]]:
    rows = []
    for name, says in SHOWN:
        cells = []
        for one in results:
            estimate = getattr(one.figures, name) if one.figures else None
            cells.append("–" if estimate is None else _range(estimate.value, estimate.low, estimate.high))
        if any(cell != "–" for cell in cells):
            rows.append((says, cells))
    return rows


def _range(value: float | None, low: float | None, high: float | None, *, signed: bool = False) -> str:
    form = "{:+.3f}" if signed else "{:.3f}"
    if value is None:
        return "–"
    return form.format(value) + (
        f" [{form.format(low)}, {form.format(high)}]" if low is not None and high is not None else ""
    )


def _sheet(folder: Path, results: Sequence["Result"]) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Return for each prompt its text and the first picture of each result."""
    first = [{row.prompt: row for row in reversed(one.rows)} for one in results]
    prompts = dict.fromkeys(row.prompt for one in results for row in one.rows)
    sheet = []
    for prompt in prompts:
        rows = [of.get(prompt) for of in first]
        text = next(row.text for row in reversed(rows) if row is not None)
        cells = [
            None if row is None else {"picture": _uri(folder / row.file), "same": row.same, "distance": row.distance}
            for row in rows
        ]
        sheet.append((text or prompt, cells))
    return sheet


def _uri(path: Path) -> str:
    return jpeg_uri(read_rgb(path), SIDE_PX, QUALITY)
