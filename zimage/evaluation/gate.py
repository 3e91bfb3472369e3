"""Turn figures into a verdict; the only place that does. Publishing reads the verdict."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from zimage.core.jsonl import Row
from zimage.core.section import Section
from zimage.evaluation.figures import Figures
from zimage.evaluation.intervals import Estimate
from zimage.evaluation.wording import Unit, limit_shown, shown, value_shown

Verdict = Literal["pass", "fail", "provisional"]


class GateParams(Section):
    """The limits. null leaves a rule out; what it would judge is measured and shown all the same."""

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
    shared_session_max: float | None = 0.0
    """Largest share of held-out photos from a session that is trained on; of more the verdict is provisional."""
    reviewer_same_rate_min: float | None = None
    """Least share of all pictures that a person calls the same in review.html; unsure counts as no."""


USUAL = GateParams(
    face_found_rate_min=0.90,
    same_person_rate_min=0.70,
    same_person_rate_low_min=0.55,
    gain_low_min=0.5,
    second_engine_rate_min=0.75,
    clip_drop_max=0.02,
    copy_rate_max=0.02,
    nearest_share_max=0.4,
    leak_rise_max=0.1,
    variety_ratio_min=0.8,
    shared_session_max=0.0,
    reviewer_same_rate_min=0.70,
)
"""The limits for a person's photos and a real model. Whoever sets others is told so wherever the verdict stands."""


class Ruled(Row):
    """One rule of the gate with its result."""

    name: str
    """The field of `GateParams`."""
    says: str
    """The rule in words."""
    unit: Unit
    """What `value` and the limits are."""
    limit: float | None
    """Null where it is not a rule here."""
    usual: float
    """The limit in `USUAL`."""
    value: float | None
    low: float | None
    high: float | None
    n: int
    judged: float | None
    """The number that was held against the limit: the value, or the lower end of its interval."""
    verdict: Literal["pass", "fail", "not measured", "off"]
    """off: it is not a rule here."""
    is_usual: bool | None
    """Whether it is within the usual limit; null where it was not measured."""


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
    unit: Unit = "count"
    part: Literal["value", "low"] = "value"
    weakens: bool = False
    """Broken, it says that the other figures prove less, not that the LoRA is bad."""

    def holds(self, judged: float, limit: float) -> bool:
        return judged >= limit if self.name.endswith("_min") else judged <= limit


EMBEDDED_SCREENS = (
    "but the embedded face engine is for screening: its error rates are known from 110 photos of 26 people only; a "
    "pass asks for a stronger engine, or for rates from many more people of all ages and origins."
)

RULES = (
    _Rule("face_found_rate_min", "a face is found", lambda f: f.face_found),
    _Rule("same_person_rate_min", "same person, of all pictures", lambda f: f.same_of_all),
    _Rule("same_person_rate_low_min", "same person, lower end of interval", lambda f: f.same_of_all, "share", "low"),
    _Rule("gain_low_min", "gain over the base model, lower end of interval", lambda f: f.gain, "share", "low"),
    _Rule("second_engine_rate_min", "same person by the second engine", lambda f: f.second_same),
    _Rule("clip_drop_max", "prompt following lost (CLIP)", lambda f: f.clip_drop, "number"),
    _Rule("copy_rate_max", "copies of training photos", lambda f: f.copied),
    _Rule("nearest_share_max", "faces nearest to one training photo", lambda f: f.nearest_share),
    _Rule("leak_rise_max", "the subject appears uncalled, above the base model", lambda f: f.leak_rise),
    _Rule("variety_ratio_min", "variety, relative to the base model", lambda f: f.variety_ratio, "share"),
    _Rule(
        "shared_session_max",
        "held-out photos from a session that was also trained on",
        lambda f: f.shared_session,
        weakens=True,
    ),
    _Rule("reviewer_same_rate_min", "same person to a reviewer, of all pictures", lambda f: f.reviewed),
)
WEAKENING = {rule.name for rule in RULES if rule.weakens}


