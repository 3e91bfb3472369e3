"""The base's tokenizer, and the tokens that its text encoder reads of a prompt; without torch, which takes a second."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# diffusers@0.42.1:src/diffusers/pipelines/z_image/pipeline_z_image.py, max_sequence_length of __call__.
MAX_TOKENS = 512


def open_tokenizer(base: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a resolved base, of the class that its configuration names, as ZImagePipeline opens it.

    transformers' AutoTokenizer, which imports torch, is taken where the configuration names none that it knows.
    """
    import transformers

    folder = base / "tokenizer"
    config = folder / "tokenizer_config.json"
    name = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class") if config.is_file() else None
    named: Any = getattr(transformers, str(name), None)
    is_tokenizer = isinstance(named, type) and issubclass(named, transformers.PreTrainedTokenizerBase)
    opener = named if is_tokenizer else transformers.AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = opener.from_pretrained(folder, local_files_only=True)
    return tokenizer


def token_ids(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Return the tokens of a prompt inside the chat template, cut at 512 as the pipeline cuts them."""
    ids = _all_token_ids(tokenizer, prompt)
    if len(ids) > MAX_TOKENS:
        logger.warning("cut a prompt of %d tokens at %d: %.60s…", len(ids), MAX_TOKENS, prompt)
    return ids[:MAX_TOKENS]


def cut_and_kept(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> tuple[int, str]:
    """Return how many tokens of a prompt lie behind the 512th, and what the encoder reads of it, with the template."""
    ids = _all_token_ids(tokenizer, prompt)
    kept: str = tokenizer.decode(ids[:MAX_TOKENS])
    return max(0, len(ids) - MAX_TOKENS), kept


def _all_token_ids(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Return the tokens of a prompt inside the chat template.

    Source: diffusers@0.42.1:src/diffusers/pipelines/z_image/pipeline_z_image.py, _encode_prompt: one user message,
    a generation prompt, thinking enabled (which adds no empty `<think>` block).
    """
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    ids: list[int] = tokenizer(text).input_ids
    return ids
