"""A training adapter of any form is added to the frozen weights, whole."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.lora.dialect_files import DIALECTS, factors_for_every_linear, tiny_transformer, write_dialect
from zimage.core.errors import InputError
from zimage.lora.files.portable import Factors
from zimage.training.params import AdapterParams
from zimage.training.training_adapter import merge


def _pinned(path: Path, strength: float = 1.0) -> AdapterParams:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return AdapterParams(file=str(path), sha256=digest, strength=strength)


@pytest.mark.parametrize(("rank", "scale"), [(3, 1.0), (7, 0.5)])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_form_of_file_changes_the_weights_by_the_same(
    dialect: str, rank: int, scale: float, tmp_path: Path
) -> None:
    """Also with an alpha that is not the rank, where a form has one: `scale` is alpha over rank then."""
    if dialect == "peft" and scale != 1.0:
        scale = 1.0  # its configuration says alpha = rank
    transformer, before = tiny_transformer(), dict(tiny_transformer().named_parameters())
    weights = factors_for_every_linear(transformer, rank=rank, keep="layers.")
    write_dialect(tmp_path / "adapter.safetensors", dialect, weights, scale)

    taken_off = merge(transformer, _pinned(tmp_path / "adapter.safetensors", strength=0.8))

    assert taken_off.keys() == weights.keys()
    after = dict(transformer.named_parameters())
    for name, (down, up) in weights.items():
        expected = before[f"{name}.weight"] + 0.8 * scale * up @ down
        torch.testing.assert_close(after[f"{name}.weight"], expected, rtol=1e-5, atol=1e-5)
        undone = after[f"{name}.weight"] + taken_off[name].up @ taken_off[name].down
        torch.testing.assert_close(undone, before[f"{name}.weight"], rtol=1e-4, atol=1e-4)
    changed = {f"{name}.weight" for name in weights}
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - changed)


def test_an_adapter_as_ai_toolkit_writes_one_changes_every_linear_layer_of_the_main_blocks(tmp_path: Path) -> None:
    """ostris' files of Turbo: bfloat16 pairs without alpha, modulation too, as `diffusion_model.layers.0…lora_A.weight`
    (ostris/ai-toolkit@27a03a91: extensions_built_in/diffusion_models/z_image/z_image.py, load_training_adapter).
    """
    transformer, before = tiny_transformer(), dict(tiny_transformer().named_parameters())
    weights = {
        name: factors
        for name, factors in factors_for_every_linear(transformer, rank=2).items()
        if name.startswith("layers.")
    }
    assert any("adaLN_modulation.0" in name for name in weights)
    tensors = {}
    for name, factors in weights.items():
        tensors[f"diffusion_model.{name}.lora_A.weight"] = factors.down.bfloat16()
        tensors[f"diffusion_model.{name}.lora_B.weight"] = factors.up.bfloat16()
    path = tmp_path / "zimage_turbo_training_adapter_v2.safetensors"
    save_file(tensors, path, metadata={"format": "pt", "software": '{"name": "ai-toolkit"}'})

    assert len(merge(transformer, _pinned(path))) == len(weights) == 2 * 8

    after = dict(transformer.named_parameters())
    for name, factors in weights.items():
        expected = before[f"{name}.weight"] + factors.up.bfloat16().float() @ factors.down.bfloat16().float()
        torch.testing.assert_close(after[f"{name}.weight"], expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_for_another_base_is_refused_with_the_layer(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    wide = {"layers.0.attention.to_q": Factors(torch.ones(2, 48), torch.ones(48, 2))}
    write_dialect(tmp_path / "wide.safetensors", "portable", wide, 1.0)
    deep = {"layers.9.attention.to_q": Factors(torch.ones(2, 32), torch.ones(32, 2))}
    write_dialect(tmp_path / "deep.safetensors", "portable", deep, 1.0)

    with pytest.raises(InputError, match=r"layers\.0\.attention\.to_q by a matrix \(48, 48\).*has \(32, 32\)"):
        merge(transformer, _pinned(tmp_path / "wide.safetensors"))
    with pytest.raises(InputError, match=r"layers\.9\.attention\.to_q.*has no such layer; choose the adapter made for"):
        merge(transformer, _pinned(tmp_path / "deep.safetensors"))
