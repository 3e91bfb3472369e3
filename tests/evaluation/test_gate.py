from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from zimage.evaluation.figures import Figures
from zimage.evaluation.gate import RULES, USUAL, GateParams, judge
from zimage.evaluation.intervals import Estimate

GOOD, BAD = Estimate(0.9, 0.85, 0.95, 48), Estimate(0.1, 0.05, 0.2, 48)
ROOT = Path(__file__).parents[2]
LIMITS = GateParams(**{rule.name: 0.5 for rule in RULES})
# At least: high is good. At most: low is good.
HIGH = {rule.name for rule in RULES if rule.name.endswith("_min")}


def figures(**changes: Estimate) -> Figures:
    at_most = {"clip_drop", "copied", "nearest_share", "leak_rise", "shared_session"}
    values = {field.name: BAD if field.name in at_most else GOOD for field in fields(Figures) if field.name != "leaks"}
    return Figures(**{**values, **changes}, leaks={})


def test_all_rules_holding_pass_with_a_strong_engine_and_are_provisional_with_the_embedded_one() -> None:
    assert judge(figures(), LIMITS, embedded=False).verdict == "pass"
    embedded = judge(figures(), LIMITS, embedded=True)
    assert (embedded.verdict, "embedded" in embedded.why) == ("provisional", True)


@pytest.mark.parametrize(
    ("figure", "estimate", "rules"),
    [
        ("face_found", BAD, {"face_found_rate_min"}),
        ("same_of_all", BAD, {"same_person_rate_min", "same_person_rate_low_min"}),
        ("same_of_all", Estimate(0.6, 0.4, 0.8, 12), {"same_person_rate_low_min"}),
        ("gain", Estimate(0.9, 0.3, 1.5, 12), {"gain_low_min"}),
        ("second_same", BAD, {"second_engine_rate_min"}),
        ("clip_drop", GOOD, {"clip_drop_max"}),
        ("copied", GOOD, {"copy_rate_max"}),
        ("nearest_share", GOOD, {"nearest_share_max"}),
        ("leak_rise", GOOD, {"leak_rise_max"}),
        ("variety_ratio", BAD, {"variety_ratio_min"}),
    ],
)
def test_a_broken_rule_fails_and_is_named(figure: str, estimate: Estimate, rules: set[str]) -> None:
    judgement = judge(figures(**{figure: estimate}), LIMITS, embedded=False)
    broken = [rule for rule in judgement.rules if rule.verdict == "fail"]
    assert (judgement.verdict, {rule.name for rule in broken}) == ("fail", rules)
    assert all(rule.says in judgement.why for rule in broken)


def test_a_value_at_its_limit_holds() -> None:
    at = Estimate(0.5, 0.5, 0.5, 10)
    assert judge(figures(face_found=at, copied=at), LIMITS, embedded=False).verdict == "pass"


def test_a_rule_that_could_not_be_measured_is_never_a_pass() -> None:
    judgement = judge(figures(clip_drop=Estimate(None, None, None, 0)), LIMITS, embedded=False)
    assert (judgement.verdict, "prompt following" in judgement.why) == ("provisional", True)


def test_held_out_photos_of_a_session_that_was_trained_on_make_a_pass_provisional_and_say_why() -> None:
    within = figures(shared_session=Estimate(1.0, None, None, 3))
    judgement = judge(within, LIMITS, embedded=False)
    assert judgement.verdict == "provisional"
    assert "Of the held-out photos 3 of 3 are from a session that was also trained on" in judgement.why
    assert judge(replace(within, face_found=BAD), LIMITS, embedded=False).verdict == "fail"
    off = judge(within, LIMITS.model_copy(update={"shared_session_max": None}), embedded=False)
    assert off.verdict == "pass" and "a session that was also trained on (3 of 3)" in off.why


def test_a_limit_of_null_leaves_the_rule_out() -> None:
    without = LIMITS.model_copy(update={"copy_rate_max": None})
    judgement = judge(replace(figures(), copied=GOOD), without, embedded=False)
    assert judgement.verdict == "pass"
    (rule,) = [rule for rule in judgement.rules if rule.name == "copy_rate_max"]
    assert (rule.verdict, rule.limit, rule.value, rule.n) == ("off", None, 0.9, 48)


def test_rules_that_are_off_are_counted_and_those_that_would_not_hold_are_named() -> None:
    off = {"copy_rate_max": None, "leak_rise_max": None, "clip_drop_max": None}
    three = Estimate(1.0, 0.4, 1.0, 3)
    not_measured = Estimate(None, None, None, 0)
    found = figures(copied=Estimate(23 / 48, 0.3, 0.6, 48), leak_rise=three, clip_drop=not_measured, nearest_share=BAD)
    found = replace(found, shared_session=Estimate(0.0, None, None, 4))

    why = judge(found, USUAL.model_copy(update=off), embedded=False).why

    assert why == (
        "All 9 rules that apply here hold. Of the 3 rules that are off, 2 would not hold: copies of training photos "
        "(47.9 %); the subject appears uncalled, above the base model (3 of 3)."
    )


def test_with_the_usual_limits_all_rules_hold_and_nothing_else_is_said() -> None:
    none = Estimate(0.0, 0.0, 0.0, 48)
    found = figures(copied=none, leak_rise=none, clip_drop=none, nearest_share=none, shared_session=none)
    assert judge(found, USUAL, embedded=False).why == "All rules hold."


@pytest.mark.parametrize(("limit", "verdict"), [(0.3, "provisional"), (0.95, "fail")])
def test_a_changed_limit_is_named_with_the_usual_one_whatever_the_verdict_is(limit: float, verdict: str) -> None:
    changed = USUAL.model_copy(update={"same_person_rate_min": limit, "copy_rate_max": 0.2, "leak_rise_max": 0.2})
    judgement = judge(
        figures(clip_drop=Estimate(0.0, 0, 0, 9), shared_session=Estimate(0.0, None, None, 4)), changed, embedded=True
    )

    assert judgement.verdict == verdict
    named = f"same person, of all pictures at least {100 * limit:g} % (usually 70 %)"
    assert f"Changed limits: {named}; copies of training photos at most 20 % (usually 2 %);" in judgement.why


def test_params_and_presets_leave_rules_out_or_take_the_usual_limits() -> None:
    sections = [yaml.safe_load((ROOT / "params.yaml").read_text())["evaluate"]["gate"]]
    presets = yaml.safe_load((ROOT / "zimage" / "assets" / "presets.yaml").read_text())
    sections += [
        {key.removeprefix("evaluate.gate."): limit for key, limit in preset["values"].items() if ".gate." in key}
        for name, preset in presets.items()
        if not name.startswith(".")
    ]
    limits = [(name, limit) for section in sections for name, limit in section.items() if limit is not None]
    assert len(limits) > 10
    assert all(limit == getattr(USUAL, name) for name, limit in limits)


def test_every_limit_in_params_has_a_rule() -> None:
    assert {rule.name for rule in RULES} == set(GateParams.model_fields)
