"""Make a training adapter: a LoRA that takes the distillation out of a base that samples in few steps.

A LoRA that is trained on a distilled base learns two things: its subject, and to predict the velocity of ordinary flow
matching, which the base has unlearnt for its few steps; the second spoils the pictures of few steps. An adapter that
has learnt the second already is merged into the frozen weights while the subject is learnt, and left out afterwards
(`train.training_adapter`), so that the subject's LoRA need not learn it. It slows that down and does not end it.

The method is ostris': the base generates pictures at various sizes and aspect ratios, and an ordinary LoRA is trained
on them at a low learning rate, 1e-5, so that what the base knows stays as it is
(huggingface.co/ostris/zimage_turbo_training_adapter: README.md, "How was it made?"). ai-toolkit merges the result at
strength 1 and samples at -1 (ostris/ai-toolkit@27a03a91: extensions_built_in/diffusion_models/z_image/z_image.py,
load_training_adapter); SimpleTuner keeps it as a frozen second adapter (bghira/SimpleTuner@bc8e6ab77:
simpletuner/helpers/models/common.py, configure_assistant_lora_for_training). At these commits neither of the two has
code that makes one.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from zimage.captions.subject import Subject
from zimage.core.assets import asset
from zimage.core.errors import InputError
from zimage.core.folder import claim, made_aside
from zimage.core.jsonl import write_metrics
from zimage.core.params import with_values
from zimage.core.plain_yaml import load_plain
from zimage.core.section import Section, read_section, section_of
from zimage.evaluation.generate.base_pictures import BasePicture, make_base_pictures, planned
from zimage.lora.files.given import pinned_lora
from zimage.model.base import Base, identify_files, is_turbo, public_name, resolve
from zimage.stages.encode import encode_pictures
from zimage.stages.train import train
from zimage.training.params import MachineParams, TrainParams
from zimage.training.pictures import Picture
from zimage.training.validation import CURVE, MOST_CROPS, mean_loss, read_validation

logger = logging.getLogger(__name__)

PACKAGED_SETTINGS, PACKAGED_PROMPTS = asset("training_adapter.yaml"), asset("training_adapter_prompts.txt")
RECORD, RESULT = "training_adapter.json", "training_adapter.safetensors"
NOBODY = Subject(trigger="trainingadapter", class_noun="person")  # the stages want one; the file does not name it
HELD_OUT_SHARE = 0.05
# What is about a subject, or would train on something else than the base's own pictures.
PLAIN = {
    "adapter": "lora",
    "training_adapter": None,
    "init_lora": None,
    "prior_preservation": None,
    "stop": None,
    "face_weight": 1.0,
}


class MakingParams(Section):
    """How a training adapter is made; see zimage/assets/training_adapter.yaml."""

    pictures: int = Field(ge=2)
    """Pictures that the base generates; a few of them are held out, to measure the loss on."""
    sizes_px: list[list[int]] = Field(min_length=1)
    """Widths and heights, multiples of 16; they come in turn."""
    steps: int = Field(ge=1)
    """Euler steps, as the base was distilled for."""
    guidance_scale: float = Field(ge=0)
    """As diffusers' ZImagePipeline counts: 0 none."""
    seed: int = Field(ge=0)
    """Number of the first picture of each prompt; decides the noise."""
    train: dict[str, Any]
    """Values of params.yaml's section `train`, by dotted key, such as `optimiser.learning_rate`."""

    @field_validator("sizes_px")
    @classmethod
    def _are_sizes(cls, sizes_px: list[list[int]]) -> list[list[int]]:
        if any(len(size) != 2 or side < 16 or side % 16 for size in sizes_px for side in size):
            raise ValueError("each size is a width and a height, both multiples of 16 px, such as [832, 1216]")
        return sizes_px


