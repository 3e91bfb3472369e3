"""Generate and score pictures by prompt, seed, checkpoint and strength."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zimage.captions.subject import Subject
from zimage.evaluation.generate.gallery import Gallery
from zimage.evaluation.generate.image_cache import Request
from zimage.evaluation.generate.suite import Half, Prompt, with_subject, without_trigger
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.score.picture import PictureScorer, Search, SearchedPicture
from zimage.photos.pictures import read_rgb


@dataclass(frozen=True)
class Asked:
    """A picture that is wanted, and why.

    Args:
        prompt: The prompt, with placeholders for the subject.
        half: Whether it helps to choose or to report.
        request: The picture itself.
        judged_text: What it should show, in the words that the base model is asked: the trigger, which CLIP does not
            know, would count against the LoRA.
    """

    prompt: Prompt
    half: Half
    request: Request
    judged_text: str

    @property
    def file(self) -> str:
        """Where the picture lies below pictures/."""
        lora = self.request.lora
        weights = "base" if lora is None else f"{lora.stem}-x{self.request.strength:g}"
        return f"{weights}/{self.prompt.id}-{self.request.seed}.png"

    @property
    def engines(self) -> int | None:
        """How many engines look at the picture: the first alone where it chooses or shows others; else all.

        No figure of the second engine rests on such pictures.
        """
        chooses = self.half == "selection" and self.request.lora is not None
        return 1 if chooses or self.half == "leak" else None


def asked_of_base(prompts: Sequence[Prompt], sides: dict[str, Half], seeds: int, *, subject: Subject) -> list[Asked]:
    """Return the pictures of the base model alone, asked for the class noun."""
    return [
        Asked(prompt, sides[prompt.id], Request(prompt.id, text, seed, lora=None, strength=0.0), text)
        for prompt in prompts
        for text in [without_trigger(prompt, subject.class_noun)]
        for seed in range(seeds)
    ]


def asked_of_lora(
    prompts: Sequence[Prompt], half: Half, seeds: int, *, subject: Subject, lora: Path, strength: float
) -> list[Asked]:
    """Return the pictures of a LoRA at one strength."""
    return [
        Asked(prompt, half, Request(prompt.id, with_subject(prompt, subject), seed, lora, strength), judged_text)
        for prompt in prompts
        for judged_text in [without_trigger(prompt, subject.class_noun)]
        for seed in range(seeds)
    ]


@dataclass(frozen=True)
class Scorer:
    """Where pictures come from, where they go, and who scores them.

    Args:
        gallery: Makes them, or has them from before.
        picture_scorer: Scores them.
        search: Finds the faces that are scored.
        folder: The evaluate folder in the making; gets pictures/.
        subfolder: Below pictures/, for sets of pictures that would have the same names; "" for none.
    """

    gallery: Gallery
    picture_scorer: PictureScorer
    search: Search
    folder: Path
    subfolder: str = ""

    def generate(self, asked: Sequence[Asked], what: str) -> None:
        """Generate pictures before they are scored: of many at once, no process waits for the last ones of a few."""
        self.gallery.files([one.request for one in asked], what)

    def rows(self, asked: Sequence[Asked], what: str) -> list[PictureRow]:
        """Return the scored row of each picture that was asked for; `what` names them in the progress."""
        self._place(asked, what)
        searched = [SearchedPicture(self.folder / self._file(one), engines=one.engines) for one in asked]
        info = self.picture_scorer.targets.info
        return [
            PictureRow(
                **self.picture_scorer.scored(
                    read_rgb(seen.file), found, one.judged_text, one.prompt.language
                ).model_dump(),
                file=self._file(one),
                prompt=one.prompt.id,
                kind=one.prompt.kind,
                aspect=one.prompt.aspect,
                language=one.prompt.language,
                half=one.half,
                seed=one.request.seed,
                weights="base" if one.request.lora is None else "lora",
                checkpoint=None if one.request.lora is None else one.request.lora.name,
                strength=one.request.strength,
                text=one.request.text,
                engine=info.engine_id,
                threshold=info.threshold,
                second_engine=self.picture_scorer.second.info.engine_id if self.picture_scorer.second else None,
            )
            for one, seen, found in zip(asked, searched, self.search.faces_in(searched), strict=True)
        ]

    def _file(self, one: Asked) -> str:
        """Return where the picture lies in the evaluate folder."""
        return (Path("pictures") / self.subfolder / one.file).as_posix()

    def _place(self, asked: Sequence[Asked], what: str) -> None:
        for one, path in zip(asked, self.gallery.files([one.request for one in asked], what), strict=True):
            target = self.folder / self._file(one)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
