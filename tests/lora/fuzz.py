"""Reading files made by chance: whatever the bytes, an answer or one printable sentence."""

import random
import time
from collections import Counter
from pathlib import Path

from safetensors import safe_open

from tests.lora.family_files import write_header
from tests.lora.mutations import mutated, plausible
from zimage.core.errors import InputError
from zimage.lora.convert.reading import read_lora
from zimage.lora.files.header import LoraFileError
from zimage.lora.files.inspection import inspect_file


def read_many(folder: Path, seeds: range) -> tuple[Counter[str], float]:
    """Read one file per seed, odd ones damaged and even ones valid but senseless; raise if any is answered wrongly.

    Returns how many were refused, inspected and read as a LoRA, and the most CPU seconds one inspection took.
    """
    path = folder / "some.safetensors"
    write_header(
        path,
        {
            "lora_unet_layers_0_attention_qkv.lora_down.weight": (2, 8),
            "lora_unet_layers_0_attention_qkv.lora_up.weight": (24, 2),
            "lora_unet_layers_0_attention_qkv.alpha": (),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (1, 4),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (4, 1),
        },
        metadata={"ss_network_dim": "2", "lora_adapter_metadata": "{}"},
    )
    good = path.read_bytes()
    counts: Counter[str] = Counter()
    slowest_s = 0.0
    for seed in seeds:
        chance = random.Random(seed)
        path.write_bytes(mutated(good, chance) if seed % 2 else plausible(chance))
        start = time.process_time()
        counts[_answer(path)] += 1
        slowest_s = max(slowest_s, time.process_time() - start)
    return counts, slowest_s


def _answer(path: Path) -> str:
    try:
        inspect_file(path).model_dump_json()
    except LoraFileError as error:
        _check_sentence(str(error))
        return "refused"
    with safe_open(str(path), framework="np") as file:  # what we believe, the reference reader must believe too
        assert file.keys()
    try:
        read_lora(path)
    except InputError as error:
        _check_sentence(str(error))
        return "inspected"
    return "read"


def _check_sentence(text: str) -> None:
    assert text.isprintable(), text
    assert len(text) < 4000, text