def judge(figures: Figures, params: GateParams, *, embedded: bool) -> Judgement:
    """Return the verdict over all rules that have a limit; the others are measured all the same, and said to be off.

    `fail` if a rule is broken; else `provisional` if the embedded engine judged, a rule could not be measured, or the
    held-out photos are of a session that was trained on, for none of these is enough to publish; else `pass`.
    """
    rules = [_ruled(rule, rule.figure(figures), getattr(params, rule.name)) for rule in RULES]
    return judge_rules(rules, embedded=embedded)


def review_rule(same: Estimate, limit: float | None) -> Ruled:
    """Return the rule on a person's review, which comes after an evaluation; see zimage.evaluation.review."""
    return next(_ruled(rule, same, limit) for rule in RULES if rule.name == "reviewer_same_rate_min")


def judge_rules(rules: Sequence[Ruled], *, embedded: bool) -> Judgement:
    """Return the verdict over rules that were judged; see `judge`."""
    broken = [rule.says for rule in rules if rule.verdict == "fail" and rule.name not in WEAKENING]
    weak = [rule for rule in rules if rule.verdict == "fail" and rule.name in WEAKENING]
    open_rules = [rule.says for rule in rules if rule.verdict == "not measured"]
    verdict: Verdict
    if broken:
        verdict, why = "fail", f"Outside its limit: {'; '.join(broken)}."
    elif open_rules:
        verdict, why = "provisional", f"Could not be measured: {'; '.join(open_rules)}."
    elif weak:
        verdict, why = "provisional", "All other rules that apply here hold."
    elif embedded:
        verdict = "provisional"
        why = f"{_held(rules)}, {EMBEDDED_SCREENS}"
    else:
        verdict, why = "pass", f"{_held(rules)}."
    said = [why, *map(_weak, weak), *_off(rules), *_changed(rules)]
    return Judgement(verdict=verdict, why=" ".join(said), rules=list(rules))


def _weak(rule: Ruled) -> str:
    """Return what the score is worth where held-out photos are of a session that was trained on."""
    return (
        f"Of the held-out photos {shown(rule.judged, rule.n, rule.unit)} are from a session that was also trained on, "
        "so the score shows likeness within that session and says little about other days, light or clothes; add "
        "photos from other occasions."
    )


def _held(rules: Sequence[Ruled]) -> str:
    applied = sum(rule.limit is not None for rule in rules)
    return "All rules hold" if applied == len(rules) else f"All {applied} rules that apply here hold"


def _off(rules: Sequence[Ruled]) -> Iterator[str]:
    """Yield a sentence on the rules that are off; it names those that would not hold."""
    off = [rule for rule in rules if rule.verdict == "off"]
    outside = [f"{rule.says} ({shown(rule.judged, rule.n, rule.unit)})" for rule in off if rule.is_usual is False]
    if outside:
        yield f"Of the {len(off)} rules that are off, {len(outside)} would not hold: {'; '.join(outside)}."


def _changed(rules: Sequence[Ruled]) -> Iterator[str]:
    """Yield a sentence on the limits that somebody changed."""
    changed = [
        f"{rule.says} {limit_shown(rule.name, rule.limit, rule.unit)} (usually {value_shown(rule.usual, rule.unit)})"
        for rule in rules
        if rule.limit not in (None, rule.usual)
    ]
    if changed:
        yield f"Changed limits: {'; '.join(changed)}."


def _ruled(rule: _Rule, estimate: Estimate, limit: float | None) -> Ruled:
    judged, usual = getattr(estimate, rule.part), getattr(USUAL, rule.name)
    verdict: Literal["pass", "fail", "not measured", "off"]
    if limit is None:
        verdict = "off"
    elif judged is None:
        verdict = "not measured"
    else:
        verdict = "pass" if rule.holds(judged, limit) else "fail"
    return Ruled(
        name=rule.name,
        says=rule.says,
        unit=rule.unit,
        limit=limit,
        usual=usual,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
        judged=judged,
        verdict=verdict,
        is_usual=None if judged is None else rule.holds(judged, usual),
    )
