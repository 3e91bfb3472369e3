"""The course of the learning rate, and the optimisers: those of the libraries, resumable to the last bit."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_base import tiny_transformer
from tests.training.recipe import PARAMS, recipe
from zimage.core.errors import InputError
from zimage.core.section import checked
from zimage.core.tensor_file import write_tensors
from zimage.model.denoiser import Denoiser
from zimage.training.adapters import Adapters, inject, module_names
from zimage.training.optimiser import SCHEDULE_FREE, Optimiser, rate_factor, schedule_of
from zimage.training.params import (
    FIND_A_RATE,
    Adapter,
    OptimiserName,
    ScheduleParams,
    Target,
    TargetParams,
    TrainParams,
)

pytestmark = pytest.mark.usefixtures("bitsandbytes")

OPTIMISERS: tuple[OptimiserName, ...] = get_args(OptimiserName)

COSINE = ScheduleParams(type="cosine", warmup_steps=4, final_fraction=0.1)


def test_it_rises_over_the_warm_up_without_a_step_of_zero() -> None:
    assert [rate_factor(step, 100, COSINE) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_falls_to_its_final_fraction_and_constant_stays() -> None:
    factors = [rate_factor(step, 100, COSINE) for step in range(4, 100)]
    assert factors == sorted(factors, reverse=True)
    assert 0.1 < factors[-1] < 0.102
    assert rate_factor(99, 100, COSINE.model_copy(update={"type": "constant"})) == 1.0


def test_no_warm_up_begins_at_the_full_rate() -> None:
    assert rate_factor(0, 10, ScheduleParams(type="constant", warmup_steps=0, final_fraction=1.0)) == 1.0


def _run(
    name: OptimiserName,
    adapter: Adapter = "lora",
    targets: Sequence[Target | TargetParams] = ("attention", "feed_forward"),
    **changes: Any,
) -> tuple[Adapters, Optimiser]:
    """Adapters that begin away from zero, and their optimiser."""
    params = recipe(optimiser={"name": name, "clip_norm": 0.0, **changes}, adapter=adapter, rank=8)
    transformer = tiny_transformer()
    layers = inject(
        transformer,
        targets,
        rank=params.rank,
        dropout=0.0,
        generator=torch.Generator().manual_seed(0),
        adapter=adapter,
        lokr=params.lokr,
    )
    denoiser = Denoiser(transformer, dtype=torch.float32, stream=torch.float32)
    adapters = Adapters(denoiser, module_names(transformer), layers)
    for lora in denoiser.loras():  # each its own, in whatever order they stand
        for number, part in enumerate((lora.down, lora.up)):
            generator = torch.Generator().manual_seed(7 * part.numel() + number)
            part.data.add_(torch.randn(part.shape, generator=generator) * 0.1)
    return adapters, Optimiser(adapters, params.optimiser)


def _steps(adapters: Adapters, optimiser: Optimiser, numbers: range) -> None:
    """Take these steps towards nought, with noise."""
    for number in numbers:
        noise = torch.randn(len(adapters.values), generator=torch.Generator().manual_seed(number))
        adapters.gradient.copy_(adapters.values + 0.1 * noise)
        optimiser.step(min(1.0, (number + 1) / 3), number)


@pytest.mark.parametrize("adapter", get_args(Adapter))
@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_goes_on_from_its_state_to_the_last_bit(
    name: OptimiserName, adapter: Adapter, tmp_path: Path
) -> None:
    whole = _run(name, adapter)
    _steps(*whole, range(3))
    write_tensors(tmp_path / "state.safetensors", whole[1].tensors(), {})
    _steps(*whole, range(3, 8))

    resumed = _run(name, adapter)
    resumed[1].restore(load_file(tmp_path / "state.safetensors"))
    _steps(*resumed, range(3, 8))

    assert torch.equal(resumed[0].values, whole[0].values)
    assert torch.equal(resumed[1].result, whole[1].result)
    found, expected = resumed[1].tensors(), whole[1].tensors()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_that_has_made_no_step_goes_on_too(name: OptimiserName) -> None:
    whole, resumed = _run(name), _run(name)
    resumed[1].restore(whole[1].tensors())
    for each in (whole, resumed):
        _steps(*each, range(2))
    assert torch.equal(resumed[0].values, whole[0].values)


# Moments in eight bits share a scale with their neighbours in the vector, which are others then.
@pytest.mark.parametrize("name", [name for name in OPTIMISERS if name not in {*FIND_A_RATE, "adamw_8bit"}])
def test_a_factor_of_the_learning_rate_moves_its_layers_as_that_learning_rate_would(name: OptimiserName) -> None:
    half = TargetParams(layers="attention", learning_rate_factor=0.5)
    found: dict[str, dict[str, Any]] = {}
    for case, targets, rate in (
        ("both", [half, "feed_forward"], 1e-2),
        ("slow", ["attention", "feed_forward"], 5e-3),
        ("fast", ["attention", "feed_forward"], 1e-2),
    ):
        adapters, optimiser = _run(name, targets=targets, learning_rate=rate)  # type: ignore[arg-type]
        values, gradient = adapters.weights(adapters.values), adapters.weights(adapters.gradient)
        for number in range(4):
            generator = torch.Generator().manual_seed(number)
            for layer in sorted(gradient):
                for part, value in zip(gradient[layer], values[layer], strict=True):
                    part.copy_(value + 0.1 * torch.randn(part.shape, generator=generator))
            optimiser.step(1.0, number)
        found[case] = {layer: torch.cat([part.flatten() for part in each]) for layer, each in values.items()}
    for layer, value in found["both"].items():
        expected = found["slow" if "attention" in layer else "fast"][layer]
        assert torch.equal(value, expected), layer


@pytest.mark.parametrize("name", OPTIMISERS)
def test_each_optimiser_goes_down_a_slope(name: OptimiserName) -> None:
    adapters, optimiser = _run(name)
    before = float(adapters.values.square().sum())
    _steps(adapters, optimiser, range(60))
    assert float(optimiser.result.square().sum()) < 0.7 * before


def test_matrices_are_updated_as_pefts_own_parameters_would_be() -> None:
    """Muon and Adafactor look at rows and columns: every layer's matrix is a parameter of its own to them."""
    from transformers.optimization import Adafactor

    for name, reference in (
        ("muon", lambda of: torch.optim.Muon(of, 0.01, 0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw")),
        ("adafactor", lambda of: Adafactor(of, 0.01, scale_parameter=False, relative_step=False)),
    ):
        adapters, optimiser = _run(name)
        weights = adapters.weights(adapters.values)
        plain = [torch.nn.Parameter(part.clone()) for pair in weights.values() for part in pair]
        library = reference(plain)
        for number in range(4):
            adapters.gradient.copy_(torch.randn(len(adapters.values), generator=torch.Generator().manual_seed(number)))
            gradients = [part.clone() for pair in adapters.weights(adapters.gradient).values() for part in pair]
            for parameter, gradient in zip(plain, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step(1.0, number)
            library.step()
        found = [part for pair in adapters.weights(adapters.values).values() for part in pair]
        for part, expected in zip(found, plain, strict=True):
            torch.testing.assert_close(part, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FIND_A_RATE)
def test_prodigy_finds_a_learning_rate_and_asks_for_none(name: OptimiserName) -> None:
    adapters, optimiser = _run(name, learning_rate=123.0)
    assert optimiser.found_learning_rate == 1e-6
    _steps(adapters, optimiser, range(60))
    found = optimiser.found_learning_rate
    assert found is not None and 1e-4 < found < 1.0
    other, of_another_rate = _run(name, learning_rate=1e-9, lora_plus_ratio=16.0)
    _steps(other, of_another_rate, range(60))
    assert torch.equal(other.values, adapters.values)
    assert _run("adamw")[1].found_learning_rate is None


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_schedule_free_saves_the_average_and_trains_on_with_its_values_unchanged(name: OptimiserName) -> None:
    adapters, optimiser = _run(name, ema_decay=0.9)
    _steps(adapters, optimiser, range(8))
    values = adapters.values.clone()

    result = optimiser.result

    assert torch.equal(adapters.values, values) and not torch.equal(result, values)
    halves = [group["params"][0] for group in optimiser._torch.param_groups]
    optimiser._torch.eval()  # type: ignore[attr-defined]  # the library's own way, which changes the values
    torch.testing.assert_close(result, torch.cat([half.detach() for half in halves]))
    params = recipe(optimiser={"name": "schedule_free"})
    assert schedule_of(params.optimiser, params.schedule).type == "constant"
    assert schedule_of(recipe().optimiser, params.schedule).type == "cosine"


def test_an_unknown_optimiser_is_refused_with_the_list() -> None:
    optimiser = {**PARAMS["optimiser"], "name": "lion"}
    with pytest.raises(InputError, match=r"`optimiser\.name` is 'lion': input should be 'adamw', .* or 'muon'"):
        checked({**PARAMS, "optimiser": optimiser}, TrainParams, "train")


def test_without_bitsandbytes_its_optimiser_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"needs the package bitsandbytes; run `pip install 'zimage\[8bit\]'`"):
        _run("adamw_8bit")
