"""Captions by a local vision-language model: Qwen3-VL, Qwen2.5-VL, Florence-2, or any folder transformers can open.

torchvision is not needed: Qwen's processor class insists on it for videos (huggingface/transformers#48558), so its
image processor and the tokenizer's chat template are used directly.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zimage.captions.captioner import Captioner, Shot
from zimage.captions.subject import Subject
from zimage.captions.template import Language
from zimage.core.errors import InputError
from zimage.core.folder import write_whole
from zimage.core.section import Section
from zimage.model.base import require_safetensors
from zimage.model.pinned import folder_of

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

QWEN = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"})
IMAGE_PAD = "<|image_pad|>"  # the single placeholder in Qwen's chat template for all tokens of a picture


class Prompts(Section):
    """The question for the model, by the language of its answer."""

    en: str
    """For example: describe clothing, expression, pose, framing, light, background; Florence-2 takes a task token."""
    zh: str
    """The same in Chinese."""


class VlmParams(Section):
    """A local image-to-text model."""

    model: str
    """A folder, or a hub id whose files are in the local cache."""
    identity: str | None = None
    """The pinned identity of its files: sha256:<hex> of a folder, hub:<commit> of a hub id."""
    max_side_px: int
    """Pictures are shrunk to this longer side before they are read."""
    max_new_tokens: int
    """The longest answer, in tokens; decoding is greedy, so the same picture gets the same words."""
    prompts: Prompts


@dataclass(frozen=True)
class Vlm:
    """A loaded model that answers a question about one picture.

    Args:
        prepared: Turns a picture and a question into the model's inputs.
        model: The network, on its device.
        decoded: Turns new tokens into text.
        answers_alone: True if `generate` returns the answer without the question (encoder-decoder models).
    """

    prepared: "Callable[[NDArray[np.uint8], str], dict[str, torch.Tensor]]"
    model: Any
    decoded: Callable[[Any], str]
    answers_alone: bool

    def answer(self, image_rgb: NDArray[np.uint8], question: str, max_new_tokens: int) -> str:
        """Return the model's answer, by greedy decoding."""
        import torch

        inputs = {name: value.to(self.model.device) for name, value in self.prepared(image_rgb, question).items()}
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        new = tokens[0] if self.answers_alone else tokens[0, inputs["input_ids"].shape[1] :]
        return self.decoded(new).strip()


def find_model(params: VlmParams) -> Path:
    """Return the local folder of the model.

    Raises:
        InputError: the model is not on this machine; nothing is downloaded.
    """
    folder = folder_of(params.model, params.identity)
    if folder is None:
        raise InputError(
            f"The caption model `{params.model}` is neither a folder nor in the local hub cache; run `hf download "
            f"{params.model}` once, name a folder in caption.vlm.model, or set caption.captioner to template."
        )
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; name a folder that transformers can open in caption.vlm.model.")
    return folder


def open_vlm(params: VlmParams) -> Vlm:
    """Return the model, on the GPU in bfloat16 where there is one, else on the CPU in float32.

    Raises:
        InputError: the model is not on this machine, or its weights are pickled.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder = find_model(params)
    require_safetensors(folder)
    kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    on_gpu = torch.cuda.is_available()
    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        local_files_only=True,
        use_safetensors=True,
    )
    model = model.to("cuda" if on_gpu else "cpu").eval()
    logger.info("captions by %s (%s)", folder.name, kind)
    if kind in QWEN:
        prepared, decoded = _qwen(folder)
    elif kind == "florence2":
        prepared, decoded = _florence(folder, model.dtype)
    else:
        prepared, decoded = _any_chat(folder, model.dtype)
    return Vlm(prepared, model, decoded, answers_alone=bool(model.config.is_encoder_decoder))


def asked(params: VlmParams, cache: Path) -> Captioner:
    """Return a captioner that asks the model once for each picture and question, and remembers answers in `cache`.

    The model is opened at the first question that the cache cannot answer.
    """
    find_model(params)
    opened: list[Vlm] = []

    def caption(shot: Shot, subject: Subject, language: Language) -> str:
        question = getattr(params.prompts, language)
        key = f"{params.identity}\n{params.max_side_px}\n{params.max_new_tokens}\n{question}\n{shot.image_rgb.shape}\n"
        answer_file = cache / f"{hashlib.sha256(key.encode() + shot.image_rgb.tobytes()).hexdigest()}.txt"
        if not answer_file.is_file():
            if not opened:
                opened.append(open_vlm(params))
            answer = opened[0].answer(_shrunk(shot.image_rgb, params.max_side_px), question, params.max_new_tokens)
            cache.mkdir(parents=True, exist_ok=True)
            write_whole(answer_file, answer.encode())
        return answer_file.read_text(encoding="utf-8")

    return caption


def _shrunk(image_rgb: NDArray[np.uint8], max_side_px: int) -> NDArray[np.uint8]:
    from PIL import Image

    image = Image.fromarray(image_rgb)
    image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _qwen(folder: Path) -> "tuple[Callable[[NDArray[np.uint8], str], dict[str, torch.Tensor]], Callable[[Any], str]]":
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pad = tokenizer.convert_tokens_to_ids(IMAGE_PAD)

    def prepared(image_rgb: NDArray[np.uint8], question: str) -> "dict[str, torch.Tensor]":
        seen = pictures(images=[image_rgb], return_tensors="pt", input_data_format="channels_last")
        content = [{"type": "image"}, {"type": "text", "text": question}]
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        tokens_of_picture = int(seen["image_grid_thw"].prod()) // pictures.merge_size**2
        text = tokenizer(chat.replace(IMAGE_PAD, IMAGE_PAD * tokens_of_picture), return_tensors="pt")
        return {
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "mm_token_type_ids": (text["input_ids"] == pad).int(),  # 1 where the picture is: it has positions in 2-D
            "pixel_values": seen["pixel_values"],
            "image_grid_thw": seen["image_grid_thw"],
        }

    return prepared, lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))


def _florence(
    folder: Path, dtype: "torch.dtype"
) -> "tuple[Callable[[NDArray[np.uint8], str], dict[str, torch.Tensor]], Callable[[Any], str]]":
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)

    def prepared(image_rgb: NDArray[np.uint8], question: str) -> "dict[str, torch.Tensor]":
        inputs = processor(text=question, images=image_rgb, return_tensors="pt")
        return _cast(inputs, dtype)

    return prepared, lambda tokens: str(processor.tokenizer.decode(tokens, skip_special_tokens=True))


def _any_chat(
    folder: Path, dtype: "torch.dtype"
) -> "tuple[Callable[[NDArray[np.uint8], str], dict[str, torch.Tensor]], Callable[[Any], str]]":
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)

    def prepared(image_rgb: NDArray[np.uint8], question: str) -> "dict[str, torch.Tensor]":
        content = [{"type": "image", "image": image_rgb}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        return _cast(inputs, dtype)

    return prepared, lambda tokens: str(processor.tokenizer.decode(tokens, skip_special_tokens=True))


def _cast(inputs: Any, dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    """Return the inputs with pixels in the model's dtype; token ids stay whole numbers."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
