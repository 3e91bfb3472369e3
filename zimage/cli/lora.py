"""The commands `inspect`, `convert`, `merge` and `resize`; importing this module imports no torch."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zimage.core.errors import InputError
from zimage.lora.files.header import LoraFileError

if TYPE_CHECKING:
    from zimage.lora.convert.conversion import Converted, Plan
    from zimage.lora.files.inspection import Inspection

EXIT_CODES = {"usable": 0, "convertible": 1, "unusable": 2}
UNREADABLE = 3
DIALECTS = ("portable", "comfyui", "kohya", "diffusers", "lycoris")
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the LoRA commands; each sets `run`, a function of the parsed arguments that returns the exit code."""
    inspect = _add(subparsers, "inspect", "Tell what a LoRA file is and whether it can work on Z-Image.", _inspect)
    inspect.add_argument("file", type=Path, help="a .safetensors file; nothing in it is run")
    inspect.add_argument("--json", action="store_true", help="as JSON")

    convert = _add(subparsers, "convert", "Write a Z-Image LoRA so that the loaders named read all of it.", _convert)
    convert.add_argument("file", type=Path, help="a Z-Image LoRA of any tool")
    _add_plan(convert)

    merge = _add(subparsers, "merge", "Write the sum of several Z-Image LoRAs as one file.", _merge)
    merge.add_argument("files", nargs="+", metavar="FILE[:STRENGTH]", help="for example ada.safetensors:0.8; else 1")
    _add_plan(merge)

    resize = _add(subparsers, "resize", "Write a Z-Image LoRA with a smaller rank.", _resize)
    resize.add_argument("file", type=Path, help="a Z-Image LoRA of any tool")
    resize.add_argument("--energy", type=float, help="instead of a rank: the share of each layer to keep, such as 0.99")
    _add_plan(resize)


