"""Encode prompts for Z-Image: hidden states of a causal language model, one row per token."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zimage.core.process_group import spread
from zimage.core.progress import tracked
from zimage.model.device import processes_on
from zimage.model.tokens import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# diffusers@0.42.1:src/diffusers/pipelines/z_image/pipeline_z_image.py, _encode_prompt: the output of the last layer
# but one, before the final norm.
HIDDEN_STATE = -2


@torch.no_grad()
def embed(
    tokenizer: "PreTrainedTokenizerBase", encoder: "PreTrainedModel", prompts: Sequence[str], device: torch.device
) -> list[Tensor]:
    """Return (tokens, width) for each prompt, on the device, equal to what ZImagePipeline keeps of its padded batch.

    Each prompt is read alone and unpadded: the encoder is causal and its pads stand to the right, so no kept token
    ever sees one. That is an eighth of the work for a prompt of 64 tokens.

    All prompts pass a layer before any passes the next. So each layer crosses to the device once, and two at most are
    there at a time instead of 8 GB; what is computed is the same to the last bit. The table of all tokens and the
    layer that nothing is read of never cross. On a CPU several processes share the prompts.
    """
    count = min(processes_on(device), len(prompts))
    if count <= 1:
        return _embed(tokenizer, encoder, prompts, device)

    def states_of(part: Sequence[str]) -> list[NDArray[np.float32]]:
        return [state.numpy() for state in _embed(tokenizer, encoder, part, device)]

    found: dict[str, Tensor] = {}
    parts = [prompts[first::count] for first in range(count)]
    for part, states in zip(parts, tracked(spread(states_of, parts, count), "text encoder", count), strict=True):
        found.update(zip(part, map(torch.from_numpy, states), strict=True))
    return [found[prompt] for prompt in prompts]


def _embed(
    tokenizer: "PreTrainedTokenizerBase", encoder: "PreTrainedModel", prompts: Sequence[str], device: torch.device
) -> list[Tensor]:
    whole: Any = encoder
    states = [whole.embed_tokens(torch.tensor([token_ids(tokenizer, prompt)])).to(device) for prompt in prompts]
    frame = _frame(whole, device)
    layers = whole.layers[: HIDDEN_STATE + 1]
    for layer in tracked(layers, "text encoder", len(layers)):
        frame.layers = torch.nn.ModuleList([copy.deepcopy(layer).to(device)])
        states = [frame(inputs_embeds=state, use_cache=False).last_hidden_state for state in states]
    return [state[0] for state in states]


def _frame(encoder: Any, device: torch.device) -> Any:
    """Return an encoder that turns states into those after whatever layers are put into it, without a last norm."""
    with torch.device("meta"):
        frame = type(encoder)(encoder.config)
    frame.rotary_emb = copy.deepcopy(encoder.rotary_emb).to(device)
    frame.norm = torch.nn.Identity()
    return frame.eval()
