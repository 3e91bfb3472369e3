"""A GPU without contents: what it is asked for is checked for devices, types, layouts and memory, and not computed.

`import tests.fake_gpu.device` comes before torch is imported. A torch without CUDA then takes part in autograd over
tensors of torch's FakeTensorMode on `GPU`: mixing them with tensors of the machine raises, so does asking for a number
that only the device has, 8-bit products refuse factors that lie in the wrong order, and attention is the flash
kernel's, which keeps no weights. Streams and events order nothing here, and no kernel is chosen or run.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("cuda.cpp")
COMPILER = shutil.which("g++") or shutil.which("clang++")
ALL_BYTES = 80 * 10**9
# What reads files, makes layers of peft or draws chance, all of it on the machine and before anything is sent to a GPU.
READERS = [
    ("zimage.training.dataset", "load_file"),
    ("zimage.training.setup", "open_scheduler"),
    ("zimage.training.setup", "open_transformer"),
    ("zimage.training.setup", "inject"),
    ("zimage.training.setup", "plan"),
    ("zimage.training.objective", "sample_step_noise"),
]


def _load() -> None:
    """Compile and load what torch takes for CUDA; it looks for that once, when it is imported."""
    assert "torch" not in sys.modules, "the GPU has to be there before torch is imported"
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None and COMPILER is not None
    torch_folder = Path(found.origin).parent
    libraries = torch_folder / "lib"
    with tempfile.TemporaryDirectory() as temporary:
        library = Path(temporary) / "cuda.so"
        command = [COMPILER, "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", "-o", library, SOURCE]
        linked = [f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
        subprocess.run([*command, *linked], check=True)
        ctypes.CDLL(str(library))


_load()

import torch  # noqa: E402 - after the GPU is there
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import _disable_current_modes  # noqa: E402

from zimage.model.fast import kernels  # noqa: E402

GPU = torch.device("cuda", 0)


class Stream:
    """Orders nothing."""

    def __init__(self, *_: Any) -> None: ...

    def wait_stream(self, stream: "Stream") -> None: ...

    def wait_event(self, event: "Event") -> None:
        assert isinstance(event, Event), "it waits for what was never recorded"


class Event:
    """Is always over."""

    def record(self, stream: Stream | None = None) -> None: ...

    def synchronize(self) -> None: ...


class _Contentless(FakeTensorMode):
    """Asks the GPU for nothing, whatever torch says of one."""

    @property
    def avoid_device_init(self) -> bool:
        """Return that constants are not to be made there."""
        return True


@contextmanager
def fake_gpu(*, free_bytes: int = ALL_BYTES, readers: list[tuple[str, str]] = READERS) -> Iterator[None]:
    """Let torch say that there is a GPU with so much free memory, for the length of the block.

    Args:
        free_bytes: Memory of the GPU.
        readers: Modules with the names of their functions that work on the machine, with real contents.
    """
    now = Stream()
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "set_device": lambda _: None,
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": lambda *_: (free_bytes, free_bytes),
        "empty_cache": lambda: None,
        "current_stream": lambda *_: now,
        "stream": lambda _: contextlib.nullcontext(),
        "Stream": Stream,
        "Event": Event,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(_replaced(torch.cuda, name, answer))
        stack.enter_context(_replaced(Tensor, "pin_memory", lambda tensor: tensor))
        stack.enter_context(_replaced(kernels, "attention_formula", _flash))
        for module, name in readers:
            place = importlib.import_module(module)
            stack.enter_context(_replaced(place, name, _with_contents(getattr(place, name))))
        stack.enter_context(_Contentless(allow_non_fake_inputs=True))
        yield


def _with_contents(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that reads files, made to do that on the machine, where tensors have contents."""

    def reading(*arguments: Any, **options: Any) -> Any:
        with _disable_current_modes():
            return function(*arguments, **options)

    return reading


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what the formula returns on a GPU, by the kernel that is chosen there for bfloat16 without a mask."""
    attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=1.0)[0]
    return attended.transpose(1, 2).flatten(2)


@contextmanager
def _replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
