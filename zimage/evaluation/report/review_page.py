"""Write review.html, in which a person says of each picture whether it shows the subject, and the list of its items.

A person's eye sees what two face engines miss, but tires and wants to please. So real held-out photos and other people
are mixed in at the pictures' size, unmarked and in an order that the seed draws; see zimage.evaluation.review for what
becomes of the answers. The page is one file that loads nothing, keeps answers in the browser, and saves them as JSON.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from zimage.captions.subject import Subject
from zimage.core.assets import asset
from zimage.core.folder import write_whole
from zimage.core.jsonl import write_rows
from zimage.evaluation.report.results import Findings
from zimage.evaluation.review import FORMAT, ITEMS, Item, Kind, identity_of
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.score.impostors import Impostors
from zimage.evaluation.score.likeness import Targets
from zimage.evaluation.score.reals import RealPhoto, Reals
from zimage.photos.pictures import Picture, fitted, jpeg_uri, read_rgb

PAGE = "review.html"
CONTROLS = 4  # of each kind, at most
REFERENCES = 6  # real photos beside each picture
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Question:
    """One picture of the page.

    Args:
        item: What is known of it.
        picture: Its pixels, at the size of the generated pictures.
    """

    item: Item
    picture: Picture


@dataclass(frozen=True)
class Shown:
    """What a review is about.

    Args:
        rows: The pictures that are asked about.
        strangers: Faces of other people; None where none were asked for.
        targets: The real photos in the engine.
        reals: The real photos.
        side_px: Of the pictures.
    """

    rows: Sequence[PictureRow]
    strangers: Impostors | None
    targets: Targets
    reals: Reals
    side_px: int


def write_review(
    folder: Path, findings: Findings, reals: Reals, *, seed: int, picture_px: int, subject: Subject
) -> None:
    """Write review.html and review.jsonl into the evaluate folder.

    Args:
        folder: The evaluate folder, whose pictures are asked about.
        findings: The pictures of the chosen LoRA, and faces of other people.
        reals: Real photos: held-out ones are controls, training photos are shown beside each picture.
        seed: Draws the controls and the order.
        picture_px: Longer side of the pictures in the page.
        subject: Who was learnt.
    """
    shown = Shown(
        rows=findings.outcome.test,
        strangers=findings.impostors,
        targets=findings.picture_scorer.targets,
        reals=reals,
        side_px=findings.sampled.side_px,
    )
    references = spread_out(reals.training, REFERENCES)
    write_questions(folder, questions_of(folder, shown, seed), references, picture_px=picture_px, subject=subject)


def write_questions(
    folder: Path, questions: Sequence[Question], references: Sequence[RealPhoto], *, picture_px: int, subject: Subject
) -> None:
    """Write review.html and review.jsonl.

    Args:
        folder: Gets both.
        questions: In the order in which they are asked.
        references: Real photos that are shown beside each picture.
        picture_px: Longer side of the pictures in the page.
        subject: Who is looked for.
    """
    items = [question.item for question in questions]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(asset(".")), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    page = environment.get_template("review.html.jinja").render(
        subject=subject,
        format=FORMAT,
        identity=identity_of(items),
        references=[_uri(read_rgb(real.file), picture_px) for real in references],
        questions=[{"id": each.item.id, "src": _uri(each.picture, picture_px)} for each in questions],
    )
    write_rows(folder / ITEMS, items)
    write_whole(folder / PAGE, page.encode())


def questions_of(folder: Path, shown: Shown, seed: int) -> list[Question]:
    """Return what the page asks, in the order that the seed draws; the pictures lie in `folder`."""
    drawn = np.random.default_rng(seed)
    made = [*_pictures(folder, shown), *_impostors(shown), *_reals(shown, drawn)]
    return [made[place] for place in drawn.permutation(len(made))]


def spread_out(photos: Sequence[RealPhoto], most: int) -> list[RealPhoto]:
    """Return at most `most` photos, evenly from the list."""
    places = np.unique(np.linspace(0, len(photos) - 1, min(most, len(photos))).round().astype(int))
    return [photos[place] for place in places]


def _pictures(folder: Path, shown: Shown) -> Iterator[Question]:
    for row in shown.rows:
        yield _question(read_rgb(folder / row.file), "picture", row.file, row.same, row.prompt)


def _impostors(shown: Shown) -> Iterator[Question]:
    """Yield the other people who are nearest to the person, for these are the ones that are mistaken."""
    found = shown.strangers.found if shown.strangers else []
    nearest_first = sorted(found, key=lambda one: one.distance or 0.0)[:CONTROLS]
    for number, one in enumerate(nearest_first):
        yield _question(square(one.picture), "impostor", f"{one.photo} {number}", one.same)


def _reals(shown: Shown, drawn: np.random.Generator) -> Iterator[Question]:
    """Yield held-out photos that the seed draws, with what the engine makes of each against the others."""
    targets, holdout = shown.targets, shown.reals.holdout
    known = dict(zip(targets.holdout_photos, targets.genuine().tolist(), strict=False))
    for place in sorted(drawn.permutation(len(holdout))[:CONTROLS].tolist()):
        photo = holdout[place]
        distance = known.get(photo.photo)
        same = None if distance is None else distance <= targets.info.threshold
        picture = fitted(square(read_rgb(photo.file)), shown.side_px)
        yield _question(picture, "real", photo.photo, same)


def square(picture: Picture) -> Picture:
    """Return the middle square of a picture: another shape than the generated pictures' would disclose a control."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def _question(picture: Picture, kind: Kind, name: str, engine_same: bool | None, prompt: str | None = None) -> Question:
    """Return a question whose id is of these very pixels, and does not disclose its kind."""
    key = hashlib.sha256(f"{kind} {name} {picture.shape}".encode() + picture.tobytes()).hexdigest()[:16]
    return Question(Item(id=key, kind=kind, name=name, prompt=prompt, engine_same=engine_same), picture)


def _uri(picture: Picture, picture_px: int) -> str:
    return jpeg_uri(picture, picture_px, JPEG_QUALITY)
