from pathlib import Path

import pytest
import torch

from tests.evaluation.photos import noise, views
from tests.evaluation.tiny_clip import write_tiny_clip
from zimage.core.errors import InputError
from zimage.evaluation.score.clip import ClipParams, open_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


def test_agreement_is_a_cosine_that_follows_picture_and_prompt(folder: Path) -> None:
    clip = open_clip(ClipParams(model=str(folder), languages=["en"]))
    assert clip is not None
    picture, other = views(1, seed=0)[0], noise(1, seed=0)[0]
    agreement = clip.agreement(picture, "a photo of a woman")
    assert -1 <= agreement <= 1 and agreement == clip.agreement(picture, "a photo of a woman")
    assert agreement != clip.agreement(other, "a photo of a woman")
    assert agreement != clip.agreement(picture, "a boat on a lake")
    assert -1 <= clip.agreement(picture, "a very long prompt " * 40) <= 1  # cut at CLIP's 77 tokens


def test_a_model_that_is_not_in_the_cache_is_absent_and_no_error() -> None:
    assert open_clip(ClipParams(model="nobody/no-such-clip", languages=["en"])) is None


def test_a_folder_that_does_not_exist_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no CLIP model"):
        open_clip(ClipParams(model=str(tmp_path / "absent"), languages=["en"]))


def test_the_same_picture_again_has_no_variety_and_pairs_agree_with_their_embeddings(folder: Path) -> None:
    clip = open_clip(ClipParams(model=str(folder), languages=["en"]))
    assert clip is not None
    one, other = views(1, seed=0)[0], noise(1, seed=0)[0]
    assert clip.variety([one, one]) == pytest.approx([0], abs=1e-5)
    assert clip.variety([one]) == []
    first, second, third = clip.variety([one, one, other])
    assert first < 1e-5 < second == pytest.approx(third, abs=1e-5)
    with torch.inference_mode():
        seen = clip.model(**clip.processor(text=["a"], images=[one, other], return_tensors="pt")).image_embeds
    assert second == pytest.approx(1 - float(seen[0] @ seen[1]), abs=1e-5)
