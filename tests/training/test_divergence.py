"""Numbers that arrive late, and a loss that leaves all bounds."""

import pytest
import torch

from zimage.training.divergence import WINDOW, DivergenceMonitor, PendingMetrics, StepMetrics


def test_numbers_come_out_in_order_and_none_is_lost() -> None:
    readings = PendingMetrics(torch.device("cpu"), every=3)
    told: list[StepMetrics] = []
    for step in range(8):
        told += readings.put(step, torch.tensor([float(step), 0.5]))
    assert [reading.step for reading in told] == [0, 1, 2, 3, 4, 5]
    told += readings.rest()
    assert [reading.loss for reading in told] == [float(step) for step in range(8)]
    assert readings.rest() == []


def test_a_loss_or_a_norm_that_is_no_number_is_broken_at_once() -> None:
    assert (
        DivergenceMonitor(5.0).broken(StepMetrics(0, float("nan"), 1.0)) == "the loss is nan and the gradients' norm 1"
    )
    assert DivergenceMonitor(5.0).broken(StepMetrics(0, 1.0, float("inf"))) is not None
    assert DivergenceMonitor(5.0).broken(StepMetrics(0, 1.0, 1.0)) is None


def test_one_high_loss_is_its_sigma_but_many_are_an_explosion() -> None:
    watch = DivergenceMonitor(5.0)
    for step in range(WINDOW):
        assert watch.broken(StepMetrics(step, 1.0, 1.0)) is None
    assert watch.broken(StepMetrics(WINDOW, 50.0, 1.0)) is None
    faults = [watch.broken(StepMetrics(step, 50.0, 1.0)) for step in range(10)]
    assert any(fault is not None and "times the first" in fault for fault in faults)


def test_a_run_that_goes_on_is_measured_by_its_first_steps_and_not_by_those_it_goes_on_with() -> None:
    losses = [1.01**step for step in range(400)]
    whole = DivergenceMonitor(5.0)
    stops = next(step for step, loss in enumerate(losses) if whole.broken(StepMetrics(step, loss, 1.0)))

    for begin in (WINDOW // 2, WINDOW, stops // 2, stops - 1):
        watch = DivergenceMonitor(5.0, losses[:begin])
        assert stops == next(s for s in range(begin, 400) if watch.broken(StepMetrics(s, losses[s], 1.0)))


@pytest.mark.parametrize("begins", [[0.5], [0.5, 0.6, 0.4], [0.5, 0.5, 0.6, 0.7, 0.8]])
def test_a_loss_that_explodes_in_the_first_steps_is_seen_there(begins: list[float]) -> None:
    watch = DivergenceMonitor(5.0)
    losses = [*begins, 2e7]
    faults = [watch.broken(StepMetrics(step, loss, 1.0)) for step, loss in enumerate(losses)]
    assert faults[:-1] == [None] * len(begins)
    assert faults[-1] is not None and faults[-1].startswith(f"the mean loss of the first {len(losses)} steps, ")
    assert faults[-1].endswith("began with 0.5")


def test_losses_that_rise_at_once_and_stay_there_do_not_pass_for_the_beginning() -> None:
    losses = [0.5, 0.5, 20.0, *[50.0] * 30]
    for resumed in range(5):
        watch = DivergenceMonitor(5.0, losses[:resumed])
        stops = next(step for step in range(resumed, 33) if watch.broken(StepMetrics(step, losses[step], 1.0)))
        assert stops == 4  # the same step for a run that was resumed


def test_a_first_loss_far_below_the_others_is_its_sigma_and_no_explosion() -> None:
    watch = DivergenceMonitor(5.0)
    losses = [0.02, *[0.9, 1.4, 0.3] * 20]
    assert not any(watch.broken(StepMetrics(step, loss, 1.0)) for step, loss in enumerate(losses))
