"""The adapters: peft's own, in one vector."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from lycoris.modules.lokr import LokrModule
from peft import get_peft_model_state_dict
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from torch import nn

from tests.tiny_base import tiny_transformer
from tests.training.recipe import recipe
from zimage.core.errors import InputError
from zimage.lora.files.modules import is_module
from zimage.lora.files.portable import Decomposed, Kronecker
from zimage.model.denoiser import Denoiser
from zimage.model.fast import lokr as lokr_module
from zimage.model.fast.linear import ADAPTER, LoraFactors, projection_of
from zimage.model.fast.weight_formats import quantizer_of
from zimage.training.adapters import Adapters, inject, module_names
from zimage.training.optimiser import Optimiser
from zimage.training.params import Adapter, LokrParams, OptimiserParams, Target


def _adapted(
    targets: list[Target], *, rank: int = 4, dtype: torch.dtype = torch.float32, adapter: Adapter = "lora"
) -> tuple[ZImageTransformer2DModel, Denoiser, Adapters]:
    transformer = tiny_transformer()
    lokr = LokrParams(factor=4, full_matrix=False, alpha=4.0)
    generator = torch.Generator().manual_seed(0)
    inject(transformer, targets, rank=rank, dropout=0.0, generator=generator, adapter=adapter, lokr=lokr)
    denoiser = Denoiser(transformer, dtype=dtype, stream=torch.float32)
    return transformer, denoiser, Adapters(denoiser, module_names(transformer))


@pytest.mark.parametrize("target", get_args(Target))
def test_every_target_finds_layers_that_a_lora_file_can_name(target: Target) -> None:
    _, _, adapters = _adapted([target])
    names = adapters.weights(adapters.values)
    assert names and all(is_module(name) for name in names)


def test_the_default_targets_are_all_linear_layers_of_the_main_blocks_but_their_modulation() -> None:
    transformer, _, adapters = _adapted(["attention", "feed_forward"])
    expected = {
        name
        for name, module in transformer.named_modules()
        if name.startswith("layers.") and isinstance(module, LoraLayer)
    }
    assert set(adapters.weights(adapters.values)) == expected
    assert len(expected) == 2 * 7


def test_pefts_own_state_is_what_is_trained() -> None:
    transformer, _, adapters = _adapted(["attention", "image_embedder"])
    adapters.values.copy_(torch.randn(len(adapters.values)))
    state = get_peft_model_state_dict(transformer)
    factors = adapters.weights(adapters.values)
    assert len(state) == 2 * len(factors)
    for name, (down, up) in factors.items():
        assert torch.equal(state[f"{name}.lora_A.weight"], down)
        assert torch.equal(state[f"{name}.lora_B.weight"], up)


def test_a_new_adapter_changes_nothing_and_is_drawn_as_peft_draws() -> None:
    _, _, adapters = _adapted(["feed_forward"], rank=16)
    for down, up in adapters.weights(adapters.values).values():
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
        name="adamw",
        learning_rate=0.01,
        lora_plus_ratio=4.0,
        betas=[0.9, 0.99],
        weight_decay=0.1,
        clip_norm=0.5,
        ema_decay=0.0,
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


def test_no_layer_is_changed_by_more_than_the_limit_and_smaller_changes_stay_as_they_are() -> None:
    transformer, _, adapters = _adapted(["attention", "feed_forward"])
    params = recipe(optimiser={"learning_rate": 0.1, "max_layer_norm": 2.0, "ema_decay": 0.0}).optimiser
    limited, generator = Optimiser(adapters, params), torch.Generator().manual_seed(0)
    norms: list[float] = []
    for number in range(6):
        adapters.gradient.copy_(torch.randn(len(adapters.values), generator=generator))
        limited.step(1.0, number)
        loras = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
        norms = [float(lora.get_delta_weight(ADAPTER).detach().norm()) for lora in loras]
        assert max(norms) <= 2.0 * (1 + 1e-5)
    assert max(norms) > 2.0 * (1 - 1e-5)

    before = adapters.values.clone()
    adapters.limit_changes(2.1)
    assert torch.equal(adapters.values, before)


@pytest.mark.parametrize(("adapter", "name"), [("lokr", "adamw"), ("dora", "adamw"), ("lora", "schedule_free")])
def test_a_limit_of_changes_is_refused_where_it_would_not_hold(adapter: Adapter, name: str) -> None:
    _, _, adapters = _adapted(["attention"], adapter=adapter)
    with pytest.raises(InputError, match="max_layer_norm"):
        Optimiser(adapters, recipe(optimiser={"name": name, "max_layer_norm": 1.0}).optimiser)


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
        (
            LoraConfig(r=4, target_modules=r"layers\.\d\.adaLN_modulation\.0", lora_bias=True),
            "Only one plain LoRA .* no bias",
        ),
        (
            LoraConfig(r=4, target_modules=["to_q"], lora_dropout=0.1, use_dora=True),
            "Only one plain DoRA .* no dropout",
        ),
        (LoraConfig(r=4, target_modules=["to_q", "to_k"], rank_pattern={"to_q": 2}, use_dora=True), "LoRA scales"),
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
            adapters.gradient.zero_()
            (found * weights).sum().backward()
            own = [x.grad, projection.lora.down.grad, projection.lora.up.grad]
            theirs = [member.lora_A.default.weight for member in layers]
            theirs += [member.lora_B.default.weight for member in layers]
            dx, *rest = torch.autograd.grad((expected * weights).sum(), [x, *theirs])
            assert _relative(own[0], dx) < 1e-6
            assert _relative(own[1], torch.cat(rest[: len(layers)])) < 1e-6
            assert _relative(own[2], torch.cat(rest[len(layers) :])) < 1e-6
            x.grad = None


def test_gradients_of_several_passes_are_added_where_the_optimiser_reads_them() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _, denoiser, adapters = _adapted(["attention", "feed_forward"], dtype=dtype)
        adapters.values.copy_(0.2 * torch.randn(len(adapters.values), generator=torch.Generator().manual_seed(1)))
        adapters.cast(dtype)
        projection, lora = denoiser.layers[1].qkv, denoiser.layers[1].qkv.lora
        assert isinstance(lora, LoraFactors)
        for rows in (3, 300):
            x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(2)).to(dtype)
            places, lora.gradients = lora.gradients, None
            down, up = torch.autograd.grad(projection(x).sum(), [lora.down, lora.up])
            lora.gradients = places
            adapters.gradient.zero_()
            for _ in range(2):
                projection(x).sum().backward()
            assert lora.down.grad is not None and torch.equal(lora.down.grad, 2 * down)
            assert lora.up.grad is not None and torch.equal(lora.up.grad, 2 * up)


def _relative(found: torch.Tensor | None, expected: torch.Tensor) -> float:
    assert found is not None
    return float((found - expected).detach().norm() / expected.detach().norm())


def test_each_way_back_of_cast_adapters_adds_in_its_own_stream() -> None:
    """A node that outlives its step keeps that step's stream, and autograd refuses to record a graph across it."""
    _, denoiser, adapters = _adapted(["attention", "feed_forward"])

    def node_of_the_sum() -> torch.autograd.graph.Node:
        adapters.cast_for_compile(torch.bfloat16)
        low = denoiser.loras()[0].low
        assert low is not None
        node = low[0].grad_fn
        while node is not None and "AccumulateGrad" not in node.name():
            node = node.next_functions[0][0]
        assert node is not None
        return node

    node_of_the_sum().metadata["step"] = 0
    assert "step" not in node_of_the_sum().metadata


