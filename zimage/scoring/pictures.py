"""Finished pictures, however they were made, with prompts and seeds where their files hold them.

They are strangers' files: only the sandboxed processes of the photos' intake decode them, and what the main process
sees is a clean PNG of each.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path, PurePosixPath

from zimage.captions.template import ClassNoun
from zimage.core.errors import InputError
from zimage.core.progress import Progress
from zimage.evaluation.generate.image_cache import Request
from zimage.evaluation.generate.suite import Prompt, without_trigger
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.score.picture import PictureScorer, Search, SearchedPicture
from zimage.photos.decode import Limits, RefusedError, decoded
from zimage.photos.given_file import Given
from zimage.photos.intake import memory_needed
from zimage.photos.kinds import is_sidecar
from zimage.photos.pictures import read_rgb, write_png
from zimage.photos.sources import expected, given
from zimage.photos.worker_pool import Lost, mapped
from zimage.scoring.metadata import Metadata, metadata_of
from zimage.stages.ingest import IngestParams

# A refused file with such a name is a broken picture; others, such as the .txt and .mp4 of some programs, are none.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif", ".tif", ".tiff", ".bmp", ".gif"})
SUITE_SEEDS = 64  # numbers of pictures of a prompt whose noise is recognised
MAX_STEM = 60  # letters of a file's name that its clean copy keeps


@dataclass(frozen=True)
class GivenPicture:
    """A finished picture.

    Args:
        file: A clean PNG of it, without metadata.
        metadata: Prompt and seed, as far as its file says them.
    """

    file: Path
    metadata: Metadata


@dataclass(frozen=True)
class Opened:
    """What became of one file: its metadata, or why it cannot be used."""

    metadata: Metadata
    refusal: str | None


@dataclass(frozen=True)
class Opener:
    """Decodes files in a worker process.

    Args:
        limits: What a picture may take.
        max_bytes: Larger files are not read.
    """

    limits: Limits
    max_bytes: int

    def __call__(self, item: tuple[Given, Path]) -> Opened:
        """Write a clean PNG of a file, and return its metadata."""
        one, target = item
        try:
            content = one.read(self.max_bytes)
            picture = decoded(content, self.limits)
        except RefusedError as error:
            return Opened(Metadata(), error.detail)
        write_png(target, picture.pixels_rgb)
        return Opened(metadata_of(content), None)


def pictures_in(source: Path, folder: Path, params: IngestParams) -> list[GivenPicture]:
    """Return the pictures in a folder or an archive, by name, decoded in sandboxed processes.

    Args:
        source: A folder, a zip or a tar.
        folder: Gets a clean PNG of each.
        params: Limits of files and pictures.

    Raises:
        InputError: there is nothing at `source`, no picture in it, or one of them cannot be read.
    """
    folder.mkdir(parents=True)
    max_bytes = params.max_file_mb * 1_000_000
    limits = Limits(max_megapixels=params.max_megapixels, max_side_px=params.max_side_px)
    files = given(source, max_files=params.max_files, max_bytes=max_bytes)
    items = ((one, folder / _clean_name(number, one.name)) for number, one in enumerate(files))
    work, memory = partial(Opener, limits, max_bytes), memory_needed(limits, max_bytes)
    found: list[GivenPicture] = []
    broken: list[tuple[str, str]] = []
    with Progress(f"read {source.name}", expected(source)) as progress:
        for (one, file), opened in mapped(work, _without_sidecars(items), Opened, memory_bytes=memory):
            refusal = opened.detail if isinstance(opened, Lost) else opened.refusal
            if isinstance(opened, Opened) and refusal is None:
                found.append(GivenPicture(file, opened.metadata))
            elif PurePosixPath(one.name.lower()).suffix in SUFFIXES:
                broken.append((one.name, refusal or ""))
            progress.advance()
    if broken:
        name, why = broken[0]
        raise InputError(
            f"{len(broken)} of the {len(found) + len(broken)} pictures in {source} cannot be read: {why} Remove them, "
            "or make them again.",
            names=f"The first is {name}.",
        )
    if not found:
        raise InputError(f"{source} holds no picture; give a folder, a zip or a tar with some in --pictures.")
    return found


def numbered(sets: Mapping[str, Sequence[GivenPicture]], prompts: Mapping[str, Prompt]) -> dict[Path, int]:
    """Return for each picture its number among the seeds of its prompt, so that pictures of one noise are compared.

    A picture that began with the suite's own noise has the number of that noise. Other seeds have the next free
    numbers, the same in every set; pictures that say no seed have those that are free in their set.

    Args:
        sets: Pictures by the name of their set.
        prompts: The suite's prompts by their text (see `same_words`).
    """
    of_prompt: dict[str, dict[str, list[GivenPicture]]] = defaultdict(lambda: defaultdict(list))
    for name, pictures in sets.items():
        for one in pictures:
            of_prompt[prompt_of(one, prompts)[0]][name].append(one)
    found: dict[Path, int] = {}
    for prompt, by_set in of_prompt.items():
        everything = [one for pictures in by_set.values() for one in pictures]
        numbers = _numbers_of(prompt, {one.metadata.seed for one in everything if one.metadata.seed is not None})
        for pictures in by_set.values():
            taken = set[int]()
            for one in sorted(pictures, key=lambda each: each.metadata.seed is None):
                number = 0 if one.metadata.seed is None else numbers[one.metadata.seed]
                while number in taken:
                    number += 1
                taken.add(number)
                found[one.file] = number
    return found


def _numbers_of(prompt: str, seeds: set[int]) -> dict[int, int]:
    suite = {Request(prompt, "", number, None, 0.0).noise_seed: number for number in range(SUITE_SEEDS)}
    numbers = {seed: suite[seed] for seed in seeds if seed in suite}
    free = (number for number in count() if number not in numbers.values())
    return numbers | dict(zip(sorted(seeds - numbers.keys()), list(islice(free, len(seeds))), strict=False))


def prompt_of(one: GivenPicture, prompts: Mapping[str, Prompt]) -> tuple[str, Prompt | None]:
    """Return the id under which pictures of the same prompt are grouped, and the suite's prompt if it is one of them.

    A picture without a prompt is a group of its own.
    """
    text = same_words(one.metadata.text)
    known = prompts.get(text)
    return known.id if known else hashlib.sha256((text or one.file.name).encode()).hexdigest()[:12], known


def same_words(text: str) -> str:
    """Return a prompt as it is compared: spaces, line ends and commas at the end do not count."""
    return " ".join(text.split()).strip(" ,.")


def rows_of(
    pictures: Sequence[GivenPicture],
    name: str,
    scorer: PictureScorer,
    search: Search,
    *,
    prompts: Mapping[str, Prompt],
    class_noun: ClassNoun,
    numbers: Mapping[Path, int],
) -> list[PictureRow]:
    """Return the scored row of each picture.

    Args:
        pictures: The pictures.
        name: Of the set in the results.
        scorer: Scores them.
        search: Finds the faces.
        prompts: The suite's prompts by their text (see `same_words`); a picture of one is compared with a LoRA's.
        class_noun: What the base model calls the person.
        numbers: See `numbered`.
    """
    info = scorer.targets.info
    searched = search.faces_in([SearchedPicture(one.file) for one in pictures])
    rows = []
    for one, found in zip(pictures, searched, strict=True):
        text = one.metadata.text
        group, prompt = prompt_of(one, prompts)
        language = prompt.language if prompt else "en"
        judged_text = without_trigger(prompt, class_noun) if prompt else text
        scored = scorer.scored(read_rgb(one.file), found, judged_text, language).model_dump()
        rows.append(
            PictureRow(
                **scored | ({} if text else {"clip": None}),
                file=f"pictures/{name}/{one.file.name}",
                prompt=group,
                kind=prompt.kind if prompt else "likeness",
                aspect=prompt.aspect if prompt else "",
                language=language,
                half="leak" if prompt and prompt.kind != "likeness" else "test",
                seed=numbers[one.file],
                weights="lora",
                checkpoint=None,
                strength=1.0,
                text=text,
                engine=info.engine_id,
                threshold=info.threshold,
                second_engine=scorer.second.info.engine_id if scorer.second else None,
            )
        )
    return rows


def _without_sidecars(items: Iterator[tuple[Given, Path]]) -> Iterator[tuple[Given, Path]]:
    return (item for item in items if not is_sidecar(item[0].name))


def _clean_name(number: int, name: str) -> str:
    """Return a name for the clean copy: an archive's names are no paths, and two may be the same."""
    stem = re.sub(r"[^\w-]+", "-", PurePosixPath(name).stem, flags=re.ASCII)[:MAX_STEM].strip("-")
    return f"{number:04d}-{stem}.png" if stem else f"{number:04d}.png"
