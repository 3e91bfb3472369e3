"""Damaged and hostile safetensors headers, made from a good one by chance that can be repeated."""

import json
import math
import random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**64,
    10**400,
    1.5,
    1e308,
    "",
    "F32",
    "\ud800",
    "\x1b[2J",
    "../../etc/passwd",
    [],
    [0],
    [0, 0, 0],
    [-1, 4],
    [[]],
    [2**62, 2**62],
    [10**30] * 8,
    [1] * 5000,
    {},
    {"dtype": "F32"},
    {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    {"a": {"b": {"c": {}}}},
    "x" * 100_000,
)
NAMES = (
    "__metadata__",
    "",
    "a.lora_A.weight",
    "a.alpha",
    "lora_unet_layers_0_attention_qkv.alpha",
    "layers.999999999999.attention.to_q.lora_A.weight",
    "layers.0.attention.to_q.lokr_w1",
    "layers.0.attention.to_q.hada_w1_a",
    "unet." * 2000,
    "lora_te1_" + "9" * 5000,
    "transformer_blocks_" + "1" * 4400,
    "double_blocks.99999999999999999999.img_attn.qkv.lora_A.weight",
    "\x00",
)


STEMS = (
    *("layers.0.attention.to_q", "layers.1.attention.qkv", "layers_29_attention_out", "layers.30.feed_forward.w1"),
    *("context_refiner.0.adaLN_modulation.0", "noise_refiner_0_feed_forward_w2", "all_x_embedder.2-1", "x_embedder"),
    *("siglip_refiner.0.attention.to_q", "cap_embedder.1", "t_embedder.mlp.0", "final_layer.linear", "layers.0.norm1"),
    *("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "double_blocks.0.img_attn.qkv", "single_blocks.0"),
    *("transformer_blocks.7.attn.to_q", "joint_blocks.0.x_block", "text_model.encoder.layers.0.mlp.fc1", "", "."),
)
PREFIXES = (
    "",
    "transformer.",
    "diffusion_model.",
    "base_model.model.",
    "lora_unet_",
    "lora_unet__",
    "lycoris_",
    "lora_te_",
)
SUFFIXES = (
    *(".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora_up.weight", ".alpha"),
    *(".lora_mid.weight", ".dora_scale", ".diff", ".weight", ".bias", ".lora_B.bias", ".hada_w1_a", ".hada_w1_b"),
    *(".hada_w2_a", ".hada_w2_b", ".lokr_w1", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b", ".oft_blocks", ""),
)


FORMS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight", ".alpha"),
    (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"),
    (".lokr_w1", ".lokr_w2_a", ".lokr_w2_b", ".alpha"),
)


def plausible(chance: random.Random) -> bytes:
    """Return a valid safetensors file of layers, forms and shapes that need not make sense together."""
    header: dict[str, Any] = {"__metadata__": {"lora_adapter_metadata": chance.choice(("", "{}", '{"r": 0}', "[]"))}}
    if chance.random() < 0.7:
        del header["__metadata__"]
    stems, dims = (STEMS[:8], (2, 2, 2, 6)) if chance.random() < 0.5 else (STEMS, (0, 1, 2, 3, 6))
    start = 0
    for _ in range(chance.randint(1, 6)):
        stem = chance.choice(PREFIXES) + chance.choice(stems)
        for suffix in chance.choice((*FORMS, chance.sample(SUFFIXES, chance.randint(1, 4)))):
            shape = [chance.choice(dims) for _ in range(chance.choice((0, 1, 2, 2, 2, 2, 2, 2, 4)))]
            stop = start + 4 * math.prod(shape)
            if stem + suffix not in header:
                header[stem + suffix] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
                start = stop
    return _put_together(json.dumps(header).encode(), chance.choice((bytes, chance.randbytes))(start))


def mutated(good: bytes, chance: random.Random) -> bytes:
    """Return a file that differs from `good` in one to four ways: bytes, length, structure or JSON text."""
    content = good
    for _ in range(chance.randint(1, 4)):
        content = chance.choice((_flipped, _cut, _with_length, _restructured, _restructured, _retexted, _padded))(
            content, chance
        )
    return content


def _flipped(content: bytes, chance: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        if out:
            out[chance.randrange(len(out))] = chance.randrange(256)
    return bytes(out)


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _with_length(content: bytes, chance: random.Random) -> bytes:
    length = chance.choice(
        (0, 1, 2, len(content), 2**16, 2**24, 2**31, 2**40, 2**63, 2**64 - 1, chance.randrange(4096))
    )
    return length.to_bytes(8, "little") + content[8:]


def _padded(content: bytes, chance: random.Random) -> bytes:
    return content + bytes(chance.randrange(1, 64))


def _restructured(content: bytes, chance: random.Random) -> bytes:
    header, rest = _taken_apart(content)
    if not isinstance(header, dict) or not header:
        return content
    name = chance.choice(list(header))
    match chance.randrange(6):
        case 0:
            header[name] = chance.choice(HOSTILE)
        case 1 if isinstance(header[name], dict) and header[name]:
            field = chance.choice(list(header[name]))
            header[name][field] = chance.choice(HOSTILE)
        case 2:
            header[chance.choice(NAMES)] = chance.choice((header[name], chance.choice(HOSTILE)))
        case 3:
            del header[name]
        case 4:
            header[chance.choice(NAMES)] = header.pop(name)
        case _ if isinstance(header[name], dict) and isinstance(header[name].get("data_offsets"), list):
            header[name]["data_offsets"] = [chance.randrange(-5, 200), chance.randrange(-5, 200)]
    return _put_together(json.dumps(header).encode(), rest)


def _retexted(content: bytes, chance: random.Random) -> bytes:
    header, rest = _taken_apart(content)
    text = json.dumps(header)
    at = chance.randrange(len(text) + 1)
    piece = chance.choice(('"', "{", "}", "[" * 3000, ",", ":", "\\u0000", "NaN", "1" * 5000, text, "\ufeff", "{}"))
    return _put_together((text[:at] + piece + text[at:]).encode("utf-8", "surrogatepass"), rest)


def _taken_apart(content: bytes) -> tuple[Any, bytes]:
    length = int.from_bytes(content[:8], "little")
    try:
        return json.loads(content[8 : 8 + length]), content[8 + length :]
    except (ValueError, RecursionError):
        return {}, content[8:]


def _put_together(text: bytes, rest: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + rest