def make_training_adapter(
    out: Path, *, params_file: Path, settings_file: Path | None = None, prompts_file: Path | None = None
) -> list[str]:
    """Write training_adapter.safetensors, and return what to say about it, line by line.

    Pictures, encoded pictures and the training of an earlier call with the same input are not made again; a training
    that was stopped goes on.

    Args:
        out: A new folder, or one of an earlier call: gets also pictures/, encode/, train/ and training_adapter.json,
            which says what all was made of.
        params_file: A params.yaml; `base` is the distilled model, `train` what `settings_file` changes.
        settings_file: With a section `training_adapter`, see `MakingParams`; None for the packaged one.
        prompts_file: A prompt in each line; None for the packaged ones, which name no person.

    Raises:
        InputError: a file is absent or wrong, `out` holds an adapter that was made otherwise, or see the train stage.
    """
    making = read_section(settings_file or PACKAGED_SETTINGS, "training_adapter", MakingParams)
    prompts = read_prompts(prompts_file or PACKAGED_PROMPTS)
    base = read_section(params_file, "base", Base)
    folder = resolve(base)
    text = with_values(
        params_file.read_text(encoding="utf-8"),
        {f"train.{key}": value for key, value in making.train.items()},
        f"{settings_file or PACKAGED_SETTINGS}, `training_adapter.train`",
    )
    params = section_of(load_plain(text), "train", TrainParams, params_file).model_copy(update=PLAIN)
    machine = read_section(params_file, "machine", MachineParams)
    settings = {"making": making.model_dump(mode="json"), "train": params.model_dump(mode="json")}
    claim(
        out,
        RECORD,
        {"base": base.identity, "prompts": prompts, **settings},
        held="a training adapter of another base, other prompts or other settings",
        purpose="the training adapter",
    )
    if is_turbo(base.model, folder):
        logger.info("the distillation of %s is undone on purpose here, whatever is warned of", public_name(base.model))
    else:
        logger.warning(
            "%s is not Turbo by its name or noise schedule; only a distilled base needs a training adapter", base.model
        )
    wanted = planned(
        prompts,
        making.sizes_px,
        number=making.pictures,
        steps=making.steps,
        guidance_scale=making.guidance_scale,
        seed=making.seed,
    )
    files = make_base_pictures(base, wanted, out / "pictures")
    if not (out / "encode").is_dir():
        _encode(out / "encode", wanted, files, folder, sample=prompts[0])
    if not (out / "train").is_dir():
        train(out / "encode", out / "train", params=params, base=base, subject=NOBODY, machine=machine)
    return _release(out, base, files, making)


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a file of prompts, but for empty ones and those that begin with `#`.

    Raises:
        InputError: it is absent, no text or empty.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path} with prompts; name a text file with a prompt in each line.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text in UTF-8; write a prompt in each line of a text file.") from None
    prompts = [line for line in dict.fromkeys(lines) if line and not line.startswith("#")]
    if not prompts:
        raise InputError(f"{path} has no prompts; write one in each line.")
    return prompts


def _encode(out: Path, wanted: Sequence[BasePicture], files: Sequence[Path], base: Path, *, sample: str) -> None:
    """Encode the pictures as the encode stage does; the last ones are held out."""
    pictures = [Picture(file, file.name, [one.text], photo=file.stem) for one, file in zip(wanted, files, strict=True)]
    held_out = min(MOST_CROPS, max(1, round(len(pictures) * HELD_OUT_SHARE)))
    with made_aside(out) as aside:
        items, texts = encode_pictures(
            aside, pictures[:-held_out], pictures[-held_out:], folder=base, subject=NOBODY, sample_prompts=[sample]
        )
        write_metrics(aside / "metrics.json", {"items": len(items), "held_out": held_out, "texts": len(texts)})


def _release(out: Path, base: Base, files: Sequence[Path], making: MakingParams) -> list[str]:
    """Write the LoRA of the training under its own name; its metadata name its purpose and no trigger."""
    from zimage.core.tensor_file import copy_tensors

    about = {
        "modelspec.title": f"training adapter for {public_name(base.model)}",
        "modelspec.trigger_phrase": "",
        "zimage.training_set": f"synthetic: {making.pictures} pictures that the base generated, "
        f"{identify_files(files, out / 'pictures')}",
    }
    copy_tensors(out / "train" / "lora.safetensors", out / RESULT, about)
    pinned = pinned_lora(str(out / RESULT))
    losses = list(mean_loss(read_validation(out / "train" / CURVE)).values())
    return [
        f"loss on held-out pictures of the base: {losses[0]:.4f} before, {losses[-1]:.4f} after",
        f"training adapter: {out / RESULT}",
        f"use it with --set 'train.training_adapter={{file: {pinned['file']}, sha256: {pinned['sha256']}, "
        "strength: 1.0}'",
    ]
