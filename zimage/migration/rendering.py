"""Render pictures of a person by an older model with its LoRA, balanced so that only the face repeats."""

import hashlib
import inspect
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from zimage.core.errors import InputError
from zimage.core.jsonl import Row, write_rows
from zimage.core.progress import Progress
from zimage.core.section import Section
from zimage.lora.files.inspection import Inspection, inspect_file

logger = logging.getLogger(__name__)

ROWS = "renders.jsonl"


class RenderParams(Section):
    """How the old model draws; see zimage/assets/migrate.yaml."""

    pictures: int = Field(ge=1, description="pictures")
    side_px: int = Field(ge=64, multiple_of=8, description="px, height and width")
    steps: int = Field(ge=1, description="sampling steps")
    guidance_scale: float = Field(ge=0, description="of the old model")
    strength: float = Field(gt=0, description="of the old LoRA")
    seed: int = Field(ge=0, description="of the noise and of the order")
    negative: str = Field(description="negative prompt; empty for none")
    prompt: str = Field(description="with {person}, {framing}, {angle}, {expression}, {place} and {light}")
    framings: list[str] = Field(min_length=1)
    angles: list[str] = Field(min_length=1)
    expressions: list[str] = Field(min_length=1)
    places: list[str] = Field(min_length=1)
    lights: list[str] = Field(min_length=1)


class RenderRow(Row):
    """One drawn picture."""

    file: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class OldModel:
    """The old model, in diffusers' layout, and its LoRA."""

    folder: Path
    lora: Path


def planned(params: RenderParams, person: str) -> list[RenderRow]:
    """Return what to draw: every value of every list equally often (give or take one), paired at random.

    Args:
        params: See `RenderParams`.
        person: What the old prompts called the person, such as `ohwx woman`.

    Raises:
        InputError: the prompt's template names something that there is no list for.
    """
    lists = {
        "framing": params.framings,
        "angle": params.angles,
        "expression": params.expressions,
        "place": params.places,
        "light": params.lights,
    }
    columns = {name: _even(values, params.pictures, f"{params.seed} {name}") for name, values in lists.items()}
    rows = []
    for at in range(params.pictures):
        values = {name: column[at] for name, column in columns.items()}
        try:
            prompt = params.prompt.format(person=person, **values)
        except (KeyError, IndexError, ValueError):
            known = ", ".join(f"{{{name}}}" for name in ("person", *lists))
            raise InputError(f"The prompt {params.prompt!r} may name {known} and nothing else in braces.") from None
        seed = int.from_bytes(hashlib.sha256(f"{params.seed} {at}".encode()).digest()[:4], "little")
        rows.append(RenderRow(file=f"render-{at:04d}.png", prompt=prompt, seed=seed))
    return rows


def render(model: OldModel, rows: Sequence[RenderRow], out: Path, *, params: RenderParams) -> None:
    """Write the pictures and renders.jsonl; existing pictures are not generated again.

    Raises:
        InputError: the LoRA is a Z-Image one already, or diffusers cannot open the model or apply the LoRA to it.
    """
    found = inspect_file(model.lora)
    if found.family == "Z-Image":
        raise InputError(f"{model.lora} is a Z-Image LoRA already; `zimage convert` makes it usable everywhere.")
    out.mkdir(parents=True, exist_ok=True)
    missing = [row for row in rows if not (out / row.file).is_file()]
    if missing:
        pipeline = open_with_lora(model, found, params.strength)
        with Progress("render", len(rows), len(rows) - len(missing)) as progress:
            for row in missing:
                aside = out / f".{row.file}"
                _drawn(pipeline, row, params).save(aside, format="PNG")
                aside.rename(out / row.file)
                progress.advance()
    write_rows(out / ROWS, rows)
    logger.info("%d pictures in %s, %d of them new", len(rows), out, len(missing))


def open_with_lora(model: OldModel, found: Inspection, strength: float) -> Any:
    """Return the old model's own pipeline with its LoRA applied at `strength`, on the GPU if there is one.

    Raises:
        InputError: diffusers cannot open the folder, or applies nothing of the LoRA to it.
    """
    from diffusers import DiffusionPipeline

    from zimage.model.device import device_and_dtype

    device, dtype = device_and_dtype()
    if not (model.folder / "model_index.json").is_file():
        raise InputError(f"{model.folder} has no model_index.json; name the old model's folder in diffusers' layout.")
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            model.folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"diffusers cannot open {model.folder} ({_first_line(error)}); copy the model again."
        ) from None
    if not hasattr(pipeline, "load_lora_weights"):
        raise InputError(
            f"{type(pipeline).__name__} in {model.folder} takes no LoRA; name the model it was trained on."
        )
    fits = f"{model.lora} is a {found.family} LoRA; name the folder of the model it was trained on"
    try:
        pipeline.load_lora_weights(str(model.lora.parent), weight_name=model.lora.name, adapter_name="person")
    except (ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise InputError(f"diffusers cannot apply it to {model.folder} ({_first_line(error)}): {fits}.") from None
    if not pipeline.get_active_adapters():
        raise InputError(f"diffusers applies nothing of it to {model.folder}: {fits}.")
    pipeline.set_adapters("person", strength)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _even(values: Sequence[str], count: int, lot: str) -> list[str]:
    """Return `count` values, each as often as any other, in random order."""
    column = [values[at % len(values)] for at in range(count)]
    random.Random(lot).shuffle(column)
    return column


def _drawn(pipeline: Any, row: RenderRow, params: RenderParams) -> Any:
    import torch

    arguments: dict[str, Any] = {
        "prompt": row.prompt,
        "height": params.side_px,
        "width": params.side_px,
        "num_inference_steps": params.steps,
        "guidance_scale": params.guidance_scale,
        # On the CPU, so that the same seed draws the same picture on every machine.
        "generator": torch.Generator("cpu").manual_seed(row.seed),
    }
    if params.negative:
        if "negative_prompt" not in inspect.signature(pipeline.__call__).parameters:
            raise InputError(
                f"{type(pipeline).__name__} takes no negative prompt; set render.negative to an empty text."
            )
        arguments["negative_prompt"] = params.negative
    with torch.inference_mode():
        return pipeline(**arguments).images[0]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
