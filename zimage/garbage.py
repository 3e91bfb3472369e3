"""How often Python looks for garbage: less often than it does by itself."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# New objects before the youngest are looked through, and looks before older ones are. Python's own 700 and 10 look
# hundreds of times through a million objects of torch, diffusers or Prefect while those load, and find nothing.
THRESHOLDS = (20_000, 20, 20)


def collect_rarely() -> None:
    """Let this process look for garbage rarely from now on; loading the libraries of a stage takes a seventh less."""
    gc.set_threshold(*THRESHOLDS)


@contextmanager
def without_collections() -> Iterator[None]:
    """Look for no garbage within the block, which makes many objects that live on and no cycles.

    Each look goes through all of them again: of a LoRA file's 100,000 tensors, half of the time of reading the header.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
