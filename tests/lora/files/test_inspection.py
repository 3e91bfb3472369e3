"""What inspecting says of files of every family, at their true shapes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.lora.dialect_files import DIALECTS, factors_for_every_linear, tiny_transformer, write_dialect
from tests.lora.family_files import AB, FILES, only, shapes_of_pairs, widths_of, write_header
from zimage.cli.lora import as_text
from zimage.lora.files.inspection import Inspection, inspect_file
from zimage.lora.files.modules import is_module, released_shapes

ATTENTION = "diffusion_model.layers.0.attention.to_q"


def inspected(path: Path, shapes: dict[str, tuple[int, ...]], **about: str) -> Inspection:
    write_header(path, shapes, metadata=about or None)
    return inspect_file(path)


@pytest.mark.parametrize("name", FILES)
def test_every_family_is_recognised_at_its_true_shapes(tmp_path: Path, name: str) -> None:
    family, shapes = FILES[name]
    found = inspected(tmp_path / "some.safetensors", shapes())
    assert found.family == family
    assert found.reason.endswith(".")
    if family == "Z-Image":
        assert found.verdict in {"usable", "convertible"}
    else:
        assert found.verdict == "unusable"
        assert "Z-Image is a single-stream transformer of 30 layers and width 3840" in found.reason
        assert "zimage migrate" in found.remedy


def test_the_table_of_layers_is_the_released_models_own() -> None:
    real = widths_of("ZImageTransformer2DModel")
    assert released_shapes() == real
    assert all(is_module(name) for name in real)
    assert not is_module("layers.0.attention.qkv")
    assert not is_module("context_refiner.0.adaLN_modulation.0")


def test_an_sdxl_lora_is_explained_in_the_words_of_its_own_layers(tmp_path: Path) -> None:
    found = inspected(tmp_path / "ada.safetensors", FILES["SDXL, kohya"][1]())
    assert found.reason.startswith(
        "This file is an SDXL LoRA: it changes the blocks of a U-Net with cross-attention width 2048. "
    )
    assert "none of the file's 648 layers has a place to go" in found.reason
    assert {target.block for target in found.targets} >= {"down_blocks", "up_blocks", "text encoder 2"}


def test_a_locon_is_told_from_a_lora_by_its_convolutions(tmp_path: Path) -> None:
    assert inspected(tmp_path / "x.safetensors", FILES["SDXL, LoCon"][1]()).kind == "LoCon"


@pytest.mark.parametrize("name", ["Lumina2, qkv only", "Ideogram4, attention only"])
def test_models_that_share_z_images_names_are_told_by_width(tmp_path: Path, name: str) -> None:
    family, shapes = FILES[name]
    found = inspected(tmp_path / "x.safetensors", shapes())
    assert found.family == family
    assert "carry some of the same names" in found.reason


@pytest.mark.parametrize(
    ("file", "about"),
    [("zimage_turbo_portrait.safetensors", {}), ("x.safetensors", {"modelspec.architecture": "Z-Image/lora"})],
)
def test_a_flux_lora_offered_as_a_z_image_one_is_seen_through(tmp_path: Path, file: str, about: dict[str, str]) -> None:
    found = inspected(tmp_path / file, FILES["Flux.1, kohya"][1](), **about)
    assert found.family == "Flux.1"
    assert found.reason.endswith("Its name or metadata says Z-Image, but its layers do not.")


def test_a_file_of_many_gigabytes_is_inspected_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    write_header(path, shapes_of_pairs(released_shapes(), "transformer.", *AB, rank=3840), dtype="F32")
    assert path.stat().st_size > 16e9
    found = inspect_file(path)
    assert (found.verdict, found.rank) == ("usable", 3840)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_named_with_rank_and_alpha(tmp_path: Path, dialect: str) -> None:
    path = tmp_path / "x.safetensors"
    write_dialect(path, dialect, factors_for_every_linear(tiny_transformer(), keep="attention.to_"), 0.5)
    found = inspect_file(path)
    assert (found.family, found.dialect, found.kind) == ("Z-Image", dialect, "LoRA")
    assert found.rank == ([3, 9] if dialect in {"native", "kohya-native"} else 3)
    has_alpha = any(key.endswith("alpha") for key in DIALECTS[dialect](factors_for_every_linear(tiny_transformer()), 1))
    assert (found.alpha is not None) == has_alpha
    assert "small Z-Image of width 32" in found.reason


def test_ranks_and_alphas_that_differ_are_all_listed(tmp_path: Path) -> None:
    tensors = {}
    for index, rank in enumerate((4, 8)):
        stem = f"lora_unet_layers_{index}_feed_forward_w1"
        tensors[f"{stem}.lora_down.weight"] = torch.ones(rank, 3840)
        tensors[f"{stem}.lora_up.weight"] = torch.ones(10240, rank)
        tensors[f"{stem}.alpha"] = torch.tensor(float(rank) / 2)
    save_file(tensors, tmp_path / "x.safetensors")
    found = inspect_file(tmp_path / "x.safetensors")
    assert (found.rank, found.alpha) == ([4, 8], [2.0, 4.0])


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({f"{ATTENTION}.lora_A.weight": (4, 3840), f"{ATTENTION}.lora_B.weight": (3840, 4)}, "LoRA"),
        ({f"{ATTENTION}.lokr_w1": (4, 4), f"{ATTENTION}.lokr_w2": (960, 960)}, "LoKr"),
        (
            {
                "lycoris_layers_0_attention_to_q.hada_w1_a": (3840, 4),
                "lycoris_layers_0_attention_to_q.hada_w1_b": (4, 3840),
                "lycoris_layers_0_attention_to_q.hada_w2_a": (3840, 4),
                "lycoris_layers_0_attention_to_q.hada_w2_b": (4, 3840),
            },
            "LoHa",
        ),
        ({f"{ATTENTION}.diff": (3840, 3840)}, "full weights"),
    ],
)
def test_the_kind_is_told_from_the_factors(tmp_path: Path, shapes: dict[str, tuple[int, ...]], kind: str) -> None:
    found = inspected(tmp_path / "x.safetensors", shapes)
    assert (found.family, found.kind) == ("Z-Image", kind)
    assert found.verdict in {"usable", "convertible"}


def test_dora_is_usable_in_comfyui_only(tmp_path: Path) -> None:
    shapes = {f"{ATTENTION}.lora_A.weight": (4, 3840), f"{ATTENTION}.lora_B.weight": (3840, 4)}
    found = inspected(tmp_path / "x.safetensors", shapes | {f"{ATTENTION}.dora_scale": (1, 3840)})
    assert (found.kind, found.verdict, found.comfyui, found.diffusers) == ("DoRA", "usable", "all", "wrong")
    assert found.remedy.startswith("Use it in ComfyUI as it is.")
    by_rows = inspected(tmp_path / "x.safetensors", shapes | {f"{ATTENTION}.dora_scale": (3840, 1)})
    assert (by_rows.kind, by_rows.verdict, by_rows.comfyui) == ("DoRA", "unusable", "wrong")
    peft = {name.replace("diffusion_model.", "base_model.model."): shape for name, shape in shapes.items()}
    found = inspected(
        tmp_path / "y.safetensors", peft | {"base_model.model.layers.0.attention.to_q.lora_magnitude_vector": (3840,)}
    )
    assert (found.kind, found.verdict) == ("DoRA", "unusable")


def test_a_strength_that_only_metadata_tells_makes_a_file_convertible(tmp_path: Path) -> None:
    shapes = {
        "transformer.layers.0.attention.to_q.lora_A.weight": (4, 3840),
        "transformer.layers.0.attention.to_q.lora_B.weight": (3840, 4),
    }
    told = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    found = inspected(tmp_path / "x.safetensors", shapes, **told)
    assert (found.verdict, found.diffusers, found.comfyui) == ("convertible", "all", "other strength")
    assert "ComfyUI applies it with 0.5 times the strength that its metadata tells" in found.reason
    same = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 4})}
    assert inspected(tmp_path / "y.safetensors", shapes, **same).verdict == "usable"


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        (
            {"diffusion_model.layers.30.attention.to_q.lora_A.weight": (4, 3840)}
            | {"diffusion_model.layers.30.attention.to_q.lora_B.weight": (3840, 4)},
            "It changes layers.30.attention.to_q, but Z-Image ends at layer 29 there.",
        ),
        (
            {f"{ATTENTION}.lora_A.weight": (4, 3840), f"{ATTENTION}.lora_B.weight": (1280, 4)},
            "in a Z-Image of width 3840 it has (3840, 3840)",
        ),
        (
            {f"{ATTENTION}.lora_A.weight": (4, 3840)},
            "is incomplete or of a kind nobody is known to write",
        ),
        (
            {"transformer.siglip_refiner.0.attention.to_q.lora_A.weight": (4, 3840)}
            | {"transformer.siglip_refiner.0.attention.to_q.lora_B.weight": (3840, 4)},
            "only Z-Image Omni and Edit have",
        ),
        (
            {f"{ATTENTION}.lora_A.weight": (4, 3840), f"{ATTENTION}.lora_B.weight": (3840, 4)}
            | {"diffusion_model.layers.0.attention.to_x.lora_A.weight": (4, 64)}
            | {"diffusion_model.layers.0.attention.to_x.lora_B.weight": (64, 4)},
            "1 of its 2 layers have no place in Z-Image",
        ),
    ],
)
def test_a_z_image_lora_that_fits_no_z_image_is_unusable_with_the_reason(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], reason: str
) -> None:
    found = inspected(tmp_path / "x.safetensors", shapes)
    assert (found.family, found.verdict) == ("Z-Image", "unusable")
    assert reason in found.reason


def test_a_whole_model_is_not_taken_for_a_lora(tmp_path: Path) -> None:
    whole = {f"{name}.weight": shape for name, shape in only(widths_of("ZImageTransformer2DModel"), "layers.").items()}
    found = inspected(tmp_path / "x.safetensors", whole)
    assert (found.family, found.kind, found.verdict) == ("Z-Image", "full weights", "unusable")
    assert "Use it as the base" in found.remedy


def test_the_text_says_the_verdict_first_and_the_metadata_last(tmp_path: Path) -> None:
    shapes = {f"{ATTENTION}.lora_A.weight": (4, 3840), f"{ATTENTION}.lora_B.weight": (3840, 4)}
    found = inspected(
        tmp_path / "x.safetensors", shapes, **{"modelspec.trigger_phrase": "ohwx", "ss_tag_frequency": "x"}
    )
    lines = as_text(found).splitlines()
    assert lines[0].endswith("x.safetensors: usable")
    assert lines[-1].split() == ["modelspec.trigger_phrase", "ohwx"]
    assert "ss_tag_frequency" not in found.metadata
