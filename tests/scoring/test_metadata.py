"""Prompts and seeds in the metadata of pictures: ComfyUI's graphs in both forms, A1111's text, and our own."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from zimage.evaluation.generate.image_cache import ImageCache, Request, Sampling
from zimage.lora.comfyui.workflow import Evaluated, Use, Variant, api_form, ui_form, workflow
from zimage.scoring.metadata import Metadata, metadata_of

PROMPT = "a photo of zmkl woman on a beach, 日没"
USE = Use("a.safetensors", 1.0, PROMPT, "zmkl", Evaluated("Tongyi-MAI/Z-Image", "base", 768, 30, 4.0, 6.0))
BLACK = Image.fromarray(np.zeros((8, 8, 3), np.uint8))


def png(**texts: Any) -> bytes:
    about, content = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        about.add_text(name, text if isinstance(text, str) else json.dumps(text))
    BLACK.save(content, "png", pnginfo=about)
    return content.getvalue()


@pytest.mark.parametrize("variant", ["base", "turbo"])
def test_the_sampler_s_positive_prompt_of_a_comfyui_graph_in_both_forms(variant: Variant) -> None:
    nodes = workflow(USE, variant)
    assert metadata_of(png(prompt=api_form(nodes))) == Metadata(PROMPT, 0)
    assert metadata_of(png(workflow=ui_form(nodes))) == Metadata(PROMPT, 0)
    assert metadata_of(png(prompt=api_form(nodes), workflow=ui_form(nodes))) == Metadata(PROMPT, 0)


def test_a_longer_negative_prompt_is_not_taken_for_the_prompt() -> None:
    graph = api_form(workflow(USE, "base"))
    graph["8"]["inputs"]["text"] = "blurry, " * 100
    assert metadata_of(png(prompt=graph)).text == PROMPT


def test_a_graph_with_guider_noise_node_and_text_from_elsewhere() -> None:
    """As the templates for SamplerCustomAdvanced are wired, with a second pass behind the first."""
    graph: dict[str, Any] = {
        "1": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": PROMPT}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": ["1", 0], "clip": ["9", 0]}},
        "3": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["2", 0]}},
        "4": {"class_type": "BasicGuider", "inputs": {"model": ["8", 0], "conditioning": ["3", 0]}},
        "5": {"class_type": "RandomNoise", "inputs": {"noise_seed": 77}},
        "7": {
            "class_type": "KSampler",
            "inputs": {"seed": 5, "positive": ["10", 0], "negative": ["10", 0], "latent_image": ["6", 0]},
        },
        "6": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {"noise": ["5", 0], "guider": ["4", 0], "latent_image": ["11", 0]},
        },
        "10": {"class_type": "CLIPTextEncode", "inputs": {"text": "skin, detail", "clip": ["9", 0]}},
        "11": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    }
    assert metadata_of(png(prompt=graph)) == Metadata(PROMPT, 77)


A1111 = (
    f"{PROMPT} <lora:ada:0.8>\nNegative prompt: blurry\nSteps: 8, Sampler: Euler, CFG scale: 1, Seed: 123, Size: 8x8"
)


def test_automatic1111_s_text_in_png_and_in_exif() -> None:
    assert metadata_of(png(parameters=A1111)) == Metadata(PROMPT, 123)
    assert metadata_of(png(parameters=f"{PROMPT}\nSteps: 8")) == Metadata(PROMPT, None)
    for form in ("jpeg", "webp"):
        exif, content = Image.Exif(), io.BytesIO()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + A1111.encode("utf-16-be")
        BLACK.save(content, form, exif=exif)
        assert metadata_of(content.getvalue()) == Metadata(PROMPT, 123), form


def test_comfyui_s_text_in_the_exif_of_webp() -> None:
    exif, content = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Model] = "prompt:" + json.dumps(api_form(workflow(USE, "base")))
    BLACK.save(content, "webp", exif=exif)
    assert metadata_of(content.getvalue()) == Metadata(PROMPT, 0)


def test_our_own_pictures_say_prompt_and_noise(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, "sha256:0", Sampling(64, 8, 0.0))
    request = Request("near-1", PROMPT, 3, None, 0.0)
    cache.keep(request, np.zeros((8, 8, 3), np.uint8))
    assert metadata_of(cache.path(request).read_bytes()) == Metadata(PROMPT, request.noise_seed)


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"prompt": "{"},
        {"prompt": "[" * 100_000},
        {"prompt": '{"a":' * 50_000},
        {"prompt": {"1": {"inputs": {"positive": ["1", 0], "seed": ["1", 0], "text": ["1", 0]}}}},
        {"prompt": {"1": {"inputs": {"positive": ["2", 0], "seed": 1}}, "2": {"inputs": {"conditioning": ["1", 0]}}}},
        {"workflow": {"nodes": [{"id": 1, "inputs": [{"name": "positive", "link": 7}]}], "links": [[7], 3]}},
        {"workflow": {"nodes": [3], "links": []}},
        {"Software": "a camera"},
    ],
)
def test_metadata_of_no_use_counts_as_absent(texts: dict[str, Any]) -> None:
    assert metadata_of(png(**texts)).text == ""
