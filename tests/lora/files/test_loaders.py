"""The table of what loaders do with each way of writing, against the loaders themselves."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.lora import comfyui_oracle
from tests.lora.loader_table import BLOCKS, GROUPS, Way, by_comfyui, by_diffusers, make, reading, ways
from zimage.core.errors import InputError
from zimage.lora.convert.conversion import Plan, convert
from zimage.lora.files.header import read_header
from zimage.lora.files.inspection import inspect_file
from zimage.lora.files.layers import layers_of
from zimage.lora.files.loaders import is_balanced, readings, table, versions
from zimage.lora.files.strength import strengths_of

SAMPLE = random.Random(0).sample(list(ways()), 24)
NO_CHECKOUT = f"{comfyui_oracle.VARIABLE} names no checkout of ComfyUI, or comfy-kitchen and comfy-aimdo are absent"


def written(tmp_path: Path, way: Way, groups: tuple[str, ...] = tuple(GROUPS)) -> Path:
    case = make(way, groups)
    path = tmp_path / "lora.safetensors"
    save_file(dict(case.tensors), path, metadata=dict(case.metadata))
    return path


def test_the_table_has_every_way_and_names_the_versions_that_were_run() -> None:
    assert set(table()) == {way.key for way in ways()}
    assert len(table()) >= 200
    assert set(versions()) == {"diffusers", "peft", "torch", "ComfyUI"}


@pytest.mark.parametrize("way", SAMPLE, ids=lambda way: way.key)
def test_diffusers_does_what_the_table_says(tmp_path: Path, way: Way) -> None:
    path = written(tmp_path, way, BLOCKS)
    try:
        found = reading(make(way, BLOCKS), by_diffusers(path), BLOCKS)
    except Exception as error:  # noqa: BLE001 - what it raises is the answer
        found = {"error": type(error).__name__}
    said = table()[way.key]["diffusers"]
    assert found.keys() == said.keys()
    # A matrix without values holds what its memory held (diffusers 0.42.1), so layers of a group differ by chance then.
    assert {key: value for key, value in found.items() if said[key] != "wrong"} == {
        key: value for key, value in said.items() if value != "wrong"
    }
    assert not any(found[key] == "whole" for key, value in said.items() if value == "wrong")


@pytest.mark.skipif(comfyui_oracle.checkout() is None, reason=NO_CHECKOUT)
@pytest.mark.parametrize("way", SAMPLE, ids=lambda way: way.key)
def test_comfyui_does_what_the_table_says(tmp_path: Path, way: Way) -> None:
    assert comfyui_oracle.version() == versions()["ComfyUI"]
    path = written(tmp_path, way)
    try:
        found = reading(make(way, tuple(GROUPS)), by_comfyui(path), tuple(GROUPS))
    except Exception as error:  # noqa: BLE001 - what it raises is the answer
        found = {"error": type(error).__name__}
    assert found == {name: value for name, value in table()[way.key]["comfyui"].items() if name != "also"}


def test_inspecting_answers_every_row_with_what_was_measured(tmp_path: Path) -> None:
    for way in random.Random(1).sample(list(ways()), 200):
        path = written(tmp_path, way)
        header = read_header(path)
        said = readings(layers_of(header), strengths_of(header.metadata))
        row = table()[way.key]
        for loader, column in (("diffusers", "diffusers_outer"), ("comfyui", "comfyui")):
            measured = {value for name, value in row[column].items() if name != "also"}
            if "error" in row[column]:
                assert said[loader].reading == "error", (way.key, loader)  # type: ignore[index]
            elif not way.also:
                whole = said[loader].reading == "all"  # type: ignore[index]
                assert whole == (measured == {"whole"}), (way.key, loader, said[loader], row[column])  # type: ignore[index]


@pytest.mark.parametrize(
    ("left", "balanced"), [((8, 8), True), ((16, 16), True), ((480, 8), False), ((60, 60), True), ((64, 60), False)]
)
def test_peft_makes_a_lokr_of_the_shapes_that_are_called_balanced(
    tmp_path: Path, left: tuple[int, int], balanced: bool
) -> None:
    from diffusers.utils.peft_utils import _create_lokr_config

    rows, columns = left
    name = "layers.0.attention.to_q"
    tensors = {f"{name}.lokr_w1": torch.zeros(left), f"{name}.lokr_w2": torch.zeros(3840 // rows, 3840 // columns)}
    save_file({f"diffusion_model.{key}": value for key, value in tensors.items()}, tmp_path / "x.safetensors")
    assert is_balanced(layers_of(read_header(tmp_path / "x.safetensors"))) == balanced
    if balanced:
        assert _create_lokr_config(tensors, None).decompose_factor
    else:
        with pytest.raises(ValueError, match="decompose_factor"):
            _create_lokr_config(tensors, None)


def test_inspecting_and_converting_agree_about_every_way(tmp_path: Path) -> None:
    for way in random.Random(2).sample(list(ways()), 150):
        path, out = written(tmp_path, way), tmp_path / "out.safetensors"
        said = inspect_file(path)
        asks = any(option in said.remedy for option in ("--adapter", "--alpha", "--leave-out", "--rank"))
        try:
            convert(path, out, Plan("portable", None, None))
        except InputError as error:
            refused = str(error)
            assert said.verdict == "unusable" or asks or "DoRA" in said.reason, (way.key, said.reason, refused)
            assert not out.exists()
        else:
            assert said.verdict in {"usable", "convertible"}, (way.key, said.reason)
            again = inspect_file(out)
            assert (again.verdict, again.diffusers, again.comfyui) == ("usable", "all", "all"), (way.key, again.reason)
            out.unlink()
