"""The laws of sigma."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from zimage.training.noise import shifted, sigmas, uniforms
from zimage.training.params import TimestepSamplingParams

NORMAL = TimestepSamplingParams(distribution="logit_normal", mean=0.3, std=0.8, shift=1.0, stratified=True)


def _all(steps: int, batch: int, *, stratified: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    draws = [uniforms(s, batch, stratified=stratified, offset=0.2, generator=generator) for s in range(steps)]
    return torch.cat(draws)


@pytest.mark.parametrize("stratified", [True, False])
def test_draws_follow_the_uniform_law(stratified: bool) -> None:
    draws = _all(1000, 4, stratified=stratified).sort().values
    evenly = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert (draws - evenly).abs().max() < (0.001 if stratified else 0.03)


def test_stratified_draws_are_even_within_a_handful_of_steps() -> None:
    few = _all(4, 4, stratified=True).sort().values
    gaps = few.diff(prepend=few.new_zeros(1), append=few.new_ones(1))
    assert gaps.max() < 2.1 / 16


def test_the_logit_normal_law_has_the_asked_mean_and_spread_of_logits() -> None:
    logits = torch.logit(sigmas(_all(2000, 4, stratified=True), NORMAL, sampler_shift=3.0).double())
    assert abs(float(logits.mean()) - 0.3) < 0.01
    assert abs(float(logits.std()) - 0.8) < 0.01


def test_the_samplers_shift_moves_only_the_law_that_asks_for_it() -> None:
    draws = _all(10, 4, stratified=False)
    for law, moves in (("logit_normal", False), ("uniform", False), ("scheduler", True)):
        params = NORMAL.model_copy(update={"distribution": law})
        same = torch.equal(*(sigmas(draws, params, sampler_shift=shift) for shift in (3.0, 6.0)))
        assert same is not moves, law


def test_the_schedulers_law_is_uniform_on_the_schedulers_own_grid() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    grid = scheduler.sigmas[:1000].flip(0).double()  # of the 1000 training steps, from clean to noise
    draws = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(shifted(draws, 6.0), grid, rtol=1e-5, atol=1e-6)


def test_sigma_never_reaches_clean_or_pure_noise() -> None:
    ends = uniforms(0, 1, stratified=True, offset=0.0, generator=torch.Generator())
    assert 0 < float(ends) < 1
    assert torch.isfinite(torch.logit(sigmas(ends, NORMAL, sampler_shift=3.0))).all()
