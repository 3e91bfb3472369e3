"""Score prompt following by CLIP, if a CLIP model is present on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zimage.core.errors import InputError
from zimage.core.section import Section
from zimage.model.base import require_safetensors
from zimage.model.pinned import folder_of


class ClipParams(Section):
    """A CLIP model; a multilingual one judges Chinese prompts, the original ones English only."""

    model: str
    """A folder, or a hub id whose files are in the local cache."""
    identity: str | None = None
    """What pins its files: sha256:<hex> of a folder, hub:<commit> of a hub id."""
    languages: list[str]
    """Prompts in these languages are judged: en, zh."""


@dataclass(frozen=True)
class Clip:
    """A loaded model."""

    model: Any
    processor: Any
    languages: Sequence[str]

    def agreement(self, image_rgb: NDArray[np.uint8], text: str) -> float:
        """Return the cosine between picture and text, -1 to 1."""
        import torch

        inputs = self.processor(text=[text], images=[image_rgb], return_tensors="pt", truncation=True)
        with torch.inference_mode():
            seen = self.model(**inputs.to(self.model.device))
        return float((seen.image_embeds @ seen.text_embeds.T)[0, 0])

    def variety(self, pictures: Sequence[NDArray[np.uint8]]) -> list[float]:
        """Return 1 minus the cosine of every pair of pictures: 0 where those of one prompt are all the same."""
        import torch

        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            features = self.model.get_image_features(**inputs)
        seen = getattr(features, "pooler_output", features).float()
        seen = seen / seen.norm(dim=-1, keepdim=True)
        upper = np.triu_indices(len(pictures), k=1)
        return [float(value) for value in (1 - seen @ seen.T).cpu().numpy()[upper]]


def open_clip(params: ClipParams) -> Clip | None:
    """Return the model, or None where it is not on this machine: the report then says that CLIP was absent.

    Raises:
        InputError: a folder is named that holds no model; a hub id may be absent, a path is a mistake.
    """
    import torch
    from transformers import CLIPModel, CLIPProcessor

    folder = Path(params.model).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or params.model.count("/") != 1:
            raise InputError(
                f"There is no CLIP model at {folder}; name a folder or a hub id, or set evaluate.clip: null."
            )
        cached = folder_of(params.model, params.identity)
        if cached is None:
            return None
        folder = cached
    device = "cuda" if torch.cuda.is_available() else "cpu"
    require_safetensors(folder)
    model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).eval()
    return Clip(model, CLIPProcessor.from_pretrained(folder, local_files_only=True), params.languages)
