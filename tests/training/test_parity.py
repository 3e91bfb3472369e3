"""One step's loss and gradients against a plain float64 rendering of the formula through diffusers' own transformer."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.recipe import MACHINE, recipe
from zimage.model.base import Base, open_transformer
from zimage.model.fast.dora import Dora
from zimage.model.fast.linear import LoraFactors
from zimage.training.adapters import inject
from zimage.training.distributed import World
from zimage.training.noise import StepNoise
from zimage.training.params import Target, TrainParams
from zimage.training.plan import Step
from zimage.training.setup import Run, build_run

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

TARGETS: list[list[Target]] = [
    ["attention"],
    ["attention", "feed_forward"],
    ["attention", "feed_forward", "modulation"],
    ["attention", "feed_forward", "image_embedder", "final_layer"],
    ["noise_refiner"],
    ["context_refiner"],
    ["caption_embedder", "time_embedder"],
]


@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_loss_and_gradients_equal_the_plain_formula_in_float64(
    targets: list[Target], tiny_base: Base, tiny_encoded: Path
) -> None:
    params = recipe(targets=targets, loss_weight="cosmap", face_weight=4.0, latents="sample", caption_dropout=0.0)
    prepared = _prepared(tiny_base, tiny_encoded, params)
    for number in _one_step_of_each_bucket(prepared):
        loss, gradients = _ours(prepared, number)
        expected_loss, expected = _reference(tiny_base, tiny_encoded, params, prepared, number)
        assert abs(float(loss) - expected_loss) < 1e-5 * expected_loss
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            # Of the largest gradient of its kind: a layer that hardly counts has no digits to compare.
            scale = max(float(gradient.norm()), 1e-3 * max(float(other.norm()) for other in expected.values()))
            assert float((gradients[name].double() - gradient).norm()) < 1e-5 * scale, name


@pytest.mark.parametrize(
    ("adapter", "full_matrix", "parts"), [("lokr", False, 3), ("lokr", True, 2), ("dora", False, 3)]
)
def test_loss_and_gradients_of_a_lokr_or_dora_equal_pefts_in_float64(
    adapter: str, full_matrix: bool, parts: int, tiny_base: Base, tiny_encoded: Path
) -> None:
    """Ten seeds of the adapters' numbers, over steps of all buckets."""
    lokr = {"factor": 8, "full_matrix": full_matrix, "alpha": 6.0}
    params = recipe(adapter=adapter, lokr=lokr, rank=2, caption_dropout=0.0, steps=10)
    prepared = build_run(tiny_encoded, Path(tiny_base.model), params, MACHINE, World())
    before = prepared.adapters.values.clone()
    transformer = _injected(tiny_base, params)
    for seed in range(10):
        _fill(prepared, seed)
        if adapter == "dora":
            prepared.adapters.values.add_(before)  # magnitudes near the lengths of the rows
        prepared.adapters.gradient.zero_()
        loss = prepared.loop.backward(seed)
        expected_loss, gradients = _reference_of(transformer, tiny_encoded, params, prepared, seed)
        assert abs(float(loss) - expected_loss) < 1e-5 * expected_loss
        found = dict(_pefts_gradients(prepared))
        assert found.keys() == gradients.keys() and len(found) == parts * 14
        for name, gradient in gradients.items():
            scale = max(float(gradient.norm()), 1e-3 * max(float(other.norm()) for other in gradients.values()))
            assert float((found[name].double() - gradient).norm()) < 1e-5 * scale, name


def _pefts_gradients(prepared: Run) -> Iterator[tuple[str, Tensor]]:
    """What was added to the gradient vector, by peft's names of the matrices."""
    names = prepared.adapters._names
    for lora in prepared.denoiser.loras():
        assert not isinstance(lora, LoraFactors) and lora.down.grad is not None and lora.up.grad is not None
        suffix = "default.weight" if isinstance(lora, Dora) else "default"
        for member, parts in zip(lora.members, lora.parts(lora.down.grad, lora.up.grad), strict=True):
            for name, part in parts.items():
                yield f"{names[id(member)]}.{name}.{suffix}", part.squeeze(1) if "magnitude" in name else part


