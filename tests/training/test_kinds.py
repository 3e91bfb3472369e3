"""Every kind of adapter with every optimiser: it learns, goes on after a kill to equal bytes, and its file loads."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import ZImagePipeline
from safetensors.torch import load_file
from torch import Tensor

from tests.training.recipe import MACHINE, recipe
from zimage.lora.files.inspection import inspect_file
from zimage.lora.files.portable import save_portable
from zimage.model.base import Base, open_transformer
from zimage.training.checkpoint import TrainingState, read_states, write_state
from zimage.training.distributed import World
from zimage.training.params import OptimiserName, TrainParams
from zimage.training.setup import Run, build_run

pytestmark = pytest.mark.usefixtures("bitsandbytes")

STEPS, KILLED_AFTER = 5, 2
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora"},
    "lokr factored": {"adapter": "lokr", "lokr": {"full_matrix": False}},
    "lokr full": {"adapter": "lokr", "lokr": {"full_matrix": True}},
    "dora": {"adapter": "dora"},
}


@pytest.mark.parametrize("optimiser", get_args(OptimiserName))
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_with_an_optimiser_is_resumed_to_equal_bytes_and_its_file_loads(
    kind: str, optimiser: OptimiserName, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    params = recipe(steps=STEPS, caption_dropout=0.0, optimiser={"name": optimiser}, **KINDS[kind])
    _resumed_and_loaded(params, tiny_base, tiny_encoded, tmp_path)


@pytest.mark.parametrize("optimiser", ["adamw", "muon", "schedule_free"])
@pytest.mark.parametrize("kind", KINDS)
def test_so_is_one_whose_blocks_have_ranks_and_learning_rates_of_their_own(
    kind: str, optimiser: OptimiserName, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    own = [{"layers": "attention", "blocks": 1, "rank": 2, "learning_rate_factor": 0.5}, "feed_forward"]
    params = recipe(steps=STEPS, caption_dropout=0.0, targets=own, optimiser={"name": optimiser}, rank=3, **KINDS[kind])
    _resumed_and_loaded(params, tiny_base, tiny_encoded, tmp_path)
    found = inspect_file(tmp_path / "whole.safetensors")
    assert found.rank == (None if kind == "lokr full" else [2, 3])
    assert {(target.block, target.role, target.layers) for target in found.targets} == {
        ("layers", "attention", 4),
        ("layers", "feed-forward", 6),
    }


def _resumed_and_loaded(params: TrainParams, tiny_base: Base, tiny_encoded: Path, tmp_path: Path) -> None:
    whole = _built(tiny_base, tiny_encoded, params)
    before = whole.adapters.values.clone()
    for number in range(KILLED_AFTER):
        whole.loop.step(number)
    write_state(tmp_path, TrainingState(KILLED_AFTER, whole.loop.optimiser.tensors(), devices=("cpu",)), run="this")
    for number in range(KILLED_AFTER, STEPS):
        whole.loop.step(number)
    assert not torch.equal(whole.adapters.values, before)
    _save(whole, tmp_path / "whole.safetensors")

    resumed = _built(tiny_base, tiny_encoded, params)
    (state,) = read_states(tmp_path, run="this")
    resumed.loop.optimiser.restore(state.tensors)
    for number in range(state.step, STEPS):
        resumed.loop.step(number)
    _save(resumed, tmp_path / "resumed.safetensors")
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()

    found = inspect_file(tmp_path / "whole.safetensors")
    assert (found.verdict, found.diffusers, found.comfyui, found.finite) == ("usable", "all", "all", True)
    assert _loaded(tiny_base, tmp_path / "whole.safetensors") == _read_by_diffusers(tmp_path / "whole.safetensors")


def _built(base: Base, encoded: Path, params: TrainParams) -> Run:
    return build_run(encoded, Path(base.model), params, MACHINE, World())


def _save(run: Run, path: Path) -> None:
    save_portable(path, run.adapters.weights(run.loop.optimiser.result), metadata={}, dtype=torch.float32)


def _read_by_diffusers(path: Path) -> int:
    """Return how many tensors of a file are for diffusers: `dora_scale` is ComfyUI's."""
    return sum(not name.endswith(".dora_scale") for name in load_file(path))


def _loaded(base: Base, path: Path) -> int:
    """Return how many of the values that diffusers loaded are those of the file."""
    transformer = open_transformer(Path(base.model), device="cpu", dtype=torch.float32)
    pipeline: Any = ZImagePipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=transformer)
    pipeline.load_lora_weights(str(path))
    values = {_key(value) for value in load_file(path).values()}
    names = (".lora_", ".lokr_")
    loaded = [value for name, value in transformer.named_parameters() if any(each in name for each in names)]
    return sum(_key(value.detach()) in values for value in loaded)


def _key(value: Tensor) -> bytes:
    return value.contiguous().numpy().tobytes()
