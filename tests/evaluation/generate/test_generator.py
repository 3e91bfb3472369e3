from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation.tiny_lora import write_tiny_lokr, write_tiny_lora
from tests.live_bytes import Crossings
from tests.tiny_base import TEXT_WIDTH, whole_pipeline
from zimage.core.errors import InputError
from zimage.evaluation.generate.generator import FusingLoader, Generator, open_studio
from zimage.evaluation.generate.image_cache import Request, Sampling
from zimage.lora.files.portable import kronecker_of, save_portable
from zimage.model.base import Base, open_pipeline
from zimage.model.device import use_one_thread_on_a_cpu
from zimage.model.memory import footprint_of
from zimage.model.text import embed

SAMPLING = Sampling(side_px=64, steps=3, guidance_scale=0.0)
NEAR, FAR = "a photo of a woman, near", "a photo of a woman, far away, at the end of a very long road with many trees"


@pytest.fixture(scope="module")
def pipeline(tiny_base: Base) -> Any:
    return whole_pipeline(tiny_base)


def generator(pipeline: Any, sampling: Sampling = SAMPLING) -> Generator:
    prompts = [NEAR, FAR, ""]
    states = embed(pipeline.tokenizer, pipeline.text_encoder, prompts, torch.device("cpu"))
    return Generator(pipeline, dict(zip(prompts, states, strict=True)), sampling, batch_size=4)


def asked(text: str = NEAR, seed: int = 0, lora: Path | None = None, strength: float = 0.0) -> Request:
    return Request("near" if text == NEAR else "far", text, seed, lora, strength)


def shoot(pipeline: Any, *requests: Request, sampling: Sampling = SAMPLING) -> list[np.ndarray[Any, Any]]:
    pictures = dict(generator(pipeline, sampling).pictures(requests))
    return [pictures[request].astype(int) for request in requests]


@pytest.mark.parametrize("guidance_scale", [0.0, 2.5])
def test_a_picture_is_the_one_that_diffusers_makes_of_the_same_prompt_and_noise(
    pipeline: Any, guidance_scale: float
) -> None:
    request = asked(FAR)
    noise = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(request.noise_seed))
    expected = pipeline(
        FAR, height=64, width=64, num_inference_steps=3, guidance_scale=guidance_scale, latents=noise, output_type="np"
    ).images[0]
    (picture,) = shoot(pipeline, request, sampling=Sampling(64, 3, guidance_scale))
    assert np.abs(picture - expected * 255).max() <= 1


def test_a_picture_does_not_depend_on_what_else_is_in_its_batch(pipeline: Any) -> None:
    requests = [asked(NEAR, seed) for seed in range(3)] + [asked(FAR, seed) for seed in range(2)]
    together = shoot(pipeline, *requests)
    for request, picture in zip(requests, together, strict=True):
        assert np.abs(shoot(pipeline, request)[0] - picture).max() <= 1


def test_prompts_and_seeds_have_noise_of_their_own_and_loras_share_it() -> None:
    seeds = {asked(text, seed).noise_seed for text in (NEAR, FAR) for seed in range(4)}
    assert len(seeds) == 8
    assert asked(NEAR, 1, Path("a"), 0.5).noise_seed == asked(NEAR, 1).noise_seed


@pytest.mark.parametrize("write", [write_tiny_lora, write_tiny_lokr])
def test_a_lora_at_strength_0_draws_the_base_models_pictures_and_at_1_others(
    write: Callable[..., Path], pipeline: Any, tmp_path: Path
) -> None:
    lora = write(tmp_path / "lora.safetensors", seed=1)
    base, at_0, at_half, at_1 = shoot(
        pipeline, asked(), *(asked(lora=lora, strength=strength) for strength in (0.0, 0.5, 1.0))
    )
    assert np.array_equal(base, at_0)
    assert 0 < np.abs(at_half - base).mean() < np.abs(at_1 - base).mean()


@pytest.mark.parametrize("write", [write_tiny_lora, write_tiny_lokr])
def test_a_lora_that_is_added_to_float32_weights_draws_the_same_and_leaves_no_trace(
    write: Callable[..., Path], pipeline: Any, tmp_path: Path
) -> None:
    first, second = write(tmp_path / "1.safetensors", seed=1), write_tiny_lora(tmp_path / "2.safetensors", seed=2)
    worn = [(first, 0.5), (first, 1.0), (second, 1.0)]
    requests = [asked(), *(asked(lora=lora, strength=strength) for lora, strength in worn)]
    apart = shoot(pipeline, *requests)
    before = {name: each.clone() for name, each in pipeline.transformer.named_parameters()}
    states = embed(pipeline.tokenizer, pipeline.text_encoder, [NEAR], torch.device("cpu"))
    fused = Generator(pipeline, {NEAR: states[0]}, SAMPLING, batch_size=4, loader=FusingLoader())
    pictures = dict(fused.pictures([*requests[1:], requests[0]]))
    for request, expected in zip(requests, apart, strict=True):
        assert np.abs(pictures[request].astype(int) - expected).max() <= 1
    assert np.array_equal(pictures[requests[0]], apart[0])
    after = dict(pipeline.transformer.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[name], each) for name, each in before.items())


@pytest.mark.parametrize("write", [write_tiny_lora, write_tiny_lokr])
def test_loras_are_worn_one_at_a_time_and_taken_off_afterwards(
    write: Callable[..., Path], pipeline: Any, tmp_path: Path
) -> None:
    first, second = write(tmp_path / "1.safetensors", seed=1), write_tiny_lora(tmp_path / "2.safetensors", seed=2)
    alone = shoot(pipeline, asked(lora=second, strength=1.0))[0]
    both = shoot(pipeline, asked(lora=first, strength=1.0), asked(lora=second, strength=1.0))
    assert np.array_equal(both[1], alone) and not np.array_equal(both[0], alone)
    assert np.array_equal(shoot(pipeline, asked())[0], shoot(pipeline, asked())[0])
    assert not any("lora" in name or "lokr" in name for name, _ in pipeline.transformer.named_parameters())


