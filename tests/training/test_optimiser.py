"""The course of the learning rate."""

from zimage.training.optimiser import rate_factor
from zimage.training.params import ScheduleParams

COSINE = ScheduleParams(type="cosine", warmup_steps=4, final_fraction=0.1)


def test_it_rises_over_the_warm_up_without_a_step_of_zero() -> None:
    assert [rate_factor(step, 100, COSINE) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_falls_to_its_final_fraction_and_constant_stays() -> None:
    factors = [rate_factor(step, 100, COSINE) for step in range(4, 100)]
    assert factors == sorted(factors, reverse=True)
    assert 0.1 < factors[-1] < 0.102
    assert rate_factor(99, 100, COSINE.model_copy(update={"type": "constant"})) == 1.0


def test_no_warm_up_begins_at_the_full_rate() -> None:
    assert rate_factor(0, 10, ScheduleParams(type="constant", warmup_steps=0, final_fraction=1.0)) == 1.0
