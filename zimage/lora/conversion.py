"""One LoRA file into another: convert, merge, resize; verified before the result appears, its error stated."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zimage.errors import InputError
from zimage.folder import make_writable
from zimage.lora.change import Change, Kronecker, Spectrum, difference, exact_factors, norm, spectrum, written_out
from zimage.lora.inspection import inspect_file
from zimage.lora.loaders import fit_one_factor
from zimage.lora.obstacles import NO_CHOICES, Choices
from zimage.lora.portable import MODELSPEC, Factors
from zimage.lora.reading import Lora, read_lora
from zimage.lora.tensors import write_tensors
from zimage.lora.verification import applied_by_comfyui, applied_by_diffusers, depth_of, worst_difference
from zimage.lora.writing import STALE_METADATA, Dialect, Weight, lossless_dtype, stored, tensors_in, tensors_of

logger = logging.getLogger(__name__)

# A file is right when every loader makes its change within this share of it; float32 rounding is 6e-8.
TOLERANCE = 1e-6
# A matrix stored in float32 has this much noise of its own; parts below it are none of the change.
ROUNDING = 3e-7
# A LoKr or written-out change is written exactly up to this rank; beyond it the user says how much to keep.
MOST_EXACT_RANK = 256
OFFERED_RANKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Outcome:
    """What was written and how far it is from what was asked."""

    out: Path
    dialect: Dialect
    num_layers: int
    ranks: tuple[int, ...]  # distinct, ascending
    dtype: str
    error: float  # of the whole change, relative; 0 when exact but for rounding
    worst_error: float  # of the worst layer
    worst_layer: str
    by_diffusers: float | None  # largest relative difference as diffusers applies it; None where it cannot read this
    by_comfyui: float | None


@dataclass(frozen=True)
class Plan:
    """How to write: the dialect, the rank to reduce to (None: exactly), the dtype (None: no loss, else float32).

    Args:
        choices: What a person says where the file leaves it open.
    """

    dialect: Dialect
    rank: int | None
    dtype: torch.dtype | None
    choices: Choices = NO_CHOICES


def convert(path: Path, out: Path, plan: Plan) -> Outcome:
    """Write a Z-Image LoRA of any dialect in another one, and check it in both loaders before it appears.

    Raises:
        InputError: see `read_lora`; or it is no exact product of small rank and no rank was given.
    """
    lora = read_lora(path, plan.choices)
    about = {"zimage.converted_from": inspect_file(path).dialect}
    return _write(path, out, lora, _weights(path, lora, plan), plan=plan, about=about)


def merge(paths: Sequence[Path], strengths: Sequence[float], out: Path, plan: Plan) -> Outcome:
    """Write the sum of several LoRAs, each times its strength: exactly, ranks adding up, or reduced to a rank.

    Raises:
        InputError: see `convert`; fewer than two files, strengths that are no numbers, or models of different widths.
    """
    if len(paths) < 2 or len(paths) != len(strengths):
        raise InputError("Merging needs at least two files, each with a strength: A.safetensors:0.8 B.safetensors:0.6.")
    for path, strength in zip(paths, strengths, strict=True):
        if not math.isfinite(strength):
            raise InputError(f"The strength of {path} is {strength:g}; give a finite number such as 0.8.")
    loras = [read_lora(path, plan.choices) for path in paths]
    exact = replace(plan, rank=None)
    parts = [_pairs(path, lora, exact) for path, lora in zip(paths, loras, strict=True)]
    weights = {name: _sum(name, parts, strengths) for name in dict.fromkeys(name for part in parts for name in part)}
    narrowest_wins = max((lora.dtype for lora in loras), key=lambda dtype: dtype.itemsize)
    about = {f"zimage.merged_{at}": f"{path.name} x {strengths[at]:g}" for at, path in enumerate(paths)}
    together = Lora(weights, {"modelspec.title": " + ".join(path.stem for path in paths)}, narrowest_wins)
    return _write(paths[0], out, together, _pairs(paths[0], together, plan), plan=plan, about=about)


def resize(path: Path, out: Path, plan: Plan, energy: float | None) -> Outcome:
    """Write a LoRA with smaller ranks: to one rank, or per layer to the smallest that keeps `energy` of its square.

    Args:
        path: The file to reduce.
        out: The file to write.
        plan: With `rank`, or without where `energy` is given.
        energy: Share of the squared singular values to keep in each layer, above 0 and at most 1.
    """
    if (plan.rank is None) == (energy is None):
        raise InputError("Say either to which rank (--rank 16) or how much to keep (--energy 0.99).")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"The energy to keep is a share above 0 and at most 1, not {energy:g}; try 0.99.")
    lora = read_lora(path, plan.choices)
    weights = _pairs(path, lora, plan) if energy is None else _keeping(lora, energy)
    about = {"zimage.resized": f"rank {plan.rank}" if energy is None else f"energy {energy:g}"}
    return _write(path, out, lora, weights, plan=plan, about=about)


def _sum(name: str, parts: Sequence[Mapping[str, Factors]], strengths: Sequence[float]) -> Factors:
    found = [(part[name], strength) for part, strength in zip(parts, strengths, strict=True) if name in part]
    shapes = {(len(factors.up), factors.down.shape[1]) for factors, _ in found}
    if len(shapes) > 1:
        raise InputError(
            f"The files change {name} in models of different widths {sorted(shapes)}; merge one model's only."
        )
    return Factors(
        torch.cat([factors.down for factors, _ in found]),
        torch.cat([factors.up * strength for factors, strength in found], dim=1),
    )


def _weights(path: Path, lora: Lora, plan: Plan) -> dict[str, Weight]:
    """Return each layer's change in the form in which it is written: as it is where that can be, else two factors."""
    if plan.rank is None and plan.dialect in {"portable", "diffusers"} and _is_readable_lokr(lora):
        return {name: change for name, change in lora.changes.items() if isinstance(change, Kronecker)}
    return dict(_pairs(path, lora, plan))


