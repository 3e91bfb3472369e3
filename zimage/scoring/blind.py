"""Write blind.html, which shows pictures of a prompt side by side without names, and the key to it beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

import numpy as np

from zimage.core.assets import read_asset
from zimage.evaluation.score.reals import Reals
from zimage.photos.pictures import jpeg_uri, read_rgb

if TYPE_CHECKING:
    from zimage.scoring.score import Result

PAGE, KEY = "blind.html", "blind_key.json"
SIDE_PX, QUALITY, REFERENCES = 320, 88, 8


def write_blind_page(
    folder: Path, results: Sequence["Result"], reals: Reals, *, generator: np.random.Generator
) -> None:
    """Write the page and its key: for each prompt, which letter is which result.

    The order is drawn anew for each prompt, so that nobody learns what a letter stands for.

    Args:
        folder: Gets both files; the pictures lie in it.
        results: Each LoRA, the base and each folder.
        reals: The real photos.
        generator: Draws the orders.
    """
    from jinja2 import Environment, StrictUndefined

    sheet, key = [], {}
    for prompt, text in dict.fromkeys((row.prompt, row.text) for one in results for row in one.rows):
        if prompt in key:
            continue
        first = {one.name: row for one in results for row in reversed(one.rows) if row.prompt == prompt}
        names = [list(first)[at] for at in generator.permutation(len(first))]
        key[prompt] = dict(zip(map(_letters, range(len(names))), names, strict=True))
        sheet.append((text, {letter: _uri(folder / first[name].file) for letter, name in key[prompt].items()}))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(read_asset("blind.html.jinja")).render(
        sheet=sheet,
        references=[_uri(real.file) for real in reals.holdout[:REFERENCES]],
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    (folder / KEY).write_text(json.dumps(key, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _letters(number: int) -> str:
    """Return A to Z, then AA, AB and so on."""
    above, last = divmod(number, len(ascii_uppercase))
    return (_letters(above - 1) if above else "") + ascii_uppercase[last]


def _uri(path: Path) -> str:
    return jpeg_uri(read_rgb(path), SIDE_PX, QUALITY)
