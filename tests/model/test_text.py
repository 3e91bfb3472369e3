"""Prompts are embedded as the pipeline embeds them, and their tokens counted without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.tiny_base import whole_pipeline
from zimage.model.base import Base, open_text_encoder
from zimage.model.text import embed
from zimage.model.tokens import MAX_TOKENS, cut_and_kept, open_tokenizer, token_ids

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


def test_a_tokenizer_is_of_the_class_that_the_pipeline_has(tiny_base: Base) -> None:
    own = open_tokenizer(Path(tiny_base.model))

    assert type(own) is type(whole_pipeline(tiny_base).tokenizer)
    automatic = AutoTokenizer.from_pretrained(Path(tiny_base.model) / "tokenizer", local_files_only=True)
    assert [token_ids(own, text) for text in PROMPTS] == [token_ids(automatic, text) for text in PROMPTS]


@pytest.mark.parametrize("named", [None, "NoSuchTokenizer"])
def test_a_tokenizer_whose_class_is_not_known_is_opened_too(tiny_base: Base, tmp_path: Path, named: str | None) -> None:
    shutil.copytree(Path(tiny_base.model) / "tokenizer", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": named}))

    assert cut_and_kept(open_tokenizer(tmp_path), "hello")[0] == 0


def test_tokens_are_counted_without_torch(tiny_base: Base) -> None:
    program = (
        "import sys; from pathlib import Path; from zimage.model.tokens import cut_and_kept, open_tokenizer; "
        "print(cut_and_kept(open_tokenizer(Path(sys.argv[1])), 'hello')[0], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, tiny_base.model], capture_output=True, text=True, check=True)

    assert done.stdout == "0 False\n"
