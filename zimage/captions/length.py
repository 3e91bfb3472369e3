"""Check that the text encoder reads the trigger of every caption: it reads 512 tokens."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from zimage.core.errors import InputError, first_of
from zimage.model.tokens import MAX_TOKENS, cut_and_kept

logger = logging.getLogger(__name__)

NAMED = 5  # crops that a message names


def count_cut_captions(captions: Mapping[str, Sequence[str]], trigger: str, tokenizer: Any) -> int:
    """Return how many captions are longer than the text encoder reads; a warning names their crops.

    Args:
        captions: By crop.
        trigger: The word that stands for the person.
        tokenizer: The base model's, of transformers.

    Raises:
        InputError: of a caption with the trigger, the encoder does not read the trigger.
    """
    cut, lost = [], []
    for crop, texts in captions.items():
        for text in texts:
            num_cut, kept = cut_and_kept(tokenizer, text)
            cut += [crop] if num_cut else []
            lost += [crop] if num_cut and trigger in text and trigger not in kept else []
    if lost:
        raise InputError(
            f"The trigger `{trigger}` of {len(lost)} caption(s) lies behind the {MAX_TOKENS} tokens that the text "
            f"encoder reads, so nothing would be learnt under it ({_named(lost)}); begin these captions with it, or "
            "shorten them."
        )
    if cut:
        logger.warning(
            "%d caption(s) are cut at the %d tokens that the text encoder reads: %s", len(cut), MAX_TOKENS, _named(cut)
        )
    return len(cut)


def _named(crops: Sequence[str]) -> str:
    return first_of(list(dict.fromkeys(crops)), NAMED)
