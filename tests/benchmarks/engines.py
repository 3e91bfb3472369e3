"""How often each embedded face engine errs about real photographs, at its threshold and at others.

Run with: python -m tests.benchmarks.engines DEEPFACE FACE_API FACE_RECOGNITION
The folders are checkouts of serengil/deepface (tests/unit/dataset, with its list of pairs),
justadudewhohacks/face-api.js (examples/images, one folder a person) and ageitgey/face_recognition
(examples/knn_examples/train, one folder a person). Nothing of them is kept. A photo stands for its largest face. A face
is held against every other face, and against the mean of the other faces of each person with three or more, as
`detect` and `evaluate` do. The unit of chance is the person, and of two faces of different people the pair of people;
see zimage.evaluation.intervals.rate.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from zimage.curation.subject_match import centroid
from zimage.evaluation.intervals import Estimate, rate
from zimage.faces.engine import Engine, Face, between, open_engine
from zimage.faces.engine_defaults import DLIB_PARAMS, YUNET_SFACE_PARAMS
from zimage.photos.decode import Limits, decoded

LIMITS = Limits(max_megapixels=120, max_side_px=4096)
ENOUGH = 3  # other photos of a person, whose mean is worth comparing with
STEPS = (0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1)  # of the threshold
PHOTOS = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Photo:
    """A photo and who is on it."""

    file: Path
    person: str


def deepface(checkout: Path) -> list[Photo]:
    """Return the photos of deepface's tests; whoever its list says is the same person is one."""
    folder = checkout / "tests" / "unit" / "dataset"
    person: dict[str, str] = {}
    with (folder / "face-recognition-pivot.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            first, second = Path(row["file_x"]).name, Path(row["file_y"]).name
            old, new = person.setdefault(first, first), person.setdefault(second, second)
            if row["decision"] == "Yes":
                person = {name: new if one == old else one for name, one in person.items()}
    return [Photo(folder / name, f"deepface/{one}") for name, one in sorted(person.items())]


def by_folder(folder: Path) -> list[Photo]:
    """Return the photos in folders that are named after people."""
    files = sorted(file for file in folder.glob("*/*") if file.suffix in PHOTOS)
    return [Photo(file, f"{folder.parent.name}/{file.parent.name}") for file in files]


def faces_of(engine: Engine, photos: list[Photo]) -> tuple[list[Photo], list[Face]]:
    """Return the photos in which the engine finds a face, and the largest face of each."""
    found = [(photo, engine.find(decoded(photo.file.read_bytes(), LIMITS).pixels_rgb)) for photo in photos]
    seen = [(photo, faces[0]) for photo, faces in found if faces]
    missed = [photo.file.name for photo, faces in found if not faces]
    print(f"{engine.info.engine_id}: {len(seen)} faces in {len(photos)} photos, none in {', '.join(missed) or '-'}")
    return [photo for photo, _ in seen], [face for _, face in seen]


def pairs(photos: list[Photo], faces: list[Face], engine: Engine) -> Iterator[tuple[tuple[str, str], float]]:
    """Yield the two people of each pair of photos, in order, and the distance of their faces."""
    distances = engine.info.distances(faces, faces)
    for i, j in combinations(range(len(faces)), 2):
        first, second = sorted((photos[i].person, photos[j].person))
        yield (first, second), float(distances[i, j])


def to_centroids(photos: list[Photo], faces: list[Face], engine: Engine) -> Iterator[tuple[tuple[str, str], float]]:
    """Yield a face's person, a person with enough other photos, and the face's distance to the mean of those."""
    metric = engine.info.metric
    embeddings = np.stack([face.embedding for face in faces])
    for person in sorted({photo.person for photo in photos}):
        for i, photo in enumerate(photos):
            rest = [j for j, other in enumerate(photos) if other.person == person and j != i]
            if len(rest) >= ENOUGH:
                middle = centroid(embeddings[rest], metric)
                yield (photo.person, person), float(between(embeddings[[i]], middle, metric)[0, 0])


def erring(found: list[tuple[tuple[str, str], float]], errs: Callable[[float], bool]) -> Estimate:
    """Return the share of distances that are errors, with people (or pairs of them) as the unit of chance."""
    groups = defaultdict(list)
    for people, distance in found:
        groups[people].append(errs(distance))
    return rate(list(groups.values()))


def report(title: str, found: list[tuple[tuple[str, str], float]], threshold: float) -> None:
    """Print the spread of distances and both error rates at steps around the threshold."""
    same = [each for each in found if each[0][0] == each[0][1]]
    other = [each for each in found if each[0][0] != each[0][1]]
    print(f"  {title}: {len(same)} of the same person, {len(other)} of others")
    for name, part in (("same", same), ("other", other)):
        values = np.quantile([distance for _, distance in part], [0, 0.01, 0.05, 0.5, 0.95, 0.99, 1])
        print(f"    {name:<6} min, 1, 5, 50, 95, 99 %, max: {'  '.join(f'{value:.3f}' for value in values)}")
    for step in STEPS:
        limit = step * threshold
        refused = erring(same, lambda distance, limit=limit: distance > limit)  # type: ignore[misc]
        accepted = erring(other, lambda distance, limit=limit: distance <= limit)  # type: ignore[misc]
        print(f"    up to {limit:.3f}: same refused {_shown(refused)}, other accepted {_shown(accepted)}")


def _shown(found: Estimate) -> str:
    assert found.value is not None and found.low is not None and found.high is not None
    return f"{found.value:.2%} ({found.low:.2%} to {found.high:.2%})"


def main(checkouts: list[Path]) -> None:
    """Print what both embedded engines make of the photos."""
    faces_there, api, recognition = checkouts
    photos = deepface(faces_there) + by_folder(api / "examples" / "images")
    photos += by_folder(recognition / "examples" / "knn_examples" / "train")
    people = {photo.person for photo in photos}
    print(f"{len(photos)} photos of {len(people)} people")
    both = []
    for params in (YUNET_SFACE_PARAMS, DLIB_PARAMS):
        engine = open_engine(params)
        seen, faces = faces_of(engine, photos)
        found = list(pairs(seen, faces, engine))
        report("pairs", found, engine.info.threshold)
        report("face to the mean of a person's others", list(to_centroids(seen, faces, engine)), engine.info.threshold)
        names = [photo.file for photo in seen]
        both.append(dict(zip(combinations(names, 2), found, strict=True)))
    shared = [pair for pair in both[0] if pair in both[1] and both[0][pair][0][0] != both[0][pair][0][1]]
    distances = np.array([[each[pair][1] for pair in shared] for each in both])
    print(f"{len(shared)} pairs of different people, correlation of both engines {np.corrcoef(distances)[0, 1]:.2f}")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:4]])
