"""Stage `encode`: compute latents and text states once, so that training needs neither encoder."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field, field_validator

from zimage.captions.length import count_cut_captions
from zimage.captions.rows import CaptionRow
from zimage.captions.subject import Subject
from zimage.captions.template import subject as named
from zimage.core.errors import InputError
from zimage.core.folder import check_out, made_aside
from zimage.core.jsonl import read_rows, write_metrics, write_rows
from zimage.core.process_group import spread
from zimage.core.progress import tracked
from zimage.core.section import Section
from zimage.evaluation.generate.base_pictures import make_base_pictures, planned
from zimage.evaluation.generate.image_cache import delete_others
from zimage.model.base import Base, open_text_encoder, open_vae, resolve
from zimage.model.rows import ItemRow, TextRow
from zimage.model.tokens import open_tokenizer
from zimage.photos.cache import cache_of
from zimage.photos.rows import CropRow
from zimage.training.first_batches import THUMBNAILS, thumbnail_of
from zimage.training.likeness import write_faces
from zimage.training.photo_patterns import by_photo
from zimage.training.pictures import (
    ClassPictures,
    ClassPicturesItem,
    MadeClassPictures,
    Picture,
    class_pictures,
    crop_pictures,
    held_out_pictures,
    without_trigger,
)
from zimage.training.validation import ITEMS, LATENTS, MOST_CROPS, ValidationItemRow

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKL
    from numpy.typing import NDArray
    from torch import Tensor

logger = logging.getLogger(__name__)

SMALLEST_PX = 16  # a token
MOST_REPEATS = 1000
HIGHEST_WEIGHT = 100


class Encoded(NamedTuple):
    """A picture as training reads it: its size in px, its posterior (C, h, w), its face's mask and a small JPEG."""

    width: int
    height: int
    mean: "NDArray[np.float32]"
    std: "NDArray[np.float32]"
    mask: "NDArray[np.float32] | None"
    thumbnail: bytes


class EncodeParams(Section):
    """Mirroring, class pictures and sample prompts."""

    mirror: bool
    """Also learn each crop mirrored; doubles the data, and makes a parting or a mole change sides."""
    class_pictures: ClassPicturesItem
    """Pictures for preservation, those of a folder, or {number: 100, prompts: ["a photo of {class}"], steps: 28,
    guidance_scale: 4.0, seed: 0} for ones that the base generates in the crops' sizes; null for none."""
    sample_prompts: list[str]
    """Texts of which training makes sample pictures; {subject} stands for trigger and class noun."""
    also_px: list[int] = Field(default_factory=list)
    """Also learn each crop at smaller sizes: sides in px of squares of their area, such as [512, 768] beside 1024."""

    repeats: dict[str, int] = Field(default_factory=dict)
    """How often crops come in a round, by a pattern of their photos' names, such as {"portraits/*": 3}; else once."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Factor of the loss of crops, by a pattern of their photos' names, such as {"old/*": 0.5}; else 1."""

    @field_validator("repeats")
    @classmethod
    def _are_numbers(cls, repeats: dict[str, int]) -> dict[str, int]:
        if wrong := [pattern for pattern, times in repeats.items() if not 1 <= times <= MOST_REPEATS]:
            raise ValueError(
                f"`{wrong[0]}` has to come 1 to {MOST_REPEATS} times; leave photos out with overrides/decisions.yaml"
            )
        return repeats

    @field_validator("weights")
    @classmethod
    def _are_factors(cls, weights: dict[str, float]) -> dict[str, float]:
        if wrong := [pattern for pattern, weight in weights.items() if not 0 < weight <= HIGHEST_WEIGHT]:
            raise ValueError(
                f"the weight of `{wrong[0]}` has to be above 0 and at most {HIGHEST_WEIGHT}; leave photos out with "
                "overrides/decisions.yaml"
            )
        return weights

    @field_validator("also_px")
    @classmethod
    def _are_sizes(cls, also_px: list[int]) -> list[int]:
        if any(side < SMALLEST_PX for side in also_px):
            raise ValueError(f"a side is at least {SMALLEST_PX} px")
        return also_px


