"""LoRA files as they are given: named, checked, and converted where diffusers would not read all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zimage.core.errors import InputError
from zimage.lora.convert.conversion import Plan, convert
from zimage.lora.files.given import file_and_strength
from zimage.lora.files.inspection import inspect_file

TRIGGER_KEY = "modelspec.trigger_phrase"


@dataclass(frozen=True)
class GivenLora:
    """A LoRA that is going to be scored.

    Args:
        name: What it is called in results: its file's name without the ending, and a number where two share one.
        file: The file that was given.
        strength: What it is multiplied with.
        loaded: The file that diffusers loads: the given one, or a converted copy of it.
        trigger: The word that calls the person.
    """

    name: str
    file: Path
    strength: float
    loaded: Path
    trigger: str

    @property
    def is_converted(self) -> bool:
        """Whether diffusers loads a converted copy."""
        return self.loaded.resolve() != self.file.resolve()


def given_loras(files: Sequence[str], folder: Path, *, trigger: str, strength: float) -> list[GivenLora]:
    """Return the LoRAs that `FILE` or `FILE:STRENGTH` name, ready to be loaded.

    Args:
        files: As a person wrote them.
        folder: Gets a link to each, or a converted copy, under its name in the results.
        trigger: Of all of them; "" for what each file's metadata says.
        strength: Of those that say none.

    Raises:
        InputError: a file is no LoRA that can work on Z-Image, or says no trigger and none was given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    found: list[GivenLora] = []
    for written in files:
        file, own_strength = _parsed(written)
        inspection = inspect_file(file)
        if inspection.verdict == "unusable":
            raise InputError(f"{file}: {inspection.reason} {inspection.remedy}")
        word = trigger or inspection.metadata.get(TRIGGER_KEY, "")
        if not word:
            raise InputError(f"{file} does not say which word calls the person; give it with --trigger.")
        name = _free(file.stem, {each.name for each in found})
        loaded = folder / f"{name}.safetensors"
        if inspection.diffusers == "all":
            loaded.symlink_to(file.resolve())
        else:
            convert(file, loaded, Plan("portable", None, None))
        found.append(GivenLora(name, file, strength if own_strength is None else own_strength, loaded, word))
    return found


def _parsed(written: str) -> tuple[Path, float | None]:
    """Return file and strength of `FILE` or `FILE:STRENGTH`; None for the strength of the former."""
    file, strength = file_and_strength(written)
    if not Path(file).is_file():
        raise InputError(
            f"There is no LoRA file {written}; give its path, or PATH:STRENGTH such as ada.safetensors:0.8."
        )
    return Path(file), strength


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken or free == "base":
        number += 1
        free = f"{name}-{number}"
    return free
