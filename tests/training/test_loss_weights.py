"""What counts in the loss."""

from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr

from tests.training.trainer_oracles import (
    AI_TOOLKIT,
    ONETRAINER,
    ai_toolkit_scheduler,
    needs,
    onetrainer_losses,
    onetrainer_sigma,
)
from zimage.training.loss_weights import face_weights, sigma_weights, squared_error
from zimage.training.params import LossWeight


@pytest.mark.parametrize("name", [name for name in get_args(LossWeight) if name != "sigma_sqrt"])
def test_weights_are_one_on_average_for_uniform_sigma(name: LossWeight) -> None:
    sigma = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert abs(float(sigma_weights(name, sigma).mean()) - 1) < 1e-4


def test_bell_and_cosmap_count_the_middle_most() -> None:
    sigma = torch.tensor([0.05, 0.5, 0.95])
    for name in ("bell", "cosmap"):
        low, middle, high = sigma_weights(name, sigma).tolist()
        assert middle > 1 > max(low, high)


@pytest.mark.parametrize("name", ["sigma_sqrt", "cosmap"])
def test_sigma_sqrt_and_cosmap_are_diffusers_own(name: LossWeight) -> None:
    sigma = torch.linspace(0.01, 0.99, 99)
    torch.testing.assert_close(sigma_weights(name, sigma), compute_loss_weighting_for_sd3(name, sigma))


def test_half_bell_is_the_bell_of_high_noise_and_stays_at_its_top_below() -> None:
    sigma = torch.tensor([0.0, 0.3, 0.5, 0.7, 0.9])
    half, bell = sigma_weights("half_bell", sigma), sigma_weights("bell", sigma)
    torch.testing.assert_close(half[:3], half[2].expand(3))
    torch.testing.assert_close(half[2:] / half[2], bell[2:] / bell[2])


def test_min_snr_weighs_the_predicted_picture_by_diffusers_own_snr_up_to_5() -> None:
    """Pictures scaled to alpha^2 + sigma^2 = 1, as diffusers has them, have the same SNR and the same clean picture."""
    sigma = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    scheduler = DDPMScheduler(num_train_timesteps=len(sigma))
    scheduler.alphas_cumprod = (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)
    weights = compute_snr(scheduler, torch.arange(len(sigma))).clamp(max=5)
    generator = torch.Generator().manual_seed(0)
    clean, noise, wrong = (torch.randn((49, 4), generator=generator, dtype=torch.float64) for _ in range(3))
    noisy = (1 - sigma[:, None]) * clean + sigma[:, None] * noise
    velocity = noise - clean + 0.1 * wrong
    of_picture = weights * (noisy - sigma[:, None] * velocity - clean).square().mean(dim=1)
    of_velocity = sigma_weights("min_snr", sigma) * (velocity - (noise - clean)).square().mean(dim=1)
    ratio = of_velocity / of_picture
    torch.testing.assert_close(ratio, ratio[0].expand(49), rtol=1e-4, atol=0)  # diffusers' are float32
    assert abs(float(sigma[sigma_weights("min_snr", sigma).argmax()]) - 1 / (1 + 5**0.5)) < 0.02


def test_face_weights_have_mean_one_and_the_asked_contrast() -> None:
    face = torch.zeros(8, 6)
    face[2:4, 1:3] = 1
    weights = face_weights(face, 5.0)
    assert abs(float(weights.mean()) - 1) < 1e-6
    torch.testing.assert_close(weights[2, 1] / weights[0, 0], torch.tensor(5.0))


@pytest.mark.parametrize("face_weight", [0.5, 1.0, 10.0])
def test_an_empty_or_a_full_mask_changes_nothing(face_weight: float) -> None:
    for face in (torch.zeros(4, 4), torch.ones(4, 4)):
        torch.testing.assert_close(face_weights(face, face_weight), torch.ones(4, 4))


def test_the_error_is_a_mean_over_everything_but_the_samples() -> None:
    velocity, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    velocity[1] = 2.0
    torch.testing.assert_close(squared_error(velocity, target, None), torch.tensor([0.0, 4.0]))
    places = torch.zeros(2, 1, 4, 4)
    places[:, :, 0, 0] = 16.0
    torch.testing.assert_close(squared_error(velocity, target, places), torch.tensor([0.0, 4.0]))


@needs(ONETRAINER)
def test_sigma_is_onetrainers_loss_but_for_a_factor() -> None:
    """Of its loss at each timestep, whose noise is the share that it mixes in there; ours is 1 on average."""
    timestep = torch.arange(1000)
    generator = torch.Generator().manual_seed(0)
    velocity, target = (torch.randn((1000, 4, 2, 2), generator=generator) for _ in range(2))
    sigma = onetrainer_sigma(timestep)
    plain = squared_error(velocity, target, None)
    torch.testing.assert_close(onetrainer_losses("CONSTANT", timestep, velocity, target), plain)
    theirs = onetrainer_losses("SIGMA", timestep, velocity, target)
    torch.testing.assert_close(2 * theirs, sigma_weights("sigma", sigma) * plain, rtol=1e-6, atol=0)


@needs(AI_TOOLKIT)
@pytest.mark.parametrize(("name", "v2"), [("bell", False), ("half_bell", True)])
def test_bells_are_ai_toolkits_but_for_a_factor(name: LossWeight, v2: bool) -> None:
    """Its `linear_timesteps` (bell) and `linear_timesteps2` (half_bell) at each of its timesteps."""
    scheduler = ai_toolkit_scheduler()
    timesteps = scheduler.set_train_timesteps(1000, "cpu", timestep_type="linear")
    theirs = scheduler.get_weights_for_timesteps(timesteps, v2=v2).double()
    ours = sigma_weights(name, timesteps.double() / 1000)
    torch.testing.assert_close(theirs / theirs.mean(), ours / ours.mean(), rtol=0, atol=2e-6)
