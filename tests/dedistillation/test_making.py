"""A training adapter is made from the base's own pictures, and does what it is for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.cli.test_main import zimage
from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE, recipe
from zimage.core.csv_rows import read_whole_rows
from zimage.core.errors import InputError
from zimage.core.params import with_values
from zimage.core.section import read_section
from zimage.dedistillation.making import (
    PACKAGED_PROMPTS,
    PACKAGED_SETTINGS,
    MakingParams,
    make_training_adapter,
    read_prompts,
)
from zimage.evaluation.generate.base_pictures import planned
from zimage.lora.files.inspection import inspect_file
from zimage.model.base import Base
from zimage.stages.train import train
from zimage.training.params import TrainParams
from zimage.training.validation import mean_loss, read_validation

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "pictures": 9,
    "sizes_px": [[64, 64], [48, 64]],
    "steps": 2,
    "guidance_scale": 0.0,
    "seed": 0,
    "train": {
        "steps": 40,
        "optimiser.learning_rate": 5e-3,
        "rank": 4,
        "checkpoint_every": 20,
        "targets": ["attention", "feed_forward", "modulation"],
    },
}


@pytest.fixture(scope="module")
def folder(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Params, settings and prompts of a small making."""
    folder = tmp_path_factory.mktemp("making")
    params = {
        "base": tiny_base.model_dump(),
        "machine": MACHINE.model_dump(),
        "train": json.loads(recipe(adapter="lokr", face_weight=3.0).model_dump_json()),
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (folder / "settings.yaml").write_text(yaml.safe_dump({"training_adapter": SETTINGS}), encoding="utf-8")
    (folder / "prompts.txt").write_text("# two\na photo of a lake\n\na photo of a dog\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    words = ("--params", "params.yaml", "--settings", "settings.yaml", "--prompts", "prompts.txt")
    found = zimage("training-adapter", "out", *words, cwd=folder)
    assert found.returncode == 0, found.stderr
    assert "pictures 9/9" in found.stderr and "undone on purpose" in found.stderr
    (folder / "said.txt").write_text(found.stdout, encoding="utf-8")
    return folder / "out"


def _again(folder: Path, **changes: Any) -> list[str]:
    return make_training_adapter(
        folder / "out",
        params_file=folder / "params.yaml",
        settings_file=changes.get("settings", folder / "settings.yaml"),
        prompts_file=folder / "prompts.txt",
    )


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_it_is_a_lora_of_the_base_s_own_pictures_that_says_so(made: Path) -> None:
    assert sorted(map(_size, (made / "pictures").iterdir())) == [(48, 64)] * 4 + [(64, 64)] * 5
    path = made / "training_adapter.safetensors"
    found = inspect_file(path)
    assert (found.verdict, found.diffusers, found.comfyui) == ("usable", "all", "all")
    assert any("adaLN_modulation" in name for name in load_file(path))
    with safe_open(str(path), framework="pt") as file:
        said = file.metadata()
    assert said["modelspec.trigger_phrase"] == "" and "training adapter" in said["modelspec.title"]
    assert said["zimage.training_set"].startswith("synthetic: 9 pictures that the base generated, sha256:")
    assert "trainingadapter" not in "".join(said.values())


def test_it_predicts_the_velocity_of_held_out_pictures_of_the_base_better(made: Path) -> None:
    losses = mean_loss(read_validation(made / "train" / "samples" / "validation.csv"))
    assert losses[40] < 0.95 * losses[0]
    assert f"{losses[0]:.4f} before, {losses[40]:.4f} after" in (made.parent / "said.txt").read_text()


def test_training_loads_it_and_the_subject_s_lora_becomes_another_one(
    made: Path, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    """With the setting that the command printed; the loss of training on the base's own pictures is lower with it."""
    line = (made.parent / "said.txt").read_text().splitlines()[-1]
    pinned = yaml.safe_load(line.partition("train.training_adapter=")[2].rstrip("'"))
    loras, losses = {}, {}
    for name, adapter in (("worn", pinned), ("plain", None)):
        subjects, own = tmp_path / f"{name} subject", tmp_path / f"{name} own"
        params = recipe(training_adapter=adapter, steps=2)
        train(tiny_encoded, subjects, params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)
        loras[name] = load_file(subjects / "lora.safetensors")
        still = recipe(training_adapter=adapter, optimiser={"learning_rate": 1e-9})
        train(made / "encode", own, params=still, base=tiny_base, subject=SUBJECT, machine=MACHINE)
        losses[name] = [float(row["loss"]) for row in read_whole_rows(own / "loss.csv")]
    assert loras["worn"].keys() == loras["plain"].keys()
    assert not any(torch.equal(loras["worn"][key], loras["plain"][key]) for key in loras["worn"] if "lora_B" in key)
    assert len(losses["worn"]) == len(losses["plain"]) == 6
    assert sum(losses["worn"]) < 0.95 * sum(losses["plain"])


def test_a_second_call_makes_only_what_is_missing(folder: Path, made: Path) -> None:
    lora, pictures = made / "train" / "lora.safetensors", sorted((made / "pictures").iterdir())
    times = [path.stat().st_mtime_ns for path in (lora, *pictures[1:])]
    before = (made / "training_adapter.safetensors").read_bytes(), pictures[0].read_bytes()
    pictures[0].unlink()
    said = (folder / "said.txt").read_text().splitlines()
    assert _again(folder)[::2] == said[::2]
    assert [path.stat().st_mtime_ns for path in (lora, *pictures[1:])] == times
    assert ((made / "training_adapter.safetensors").read_bytes(), pictures[0].read_bytes()) == before


def test_other_settings_need_another_folder(folder: Path, made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"training_adapter": {**SETTINGS, "seed": 1}}), encoding="utf-8")
    with pytest.raises(InputError, match="other settings; name another folder"):
        _again(folder, settings=other)
    assert made.is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n# nothing\n", "has no prompts"),
        (b"\xff\xfe", "no text in UTF-8"),
        (None, "There is no file"),
    ],
)
def test_a_file_without_prompts_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / "prompts.txt")


def test_settings_that_cannot_be_used_are_refused_before_any_picture(folder: Path, tmp_path: Path) -> None:
    for change, message in (
        ({"sizes_px": [[64, 70]]}, "multiples of 16"),
        ({"train": {"stepps": 3}}, "stepps"),
        ({"pictures": 1}, "pictures"),
    ):
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump({"training_adapter": {**SETTINGS, **change}}), encoding="utf-8")
        with pytest.raises(InputError, match=message):
            make_training_adapter(tmp_path / "out", params_file=folder / "params.yaml", settings_file=path)
        assert not (tmp_path / "out").exists()


def test_the_packaged_settings_and_prompts_can_be_used(tmp_path: Path) -> None:
    making = read_section(PACKAGED_SETTINGS, "training_adapter", MakingParams)
    prompts = read_prompts(PACKAGED_PROMPTS)
    asked: dict[str, Any] = {"number": making.pictures, "steps": 8, "guidance_scale": 0.0, "seed": 0}
    pictures = planned(prompts, making.sizes_px, **asked)
    assert len(set(pictures)) == making.pictures == len(pictures)
    of_the_first = {(one.sampling.width_px, one.sampling.side_px) for one in pictures if one.text == prompts[0]}
    assert of_the_first == {(width, height) for width, height in making.sizes_px}
    text = with_values(
        (ROOT / "params.yaml").read_text(encoding="utf-8"),
        {f"train.{key}": value for key, value in making.train.items()},
        "test",
    )
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert read_section(tmp_path / "params.yaml", "train", TrainParams).optimiser.learning_rate == 1e-5
