"""A folder of finished pictures, however they were made, with their prompts where the files hold them."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from zimage.core.errors import InputError
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.score.picture import PictureScorer, Search, SearchedPicture
from zimage.photos.pictures import read_rgb

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MAX_PROMPT = 4000  # characters of metadata that are looked at as a prompt


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder, by name.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder} with pictures; give one with --pictures.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{folder} holds no PNG, JPEG or WebP picture; give a folder with some.")
    return found


def prompt_in(file: Path) -> str:
    """Return the prompt in a picture's metadata: AUTOMATIC1111's `parameters`, ComfyUI's `prompt`, ours; or ""."""
    with Image.open(file) as image:
        texts = {key: value for key, value in image.info.items() if isinstance(value, str)}
    if "parameters" in texts:
        return re.split(r"\nNegative prompt:|\nSteps:", texts["parameters"][:MAX_PROMPT])[0].strip()
    if "prompt" in texts:
        return _of_comfyui(texts["prompt"]) or ("" if texts["prompt"].lstrip().startswith("{") else texts["prompt"])
    return texts.get("Description", "")[:MAX_PROMPT]


def rows_of(
    files: Sequence[Path], name: str, scorer: PictureScorer, search: Search, known: Mapping[str, str]
) -> list[PictureRow]:
    """Return the scored row of each picture; pictures of one prompt count as one group of seeds.

    Args:
        files: The pictures.
        name: Of the set in the results.
        scorer: Scores them.
        search: Finds the faces.
        known: Ids of the suite's prompts by their text, so that a picture of one can be compared with a LoRA's.
    """
    info, seeds = scorer.targets.info, Counter[str]()
    rows = []
    for file, found in zip(files, search.faces_in([SearchedPicture(file) for file in files]), strict=True):
        text = prompt_in(file)
        prompt = known.get(text) or hashlib.sha256((text or file.name).encode()).hexdigest()[:12]
        scored = scorer.scored(read_rgb(file), found, text, "en").model_dump() | ({} if text else {"clip": None})
        rows.append(
            PictureRow(
                **scored,
                file=f"pictures/{name}/{file.name}",
                prompt=prompt,
                kind="likeness",
                aspect="",
                language="en",
                half="test",
                seed=seeds[prompt],
                weights="lora",
                checkpoint=None,
                strength=1.0,
                text=text,
                engine=info.engine_id,
                threshold=info.threshold,
                second_engine=scorer.second.info.engine_id if scorer.second else None,
            )
        )
        seeds[prompt] += 1
    return rows


def _of_comfyui(text: str) -> str:
    """Return the longest text of a ComfyUI graph's CLIPTextEncode nodes; "" where it is no graph."""
    try:
        graph = json.loads(text)
    except ValueError:
        return ""
    nodes: list[Any] = list(graph.values()) if isinstance(graph, dict) else []
    inputs = [node.get("inputs", {}) for node in nodes if isinstance(node, dict)]
    texts = [each["text"] for each in inputs if isinstance(each, dict) and isinstance(each.get("text"), str)]
    return max(texts, key=len, default="")[:MAX_PROMPT]
