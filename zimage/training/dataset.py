"""All training data, resident on the device: a hundred pictures of 1024 px take 0.2 GB.

# n items of one size, m texts of one padded length, C channels, H W latent size, L caption tokens, W text width
Rows are picked by stacking views: an index tensor would have to cross to the device and make the host wait for it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.model.denoiser import Denoiser
from zimage.model.rows import ItemRow, TextRow
from zimage.model.sequence import SequenceBucket, padded
from zimage.training.loss_weights import face_weights
from zimage.training.plan import Step, StepSource

Size = tuple[int, int]


@dataclass(frozen=True)
class Pictures:
    """The items of one size."""

    mean: Tensor  # (n, C, H, W)
    std: Tensor  # (n, C, H, W)
    loss_weights: Tensor | None  # (n, 1, H, W): what counts how much in the loss; None where all counts alike


@dataclass(frozen=True)
class Texts:
    """The texts of one padded length."""

    states: Tensor  # (m, L, W) as the text encoder left them, or (m, L, D) refined
    lengths: Tensor  # (m,), without pads


class Dataset:
    """Latents, face weights and texts by number.

    Args:
        folder: The folder of the encode stage.
        device: Where all of it stays.
        face_weight: How much more the face counts than the rest of its picture.

    Raises:
        InputError: the folder is not whole.
    """

    def __init__(self, folder: Path, *, device: torch.device, face_weight: float) -> None:
        self.items = read_rows(folder / "items.jsonl", ItemRow)
        self.texts = read_rows(folder / "texts.jsonl", TextRow)
        if not self.items:
            raise InputError(f"{folder} holds no pictures to learn from; run the encode stage again.")
        self.number = {row.text: number for number, row in enumerate(self.texts)}
        wanted = {text for row in self.items for text in (*row.texts, *row.class_texts)}
        if not wanted <= self.number.keys() or all(row.prompt for row in self.texts):
            raise InputError(f"{folder / 'texts.jsonl'} lacks texts of its pictures; run the encode stage again.")
        self.empty = next(number for number, row in enumerate(self.texts) if not row.prompt)
        self.lengths = [padded(row.tokens) for row in self.texts]
        self._refined = False
        self._pictures, self._place_of_item = _pictures(folder, self.items, device, face_weight)
        self._texts, self._place_of_text = _texts(folder, self.texts, self.lengths, device)

    def sources(self, role: Literal["subject", "class"], *, of_the_class: bool = False) -> list[StepSource]:
        """Return the pictures of a role, each `repeats` times, with its captions or those without the trigger."""
        return [
            StepSource(
                number,
                *self.size(number),
                tuple(self.number[text] for text in (row.class_texts if of_the_class else row.texts)),
            )
            for number, row in enumerate(self.items)
            if row.role == role
            for _ in range(row.repeats)
        ]

    @property
    def channels(self) -> int:
        """Return how many channels latents have."""
        return next(iter(self._pictures.values())).mean.shape[1]

    def size(self, item: int) -> Size:
        """Return height and width of an item's latents."""
        return self._place_of_item[item][0]

    def commonest_size(self) -> Size:
        """Return the size that most of the subject's items have."""
        sizes = [self.size(number) for number, row in enumerate(self.items) if row.role == "subject"]
        return Counter(sizes).most_common()[0][0]

    def latents(self, step: Step, spread: Tensor | None) -> Tensor:
        """Return (B, C, H, W): the posteriors' means, or samples `spread` standard deviations from them."""
        pictures, rows = self._pictures_of(step)
        mean = _picked(pictures.mean, rows)
        return mean if spread is None else torch.addcmul(mean, _picked(pictures.std, rows), spread)

    def loss_weights(self, step: Step) -> Tensor | None:
        """Return the loss weights (B, 1, H, W), or None if every latent pixel counts alike."""
        pictures, rows = self._pictures_of(step)
        return None if pictures.loss_weights is None else _picked(pictures.loss_weights, rows)

    def context(self, step: Step, denoiser: Denoiser) -> Tensor:
        """Return the refined captions (B, L, D); computed anew only where an adapter sits before them."""
        texts = self._texts[step.bucket.caption]
        rows = [self._place_of_text[text] for text in step.texts]
        states = _picked(texts.states, rows)
        return states if self._refined else denoiser.refine(states, _picked(texts.lengths, rows))

    @torch.no_grad()
    def refine(self, denoiser: Denoiser) -> None:
        """Keep the texts as the context refiner leaves them, one after the other; it is not needed after that."""
        for length, texts in self._texts.items():
            pairs = zip(texts.states.split(1), texts.lengths.split(1), strict=True)
            states = torch.cat([denoiser.refine(states, lengths) for states, lengths in pairs])
            self._texts[length] = Texts(states, texts.lengths)
        self._refined = True

    def photos(self, step: Step) -> list[str]:
        """Return the files of a step's pictures, for messages."""
        return [self.items[item].file for item in step.items]

    def one(self, text: int, size: Size) -> Step:
        """Return a step of one sample: this text at this size, whatever picture."""
        return Step(SequenceBucket(*size, self.lengths[text]), (0,), (text,))

    def _pictures_of(self, step: Step) -> tuple[Pictures, list[int]]:
        return self._pictures[step.bucket.height, step.bucket.width], [
            self._place_of_item[item][1] for item in step.items
        ]