def test_the_data_has_padding_mixed_captions_and_mixed_sizes(tiny_base: Base, tiny_encoded: Path) -> None:
    prepared = _prepared(tiny_base, tiny_encoded, recipe(caption_dropout=0.0))
    steps = [prepared.loop.steps[number] for number in _one_step_of_each_bucket(prepared)]
    assert len({step.bucket[:2] for step in steps}) == 2
    assert len({step.bucket.caption for step in steps}) == 2
    tokens = {row.tokens for row in prepared.dataset.texts}
    assert any(count % 32 for count in tokens)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_a_batch_in_pieces_gives_the_gradient_of_the_whole(
    micro_batch_size: int, tiny_base: Base, tiny_encoded: Path
) -> None:
    whole = _ours(_prepared(tiny_base, tiny_encoded, recipe(batch_size=4, micro_batch_size=4)), 0)
    pieces = _ours(_prepared(tiny_base, tiny_encoded, recipe(batch_size=4, micro_batch_size=micro_batch_size)), 0)
    torch.testing.assert_close(pieces[0], whole[0], rtol=1e-5, atol=1e-6)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(pieces[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_in_bfloat16_adapters_and_gradients_stay_float32_and_near_the_exact_ones(
    tiny_base: Base, tiny_encoded: Path
) -> None:
    exact = _ours(_prepared(tiny_base, tiny_encoded, recipe()), 0)
    rough = _ours(_prepared(tiny_base, tiny_encoded, recipe(precision="bfloat16")), 0)
    assert abs(float(rough[0]) / float(exact[0]) - 1) < 0.01
    found, expected = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (rough[1], exact[1]))
    assert found.dtype is torch.float32
    assert float(torch.nn.functional.cosine_similarity(found, expected, dim=0)) > 0.995


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_eight_bit_weights_change_the_loss_of_the_same_seed_by_less_than_one_percent(
    kind: str, tiny_base: Base, tiny_encoded: Path
) -> None:
    plain = _prepared(tiny_base, tiny_encoded, recipe())
    rounded = _prepared(tiny_base, tiny_encoded, recipe(memory={"base_quantization": kind}))
    losses = [[float(_ours(prepared, number)[0]) for number in range(6)] for prepared in (plain, rounded)]
    assert abs(sum(losses[1]) / sum(losses[0]) - 1) < 0.01


def _prepared(base: Base, encoded: Path, params: TrainParams) -> Run:
    """A run whose adapters, up-matrices included, are not zero any more."""
    prepared = build_run(encoded, Path(base.model), params, MACHINE, World())
    _fill(prepared, 3)
    return prepared


def _fill(prepared: Run, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prepared.adapters.values.copy_(0.1 * torch.randn(len(prepared.adapters.values), generator=generator))


def _one_step_of_each_bucket(prepared: Run) -> list[int]:
    numbers = {step.bucket: number for number, step in enumerate(prepared.loop.steps)}
    return sorted(numbers.values())


def _ours(prepared: Run, number: int) -> tuple[Tensor, dict[str, Tensor]]:
    prepared.adapters.gradient.zero_()
    loss = prepared.loop.backward(number)
    return loss, _by_name(prepared, prepared.adapters.gradient)


def _by_name(prepared: Run, values: Tensor) -> dict[str, Tensor]:
    parts = prepared.adapters.weights(values)
    return {
        f"{name}.lora_{side}.default.weight": tensor
        for name, (down, up) in parts.items()
        for side, tensor in (("A", down), ("B", up))
    }


def _values(prepared: Run) -> dict[str, Tensor]:
    """The numbers of what is trained, by peft's names, from peft's layers themselves."""
    found: dict[str, Tensor] = {}
    for lora in prepared.denoiser.loras():
        for member in lora.members:
            name = prepared.adapters._names[id(member)]
            parts = member.named_parameters()
            found |= {f"{name}.{part}": value for part, value in parts if "base_layer" not in part}
    return found


def _reference(
    base: Base, encoded: Path, params: TrainParams, prepared: Run, number: int
) -> tuple[float, dict[str, Tensor]]:
    """The formula through diffusers and peft in float64, with the numbers that `prepared` has."""
    return _reference_of(_injected(base, params), encoded, params, prepared, number)


def _injected(base: Base, params: TrainParams) -> "ZImageTransformer2DModel":
    transformer = open_transformer(Path(base.model), device="cpu", dtype=torch.float32)
    inject(
        transformer,
        params.targets,
        rank=params.rank,
        dropout=0.0,
        generator=torch.Generator(),
        adapter=params.adapter,
        lokr=params.lokr,
    )
    return transformer.double()


def _reference_of(
    transformer: "ZImageTransformer2DModel", encoded: Path, params: TrainParams, prepared: Run, number: int
) -> tuple[float, dict[str, Tensor]]:
    """The formula, sample by sample as lists."""
    trained = {name: parameter for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    for name, value in _values(prepared).items():
        trained[name].data = value.double().clone()
    step = prepared.loop.steps[number]
    chance = prepared.loop.objective.sample_noise(number, step)
    clean, captions, places = _raw(encoded, prepared, step, chance, params.face_weight)
    sigma, noise = chance.sigma.double(), chance.noise.double()
    share = sigma[:, None, None, None]
    noisy = (1 - share) * clean + share * noise
    answers = transformer(list(noisy.unsqueeze(2).unbind(0)), 1 - sigma, captions, return_dict=False)[0]
    velocity = -torch.stack(answers).squeeze(2)
    errors = ((velocity - (noise - clean)) ** 2 * places).mean(dim=(1, 2, 3))
    if params.loss_weight == "cosmap":
        errors = errors * 2 / (torch.pi * (1 - 2 * sigma + 2 * sigma**2))
    loss = errors.mean()
    gradients = torch.autograd.grad(loss, list(trained.values()))
    return float(loss.detach()), dict(zip(trained, gradients, strict=True))


def _raw(
    encoded: Path, prepared: Run, step: Step, chance: StepNoise, face_weight: float
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Clean latents, unpadded captions and place weights straight from the files of encode."""
    latents, texts, masks = (load_file(encoded / f"{name}.safetensors") for name in ("latents", "texts", "masks"))
    items = [prepared.dataset.items[item] for item in step.items]
    mean, std = (torch.stack([latents[f"{item.item}.{part}"].double() for item in items]) for part in ("mean", "std"))
    places = []
    for item in items:
        mask = masks[item.item].double() if item.mask else torch.zeros(mean.shape[2:], dtype=torch.float64)
        weights = 1 + (face_weight - 1) * mask
        places.append((weights / weights.mean())[None])
    captions = [texts[prepared.dataset.texts[text].text].double() for text in step.texts]
    return mean + std * chance.spread.double(), captions, torch.stack(places)
