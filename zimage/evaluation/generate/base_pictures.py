"""Make pictures that a base generates without a LoRA, to be trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zimage.core.progress import Progress
from zimage.evaluation.generate.image_cache import ImageCache, Request, Sampling
from zimage.model.base import Base


@dataclass(frozen=True)
class BasePicture:
    """A picture to generate.

    Args:
        text: The prompt.
        seed: Number of the picture among those of the prompt; it decides the noise.
        sampling: Size, steps and guidance.
    """

    text: str
    seed: int
    sampling: Sampling

    @property
    def request(self) -> Request:
        """The picture as a generator is asked for it."""
        return Request(prompt=self.text, text=self.text, seed=self.seed, lora=None, strength=0.0)


def planned(
    prompts: Sequence[str],
    sizes_px: Sequence[Sequence[int]],
    *,
    number: int,
    steps: int,
    guidance_scale: float,
    seed: int,
) -> list[BasePicture]:
    """Return what to generate: prompts in turn, and for each prompt the sizes in turn.

    Args:
        prompts: Texts.
        sizes_px: Widths and heights, multiples of 16.
        number: How many pictures.
        steps: Euler steps.
        guidance_scale: As diffusers' ZImagePipeline counts: 0 none.
        seed: Number of the first picture of each prompt.
    """
    found = []
    for each in range(number):
        turn, at = divmod(each, len(prompts))
        width, height = sizes_px[(at + turn) % len(sizes_px)]
        found.append(BasePicture(prompts[at], seed + turn, Sampling(height, steps, guidance_scale, width=width)))
    return found


def make_base_pictures(base: Base, wanted: Sequence[BasePicture], folder: Path) -> list[Path]:
    """Return the file of each picture, in order; pictures that an earlier call left in the folder are not made again.

    Args:
        base: The model.
        wanted: The pictures; equal ones are one file.
        folder: Where they lie, as PNG; it is made if it is missing.

    Raises:
        InputError: the base is not the one that was pinned.
    """
    caches = {one.sampling: ImageCache(folder, base.identity, one.sampling) for one in wanted}
    files = {one: caches[one.sampling].path(one.request) for one in wanted}
    missing = [one for one, file in files.items() if not file.is_file()]
    if missing:
        from zimage.evaluation.generate.generator import open_studio

        samplings = sorted({one.sampling for one in missing}, key=lambda of: of.width_px * of.side_px, reverse=True)
        studio = open_studio(base, samplings[0], [one.text for one in missing], adapters_gb=0.0)
        with Progress("pictures", len(files), len(files) - len(missing)) as progress:
            for sampling in samplings:
                requests = [one.request for one in missing if one.sampling == sampling]
                for request, picture in studio.sampling_as(sampling).pictures(requests):
                    caches[sampling].keep(request, picture)
                    progress.advance()
    return [files[one] for one in wanted]
