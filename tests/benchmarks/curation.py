"""What `ingest` and `detect` decide about albums made of photographs that ship in packages.

Run with: python -m tests.benchmarks.curation
One line for each album: photos trained on, held out and left out with reasons, or the refusal; and how many shots have
a photo on both sides of the split. Run in a checkout of another commit it shows what that one decides.
"""

import copy
import datetime
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from matplotlib import cbook
from numpy.typing import NDArray
from PIL import ExifTags, Image
from skimage import data

from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.demo import jpeg, other_people, planned_views, taken
from zimage.photos.rows import ManifestRow
from zimage.stages.detect import DetectParams, detect
from zimage.stages.ingest import IngestParams, ingest

Picture = NDArray[np.uint8]
CENTRES = [(515, 362), (118, 336), (786, 418), (1166, 336), (936, 141), (319, 223)]  # of the group's faces, by dlib
DAY = datetime.datetime(2026, 5, 4, 10, 30)


def portrait() -> Picture:
    return np.asarray(data.astronaut(), np.uint8)


def views(count: int) -> list[Picture]:
    """Return views of skimage's portrait, as the demo has them."""
    rng = np.random.default_rng(3)
    return [taken(portrait(), plan, rng) for plan in planned_views(rng)[:count]]


def people() -> list[Picture]:
    """Return photos of eight people."""
    group = np.asarray(cv2.resize(other_people(), None, fx=2.0, fy=2.0, interpolation=cv2.INTER_CUBIC), np.uint8)
    boxes = [(max(0, 2 * x - 200), max(0, 2 * y - 220)) for x, y in CENTRES]
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        grace = np.asarray(image.convert("RGB"))
    return [*(group[top : top + 420, left : left + 400] for left, top in boxes), portrait()[:330, 60:400], grace]


COPIES: dict[str, Callable[[Picture], Picture]] = {
    "mirrored": lambda one: one[:, ::-1],
    "grey": lambda one: np.repeat(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY)[:, :, None], 3, 2),
    "smaller": lambda one: np.asarray(cv2.resize(one, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA), np.uint8),
    "cropped": lambda one: one[len(one) // 20 : -len(one) // 16, one.shape[1] // 20 : -one.shape[1] // 20],
    "screenshot": lambda one: cv2.copyMakeBorder(one, 160, 200, 9, 9, cv2.BORDER_CONSTANT, value=(24, 24, 24)),
}


def save(folder: Path, name: str, pixels: Picture, *, at: datetime.datetime | None = None) -> None:
    if at is not None:
        (folder / f"{name}.jpg").write_bytes(jpeg(np.ascontiguousarray(pixels), 92, at))
    else:
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{name}.jpg", quality=92)


def copies(folder: Path) -> None:
    """Eight people, whom the engine is told to take for one, each once and in five copies."""
    for number, one in enumerate(people()):
        save(folder, f"{number}_original", one)
        for name, change in COPIES.items():
            save(folder, f"{number}_{name}", change(np.ascontiguousarray(one)))


def session(folder: Path) -> None:
    """Fourteen photos ten seconds apart."""
    for number, one in enumerate(views(14)):
        save(folder, f"{number:02}", one, at=DAY + datetime.timedelta(seconds=10 * number))


def scans(folder: Path) -> None:
    """Fourteen files whose EXIF holds only when they were written."""
    exif = Image.Exif()
    exif[ExifTags.Base.DateTime] = "2026:05:04 10:30:00"
    for number, one in enumerate(views(14)):
        Image.fromarray(one).save(folder / f"{number:02}.jpg", quality=92, exif=exif)


def friend(folder: Path) -> None:
    """Four photos of one person and eleven of another."""
    for number, one in enumerate(views(4)):
        save(folder, f"me{number}", one)
    him = cv2.resize(other_people()[205:505, 370:670], (400, 400), interpolation=cv2.INTER_CUBIC)
    for number in range(11):
        turned = cv2.getRotationMatrix2D((200, 200), 4.0 * number - 20, 1.0 + 0.03 * number)
        save(folder, f"friend{number}", np.asarray(cv2.warpAffine(him, turned, (400, 400)), np.uint8))


