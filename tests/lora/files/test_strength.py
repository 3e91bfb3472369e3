"""Strength from peft's configuration, against peft itself."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from zimage.core.errors import InputError
from zimage.lora.convert.change import written_out
from zimage.lora.convert.conversion import Plan, convert
from zimage.lora.convert.reading import read_lora
from zimage.lora.files.inspection import inspect_file
from zimage.lora.files.obstacles import Choices
from zimage.lora.files.strength import METADATA_KEY, strengths_of

WIDTH = 96
CONFIGS = {
    "LoRA": LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "w1"]),
    "rsLoRA": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["to_q", "w1"]),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=8,
        alpha_pattern={r".*\.to_[qk]": 2, r"layers\.\d+\.feed_forward\.w1": 3},
        rank_pattern={r"w[13]": 6},
        target_modules=["to_q", "w1"],
    ),
    "LoHa": LoHaConfig(r=4, alpha=12, target_modules=["to_q", "w1"]),
    "LoKr": LoKrConfig(r=4, alpha=12, target_modules=["to_q", "w1"]),
    "LoKr of whole matrices": LoKrConfig(r=400, alpha=1200, target_modules=["to_q", "w1"]),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"to_q": nn.Linear(WIDTH, WIDTH, bias=False)})
        self.feed_forward = nn.ModuleDict({"w1": nn.Linear(WIDTH, 256, bias=False)})


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block()])


def saved(folder: Path, config: LoraConfig) -> PeftModel:
    """Write a folder as peft's `save_pretrained` does, with every factor drawn at random."""
    torch.manual_seed(0)
    model = get_peft_model(Tiny(), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "hada_" in name or "lokr_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.1
    model.save_pretrained(str(folder))
    return model


def changes_by_peft(model: PeftModel) -> dict[str, Tensor]:
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach().double()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_that_peft_saved_is_as_strong_as_in_peft(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, CONFIGS[name])
    expected = changes_by_peft(model)
    found = read_lora(tmp_path / "adapter_model.safetensors").changes
    assert found.keys() == expected.keys() == {"layers.0.attention.to_q", "layers.0.feed_forward.w1"}
    for layer, change in expected.items():
        torch.testing.assert_close(written_out(found[layer]), change, rtol=1e-5, atol=1e-7)
    said = inspect_file(tmp_path / "adapter_model.safetensors")
    assert said.verdict == "convertible"
    assert said.strength is not None


def test_a_peft_file_without_its_configuration_asks_for_its_alpha(tmp_path: Path) -> None:
    saved(tmp_path / "peft", CONFIGS["LoRA"])
    alone = (tmp_path / "peft" / "adapter_model.safetensors").rename(tmp_path / "alone.safetensors")
    sentence = "there is none beside the file"
    assert sentence in inspect_file(alone).reason
    with pytest.raises(InputError, match=sentence):
        read_lora(alone)
    once = written_out(read_lora(alone, Choices(alpha=4.0)).changes["layers.0.attention.to_q"])
    twice = written_out(read_lora(alone, Choices(alpha=8.0)).changes["layers.0.attention.to_q"])
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("how", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_a_lora_that_changed_its_base_is_not_usable_alone(tmp_path: Path, how: str) -> None:
    path = tmp_path / "x.safetensors"
    pair = {"lora_A.weight": torch.ones(4, WIDTH), "lora_B.weight": torch.ones(WIDTH, 4)}
    config = {"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.init_lora_weights": how}
    save_file(
        {f"transformer.layers.0.attention.to_q.{name}": value for name, value in pair.items()},
        path,
        metadata={METADATA_KEY: json.dumps(config)},
    )
    found = inspect_file(path)
    assert found.verdict == "unusable"
    assert "changed the base's weights too" in found.reason
    assert "path_initial_model_for_weight_conversion" in found.remedy
    with pytest.raises(InputError, match="changed the base's weights too"):
        convert(path, tmp_path / "out.safetensors", Plan("portable", None, None))


def test_two_strengths_in_one_file_ask_which_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stem = "diffusion_model.layers.0.attention.to_q"
    tensors = {
        f"{stem}.lora_A.weight": torch.ones(4, WIDTH),
        f"{stem}.lora_B.weight": torch.ones(WIDTH, 4),
        f"{stem}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})})
    said = inspect_file(path)
    assert "a strength of 0.5 and its metadata 2" in said.reason
    assert "--alpha tensors" in said.remedy
    with pytest.raises(InputError, match="loaders differ in which they follow"):
        read_lora(path)
    strengths = {
        which: float(written_out(read_lora(path, Choices(alpha=which)).changes["layers.0.attention.to_q"])[0, 0]) / 4
        for which in ("tensors", "metadata")
    }
    assert strengths == {"tensors": 0.5, "metadata": 2.0}


@pytest.mark.parametrize(
    "config",
    [
        "[]",
        "{",
        '{"transformer.r": 0, "transformer.lora_alpha": 8}',
        '{"transformer.lora_alpha": "x"}',
        '{"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"(": 2}}',
    ],
)
def test_a_configuration_that_peft_cannot_have_written_is_refused(config: str) -> None:
    with pytest.raises(InputError, match="not a configuration that peft can have written"):
        strengths_of({METADATA_KEY: config}).of("layers.0.attention.to_q", 4)
