from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.evaluation.generate.test_generator import FAR, NEAR, asked
from tests.evaluation.tiny_lora import write_tiny_lokr, write_tiny_lora
from tests.tiny_base import WIDTH, whole_pipeline
from zimage.evaluation.generate.denoiser_forward import DenoiserForward, DenoiserLoader
from zimage.evaluation.generate.generator import Generator, UnmergedLoader, open_studio
from zimage.evaluation.generate.image_cache import Request, Sampling
from zimage.lora.files.portable import Factors, decomposed_of, save_portable
from zimage.model.base import Base
from zimage.model.device import has_bfloat16_units
from zimage.model.text import embed

GUIDED = Sampling(side_px=64, steps=3, guidance_scale=2.5)
CPU = torch.device("cpu")


@pytest.fixture
def pipeline(tiny_base: Base) -> Any:
    return whole_pipeline(tiny_base)


@pytest.fixture(scope="module")
def texts(tiny_base: Base) -> dict[str, torch.Tensor]:
    """Of different padded lengths."""
    pipeline, prompts = whole_pipeline(tiny_base), [NEAR, FAR, ""]
    return dict(zip(prompts, embed(pipeline.tokenizer, pipeline.text_encoder, prompts, CPU), strict=True))


def pictures(
    pipeline: Any, texts: dict[str, torch.Tensor], requests: list[Request], loader: Any = None
) -> list[np.ndarray[Any, Any]]:
    found = dict(Generator(pipeline, texts, GUIDED, batch_size=4, loader=loader).pictures(requests))
    return [found[request].astype(int) for request in requests]


@pytest.mark.parametrize("write", [write_tiny_lora, write_tiny_lokr])
def test_in_float32_its_pictures_are_diffusers_with_each_lora_and_without(
    write: Callable[..., Path], pipeline: Any, texts: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    first, second = write(tmp_path / "1.safetensors", seed=1), write_tiny_lora(tmp_path / "2.safetensors", seed=2)
    worn = [(first, 0.5), (first, 1.0), (second, 1.0)]
    loras = [asked(text, 0, lora, strength) for lora, strength in worn for text in (NEAR, FAR)]
    requests = [asked(NEAR), asked(NEAR, 1), asked(FAR), *loras]
    expected = pictures(pipeline, texts, requests)

    loader = DenoiserLoader(UnmergedLoader(), pipeline.transformer)
    for order in (requests, requests[::-1]):
        for found, request in zip(pictures(pipeline, texts, order, loader), order, strict=True):
            assert np.abs(found - expected[requests.index(request)]).max() <= 1
    assert not any("lora" in name or "lokr" in name for name, _ in pipeline.transformer.named_parameters())


def test_in_bfloat16_it_is_as_near_to_float32_as_diffusers(
    pipeline: Any, texts: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    lora = write_tiny_lora(tmp_path / "1.safetensors", seed=1)
    requests = [asked(text, seed, lora, 1.0) for text in (NEAR, FAR) for seed in range(3)]
    exact = pictures(pipeline, texts, requests)
    low = {text: state.bfloat16() for text, state in texts.items()}
    pipeline.transformer.to(torch.bfloat16)
    of_diffusers = pictures(pipeline, low, requests)
    ours = pictures(pipeline, texts, requests, DenoiserLoader(UnmergedLoader(), pipeline.transformer))

    def error(found: list[np.ndarray[Any, Any]]) -> float:
        return float(np.mean([np.abs(one - other).mean() for one, other in zip(found, exact, strict=True)]))

    assert 0 < error(ours) <= 1.1 * error(of_diffusers)


def test_ranks_that_differ_in_one_input_are_left_to_diffusers(
    pipeline: Any, texts: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lora = write_tiny_lora(tmp_path / "1.safetensors", seed=1)
    weights = load_file(lora)
    name = next(name for name in weights if name.endswith("to_q.lora_A.weight"))
    weights[name] = weights[name][:1].contiguous()
    other = name.replace("lora_A", "lora_B")
    weights[other] = weights[other][:, :1].contiguous()
    save_file(weights, lora)
    requests = [asked(), asked(lora=lora, strength=1.0)]
    expected = pictures(pipeline, texts, requests)

    found = pictures(pipeline, texts, requests, DenoiserLoader(UnmergedLoader(), pipeline.transformer))

    assert np.array_equal(found[1], expected[1])
    assert np.abs(found[0] - expected[0]).max() <= 1
    assert "ranks" in caplog.text


def test_a_dora_is_left_to_diffusers_with_the_row_lengths_that_it_learned(
    pipeline: Any, texts: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(3)
    name, path = "layers.0.attention.to_q", tmp_path / "dora.safetensors"
    weight = pipeline.transformer.get_submodule(name).weight.detach().double()
    down, up = (0.15 * torch.randn(shape, generator=generator).double() for shape in ((4, WIDTH), (WIDTH, 4)))
    before, after = weight.norm(dim=1), (weight + up @ down).norm(dim=1)
    save_portable(path, {name: decomposed_of(Factors(down, up), 3 * before, before=before, after=after)}, metadata={})
    requests = [asked(), asked(lora=path, strength=1.0)]
    expected = pictures(pipeline, texts, requests)

    found = pictures(pipeline, texts, requests, DenoiserLoader(UnmergedLoader(), pipeline.transformer))

    assert np.abs(expected[1] - expected[0]).mean() > 1
    assert np.array_equal(found[1], expected[1])


@pytest.mark.skipif(not has_bfloat16_units(CPU), reason="this CPU has no bfloat16 units")
def test_a_studio_computes_by_it_where_a_cpu_has_bfloat16_units(tiny_base: Base) -> None:
    low, exact = (
        open_studio(tiny_base, GUIDED, [NEAR], adapters_gb=0.0, dtype=dtype) for dtype in (None, torch.float32)
    )

    assert isinstance(low._pipeline.transformer.forward, DenoiserForward)
    assert not isinstance(exact._pipeline.transformer.forward, DenoiserForward)
    (found, wanted) = (dict(studio.pictures([asked()]))[asked()].astype(int) for studio in (low, exact))
    assert 0 < np.abs(found - wanted).mean() < 2