def test_processes_that_share_the_pictures_change_no_bit_of_any(pipeline: Any, tmp_path: Path) -> None:
    first, second = (write_tiny_lora(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    worn = [(None, 0.0), (first, 0.5), (first, 1.0), (second, 1.0)]
    requests = [asked(NEAR, seed, lora, strength) for seed in range(3) for lora, strength in worn]
    use_one_thread_on_a_cpu()
    states = embed(pipeline.tokenizer, pipeline.text_encoder, [NEAR], torch.device("cpu"))
    alone, shared = (
        list(Generator(pipeline, {NEAR: states[0]}, SAMPLING, batch_size=2, processes=count).pictures(requests))
        for count in (1, 3)
    )
    assert [request for request, _ in shared] == [request for request, _ in alone]
    assert all(np.array_equal(found, wanted) for (_, found), (_, wanted) in zip(shared, alone, strict=True))
    assert not any("lora" in name for name, _ in pipeline.transformer.named_parameters())


def test_a_lora_that_does_not_fit_is_refused_also_where_another_process_wears_it(pipeline: Any, tmp_path: Path) -> None:
    lora = write_tiny_lora(tmp_path / "wide.safetensors", seed=1, width=96)
    shared = Generator(pipeline, {NEAR: torch.ones(7, TEXT_WIDTH)}, SAMPLING, batch_size=1, processes=2)
    with pytest.raises(InputError, match="train it again"):
        list(shared.pictures([asked(seed=seed, lora=lora, strength=1.0) for seed in range(2)]))


def test_travelling_blocks_change_no_bit_of_a_picture_with_and_without_loras(
    pipeline: Any, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (write_tiny_lora(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    worn = [(first, 0.5), (first, 1.0), (second, 1.0)]
    requests = [asked(), asked(FAR), *(asked(lora=lora, strength=strength) for lora, strength in worn)]
    guided = Sampling(64, 3, 2.5)
    expected = shoot(pipeline, *requests, sampling=guided)
    travelling = open_pipeline(Path(tiny_base.model), device="cpu", dtype=torch.float32, travelling=True)
    travelling.tokenizer, travelling.text_encoder = pipeline.tokenizer, pipeline.text_encoder
    crossings = Crossings(monkeypatch)
    for found, wanted in zip(shoot(travelling, *requests, sampling=guided), expected, strict=True):
        assert np.array_equal(found, wanted)
    assert crossings.count > 0
    assert np.array_equal(shoot(travelling, asked(), sampling=guided)[0], expected[0])


def test_of_travelling_blocks_one_is_there_at_a_time(
    pipeline: Any, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a second one crosses meanwhile: that is what streams are for."""
    travelling = open_pipeline(Path(tiny_base.model), device="cpu", dtype=torch.bfloat16, travelling=True)
    crossings = Crossings(monkeypatch)
    states = torch.ones(7, TEXT_WIDTH, dtype=torch.bfloat16)
    list(Generator(travelling, {NEAR: states}, SAMPLING, batch_size=1).pictures([asked()]))
    weights = footprint_of(Path(tiny_base.model))
    outside_gb = weights.transformer_gb - weights.blocks_gb
    assert weights.block_gb < crossings.most / 1e9 <= outside_gb + weights.block_gb + 1e-9


def test_a_studio_has_read_all_its_prompts_and_draws_what_the_whole_pipeline_draws(
    pipeline: Any, tiny_base: Base
) -> None:
    guided = Sampling(64, 3, 2.5)
    opened = open_studio(tiny_base, guided, [NEAR, FAR, NEAR], adapters_gb=0.0, dtype=torch.float32)
    requests = [asked(NEAR), asked(FAR)]
    found = dict(opened.pictures(requests))
    for request, wanted in zip(requests, shoot(pipeline, *requests, sampling=guided), strict=True):
        assert np.abs(found[request].astype(int) - wanted).max() <= 1


def test_a_lora_for_another_width_is_refused_with_the_remedy(pipeline: Any, tmp_path: Path) -> None:
    lora = write_tiny_lora(tmp_path / "wide.safetensors", seed=1, width=96)
    with pytest.raises(InputError, match="train it again"):
        shoot(pipeline, asked(lora=lora, strength=1.0))


def test_a_lokr_for_another_width_is_refused_with_the_remedy(pipeline: Any, tmp_path: Path) -> None:
    matrices = {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(24, 24)}
    wide = {"layers.0.attention.to_q": kronecker_of(matrices)}
    save_portable(tmp_path / "wide.safetensors", wide, metadata={})
    with pytest.raises(InputError, match="train it again"):
        shoot(pipeline, asked(lora=tmp_path / "wide.safetensors", strength=1.0))


def test_a_lora_whose_layers_the_model_lacks_is_refused(pipeline: Any, tmp_path: Path) -> None:
    lora = write_tiny_lora(tmp_path / "deep.safetensors", seed=1)
    from safetensors.torch import load_file, save_file

    weights = {name.replace("layers.1.", "layers.9."): value for name, value in load_file(lora).items()}
    save_file(weights, lora)
    with pytest.raises(InputError, match=r"Only 4 of the 8 layers|cannot be loaded"):
        shoot(pipeline, asked(lora=lora, strength=1.0))