def encode(detect: Path, caption: Path, out: Path, *, params: EncodeParams, base: Base, subject: Subject) -> None:
    """Write latents of the training crops and embeddings of their captions, as the base model reads them.

    Args:
        detect: The folder of the detect stage: crops, and masks of their faces.
        caption: The folder of the caption stage.
        out: Gets items.jsonl, texts.jsonl, latents.safetensors, masks.safetensors, texts.safetensors, metrics.json,
            thumbnails/ and, for held-out crops, which training measures its loss on, validation.jsonl and
            validation.safetensors. Class pictures that the base generates are kept beside it (see
            zimage.photos.cache), so that none is made twice.
        params: See `EncodeParams`.
        base: Its autoencoder and text encoder are used.
        subject: Trigger and class noun; captions are also embedded without the trigger, for preservation.

    Raises:
        InputError: see `check_out`; there is no training crop, a crop has no caption, one whose trigger the text
            encoder does not read, or a size the model cannot take, or the base or the class pictures are not those that
            were pinned.
    """
    from zimage.model.device import use_one_thread_on_a_cpu

    check_out(out, (detect, caption), holds="items.jsonl")
    use_one_thread_on_a_cpu()
    folder = resolve(base)
    found = read_rows(detect / "crops.jsonl", CropRow)
    crops = [row for row in found if row.split == "train"]
    captions = {row.file: row.captions for row in read_rows(caption / "captions.jsonl", CaptionRow)}
    _check(crops, captions, detect, caption)
    cut = count_cut_captions(
        {crop.file: captions[crop.file] for crop in crops}, subject.trigger, open_tokenizer(folder)
    )
    pictures = crop_pictures(
        detect,
        crops,
        captions,
        mirror=params.mirror,
        also_px=params.also_px,
        repeats=by_photo(detect, params.repeats, "encode.repeats"),
        weights=by_photo(detect, params.weights, "encode.weights"),
    )
    match params.class_pictures:
        case ClassPictures() as given:
            pictures += class_pictures(given, _sizes(crops), subject)
        case MadeClassPictures() as made:
            pictures += _made_class_pictures(made, cache_of(out), base, _sizes(crops), subject)
    held_out = [row for row in found if row.split == "holdout"][:MOST_CROPS]
    validation = held_out_pictures(detect, held_out, _sizes(crops), subject)
    with _out_of_memory_explained(folder, crops), made_aside(out) as aside:
        items, texts = encode_pictures(
            aside, pictures, validation, folder=folder, subject=subject, sample_prompts=params.sample_prompts
        )
        whole = [picture for picture in pictures if picture.photo and not picture.mirrored and picture.size is None]
        write_faces(aside, (picture.pixels() for picture in whole))
        write_metrics(aside / "metrics.json", {**_metrics(items, texts), "captions_cut": cut})
    logger.info("%d items and %d texts encoded", len(items), len(texts))


def _made_class_pictures(
    made: MadeClassPictures, cache: Path, base: Base, sizes: Sequence[tuple[int, int]], subject: Subject
) -> list[Picture]:
    """Return pictures of others that the base generates in the crops' sizes; `cache` has those of an earlier run."""
    noun = named("", subject.class_noun, "en")
    wanted = planned(
        [prompt.replace("{class}", noun) for prompt in made.prompts],
        sizes,
        number=made.number,
        steps=made.steps,
        guidance_scale=made.guidance_scale,
        seed=made.seed,
    )
    files = make_base_pictures(base, wanted, cache)
    delete_others(cache, set(files))
    return [Picture(file, file.name, [one.text]) for one, file in zip(wanted, files, strict=True)]


def encode_pictures(
    aside: Path,
    pictures: Sequence[Picture],
    validation: Sequence[Picture],
    *,
    folder: Path,
    subject: Subject,
    sample_prompts: Sequence[str],
) -> tuple[list[ItemRow], list[TextRow]]:
    """Write the latents and texts that training reads, and return the rows of both.

    Args:
        aside: An empty folder; gets what `encode` writes, but for metrics.json and faces.
        pictures: To be trained on.
        validation: To measure the loss on; none are needed.
        folder: Of the base.
        subject: See `encode`.
        sample_prompts: See `EncodeParams`.
    """
    from zimage.model.device import device_and_dtype

    texts = _write_texts(aside, folder, [*pictures, *validation], sample_prompts, subject)
    vae = open_vae(folder, device=device_and_dtype()[0])
    if validation:
        _write_validation(aside, vae, validation, texts)
    items = _write_latents(aside, vae, pictures, texts, subject)
    write_rows(aside / "items.jsonl", items)
    return items, list(texts.values())


def _write_texts(
    aside: Path, base: Path, pictures: Sequence[Picture], sample_prompts: Sequence[str], subject: Subject
) -> dict[str, TextRow]:
    """Write the embeddings of every text that training can want; return their rows by prompt."""
    from zimage.core.tensor_file import write_tensors
    from zimage.model.device import device_and_dtype, release
    from zimage.model.text import embed

    name = named(subject.trigger, subject.class_noun, "en")
    samples = [prompt.replace("{subject}", name) for prompt in sample_prompts]
    captions = [text for picture in pictures for text in picture.captions]
    prompts = dict.fromkeys(["", *captions, *(without_trigger(text, subject) for text in captions), *samples])
    device, dtype = device_and_dtype()
    tokenizer, encoder = open_text_encoder(base, dtype=dtype)
    found = embed(tokenizer, encoder, list(prompts), device)
    rows: dict[str, TextRow] = {}
    tensors: dict[str, Tensor] = {}
    for number, (prompt, states) in enumerate(zip(prompts, found, strict=True)):
        key = f"{number:04d}"
        rows[prompt] = TextRow(text=key, prompt=prompt, tokens=len(states), sample=prompt in samples)
        tensors[key] = states.cpu().contiguous()
    write_tensors(aside / "texts.safetensors", tensors, {})
    write_rows(aside / "texts.jsonl", rows.values())
    del encoder, found, states
    release(device)
    return rows


