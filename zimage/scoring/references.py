"""Real photos of a person as targets: every usable photo counts as held out, since nothing is trained here."""

from pathlib import Path

from zimage.consent import read_consent
from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.core.section import read_section
from zimage.evaluation.score.reals import RealPhoto, Reals, largest_faces
from zimage.permission import require_for, today
from zimage.photos.rows import CropRow
from zimage.stages.detect import DetectParams, detect
from zimage.stages.ingest import IngestParams, ingest

LEAST = 3  # photos; of fewer the distance of one to the others says nothing of the person


def references(photos: Path, consent: Path, work: Path, params_file: Path) -> Reals:
    """Return one crop of each photo of the person, found by the ordinary ingest and detect.

    Args:
        photos: A folder or an archive.
        consent: The person's consent.yaml.
        work: Gets what the two stages make; kept, so that the next call reads no photo twice.
        params_file: A params.yaml, whose `ingest` and `detect` hold but for the numbers of photos.

    Raises:
        InputError: the consent does not cover it; or fewer than three photos show the person.
    """
    require_for(["ingest", "evaluate"], read_consent(consent), today())
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
    return Reals([RealPhoto(crop.photo, work / "detect" / crop.file) for crop in largest], [], {}, [])
