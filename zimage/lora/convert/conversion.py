"""Convert, merge and resize LoRA files; the result is verified before it is written, with its error."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from zimage.core.errors import InputError
from zimage.core.folder import make_writable
from zimage.core.tensor_file import TensorWriter
from zimage.lora.convert.change import (
    DORA_NEEDS_A_BASE,
    Change,
    Dense,
    Spectrum,
    difference,
    exact_factors,
    is_finite,
    norm,
    shape_of,
    spectrum,
    wide,
    written_out,
)
from zimage.lora.convert.reading import LoraFile, read_lora
from zimage.lora.convert.verification import applied_by_comfyui, applied_by_diffusers, depth_of, worst_difference
from zimage.lora.convert.writing import (
    SPLIT,
    STALE_METADATA,
    Dialect,
    as_stored,
    groups_in,
    is_exact,
    joined_products,
    keys_in,
    tensors_in,
    tensors_of,
)
from zimage.lora.files.header import read_header
from zimage.lora.files.layers import layers_of
from zimage.lora.files.loaders import Loader, Reading, peft_makes, product_of, readings
from zimage.lora.files.modules import QKV_PARTS
from zimage.lora.files.obstacles import NO_CHOICES, Choices
from zimage.lora.files.portable import MODELSPEC, Decomposed, Factors, Kronecker, Weight
from zimage.lora.files.strength import Strengths

logger = logging.getLogger(__name__)

# A file is right when every loader makes its change within this share of it; float32 rounding is 6e-8.
TOLERANCE = 1e-6
# A matrix stored in float32 has this much noise of its own; parts below it are none of the change.
ROUNDING = 3e-7
# A LoKr or written-out change is written exactly up to this rank; beyond it the user says how much to keep.
MOST_EXACT_RANK = 256
OFFERED_RANKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Converted:
    """The written file, and its error against the source."""

    out: Path
    dialect: Dialect
    num_layers: int
    ranks: tuple[int, ...]  # distinct, ascending
    dtype: str
    error: float  # of the whole change, relative; 0 when exact but for rounding
    worst_error: float  # of the worst layer
    worst_layer: str
    reads: Mapping[Loader, Reading]  # what each loader did with files that are written like this one
    by_diffusers: float | None  # largest relative difference as diffusers applies it; None where it was not loaded
    by_comfyui: float | None
    from_lokr: bool = False  # a LoKr that was written as a LoRA
    is_dora: bool = False


@dataclass(frozen=True)
class Plan:
    """How to write: the dialect, the rank to reduce to (None: exactly), the dtype (None: no loss, else float32).

    Args:
        choices: What a person says where the file leaves it open.
        verify: Whether the file is loaded in both loaders before it appears, which needs its whole size in memory.
    """

    dialect: Dialect
    rank: int | None
    dtype: torch.dtype | None
    choices: Choices = NO_CHOICES
    verify: bool = False


WeightOf = Callable[[str, Change], Weight]  # of a layer's name and change, the form in which it is written


def convert(path: Path, out: Path, plan: Plan) -> Converted:
    """Write a Z-Image LoRA of any dialect in another one; one layer is in memory at a time.

    Raises:
        InputError: see `read_lora`; or it is no exact product of small rank and no rank was given.
    """
    _check_rank(plan.rank)
    lora = read_lora(path, plan.choices)
    about = {"zimage.converted_from": lora.dialect}
    if lora.is_dora:
        _check_dora(path, plan)
        return _write(path, out, lora, _as_it_is, plan=plan, about=about)
    if plan.rank is None and _keeps_its_form(lora, plan.dialect):
        return _write(path, out, lora, _as_it_is, plan=plan, about=about)
    return _write(path, out, lora, _of_file(path, plan.rank), plan=plan, about=about)


def merge(paths: Sequence[Path], strengths: Sequence[float], out: Path, plan: Plan) -> Converted:
    """Write the sum of several LoRAs, each times its strength: exactly, ranks adding up, or reduced to a rank.

    Raises:
        InputError: see `convert`; fewer than two files, strengths that are no numbers, or models of different widths.
    """
    if len(paths) < 2 or len(paths) != len(strengths):
        raise InputError("Merging needs at least two files, each with a strength: A.safetensors:0.8 B.safetensors:0.6.")
    for path, strength in zip(paths, strengths, strict=True):
        if not math.isfinite(strength):
            raise InputError(f"The strength of {path} is {strength:g}; give a finite number such as 0.8.")
    _check_rank(plan.rank)
    _refuse_same(paths, out)
    loras = [read_lora(path, plan.choices) for path in paths]
    for path, lora in zip(paths, loras, strict=True):
        _refuse_dora(path, lora)
    names = dict.fromkeys(name for lora in loras for name in lora.changes)

    def change_of(name: str) -> Change:
        given = zip(loras, strengths, strict=True)
        return _sum(name, [(lora.changes[name], strength) for lora, strength in given if name in lora.changes])

    narrowest_wins = max((lora.dtype for lora in loras), key=lambda dtype: dtype.itemsize)
    about = {f"zimage.merged_{at}": f"{path.name} x {strengths[at]:g}" for at, path in enumerate(paths)}
    changes = Computed(tuple(names), change_of)

    def weight_of(name: str, change: Change) -> Factors:
        return _factors(name, change, plan.rank, "The sum of these files is no LoRA")

    together = LoraFile(changes, {"modelspec.title": " + ".join(path.stem for path in paths)}, narrowest_wins)
    return _write(paths[0], out, together, weight_of, plan=plan, about=about)


def resize(path: Path, out: Path, plan: Plan, energy: float | None) -> Converted:
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
    _check_rank(plan.rank)
    lora = read_lora(path, plan.choices)
    _refuse_dora(path, lora)
    about = {"zimage.resized": f"rank {plan.rank}" if energy is None else f"energy {energy:g}"}
    weight_of = _of_file(path, plan.rank) if energy is None else partial(_keeping, energy=energy)
    return _write(path, out, lora, weight_of, plan=plan, about=about)


@dataclass(frozen=True)
class Computed(Mapping[str, Change]):
    """Changes that are computed when they are asked for."""

    names: tuple[str, ...]
    change_of: Callable[[str], Change]

    def __getitem__(self, name: str) -> Change:
        """Return the change of a layer."""
        return self.change_of(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _sum(name: str, found: Sequence[tuple[Change, float]]) -> Change:
    """Return the sum of changes, each times its strength: as factors where all have some of a rank worth writing."""
    shapes = {shape_of(change) for change, _ in found}
    if len(shapes) > 1:
        raise InputError(
            f"The files change {name} in models of different widths {sorted(shapes)}; merge one model's only."
        )
    factors = [(_has_short_form(change), strength) for change, strength in found]
    exact = [(each, strength) for each, strength in factors if each is not None]
    if len(exact) < len(factors):
        return Dense(sum((written_out(change) * strength for change, strength in found), torch.zeros(())))
    return Factors(
        torch.cat([each.down for each, _ in exact]),
        torch.cat([wide(each.up) * strength for each, strength in exact], dim=1),
    )


def _check_rank(rank: int | None) -> None:
    if rank is not None and rank < 1:
        raise InputError(f"A rank is a whole number from 1 on, not {rank}; try 16.")


def _refuse_dora(path: Path, lora: LoraFile) -> None:
    if lora.is_dora:
        raise InputError(f"{path}: {DORA_NEEDS_A_BASE}")


def _check_dora(path: Path, plan: Plan) -> None:
    """Refuse what cannot be done with a DoRA without the weights of its base."""
    if plan.rank is not None:
        raise InputError(f"{path} is DoRA, the lengths of whose rows belong to its rank; convert it without `--rank`.")
    if plan.dialect == "lycoris":
        raise InputError(
            f"{path} is DoRA, and LyCORIS and ComfyUI read the lengths of its rows in different ways under the same "
            "name; convert it to portable, diffusers, comfyui or kohya."
        )


def _as_it_is(_: str, change: Change) -> Weight:
    assert isinstance(change, Kronecker | Decomposed)
    return change


def _keeps_its_form(lora: LoraFile, dialect: Dialect) -> bool:
    """Whether a LoKr can be written as one: what reads the dialect's names reads it then (loaders.json)."""
    blocks: dict[str, dict[str, Kronecker]] = {}
    for name, change in lora.changes.items():
        if not isinstance(change, Kronecker) or change.parts is None:
            return False
        part = next((part for part in QKV_PARTS if name.endswith(part)), "")
        blocks.setdefault(name.removesuffix(part), {})[part] = change
    if dialect in {"portable", "diffusers"}:
        products = [change.parts for parts in blocks.values() for change in parts.values() if change.parts]
        return peft_makes([product_of({name: part.shape for name, part in each.items()}) for each in products])
    return dialect in SPLIT or all("" in parts or joined_products(parts) is not None for parts in blocks.values())


