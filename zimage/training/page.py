"""Render the progress of a training as one self-contained HTML page."""

import base64
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zimage.core.assets import read_asset
from zimage.core.csv_rows import read_whole_rows
from zimage.core.svg_charts import curve, line

if TYPE_CHECKING:
    from zimage.training.first_batches import FirstBatch

SAMPLE = re.compile(r"step-([0-9]+)-([0-9]+)\.png")
SIDE_PX = 320  # of a picture on the page
NOISE_LEVELS = "samples/noise_levels.csv"  # how often each sigma is trained on
SMOOTH = "smooth"  # the column of loss.csv with the mean of the last steps


@dataclass(frozen=True)
class PageContent:
    """The content of a training page.

    Args:
        done: Steps that were written down.
        loss: Their mean loss at the end, weighted towards the last ones; None before the first.
        pictures: Sample pictures by step and prompt, as data URIs.
        steps: The number of each step in `losses`.
        losses: Of each step.
        likeness: Mean closeness of the sample pictures to the training photos, by step; see zimage.training.likeness.
        validation: Mean loss on held-out crops, by step; see zimage.training.validation.
        noise_levels: Sigma, and how often it is trained on, 1 where all come alike; see zimage.training.noise.
        warnings: What the training warns of, in sentences.
        first_batches: What the first steps learn from.
    """

    done: int
    loss: float | None
    pictures: dict[tuple[int, int], str]
    steps: list[float]
    losses: list[float]
    likeness: dict[int, float]
    validation: dict[int, float]
    noise_levels: dict[float, float]
    warnings: list[str]
    first_batches: "list[FirstBatch]"


def seen(folder: Path, before: Mapping[tuple[int, int], str] | None = None) -> PageContent:
    """Read the content of the page from a training's folder, finished or not.

    Args:
        folder: Of the training.
        before: The pictures that were seen before, which are not read again.
    """
    from zimage.training.first_batches import read_first_batches
    from zimage.training.likeness import CURVE, mean_closeness, read_likeness  # it loads numpy
    from zimage.training.validation import CURVE as VALIDATION
    from zimage.training.validation import mean_loss, read_validation

    rows, known = read_whole_rows(folder / "loss.csv"), before or {}
    matches = [(SAMPLE.fullmatch(path.name), path) for path in (folder / "samples").glob("*.png")]
    paths = {(int(match[1]), int(match[2])): path for match, path in matches if match}
    found = {place: known.get(place) or _data_uri(path) for place, path in paths.items()}
    pictures = {place: picture for place, picture in found.items() if picture}
    steps, losses = ([float(row[name]) for row in rows] for name in ("step", "loss"))
    loss = float(rows[-1][SMOOTH]) if rows else None
    likeness = mean_closeness(read_likeness(folder / CURVE))
    validation = mean_loss(read_validation(folder / VALIDATION))
    done = int(steps[-1]) if steps else 0
    levels = {float(row["sigma"]): float(row["density"]) for row in read_whole_rows(folder / NOISE_LEVELS)}
    warnings = _warnings(folder / "metrics.json")
    batches = read_first_batches(folder)
    return PageContent(done, loss, pictures, steps, losses, likeness, validation, levels, warnings, batches)


def render(seen: PageContent, prompts: list[str], *, title: str, total: int, pictured: bool, working: bool) -> str:
    """Return the page as HTML; nothing in it is loaded from elsewhere.

    Args:
        seen: What it shows.
        prompts: What the sample pictures are of, by number.
        title: Its heading.
        total: How many steps there will be.
        pictured: Sample pictures are made.
        working: There will be more; the page asks for it by itself.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(read_asset("training_page.html.jinja"))
    rows = [
        (step, [seen.pictures.get((step, number), "") for number in range(len(prompts))])
        for step in sorted({step for step, _ in seen.pictures}, reverse=True)
    ]
    return template.render(
        title=title,
        done=seen.done,
        total=total,
        loss=seen.loss,
        chart=curve(seen.steps, seen.losses, "steps") if len(seen.steps) > 1 else "",
        validation=curve(list(seen.validation), list(seen.validation.values()), "steps")
        if len(seen.validation) > 1
        else "",
        likeness=curve(list(seen.likeness), list(seen.likeness.values()), "steps") if len(seen.likeness) > 1 else "",
        noise_levels=line(list(seen.noise_levels), list(seen.noise_levels.values()), "share of noise (sigma)")
        if seen.noise_levels
        else "",
        prompts=prompts,
        rows=rows,
        pictured=pictured,
        working=working,
        warnings=seen.warnings,
        first_batches=seen.first_batches,
    )


def _warnings(metrics: Path) -> list[str]:
    """Return the warnings in a training's metrics, which it writes before its first step; none without the file."""
    try:
        content = json.loads(metrics.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not there yet, or half written
        return []
    found: list[str] = content.get("warnings", [])
    return found


def _data_uri(path: Path) -> str:
    """Return a picture, made smaller where it is large, for a page; "" where it is half written."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError:
        return ""
    small.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