def lokr_params(*, factor: int = 8, full_matrix: bool = False, alpha: float = 4.0) -> LokrParams:
    return LokrParams(factor=factor, full_matrix=full_matrix, alpha=alpha)


def _with_lokr(
    params: LokrParams, *, rank: int = 2, targets: Sequence[Target] = ("attention", "feed_forward")
) -> tuple[ZImageTransformer2DModel, Denoiser, Adapters]:
    transformer = tiny_transformer()
    generator = torch.Generator().manual_seed(0)
    inject(transformer, targets, rank=rank, dropout=0.0, generator=generator, adapter="lokr", lokr=params)
    denoiser = Denoiser(transformer, dtype=torch.float32, stream=torch.float32)
    return transformer, denoiser, Adapters(denoiser, module_names(transformer))


@pytest.mark.parametrize("full_matrix", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_a_lokr_and_its_gradients_are_lycoris_own_in_float64(
    full_matrix: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of layers that share an input and of one alone, with the change written out and as two products."""
    monkeypatch.setattr(lokr_module, "WRITTEN_OUT_ELEMENTS", 2**16 if seed % 2 else 0)
    # A factor that is the smaller one of both: of others LyCORIS's w1 is the smaller matrix and peft's is not.
    transformer, denoiser, adapters = _with_lokr(lokr_params(factor=4, full_matrix=full_matrix, alpha=6.0))
    generator = torch.Generator().manual_seed(seed)
    adapters.values.copy_(0.3 * torch.randn(len(adapters.values), generator=generator))
    block, module = denoiser.layers[1], transformer.layers[1]
    for projection, layers in (
        (block.qkv, [module.attention.to_q, module.attention.to_k, module.attention.to_v]),
        (block.w2, [module.feed_forward.w2]),
    ):
        x = torch.randn(5, layers[0].get_base_layer().in_features, generator=generator)
        theirs = [_by_lycoris(layer, full_matrix=full_matrix) for layer in layers]
        expected = torch.cat([each(x.double()) for each in theirs], dim=-1)
        found = projection(x)
        assert _relative(found.double(), expected) < 1e-6
        weights = torch.randn(found.shape, generator=generator)
        adapters.gradient.zero_()
        (found * weights).sum().backward()
        (expected * weights.double()).sum().backward()
        assert isinstance(projection.lora, lokr_module.Lokr)
        assert projection.lora.down.grad is not None and projection.lora.up.grad is not None
        own = projection.lora.parts(projection.lora.down.grad, projection.lora.up.grad)
        for gradients, lycoris in zip(own, theirs, strict=True):
            assert gradients.keys() == {name for name, _ in lycoris.named_parameters() if name.startswith("lokr_")}
            for name, gradient in gradients.items():
                assert _relative(gradient.double(), getattr(lycoris, name).grad) < 1e-5


def _by_lycoris(layer: Any, *, full_matrix: bool) -> Any:
    """LyCORIS's module around the same layer with the same numbers, in float64."""
    base = layer.get_base_layer()
    plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None).double().requires_grad_(False)
    plain.load_state_dict({name: value.double() for name, value in base.state_dict().items()})
    module = LokrModule("lokr", plain, lora_dim=2, alpha=6.0, factor=4, full_matrix=full_matrix).double()
    module.apply_to()
    with torch.no_grad():
        for name in [name for name, _ in module.named_parameters() if name.startswith("lokr_")]:
            getattr(module, name).copy_(getattr(layer, name)["default"])
    return module


def test_a_new_lokr_changes_nothing_and_is_drawn_as_lycoris_draws() -> None:
    _, _, adapters = _with_lokr(lokr_params())
    for change in adapters.weights(adapters.values).values():
        assert isinstance(change, Kronecker) and change.parts is not None
        assert not change.right.any() and change.parts.keys() == {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}
        for name in ("lokr_w1", "lokr_w2_a"):
            matrix, scale = change.parts[name], 2.0 if name == "lokr_w1" else 1.0
            bound = scale * matrix.shape[1] ** -0.5
            assert 0.5 * bound < float(matrix.abs().max()) <= bound


@pytest.mark.parametrize("full_matrix", [False, True])
def test_pefts_own_state_is_the_lokr_that_is_trained(full_matrix: bool) -> None:
    transformer, _, adapters = _with_lokr(lokr_params(full_matrix=full_matrix, alpha=2.0))
    adapters.values.copy_(torch.randn(len(adapters.values)))
    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, LoKrLayer)}
    changes = adapters.weights(adapters.values)
    assert layers.keys() == changes.keys() and len(layers) == 2 * 7
    for name, change in changes.items():
        assert isinstance(change, Kronecker)
        delta = layers[name].get_delta_weight("default")
        torch.testing.assert_close(torch.kron(change.left, change.right.float()), delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_dora_changes_nothing_and_has_the_lengths_of_the_rows(dtype: torch.dtype) -> None:
    transformer, denoiser, adapters = _with_dora(dtype)
    layers = dict(transformer.named_modules())
    weights = adapters.weights(adapters.values)
    assert len(weights) == 2 * 7
    for name, dora in weights.items():
        assert isinstance(dora, Decomposed) and dora.factors.down.any() and not dora.factors.up.any()
        lengths = layers[name].get_base_layer().weight.norm(dim=1)
        torch.testing.assert_close(dora.magnitude, lengths)
        torch.testing.assert_close(dora.comfyui[:, 0], lengths)
    projection, x = denoiser.layers[0].qkv, torch.randn(9, 48, dtype=dtype)
    with torch.no_grad():
        changed, projection.adapted = projection(x), False
        assert torch.equal(changed, projection(x)) or dtype is torch.float32
        torch.testing.assert_close(changed, projection(x))


def test_pefts_own_layers_are_the_dora_that_is_trained() -> None:
    transformer, denoiser, adapters = _with_dora()
    adapters.values.add_(0.2 * torch.randn(len(adapters.values), generator=torch.Generator().manual_seed(0)))
    block, module = denoiser.layers[1], transformer.layers[1]
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))
    attention = [module.attention.to_q, module.attention.to_k, module.attention.to_v]
    with torch.no_grad():
        expected = torch.cat([layer(x) for layer in attention], dim=-1)
        assert _relative(block.qkv(x).double(), expected.double()) < 1e-6
        for layer, name in zip(attention, ("to_q", "to_k", "to_v"), strict=True):
            dora = adapters.weights(adapters.values)[f"layers.1.attention.{name}"]
            assert isinstance(dora, Decomposed)
            weight = layer.get_base_layer().weight
            change = layer(torch.eye(48)).T - weight  # peft's way to count lengths and ComfyUI's give the same weight
            torch.testing.assert_close(dora.added_to(weight).float(), change, rtol=1e-4, atol=1e-6)


