"""Prompts are embedded as the pipeline embeds them."""

from pathlib import Path

import pytest
import torch

from tests.tiny_base import whole_pipeline
from zimage.model.base import Base, open_text_encoder
from zimage.model.text import MAX_TOKENS, embed, token_ids

CPU = torch.device("cpu")
PROMPTS = ["", "a photo of ada woman", "一张照片，自然光", "x" * 700]


def test_unpadded_prompts_give_the_embeddings_of_the_pipelines_padded_batch(tiny_base: Base) -> None:
    pipeline = whole_pipeline(tiny_base)
    expected, _ = pipeline.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    tokenizer, encoder = open_text_encoder(Path(tiny_base.model), dtype=torch.float32)
    for found, wanted in zip(embed(tokenizer, encoder, PROMPTS, CPU), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_by_layer_the_embeddings_are_those_of_the_whole_encoder_to_the_last_bit(
    tiny_base: Base, dtype: torch.dtype
) -> None:
    tokenizer, encoder = open_text_encoder(Path(tiny_base.model), dtype=dtype)
    for prompt, found in zip(PROMPTS, embed(tokenizer, encoder, PROMPTS, CPU), strict=True):
        ids = torch.tensor([token_ids(tokenizer, prompt)])
        whole = encoder(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-2][0]
        assert torch.equal(found, whole) and found.dtype == dtype


def test_a_prompt_stands_in_one_user_message_without_a_think_block(tiny_base: Base) -> None:
    tokenizer, _ = open_text_encoder(Path(tiny_base.model), dtype=torch.float32)
    text = tokenizer.decode(token_ids(tokenizer, "hello"))
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_that_is_cut_is_reported(tiny_base: Base, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer, _ = open_text_encoder(Path(tiny_base.model), dtype=torch.float32)
    assert len(token_ids(tokenizer, "x" * 700)) == MAX_TOKENS
    assert "cut a prompt of 7" in caplog.text
