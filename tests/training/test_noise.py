"""The laws of sigma."""

import math
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from tests.training.trainer_oracles import (
    AI_TOOLKIT,
    MUSUBI_TUNER,
    ONETRAINER,
    ai_toolkit_scheduler,
    musubi_sigma,
    needs,
    onetrainer_shift,
    onetrainer_sigma,
    onetrainer_timesteps,
)
from zimage.core.errors import InputError
from zimage.core.section import checked
from zimage.training.noise import noise_levels, sample_step_noise, shift_of, shifted, sigmas, uniforms
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


def _drawn(draws: torch.Tensor, tokens: int = 4096, **changes: Any) -> torch.Tensor:
    params = TimestepSamplingParams.model_validate({**NORMAL.model_dump(), **changes})
    return sigmas(draws, params, sampler_shift=3.0, tokens=tokens)


@pytest.mark.parametrize("scale", [-0.9, 0.5, 1.29])
def test_the_mode_law_is_diffusers_own(scale: float) -> None:
    expected = compute_density_for_timestep_sampling(
        "mode", 1000, mode_scale=scale, generator=torch.Generator().manual_seed(3)
    )
    draws = torch.rand(1000, generator=torch.Generator().manual_seed(3)).double()
    torch.testing.assert_close(_drawn(draws, distribution={"mode_scale": scale}), expected, rtol=1e-5, atol=1e-6)


def test_the_cosmap_law_has_the_density_that_diffusers_weights_with() -> None:
    draws = torch.linspace(0.001, 0.999, 9999, dtype=torch.float64)
    sigma = _drawn(draws, distribution="cosmap").double()
    density = draws.diff() / sigma.diff()
    middle = (sigma[1:] + sigma[:-1]) / 2
    expected = compute_loss_weighting_for_sd3("cosmap", middle)
    assert float((density / expected - 1).abs().mean()) < 1e-3


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 2.0), (0.5, 3.0), (1.0, 1.0)])
def test_the_beta_law_is_torchs_distribution(alpha: float, beta: float) -> None:
    torch.manual_seed(0)
    expected = torch.distributions.Beta(alpha, beta).sample((20_000,)).sort().values
    found = _drawn(_all(5000, 4, stratified=True), distribution={"alpha": alpha, "beta": beta}).sort().values
    assert float((found - expected).abs().max()) < 0.03
    ends = _drawn(torch.tensor([1e-7, 1 - 1e-7], dtype=torch.float64), distribution={"alpha": 0.01, "beta": 0.01})
    assert float(ends[0]) > 0 and float(ends[1]) < 1


@pytest.mark.parametrize(("tokens", "side_px"), [(1024, 512), (2304, 768), (4096, 1024)])
def test_a_shift_by_tokens_is_the_one_of_diffusers_dynamic_shifting(tokens: int, side_px: int) -> None:
    from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    draws = _all(10, 4, stratified=False)
    expected = scheduler.time_shift(calculate_shift(tokens), 1.0, draws)
    shift = {"tokens": [256, 4096], "log_shifts": [0.5, 1.15]}
    found = _drawn(draws, tokens, distribution="uniform", shift=shift)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    params = TimestepSamplingParams.model_validate({**NORMAL.model_dump(), "distribution": "uniform", "shift": shift})
    shape = (4, 16, side_px // 8, side_px // 8)
    uniform = params.model_copy(update={"shift": math.exp(calculate_shift(tokens))})
    by_tokens, plain = (sample_step_noise(0, 3, shape, each, sampler_shift=3.0).sigma for each in (params, uniform))
    torch.testing.assert_close(by_tokens, plain)


def test_each_part_of_a_mixture_gets_its_share_evenly_and_its_own_law() -> None:
    parts = [
        {"share": 0.75, "mean": 0.0, "std": 1.0, "shift": {"tokens": [256, 4096], "log_shifts": [0.5, 1.15]}},
        {"share": 0.25, "mean": -2.68, "std": 0.5, "shift": 1.0},
    ]
    draws = _all(1000, 4, stratified=True)
    found = _drawn(draws, distribution={"mixture": parts})
    for part, mine in zip(parts, (draws < 0.75, draws >= 0.75), strict=True):
        alone = _drawn(draws, mean=part["mean"], std=part["std"], shift=part["shift"]).sort().values
        assert abs(float(mine.double().mean()) - part["share"]) < 0.001  # type: ignore[operator]
        quantiles = torch.linspace(0.05, 0.95, 19)
        of_part, expected = (torch.quantile(each, quantiles) for each in (found[mine], alone))
        assert float((of_part - expected).abs().max()) < 0.005


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distribution": {"mixture": [{"share": 0.5, "mean": 0.0, "std": 1.0, "shift": 1.0}] * 3}}, "add up to 1.5"),
        ({"shift": {"tokens": [4096, 256], "log_shifts": [0.5, 1.15]}}, "two rising numbers"),
        ({"shift": 0.0}, "greater than 0"),
    ],
)
def test_laws_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked({**NORMAL.model_dump(), **changes}, TimestepSamplingParams, "params.yaml: train.timestep_sampling")


