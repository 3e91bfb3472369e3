"""Drawing a training set with an older model, here a tiny SDXL of the real classes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.lora.old_model import write_sdxl_lora, write_tiny_sdxl
from tests.tiny_base import write_tiny_base
from zimage.core.assets import asset
from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.core.section import read_section
from zimage.migration.rendering import OldModel, RenderParams, planned, render

# Of diffusers' Euler scheduler with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PACKAGED = asset("migrate.yaml")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sdxl(tmp_path_factory.mktemp("old") / "sdxl")


@pytest.fixture
def old(sdxl: Path, tmp_path: Path) -> OldModel:
    return OldModel(sdxl, write_sdxl_lora(tmp_path / "old.safetensors"))


def cheap(**changes: object) -> RenderParams:
    params = read_section(PACKAGED, "render", RenderParams)
    return params.model_copy(update={"pictures": 2, "side_px": 64, "steps": 2, **changes})


def test_every_value_is_drawn_equally_often_and_in_no_pattern() -> None:
    params = read_section(PACKAGED, "render", RenderParams)
    rows = planned(params, "ohwx woman")
    assert len({row.seed for row in rows}) == len({row.file for row in rows}) == params.pictures
    assert all("ohwx woman" in row.prompt for row in rows)
    for values in (params.framings, params.angles, params.expressions, params.places, params.lights):
        counts = Counter(value for row in rows for value in values if f", {value}" in row.prompt)
        assert sum(counts.values()) == params.pictures
        assert max(counts.values()) - min(counts.values()) <= 1
    pairs = Counter(
        (place, light)
        for row in rows
        for place in params.places
        for light in params.lights
        if f"{place}, {light}" in row.prompt
    )
    assert max(pairs.values()) < params.pictures / len(params.places)
    assert planned(params, "ohwx woman") == rows


def test_a_template_that_names_something_else_is_refused() -> None:
    with pytest.raises(InputError, match=r"may name \{person\}, \{framing\}.* and nothing else"):
        planned(cheap(prompt="photo of {name}"), "ohwx")


def test_an_sdxl_with_its_lora_draws_the_set_and_the_lora_counts(old: OldModel, tmp_path: Path) -> None:
    params = cheap()
    rows = planned(params, "ohwx")
    render(old, rows, tmp_path / "a", params=params)
    assert [row.file for row in read_rows(tmp_path / "a" / "renders.jsonl", type(rows[0]))] == [
        row.file for row in rows
    ]
    weak = params.model_copy(update={"strength": 0.001})
    render(old, rows[:1], tmp_path / "b", params=weak)
    with Image.open(tmp_path / "a" / rows[0].file) as strong, Image.open(tmp_path / "b" / rows[0].file) as weaker:
        assert strong.size == (64, 64)
        assert np.abs(np.asarray(strong, float) - np.asarray(weaker, float)).mean() > 0.5


def test_what_is_drawn_already_is_not_drawn_again(old: OldModel, tmp_path: Path) -> None:
    params = cheap()
    rows = planned(params, "ohwx")
    out = tmp_path / "out"
    out.mkdir()
    (out / rows[0].file).write_bytes(b"drawn before")
    render(old, rows, out, params=params)
    assert (out / rows[0].file).read_bytes() == b"drawn before"
    with Image.open(out / rows[1].file) as picture:
        assert picture.size == (64, 64)
    gone = OldModel(tmp_path / "gone", old.lora)
    render(gone, rows, out, params=params)  # all is there, so the model is not even opened


def test_a_lora_of_another_model_is_refused_before_anything_is_drawn(sdxl: Path, tmp_path: Path) -> None:
    stem = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file(
        {f"{stem}.lora_A.weight": torch.ones(1, 2048), f"{stem}.lora_B.weight": torch.ones(640, 1)},
        tmp_path / "x.safetensors",
    )
    params = cheap()
    with pytest.raises(
        InputError, match=r"cannot apply it to .*is a SDXL LoRA; name the folder of the model it was trained on"
    ):
        render(OldModel(sdxl, tmp_path / "x.safetensors"), planned(params, "ohwx"), tmp_path / "out", params=params)
    assert not list((tmp_path / "out").iterdir())


def test_a_z_image_lora_needs_no_migration(sdxl: Path, tmp_path: Path) -> None:
    stem = "diffusion_model.layers.0.attention.to_q"
    save_file(
        {f"{stem}.lora_A.weight": torch.ones(1, 3840), f"{stem}.lora_B.weight": torch.ones(3840, 1)},
        tmp_path / "x.safetensors",
    )
    params = cheap()
    with pytest.raises(InputError, match="is a Z-Image LoRA already; `zimage convert`"):
        render(OldModel(sdxl, tmp_path / "x.safetensors"), planned(params, "ohwx"), tmp_path / "out", params=params)


def test_a_folder_that_is_no_model_and_a_model_of_another_kind_are_refused(old: OldModel, tmp_path: Path) -> None:
    params = cheap()
    rows = planned(params, "ohwx")
    with pytest.raises(InputError, match=r"has no model_index\.json; name the old model's folder"):
        render(OldModel(tmp_path, old.lora), rows, tmp_path / "out", params=params)
    write_tiny_base(tmp_path / "zimage")
    with pytest.raises(InputError, match=r"diffusers (cannot apply it to|applies nothing of it to)"):
        render(OldModel(tmp_path / "zimage", old.lora), rows, tmp_path / "out", params=params)
