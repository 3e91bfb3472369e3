"""How often the crops of a photo come and how much they count, by its name."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.training.crops import SUBJECT, write_detect_and_caption
from tests.training.recipe import recipe
from zimage.core.errors import InputError
from zimage.core.jsonl import write_rows
from zimage.model.base import Base
from zimage.photos.rows import ManifestRow
from zimage.stages.encode import EncodeParams, encode
from zimage.training.dataset import Dataset
from zimage.training.photo_patterns import by_photo
from zimage.training.setup import _plan_steps


def _manifest(detect: Path, **names: str) -> Path:
    """Write the manifest of photos by their short hash; what is not read of it is empty."""
    fields = {name: None for name, field in ManifestRow.model_fields.items() if field.is_required()}
    given = {"decision": "train", "reason": "kept", "detail": "", "engine_id": "none", "faces": [], "crops": []}
    detect.mkdir(parents=True, exist_ok=True)
    rows = [
        ManifestRow.model_validate({**fields, **given, "photo": photo, "name": name}) for photo, name in names.items()
    ]
    write_rows(detect / "manifest.jsonl", rows)
    return detect


def test_the_last_pattern_that_matches_holds_and_folder_names_decide_nothing(tmp_path: Path) -> None:
    detect = _manifest(tmp_path, aa="10_ohwx woman/a.jpg", bb="100_PANA/b.jpg", cc="portraits/best/c.jpg")
    assert by_photo(detect, {}, "encode.repeats") == {}
    assert by_photo(detect, {"portraits/*": 2, "portraits/best/*": 5}, "encode.repeats") == {"cc": 5}
    assert by_photo(detect, {"*": 2, "10_*": 10}, "encode.repeats") == {"aa": 10, "bb": 2, "cc": 2}


def test_a_pattern_that_matches_no_photo_is_refused_with_a_name_that_is_there(tmp_path: Path) -> None:
    detect = _manifest(tmp_path, aa="a.jpg", cc="Portraits/c.jpg")
    with pytest.raises(InputError, match=r"`portraits/\*`, which matches no photo; .* such as `Portraits/c.jpg`"):
        by_photo(detect, {"portraits/*": 2}, "encode.repeats")


def test_crops_come_as_often_as_their_repeats(tiny_base: Base, tmp_path: Path) -> None:
    detect, caption = write_detect_and_caption(tmp_path, width=64)
    _manifest(detect, aa="portraits/a.jpg", bb="b.jpg", cc="c.jpg")
    params = EncodeParams(
        mirror=False, class_pictures=None, sample_prompts=[], also_px=[32], repeats={"portraits/*": 3}
    )
    encode(detect, caption, tmp_path / "encode", params=params, base=tiny_base, subject=SUBJECT)

    dataset = Dataset(tmp_path / "encode", device=torch.device("cpu"), face_weight=1.0)
    came = Counter(item for step in _plan_steps(dataset, recipe(steps=120, batch_size=1)) for item in step.items)
    assert [dataset.items[item].file for item in sorted(came)] == ["train/aa-full.png"] * 2 + ["train/bb-head.png"] * 2
    assert [came[item] for item in sorted(came)] == [45, 45, 15, 15]


@pytest.mark.parametrize("times", [0, -1, 1001])
def test_repeats_that_are_no_number_of_times_are_refused(times: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000 times; leave photos out"):
        EncodeParams(mirror=False, class_pictures=None, sample_prompts=[], repeats={"a/*": times})


@pytest.mark.parametrize("face_weight", [1.0, 4.0])
def test_the_loss_of_crops_is_multiplied_with_their_weight(tiny_base: Base, tmp_path: Path, face_weight: float) -> None:
    detect, caption = write_detect_and_caption(tmp_path, width=64)
    _manifest(detect, aa="old/a.jpg", bb="b.jpg")
    found = {}
    for name, weights in (("without", {}), ("with", {"old/*": 0.25})):
        params = EncodeParams(mirror=False, class_pictures=None, sample_prompts=[], weights=weights)
        encode(detect, caption, tmp_path / name, params=params, base=tiny_base, subject=SUBJECT)
        dataset = Dataset(tmp_path / name, device=torch.device("cpu"), face_weight=face_weight)
        for step in _plan_steps(dataset, recipe(steps=8, batch_size=1)):
            weights_of_pixels = dataset.loss_weights(step)
            assert weights_of_pixels is not None or (face_weight == 1 and name == "without")
            flat = torch.ones(1, 1, step.bucket.height, step.bucket.width)
            found[name, dataset.items[step.items[0]].photo] = flat if weights_of_pixels is None else weights_of_pixels

    assert torch.equal(found["with", "aa"], 0.25 * found["without", "aa"])
    assert torch.equal(found["with", "bb"], found["without", "bb"])


@pytest.mark.parametrize("weight", [0.0, -1.0, 101.0])
def test_weights_out_of_bounds_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 100; leave photos out"):
        EncodeParams(mirror=False, class_pictures=None, sample_prompts=[], weights={"a/*": weight})
