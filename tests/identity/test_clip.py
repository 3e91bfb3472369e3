import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from tests.identity.photos import noise, views
from zimage.errors import InputError
from zimage.identity.clip import ClipParams, open_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of a few thousand random weights, of the real class, with its processor."""
    made = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (made / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}), encoding="utf-8")
    (made / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(made / "vocab.json"), str(made / "merges.txt"), model_max_length=77)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(words), "eos_token_id": 1, "bos_token_id": 0},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(made)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pictures, tokenizer).save_pretrained(made)
    return made


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
