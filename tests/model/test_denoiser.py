"""The batched transformer against diffusers' own, in outputs and in gradients of every adapter."""

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from tests.tiny_base import TEXT_WIDTH, tiny_transformer
from zimage.model.denoiser import Denoiser
from zimage.model.sequence import padded

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("w1", "w2", "w3")
TARGETS = {
    "attention": (("layers.",), ATTENTION),
    "attention and feed-forward": (("layers.",), ATTENTION + FEED_FORWARD),
    "keys only": (("layers.",), ("to_k",)),
    "modulation": (("layers.",), ("adaLN_modulation.0",)),
    "noise refiner": (("noise_refiner.",), ATTENTION + FEED_FORWARD),
    "context refiner": (("context_refiner.",), ATTENTION + FEED_FORWARD),
    "embedders": (("t_embedder", "cap_embedder", "all_x_embedder"), ("",)),
    "ends": (("all_x_embedder", "all_final_layer"), ("",)),
    "all": (("",), ("",)),
}
SIZES = {"32 tokens": (8, 16), "padded image": (6, 10)}
LENGTHS = {"one padded length": (5, 32, 20), "no pads": (32, 32, 32), "two refills": (40, 64, 33)}


@pytest.mark.parametrize("targets", TARGETS)
def test_velocity_and_adapter_gradients_equal_those_of_diffusers_in_float64(targets: str) -> None:
    transformer = _adapted(tiny_transformer(), targets)
    batch = _Batch(SIZES["padded image"], LENGTHS["one padded length"])
    expected, gradients = _reference(transformer, batch)
    found, own = _ours(transformer, batch)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert _relative(own[name].double(), gradient) < 1e-5, name


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("size", SIZES)
def test_padding_and_positions_are_those_of_inference(size: str, lengths: str) -> None:
    transformer = _adapted(tiny_transformer(), "attention and feed-forward")
    batch = _Batch(SIZES[size], LENGTHS[lengths])
    expected, gradients = _reference(transformer, batch)
    found, own = _ours(transformer, batch)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert max(_relative(own[name].double(), gradient) for name, gradient in gradients.items()) < 1e-5


def test_what_stands_in_a_captions_pads_does_not_matter() -> None:
    denoiser = Denoiser(tiny_transformer(), dtype=torch.float32, stream=torch.float32)
    features, lengths = torch.randn(2, 32, TEXT_WIDTH), torch.tensor([7, 30])
    other = features.clone()
    other[0, 7:] = 99.0
    assert torch.equal(denoiser.refine(features, lengths), denoiser.refine(other, lengths))


def test_without_its_adapters_it_is_the_base_model() -> None:
    base = tiny_transformer()
    batch = _Batch(SIZES["32 tokens"], LENGTHS["no pads"])
    expected = _velocity(base, batch)
    denoiser = Denoiser(_adapted(base, "all"), dtype=torch.float32, stream=torch.float32)
    with denoiser.without_adapters(), torch.no_grad():
        found = denoiser.velocity(batch.latents, batch.sigma, denoiser.refine(batch.features, batch.lengths))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        adapted = denoiser.velocity(batch.latents, batch.sigma, denoiser.refine(batch.features, batch.lengths))
    assert not torch.allclose(adapted, expected, atol=1e-2)


def test_a_refined_caption_is_fixed_unless_an_adapter_sits_before_it() -> None:
    for targets, fixed in (("attention", True), ("noise refiner", True), ("context refiner", False), ("all", False)):
        denoiser = Denoiser(_adapted(tiny_transformer(), targets), dtype=torch.float32, stream=torch.float32)
        assert denoiser.context_is_fixed is fixed, targets


def test_in_bfloat16_it_stays_near_float32() -> None:
    transformer = _adapted(tiny_transformer(), "attention and feed-forward")
    batch = _Batch(SIZES["32 tokens"], LENGTHS["one padded length"])
    exact, _ = _ours(transformer, batch)
    for stream in (torch.float32, torch.bfloat16):
        rough, _ = _ours(transformer, batch, dtype=torch.bfloat16, stream=stream)
        assert _relative(rough, exact) < 0.03


class _Batch:
    def __init__(self, size: tuple[int, int], lengths: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(1)
        self.latents = torch.randn((len(lengths), 16, *size), generator=generator)
        self.sigma = torch.rand(len(lengths), generator=generator)
        self.captions = [torch.randn((length, TEXT_WIDTH), generator=generator) for length in lengths]
        self.weights = torch.randn(self.latents.shape, generator=generator)
        self.lengths = torch.tensor(lengths)
        self.features = torch.zeros(len(lengths), padded(max(lengths)), TEXT_WIDTH)
        for row, caption in zip(self.features, self.captions, strict=True):
            row[: len(caption)] = caption


def _adapted(transformer: ZImageTransformer2DModel, targets: str) -> ZImageTransformer2DModel:
    starts, ends = TARGETS[targets]
    names = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(starts) and name.endswith(ends)
    ]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=names, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        inject_adapter_in_model(config, transformer.requires_grad_(False))
    return transformer


def _velocity(transformer: ZImageTransformer2DModel, batch: _Batch) -> Tensor:
    """As ZImagePipeline asks for it: lists in, negated out."""
    images, captions = list(batch.latents.unsqueeze(2).unbind(0)), batch.captions
    if transformer.dtype is torch.float64:
        images, captions = [image.double() for image in images], [caption.double() for caption in captions]
    time = (1 - batch.sigma).to(transformer.dtype)
    return -torch.stack(transformer(images, time, captions, return_dict=False)[0]).squeeze(2)


def _reference(transformer: ZImageTransformer2DModel, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Velocity and gradients of peft's own modules inside diffusers' own transformer, in float64."""
    transformer.double()
    velocity = _velocity(transformer, batch)
    trained = {name: parameter for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad((velocity * batch.weights).sum(), list(trained.values()))
    transformer.float()
    return velocity.detach(), dict(zip(trained, gradients, strict=True))


def _ours(
    transformer: ZImageTransformer2DModel,
    batch: _Batch,
    *,
    dtype: torch.dtype = torch.float32,
    stream: torch.dtype = torch.float32,
) -> tuple[Tensor, dict[str, Tensor]]:
    denoiser = Denoiser(transformer, dtype=dtype, stream=stream)
    velocity = denoiser.velocity(batch.latents, batch.sigma, denoiser.refine(batch.features, batch.lengths))
    (velocity * batch.weights).sum().backward()
    names = {id(module): name for name, module in transformer.named_modules()}
    gradients = {}
    for lora in denoiser.loras():
        sizes = [rows.stop - rows.start for rows in lora.rows]
        assert lora.down.grad is not None and lora.up.grad is not None
        for member, down, up in zip(
            lora.members, lora.down.grad.split(lora.rank), lora.up.grad.split(sizes), strict=True
        ):
            gradients[f"{names[id(member)]}.lora_A.default.weight"] = down
            gradients[f"{names[id(member)]}.lora_B.default.weight"] = up
    return velocity.detach(), gradients


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
