"""What reading a base takes of memory: counted on models of the released sizes without contents."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from peft import LoraConfig
from torch.nn import functional
from transformers import Qwen3Config

from tasks.workspace.subject import presets
from tests.live_bytes import LiveBytes
from zimage.model.base import Base, open_text_encoder, open_transformer, open_vae
from zimage.model.memory import (
    DECODING_BYTES,
    ENCODING_BYTES,
    PLACES,
    SAMPLING_STREAMS,
    USED_SHARE,
    Footprint,
    encoding_gb,
    fit,
    footprint_of,
    too_small_to_encode,
    too_small_to_sample,
)
from zimage.model.text import embed

CPU, META = torch.device("cpu"), torch.device("meta")
WIDTH = 3840


def _transformer(layers: int) -> ZImageTransformer2DModel:
    """The released transformer with fewer layers; attention and feed-forward are as wide."""
    with META:
        transformer = ZImageTransformer2DModel(
            dim=WIDTH,
            n_layers=layers,
            n_refiner_layers=2,
            n_heads=30,
            n_kv_heads=30,
            cap_feat_dim=2560,
            axes_dims=[32, 48, 48],
            axes_lens=[1536, 512, 512],
        )
    return transformer.eval().to(torch.bfloat16)


def _vae() -> AutoencoderKL:
    with META:
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            norm_num_groups=32,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Footprint:
    """What is read of configurations of the released sizes."""
    folder = tmp_path_factory.mktemp("released")
    _transformer(30).save_config(folder / "transformer")
    _vae().save_config(folder / "vae")
    text = Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    text.save_pretrained(folder / "text_encoder")
    return footprint_of(folder)


def test_weights_are_those_of_the_files(tiny_base: Base) -> None:
    folder = Path(tiny_base.model)
    found = footprint_of(folder)
    transformer = open_transformer(folder, device="cpu", dtype=torch.bfloat16)
    _, encoder = open_text_encoder(folder, dtype=torch.bfloat16)
    assert found.transformer_gb * 1e9 == pytest.approx(sum(p.nbytes for p in transformer.parameters()))
    assert found.block_gb * 1e9 == pytest.approx(sum(p.nbytes for p in transformer.layers[0].parameters()))
    assert found.vae_gb * 1e9 == pytest.approx(sum(p.nbytes for p in open_vae(folder, device="cpu").parameters()))
    assert found.text_layer_gb * 1e9 == pytest.approx(sum(p.nbytes for p in encoder.layers[1].parameters()))


def test_the_released_weights_are_as_large_as_they_are_known_to_be(released: Footprint) -> None:
    assert released.transformer_gb == pytest.approx(6_154_908_736 * 2 / 1e9)
    assert released.text_layer_gb == pytest.approx(0.202, abs=0.001)


def test_of_the_text_encoder_two_layers_are_there_at_most(tiny_base: Base) -> None:
    tokenizer, encoder = open_text_encoder(Path(tiny_base.model), dtype=torch.float32)
    encoder = type(encoder)(Qwen3Config(**{**encoder.config.to_dict(), "intermediate_size": 32768})).eval()
    layer = sum(p.nbytes for p in encoder.layers[0].parameters())  # much more than the states of a few words
    with LiveBytes(CPU, encoder.parameters()) as live:
        states = embed(tokenizer, encoder, ["ada", "eve"], CPU)
    assert states[0].shape[1] == encoder.config.hidden_size
    assert 1.9 * layer < live.most < 1.2 * PLACES * layer


@torch.no_grad()
@pytest.mark.parametrize("px", [512, 768])
def test_the_autoencoder_holds_as_much_at_once_as_is_planned(px: int) -> None:
    vae = _vae()
    with LiveBytes(META, vae.parameters()) as encoding:
        vae.encode(torch.empty(1, 3, px, px, device=META))
    with LiveBytes(META, vae.parameters()) as decoding:
        vae.decode(torch.empty(1, 16, px // 8, px // 8, device=META))
    assert 0.97 < encoding.most / (ENCODING_BYTES * px * px) <= 1.0
    assert 0.97 < decoding.most / (DECODING_BYTES * px * px) <= 1.0


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[60], [60, 20]])
def test_sampling_holds_no_more_at_once_than_is_planned(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a LoRA in float32; attention alone is left out, whose weights a GPU's kernels never write down."""
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda query, **_: torch.empty_like(query))
    transformer = _transformer(2)
    with META:
        transformer.add_adapter(LoraConfig(r=32, target_modules=["to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3"]))
    tokens = len(lengths) * (32 * 32 + 64)
    with LiveBytes(META, transformer.parameters()) as live:
        _forward(transformer, 512, lengths)
    assert 0.9 < live.most / (tokens * SAMPLING_STREAMS * WIDTH * 2) <= 1.0


@pytest.mark.parametrize("name", ["8gb", "16gb", "24gb", "80gb"])
def test_every_preset_encodes_and_makes_pictures_on_its_card(name: str, released: Footprint) -> None:
    preset = presets()[name]
    side = int(str(preset.values["evaluate.sampling.side_px"]))
    crop = int(str(preset.values["detect.crops.side_px"]))
    free_gb = preset.gpu_gb - 0.7  # without what a process takes of a GPU before it does anything
    chosen = fit(released, side, guided=True, adapters_gb=0.3, planned_gb=free_gb * USED_SHARE)
    assert chosen.travelling == (name in {"8gb", "16gb"})
    assert chosen.need_gb <= free_gb * USED_SHARE
    assert encoding_gb(released, [(crop, crop)]) <= free_gb * USED_SHARE


def test_blocks_travel_only_where_they_must_and_batches_grow_with_the_memory(released: Footprint) -> None:
    at = {
        gb: fit(released, 512, guided=True, adapters_gb=0.3, planned_gb=gb * USED_SHARE)
        for gb in (3.0, 4.0, 7.3, 15.3, 23.0, 79.0)
    }
    assert [chosen.travelling for chosen in at.values()] == [True, True, True, True, False, False]
    assert [chosen.batch_size for chosen in at.values()] == [3, 5, 8, 8, 8, 8]


def _forward(transformer: ZImageTransformer2DModel, px: int, lengths: list[int]) -> Any:
    latents = [torch.empty(16, 1, px // 8, px // 8, device=META, dtype=torch.bfloat16) for _ in lengths]
    captions = [torch.empty(length, 2560, device=META, dtype=torch.bfloat16) for length in lengths]
    return transformer(latents, torch.empty(len(lengths), device=META), captions)


def test_out_of_memory_names_the_side_that_fits_and_what_it_takes(released: Footprint) -> None:
    def sampling(at_hand_gb: float) -> str:
        return str(too_small_to_sample(released, 1024, guided=True, adapters_gb=0.3, available_gb=at_hand_gb))

    assert sampling(4.0) == (
        "4.0 GB of memory are too small to make pictures of 1024 x 1024 px, which take about 3.6 GB; "
        "set evaluate.sampling.side_px to 992 (about 3.4 GB), or end what else runs on it."
    )
    assert "which take about 3.6 GB; end what else runs on it." in sampling(0.5)
    assert "set detect.crops.side_px to 720, or end" in str(
        too_small_to_encode(released, (1024, 1024), available_gb=2.0)
    )
    assert "side_px" not in str(too_small_to_encode(released, (256, 256), available_gb=4.0))
