"""Turn a person's answers in review.html into a figure of the gate, if the controls show that they can be relied on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from zimage.core.errors import InputError
from zimage.core.jsonl import Row, read_rows
from zimage.evaluation.gate import Ruled, judge_rules, review_rule
from zimage.evaluation.intervals import Estimate, rate
from zimage.evaluation.wording import quantity

FORMAT: Literal["zimage-review-1"] = "zimage-review-1"
ITEMS = "review.jsonl"  # in the evaluate folder
MAX_BYTES = 1_000_000
CONTROLS_RIGHT = 0.8  # share of the controls of each kind that has to be answered right

Kind = Literal["picture", "impostor", "real"]
Answer = Literal["yes", "no", "unsure"]
NOT_MEASURED = Estimate(None, None, None, 0)


class Item(Row):
    """A picture that a reviewer is asked about."""

    id: str
    """Its name in page and answers, which says nothing about its kind."""
    kind: Kind
    """picture: of the LoRA; impostor: another person; real: a held-out photo. The last two are controls."""
    name: str
    """The picture's file in the evaluate folder, where an impostor is from, or a photo's code."""
    prompt: str | None
    """Of a picture."""
    engine_same: bool | None
    """What the face engine says; null where it could not tell."""


class Answers(Row):
    """The file that review.html saves."""

    format: Literal["zimage-review-1"]
    review: str
    """Which pictures were asked about; see `identity_of`."""
    answers: dict[str, Answer] = Field(max_length=100_000)
    """By the id of each item."""


@dataclass(frozen=True)
class Review:
    """What a person's answers amount to.

    Args:
        unusable: Why they do not count, as a sentence; empty where they do.
        same: Share of the LoRA's pictures that are the person to the reviewer; unsure counts as no.
        agreement: Share of the LoRA's pictures on which reviewer and engine agree, of those answered yes or no.
        kappa: Cohen's kappa of reviewer and engine, over pictures and controls that were answered yes or no; None where
            both gave one and the same answer throughout.
        compared: How many pictures and controls kappa rests on.
        unsure: Pictures that were answered so.
        controls: For each kind of control, how many were answered right, and how many there are.
    """

    unusable: str
    same: Estimate
    agreement: Estimate
    kappa: float | None
    compared: int
    unsure: int
    controls: dict[str, tuple[int, int]] = field(default_factory=dict)


def identity_of(items: Sequence[Item]) -> str:
    """Return a name for what is asked about: of other pictures it is another."""
    return hashlib.sha256("\n".join(sorted(item.id for item in items)).encode()).hexdigest()[:16]


def parsed_answers(content: bytes, name: str) -> Answers:
    """Return the answers in a file that review.html saved.

    Raises:
        InputError: it is none.
    """
    try:
        return Answers.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{name} is not what review.html saves ({where}: {first['msg']}); open review.html, answer, and save again."
        ) from None


def review_of(items: Sequence[Item], answers: Answers, of: frozenset[str] | None = None) -> Review:
    """Return what the answers amount to; see `Review.unusable` for when they do not count.

    Args:
        items: All that was asked about.
        answers: What a person said.
        of: Names of the pictures that the figures are of; None for all. Controls always count.
    """
    given = answers.answers
    wanted = [item for item in items if item.kind != "picture" or of is None or item.name in of]
    pictures = [item for item in wanted if item.kind == "picture"]
    controls = {kind: [item for item in items if item.kind == kind] for kind in ("impostor", "real")}
    right = {
        kind: (sum(given.get(item.id) == ("yes" if kind == "real" else "no") for item in found), len(found))
        for kind, found in controls.items()
    }
    unusable = _unusable(items, answers, right)
    if unusable:
        return Review(unusable, NOT_MEASURED, NOT_MEASURED, None, 0, 0, right)
    decided = [item for item in wanted if given[item.id] != "unsure" and item.engine_same is not None]
    pairs = [(given[item.id] == "yes", bool(item.engine_same)) for item in decided]
    return Review(
        unusable="",
        same=rate(_by_prompt(pictures, {item.id: given[item.id] == "yes" for item in pictures})),
        agreement=rate(
            _by_prompt(
                [item for item in decided if item.kind == "picture"],
                {item.id: (given[item.id] == "yes") == item.engine_same for item in decided},
            )
        ),
        kappa=cohens_kappa(pairs),
        compared=len(pairs),
        unsure=sum(given[item.id] == "unsure" for item in pictures),
        controls=right,
    )


def cohens_kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Return the agreement of two raters beyond chance (Cohen 1960, Educational and Psychological Measurement 20:37).

    None where there is no pair, or where both gave one and the same answer throughout, for then chance explains all.
    """
    if not pairs:
        return None
    n = len(pairs)
    observed = sum(first == second for first, second in pairs) / n
    first, second = (sum(pair[rater] for pair in pairs) / n for rater in (0, 1))
    by_chance = first * second + (1 - first) * (1 - second)
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def with_review(metrics: dict[str, Any], evaluate: Path, answers: Path) -> dict[str, Any]:
    """Return the metrics of an evaluation with a person's review, and the verdict that follows from both.

    Unchanged where no answers are there, or where the evaluation is older than reviews.

    Args:
        metrics: What metrics.json holds.
        evaluate: The folder of the evaluation.
        answers: What review.html saved.

    Raises:
        InputError: the file of answers is not one that review.html saved.
    """
    if not answers.is_file() or not (evaluate / ITEMS).is_file():
        return metrics
    return reviewed(metrics, review_of(read_rows(evaluate / ITEMS, Item), read_answers(answers)))


