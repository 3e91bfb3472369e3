"""Run an evaluation: request pictures, score them, select checkpoint and strength."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from zimage.captions.subject import Subject
from zimage.core.errors import InputError
from zimage.core.section import Section
from zimage.evaluation.figures import closeness_by_prompt
from zimage.evaluation.generate.suite import Half, Prompt, halves
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.select.choice import Sweep, choose
from zimage.evaluation.select.scorer import Asked, Scorer, asked_of_base, asked_of_lora


class SeedParams(Section):
    """How many pictures of each prompt are made."""

    base: int = Field(ge=1, description="of the base model, for every prompt; 2 or more give its variety")
    selection: int = Field(ge=1, description="of each checkpoint and strength, for the selection half of the prompts")
    test: int = Field(ge=1, description="of the chosen LoRA, for the test half")
    leaks: int = Field(ge=1, description="of the chosen LoRA and of the base model, for the leak prompts")


class SweepParams(Section):
    """What is chosen from."""

    checkpoints: int = Field(ge=0, description="how many of the latest checkpoints compete with the final LoRA")
    strengths: list[float] = Field(min_length=1, description="what the LoRA is multiplied with; 1 is as trained")
    reference_strength: float = Field(description="the strength at which checkpoints compete; one of `strengths`")


class ResamplingParams(Section):
    """How intervals are made."""

    resamples: int = Field(ge=200, description="bootstrap resamples of the prompts")
    seed: int = Field(description="of the resampling")

    def generator(self) -> np.random.Generator:
        """Return a new source of draws, the same each time."""
        return np.random.default_rng(self.seed)


@dataclass(frozen=True)
class Selection:
    """All scored pictures, and what was chosen by them.

    Args:
        base: Of the base model, on all likeness prompts.
        base_leaks: Of the base model, for the leak prompts: the same prompts and noise as `leaks`.
        swept: Of every checkpoint and strength that was tried, on the selection half.
        test: Of the chosen LoRA, on the other half (on all prompts where nothing was to be chosen).
        leaks: Of the chosen LoRA, for the leak prompts.
        checkpoints: How the checkpoint was chosen; None where there was but one.
        strengths: How the strength was chosen; None where there was but one.
        lora: The chosen file.
        strength: The chosen strength.
    """

    base: list[PictureRow]
    base_leaks: list[PictureRow]
    swept: dict[tuple[Path, float], list[PictureRow]]
    test: list[PictureRow]
    leaks: list[PictureRow]
    checkpoints: Sweep | None
    strengths: Sweep | None
    lora: Path
    strength: float

    @property
    def rows(self) -> list[PictureRow]:
        """Every picture, base model first."""
        swept = [row for rows in self.swept.values() for row in rows]
        return [*self.base, *self.base_leaks, *swept, *self.test, *self.leaks]


@dataclass(frozen=True)
class CheckpointSelection:
    """The rules of a selection.

    Args:
        scorer: Makes and scores pictures.
        prompts: The suite.
        subject: Whom the prompts ask for.
        seeds: How many pictures of each prompt.
        sweep: What is chosen from.
        resampling: How intervals are made.
    """

    scorer: Scorer
    prompts: Sequence[Prompt]
    subject: Subject
    seeds: SeedParams
    sweep: SweepParams
    resampling: ResamplingParams

    def run(self, candidates: Sequence[Path]) -> Selection:
        """Return the outcome of checkpoints in the order of training; the last is the final LoRA."""
        strengths = sorted(self.sweep.strengths)
        selecting = len(candidates) > 1 or len(strengths) > 1
        sides = halves(self.prompts)
        if not selecting:
            sides = {name: "leak" if side == "leak" else "test" for name, side in sides.items()}
        wanted = [prompt for prompt in self.prompts if sides[prompt.id] != "leak"]
        leaks = [prompt for prompt in self.prompts if sides[prompt.id] == "leak"]
        asked = [
            asked_of_base(prompts, sides, seeds, subject=self.subject)
            for prompts, seeds in ((wanted, self.seeds.base), (leaks, self.seeds.leaks))
        ]
        chooser = [prompt for prompt in wanted if sides[prompt.id] == "selection"]
        at = self.sweep.reference_strength
        competing = [
            one
            for lora in (candidates if len(candidates) > 1 else [])
            for one in self._asked(chooser, "selection", self.seeds.selection, lora, at)
        ]
        self.scorer.generate([*asked[0], *asked[1], *competing], "base model and checkpoints")
        of_base = self.scorer.rows([*asked[0], *asked[1]], "base model")
        base, base_leaks = of_base[: len(asked[0])], of_base[len(asked[0]) :]
        swept: dict[tuple[Path, float], list[PictureRow]] = {}
        checkpoints = self._sweep([(one, at) for one in candidates], chooser, swept)
        lora = candidates[checkpoints.chosen] if checkpoints else candidates[-1]
        strength_sweep = self._sweep([(lora, strength) for strength in strengths], chooser, swept)
        strength = strengths[strength_sweep.chosen] if strength_sweep else strengths[0]
        tested = [prompt for prompt in wanted if sides[prompt.id] == "test"]
        reported = [
            *self._asked(tested, "test", self.seeds.test, lora, strength),
            *self._asked(leaks, "leak", self.seeds.leaks, lora, strength),
        ]
        self.scorer.generate(reported, f"test and leaks, {lora.stem} × {strength:g}")
        return Selection(
            base=base,
            base_leaks=base_leaks,
            swept=swept,
            test=self._rows(tested, "test", self.seeds.test, lora, strength),
            leaks=self._rows(leaks, "leak", self.seeds.leaks, lora, strength),
            checkpoints=checkpoints,
            strengths=strength_sweep,
            lora=lora,
            strength=strength,
        )

    def _sweep(
        self,
        cells: Sequence[tuple[Path, float]],
        prompts: Sequence[Prompt],
        swept: dict[tuple[Path, float], list[PictureRow]],
    ) -> Sweep | None:
        """Return the choice among cells, whose pictures are added to `swept`; None where there is but one."""
        if len(cells) < 2:
            return None
        for lora, strength in cells:
            if (lora, strength) not in swept:
                swept[lora, strength] = self._rows(prompts, "selection", self.seeds.selection, lora, strength)
        labels = [f"{lora.stem} × {strength:g}" for lora, strength in cells]
        closeness = [closeness_by_prompt(swept[cell]) for cell in cells]
        resampling = self.resampling
        return choose(labels, closeness, resamples=resampling.resamples, generator=resampling.generator())

    def _rows(self, prompts: Sequence[Prompt], half: Half, seeds: int, lora: Path, strength: float) -> list[PictureRow]:
        return self.scorer.rows(
            self._asked(prompts, half, seeds, lora, strength), f"{half}, {lora.stem} × {strength:g}"
        )

    def _asked(self, prompts: Sequence[Prompt], half: Half, seeds: int, lora: Path, strength: float) -> list[Asked]:
        return asked_of_lora(prompts, half, seeds, subject=self.subject, lora=lora, strength=strength)


def candidates_of(train: Path, checkpoints: int) -> list[Path]:
    """Return the latest checkpoints in the order of training, then the final LoRA, which none of them repeats.

    Raises:
        InputError: there is no final LoRA.
    """
    final = train / "lora.safetensors"
    if not final.is_file():
        raise InputError(f"There is no {final}; run the train stage first, or `dvc repro`.")
    content = final.read_bytes()
    saved = sorted(path for path in (train / "checkpoints").glob("*.safetensors") if path.read_bytes() != content)
    return [*saved[len(saved) - checkpoints :], final] if checkpoints < len(saved) else [*saved, final]
