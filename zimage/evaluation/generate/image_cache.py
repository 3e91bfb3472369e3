"""Cache of generated pictures, keyed by everything that they depend on."""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zimage.core.folder import write_whole

Sampler = Literal["euler", "dpmpp_2m", "unipc"]
Precision = Literal["float32", "bfloat16", "fp8", "int8"]
SAMPLER_NAMES: dict[Sampler, str] = {"euler": "Euler", "dpmpp_2m": "DPM++ 2M", "unipc": "UniPC"}


@dataclass(frozen=True)
class Sampling:
    """Everything that a picture depends on besides the files of the weights, the prompt and the noise.

    Args:
        side_px: Height, and width unless that is given.
        steps: Steps of the sampler.
        guidance_scale: As diffusers' ZImagePipeline counts it: 0 is none, 4 is 5 elsewhere.
        sampler: The integrator; the base's own scheduler is Euler.
        precision: Of weights and products, or fp8 and int8 of the blocks' weights alone; None for the machine's.
        merged: Whether a LoRA is added to the weights and rounded with them, as ComfyUI does, or stays apart.
        width: In px; None for that of a square.
    """

    side_px: int
    steps: int
    guidance_scale: float
    sampler: Sampler = "euler"
    precision: Precision | None = None
    merged: bool = False
    width: int | None = None

    @property
    def width_px(self) -> int:
        """The width of a picture."""
        return self.width or self.side_px

    def recorded(self) -> dict[str, Any]:
        """Return all values by name, as keys of pictures and results have them; without the width of a square."""
        return {name: value for name, value in asdict(self).items() if name != "width" or value}

    @property
    def merged_weights(self) -> Precision | None:
        """The precision to which weights are rounded once a LoRA is merged into them; None where none is merged."""
        return (self.precision or "bfloat16") if self.merged else None


@dataclass(frozen=True)
class Request:
    """A picture to generate.

    Args:
        prompt: Id of the prompt, part of the seed.
        text: The prompt itself.
        seed: Number of the picture among those of the prompt.
        lora: The LoRA's file; None for the base model alone.
        strength: What the LoRA is multiplied with.
    """

    prompt: str
    text: str
    seed: int
    lora: Path | None
    strength: float

    @property
    def noise_seed(self) -> int:
        """The seed of the noise: other for each prompt and number, the same with and without a LoRA."""
        return int.from_bytes(hashlib.sha256(f"{self.prompt} {self.seed}".encode()).digest()[:6], "big")


class ImageCache:
    """Pictures by what decides them: base, LoRA file, strength, text, noise and sampling.

    Args:
        folder: Where they lie; survives the runs, because a change of the gate needs no new pictures.
        base: Identity of the base model.
        sampling: How all of them are sampled.
    """

    def __init__(self, folder: Path, base: str, sampling: Sampling) -> None:
        precision = sampling.precision or machine_precision()
        self.folder, self._base, self._sampling = folder, base, replace(sampling, precision=precision)
        self._merged_weights = sampling.merged_weights
        self._hashes: dict[Path, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, request: Request) -> Path:
        """Return the path of the picture, whether it exists or not."""
        decided = {
            "base": self._base,
            "lora": None if request.lora is None else self._hash(request.lora),
            "strength": request.strength,
            "text": request.text,
            "noise": request.noise_seed,
            **self._sampling.recorded(),
            "merged": (request.lora is not None and self._merged_weights) or False,  # the base alone is never merged
        }
        return self.folder / f"{hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()}.png"

    def missing(self, requests: Iterable[Request]) -> list[Request]:
        """Return the requests whose pictures do not exist yet, each once."""
        return [request for request in dict.fromkeys(requests) if not self.path(request).is_file()]

    def keep(self, request: Request, image_rgb: NDArray[np.uint8]) -> None:
        """Add a picture, whole or not at all; its file says how it was made, as AUTOMATIC1111's files do."""
        content, about = io.BytesIO(), PngInfo()
        about.add_text("parameters", self._parameters(request))
        Image.fromarray(image_rgb).save(content, "png", pnginfo=about)
        write_whole(self.path(request), content.getvalue())

    def forget_all_but(self, requests: Iterable[Request]) -> None:
        """Delete the pictures of no request, so that the folder never grows beyond one evaluation."""
        delete_others(self.folder, {self.path(request) for request in requests})

    def _parameters(self, request: Request) -> str:
        """Return prompt, seed and sampling in one text (A1111 counts guidance as 1 more than diffusers' pipeline)."""
        made = self._sampling
        return (
            f"{request.text}\nSteps: {made.steps}, Sampler: {SAMPLER_NAMES[made.sampler]}, "
            f"CFG scale: {made.guidance_scale + 1:g}, Seed: {request.noise_seed}, Size: {made.width_px}x{made.side_px}"
        )

    def _hash(self, lora: Path) -> str:
        if lora not in self._hashes:
            with lora.open("rb") as file:
                self._hashes[lora] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[lora]


def machine_precision() -> Precision:
    """Return the precision of pictures unless another one is asked for: float32 on a CPU without bfloat16 units."""
    from zimage.model.device import sampling_dtype

    name: Precision = "bfloat16" if str(sampling_dtype()) == "torch.bfloat16" else "float32"
    return name


def delete_others(folder: Path, wanted: set[Path]) -> None:
    """Delete every cached picture of a folder that is not wanted."""
    for path in folder.iterdir():
        if path not in wanted:
            path.unlink()
