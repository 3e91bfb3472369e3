"""Prompts as Z-Image reads them: the states of a causal language model, one row a token."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# diffusers@0.42.1:src/diffusers/pipelines/z_image/pipeline_z_image.py, max_sequence_length of __call__.
MAX_TOKENS = 512
# Idem, _encode_prompt: the output of the last layer but one, before the final norm.
HIDDEN_STATE = -2


def token_ids(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Return the tokens of a prompt inside the chat template, cut at 512 as the pipeline cuts them.

    Source: diffusers@0.42.1:src/diffusers/pipelines/z_image/pipeline_z_image.py, _encode_prompt: one user message,
    a generation prompt, thinking enabled (which adds no empty `<think>` block).
    """
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    ids: list[int] = tokenizer(text).input_ids
    if len(ids) > MAX_TOKENS:
        logger.warning("cut a prompt of %d tokens at %d: %.60s…", len(ids), MAX_TOKENS, prompt)
    return ids[:MAX_TOKENS]


@torch.no_grad()
def embed(tokenizer: "PreTrainedTokenizerBase", encoder: "PreTrainedModel", prompts: Iterable[str]) -> list[Tensor]:
    """Return (tokens, width) for each prompt, equal to what ZImagePipeline keeps of its padded batch.

    Each prompt is read alone and unpadded: the encoder is causal and its pads stand to the right, so no kept token
    ever sees one. That is an eighth of the work for a prompt of 64 tokens.
    """
    return [_embed(encoder, token_ids(tokenizer, prompt)) for prompt in prompts]


def _embed(encoder: "PreTrainedModel", ids: list[int]) -> Tensor:
    tokens = torch.tensor([ids], device=encoder.device)
    output = encoder(input_ids=tokens, output_hidden_states=True, use_cache=False)
    states: Tensor = output.hidden_states[HIDDEN_STATE][0]
    return states