def test_noise_levels_are_the_density_that_samples_have() -> None:
    params = NORMAL.model_copy(update={"shift": 2.0})
    levels = noise_levels(params, sampler_shift=3.0, tokens=64)
    assert len(levels) == 20 and abs(sum(density for _, density in levels) / 20 - 1) < 1e-6
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sigmas(uniform, params, sampler_shift=3.0)
    for sigma, density in levels:
        share = float(((drawn >= sigma - 0.025) & (drawn < sigma + 0.025)).double().mean())
        assert abs(share * 20 - density) < 0.05


GRID = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


@needs(ONETRAINER)
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize(
    ("law", "values", "ours"),
    [
        ("UNIFORM", {}, {"distribution": "uniform"}),
        ("HEAVY_TAIL", {"noising_weight": 1.29}, {"distribution": {"mode_scale": 1.29}}),
        ("BETA", {"noising_weight": 0.7, "noising_bias": 1.0}, {"distribution": {"alpha": 0.7, "beta": 1.0}}),
    ],
)
def test_laws_are_onetrainers_rounded_up_to_its_timesteps(
    law: str, values: dict[str, float], ours: dict[str, Any], shift: float
) -> None:
    """From the same draws; it has 1,000 timesteps, the lowest of which mixes in a thousandth of noise."""
    timestep = onetrainer_timesteps(law, 5000, torch.Generator().manual_seed(0), timestep_shift=shift, **values)
    draws = torch.rand(5000, generator=torch.Generator().manual_seed(0)).double()
    rounded_up = onetrainer_sigma(timestep).double() - _drawn(draws, shift=shift, **ours)
    assert float(rounded_up.min()) > -1e-6 and float(rounded_up.max()) < 1e-3 + 1e-6


@needs(ONETRAINER)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_logit_normal_law_is_onetrainers_with_bias_and_weight_plus_one(shift: float) -> None:
    given = {"noising_bias": 0.3, "noising_weight": -0.2, "timestep_shift": shift}
    timestep = onetrainer_timesteps("LOGIT_NORMAL", 5000, torch.Generator().manual_seed(0), **given)
    normal = torch.randn(5000, generator=torch.Generator().manual_seed(0)).double()
    found = _drawn(torch.special.ndtr(normal), mean=0.3, std=0.8, shift=shift)
    rounded_up = onetrainer_sigma(timestep).double() - found
    assert float(rounded_up.min()) > -1e-5 and float(rounded_up.max()) < 1e-3 + 1e-5


@needs(ONETRAINER)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_cosmap_law_is_onetrainers(shift: float) -> None:
    timestep = onetrainer_timesteps("COS_MAP", 400_000, torch.Generator().manual_seed(0), timestep_shift=shift)
    theirs = onetrainer_sigma(timestep).double().sort().values[10::20]
    found = _drawn(GRID, distribution="cosmap", shift=shift).double()
    assert float((theirs - found).abs().max()) < 0.005


