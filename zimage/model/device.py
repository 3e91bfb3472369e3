"""The one device a process computes on. Which it is is a fact of the machine, never a parameter."""

import gc

import torch


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """Return the GPU and bfloat16, or the CPU and float32 where there is no GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device()), torch.bfloat16
    return torch.device("cpu"), torch.float32


def release(device: torch.device) -> None:
    """Give memory that nothing refers to any more back to the device, so that the next model finds it whole."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
