"""Stage `caption`: describe each training crop without the person's identity."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zimage.captions.captioner import Captioner, Shot, template
from zimage.captions.leaks import Leaks, without_leaks
from zimage.captions.length import count_cut_captions
from zimage.captions.measure import Measured, background_of, framing_of
from zimage.captions.overrides import Overrides, read_overrides
from zimage.captions.rows import CaptionRow, Rewrite
from zimage.captions.sentence import begun_with_subject, count_words, fitted
from zimage.captions.subject import Subject
from zimage.captions.template import Language
from zimage.captions.trigger import TriggerParams, checked_trigger
from zimage.captions.vlm import VlmParams, asked
from zimage.core.errors import InputError
from zimage.core.folder import check_out, made_aside
from zimage.core.jsonl import read_rows, write_metrics, write_rows
from zimage.core.progress import tracked
from zimage.core.section import Section
from zimage.model.base import Base, resolve
from zimage.model.pinned import require_pinned
from zimage.model.tokens import open_tokenizer
from zimage.photos.cache import cache_of
from zimage.photos.rows import CropRow

logger = logging.getLogger(__name__)


class CaptionParams(Section):
    """Captioner, languages, trigger and leak filter."""

    captioner: Literal["template", "vlm"]
    """template: what detection measured (no model); vlm: a local image-to-text model."""
    languages: list[Language]
    """en, zh or both; each crop gets one caption in each."""
    trigger: TriggerParams
    vlm: VlmParams | None
    """The model of the vlm captioner; null for the template."""
    leaks: Leaks
    """Words that would tie the identity to themselves instead of to the trigger."""


def caption(detect: Path, overrides: Path, out: Path, *, params: CaptionParams, base: Base, subject: Subject) -> None:
    """Write captions for the training crops: trigger and class noun first, the identity left out.

    Args:
        detect: The folder of the detect stage; its training crops are captioned.
        overrides: May hold `captions/<photo>.txt` or `captions/<photo>-head.txt`: a person's own captions, one a line,
            which always win.
        out: Gets captions.jsonl and metrics.json. A model's answers are kept beside it, so that no picture is asked
            about twice.
        params: See `CaptionParams`.
        base: Its tokenizer says how many tokens the trigger takes.
        subject: Trigger and class noun.

    Raises:
        InputError: see `check_out`; the trigger is a word or a name, the model is absent, there is no training crop, or
            a caption's trigger lies behind what the text encoder reads.
    """
    check_out(out, (detect, overrides), holds="captions.jsonl")
    crops = [row for row in read_rows(detect / "crops.jsonl", CropRow) if row.split == "train"]
    if not crops:
        raise InputError(f"{detect} holds no training crop; look at its contact sheet and add photos.")
    tokenizer = open_tokenizer(resolve(base))
    tokens = checked_trigger(subject.trigger, tokenizer, params.trigger)
    own = read_overrides(overrides / "captions", {Path(crop.file).stem: crop.photo for crop in crops})
    write, name = _captioner(params, cache_of(out))
    with made_aside(out) as folder:
        rows = []
        for crop in tracked(crops, "captions", len(crops)):
            by_hand = own.of(crop.file, crop.photo)
            captions, rewrites = (by_hand, []) if by_hand else _captions(detect, crop, write, params, subject)
            captioner = "person" if by_hand else name
            rows.append(CaptionRow(file=crop.file, captions=captions, captioner=captioner, rewrites=rewrites))
        cut = count_cut_captions({row.file: row.captions for row in rows}, subject.trigger, tokenizer)
        write_rows(folder / "captions.jsonl", rows)
        write_metrics(folder / "metrics.json", {**_metrics(rows, own, tokens, params, subject), "captions_cut": cut})
    logger.info("%d crops captioned by %s, %d by a person", len(rows), name, sum(r.captioner == "person" for r in rows))


def measured_of(crop: CropRow, image_rgb: NDArray[np.uint8]) -> Measured:
    """Return the measurements of a crop and its background, as the template needs them."""
    framing, below = framing_of(crop.face_box_xyxy, crop.width, crop.height)
    background_rgb, plain = background_of(image_rgb, crop.face_box_xyxy)
    return Measured(
        framing=framing,
        below=below,
        yaw_deg=crop.yaw_deg,
        roll_deg=crop.roll_deg,
        face_luma=crop.face_luma,
        chroma=crop.chroma,
        warmth=crop.warmth,
        background_rgb=background_rgb,
        plain=plain,
    )


def _captioner(params: CaptionParams, answers: Path) -> tuple[Captioner, str]:
    """Return the captioner, and its name in the rows."""
    if params.captioner == "template":
        return template, "template"
    if params.vlm is None:
        raise InputError("caption.captioner is vlm, but caption.vlm is null; name a model there, or choose template.")
    captioner = asked(params.vlm, answers)
    require_pinned(params.vlm.model, params.vlm.identity, "caption.vlm")
    return captioner, f"vlm {params.vlm.model} {params.vlm.identity}"


def _captions(
    detect: Path, crop: CropRow, write: Captioner, params: CaptionParams, subject: Subject
) -> tuple[list[str], list[Rewrite]]:
    """Return a crop's caption in each language, with all that was taken out."""
    image_rgb = _pixels(detect / crop.file)
    shot = Shot(image_rgb, measured_of(crop, image_rgb))
    captions: list[str] = []
    rewrites: list[Rewrite] = []
    for language in params.languages:
        written = write(shot, subject, language)
        cleaned = without_leaks(written, params.leaks, class_noun=subject.class_noun, language=language)
        begun = begun_with_subject(cleaned.caption, subject, language)
        captions.append(fitted(begun, template(shot, subject, language), language))
        rewrites += cleaned.rewrites
    return captions, rewrites


def _metrics(
    rows: Sequence[CaptionRow], own: Overrides, trigger_tokens: int, params: CaptionParams, subject: Subject
) -> dict[str, object]:
    words = [
        count_words(caption, "zh" if any("\u4e00" <= letter <= "\u9fff" for letter in caption) else "en")
        for row in rows
        for caption in row.captions
    ]
    return {
        "crops": len(rows),
        "captions": len(words),
        "distinct_captions": len({caption for row in rows for caption in row.captions}),
        "captioner": params.captioner,
        "by_a_person": sum(row.captioner == "person" for row in rows),
        "by_a_person_without_trigger": sum(
            subject.trigger not in caption for row in rows if row.captioner == "person" for caption in row.captions
        ),
        "overrides_without_a_crop": own.unused,
        "rewrites": dict(Counter(rewrite.word.lower() for row in rows for rewrite in row.rewrites)),
        "trigger": subject.trigger,
        "trigger_tokens": trigger_tokens,
        "words_least": min(words),
        "words_most": max(words),
    }


def _pixels(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