@needs(ONETRAINER)
@pytest.mark.parametrize("side_px", [512, 1024])
def test_onetrainers_dynamic_shift_for_z_image_is_a_shift_by_tokens(side_px: int) -> None:
    shift = TimestepSamplingParams.model_validate(
        {**NORMAL.model_dump(), "shift": {"tokens": [256, 4096], "log_shifts": [0.5, 1.15]}}
    ).shift
    assert onetrainer_shift(side_px) == pytest.approx(shift_of(shift, (side_px // 16) ** 2), rel=1e-9)


@needs(AI_TOOLKIT)
def test_ai_toolkits_sigmoid_is_the_logit_normal_law_without_mean_and_of_std_1() -> None:
    torch.manual_seed(0)
    theirs = ai_toolkit_scheduler().set_train_timesteps(1000, "cpu", timestep_type="sigmoid") / 1000
    torch.manual_seed(0)
    draws = torch.special.ndtr(-torch.randn(1000).double()).sort(descending=True).values
    torch.testing.assert_close(theirs, _drawn(draws, mean=0.0, std=1.0), rtol=1e-5, atol=1e-6)


@needs(AI_TOOLKIT)
@pytest.mark.parametrize("kind", ["shift", "flux_shift", "lumina2_shift"])
def test_ai_toolkits_shifts_are_all_the_schedulers_law_for_z_image(kind: str) -> None:
    """None looks at the picture, as its settings for Z-Image have it; shifted twice, the lowest levels never come."""
    scheduler = ai_toolkit_scheduler()
    lowest = float(scheduler.sigma_min)
    theirs = scheduler.set_train_timesteps(1000, "cpu", timestep_type=kind, latents=torch.zeros(1, 16, 64, 64)) / 1000
    draws = torch.linspace(1, lowest, 1000, dtype=torch.float64)
    torch.testing.assert_close(theirs, _drawn(draws, distribution="scheduler"), rtol=1e-6, atol=1e-6)
    assert lowest == pytest.approx(0.003, abs=1e-4)


@needs(MUSUBI_TUNER)
@pytest.mark.parametrize(
    ("sampling", "values", "ours"),
    [
        ("uniform", {}, {"distribution": "uniform"}),
        ("sigmoid", {"sigmoid_scale": 0.8}, {"std": 0.8}),
        ("shift", {"sigmoid_scale": 1.2, "discrete_flow_shift": 2.0}, {"std": 1.2, "shift": 2.0}),
        (
            "flux_shift",
            {"sigmoid_scale": 1.0},
            {"std": 1.0, "shift": {"tokens": [256, 4096], "log_shifts": [0.5, 1.15]}},
        ),
        (
            "qwen_shift",
            {"sigmoid_scale": 1.0},
            {"std": 1.0, "shift": {"tokens": [256, 8192], "log_shifts": [0.5, 0.9]}},
        ),
    ],
)
@pytest.mark.parametrize("side_px", [512, 768])
def test_laws_are_musubi_tuners(sampling: str, values: dict[str, float], ours: dict[str, Any], side_px: int) -> None:
    draws = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    theirs = musubi_sigma(sampling, draws, side_px, **values)
    found = _drawn(draws, (side_px // 16) ** 2, **{"mean": 0.0, **ours})
    torch.testing.assert_close(theirs, found, rtol=1e-5, atol=1e-6)


@needs(MUSUBI_TUNER)
def test_musubi_tuners_logsnr_is_the_logit_normal_law_of_the_other_sign_and_half_the_size() -> None:
    draws = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    theirs = musubi_sigma("logsnr", draws, logit_mean=-2.0, logit_std=3.0)
    torch.testing.assert_close(theirs, _drawn(1 - draws, mean=1.0, std=1.5), rtol=1e-5, atol=1e-6)


@needs(MUSUBI_TUNER)
@pytest.mark.parametrize("sampling", ["qinglong_flux", "qinglong_qwen"])
def test_musubi_tuners_qinglong_laws_are_mixtures(sampling: str) -> None:
    high = {"share": 0.1, "mean": -2.68, "std": 0.5, "shift": 1.0}
    middle = {"share": 0.11, "mean": 1.0, "std": 0.75, "shift": 1.0}
    tokens, ends, rest = ([256, 4096], [0.5, 1.15], [middle, high])
    if sampling == "qinglong_qwen":
        tokens, ends, rest = ([256, 8192], [0.5, 0.9], [{**high, "share": 0.05}])
    first = {"share": 1 - sum(part["share"] for part in rest), "mean": 0.0, "std": 1.0}
    parts = [{**first, "shift": {"tokens": tokens, "log_shifts": ends}}, *rest]
    torch.manual_seed(0)
    draws = GRID[torch.randperm(len(GRID))].float()
    theirs = musubi_sigma(sampling, draws, 64, sigmoid_scale=1.0, logit_mean=-2.0, logit_std=1.5)
    found = _drawn(GRID, 16, distribution={"mixture": parts})
    quantiles = torch.linspace(0.02, 0.98, 49)
    differences = torch.quantile(theirs, quantiles) - torch.quantile(found, quantiles)
    assert float(differences.abs().max()) < 0.01
