"""Write score.html: what was found, the table of measures, and all pictures of a prompt side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zimage.core.assets import read_asset
from zimage.evaluation.compare import MEASURES, Difference
from zimage.evaluation.generate.image_cache import SAMPLER_NAMES, machine_precision
from zimage.evaluation.hidden import Shown, shown
from zimage.evaluation.protocol import PROTOCOL_VERSION
from zimage.evaluation.score.reals import Reals
from zimage.photos.pictures import jpeg_uri, read_rgb

if TYPE_CHECKING:
    from zimage.scoring.score import Result
    from zimage.scoring.usage import Use

SIDE_PX, QUALITY, REFERENCES = 224, 86, 8
SAYS = {measure.name: measure.says for measure in MEASURES}
SHOWN = (
    ("same_of_all", "same person, of all pictures"),
    ("second_same", "same person by the second engine"),
    ("reviewed", "same person to a reviewer"),
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
    uses: Sequence["Use"],
    seeds: int,
) -> None:
    """Write the page; it holds real photos of the person, and nothing in it is loaded from elsewhere.

    Args:
        folder: Gets score.html; the pictures lie in it.
        results: Each LoRA, the base and each folder.
        found: Their differences.
        lines: What a person should read first.
        reals: The real photos.
        uses: How pictures were made; the usual use first.
        seeds: Pictures of each prompt.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(read_asset("score.html.jinja")).render(
        lines=lines,
        names=[one.name for one in results],
        table=_table(results),
        hidden=_hidden(results),
        uses=_uses(results, uses),
        rules=[(one.name, one.judgement) for one in results if one.judgement],
        differences=[(SAYS[one.measure], one, _range(one.value, one.low, one.high, signed=True)) for one in found],
        references=[_uri(real.file) for real in reals.holdout[:REFERENCES]],
        photos=len(reals.holdout),
        sheet=_sheet(folder, results),
        sampling=uses[0].sampling,
        seeds=seeds,
        protocol=PROTOCOL_VERSION,
    )
    (folder / "score.html").write_text(page, encoding="utf-8")


def _table(results: Sequence["Result"]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the measures that any result has, and for each result its name and a cell for each of them."""
    cells = {one.name: [_cell(one, name) for name, _ in SHOWN] for one in results}
    there = [at for at in range(len(SHOWN)) if any(row[at] != "–" for row in cells.values())]
    return [SHOWN[at][1] for at in there], [(name, [row[at] for at in there]) for name, row in cells.items()]


def _hidden(results: Sequence["Result"]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the figures beside likeness that any result has, and for each result its name and a cell for each."""
    found = {one.name: {each.says: each for each in shown(one.figures)} for one in results if one.figures}
    says = list(dict.fromkeys(name for figures in found.values() for name in figures))
    return says, [(name, [_shown(figures.get(each)) for each in says]) for name, figures in found.items()]


def _shown(figure: Shown | None) -> str:
    if figure is None:
        return "–"
    return figure.value + (f" [{figure.interval}]" if figure.interval else "")


def _cell(result: "Result", name: str) -> str:
    estimate = getattr(result.figures, name) if result.figures else None
    return "–" if estimate is None else _range(estimate.value, estimate.low, estimate.high)


def _uses(results: Sequence["Result"], uses: Sequence["Use"]) -> list[dict[str, str]]:
    """Return the settings of each use, and what merging leaves of each LoRA; none where there is only the usual one."""
    if len(uses) < 2:
        return []
    rows = []
    for use in uses:
        left = [
            f"{one.source}: {one.about['merging']['share']:.2f} of a change of {one.about['merging']['relative']:.2%}"
            for one in results
            if one.use == use.name and one.about.get("merging")
        ]
        sampling = use.sampling
        rows.append(
            {
                "name": use.name or "usual",
                "base": Path(use.base.model).name,
                "precision": sampling.precision or machine_precision(),
                "lora": "merged" if sampling.merged else "apart",
                "sampler": f"{SAMPLER_NAMES[sampling.sampler]}, {sampling.steps} steps",
                "side": f"{sampling.side_px} px",
                "guidance": f"{sampling.guidance_scale:g}",
                "left": "; ".join(left),
            }
        )
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