def _tensors(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of a file of the encode stage.

    Raises:
        InputError: it is absent or damaged, or lacks one of `names`.
    """
    try:
        found = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        fault = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise InputError(f"{path} {fault}; run the encode stage again, or `dvc repro`.") from None
    absent = [name for name in names if name not in found]
    if absent:
        raise InputError(f"{path} lacks {len(absent)} of {len(names)} tensors; run the encode stage again.")
    return found


def _picked(stacked: Tensor, rows: Sequence[int]) -> Tensor:
    return torch.stack([stacked[row] for row in rows])


def _pictures(
    folder: Path, items: Sequence[ItemRow], device: torch.device, face_weight: float
) -> tuple[dict[Size, Pictures], list[tuple[Size, int]]]:
    """Return the pictures by size, and for each item its size and its row there."""
    names = [f"{item.item}.{part}" for item in items for part in ("mean", "std")]
    latents = _tensors(folder / "latents.safetensors", names)
    masks = _tensors(folder / "masks.safetensors", [item.item for item in items if item.mask])
    rows: dict[Size, list[ItemRow]] = defaultdict(list)
    positions: list[tuple[Size, int]] = []
    for item in items:
        _, height, width = latents[f"{item.item}.mean"].shape
        rows[height, width].append(item)
        positions.append(((height, width), len(rows[height, width]) - 1))
    pictures = {}
    for size, alike in rows.items():
        faces = [masks.get(item.item, torch.zeros(size)) for item in alike]
        weights = torch.stack(
            [item.weight * face_weights(face, face_weight) for item, face in zip(alike, faces, strict=True)]
        )[:, None]
        all_alike = face_weight == 1 and all(item.weight == 1 for item in alike)
        pictures[size] = Pictures(
            torch.stack([latents[f"{item.item}.mean"] for item in alike]).float().to(device),
            torch.stack([latents[f"{item.item}.std"] for item in alike]).float().to(device),
            None if all_alike else weights.to(device),
        )
    return pictures, positions


def _texts(
    folder: Path, texts: Sequence[TextRow], lengths: Sequence[int], device: torch.device
) -> tuple[dict[int, Texts], list[int]]:
    """Return the texts by padded length, and for each its row there; pads are zero and never read."""
    states = _tensors(folder / "texts.safetensors", [row.text for row in texts])
    rows: dict[int, list[Tensor]] = defaultdict(list)
    counts: dict[int, list[int]] = defaultdict(list)
    positions = []
    for row, length in zip(texts, lengths, strict=True):
        own = states[row.text]
        positions.append(len(rows[length]))
        rows[length].append(torch.cat([own, own.new_zeros(length - len(own), own.shape[1])]))
        counts[length].append(len(own))
    found = {
        length: Texts(torch.stack(alike).to(device), torch.tensor(counts[length], device=device))
        for length, alike in rows.items()
    }
    return found, positions