def _is_readable_lokr(lora: Lora) -> bool:
    """Whether a LoKr keeps its form under portable names: both loaders read it then (loaders.json)."""
    products = [change for change in lora.changes.values() if isinstance(change, Kronecker) and change.parts]
    sides = [(each.shape, (each.left.shape[0], each.left.shape[1])) for each in products]
    return len(products) == len(lora.changes) and fit_one_factor(sides)


def _pairs(path: Path, lora: Lora, plan: Plan) -> dict[str, Factors]:
    if plan.rank is not None and plan.rank < 1:
        raise InputError(f"A rank is a whole number from 1 on, not {plan.rank}; try 16.")
    return {name: _factors(path, name, change, plan.rank) for name, change in lora.changes.items()}


def _factors(path: Path, name: str, change: Change, rank: int | None) -> Factors:
    exact = exact_factors(change)
    if exact is not None and (rank is None or len(exact.down) <= rank):
        return exact
    if rank is not None:
        return _single(spectrum(change, rank).factors(rank))
    parts = spectrum(change, MOST_EXACT_RANK)
    if parts.rest > ROUNDING * (whole := parts.norm()):
        offers = ", ".join(f"{keep}: {parts.left_out(keep) / whole:.1%}" for keep in OFFERED_RANKS)
        form = "LoKr" if isinstance(change, Kronecker) else "full weights"
        raise InputError(
            f"{path} is {form}: its change of {name} has no exact form of rank {MOST_EXACT_RANK} or less; "
            f"say with --rank how much to keep (rank: error in this layer) {offers}."
        )
    return _single(parts.factors(_fewest(parts, ROUNDING * whole)))


def _fewest(parts: Spectrum, allowed: float) -> int:
    """The smallest rank that leaves out no more than `allowed`."""
    return next((rank for rank in range(1, len(parts.sizes)) if parts.left_out(rank) <= allowed), len(parts.sizes))


