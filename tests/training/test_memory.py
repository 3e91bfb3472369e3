"""Memory settings: what excludes what, what a run needs, and which presets are named where it is not there."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.workspace.subject import presets
from tests.tiny_base import tiny_transformer
from tests.training.recipe import MACHINE, recipe
from zimage.core.errors import InputError
from zimage.model.denoiser import Denoiser, run_block
from zimage.model.fast import kernels
from zimage.training.adapters import Adapters, inject, module_names
from zimage.training.memory import (
    PRESETS,
    USED_SHARE,
    MemoryPreset,
    Sizes,
    activations_gb,
    check,
    checkpointing_of,
    dropped,
    keeps_both_ways,
    learning,
    least_checkpointing,
    lora_gb,
    needed_gb,
    room_for_both_ways,
    too_small,
    weights_gb,
)
from zimage.training.params import MachineParams
from zimage.training.setup import products_dtype

RELEASED = Sizes(width=3840, layers=30, refiners=2)
CPU = torch.device("cpu")
TOKENS_1024_PX = 4096 + 64


def _machine(**changes: Any) -> MachineParams:
    return MACHINE.model_copy(update=changes)


@pytest.mark.parametrize(
    ("compiled", "changes", "message"),
    [
        (
            False,
            {"checkpointing": "selective"},
            r"needs the compiler; set it to `full`, or train\.memory\.",
        ),
        (True, {"offloaded_blocks": 2}, r"come and go; set it to 0, or train\.memory\.compile to false"),
        (
            False,
            {"offloaded_blocks": 2, "cuda_graphs": True},
            r"record the coming and going of machine\.offloaded_blocks",
        ),
        (False, {"offloaded_blocks": 31}, r"machine\.offloaded_blocks is 31, but the base has 30 main blocks"),
    ],
)
def test_settings_that_exclude_each_other_are_refused_with_the_remedy(
    compiled: bool, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check(recipe(memory={"compile": compiled}), _machine(**changes), RELEASED, CPU)


def test_compiling_without_a_compiler_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"needs a C compiler.*or set it to false"):
        check(recipe(memory={"compile": True}), MACHINE, RELEASED, CPU)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_those_that_a_person_can_choose(name: str) -> None:
    found = presets()[name]
    memory, machine = (
        {key.removeprefix(section): value for key, value in found.values.items() if key.startswith(section)}
        for section in ("train.memory.", "machine.")
    )
    assert memory == PRESETS[name].memory.model_dump()
    assert machine == PRESETS[name].machine.model_dump(exclude={"trackers", "tracking_folder"})
    assert found.values["train.micro_batch_size"] == PRESETS[name].micro_batch_size
    assert f"{found.gpu_gb}gb" == name
    check(recipe(memory={**memory, "compile": False}, precision="bfloat16"), PRESETS[name].machine, RELEASED, CPU)


def test_every_preset_fits_its_card_and_a_smaller_one_needs_less() -> None:
    for name, preset in PRESETS.items():
        assert needed_gb(RELEASED, preset, lora_gb(RELEASED, 16), TOKENS_1024_PX) < 0.9 * float(name.removesuffix("gb"))
    needs = [needed_gb(RELEASED, preset, lora_gb(RELEASED, 16), TOKENS_1024_PX) for preset in PRESETS.values()]
    assert needs == sorted(needs)
    assert needs[0] < 6.0


def test_weights_are_counted_as_the_model_has_them() -> None:
    transformer = tiny_transformer()
    config = transformer.config
    denoiser = Denoiser(transformer, dtype=torch.bfloat16, stream=torch.bfloat16, offloaded_blocks=0)
    blocks = [*denoiser.noise_refiner, *denoiser.layers]
    taken = sum(p.frozen.tensors()[0].nbytes for block in blocks for p in block.projections())
    sizes = Sizes(config.dim, config.n_layers, config.n_refiner_layers)
    # A tiny modulation reads its own width instead of 256 values, which the released width does not fall below.
    modulations = sum(block.modulation.frozen.tensors()[0].nbytes for block in blocks if block.modulation)
    expected = weights_gb(sizes, recipe().memory, MACHINE) * 1e9 - len(blocks) * 256 * 4 * config.dim * 2
    assert taken - modulations == expected


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_counted_as_autograd_keeps_them(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks alone, without the weights of attention, which a GPU's kernels never write down."""
    monkeypatch.setattr(kernels, "MATERIALISED_TOKENS", 0)
    transformer = tiny_transformer(layers=6)
    inject(transformer, ["attention", "feed_forward"], rank=1, dropout=dropout, generator=torch.Generator())
    denoiser = Denoiser(transformer, dtype=torch.bfloat16, stream=torch.bfloat16)
    Adapters(denoiser, module_names(transformer))
    config = transformer.config
    D, F = config.dim, int(config.dim / 3 * 8)
    kept: dict[int, int] = {}

    def packed(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = 2 * (16 * 16 + 32)
    context = torch.zeros(2, 32, D, dtype=torch.bfloat16)
    denoiser.run = run_block  # of a block that is one node autograd's hooks see nothing, though it keeps the same
    with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
        denoiser.velocity(torch.ones(2, 16, 32, 32), torch.tensor([0.2, 0.7]), context)
    frozen = {tensor.data_ptr() for p in denoiser.projections() for tensor in p.frozen.tensors()}
    found = sum(size for place, size in kept.items() if place not in frozen)
    sizes = Sizes(D, 6, 2)
    expected = activations_gb(sizes, tokens, "none", dropped=dropped(sizes, recipe(dropout=dropout))) * 1e9
    assert denoiser.layers[0].w2.frozen.shape[1] == F
    assert 0.85 < found / expected < 1.15


def test_auto_recomputes_no_more_than_it_must() -> None:
    choices = [least_checkpointing(True, RELEASED, TOKENS_1024_PX, gb) for gb in (128, 20, 10, 1)]
    assert choices == ["none", "selective", "full", "full"]
    assert least_checkpointing(False, RELEASED, TOKENS_1024_PX, 20) == "full"


def test_chance_and_adapters_far_ahead_are_counted_before_something_is_chosen() -> None:
    plain, chance = recipe(), recipe(dropout=0.1)
    needs = {name: activations_gb(RELEASED, TOKENS_1024_PX, "none", dropped=dropped(RELEASED, params))
             for name, params in (("plain", plain), ("chance", chance))}  # fmt: skip
    between = sum(needs.values()) / 2 / USED_SHARE
    for params, wanted in ((plain, "none"), (chance, "full")):
        asked = dropped(RELEASED, params)
        assert least_checkpointing(False, RELEASED, TOKENS_1024_PX, between, dropped=asked) == wanted
    assert learning(RELEASED, recipe(targets=["attention", "noise_refiner"])).layers == 32
    assert learning(RELEASED, plain) == RELEASED


@pytest.mark.parametrize(
    ("capability", "changes", "said"),
    [
        ((7, 5), {"precision": "bfloat16"}, "bfloat16, but T4 has no units for it; use a GPU of the Ampere generation"),
        (
            (8, 6),
            {"precision": "bfloat16", "memory": {"base_quantization": "fp8"}},
            "`fp8`, but T4 has no units for it; set it",
        ),
        ((7, 5), {"precision": "float32"}, None),
        ((8, 0), {"precision": "bfloat16"}, None),
        ((8, 9), {"precision": "bfloat16", "memory": {"base_quantization": "fp8"}}, None),
    ],
)
def test_what_a_gpu_has_no_units_for_is_refused(
    capability: tuple[int, int], changes: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "T4")

    with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
        check(recipe(**changes), MACHINE, RELEASED, torch.device("cuda"))


def test_fp8_is_refused_on_an_amd_gpu_whose_8_bit_numbers_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    fp8 = recipe(precision="bfloat16", memory={"base_quantization": "fp8"})
    with pytest.raises(InputError, match="this GPU is AMD's"):
        check(fp8, MACHINE, RELEASED, torch.device("cuda"))
    check(recipe(precision="bfloat16"), MACHINE, RELEASED, torch.device("cuda"))


def test_what_is_small_is_learnt_in_float32_where_there_are_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "T4")
    check(recipe(precision="bfloat16"), MACHINE, Sizes(48, 2, 1), torch.device("cuda"))
    assert products_dtype("bfloat16", torch.device("cuda")) is torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert products_dtype("bfloat16", torch.device("cuda")) is torch.bfloat16


