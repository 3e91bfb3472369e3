"""The portable LoRA file against diffusers' own loader."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.lora.dialect_files import factors_for_every_linear, pipeline_of, tiny_transformer
from zimage.core.errors import InputError
from zimage.lora.files.portable import Factors, metadata_of, save_portable

METADATA = metadata_of(title="Ada", trigger="ohwx", base="sha256:00", dataset="11", notes={"num_steps": "3"})


def test_diffusers_uses_every_key_and_adds_exactly_the_change(tmp_path: Path) -> None:
    model = tiny_transformer()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights = factors_for_every_linear(model)
    save_portable(tmp_path / "ada.safetensors", weights, metadata=METADATA, dtype=torch.float32)
    pipeline = pipeline_of(model)

    pipeline.load_lora_weights(str(tmp_path / "ada.safetensors"))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()

    after = model.state_dict()
    assert len(weights) == 2 * 8 + 8 + 7 + 6
    for name, factors in weights.items():
        change = (after[f"{name}.weight"] - before[f"{name}.weight"]).double()
        torch.testing.assert_close(change, factors.change(), rtol=1e-4, atol=1e-5)
    untouched = set(before) - {f"{name}.weight" for name in weights}
    assert all(torch.equal(before[name], after[name]) for name in untouched)


def test_equal_weights_give_equal_bytes_whatever_the_order(tmp_path: Path) -> None:
    weights = factors_for_every_linear(tiny_transformer())
    save_portable(tmp_path / "a.safetensors", weights, metadata=METADATA)
    shuffled = dict(reversed(list(weights.items())))
    save_portable(tmp_path / "b.safetensors", shuffled, metadata=dict(reversed(list(METADATA.items()))))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_file_is_read_by_safetensors_itself_and_tells_its_story(tmp_path: Path) -> None:
    path = tmp_path / "ada.safetensors"
    weights = factors_for_every_linear(tiny_transformer())
    save_portable(path, weights, metadata=METADATA)
    with safe_open(str(path), framework="pt") as file:
        stored = file.get_tensor("diffusion_model.layers.1.attention.to_out.0.lora_B.weight")
        metadata = file.metadata()
    assert torch.equal(stored, weights["layers.1.attention.to_out.0"].up.bfloat16())
    assert {key: metadata[key] for key in METADATA} == METADATA
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize(
    ("name", "down", "up", "message"),
    [
        ("layers.0.attention.qkv", (2, 4), (4, 2), "no layer 'layers.0.attention.qkv'"),
        ("layers.0.attention.to_q", (2, 4), (4, 3), "do not belong together"),
        ("layers.0.attention.to_q", (0, 4), (4, 0), "do not belong together"),
        ("layers.0.attention.to_q", (4,), (4, 1), "do not belong together"),
    ],
)
def test_weights_that_fit_no_layer_are_refused(
    tmp_path: Path, name: str, down: tuple[int, ...], up: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        save_portable(tmp_path / "x.safetensors", {name: Factors(torch.zeros(down), torch.zeros(up))}, metadata={})
    assert not list(tmp_path.iterdir())


def test_a_diverged_training_is_not_written(tmp_path: Path) -> None:
    factors = Factors(torch.full((2, 4), torch.nan), torch.zeros(4, 2))
    with pytest.raises(InputError, match=r"NaN or infinity.*lower its learning rate"):
        save_portable(tmp_path / "x.safetensors", {"layers.0.attention.to_q": factors}, metadata={})
    assert not list(tmp_path.iterdir())


def test_no_weights_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no LoRA weights"):
        save_portable(tmp_path / "x.safetensors", {}, metadata={})
