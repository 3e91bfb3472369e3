"""Counts what inductor makes of a block of the released model for a GPU of compute capability 9.0, and compiles it.

python -m tests.fake_gpu.compiled                     all forms at 1024 px: two minutes
python -m tests.fake_gpu.compiled int8 --px 512       one way to keep weights
python -m tests.fake_gpu.compiled --into FOLDER       inductor's code as well, to be read

Needs Triton, which a torch without CUDA does not bring: `pip install --no-deps triton==3.7.1`. Nothing is run:
launches are counted in inductor's code, and bytes as it counts them, of the kernels that it fuses, forward and back.
What products and attention read and write is not in it.
"""

import argparse
import contextlib
import importlib.util
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.fake_gpu.device import GPU, fake_gpu  # isort: skip - before torch

import torch
import torch._functorch.config
import torch._inductor.config
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers, triton_heuristics

from tests.fake_gpu.memory import CAPTION, WIDTH, released
from zimage.model.denoiser import Denoiser
from zimage.model.fast.weight_formats import WeightFormat
from zimage.model.sequence import SequenceBucket, sequence_length
from zimage.training.adapters import Adapters, module_names
from zimage.training.block_runner import Checkpointing, make_block_runner

KINDS: list[WeightFormat] = ["none", "fp8", "int8", "nf4"]
FORMS: list[Checkpointing] = ["none", "selective", "full"]
RANK = 16
KERNEL = re.compile(r"^(triton_\w+) = async_compile\.triton\('\w+', '''(.*?)'''", re.DOTALL | re.MULTILINE)
RUN = re.compile(r"^\s*(?:\w+ = )?(triton_\w+\.run|extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", re.MULTILINE)

# What inductor asks an H200 for.
H200 = SimpleNamespace(
    type="cuda",
    index=0,
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=141 * 10**9,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    gcnArchName="",
    L2_cache_size=50 * 2**20,
)


class Captured(Exception):  # noqa: N818 - it ends a run that has done what it was for
    """Inductor's code would be run now."""


class Chance(torch.Generator):
    """The GPU's, which draws nothing; attention asks for it where it is computed again."""

    @property
    def device(self) -> torch.device:
        """Return where it would be."""
        return GPU

    def clone_state(self) -> "Chance":
        """Return the same one."""
        return self


class Driver:
    """What Triton asks a driver for, before it compiles."""

    def get_current_target(self) -> Any:
        """Return what is compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Return the only one."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return the only one."""
        return GPU

    def get_device_interface(self) -> Any:
        """Return where torch keeps it."""
        return torch.cuda


@dataclass(frozen=True)
class Code:
    """What inductor wrote for one way through a block."""

    text: str

    @property
    def launches(self) -> int:
        """Return how many kernels and operations are called."""
        return len(RUN.findall(self._call))

    @property
    def fused_gb(self) -> float:
        """Return what the fused kernels read and write."""
        sizes = {name: float(_found(r"'kernel_num_gb': ([\d.e-]+)", source)) for name, source in self.kernels()}
        runs = [run.removesuffix(".run") for run in RUN.findall(self._call) if run.endswith(".run")]
        return sum(sizes[name] for name in runs)

    @property
    def products(self) -> int:
        """Return how many products of matrices are called, one that adds up two of them as one."""
        return sum("triton" not in run and "attention" not in run for run in RUN.findall(self._call))

    def kernels(self) -> list[tuple[str, str]]:
        """Return name and source of every fused kernel."""
        return KERNEL.findall(self.text)

    @property
    def _call(self) -> str:
        return self.text[self.text.index("def call(") :]


