from dataclasses import fields, replace

import pytest

from zimage.identity.figures import Figures
from zimage.identity.gate import RULES, GateParams, judge
from zimage.identity.intervals import Estimate

GOOD, BAD = Estimate(0.9, 0.85, 0.95, 48), Estimate(0.1, 0.05, 0.2, 48)
LIMITS = GateParams(**{rule.name: 0.5 for rule in RULES})
# At least: high is good. At most: low is good.
HIGH = {rule.name for rule in RULES if rule.name.endswith("_min")}


def figures(**changes: Estimate) -> Figures:
    at_most = {"clip_drop", "copied", "nearest_share", "leak_rise"}
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


def test_a_limit_of_null_leaves_the_rule_out() -> None:
    without = LIMITS.model_copy(update={"copy_rate_max": None})
    judgement = judge(replace(figures(), copied=GOOD), without, embedded=False)
    assert judgement.verdict == "pass"
    assert "copy_rate_max" not in {rule.name for rule in judgement.rules}


def test_every_limit_in_params_has_a_rule() -> None:
    assert {rule.name for rule in RULES} == set(GateParams.model_fields)
