from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zimage.evaluation.generate.image_cache import ImageCache, Request, Sampling
from zimage.photos.pictures import read_rgb

SAMPLING = Sampling(side_px=64, steps=8, guidance_scale=0.0)
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"weights")
    return path


def request(lora: Path) -> Request:
    return Request("frontal-1", "a photo of ohzw woman", 0, lora, 1.0)


def test_a_picture_that_is_kept_is_not_missing_and_comes_back_to_the_last_bit(tmp_path: Path, lora: Path) -> None:
    image_cache = ImageCache(tmp_path / "image_cache", "sha256:base", SAMPLING)
    wanted = request(lora)
    assert image_cache.missing([wanted, wanted]) == [wanted]
    image_cache.keep(wanted, PICTURE)
    assert ImageCache(tmp_path / "image_cache", "sha256:base", SAMPLING).missing([wanted]) == []
    assert np.array_equal(read_rgb(image_cache.path(wanted)), PICTURE)


@pytest.mark.parametrize(
    "change", [{"text": "a photo of a man"}, {"seed": 1}, {"prompt": "frontal-2"}, {"strength": 0.8}, {"lora": None}]
)
def test_whatever_decides_a_picture_decides_where_it_lies(
    change: dict[str, object], tmp_path: Path, lora: Path
) -> None:
    image_cache = ImageCache(tmp_path / "image_cache", "sha256:base", SAMPLING)
    assert image_cache.path(request(lora)) != image_cache.path(replace(request(lora), **change))  # type: ignore[arg-type]


def test_other_weights_under_the_same_name_are_another_picture(tmp_path: Path, lora: Path) -> None:
    before = ImageCache(tmp_path / "image_cache", "sha256:base", SAMPLING).path(request(lora))
    lora.write_bytes(b"retrained")
    assert ImageCache(tmp_path / "image_cache", "sha256:base", SAMPLING).path(request(lora)) != before


@pytest.mark.parametrize(
    ("base", "sampling"), [("sha256:other", SAMPLING), ("sha256:base", replace(SAMPLING, steps=9))]
)
def test_another_base_or_sampling_is_another_picture(base: str, sampling: Sampling, tmp_path: Path, lora: Path) -> None:
    first = ImageCache(tmp_path / "image_cache", "sha256:base", SAMPLING)
    assert ImageCache(tmp_path / "image_cache", base, sampling).path(request(lora)) != first.path(request(lora))


def test_weights_that_are_rounded_otherwise_after_merging_are_another_picture(tmp_path: Path, lora: Path) -> None:
    ways = [replace(SAMPLING, merged=True, precision=each) for each in (None, "float32", "fp8")]  # type: ignore[arg-type]
    paths = {ImageCache(tmp_path / "image_cache", "sha256:base", way).path(request(lora)) for way in ways}
    assert len(paths) == 3


def test_pictures_that_nobody_wants_any_more_are_removed(tmp_path: Path, lora: Path) -> None:
    image_cache = ImageCache(tmp_path / "image_cache", "sha256:base", SAMPLING)
    old, new = replace(request(lora), strength=0.5), request(lora)
    for one in (old, new):
        image_cache.keep(one, PICTURE)
    image_cache.forget_all_but([new])
    assert (image_cache.missing([old, new]), len(list(image_cache.folder.iterdir()))) == ([old], 1)
