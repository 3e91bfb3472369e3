"""What diffusers itself does with every dialect, against the table that inspecting and the guide rely on."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.lora.dialect_files import DIALECTS, write_dialect
from tests.lora.matrix import keys_used_by_comfyui, layers_applied_by_diffusers, weights_for
from zimage.lora.comfyui.names import names, used_keys
from zimage.lora.convert.verification import applied_by_comfyui, worst_difference
from zimage.lora.files import dialects
from zimage.lora.files.inspection import inspect_file

READ_BY_DIFFUSERS = {"diffusers", "portable", "diffsynth", "kohya-split", "dotted-kohya", "kohya-native"}
# Dialects that ComfyUI's tables take in full, from its own rules (see comfyui_names.json).
READ_BY_COMFYUI = {
    *("diffusers", "portable", "bare", "diffsynth", "dotted-kohya"),
    *("lycoris", "onetrainer-legacy", "native", "kohya-native"),
}


def test_the_dialects_known_are_those_that_are_tested() -> None:
    assert [dialect.name for dialect in dialects.DIALECTS] == list(DIALECTS)


@pytest.mark.filterwarnings("ignore:The following:RuntimeWarning")  # peft's, of names it does not find
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("keep", ["layers.", ""])
def test_diffusers_applies_exactly_what_inspecting_says(tmp_path: Path, dialect: str, keep: str) -> None:
    path = tmp_path / "x.safetensors"
    weights = weights_for(keep)
    write_dialect(path, dialect, weights, 0.5)
    applied = layers_applied_by_diffusers(path, weights, 0.5)
    said = inspect_file(path).diffusers
    assert said.replace("error", "none") == ("all" if applied == len(weights) else "some" if applied else "none")
    assert (said == "all") == (dialect in READ_BY_DIFFUSERS and (dialect, keep) != ("kohya-native", ""))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_comfyui_uses_exactly_what_inspecting_says(tmp_path: Path, dialect: str) -> None:
    path = tmp_path / "x.safetensors"
    write_dialect(path, dialect, weights_for(""), 0.5)
    used, total = keys_used_by_comfyui(path)
    said = inspect_file(path).comfyui
    assert said == ("all" if used == total else "some" if used else "none")
    assert (said == "all") == (dialect in READ_BY_COMFYUI)


@pytest.mark.parametrize("dialect", sorted(READ_BY_COMFYUI))
def test_comfyuis_tables_put_every_dialects_change_in_its_place(tmp_path: Path, dialect: str) -> None:
    path = tmp_path / "x.safetensors"
    weights = weights_for("")
    write_dialect(path, dialect, weights, 0.5)
    expected = {name: type(pair)(pair.down * 0.5, pair.up) for name, pair in weights.items()}
    assert worst_difference(expected, applied_by_comfyui(path, 30)) < 1e-6


def test_musubi_tuners_attention_is_what_comfyui_drops_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_dialect(path, "kohya-split", weights_for("layers."), 0.5)
    dropped = load_file(path).keys() - used_keys(load_file(path))
    assert dropped
    assert all("attention" in key for key in dropped)


def test_comfyuis_tables_cover_the_released_model_and_name_their_source() -> None:
    table = names()
    assert "comfy/lora.py" in table.source
    split, fused = "layers.29.attention.to_v", "diffusion_model.layers.29.attention.qkv"
    assert table.accepted[f"transformer.{split}"] == table.accepted["lycoris_layers_29_attention_to_v"]
    assert (table.accepted[split].third, table.accepted[fused].third) == (2, None)
    assert "layers.30.attention.to_v" not in table.accepted
    assert table.accepted["lora_unet_final_layer_linear"].native == "final_layer.linear"


def test_a_layer_that_is_missing_or_off_is_seen(tmp_path: Path) -> None:
    weights = weights_for("layers.0.attention")
    assert worst_difference(weights, weights) < 1e-12
    assert worst_difference(weights, dict(list(weights.items())[1:])) == float("inf")
    name, pair = next(iter(weights.items()))
    off = worst_difference(weights, weights | {name: type(pair)(pair.down * 1.01, pair.up)})
    assert off == pytest.approx(0.01, rel=1e-6)
    assert worst_difference({}, {name: type(pair)(torch.zeros(1, 4), torch.ones(4, 1))}) == 0.0