def read_answers(file: Path) -> Answers:
    """Return the answers in a file that review.html saved.

    Raises:
        InputError: there is no such file, it is too large, or it is none.
    """
    if not file.is_file():
        raise InputError(f"There is no review {file}; name a file that review.html saved.")
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"{file} is too large for a review; replace it by the file that review.html saved.")
    return parsed_answers(file.read_bytes(), str(file))


def reviewed(metrics: Mapping[str, Any], review: Review) -> dict[str, Any]:
    """Return metrics with the figures of a review, its rule judged anew, and the verdict over all rules."""
    rules = [Ruled(name=name, **rule) for name, rule in metrics["gate"].items()]
    rules = [review_rule(review.same, rule.limit) if rule.name == "reviewer_same_rate_min" else rule for rule in rules]
    judgement = judge_rules(rules, embedded=metrics["engine"]["embedded"])
    why = [judgement.why, review.unusable] if review.unusable else [judgement.why]
    return {
        **metrics,
        "verdict": judgement.verdict,
        "why": " ".join(why),
        "gate": {rule.name: rule.model_dump(exclude={"name"}) for rule in judgement.rules},
        "estimates": {**metrics["estimates"], "reviewed": asdict(review.same)},
        "review": json.loads(json.dumps(asdict(review))),
    }


def summary_line(review: Mapping[str, Any]) -> str:
    """Return what the review came to in one line, from `review` of metrics."""
    if review["unusable"]:
        return str(review["unusable"])
    same, agreement = review["same"], review["agreement"]
    said = f"{round(same['value'] * same['n'])} of {quantity(same['n'], 'picture')} are the person to a reviewer"
    if agreement["value"] is not None:
        said += (
            f", who agrees with the face engine in {100 * agreement['value']:.0f} % "
            f"(95 % interval {100 * agreement['low']:.0f} to {100 * agreement['high']:.0f} %)"
        )
    return said + ("" if review["kappa"] is None else f"; kappa {review['kappa']:.2f}")


def _unusable(items: Sequence[Item], answers: Answers, right: Mapping[str, tuple[int, int]]) -> str:
    """Return why answers do not count, as a sentence; empty where they do."""
    missing = sum(item.id not in answers.answers for item in items)
    wrong = [kind for kind, (good, all_) in right.items() if all_ and good < CONTROLS_RIGHT * all_]
    if answers.review != identity_of(items):
        return "The review is not usable: it is of other pictures than the evaluation's; answer its review.html."
    if missing:
        return f"The review is not usable: {missing} of {len(items)} pictures have no answer; go on in review.html."
    if not all(all_ for _, all_ in right.values()):
        return (
            "The review is not usable: no photo of another person, or no real photo, was among the pictures; set "
            "evaluate.impostors to packaged."
        )
    if wrong:
        says = {"impostor": "photos of other people", "real": "real photos of the person"}
        counts = " and ".join(f"{right[kind][1] - right[kind][0]} of {right[kind][1]} {says[kind]}" for kind in wrong)
        return f"The review is not usable: {counts} were not recognised; let somebody answer who knows the person well."
    return ""


def _by_prompt(items: Sequence[Item], passed: Mapping[str, bool]) -> list[list[bool]]:
    groups: dict[str | None, list[bool]] = {}
    for item in items:
        groups.setdefault(item.prompt, []).append(passed[item.id])
    return list(groups.values())
