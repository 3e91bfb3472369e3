"""Makes a run ready and takes its steps as a machine with a GPU would, on one without contents.

python -m tests.fake_gpu.loop BASE ENCODED
    the folders of a base model and of what encode made; prints one line for each form of a run that went through
"""

import sys
from pathlib import Path
from typing import Any

from tests.fake_gpu.device import GPU, fake_gpu  # isort: skip - before torch

import torch

from tests.training.recipe import MACHINE, recipe
from zimage.training.distributed import World
from zimage.training.divergence import PendingMetrics
from zimage.training.params import MachineParams, TrainParams
from zimage.training.setup import build_run

STEPS = 3
PRESERVATION = {"weight": 1.0, "every": 2, "batch_size": 2, "pictures": "crops", "target": "base"}
# How weights are kept, what is computed again, blocks that travel, and what else differs from tests/training/recipe.py.
FORMS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("none", "none", 0, {}),
    ("none", "full", 2, {"prior_preservation": PRESERVATION}),
    ("int8", "full", 0, {"dropout": 0.1, "micro_batch_size": 1}),
    ("fp8", "none", 0, {"targets": ["attention", "context_refiner", "time_embedder", "final_layer"]}),
    ("fp8", "full", 2, {"latents": "mean", "face_weight": 1.0}),
    ("nf4", "full", 2, {"prior_preservation": PRESERVATION, "dropout": 0.1}),
]


def taken(base: Path, encoded: Path, params: TrainParams, machine: MachineParams) -> None:
    """Take some steps; whatever is made of adapters and numbers has to be on the GPU."""
    with fake_gpu():
        world = World()
        prepared = build_run(encoded, base, params, machine, world)
        readings = PendingMetrics(GPU, STEPS + 1)
        for number in range(STEPS):
            numbers = prepared.loop.step(number)
            assert (numbers.device, numbers.shape, numbers.dtype) == (GPU, (2,), torch.float32)
            assert readings.put(number, numbers) == []
        tensors = prepared.loop.optimiser.tensors()
        assert {tensor.device for name, tensor in tensors.items() if not name.startswith(("step.", "numbers"))} == {GPU}
        prepared.loop.optimiser.restore({name: tensor.to("cpu") for name, tensor in tensors.items()})
        prepared.loop.step(STEPS)
        world.close()


def main(base: Path, encoded: Path) -> None:
    """Take steps in each form."""
    for kind, checkpointing, away, changes in FORMS:
        machine = MACHINE.model_copy(update={"checkpointing": checkpointing, "offloaded_blocks": away})
        taken(base, encoded, recipe(precision="bfloat16", memory={"base_quantization": kind}, **changes), machine)
        print(kind, checkpointing, away, *changes)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
