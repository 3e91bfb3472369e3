"""Ways of use as they are written, and pictures that are really made in each of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.scoring.test_score import place, request  # noqa: F401 - a fixture
from tests.tiny_base import write_tiny_base
from zimage.core.assets import asset
from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_trusted
from zimage.evaluation.generate.image_cache import Sampling
from zimage.model.base import Base
from zimage.scoring.samplers import scheduler_of
from zimage.scoring.score import score
from zimage.scoring.usage import TURBO, UNDISTILLED, sampling_of, uses

USUAL = Sampling(side_px=512, steps=28, guidance_scale=3.0)


def test_a_way_of_use_is_read_word_by_word() -> None:
    assert sampling_of("", USUAL) == USUAL
    assert sampling_of("merged", USUAL) == Sampling(512, 28, 3.0, merged=True)
    assert sampling_of("fp8, dpmpp_2m", USUAL) == Sampling(512, 28, 3.0, "dpmpp_2m", "fp8")
    assert sampling_of("merged,side_px=768,steps=8,guidance_scale=0", USUAL) == Sampling(768, 8, 0.0, merged=True)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("fp4", "'fp4' in --as fp4 is not known; use merged, unmerged, float32, bfloat16, fp8, int8, euler"),
        ("side_px=700", "side_px=700 in --as side_px=700 cannot be used; give a multiple of 16"),
        ("steps=many", "steps=many in --as steps=many cannot be used; give a whole number of 1 or more"),
        ("merged,int8", "--as merged,int8 merges into INT8 weights, which is not measured; leave out merged or int8"),
    ],
)
def test_a_way_of_use_that_cannot_be_read_is_one_sentence(way: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        sampling_of(way, USUAL)
    assert str(refused.value).startswith(said)


def test_every_base_is_used_in_every_way_and_a_distilled_one_has_its_own_steps(tmp_path: Path, tiny_base: Base) -> None:
    turbo = tmp_path / "Z-Image-Turbo"
    write_tiny_base(turbo, seed=1, shift=3.0)
    base = write_tiny_base(tmp_path / "Z-Image", seed=0, shift=6.0)
    found = uses([base.model, str(turbo)], ["merged", "bfloat16"], base, USUAL)
    assert [use.name for use in found] == [
        *("Z-Image", "Z-Image, merged", "Z-Image, bfloat16"),
        *("Z-Image-Turbo", "Z-Image-Turbo, merged", "Z-Image-Turbo, bfloat16"),
    ]
    assert found[0].sampling == USUAL and found[1].of_base == found[0]
    assert found[3].sampling == Sampling(512, 8, 0.0)
    assert [use.name for use in uses([], ["merged"], base, USUAL)] == ["", "merged"]


def test_steps_and_guidance_of_distilled_and_other_bases_are_those_of_the_presets() -> None:
    presets = load_trusted(asset("presets.yaml").read_text(encoding="utf-8"))
    for name, values in (("turbo-24gb", TURBO), ("24gb", UNDISTILLED)):
        assert {key: presets[name]["values"][f"evaluate.sampling.{key}"] for key in values} == values


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize(("sampler", "differs_by"), [("dpmpp_2m", 3e-3), ("unipc", 2e-6)])
def test_another_sampler_walks_over_the_base_s_own_sigmas(sampler: str, differs_by: float) -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    other = scheduler_of(sampler, own)  # type: ignore[arg-type]
    sigmas = torch.linspace(1.0, 1 / 16, 16).tolist()
    own.set_timesteps(sigmas=sigmas)
    other.set_timesteps(sigmas=sigmas, mu=0.5)
    assert len(other.timesteps) == 16
    assert torch.allclose(other.sigmas.float(), own.sigmas.float(), atol=differs_by)


def test_one_lora_is_a_row_for_each_way_with_paired_differences(place: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    ways = ["merged", "merged,fp8", "int8", "bfloat16,unipc,steps=2,side_px=96"]
    params = yaml.safe_load((place / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"]["resampling"]["resamples"] = 200
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    loras = [str(place / "ada.safetensors"), str(place / "eve.safetensors")]
    score(request(place, loras=loras, used_as=ways, seeds=1, params_file=tmp_path / "params.yaml"), out)
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    named = [way.replace(",", ", ") for way in ways]
    bases = {f"base ({name})" for name in named if "merged" not in name} | {"base", "base (fp8)"}
    assert set(found["results"]) == bases | {
        row for lora in ("ada", "eve") for row in (lora, *(f"{lora} ({name})" for name in named))
    }
    assert found["results"]["ada (merged)"]["merging"]["share"] == pytest.approx(1, abs=0.05)
    assert found["results"]["ada"]["merging"] is None
    other = "bfloat16, unipc, steps=2, side_px=96"
    assert found["results"][f"ada ({other})"]["sampled"] == {
        "side_px": 96, "steps": 2, "guidance_scale": 0.0, "sampler": "unipc", "precision": "bfloat16", "merged": False,
        "merged_weights": None,
    }  # fmt: skip
    pairs = {(one["first"], one["second"]) for one in found["differences"]}
    assert ("ada", "ada (merged)") in pairs and ("ada (int8)", "eve (int8)") in pairs
    assert ("ada", "eve (int8)") not in pairs and len(pairs) == 2 * 10 + 5
    pictures = sorted(path.relative_to(out).as_posix() for path in out.rglob("near-1-0.png"))
    assert "pictures/merged-fp8/ada-x1/near-1-0.png" in pictures and "pictures/base/near-1-0.png" in pictures
    sides = {Path(path).parts[1]: np.asarray(_read(out / path)).shape[0] for path in pictures}
    assert sides["bfloat16-unipc-steps=2-side_px=96"] == 96 and sides["merged"] == 64
    page = (out / "score.html").read_text(encoding="utf-8")
    assert "As it is used" in page and "<th>ada (merged, fp8)</th>" in page


def _read(path: Path) -> np.ndarray:
    from zimage.photos.pictures import read_rgb

    return read_rgb(path)