def _keeping(lora: Lora, energy: float) -> dict[str, Factors]:
    weights = {}
    for name, change in lora.changes.items():
        parts = spectrum(change, MOST_EXACT_RANK)
        weights[name] = _single(parts.factors(_fewest(parts, math.sqrt(1 - energy) * parts.norm())))
    return weights


def _single(factors: Factors) -> Factors:
    return Factors(factors.down.float(), factors.up.float())


def _write(
    source: Path, out: Path, lora: Lora, weights: Mapping[str, Weight], *, plan: Plan, about: Mapping[str, str]
) -> Outcome:
    dtype = plan.dtype or (
        lora.dtype if plan.rank is not None and lora.dtype.itemsize == 2 else lossless_dtype(weights, lora.dtype)
    )
    rounded = stored(weights, dtype)
    _check_finite(rounded, dtype)
    kept = {name: value for name, value in lora.metadata.items() if name not in STALE_METADATA}
    metadata = {**MODELSPEC, **kept, **about}
    errors = {name: _error(lora.changes[name], rounded[name]) for name in rounded}
    with _appearing_verified(source, out) as aside:
        write_tensors(aside, tensors_in(plan.dialect, rounded), metadata)
        by_diffusers, by_comfyui = _verified(aside, rounded, plan.dialect)
    worst = max(errors, key=lambda name: _share(*errors[name]))
    logger.info("wrote %s", out)
    return Outcome(
        out=out,
        dialect=plan.dialect,
        num_layers=len(rounded),
        ranks=tuple(sorted({len(weight.down) for weight in rounded.values() if isinstance(weight, Factors)})),
        dtype=str(dtype).removeprefix("torch."),
        error=_share(*(math.hypot(*(pair[at] for pair in errors.values())) for at in (0, 1))),
        worst_error=_share(*errors[worst]),
        worst_layer=worst,
        by_diffusers=by_diffusers,
        by_comfyui=by_comfyui,
    )


def _share(off: float, size: float) -> float:
    return off / size if size else 0.0


def _check_finite(weights: Mapping[str, Weight], dtype: torch.dtype) -> None:
    for name, weight in weights.items():
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(weight)):
            raise InputError(f"The change of {name} is too large for {dtype}; write it with --dtype bf16 or fp32.")


def _error(change: Change, written: Weight) -> tuple[float, float]:
    """The Frobenius norms of what was lost and of the whole."""
    if isinstance(change, Factors | Kronecker) and type(change) is type(written):
        return difference(change, written), norm(change)
    whole = written_out(change)
    return float((whole - written_out(written)).norm()), float(whole.norm())


def _verified(path: Path, weights: Mapping[str, Weight], dialect: Dialect) -> tuple[float | None, float | None]:
    by_comfyui = worst_difference(weights, applied_by_comfyui(path, depth_of(weights)))
    reads = dialect in {"portable", "diffusers"}
    by_diffusers = worst_difference(weights, applied_by_diffusers(path, weights)) if reads else None
    for loader, off in (("ComfyUI", by_comfyui), ("diffusers", by_diffusers or 0.0)):
        assert off <= TOLERANCE, f"{loader} would apply {path} with a difference of {off}"
    return by_diffusers, by_comfyui


@contextmanager
def _appearing_verified(source: Path, out: Path) -> Iterator[Path]:
    """Yield a file beside `out`, which becomes `out` when the body has checked it and vanishes when it has not."""
    if out.suffix != ".safetensors":
        raise InputError(f"{out} must end in .safetensors; that is the only kind of file written.")
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is the file that is read; name another one to write.")
    make_writable(out.parent)
    aside = out.with_name(f".{out.stem}.part.safetensors")
    try:
        yield aside
        aside.rename(out)
    finally:
        aside.unlink(missing_ok=True)
