"""Real photos of a person as targets: every usable photo counts as held out, since nothing is trained here."""

import logging
from dataclasses import dataclass
from pathlib import Path

from zimage.core.errors import InputError, printable
from zimage.core.jsonl import read_rows
from zimage.core.section import read_section
from zimage.evaluation.score.reals import RealPhoto, Reals, largest_faces
from zimage.photos.rows import CropRow, PhotoRow
from zimage.stages.detect import DetectParams, detect
from zimage.stages.ingest import IngestParams, ingest

logger = logging.getLogger(__name__)

LEAST = 3  # photos; of fewer the distance of one to the others says nothing of the person


@dataclass(frozen=True)
class References:
    """Real photos of the person, and how many files they are from.

    Args:
        reals: One crop of each photo.
        files: Files that were given.
        refused: Of those, how many are no photo that can be read.
    """

    reals: Reals
    files: int
    refused: int


def references(photos: Path, consent: Path, work: Path, params_file: Path) -> References:
    """Return one crop of each photo of the person, found by the ordinary ingest and detect.

    Args:
        photos: A folder or an archive.
        consent: The person's consent.yaml.
        work: Gets what the two stages make; kept, so that the next call reads no photo twice.
        params_file: A params.yaml, whose `ingest` and `detect` hold but for the numbers of photos.

    Raises:
        InputError: the consent does not cover training; or fewer than three photos show the person.
    """
    (work / "overrides").mkdir(parents=True, exist_ok=True)
    take = read_section(params_file, "ingest", IngestParams).model_copy(update={"min_photos": 1})
    ingest(photos, consent, work / "ingest", params=take)
    find = read_section(params_file, "detect", DetectParams)
    split = find.split.model_copy(update={"min_train": 1, "min_holdout": 1})
    detect(work / "ingest", work / "overrides", work / "detect", params=find.model_copy(update={"split": split}))
    largest = largest_faces(read_rows(work / "detect" / "crops.jsonl", CropRow))
    if len(largest) < LEAST:
        raise InputError(
            f"Only {len(largest)} of the photos in {photos} show the person well enough, and {LEAST} are needed; add "
            f"some of other days, or look at {work / 'detect' / 'contact_sheet.html'} for the reasons."
        )
    files = list(read_rows(work / "ingest" / "photos.jsonl", PhotoRow))
    refused = [row for row in files if row.status == "rejected"]
    if refused:
        first = refused[0]
        logger.warning(
            "%d of the %d files in %s are left out; the first is %s: %s",
            *(len(refused), len(files), photos, printable(first.name), first.detail),
        )
    reals = Reals([RealPhoto(crop.photo, work / "detect" / crop.file) for crop in largest], [], {}, [])
    return References(reals, len(files), len(refused))
