"""The loss on held-out crops beside the training loss: the same noise at each checkpoint, and nothing chosen by it."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.training.crops import SUBJECT, write_detect_and_caption
from tests.training.recipe import MACHINE, recipe
from zimage.core.jsonl import read_rows
from zimage.model.base import Base, open_transformer, resolve
from zimage.model.rows import ItemRow, TextRow
from zimage.stages.encode import EncodeParams, encode
from zimage.stages.train import train
from zimage.training.page import render, seen
from zimage.training.validation import (
    CURVE,
    ITEMS,
    LATENTS,
    SIGMAS,
    ValidationItemRow,
    mean_loss,
    open_validation,
    read_validation,
)

PARAMS = recipe(steps=4, checkpoint_every=2)


@pytest.fixture(scope="module")
def trained(tiny_base: Base, tiny_encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validation") / "train"
    train(tiny_encoded, folder, params=PARAMS, base=tiny_base, subject=SUBJECT, machine=MACHINE)
    return folder


def test_a_held_out_crop_is_encoded_at_a_training_size_and_is_no_picture_to_learn(tiny_encoded: Path) -> None:
    (row,) = read_rows(tiny_encoded / ITEMS, ValidationItemRow)
    texts = {text.text: text.prompt for text in read_rows(tiny_encoded / "texts.jsonl", TextRow)}

    assert (row.file, row.width, row.height) == ("holdout/cc.png", 64, 64)  # 90 x 91 px: nearer to it than 48 x 64
    assert texts[row.text] == "a photo of ohzw woman"
    assert load_file(tiny_encoded / LATENTS)[row.item].shape[1:] == (8, 8)
    assert all(item.file != row.file for item in read_rows(tiny_encoded / "items.jsonl", ItemRow))


def test_each_checkpoint_and_the_base_model_are_measured_at_each_sigma(trained: Path) -> None:
    rows = read_validation(trained / CURVE)

    assert [(row.step, row.sigma) for row in rows] == [(step, sigma) for step in (0, 2, 4) for sigma in SIGMAS]
    assert len(mean_loss(rows)) == 3


def test_the_base_model_s_loss_is_that_of_diffusers_own_transformer(
    trained: Path, tiny_base: Base, tiny_encoded: Path
) -> None:
    from zimage.training.noise import generator_of

    (row,) = read_rows(tiny_encoded / ITEMS, ValidationItemRow)
    clean = load_file(tiny_encoded / LATENTS)[row.item]
    states = load_file(tiny_encoded / "texts.safetensors")[row.text]
    noise = torch.randn(clean.shape, generator=generator_of(PARAMS.seed, "validation", row.item))
    transformer = open_transformer(resolve(tiny_base), device="cpu", dtype=torch.float32)

    for measured in read_validation(trained / CURVE)[: len(SIGMAS)]:
        noisy = (1 - measured.sigma) * clean + measured.sigma * noise
        with torch.no_grad():
            (answer,) = transformer([noisy[:, None]], torch.tensor([1 - measured.sigma]), [states], return_dict=False)[
                0
            ]
        error = (-answer[:, 0] - (noise - clean)).square().mean()
        assert measured.loss == pytest.approx(float(error), rel=1e-4)


def test_without_held_out_crops_the_same_lora_is_learnt(
    trained: Path, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "encode"
    shutil.copytree(tiny_encoded, bare, ignore=shutil.ignore_patterns(ITEMS, LATENTS))
    train(bare, tmp_path / "train", params=PARAMS, base=tiny_base, subject=SUBJECT, machine=MACHINE)

    found, expected = (load_file(folder / "lora.safetensors") for folder in (tmp_path / "train", trained))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not (tmp_path / "train" / CURVE).exists()


def test_steps_that_are_made_again_replace_their_rows(
    trained: Path, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    from zimage.training.distributed import World
    from zimage.training.setup import build_run

    (tmp_path / CURVE).parent.mkdir()
    whole = (trained / CURVE).read_bytes()
    (tmp_path / CURVE).write_bytes(whole[:-4])  # torn where the run was killed
    objective = build_run(tiny_encoded, resolve(tiny_base), PARAMS, MACHINE, World()).loop.objective
    curve = open_validation(tiny_encoded, tmp_path, objective)
    assert curve is not None

    curve.add(0)  # the adapters change nothing yet

    assert (tmp_path / CURVE).read_bytes() == b"".join(whole.splitlines(keepends=True)[: 1 + len(SIGMAS)])


def test_the_loss_falls_on_a_photo_like_those_that_are_learnt(tiny_base: Base, tmp_path: Path) -> None:
    detect, caption = write_detect_and_caption(tmp_path, width=64)
    with Image.open(detect / "train" / "aa-full.png") as learnt:
        learnt.resize((90, 91), Image.Resampling.LANCZOS).save(detect / "holdout" / "cc.png")
    params = EncodeParams(mirror=False, class_pictures=None, sample_prompts=[])
    encode(detect, caption, tmp_path / "encode", params=params, base=tiny_base, subject=SUBJECT)
    longer = recipe(steps=40, checkpoint_every=20, caption_dropout=0.0, face_weight=1.0)

    train(tmp_path / "encode", tmp_path / "train", params=longer, base=tiny_base, subject=SUBJECT, machine=MACHINE)

    before, middle, after = mean_loss(read_validation(tmp_path / "train" / CURVE)).values()
    assert after < middle < before


def test_the_page_draws_the_loss_on_held_out_photos(trained: Path, tmp_path: Path) -> None:
    def shown(folder: Path) -> str:
        return render(seen(folder), [], title="Training", total=4, pictured=False, working=False)

    assert "Loss on held-out photos" in shown(trained)
    assert "Loss on held-out photos" not in shown(tmp_path)
