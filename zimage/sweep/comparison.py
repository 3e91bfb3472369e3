"""Compare settings over several trainings each: differences beyond the chance of a training and of prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

from zimage.evaluation.compare import (
    ERROR,
    LIKENESS,
    MEASURES,
    ComparedSet,
    Difference,
    Measure,
    difference_of,
    sentence,
)
from zimage.evaluation.figures import by_prompt, paired
from zimage.evaluation.intervals import Estimate, rate, rate_difference, two_way_mean
from zimage.evaluation.rows import PictureRow


@dataclass(frozen=True)
class Run:
    """One training of a setting, scored.

    Args:
        seed: `train.seed`.
        rows: The scored pictures of the chosen LoRA on the test half of the prompts.
        seconds: How long it trained.
    """

    seed: int
    rows: Sequence[PictureRow]
    seconds: float


@dataclass(frozen=True)
class SettingResult:
    """What a setting amounts to over its trainings."""

    seeds: list[int]
    seconds: float
    likeness: float
    same_person: Estimate
    second_engine: Estimate
    copies: Estimate

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Compared:
    """All settings, and how each differs from the first.

    Args:
        first: The setting that all others are compared with.
        results: By setting.
        differences: `first` is each other setting and `second` the first one.
    """

    first: str
    results: dict[str, SettingResult]
    differences: list[Difference]


def compared(runs: Mapping[str, Sequence[Run]], *, copy_correlation: float) -> Compared:
    """Return what every setting amounts to, and its differences from the first.

    Two pictures of one training seed, prompt and picture seed begin with the same noise, and their trainings with the
    same adapters, order and noise. The interval of a difference holds for other trainings and other prompts (see
    `two_way_mean`); that of a share is at least as wide as Newcombe's. With k settings beside the first each interval
    has a confidence of 1 - 0.05 / k (Bonferroni), so that all of a measure hold together.

    Args:
        runs: The trainings of every setting, at least one.
        copy_correlation: From which likeness to a training crop on a picture counts as a copy.
    """
    copies = Measure(
        "copies", "share of pictures that copy one", lambda row: row.likeness_to_copy >= copy_correlation, False
    )
    first, *others = runs
    results = {name: _result(of, copies) for name, of in runs.items()}
    sets = {name: ComparedSet(name, one.same_person) for name, one in results.items()}
    return Compared(
        first,
        results,
        [
            found
            for measure in (*MEASURES, copies)
            if not measure.leaks
            for name in others
            if (found := _difference(measure, (sets[name], sets[first]), runs, 1 - ERROR / len(others))).n
        ],
    )


def _result(runs: Sequence[Run], copies: Measure) -> SettingResult:
    shares = [
        rate([[bool(of(row)) for row in group] for group in by_prompt([row for run in runs for row in run.rows])])
        for of in (lambda row: row.same, lambda row: row.second_same, copies.of)
    ]
    likeness = fmean(row.closeness for run in runs for row in run.rows)
    return SettingResult([run.seed for run in runs], median(run.seconds for run in runs), likeness, *shares)


def _difference(
    measure: Measure, sets: tuple[ComparedSet, ComparedSet], runs: Mapping[str, Sequence[Run]], confidence: float
) -> Difference:
    """Return the first set's value less the second's, over the seeds that both were trained with."""
    of_first, of_second = ({run.seed: run.rows for run in runs[one.name]} for one in sets)
    cells: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for seed in sorted(of_first.keys() & of_second.keys()):
        for group in zip(*paired(of_first[seed], of_second[seed]), strict=True):
            values = [(measure.of(one), measure.of(other)) for one, other in zip(*group, strict=True)]
            both = [(float(one), float(other)) for one, other in values if one is not None and other is not None]
            cells[seed, group[0][0].prompt] = both
    estimate = two_way_mean(
        {key: [one - other for one, other in pairs] for key, pairs in cells.items()}, confidence=confidence
    )
    if _is_share(measure, runs[sets[0].name]):
        prompts = sorted({prompt for _, prompt in cells})
        passes = [
            [
                [bool(pair[side]) for (_, of), pairs in cells.items() if of == prompt for pair in pairs]
                for prompt in prompts
            ]
            for side in (0, 1)
        ]
        estimate = _wider(estimate, rate_difference(passes[0], passes[1], confidence=confidence))
    return difference_of(measure, sets, estimate, confidence=confidence)


def _is_share(measure: Measure, runs: Sequence[Run]) -> bool:
    return any(isinstance(measure.of(row), bool) for run in runs for row in run.rows)


def _wider(one: Estimate, other: Estimate) -> Estimate:
    """Return the first estimate of a difference of shares with the ends that lie further out, within -1 and 1."""
    lows, highs = ([end for end in ends if end is not None] for ends in ((one.low, other.low), (one.high, other.high)))
    return replace(one, low=max(min(lows), -1.0) if lows else None, high=min(max(highs), 1.0) if highs else None)


def table(found: Compared, *, failed: Sequence[str]) -> list[str]:
    """Return a Markdown table of all settings, and what may be read from it, line by line.

    Args:
        found: The comparison.
        failed: Trainings that could not be made.
    """
    seeds = max(len(one.seeds) for one in found.results.values())
    lines = [
        f"| setting | trainings | same person | second engine | likeness | less {found.first} | copies | less "
        f"{found.first} | training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.results.items():
        cells = [
            name,
            str(len(one.seeds)),
            _percent(one.same_person),
            _percent(one.second_engine),
            f"{one.likeness:.3f}",
            _signed(found, name, "likeness"),
            _percent(one.copies),
            _signed(found, name, "copies"),
            f"{one.seconds:.0f} s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"{name}: could not be trained; see its messages." for name in failed)]
    lines += [
        sentence(one, (found.results[one.first].same_person, found.results[one.second].same_person))
        for one in found.differences
        if one.measure == LIKENESS.name
    ]
    scope = "other trainings and other prompts" if seeds > 1 else "other prompts of this one training only; give seeds"
    lines.append(f"Intervals hold for {scope}; all of one measure hold together with 95 %.")
    return lines


def _percent(share: Estimate) -> str:
    return "?" if share.value is None else f"{share.value:.0%} of {share.n}"


def _signed(found: Compared, name: str, measure: str) -> str:
    for one in found.differences:
        if (one.first, one.measure) == (name, measure) and one.value is not None:
            interval = "" if one.low is None or one.high is None else f" [{one.low:+.3f}, {one.high:+.3f}]"
            return f"{one.value:+.3f}{interval}"
    return ""