def test_8_bit_weights_are_kept_both_ways_where_all_activations_fit_beside_them() -> None:
    def fits(free_gb: float, frozen: str, **changes: Any) -> bool:
        return room_for_both_ways(
            recipe(rank=16, memory={"base_quantization": frozen}),
            _machine(**changes),
            RELEASED,
            TOKENS_1024_PX,
            free_gb,
        )

    assert fits(80, frozen="fp8") and fits(80, frozen="int8")
    assert not fits(24, frozen="int8")
    assert fits(60, frozen="fp8") and not fits(60, frozen="fp8", cuda_graphs=True)  # whose memory is their own
    assert not fits(80, frozen="none") and not fits(80, frozen="int8", offloaded_blocks=2)
    assert not keeps_both_ways(recipe(memory={"base_quantization": "int8"}), MACHINE, RELEASED, [], CPU)


def test_without_a_gpu_auto_recomputes_nothing_and_a_choice_stays() -> None:
    assert checkpointing_of(recipe(), _machine(checkpointing="auto"), RELEASED, [], CPU) == "none"
    assert checkpointing_of(recipe(), _machine(checkpointing="full"), RELEASED, [], CPU) == "full"


def test_out_of_memory_names_the_presets_that_fit_with_what_they_need() -> None:
    params = recipe(batch_size=4, micro_batch_size=4, precision="bfloat16", rank=16)
    message = str(too_small(params, MACHINE, RELEASED, (1024, 1024), 60, available_gb=16.0))
    assert "16 GB of memory are too small for 4 picture(s) of 1024 x 1024 px at once with bfloat16 weights" in message
    assert "choose a preset that fits (16gb (9 GB), 8gb (6 GB)), a smaller train.micro_batch_size" in message
    assert "24gb" not in message
    here = 'set ZIMAGE_MACHINE="checkpointing=full offloaded_blocks=15" on this machine, which trains on as before, or'
    assert here in message


def test_where_no_preset_fits_none_is_named() -> None:
    message = str(too_small(recipe(), MACHINE, RELEASED, (1024, 1024), 60, available_gb=3.0))
    assert "preset" not in message and "smaller crops" in message


def test_a_preset_that_needs_more_than_what_failed_is_not_named() -> None:
    smallest = PRESETS["8gb"]
    assert isinstance(smallest, MemoryPreset)
    params = recipe(memory=smallest.memory.model_dump(), micro_batch_size=1, rank=16)
    message = str(too_small(params, smallest.machine, RELEASED, (1024, 1024), 60, available_gb=24.0))
    assert "preset" not in message and "ZIMAGE_MACHINE" not in message
