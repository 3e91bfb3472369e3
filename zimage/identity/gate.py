"""The one place where figures become a verdict; publishing reads it and decides nothing by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from zimage.identity.figures import Figures
from zimage.identity.intervals import Estimate
from zimage.records import Row
from zimage.section import Section

Verdict = Literal["pass", "fail", "provisional"]


class GateParams(Section):
    """The limits. null leaves a rule out."""

    face_found_rate_min: float | None
    """Least share of pictures in which a face is found."""
    same_person_rate_min: float | None
    """Least share of all pictures that are the same person; no face is a failure."""
    same_person_rate_low_min: float | None
    """Least lower end of that share's interval."""
    gain_low_min: float | None
    """Least lower end of the normalised gain (0 like the base model, 1 like real photos)."""
    second_engine_rate_min: float | None
    """Least share of all pictures that are the same person by the second engine."""
    clip_drop_max: float | None
    """Largest drop of CLIP agreement below the base model's."""
    copy_rate_max: float | None
    """Largest share of pictures that are a training crop come back."""
    nearest_share_max: float | None
    """Largest share of faces that are nearest to one and the same training photo."""
    leak_rise_max: float | None
    """How much more often than the base model's faces the subject may appear uncalled."""
    variety_ratio_min: float | None
    """Least variety within a prompt, over the base model's."""


class Ruled(Row):
    """One rule and what it came to."""

    name: str
    """The field of `GateParams`."""
    says: str
    """The rule in words."""
    limit: float
    value: float | None
    low: float | None
    high: float | None
    n: int
    judged: float | None
    """The number that was held against the limit: the value, or the lower end of its interval."""
    verdict: Literal["pass", "fail", "not measured"]


class Judgement(Row):
    """The verdict and why."""

    verdict: Verdict
    why: str
    rules: list[Ruled]


@dataclass(frozen=True)
class _Rule:
    name: str
    says: str
    figure: Callable[[Figures], Estimate]
    part: Literal["value", "low"] = "value"

    @property
    def at_least(self) -> bool:
        return self.name.endswith("_min")


RULES = (
    _Rule("face_found_rate_min", "a face is found", lambda f: f.face_found),
    _Rule("same_person_rate_min", "same person, of all pictures", lambda f: f.same_of_all),
    _Rule("same_person_rate_low_min", "same person, lower end of the interval", lambda f: f.same_of_all, "low"),
    _Rule("gain_low_min", "gain over the base model, lower end of the interval", lambda f: f.gain, "low"),
    _Rule("second_engine_rate_min", "same person by the second engine", lambda f: f.second_same),
    _Rule("clip_drop_max", "prompt following lost (CLIP)", lambda f: f.clip_drop),
    _Rule("copy_rate_max", "training photos come back", lambda f: f.copied),
    _Rule("nearest_share_max", "faces nearest to one training photo", lambda f: f.nearest_share),
    _Rule("leak_rise_max", "the subject appears uncalled, above the base model", lambda f: f.leak_rise),
    _Rule("variety_ratio_min", "variety, relative to the base model", lambda f: f.variety_ratio),
)


def judge(figures: Figures, params: GateParams, *, embedded: bool) -> Judgement:
    """Return the verdict over all rules that have a limit.

    `fail` if a rule is broken; else `provisional` if the embedded engine judged, or a rule could not be measured, for
    neither is enough to publish; else `pass`.
    """
    ruled = [_ruled(rule, figures, limit) for rule in RULES if (limit := getattr(params, rule.name)) is not None]
    broken = [rule.says for rule in ruled if rule.verdict == "fail"]
    open_rules = [rule.says for rule in ruled if rule.verdict == "not measured"]
    if broken:
        return Judgement(verdict="fail", why=f"Outside its limit: {'; '.join(broken)}.", rules=ruled)
    if open_rules:
        return Judgement(verdict="provisional", why=f"Could not be measured: {'; '.join(open_rules)}.", rules=ruled)
    if embedded:
        why = "All rules hold, but the embedded face engine is for screening; publishing asks for a stronger one."
        return Judgement(verdict="provisional", why=why, rules=ruled)
    return Judgement(verdict="pass", why="All rules hold.", rules=ruled)


def _ruled(rule: _Rule, figures: Figures, limit: float) -> Ruled:
    estimate = rule.figure(figures)
    judged = getattr(estimate, rule.part)
    if judged is None:
        verdict: Literal["pass", "fail", "not measured"] = "not measured"
    else:
        holds = judged >= limit if rule.at_least else judged <= limit
        verdict = "pass" if holds else "fail"
    return Ruled(
        name=rule.name,
        says=rule.says,
        limit=limit,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
        judged=judged,
        verdict=verdict,
    )
