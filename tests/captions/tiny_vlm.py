"""Very small image-to-text folders of the real classes with random weights."""

import json
from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.tiny_base import tiny_tokenizer

VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
PATCH_PX = 16
# The released template for one picture and one question.
CHAT_TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{%- for part in message.content %}"
    "{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{%- else %}{{ part.text }}{%- endif %}"
    "{%- endfor %}<|im_end|>\n{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)


def write_tiny_qwen3_vl(folder: Path) -> Path:
    """Write a Qwen3-VL of a few thousand weights, its tokenizer and its picture settings; return the folder."""
    tokenizer = _tokenizer()
    config = Qwen3VLConfig(
        text_config={**_text(tokenizer), "head_dim": 8, "rope_parameters": _rope([2, 1, 1])},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": PATCH_PX,
            "out_hidden_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **_ids(tokenizer),
    )
    return _written(folder, Qwen3VLForConditionalGeneration, config, tokenizer)


def write_tiny_qwen2_5_vl(folder: Path) -> Path:
    """Write a Qwen2.5-VL of a few thousand weights, its tokenizer and its picture settings; return the folder."""
    tokenizer = _tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={**_text(tokenizer), "rope_parameters": _rope([2, 1, 1])},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": PATCH_PX,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
            "window_size": PATCH_PX * 4,
        },
        **_ids(tokenizer),
    )
    return _written(folder, Qwen2_5_VLForConditionalGeneration, config, tokenizer)


def _tokenizer() -> Qwen2Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": VISION_TOKENS})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _text(tokenizer: Qwen2Tokenizer) -> dict[str, object]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
    }


def _rope(section: list[int]) -> dict[str, object]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}


def _ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in zip(names, VISION_TOKENS, strict=True)}


def _written(folder: Path, kind: type, config: object, tokenizer: Qwen2Tokenizer) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)  # type: ignore[call-arg,attr-defined]
    tokenizer.save_pretrained(folder)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": PATCH_PX,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 32 * 32, "longest_edge": 128 * 128},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def write_tiny_florence2(folder: Path) -> Path:
    """Write a Florence-2 of a few thousand weights with its processor; return the folder."""
    plain = tiny_tokenizer()
    plain.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    plain.save_pretrained(folder)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, extra_special_tokens={"image_token": "<image>"})
    stages = 2
    config = Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "decoder_start_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [8, 16],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "depths": [1] * stages,
            "window_size": 4,
            "projection_dim": 16,
        },
        image_token_id=tokenizer.image_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Florence2ForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    pictures.image_seq_length = 17  # 4 x 4 positions and their mean
    Florence2Processor(pictures, tokenizer).save_pretrained(folder)
    return folder


def write_tiny_llava(folder: Path) -> Path:
    """Write a LLaVA of a few thousand weights (JoyCaption is one) with its processor; return the folder."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config = LlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": 16,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>"),
    ).save_pretrained(folder)
    return folder