def _write_latents(
    aside: Path, vae: "AutoencoderKL", pictures: Sequence[Picture], texts: dict[str, TextRow], subject: Subject
) -> list[ItemRow]:
    """Write posteriors and face masks; return the items' rows."""
    from torch import from_numpy

    from zimage.core.tensor_file import write_tensors
    from zimage.model.device import processes_on
    from zimage.model.latents import pixels_of, posterior
    from zimage.training.pictures import on_latents

    def encoded(picture: Picture) -> Encoded:
        pixels, face = picture.pixels(), picture.face()
        mean, std = (part.cpu().contiguous() for part in posterior(vae, pixels_of(pixels)))
        mask = None if face is None else on_latents(face, mean.shape[1:]).numpy()
        return Encoded(pixels.shape[1], pixels.shape[0], mean.numpy(), std.numpy(), mask, thumbnail_of(pixels))

    items: list[ItemRow] = []
    latents: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    (aside / THUMBNAILS).mkdir()
    found = tracked(spread(encoded, pictures, processes_on(vae.device)), "pictures", len(pictures))
    for picture, (width, height, mean, std, mask, thumbnail) in zip(pictures, found, strict=True):
        name = f"{len(items):04d}"
        (aside / THUMBNAILS / f"{name}.jpg").write_bytes(thumbnail)
        latents[f"{name}.mean"], latents[f"{name}.std"] = from_numpy(mean), from_numpy(std)
        if mask is not None:
            masks[name] = from_numpy(mask)
        items.append(
            ItemRow(
                item=name,
                file=picture.file,
                photo=picture.photo,
                role="subject" if picture.photo else "class",
                mirrored=picture.mirrored,
                width=width,
                height=height,
                texts=[texts[text].text for text in picture.captions],
                class_texts=[texts[without_trigger(text, subject)].text for text in picture.captions],
                mask=mask is not None,
                repeats=picture.repeats,
                weight=picture.weight,
            )
        )
    write_tensors(aside / "latents.safetensors", latents, {})
    write_tensors(aside / "masks.safetensors", masks, {})
    return items


def _write_validation(
    aside: Path, vae: "AutoencoderKL", pictures: Sequence[Picture], texts: dict[str, TextRow]
) -> None:
    """Write the latents of held-out crops, and what each of them is."""
    from zimage.core.tensor_file import write_tensors
    from zimage.model.latents import pixels_of, posterior

    rows: list[ValidationItemRow] = []
    latents: dict[str, Tensor] = {}
    for number, picture in enumerate(pictures):
        pixels, name = picture.pixels(), f"{number:04d}"
        latents[name] = posterior(vae, pixels_of(pixels))[0].float().cpu().contiguous()
        height, width = pixels.shape[:2]
        text = texts[picture.captions[0]].text
        rows.append(ValidationItemRow(item=name, file=picture.file, text=text, width=width, height=height))
    write_tensors(aside / LATENTS, latents, {})
    write_rows(aside / ITEMS, rows)


@contextmanager
def _out_of_memory_explained(base: Path, crops: Iterable[CropRow]) -> Iterator[None]:
    """Name the largest crops that the GPU could encode, if its memory is too small."""
    import torch

    from zimage.model.device import available_gb, device_and_dtype
    from zimage.model.memory import footprint_of, too_small_to_encode

    try:
        yield
    except torch.OutOfMemoryError:
        largest = max(_sizes(crops), key=lambda size: size[0] * size[1])
        raise too_small_to_encode(footprint_of(base), largest, available_gb(device_and_dtype()[0])) from None


def _check(crops: Sequence[CropRow], captions: dict[str, list[str]], detect: Path, caption: Path) -> None:
    from zimage.model.latents import PIXELS_A_TOKEN

    if not crops:
        raise InputError(f"{detect} holds no training crop; look at its contact sheet and add photos.")
    for crop in crops:
        if not captions.get(crop.file):
            raise InputError(f"{caption} has no caption for {crop.file}; run the caption stage again.")
        if crop.width % PIXELS_A_TOKEN or crop.height % PIXELS_A_TOKEN:
            raise InputError(
                f"{crop.file} is {crop.width} x {crop.height} px, but Z-Image takes multiples of {PIXELS_A_TOKEN} px; "
                "set the sizes in params.yaml's section detect to such multiples."
            )


def _sizes(crops: Iterable[CropRow]) -> list[tuple[int, int]]:
    return sorted({(crop.width, crop.height) for crop in crops})


def _metrics(items: Sequence[ItemRow], texts: Iterable[TextRow]) -> dict[str, object]:
    tokens = [row.tokens for row in texts]
    return {
        "items": len(items),
        "class_items": sum(item.role == "class" for item in items),
        "repeated_items": sum(item.repeats > 1 for item in items),
        "sizes": len({(item.width, item.height) for item in items}),
        "masks": sum(item.mask for item in items),
        "texts": len(tokens),
        "tokens_least": min(tokens),
        "tokens_most": max(tokens),
    }