def _factors(name: str, change: Change, rank: int | None, source: str) -> Factors:
    """Return a change as two factors: exactly, or its largest parts where a rank is given.

    Raises:
        InputError: there is no exact form and no rank; it begins with `source`, which says what the change is of.
    """
    exact = exact_factors(change)
    if exact is not None and (rank is None or len(exact.down) <= rank):
        return exact
    if rank is not None:
        return _single(spectrum(change, rank).factors(rank))
    parts = spectrum(change, MOST_EXACT_RANK)
    if parts.rest > ROUNDING * (whole := parts.norm()):
        offers = ", ".join(f"{keep}: {parts.left_out(keep) / whole:.1%}" for keep in OFFERED_RANKS)
        raise InputError(
            f"{source}: its change of {name} has no exact form of rank {MOST_EXACT_RANK} or less; "
            f"say with --rank how much to keep (rank: error in this layer) {offers}."
        )
    return _single(parts.factors(_fewest(parts, ROUNDING * whole)))


def _of_file(path: Path, rank: int | None) -> WeightOf:
    """Return how the changes of a file are written as pairs of factors."""

    def weight_of(name: str, change: Change) -> Factors:
        form = "is LoKr" if isinstance(change, Kronecker) else "is full weights"
        return _factors(name, change, rank, f"{path} {form}")

    return weight_of


