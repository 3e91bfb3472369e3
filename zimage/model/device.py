"""Choose the device and dtype of this process, which are facts of the machine and no parameters."""

import ctypes
import gc
import os
import platform
import resource
from pathlib import Path

import torch

from zimage.core import process_group as processes

# malloc.h of glibc: from which size on memory is asked of the kernel by itself, how much unused is given back, and how
# much more is asked for than is needed; and the advice of madvise(2) to use pages of 2 MB.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD = -3, -1, -2
MADV_HUGEPAGE = 14
BFLOAT16_CAPABILITY = (8, 0)  # the first GPUs with such units: Ampere
LARGEST, NEVER = 2**25, 2**30  # bytes; older versions refuse a larger first one
ROOM, PAGE = 2**29, 2**12  # bytes
# What the drivers of Linux put there for a GPU that computes: NVIDIA's, also within WSL 2, and AMD's.
NVIDIA, AMD = (Path("/proc/driver/nvidia/version"), Path("/dev/dxg")), Path("/dev/kfd")


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """Return the GPU and bfloat16, or the CPU and float32 where there is no GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device()), torch.bfloat16
    return torch.device("cpu"), torch.float32


def sampling_dtype() -> torch.dtype:
    """Return what pictures are made in unless another precision is asked for: float32 on a CPU without such units."""
    device, dtype = device_and_dtype()
    return torch.bfloat16 if device.type == "cpu" and has_bfloat16_units(device) else dtype


def unused_gpu() -> tuple[str, str] | None:
    """Return which GPU of this machine is not computed on, and the remedy; None where there is none or it is used.

    Computed on are NVIDIA's GPUs by CUDA, and AMD's by ROCm, whose torch calls itself CUDA.
    """
    if torch.cuda.is_available():
        return None
    if any(path.exists() for path in NVIDIA):
        if torch.version.cuda is None:
            return (
                "an NVIDIA GPU, but torch is built without CUDA",
                "install the build of torch for CUDA, see pytorch.org",
            )
        return (
            "an NVIDIA GPU that torch cannot use",
            f"install a driver for CUDA {torch.version.cuda}; `nvidia-smi` tells",
        )
    if AMD.exists():
        if torch.version.hip is None:
            return "an AMD GPU, but torch is built without ROCm", "install the build of torch for ROCm, see pytorch.org"
        return (
            "an AMD GPU that torch cannot use",
            f"install ROCm {torch.version.hip} and join the groups render and video",
        )
    if torch.xpu.is_available():
        return "an Intel GPU (XPU), which this project does not use", "use a GPU of NVIDIA or AMD; the CPU computes"
    if torch.backends.mps.is_available():
        return "an Apple GPU (MPS), which this project does not use", "use a GPU of NVIDIA or AMD; the CPU computes"
    return None


def use_one_thread_on_a_cpu() -> None:
    """Compute with one thread from now on where there is no GPU: a CPU's cores are for processes.

    So a result depends on no number of cores either, which sums over many numbers otherwise do.
    """
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def processes_on(device: torch.device) -> int:
    """Return how many processes may share work on a device: the cores of a CPU, and one has a GPU for itself."""
    return processes.limit() if device.type == "cpu" else 1


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether products in bfloat16 are what the device is fast at; else it emulates them, or cannot at all."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY
    return torch.cpu._is_avx512_bf16_supported()


def device_kind(device: torch.device) -> str:
    """Return what the rounding of results depends on: torch's version, the device's kind and its instructions.

    Measured on a training of 20 steps (infra/decisions/10-resume-on-another-device.md): kernels for AVX2 instead of
    AVX-512, and products without bfloat16 instructions, change its LoRA; the number of threads does not.
    """
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (torch {torch.__version__})"
    found = torch.cpu.get_capabilities()
    maker = str(found.get("cpu_name", "")).split("(")[0].split(" ")[0]  # MKL has other kernels for each
    bits = [name for name in ("avx512_bf16", "amx_bf16") if found.get(name)]
    names = [platform.machine(), maker, torch.backends.cpu.get_cpu_capability(), *bits]
    return f"CPU {' '.join(filter(None, names))} (torch {torch.__version__})"


def release(device: torch.device) -> None:
    """Give memory that nothing refers to any more back to the device, so that the next model finds it whole."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def keep_freed_memory(device: torch.device) -> None:
    """Let this process keep what it frees, for a loop on a CPU that asks for the same tensors in every step.

    Otherwise the C library gives large ones back to the kernel, which has to clear each page anew: 16,000 page faults
    and a tenth of the time of a step of the demo. Room for half a GB is asked for at once, on pages of 2 MB where the
    kernel has them: 7 % of a step's time are spent on looking up small ones. Other C libraries than glibc are left as
    they are.
    """
    libc = ctypes.CDLL(None)
    if device.type == "cpu" and (mallopt := getattr(libc, "mallopt", None)) is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_TOP_PAD, ROOM)
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        blocks = [libc.malloc(LARGEST - PAGE) for _ in range(2)]  # more than is left of the heap, so it grows
        for block in blocks:
            libc.free(block)
        for start, end in _heap():
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_HUGEPAGE)


def _heap() -> list[tuple[int, int]]:
    """Return the addresses of this process's heap, as Linux tells them."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.is_file() else []
    spans = [line.split()[0].split("-") for line in lines if line.endswith("[heap]")]
    return [(int(start, 16), int(end, 16)) for start, end in spans]


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on the device, without making the host wait: pinned first where the device is a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory this process has held so far, in GB: of the GPU, or of the machine without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def free_gb(device: torch.device) -> float:
    """Return what is free of a GPU's memory, in GB, without what this process holds for later."""
    return torch.cuda.mem_get_info(device)[0] / 1e9


def available_gb(device: torch.device) -> float:
    """Return what this process could have of a GPU's memory, in GB: what is free, and what it holds already.

    Without a GPU it is all of the machine's.
    """
    if device.type == "cuda":
        return free_gb(device) + torch.cuda.memory_reserved(device) / 1e9
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
