"""Let this project's denoiser compute the transformer of a diffusers pipeline, which takes less time on a CPU."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn import functional

from zimage.model import sequence
from zimage.model.denoiser import Denoiser
from zimage.model.fast.linear import ADAPTER

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

    from zimage.evaluation.generate.generator import LoraLoader

logger = logging.getLogger(__name__)


class DenoiserForward:
    """Takes the place of a transformer's `forward`: the same weights and adapters, in the same precision.

    On a CPU a step of four small pictures in bfloat16 takes 0.64 of diffusers' time so (infra/benchmarks.md). The
    residual stream stays in float32 and a caption is refined once for all steps. Adapters that the denoiser cannot
    compute, such as a trained DoRA or ranks that differ between layers of one input, are left to diffusers.

    Args:
        transformer: Diffusers' model, on a CPU; its loaders of LoRAs go on working.
    """

    def __init__(self, transformer: "ZImageTransformer2DModel") -> None:
        self._transformer: Any = transformer
        self._of_diffusers = transformer.forward
        self._is_read = False
        self._denoiser: Denoiser | None = None
        self._refined: list[tuple[list[Tensor], Tensor]] = []
        self._transformer.forward = self

    def read_again(self) -> None:
        """Read weights and adapters anew before the next step, since they have changed."""
        self._is_read, self._denoiser, self._refined = False, None, []

    def __call__(
        self, x: Sequence[Tensor], t: Tensor, cap_feats: Sequence[Tensor], **others: Any
    ) -> tuple[list[Tensor]]:
        """Return what `ZImageTransformer2DModel.forward(..., return_dict=False)` does.

        Args:
            x: Noisy latents of one size, (C, 1, H, W) each.
            t: (B,), 0 for pure noise and 1 for none.
            cap_feats: Text embeddings (L, W) of whatever lengths.
            others: For diffusers, if that has to compute.
        """
        denoiser = self._read()
        if denoiser is None:
            return self._of_diffusers(x, t, cap_feats, **others)  # type: ignore[no-any-return]
        found: dict[int, Tensor] = {}
        for numbers in _alike(cap_feats):
            latents = torch.stack([x[number][:, 0] for number in numbers])
            context = self._context(denoiser, [cap_feats[number] for number in numbers])
            velocity = denoiser.velocity(latents, 1 - t[numbers].double(), context)
            found.update(zip(numbers, -velocity.unsqueeze(2), strict=True))
        return ([found[number] for number in range(len(x))],)

    def _read(self) -> Denoiser | None:
        if not self._is_read:
            self._is_read = True
            try:
                self._denoiser = _denoiser_of(self._transformer)
            except ValueError as error:
                logger.info("diffusers computes these pictures, which takes longer: %s", error)
        return self._denoiser

    def _context(self, denoiser: Denoiser, texts: list[Tensor]) -> Tensor:
        """Return the refined captions, which are the same in all steps of a picture."""
        for known, context in self._refined:
            if len(known) == len(texts) and all(one is other for one, other in zip(known, texts, strict=True)):
                return context
        length = sequence.padded(max(map(len, texts)))
        features = torch.stack([functional.pad(text, (0, 0, 0, length - len(text))) for text in texts])
        context = denoiser.refine(features, torch.tensor([len(text) for text in texts]))
        self._refined = [*self._refined[-1:], (texts, context)]  # with guidance there are two in turn
        return context


class DenoiserLoader:
    """Another loader of LoRAs, after which the denoiser reads the weights again.

    Args:
        loader: That one.
        transformer: Of the pipeline that it will be used with.
    """

    def __init__(self, loader: "LoraLoader", transformer: "ZImageTransformer2DModel") -> None:
        self._loader, self._forward = loader, DenoiserForward(transformer)
        self._applied: tuple[Path, float] | None = None

    def apply(self, pipeline: Any, lora: Path, strength: float) -> None:
        """Give the pipeline this LoRA at this strength, instead of the one that it has."""
        if self._applied == (lora, strength):
            return
        self._applied = None
        self._forward.read_again()
        self._loader.apply(pipeline, lora, strength)
        self._applied = (lora, strength)

    def remove(self, pipeline: Any) -> None:
        """Give the pipeline the base's own weights back."""
        self._loader.remove(pipeline)
        if self._applied is not None:
            self._forward.read_again()
        self._applied = None


def _denoiser_of(transformer: Any) -> Denoiser:
    """Return the denoiser of a transformer's weights and adapters.

    Raises:
        ValueError: it cannot compute one of the adapters.
    """
    if any(getattr(module, "use_dora", {}).get(ADAPTER) for module in transformer.modules()):
        raise ValueError("the denoiser would give a DoRA the row lengths of the base, and not those it learned.")
    denoiser = Denoiser(transformer, dtype=transformer.dtype, stream=torch.float32)
    read = {id(layer) for projection in denoiser.projections() for layer in projection.layers}
    for name, module in transformer.named_modules():
        if isinstance(module, BaseTunerLayer) and id(module) not in read:
            raise ValueError(f"{name} has an adapter, and only the matrix products of blocks and embedders may.")
    return denoiser


def _alike(texts: Sequence[Tensor]) -> list[list[int]]:
    """Return the numbers of the texts whose padded lengths are equal, by length."""
    found: dict[int, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        found[sequence.padded(len(text))].append(number)
    return list(found.values())