@contextmanager
def compiling_for_a_gpu(codes: list[str]) -> Iterator[None]:
    """Let inductor believe in the GPU without contents, and take its code instead of running it."""
    from triton.runtime import driver

    driver.set_active(Driver())
    state = torch.empty(16, dtype=torch.uint8)
    answers: dict[str, Any] = {
        "_get_device_properties": lambda *_: H200,
        "get_device_properties": lambda *_: H200,
        "get_device_name": lambda *_: H200.name,
        "get_rng_state": lambda *_: state,
        "set_rng_state": lambda *_: None,
        "_exchange_device": lambda *_: 0,
        "_maybe_exchange_device": lambda *_: 0,
        "_lazy_init": lambda: None,
        "default_generators": (Chance(),),
    }

    def taken(graph: Any) -> Any:
        codes.append(graph.codegen()[0].value)
        return SimpleNamespace(call=_captured, cache_key="", cache_linemap=[], __file__="", __path__="")

    deduced = joint_graph.UniformValueConstantFolder._deduce_value

    def on_the_machine(folder: Any, node: Any) -> Any:
        """Fold constants where there is something to compute with."""
        if node.target is not torch.ops.aten.full.default:
            return deduced(folder, node)
        before, node.kwargs = node.kwargs, {**node.kwargs, "device": "cpu"}
        try:
            return deduced(folder, node)
        finally:
            node.kwargs = before

    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer, create=True))
        stack.enter_context(mock.patch.object(torch.accelerator, "is_available", lambda: False))
        stack.enter_context(mock.patch.object(GraphLowering, "compile_to_module", taken))
        stack.enter_context(mock.patch.object(joint_graph.UniformValueConstantFolder, "_deduce_value", on_the_machine))
        for passes in (joint_graph, post_grad):  # they trace patterns that are not ours, with contents
            stack.enter_context(mock.patch.object(passes, "lazy_init", lambda *_: None))
        settings = {"fx_graph_cache": False, "compile_threads": 1, "profile_bandwidth": True}
        stack.enter_context(torch._inductor.config.patch(settings))
        eagerly = {"force_non_lazy_backward_lowering": True, "enable_autograd_cache": False}
        stack.enter_context(torch._functorch.config.patch(eagerly))
        yield


def _captured(*_: Any) -> None:
    raise Captured


def written(kind: WeightFormat, checkpointing: Checkpointing, side_px: int) -> tuple[Code, Code]:
    """Return inductor's code for a main block, forward and back."""
    torch.compiler.reset()
    transformer, codes = released(2, RANK), []
    bucket = SequenceBucket(side_px // 8, side_px // 8, CAPTION)
    with fake_gpu(), compiling_for_a_gpu(codes):
        half = torch.bfloat16
        denoiser = Denoiser(transformer, dtype=half, stream=half, device=GPU, weight_format=kind)
        Adapters(denoiser, module_names(transformer)).cast_for_compile(half)
        run = make_block_runner(checkpointing, compiled=True)
        x = torch.empty(1, sequence_length(bucket), WIDTH, device=GPU, dtype=half, requires_grad=True)
        condition = torch.empty(1, 256, device=GPU, dtype=half)
        with contextlib.suppress(Captured):
            run(denoiser.layers[0], x, condition, denoiser.tables(bucket)[2], None)
    forward, back = map(Code, codes)
    return forward, back


def compiled(code: Code) -> int:
    """Compile every fused kernel of the code by Triton and ptxas, and return how many there are."""
    for name, source in code.kernels():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.py"
            path.write_text(source, encoding="utf-8")
            spec = importlib.util.spec_from_file_location("kernel", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            with (
                mock.patch.object(triton_helpers, "set_driver_to_gpu", lambda: None),
                mock.patch.object(torch.cuda, "set_device", lambda _: None),
                mock.patch.object(triton_heuristics, "TritonCompileResult", lambda kernel, *_: kernel),
            ):
                spec.loader.exec_module(module)
                tuner = getattr(module, name)
                tuner._precompile_config(tuner.configs[0])
    return len(code.kernels())


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, pattern
    return match[1]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=KINDS)
    parser.add_argument("--px", type=int, default=1024)
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    print("| weights | checkpointing | launches, forward and back | products | fused kernels move | kernels compiled |")
    print("|---|---|---|---|---|---|")
    for kind in asked.kinds:
        for checkpointing in FORMS:
            ways = written(kind, checkpointing, asked.px)
            if asked.into:
                for way, code in zip(("forward", "back"), ways, strict=True):
                    asked.into.mkdir(parents=True, exist_ok=True)
                    (asked.into / f"{kind}-{checkpointing}-{way}.py").write_text(code.text, encoding="utf-8")
            launches, products, moved = (
                " + ".join(format(value, form) for value in values)
                for values, form in (
                    ([code.launches for code in ways], "d"),
                    ([code.products for code in ways], "d"),
                    ([code.fused_gb for code in ways], ".2f"),
                )
            )
            row = f"{launches} | {products} | {moved} GB | {sum(map(compiled, ways))}"
            print(f"| {kind} | {checkpointing} | {row} |", flush=True)


if __name__ == "__main__":
    main()