def _has_short_form(change: Change) -> Factors | None:
    """Return a change as two factors that are exactly it, of a rank worth writing; None where there are none."""
    if (exact := exact_factors(change)) is not None:
        return exact
    parts = spectrum(change, MOST_EXACT_RANK)
    allowed = ROUNDING * parts.norm()
    return None if parts.rest > allowed else _single(parts.factors(_fewest(parts, allowed)))


def _fewest(parts: Spectrum, allowed: float) -> int:
    """The smallest rank that leaves out no more than `allowed`."""
    return next((rank for rank in range(1, len(parts.sizes)) if parts.left_out(rank) <= allowed), len(parts.sizes))


def _keeping(_: str, change: Change, energy: float) -> Factors:
    """Return the smallest product that keeps a share of the squared singular values of a change."""
    most = MOST_EXACT_RANK
    while True:
        parts = spectrum(change, most)
        allowed = math.sqrt(1 - energy) * parts.norm()
        if parts.left_out(len(parts.sizes)) <= max(allowed, ROUNDING * parts.norm()) or len(parts.sizes) < most:
            return _single(parts.factors(_fewest(parts, allowed)))
        most *= 2  # it ends: a matrix has no more parts than rows


def _single(factors: Factors) -> Factors:
    return Factors(factors.down.float(), factors.up.float())


class _InexactError(Exception):
    """A dtype does not hold a tensor to the last bit."""


def _write(
    source: Path, out: Path, lora: LoraFile, weight_of: WeightOf, *, plan: Plan, about: Mapping[str, str]
) -> Converted:
    kept = {name: value for name, value in lora.metadata.items() if name not in STALE_METADATA}
    metadata = {**MODELSPEC, **kept, **about}
    narrow = lora.dtype if lora.dtype.itemsize == 2 else torch.float32
    dtype, must_be_exact = plan.dtype or narrow, plan.dtype is None and plan.rank is None
    with _appearing_verified(source, out) as aside:
        write = partial(_written, aside, lora, weight_of, dialect=plan.dialect, metadata=metadata)
        try:
            done = write(dtype=dtype, must_be_exact=must_be_exact)
        except _InexactError:
            dtype = torch.float32
            done = write(dtype=dtype, must_be_exact=False)
        reads = _readings_of(aside, plan.dialect)
        by_diffusers, by_comfyui = _verified(aside, plan.dialect) if plan.verify else (None, None)
    off = {name: each for name, each in done.off.items() if each > 0}
    sizes = {name: norm(lora.changes[name]) for name in lora.changes} if off else {}
    shares = {name: _share(each, sizes[name]) for name, each in off.items()}
    worst = max(shares, key=lambda name: shares[name]) if shares else next(iter(lora.changes))
    logger.info("wrote %s", out)
    return Converted(
        out=out,
        dialect=plan.dialect,
        num_layers=len(lora.changes),
        ranks=tuple(sorted(done.ranks)),
        dtype=str(dtype).removeprefix("torch."),
        error=_share(math.hypot(*off.values()), math.hypot(*sizes.values())) if off else 0.0,
        worst_error=shares.get(worst, 0.0),
        worst_layer=worst,
        reads=reads,
        by_diffusers=by_diffusers,
        by_comfyui=by_comfyui,
        from_lokr=done.from_lokr,
        is_dora=lora.is_dora,
    )