def _with_dora(dtype: torch.dtype = torch.float32) -> tuple[ZImageTransformer2DModel, Denoiser, Adapters]:
    transformer = tiny_transformer()
    generator = torch.Generator().manual_seed(0)
    inject(transformer, ["attention", "feed_forward"], rank=2, dropout=0.0, generator=generator, adapter="dora")
    denoiser = Denoiser(transformer, dtype=dtype, stream=torch.float32)
    return transformer, denoiser, Adapters(denoiser, module_names(transformer))


def test_a_factor_that_diffusers_could_not_find_again_is_refused() -> None:
    with pytest.raises(InputError, match="set it to 8, 16 or -1"):
        _with_lokr(lokr_params(factor=9), targets=["attention", "feed_forward", "time_embedder", "final_layer"])
    with pytest.raises(ValueError, match="a factor is 2 or more"):
        lokr_params(factor=0)


def test_a_lokr_in_another_form_than_is_trained_here_is_refused() -> None:
    from peft import LoKrConfig, inject_adapter_in_model

    keep = quantizer_of("none", dtype=torch.float32, device=torch.device("cpu"))
    for config in (
        LoKrConfig(r=1, alpha=1, decompose_both=True, decompose_factor=8, target_modules=["to_q"]),
        LoKrConfig(r=1, alpha=1, rank_dropout=0.5, target_modules=["to_q"]),
    ):
        transformer = tiny_transformer()
        inject_adapter_in_model(config, transformer)
        with pytest.raises(ValueError, match="w1 whole, no dropout"):
            projection_of([transformer.layers[0].attention.to_q], keep)
