"""The adapters: peft's own, in one vector."""

from typing import get_args

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from tests.tiny_base import tiny_transformer
from tests.training.recipe import recipe
from zimage.lora.modules import is_module
from zimage.model.denoiser import Denoiser
from zimage.training.adapters import Adapters, inject, module_names
from zimage.training.optimiser import Optimiser
from zimage.training.params import OptimiserParams, Target


def _adapted(targets: list[Target], *, rank: int = 4) -> tuple[ZImageTransformer2DModel, Denoiser, Adapters]:
    transformer = tiny_transformer()
    inject(transformer, targets, rank=rank, dropout=0.0, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(transformer, dtype=torch.float32, stream=torch.float32)
    return transformer, denoiser, Adapters(denoiser, module_names(transformer))


@pytest.mark.parametrize("target", get_args(Target))
def test_every_target_finds_layers_that_a_lora_file_can_name(target: Target) -> None:
    _, _, adapters = _adapted([target])
    names = adapters.factors(adapters.values)
    assert names and all(is_module(name) for name in names)


def test_the_default_targets_are_all_linear_layers_of_the_main_blocks_but_their_modulation() -> None:
    transformer, _, adapters = _adapted(["attention", "feed_forward"])
    expected = {
        name
        for name, module in transformer.named_modules()
        if name.startswith("layers.") and isinstance(module, LoraLayer)
    }
    assert set(adapters.factors(adapters.values)) == expected
    assert len(expected) == 2 * 7


def test_pefts_own_state_is_what_is_trained() -> None:
    transformer, _, adapters = _adapted(["attention", "image_embedder"])
    adapters.values.copy_(torch.randn(len(adapters.values)))
    state = get_peft_model_state_dict(transformer)
    factors = adapters.factors(adapters.values)
    assert len(state) == 2 * len(factors)
    for name, (down, up) in factors.items():
        assert torch.equal(state[f"{name}.lora_A.weight"], down)
        assert torch.equal(state[f"{name}.lora_B.weight"], up)


def test_a_new_adapter_changes_nothing_and_is_drawn_as_peft_draws() -> None:
    _, _, adapters = _adapted(["feed_forward"], rank=16)
    for down, up in adapters.factors(adapters.values).values():
        assert not up.any()
        bound = down.shape[1] ** -0.5
        assert 0.95 * bound < float(down.abs().max()) <= bound
        assert abs(float(down.std()) / (bound / 3**0.5) - 1) < 0.1


def test_adapters_are_float32_also_beside_weights_in_bfloat16() -> None:
    transformer = tiny_transformer().bfloat16()
    inject(transformer, ["attention"], rank=4, dropout=0.0, generator=torch.Generator())
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    assert trained and {parameter.dtype for parameter in trained} == {torch.float32}


def test_the_optimiser_is_adamw_with_clipping_and_two_rates() -> None:
    params = OptimiserParams(
        learning_rate=0.01, up_rate=4.0, betas=[0.9, 0.99], weight_decay=0.1, clip_norm=0.5, ema_decay=0.0
    )
    _, _, adapters = _adapted(["attention"])
    optimiser = Optimiser(adapters, params)
    down, up = (adapters.values[: adapters.num_down].clone(), adapters.values[adapters.num_down :].clone())
    plain = [torch.nn.Parameter(down), torch.nn.Parameter(up)]
    groups = [{"params": [plain[0]], "lr": 0.005}, {"params": [plain[1]], "lr": 0.02}]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.1, foreach=False, fused=False)
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        gradient = torch.randn(len(adapters.values), generator=generator)
        adapters.gradient.copy_(gradient)
        norm = optimiser.step(0.5, number)
        plain[0].grad, plain[1].grad = gradient[: len(down)].clone(), gradient[len(down) :].clone()
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(plain, 0.5))
        reference.step()
    torch.testing.assert_close(adapters.values, torch.cat([half.detach() for half in plain]), rtol=1e-6, atol=1e-7)


