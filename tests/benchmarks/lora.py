"""The LoRA tools' figures: which loader reads which dialect, what inspecting says of each family, and the fuzzing.

python -m tests.benchmarks.lora matrix      loaders by dialect, before and after `zimage convert --to portable`
python -m tests.benchmarks.lora families    inspection of one file of each family at its true shapes
python -m tests.benchmarks.lora fuzz 20000  damaged and senseless files; seconds of the slowest inspection
python -m tests.benchmarks.lora released    inspecting and converting a LoRA of the released model's size
python -m tests.benchmarks.lora header      inspecting headers of ever more tensors
python -m tests.benchmarks.lora convert     converting beside a plain copy; with the path of a checkout of musubi-tuner
                                            (tried at 30c658c4f4b0), beside its converters too
"""

import argparse
import gc
import importlib
import logging
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.lora.dialect_files import DIALECTS, write_dialect
from tests.lora.family_files import FILES, write_header
from tests.lora.fuzz import read_many
from tests.lora.matrix import keys_used_by_comfyui, layers_applied_by_diffusers, weights_for
from zimage.lora.convert.conversion import Plan, convert
from zimage.lora.files.inspection import inspect_file
from zimage.lora.files.modules import released_shapes

RANK = 16
ROUNDS = 9


def matrix(folder: Path) -> None:
    """Print how many layers (diffusers) and keys (ComfyUI) of each dialect are applied, before and after conversion."""
    warnings.simplefilter("ignore")
    weights = weights_for("")
    print("| dialect | diffusers, layers | ComfyUI, keys | after: diffusers | after: ComfyUI | largest difference |")
    print("|---|---|---|---|---|---|")
    for dialect in DIALECTS:
        source, out = folder / "in.safetensors", folder / "out.safetensors"
        write_dialect(source, dialect, weights, 0.5)
        outcome = convert(source, out, Plan("portable", None, None))
        cells = []
        for path in (source, out):
            used, keys = keys_used_by_comfyui(path)
            cells.append(f"{layers_applied_by_diffusers(path, weights, 0.5)} of {len(weights)} | {used} of {keys}")
        print(f"| {dialect} | {' | '.join(cells)} | {outcome.worst_error:.0e} |")


def families(folder: Path) -> None:
    """Print what inspecting says of every family's file."""
    for name, (_, shapes) in FILES.items():
        path = folder / "some.safetensors"
        write_header(path, shapes())
        found = inspect_file(path)
        size_mb = found.num_bytes / 1e6
        facts = (
            f"{found.family} | {found.dialect} | {found.kind} rank {found.rank} | {size_mb:.0f} MB | {found.verdict}"
        )
        print(f"{name}: {facts}\n    {found.reason}")


def fuzz(folder: Path, count: int) -> None:
    """Print how files made by chance were answered."""
    start = time.perf_counter()
    counts, slowest_s = read_many(folder, range(count))
    print(f"{count} files in {time.perf_counter() - start:.0f} s: {dict(counts)}; slowest {1000 * slowest_s:.1f} ms")


def released(folder: Path) -> None:
    """Print times and memory for a rank-16 LoRA on every block of the released model, in musubi-tuner's dialect."""
    tensors = {}
    for name, (rows, width) in released_shapes().items():
        stem = "lora_unet_" + name.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = torch.randn(RANK, width).bfloat16()
        tensors[f"{stem}.lora_up.weight"] = torch.randn(rows, RANK).bfloat16()
        tensors[f"{stem}.alpha"] = torch.tensor(RANK / 2)
    source = folder / "in.safetensors"
    save_file(tensors, source)
    del tensors
    start = time.perf_counter()
    found = inspect_file(source)
    print(f"inspect, {found.num_bytes / 1e6:.0f} MB: {time.perf_counter() - start:.3f} s, {found.verdict}")
    start = time.perf_counter()
    outcome = convert(source, folder / "out.safetensors", Plan("portable", None, None))
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"convert and verify in both loaders: {time.perf_counter() - start:.1f} s, peak {peak_gb:.1f} GB, {outcome}")


