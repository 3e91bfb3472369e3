"""A base from single files: names as ComfyUI's files have them, made of the packaged base; its folder is the oracle."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zimage.cli.main import main
from zimage.core.errors import InputError
from zimage.model.base import TINY, find, identify, open_pipeline
from zimage.model.single_files import found_in_comfyui, make_base

TINY_FOLDER = find(TINY)
WEIGHTS = {
    "transformer": load_file(TINY_FOLDER / "transformer" / "diffusion_pytorch_model.safetensors"),
    "text_encoder": load_file(TINY_FOLDER / "text_encoder" / "model.safetensors"),
    "vae": load_file(TINY_FOLDER / "vae" / "diffusion_pytorch_model.safetensors"),
}
UP_BLOCKS = 4


def comfyui_transformer(prefix: str = "") -> dict[str, Tensor]:
    """Weights under the names of the original repository, with query, key and value as one matrix."""
    found = {}
    for name, weight in WEIGHTS["transformer"].items():
        if ".to_q." in name:
            parts = [WEIGHTS["transformer"][name.replace(".to_q.", f".to_{each}.")] for each in "qkv"]
            found[name.replace(".to_q.", ".qkv.")] = torch.cat(parts)
        elif ".to_k." not in name and ".to_v." not in name:
            new = name.replace("all_final_layer.2-1.", "final_layer.").replace("all_x_embedder.2-1.", "x_embedder.")
            new = new.replace(".to_out.0.", ".out.").replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")
            found[new] = weight
    return {prefix + name: weight for name, weight in found.items()} | {prefix + "norm_final.weight": torch.ones(4)}


def ldm_vae() -> dict[str, Tensor]:
    """Weights under the names of the autoencoder's original repository."""
    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda at: f"up.{UP_BLOCKS - 1 - int(at[1])}.block.{at[2]}"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda at: f"up.{UP_BLOCKS - 1 - int(at[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda at: f"mid.block_{int(at[1]) + 1}"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    ]
    found = {}
    for name, weight in WEIGHTS["vae"].items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        found[new] = weight
    return found


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """ComfyUI's folder with all three parts, and files of other models beside them."""
    models = tmp_path / "ComfyUI" / "models"
    for name in ("diffusion_models", "text_encoders", "vae"):
        (models / name).mkdir(parents=True)
    save_file(comfyui_transformer("model.diffusion_model."), models / "diffusion_models" / "z_image_bf16.safetensors")
    save_file({"img_in.weight": torch.ones(2)}, models / "diffusion_models" / "another.safetensors")
    encoder = {f"model.{name}": weight for name, weight in WEIGHTS["text_encoder"].items()}
    save_file(encoder | {"lm_head.weight": torch.ones(2)}, models / "text_encoders" / "qwen_3_4b.safetensors")
    save_file({"encoder.block.0.weight": torch.ones(2)}, models / "text_encoders" / "t5xxl.safetensors")
    save_file(ldm_vae(), models / "vae" / "ae.safetensors")
    save_file({"x": torch.ones(2)}, models / "vae" / "wan_vae.safetensors")
    return models.parent


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """The packaged base without its weights."""
    target = tmp_path / "configs"
    shutil.copytree(TINY_FOLDER, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def test_a_base_of_comfyui_files_is_the_folder_to_the_last_bit(
    comfyui: Path, configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "base"

    assert main(["base", str(out), "--comfyui", str(comfyui), "--configs", str(configs)]) == 0

    assert f"`zimage pin {out}`" in capsys.readouterr().out
    assert identify(str(out)).startswith("sha256:")
    made, folder = (open_pipeline(each, device="cpu", dtype=torch.float32) for each in (out, TINY_FOLDER))
    for part in ("transformer", "vae"):
        expected = getattr(folder, part).state_dict()
        found = getattr(made, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    encoder = load_file(out / "text_encoder" / "model.safetensors")
    assert all(torch.equal(encoder[name], weight) for name, weight in WEIGHTS["text_encoder"].items())
    assert made.scheduler.config == folder.scheduler.config


def test_scaled_fp8_is_written_as_what_its_factors_say(comfyui: Path, configs: Path, tmp_path: Path) -> None:
    file = comfyui / "models" / "diffusion_models" / "z_image_fp8.safetensors"
    plain = comfyui_transformer()
    name, mark = "layers.0.feed_forward.w1", {"scaled_fp8": torch.ones(2, dtype=torch.float8_e4m3fn)}
    weight = plain[f"{name}.weight"].float()
    scale = weight.abs().max() / 448
    eight_bits = (weight / scale).to(torch.float8_e4m3fn)
    save_file({**plain, **mark, f"{name}.weight": eight_bits, f"{name}.scale_weight": scale.reshape(1)}, file)
    files = found_in_comfyui(comfyui, {"transformer": file, "text_encoder": None, "vae": None})

    make_base(tmp_path / "base", str(configs), files)

    written = load_file(tmp_path / "base" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(written[f"{name}.weight"], (eight_bits.float() * scale).bfloat16())
    others = [key for key in WEIGHTS["transformer"] if key != f"{name}.weight"]
    assert all(torch.equal(written[key], WEIGHTS["transformer"][key]) for key in others)


def changed(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda each: each.pop("model.diffusion_model.layers.1.feed_forward.w2.weight"), "it lacks 1 tensors, such as"),
        (lambda each: each.update(more=torch.ones(1)), "it holds 1 others, such as more"),
        (
            lambda each: each.update({"model.diffusion_model.cap_embedder.0.weight": torch.ones(7)}),
            r"has cap_embedder\.0\.weight of shape \(7,\) where the model has",
        ),
        (
            lambda each: each.update(
                {"model.diffusion_model.layers.0.feed_forward.w1.weight": torch.ones((2, 2), dtype=torch.int8)}
            ),
            "holds weights as I8, .* take the file in bfloat16",
        ),
    ],
)
def test_a_file_of_another_model_or_form_is_refused_and_nothing_is_written(
    comfyui: Path, configs: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], sentence: str
) -> None:
    changed(comfyui / "models" / "diffusion_models" / "z_image_bf16.safetensors", change)
    files = found_in_comfyui(comfyui, {"transformer": None, "text_encoder": None, "vae": None})

    with pytest.raises(InputError, match=sentence):
        make_base(tmp_path / "base", str(configs), files)

    assert not (tmp_path / "base").exists()


def test_two_files_that_could_be_meant_and_absent_configurations_are_told_with_the_remedy(
    comfyui: Path, configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = comfyui / "models" / "diffusion_models"
    asked = ["base", str(tmp_path / "base"), "--comfyui", str(comfyui), "--configs", str(configs)]
    shutil.copyfile(models / "z_image_bf16.safetensors", models / "z_image_turbo_bf16.safetensors")

    assert main(asked) == 2
    assert "z_image_bf16.safetensors, z_image_turbo_bf16.safetensors; name it with --transformer" in (
        capsys.readouterr().err
    )
    shutil.rmtree(configs / "tokenizer")
    assert main([*asked, "--transformer", str(models / "z_image_bf16.safetensors")]) == 2
    assert "has no tokenizer: the configurations, the tokenizer and the scheduler of the model are needed" in (
        capsys.readouterr().err
    )
    assert main(["base", str(tmp_path / "base"), "--configs", str(configs)]) == 2
    assert "There is no --transformer; name the file, or ComfyUI's folder with --comfyui." in capsys.readouterr().err