def _add(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    return parser


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--force", action="store_true", help="replace that file if it is there")
    parser.add_argument("--to", choices=DIALECTS, default="portable", help="the dialect to write; else portable")
    parser.add_argument("--rank", type=int, help="reduce to this rank by SVD; the error is printed")
    parser.add_argument("--adapter", metavar="NAME", help="which adapter to take of a file that holds several")
    parser.add_argument(
        "--alpha", metavar="tensors|metadata|NUMBER", help="which alpha to use if a file has two or none"
    )
    parser.add_argument("--verify", action="store_true", help="load the result in both loaders before it appears")
    parser.add_argument("--leave-out", action="store_true", help="convert without what a portable LoRA cannot hold")
    parser.add_argument("--dtype", choices=list(DTYPES), help="else the source's where that loses nothing, or fp32")


def _inspect(parsed: argparse.Namespace) -> int:
    from zimage.lora.files.inspection import inspect_file

    try:
        found = inspect_file(parsed.file)
    except LoraFileError as error:
        print(f"zimage: {error}", file=sys.stderr)  # noqa: T201
        return UNREADABLE
    print(found.model_dump_json(indent=2) if parsed.json else as_text(found))  # noqa: T201
    return EXIT_CODES[found.verdict]


def as_text(found: "Inspection") -> str:
    """Return an inspection as a person reads it: the verdict first, then the facts, one a line."""
    targets = "; ".join(f"{target.block} {target.role} x {target.layers}" for target in found.targets[:12])
    more = f"; {len(found.targets) - 12} more" if len(found.targets) > 12 else ""
    facts = {
        "family": found.family,
        "kind": found.kind,
        "dialect": f"{found.dialect} ({found.written_by})",
        "rank": found.rank if found.rank is not None else "-",
        "alpha": _alpha(found),
        "targets": targets + more,
        "weights": f"{found.num_tensors} tensors of {', '.join(found.dtype)}, {found.num_bytes / 1e6:.1f} MB"
        + ("" if found.finite is not None else "; not looked into"),
        "diffusers": _reading(found.diffusers),
        "ComfyUI": _reading(found.comfyui),
        **{f"  {name}": value for name, value in found.metadata.items()},
    }
    lines = [f"{found.file}: {found.verdict}", found.reason, found.remedy, ""]
    return "\n".join([*lines, *(f"{name:<11} {value}" for name, value in facts.items())])


_READINGS = {
    "error": "refuses it",
    "other strength": "applies it with another strength",
    "wrong": "applies another change",
}


def _reading(reading: str) -> str:
    """Return what a loader does, in a few words."""
    return _READINGS.get(reading, reading if reading == "not measured" else f"applies {reading}")


def _alpha(found: "Inspection") -> str:
    """Return where the strength is, in words."""
    stored = str(found.alpha) if found.alpha is not None else "none among the tensors"
    if found.strength is not None:
        return f"{stored}; its configuration has a strength of {found.strength}"
    return stored if found.alpha is not None else f"{stored} (strength 1)"


def _convert(parsed: argparse.Namespace) -> int:
    from zimage.lora.convert.conversion import convert

    return _print_outcome(convert(parsed.file, parsed.out, _plan(parsed)))


def _merge(parsed: argparse.Namespace) -> int:
    from zimage.lora.convert.conversion import merge
    from zimage.lora.files.given import file_and_strength

    pairs = [file_and_strength(file) for file in parsed.files]
    strengths = [1.0 if strength is None else strength for _, strength in pairs]
    return _print_outcome(merge([Path(file) for file, _ in pairs], strengths, parsed.out, _plan(parsed)))


def _resize(parsed: argparse.Namespace) -> int:
    from zimage.lora.convert.conversion import resize

    return _print_outcome(resize(parsed.file, parsed.out, _plan(parsed), parsed.energy))


def _plan(parsed: argparse.Namespace) -> "Plan":
    """Return how to write, once it is clear that nothing is replaced by mistake."""
    from zimage.core.folder import refuse_existing

    refuse_existing(parsed.out, force=parsed.force)
    import torch

    from zimage.lora.convert.conversion import Plan
    from zimage.lora.files.obstacles import Choices

    dtype = getattr(torch, DTYPES[parsed.dtype]) if parsed.dtype else None
    choices = Choices(parsed.adapter, _alpha_choice(parsed.alpha), parsed.leave_out)
    return Plan(parsed.to, parsed.rank, dtype, choices, parsed.verify)


def _alpha_choice(text: str | None) -> "Literal['tensors', 'metadata'] | float | None":
    if text is None or text in {"tensors", "metadata"}:
        return text  # type: ignore[return-value]
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise InputError(f"--alpha is `tensors`, `metadata` or a number above zero, not {text!r}.")
    return number


def _print_outcome(outcome: "Converted") -> int:
    from zimage.lora.files.loaders import NAMES

    form = f"rank {', '.join(map(str, outcome.ranks))}" if outcome.ranks else "LoKr"
    form = f"DoRA, {form}" if outcome.is_dora else form
    size_mb = outcome.out.stat().st_size / 1e6
    print(  # noqa: T201
        f"{outcome.out}: {outcome.dialect}, {outcome.num_layers} layers, {form}, {outcome.dtype}, {size_mb:.1f} MB"
    )
    if outcome.from_lokr:
        print("the source is a LoKr; this is a LoRA")  # noqa: T201
    print(f"change against the source: {_error(outcome)}")  # noqa: T201
    for loader, off in (("diffusers", outcome.by_diffusers), ("comfyui", outcome.by_comfyui)):
        print(f"{NAMES[loader]} {_tried(outcome.reads[loader], off)}")  # type: ignore[index]  # noqa: T201
    return 0


def _tried(reading: str, off: float | None) -> str:
    """Return what a loader makes of a file that was written."""
    if off is not None:
        return f"applies every layer (loaded: largest difference {off:.1e})"
    if reading == "all":
        return "applies every layer of files written like this (measured; --verify loads this one)"
    return "does not read these names" if reading in {"none", "some", "error"} else "was not tried with such a file"


def _error(outcome: "Converted") -> str:
    from zimage.lora.convert.conversion import TOLERANCE

    if outcome.worst_error <= TOLERANCE:
        return f"none (at most {outcome.worst_error:.1e} of a layer, rounding)"
    return f"{outcome.error:.2%} of it in all, {outcome.worst_error:.2%} in the worst layer, {outcome.worst_layer}"
