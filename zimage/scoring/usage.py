"""How a LoRA is used when it is scored: base, precision, merged or apart, sampler, size.

The first use is always the usual one: the base and the settings of params.yaml, as diffusers keeps a LoRA. Each
`--base` and each `--as` adds further ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from zimage.core.errors import InputError
from zimage.evaluation.generate.generator import open_studio
from zimage.evaluation.generate.image_cache import Precision, Sampler, Sampling
from zimage.model.base import Base, find, identify, is_turbo

if TYPE_CHECKING:
    from zimage.evaluation.generate.generator import Generator

MERGED, UNMERGED = "merged", "unmerged"
# Of each setting: its type, the least value, what it is a multiple of, and the rule in words.
NUMBERS: dict[str, tuple[type[int] | type[float], int, float, str]] = {
    "side_px": (int, 16, 16, "a multiple of 16"),
    "steps": (int, 1, 1, "a whole number of 1 or more"),
    "guidance_scale": (float, 0, math.inf, "a number of 0 or more"),
}
# Of a base that is distilled, where params.yaml's is not, and the other way round; as the presets have it.
TURBO: dict[str, Any] = {"steps": 8, "guidance_scale": 0.0}
UNDISTILLED: dict[str, Any] = {"steps": 28, "guidance_scale": 3.0}


@dataclass(frozen=True)
class Use:
    """One way in which everything is scored.

    Args:
        name: What it is called in results, such as `Z-Image-Turbo, merged`; "" for the usual one.
        base: The base model.
        sampling: Settings of its pictures.
    """

    name: str
    base: Base
    sampling: Sampling

    @property
    def of_base(self) -> "Use":
        """The same without a LoRA, which cannot be merged: pictures of the base alone."""
        words = [word for word in self.name.split(", ") if word != MERGED]
        return replace(self, name=", ".join(filter(None, words)), sampling=replace(self.sampling, merged=False))

    def called(self, what: str) -> str:
        """Return the name in results of what is used in this way."""
        return f"{what} ({self.name})" if self.name else what


def uses(bases: Sequence[str], ways: Sequence[str], pinned: Base, usual: Sampling) -> list[Use]:
    """Return the usual use and each that was asked for, on every base.

    Args:
        bases: Folders or hub ids; none for the base of params.yaml.
        ways: As given to `--as`; see `sampling_of`.
        pinned: The base of params.yaml.
        usual: The sampling of params.yaml.

    Raises:
        InputError: a way cannot be read, or two bases have one name.
    """
    models = [pinned if model == pinned.model else Base(model=model, identity=identify(model)) for model in bases]
    models = models or [pinned]
    names = [Path(base.model).name for base in models]
    if len(set(names)) < len(names):
        raise InputError(f"The bases {', '.join(bases)} have the same name; give folders with different names.")
    found = []
    for base, name in zip(models, names, strict=True):
        start = usual if base == pinned else _usual_of(base, pinned, usual)
        for way in ["", *dict.fromkeys(ways)]:
            words = [name if len(models) > 1 else "", *(word.strip() for word in way.split(","))]
            found.append(Use(", ".join(filter(None, words)), base, sampling_of(way, start)))
    return found


def sampling_of(way: str, usual: Sampling) -> Sampling:
    """Return the sampling of a way of use, such as `merged`, `fp8,dpmpp_2m` or `merged,side_px=768,steps=20`.

    Args:
        way: Words with commas between them: merged or unmerged; float32, bfloat16, fp8 or int8; a sampler; and
            side_px, steps or guidance_scale with a value. "" changes nothing.
        usual: What holds where a way says nothing.

    Raises:
        InputError: a word is unknown, a number is none, or a LoRA is to be merged into INT8 weights.
    """
    changed: dict[str, Any] = {}
    for word in filter(None, (part.strip() for part in way.split(","))):
        key, _, value = word.partition("=")
        if word in {MERGED, UNMERGED}:
            changed["merged"] = word == MERGED
        elif word in get_args(Precision):
            changed["precision"] = word
        elif word in get_args(Sampler):
            changed["sampler"] = word
        elif key in NUMBERS:
            changed[key] = _number(key, value, way)
        else:
            known = ", ".join([MERGED, UNMERGED, *get_args(Precision), *get_args(Sampler), *NUMBERS])
            raise InputError(f"{word!r} in --as {way} is not known; use {known}, with commas between them.")
    found = replace(usual, **changed)
    if found.merged and found.precision == "int8":
        raise InputError(f"--as {way} merges into INT8 weights, which is not measured; leave out merged or int8.")
    return found


def open_used(use: Use, texts: Sequence[str], *, adapters_gb: float) -> "Generator":
    """Return a generator that makes pictures in this way; see `zimage.evaluation.generate.generator.open_studio`."""
    import torch

    from zimage.scoring.merging import MergingLoader, quantize_blocks
    from zimage.scoring.samplers import scheduler_of

    sampling, precision = use.sampling, use.sampling.precision

    def prepare(pipeline: Any) -> None:
        if precision in {"fp8", "int8"}:
            quantize_blocks(pipeline.transformer, precision)
        if sampling.sampler != "euler":
            pipeline.scheduler = scheduler_of(sampling.sampler, pipeline.scheduler)

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return open_studio(
        use.base,
        sampling,
        texts,
        adapters_gb=adapters_gb,
        dtype=dtypes.get(precision or ""),
        loader=MergingLoader(precision) if sampling.merged else None,
        prepare=prepare,
    )


def _usual_of(base: Base, pinned: Base, usual: Sampling) -> Sampling:
    """Return the usual sampling of another base: steps and guidance differ where one of both is distilled."""
    is_distilled = is_turbo(base.model, find(base.model))
    if is_distilled == is_turbo(pinned.model, find(pinned.model)):
        return usual
    return replace(usual, **(TURBO if is_distilled else UNDISTILLED))


def _number(key: str, value: str, way: str) -> int | float:
    kind, least, multiple, rule = NUMBERS[key]
    try:
        number = kind(value)
    except ValueError:
        number = least - 1
    if not number >= least or number % multiple:
        raise InputError(f"{key}={value} in --as {way} cannot be used; give {rule}.")
    return number