def test_the_average_follows_the_values_and_becomes_the_result() -> None:
    _, _, adapters = _adapted(["attention"])
    params = recipe(optimiser={"ema_decay": 0.5, "learning_rate": 0.1}).optimiser
    optimiser = Optimiser(adapters, params)
    expected = adapters.values.clone()
    for number in range(20):
        adapters.gradient.normal_()
        optimiser.step(1.0, number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * adapters.values
    torch.testing.assert_close(optimiser.result, expected)
    assert not torch.equal(optimiser.result, adapters.values)


def test_dropout_thins_the_adapters_input_in_training_only() -> None:
    transformer = tiny_transformer()
    inject(transformer, ["attention"], rank=4, dropout=0.5, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(transformer, dtype=torch.float32, stream=torch.float32)
    adapters = Adapters(denoiser, module_names(transformer))
    adapters.values.copy_(torch.randn(len(adapters.values)))
    projection, x = denoiser.layers[0].out, torch.randn(2, 5, 48)
    torch.manual_seed(0)
    assert not torch.equal(projection(x), projection(x))
    with torch.no_grad():
        torch.testing.assert_close(projection(x), transformer.layers[0].attention.to_out[0].eval()(x))


def test_layers_that_share_an_input_need_plain_and_equal_adapters() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    for config, complaint in (
        (LoraConfig(r=4, target_modules=["to_q", "to_k"], rank_pattern={"to_q": 2}), "equal LoRA ranks"),
        (LoraConfig(r=4, target_modules=["to_q"], use_dora=True), "no DoRA"),
    ):
        transformer = tiny_transformer()
        inject_adapter_in_model(config, transformer)
        with pytest.raises(ValueError, match=complaint):
            Denoiser(transformer, dtype=torch.float32, stream=torch.float32)


def test_the_fused_path_equals_peft_to_a_millionth() -> None:
    transformer, denoiser, adapters = _adapted(["attention", "feed_forward"])
    adapters.values.copy_(0.2 * torch.randn(len(adapters.values), generator=torch.Generator().manual_seed(1)))
    block, module = denoiser.layers[1], transformer.layers[1]
    pairs = [
        (block.qkv, [module.attention.to_q, module.attention.to_k, module.attention.to_v]),
        (block.out, [module.attention.to_out[0]]),
        (block.w13, [module.feed_forward.w1, module.feed_forward.w3]),
    ]
    for rows in (3, 300):  # beside the weight, and merged into it
        x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(2), requires_grad=True)
        for projection, layers in pairs:
            assert projection.lora is not None
            found, expected = projection(x), torch.cat([layer(x) for layer in layers], dim=-1)
            weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
            assert _relative(found, expected) < 1e-6
            own = torch.autograd.grad((found * weights).sum(), [x, projection.lora.down, projection.lora.up])
            theirs = [member.lora_A.default.weight for member in layers]
            theirs += [member.lora_B.default.weight for member in layers]
            dx, *rest = torch.autograd.grad((expected * weights).sum(), [x, *theirs])
            assert _relative(own[0], dx) < 1e-6
            assert _relative(own[1], torch.cat(rest[: len(layers)])) < 1e-6
            assert _relative(own[2], torch.cat(rest[len(layers) :])) < 1e-6


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def test_each_way_back_of_cast_adapters_adds_in_its_own_stream() -> None:
    """A node that outlives its step keeps that step's stream, and autograd refuses to record a graph across it."""
    _, denoiser, adapters = _adapted(["attention", "feed_forward"])

    def node_of_the_sum() -> torch.autograd.graph.Node:
        adapters.cast(torch.bfloat16)
        low = denoiser.loras()[0].low
        assert low is not None
        node = low[0].grad_fn
        while node is not None and "AccumulateGrad" not in node.name():
            node = node.next_functions[0][0]
        assert node is not None
        return node

    node_of_the_sum().metadata["step"] = 0
    assert "step" not in node_of_the_sum().metadata