@dataclass(frozen=True)
class _Done:
    off: Mapping[str, float]  # Frobenius norm of what was lost, by layer
    ranks: Set[int]
    from_lokr: bool


def _written(
    path: Path,
    lora: LoraFile,
    weight_of: WeightOf,
    *,
    dialect: Dialect,
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    must_be_exact: bool,
) -> _Done:
    """Write a file layer by layer, and return how far each layer is from what was asked.

    Raises:
        _InexactError: a tensor is not held to the last bit, and it must be.
        InputError: a value is too large for the dtype.
    """
    off: dict[str, float] = {}
    ranks: set[int] = set()
    from_lokr = False
    writer = TensorWriter(path, keys_in(dialect, lora.changes), metadata)
    try:
        for group in groups_in(dialect, lora.changes):
            rounded: dict[str, Weight] = {}
            for name in group:
                change = lora.changes[name]
                weight = weight_of(name, change)
                rounded[name] = as_stored(weight, dtype)
                _check_finite(name, weight, rounded[name], dtype)
                if must_be_exact and not is_exact(weight, rounded[name]):
                    raise _InexactError
                is_same = weight is change and must_be_exact
                off[name] = 0.0 if is_same else _off(change, rounded[name])
                if not isinstance(weight, Kronecker):
                    ranks.add(len(weight.factors.down if isinstance(weight, Decomposed) else weight.down))
                    from_lokr = from_lokr or isinstance(change, Kronecker)
            for key, tensor in sorted(tensors_in(dialect, rounded).items()):
                writer.add(key, tensor)
        writer.finish()
    finally:
        writer.close()
    return _Done(off, ranks, from_lokr)


def _readings_of(path: Path, dialect: Dialect) -> dict[Loader, Reading]:
    """Return what each loader makes of a file that was written, by the table of what they did with such files."""
    layers = layers_of(read_header(path))
    reads = {loader: found.reading for loader, found in readings(layers, Strengths()).items()}
    must: tuple[Loader, ...] = ("diffusers", "comfyui") if dialect in {"portable", "diffusers"} else ("comfyui",)
    for loader in must:
        assert reads[loader] in {"all", "not measured"}, f"{loader} would apply {path} as {reads[loader]}"
    return reads


def _share(off: float, size: float) -> float:
    return off / size if size else 0.0


def _check_finite(name: str, weight: Weight, rounded: Weight, dtype: torch.dtype) -> None:
    pairs = zip(tensors_of(weight), tensors_of(rounded), strict=True)
    if not all(kept is given or is_finite(kept) for given, kept in pairs):  # what was read was looked at then
        raise InputError(f"The change of {name} is too large for {dtype}; write it with --dtype bf16 or fp32.")


def _off(change: Change, written: Weight) -> float:
    """The Frobenius norm of what was lost."""
    if isinstance(change, Factors | Kronecker | Decomposed):
        return difference(change, written)
    return float((written_out(change) - written_out(written)).norm())


def _verified(path: Path, dialect: Dialect) -> tuple[float | None, float | None]:
    """Load a file in both loaders, and return the largest difference of each from what the file says."""
    weights: dict[str, Weight] = {
        name: change
        for name, change in read_lora(path).changes.items()
        if isinstance(change, Factors | Kronecker | Decomposed)
    }
    by_comfyui = worst_difference(weights, applied_by_comfyui(path, depth_of(weights)))
    reads = dialect in {"portable", "diffusers"}
    by_diffusers = worst_difference(weights, applied_by_diffusers(path, weights)) if reads else None
    for loader, off in (("ComfyUI", by_comfyui), ("diffusers", by_diffusers or 0.0)):
        assert off <= TOLERANCE, f"{loader} would apply {path} with a difference of {off}"
    return by_diffusers, by_comfyui


def _refuse_same(sources: Sequence[Path], out: Path) -> None:
    if out.exists() and any(map(out.samefile, sources)):
        raise InputError(f"{out} is the file that is read; name another one to write.")


@contextmanager
def _appearing_verified(source: Path, out: Path) -> Iterator[Path]:
    """Yield a file beside `out`, which becomes `out` when the body has checked it and vanishes when it has not."""
    if out.suffix != ".safetensors":
        raise InputError(f"{out} must end in .safetensors; that is the only kind of file written.")
    _refuse_same([source], out)
    make_writable(out.parent)
    aside = out.with_name(f".{out.stem}.part.safetensors")
    try:
        yield aside
        aside.rename(out)
    finally:
        aside.unlink(missing_ok=True)
