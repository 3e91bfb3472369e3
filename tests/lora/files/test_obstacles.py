"""Files that people bring and that are neither plain nor wrong: what inspecting says, and that converting agrees."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zimage.core.errors import InputError
from zimage.lora.convert.change import written_out
from zimage.lora.convert.conversion import Plan, convert
from zimage.lora.convert.reading import read_lora
from zimage.lora.files.inspection import Inspection, inspect_file
from zimage.lora.files.obstacles import Choices

WIDTH = 96
TO_Q, TO_OUT = "layers.0.attention.to_q", "layers.0.attention.to_out.0"
LAYERS = (TO_Q, TO_OUT)


def pairs(scale: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (
            torch.randn(4, WIDTH, generator=generator) * scale,
            torch.randn(WIDTH, 4, generator=generator),
        )
        for name in LAYERS
    }


def tensors(
    prefix: str = "diffusion_model.", down: str = ".lora_A.weight", up: str = ".lora_B.weight", scale: float = 1.0
) -> dict[str, Tensor]:
    found = {}
    for name, (first, second) in pairs(scale).items():
        found[prefix + name + down], found[prefix + name + up] = first, second
    return found


def written(tmp_path: Path, content: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = tmp_path / "lora.safetensors"
    save_file(
        {name: value.contiguous() for name, value in content.items()}, path, metadata=metadata or {"format": "pt"}
    )
    return path


def converted(path: Path, choices: Choices | None = None) -> dict[str, Tensor]:
    out = path.with_name("out.safetensors")
    convert(path, out, Plan("portable", None, None, choices or Choices()))
    return {name: written_out(change) for name, change in read_lora(out).changes.items()}


def assert_both_say(path: Path, sentence: str) -> Inspection:
    """Inspecting and converting stop at the same sentence."""
    said = inspect_file(path)
    assert sentence in said.reason
    with pytest.raises(InputError) as stopped:
        convert(path, path.with_name("out.safetensors"), Plan("portable", None, None))
    assert sentence in str(stopped.value)
    assert not path.with_name("out.safetensors").exists()
    return said


def test_two_adapters_are_a_choice_and_neither_is_dropped(tmp_path: Path) -> None:
    content = tensors("", ".lora_A.default.weight", ".lora_B.default.weight")
    content |= tensors("", ".lora_A.ema.weight", ".lora_B.ema.weight", scale=0.5)
    path = written(tmp_path, content)
    said = assert_both_say(path, "It holds several adapters of the same layers: default and ema")
    assert "--adapter" in said.remedy
    default, ema = (converted(path, Choices(adapter=name))[TO_Q] for name in ("default", "ema"))
    torch.testing.assert_close(default, 2 * ema)


def test_two_ways_of_writing_in_one_file_are_two_adapters(tmp_path: Path) -> None:
    content = tensors() | tensors("diffusion_model.", ".lora_down.weight", ".lora_up.weight", scale=3.0)
    path = written(tmp_path, content)
    assert_both_say(path, "several adapters of the same layers: diffusion_model.lora_A and diffusion_model.lora_down")
    torch.testing.assert_close(
        converted(path, Choices(adapter="diffusion_model.lora_down"))[TO_Q],
        3 * converted(path, Choices(adapter="diffusion_model.lora_A"))[TO_Q],
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_same_change_under_fused_and_split_names_is_taken_once(tmp_path: Path) -> None:
    prefix = "diffusion_model.layers.0.attention."
    content, parts = {}, {}
    for part in ("q", "k", "v"):
        down, up = torch.randn(4, WIDTH), torch.randn(WIDTH, 4)
        parts[part] = down, up
        content[f"{prefix}to_{part}.lora_A.weight"], content[f"{prefix}to_{part}.lora_B.weight"] = down, up
    content[f"{prefix}qkv.lora_A.weight"] = torch.cat([down for down, _ in parts.values()])
    content[f"{prefix}qkv.lora_B.weight"] = torch.block_diag(*(up for _, up in parts.values()))
    found = converted(written(tmp_path, content))
    down, up = parts["q"]
    torch.testing.assert_close(found[TO_Q], (up @ down).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "prefix", ["transformer._orig_mod.", "_orig_mod.", "module.", "pipe.dit.", "diffusion_model.module."]
)
def test_what_wrappers_put_into_names_names_no_layer(tmp_path: Path, prefix: str) -> None:
    path = written(tmp_path, tensors(prefix))
    assert inspect_file(path).family == "Z-Image"
    assert inspect_file(path).verdict == "convertible"
    down, up = pairs()[TO_Q]
    torch.testing.assert_close(converted(path)[TO_Q], (up @ down).double(), rtol=1e-5, atol=1e-5)


def test_a_wrapper_inside_a_name_names_no_layer_either(tmp_path: Path) -> None:
    content = {
        name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."): value for name, value in tensors().items()
    }
    assert set(converted(written(tmp_path, content))) == set(LAYERS)


def test_factors_kept_as_mlx_keeps_them_are_told_and_refused(tmp_path: Path) -> None:
    content = {name.removesuffix(".weight"): value.T for name, value in tensors("transformer.").items()}
    assert_both_say(written(tmp_path, content), "are transposed")


@pytest.mark.parametrize("alpha", [float("inf"), float("nan"), 0.0, -4.0])
def test_an_alpha_that_is_no_finite_number_above_zero_is_refused(tmp_path: Path, alpha: float) -> None:
    content = tensors() | {f"diffusion_model.{TO_Q}.alpha": torch.tensor(alpha)}
    said = assert_both_say(written(tmp_path, content), "only a finite number above zero is a strength")
    assert said.verdict == "unusable"


def test_the_alpha_of_a_lokr_of_whole_matrices_means_nothing_even_where_it_is_infinite(tmp_path: Path) -> None:
    stem = f"diffusion_model.{TO_Q}"
    left, right = torch.randn(8, 8).half(), torch.randn(12, 12).half()
    content = {f"{stem}.lokr_w1": left, f"{stem}.lokr_w2": right, f"{stem}.alpha": torch.tensor(9999999999.0).half()}
    path = written(tmp_path, content)
    found = read_lora(path).changes[TO_Q]
    torch.testing.assert_close(written_out(found), torch.kron(left.double(), right.double()))
    said = inspect_file(path)
    assert (said.verdict, said.finite) == ("usable", True)


def test_norms_and_biases_of_comfyuis_trainer_are_left_out_only_when_asked(tmp_path: Path) -> None:
    block = "diffusion_model.layers.0."
    content = {
        f"{block}attention.out.lora_up.weight": torch.randn(WIDTH, 4),
        f"{block}attention.out.lora_down.weight": torch.randn(4, WIDTH),
        f"{block}attention.out.alpha": torch.tensor(4.0),
        f"{block}attention_norm1.diff": torch.randn(WIDTH),
        f"{block}attention.q_norm.diff": torch.randn(32),
        f"{block}adaLN_modulation.0.lora_up.weight": torch.randn(4 * WIDTH, 4),
        f"{block}adaLN_modulation.0.lora_down.weight": torch.randn(4, WIDTH),
        f"{block}adaLN_modulation.0.alpha": torch.tensor(4.0),
        f"{block}adaLN_modulation.0.diff_b": torch.randn(4 * WIDTH),
    }
    said = assert_both_say(written(tmp_path, content), "has no place for 3 of its keys: 2 of norms, 1 of biases")
    assert "--leave-out" in said.remedy
    assert said.comfyui == "all"
    assert set(converted(tmp_path / "lora.safetensors", Choices(leave_out=True))) == {
        TO_OUT,
        "layers.0.adaLN_modulation.0",
    }


def test_a_text_encoders_part_is_told_and_left_out_only_when_asked(tmp_path: Path) -> None:
    content = tensors(down=".lora_down.weight", up=".lora_up.weight")
    content |= {f"diffusion_model.{name}.alpha": torch.tensor(4.0) for name in LAYERS}
    stem = "lora_te_layers_0_self_attn_q_proj"
    content |= {f"{stem}.lora_up.weight": torch.randn(64, 4), f"{stem}.lora_down.weight": torch.randn(4, 32)}
    content |= {f"{stem}.alpha": torch.tensor(4.0)}
    said = assert_both_say(written(tmp_path, content), "3 of the text encoder")
    assert said.comfyui == "all"
    assert said.verdict == "usable"
    assert "Use it in ComfyUI as it is." in said.remedy


@pytest.mark.parametrize(
    ("suffix", "shape", "kind"),
    [
        (".oft_R.weight", (3, 496), "OFT"),
        (".oft_blocks", (3, 32, 32), "OFT"),
        (".a1.weight", (96, 4), "GLoRA"),
        (".on_input", (), "IA3"),
        (".q_layer.weight", (4, 96), "T-LoRA"),
    ],
)
def test_forms_that_are_no_lora_are_named(tmp_path: Path, suffix: str, shape: tuple[int, ...], kind: str) -> None:
    path = written(tmp_path, {f"transformer.{TO_Q}{suffix}": torch.zeros(shape)})
    said = inspect_file(path)
    assert (said.family, said.kind, said.verdict) == ("Z-Image", kind, "unusable")
    assert "cannot be written as a LoRA" in said.reason


@pytest.mark.parametrize("told", ["Zeta-Chroma", "z-image-l2p"])
def test_a_derivative_that_only_metadata_tells_is_refused_by_name(tmp_path: Path, told: str) -> None:
    path = written(tmp_path, tensors(), {"modelspec.architecture": f"{told}/lora"})
    assert_both_say(path, "Its metadata says that it was trained for")


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    data, header = b"", {}
    for name, value in tensors().items():
        raw = value.numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    length = 0x0280 + 0x10000
    bare = len(json.dumps({"__metadata__": {"x": ""}} | header))
    text = json.dumps({"__metadata__": {"x": "x" * (length - bare)}} | header).encode()
    path = tmp_path / "lora.safetensors"
    path.write_bytes(struct.pack("<Q", length) + text + data)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert inspect_file(path).verdict == "usable"
    assert load_file(path).keys() == tensors().keys()


def test_metadata_that_is_null_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, tensors())
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps(header | {"__metadata__": None}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    assert inspect_file(path).metadata == {}


def test_an_unknown_family_is_told_with_the_layers_and_widths_that_were_seen(tmp_path: Path) -> None:
    stem = "diffusion_model.towers.3.mixing.in_proj"
    content = {f"{stem}.lora_A.weight": torch.zeros(4, 1234), f"{stem}.lora_B.weight": torch.zeros(777, 4)}
    said = inspect_file(written(tmp_path, content))
    assert said.family == "unknown"
    assert "'towers.N.mixing.in_proj' x 1 with weights of 777 x 1234" in said.reason


def test_a_language_models_lora_is_not_taken_for_one_of_z_image(tmp_path: Path) -> None:
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    content = {f"{stem}.lora_A.weight": torch.zeros(4, 2560), f"{stem}.lora_B.weight": torch.zeros(4096, 4)}
    assert inspect_file(written(tmp_path, content)).family == "language model"


def test_a_whole_z_image_is_called_so_by_both(tmp_path: Path) -> None:
    weights = {f"layers.0.attention.{part}.weight": torch.zeros(96, 96) for part in ("to_q", "to_k", "to_v")}
    said = assert_both_say(written(tmp_path, weights | {"x_pad_token": torch.zeros(1, 96)}), "a whole Z-Image model")
    assert said.verdict == "unusable"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("decoder.up_blocks.0.resnets.0.conv1.weight", "an autoencoder"),
        ("model.embed_tokens.weight", "a text encoder"),
        ("towers.0.weight", "a model"),
    ],
)
def test_whole_weights_are_not_called_a_lora(tmp_path: Path, name: str, what: str) -> None:
    said = inspect_file(written(tmp_path, {name: torch.zeros(8, 8)}))
    assert said.verdict == "unusable"
    assert f"This is no LoRA but whole weights: {what}" in said.reason


def test_a_lokr_of_whole_matrices_is_renamed_to_the_last_bit(tmp_path: Path) -> None:
    stem = "lycoris_layers_0_attention_to_q"
    content = {
        f"{stem}.lokr_w1": torch.randn(8, 8).bfloat16(),
        f"{stem}.lokr_w2": torch.randn(12, 12).bfloat16(),
        f"{stem}.alpha": torch.tensor(10000.0),
    }
    path = written(tmp_path, content)
    outcome = convert(path, tmp_path / "out.safetensors", Plan("portable", None, None, verify=True))
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == {f"diffusion_model.{TO_Q}.lokr_w1", f"diffusion_model.{TO_Q}.lokr_w2"}
    assert torch.equal(found[f"diffusion_model.{TO_Q}.lokr_w2"], content[f"{stem}.lokr_w2"])
    assert (outcome.error, outcome.by_diffusers, outcome.by_comfyui) == (0.0, 0.0, 0.0)
    assert inspect_file(tmp_path / "out.safetensors").verdict == "usable"


def test_the_strength_of_a_lokr_goes_into_its_first_matrix(tmp_path: Path) -> None:
    stem = "lycoris_layers_0_attention_to_q"
    left, up, down = torch.randn(8, 8), torch.randn(12, 4), torch.randn(4, 12)
    content = {f"{stem}.lokr_w1": left, f"{stem}.lokr_w2_a": up, f"{stem}.lokr_w2_b": down}
    path = written(tmp_path, content | {f"{stem}.alpha": torch.tensor(3.0)})
    expected = torch.kron(left.double(), up.double() @ down.double()) * 3 / 4
    torch.testing.assert_close(converted(path)[TO_Q], expected, rtol=1e-5, atol=1e-5)


def test_an_alpha_of_eight_bits_is_read(tmp_path: Path) -> None:
    content = {name: value.to(torch.float8_e4m3fn) for name, value in tensors().items()}
    content |= {f"diffusion_model.{name}.alpha": torch.tensor(2.0).to(torch.float8_e4m3fn) for name in LAYERS}
    said = inspect_file(written(tmp_path, content))
    assert (said.alpha, said.verdict, said.diffusers) == (2.0, "convertible", "error")