def headers(folder: Path) -> None:
    """Print how long files are inspected that have far more tensors than any LoRA."""
    path = folder / "some.safetensors"
    for count in (1_000, 10_000, 100_000):
        write_header(
            path, {f"lora_unet_layers_{number}_attention_to_q.lora_down.weight": (16, 3840) for number in range(count)}
        )
        length_mb = _header_bytes(path) / 1e6
        start = time.perf_counter()
        found = inspect_file(path)
        print(f"{count} tensors, header of {length_mb:.1f} MB: {time.perf_counter() - start:.3f} s, {found.verdict}")


def conversions(folder: Path, checkout: Path | None) -> None:
    """Print each converter's time as a multiple of a plain copy's, side by side, and its memory of the file's size.

    The source has musubi-tuner's names and alpha = rank, so writing portable names is a pure renaming.
    """
    torch.set_num_threads(1)
    print("| rank | MB | what | times a plain copy (median, least to most) | peak, times the file |")
    print("|---|---|---|---|---|")
    for rank in (16, 64):
        source, out = folder / f"in{rank}.safetensors", folder / "out.safetensors"
        _write_source(source, rank)
        runs = {"plain copy": partial(_copy, source, out), **_converters(source, out, checkout)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        peaks = dict.fromkeys(runs, 0.0)
        for number in range(ROUNDS + 1):
            for name, run in runs.items():
                taken, peak = _measured(run)
                if number:  # the first round imports
                    times[name].append(taken)
                    peaks[name] = max(peaks[name], peak)
        size = source.stat().st_size
        for name in runs:
            ratios = [taken / copied for taken, copied in zip(times[name], times["plain copy"], strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {rank} | {size / 1e6:.0f} | {name} | {spread} | {peaks[name] / size:.2f} |")
        print(f"plain copy at rank {rank}: {statistics.median(times['plain copy']):.3f} s", file=sys.stderr)


def _write_source(path: Path, rank: int) -> None:
    tensors = {}
    for name, (rows, width) in released_shapes().items():
        if name.startswith("layers.") and "adaLN" not in name:
            stem = "lora_unet_" + name.replace(".", "_")
            tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, width).bfloat16()
            tensors[f"{stem}.lora_up.weight"] = torch.randn(rows, rank).bfloat16()
            tensors[f"{stem}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, path, metadata={"ss_network_dim": str(rank)})


def _copy(source: Path, out: Path) -> None:
    out.write_bytes(source.read_bytes())


def _converters(source: Path, out: Path, checkout: Path | None) -> dict[str, Callable[[], object]]:
    runs: dict[str, Callable[[], object]] = {
        "zimage convert (renaming)": lambda: convert(source, out, Plan("portable", None, None)),
        "zimage convert --to comfyui (q, k, v fused)": lambda: convert(source, out, Plan("comfyui", None, None)),
    }
    if checkout is not None:
        sys.path.insert(0, str(checkout / "src"))
        renaming = importlib.import_module("musubi_tuner.convert_lora")
        fusing = importlib.import_module("musubi_tuner.networks.convert_z_image_lora_to_comfy")
        logging.getLogger().setLevel(logging.ERROR)
        options = argparse.Namespace(src_path=str(source), dst_path=str(out), reverse=False, lokr_rank=None)
        runs["musubi-tuner convert_lora (renaming)"] = lambda: renaming.convert(str(source), str(out), "other", None)
        runs["musubi-tuner convert_z_image_lora_to_comfy (fused)"] = lambda: fusing.main(options)
    return runs


def _measured(run: Callable[[], object]) -> tuple[float, float]:
    """Return a run's seconds, and by how many bytes the process grew at most (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _memory("VmRSS"), time.perf_counter()
    run()
    return time.perf_counter() - start, _memory("VmHWM") - before


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        match sys.argv[1:]:
            case ["matrix"]:
                matrix(Path(temporary))
            case ["families"]:
                families(Path(temporary))
            case ["fuzz", count]:
                fuzz(Path(temporary), int(count))
            case ["released"]:
                released(Path(temporary))
            case ["header"]:
                headers(Path(temporary))
            case ["convert", *checkout]:
                conversions(Path(temporary), Path(checkout[0]) if checkout else None)
            case _:
                print(__doc__)
