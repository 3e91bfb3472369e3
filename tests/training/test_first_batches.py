"""The first batches can be looked at before a training begins."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.recipe import recipe
from zimage.model.sequence import SequenceBucket
from zimage.training.dataset import Dataset
from zimage.training.first_batches import (
    GAP_PX,
    HEIGHT_PX,
    read_first_batches,
    thumbnail_of,
    write_first_batches,
)
from zimage.training.page import render, seen
from zimage.training.plan import Step
from zimage.training.setup import _plan_steps


@pytest.fixture
def dataset(tiny_encoded: Path) -> Dataset:
    return Dataset(tiny_encoded, device=torch.device("cpu"), face_weight=1.0)


def test_the_crops_and_captions_are_those_of_the_planned_steps(
    dataset: Dataset, tiny_encoded: Path, tmp_path: Path
) -> None:
    steps = _plan_steps(dataset, recipe(steps=6, batch_size=3))
    write_first_batches(tiny_encoded, tmp_path, dataset, steps)

    found = read_first_batches(tmp_path)

    assert [batch.step for batch in found] == [1, 2, 3, 4]
    for batch, step in zip(found, steps, strict=False):
        assert batch.captions == [dataset.texts[text].prompt for text in step.texts]
        widths = [round(dataset.items[item].width * HEIGHT_PX / dataset.items[item].height) for item in step.items]
        with Image.open(tmp_path / "samples" / f"first-batch-{batch.step}.jpg") as strip:
            assert strip.size == (sum(widths) + 2 * GAP_PX, HEIGHT_PX)


def test_a_strip_shows_the_crops_in_the_order_of_the_captions(
    dataset: Dataset, tiny_encoded: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_encoded / "thumbnails", tmp_path / "thumbnails")
    for item, level in ((0, 255), (1, 0)):
        (tmp_path / "thumbnails" / f"000{item}.jpg").write_bytes(thumbnail_of(np.full((64, 64, 3), level, np.uint8)))
    write_first_batches(tmp_path, tmp_path, dataset, [Step(SequenceBucket(8, 8, 32), (1, 0), (0, 0))])
    with Image.open(tmp_path / "samples" / "first-batch-1.jpg") as strip:
        left, right = (strip.convert("L").getpixel((x, 50)) for x in (20, strip.width - 20))
    assert (left, right) == (0, 255)


def test_the_page_shows_them_and_names_a_dropped_caption(dataset: Dataset, tiny_encoded: Path, tmp_path: Path) -> None:
    shown = {"title": "t", "total": 8, "pictured": False, "working": True}
    assert "First batches" not in render(seen(tmp_path), [], **shown)  # type: ignore[arg-type]
    write_first_batches(tiny_encoded, tmp_path, dataset, [Step(SequenceBucket(8, 8, 32), (1,), (dataset.empty,))])
    page = render(seen(tmp_path), [], **shown)  # type: ignore[arg-type]
    assert "<h2>First batches</h2>" in page and page.count("data:image/jpeg;base64,") == 1
    assert "<li>(no caption: train.caption_dropout)</li>" in page


def test_what_an_older_version_encoded_has_none(dataset: Dataset, tmp_path: Path) -> None:
    write_first_batches(tmp_path, tmp_path, dataset, _plan_steps(dataset, recipe(steps=2)))
    assert read_first_batches(tmp_path) == []