def odd(folder: Path) -> None:
    """Ten good photos, beside three that the border cuts, three that lie, three grey copies, and a screenshot."""
    for number, one in enumerate(views(13)):
        turns = {2: 1, 5: 2, 7: 3}.get(number, 0)
        save(folder, f"{number:02}{'_lies' if turns else ''}", np.rot90(one, turns))
        if number in (1, 3, 6):
            Image.fromarray(one).convert("L").convert("RGB").save(folder / f"{number:02}_grey.jpg", quality=98)
    large = np.asarray(cv2.resize(portrait(), (1024, 1024), interpolation=cv2.INTER_CUBIC), np.uint8)
    for name, part in {"l": large[:, 412:], "r": large[:, :490], "b": large[:290, 200:700]}.items():
        save(folder, f"cut_{name}", part)
    shot = np.full((1600, 760, 3), 250, np.uint8)
    shot[300:1100] = cv2.resize(portrait()[20:230, 110:320], (760, 800))
    cv2.putText(shot, "9:41", (40, 60), cv2.FONT_HERSHEY_SIMPLEX, 1.6, (0, 0, 0), 4)
    save(folder, "screenshot", shot)


ALBUMS: dict[Callable[[Path], None], dict[str, dict[str, Any]]] = {
    copies: {
        "engine": {"max_distance": 2.0},
        "duplicates": {"same_shot": 0.97, "same_face": 0.05},
        "split": {"min_train": 3, "min_holdout": 2, "holdout_share": 0.3},
    },
    session: {},
    scans: {},
    friend: {"split": {"min_train": 2, "min_holdout": 1}},
    odd: {"split": {"min_train": 3}},
}


def decided(make: Callable[[Path], None], changes: dict[str, dict[str, Any]], values: dict[str, Any]) -> str:
    """Return what became of one album."""
    section = copy.deepcopy(values["detect"])
    for part, keys in changes.items():
        section[part] |= {key: value for key, value in keys.items() if key in section[part]}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "photos").mkdir()
        make(place / "photos")
        ingested = IngestParams.model_validate(values["ingest"])
        ingest(place / "photos", Path("data/consent.yaml"), place / "ingest", params=ingested)
        try:
            params = DetectParams.model_validate(section)
            detect(place / "ingest", place / "overrides", place / "detect", params=params)
        except InputError as refusal:
            return f"refused: {str(refusal).split(';')[0]}"
        rows = read_rows(place / "detect" / "manifest.jsonl", ManifestRow)
    return told(rows)


def told(rows: list[ManifestRow]) -> str:
    """Return decisions and leaks; the part of a name before `_` names the shot."""
    sides = [{row.name.split("_")[0] for row in rows if row.decision == side} for side in ("train", "holdout")]
    against = Counter(row.reason for row in rows if row.decision in {"reject", "review"})
    grey = sum(row.decision in {"train", "holdout"} for row in rows if "_grey" in row.name)
    lying = sum(row.decision in {"train", "holdout"} for row in rows if "_lies" in row.name)
    whose = {row.name[0] for row in rows if row.decision == "train"}
    return (
        f"{sum(row.decision == 'train' for row in rows)} trained on, "
        f"{sum(row.decision == 'holdout' for row in rows)} held out; {dict(against)}; "
        f"{len(sides[0] & sides[1])} shots on both sides; grey copies used {grey}, lying photos used {lying}; "
        f"trained on names that begin with {''.join(sorted(whose))}"
    )


def main() -> None:
    """Print a line for each album."""
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    for make, changes in ALBUMS.items():
        print(f"{make.__name__}: {decided(make, changes, values)}", flush=True)


if __name__ == "__main__":
    main()
