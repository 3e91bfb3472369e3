"""Pictures to latents and back."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tests.tiny_base import whole_pipeline
from zimage.model.base import Base, open_vae
from zimage.model.latents import decode, image_of, pixels_of, posterior


def _picture() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def test_pixels_survive_the_way_there_and_back() -> None:
    picture = _picture()
    assert np.array_equal(image_of(pixels_of(picture)), picture)


def test_the_posterior_is_shifted_and_scaled_as_the_pipeline_undoes_it(tiny_base: Base) -> None:
    vae = open_vae(Path(tiny_base.model), device="cpu")
    pixels = pixels_of(_picture())
    raw = vae.encode(pixels[None]).latent_dist
    assert not torch.backends.cudnn.allow_tf32
    found = posterior(vae, pixels)
    assert found.mean.shape == (16, 4, 6)
    torch.testing.assert_close(found.mean / 0.3611 + 0.1159, raw.mean[0])
    torch.testing.assert_close(found.std, raw.std[0] * 0.3611)


def test_decoded_latents_are_the_pipelines_picture(tiny_base: Base) -> None:
    pipeline = whole_pipeline(tiny_base)
    latents = torch.randn((1, 16, 4, 4), generator=torch.Generator().manual_seed(0))
    options = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 0.0, "latents": latents}
    after = pipeline("ada", output_type="latent", **options).images
    expected = pipeline("ada", output_type="np", **options).images[0]
    found = image_of(decode(pipeline.vae, after)[0])
    assert np.array_equal(found, (expected * 255).round().astype(np.uint8))
