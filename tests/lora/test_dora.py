"""DoRA files that diffusers and ComfyUI both apply whole: saving, converting, merging into weights, and refusals."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.lora import comfyui_oracle
from tests.lora.files.test_loaders import NO_CHECKOUT
from tests.lora.loader_table import GROUPS, by_comfyui, by_diffusers, weights
from zimage.cli.lora import _print_outcome
from zimage.core.errors import InputError
from zimage.lora.convert.conversion import Plan, convert, merge, resize
from zimage.lora.convert.reading import read_lora
from zimage.lora.convert.writing import Dialect
from zimage.lora.files.inspection import inspect_file
from zimage.lora.files.portable import Decomposed, Factors, decomposed_of, save_portable
from zimage.scoring.merging import merged

LAYERS = tuple(name for group in ("attention", "out", "feed_forward") for name in GROUPS[group])
RANK = 4


def write_dora(
    path: Path, *, layers: tuple[str, ...] = LAYERS, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Write a portable DoRA of the small model, and return the changes that it means, by peft's formula."""
    generator = torch.Generator().manual_seed(5)
    doras, means = {}, {}
    for name in layers:
        weight = weights()[name].double()
        down, up = (
            (0.3 * torch.randn(shape, generator=generator)).to(dtype).double()
            for shape in ((RANK, weight.shape[1]), (weight.shape[0], RANK))
        )
        before, after = weight.norm(dim=1), (weight + up @ down).norm(dim=1)
        magnitude = before * (1 + 0.2 * torch.rand(len(before), generator=generator))
        doras[name] = decomposed_of(Factors(down, up), magnitude, before=before, after=after)
        means[name] = (magnitude / after)[:, None] * (weight + up @ down) - weight
    save_portable(path, doras, metadata={}, dtype=dtype)
    return means


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert float((found[name].double() - change).norm()) <= 1e-4 * float(change.norm()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diffusers_applies_a_dora_whole_and_its_lengths_lose_no_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "dora.safetensors"
    means = write_dora(path, dtype=dtype)
    assert_close(by_diffusers(path), means)
    found = inspect_file(path)
    assert (found.kind, found.rank, found.verdict) == ("DoRA", RANK, "usable")
    assert (found.diffusers, found.comfyui, found.finite) == ("all", "all", True)


@pytest.mark.skipif(comfyui_oracle.checkout() is None, reason=NO_CHECKOUT)
@pytest.mark.parametrize("to", ["portable", "diffusers", "comfyui", "kohya"])
def test_comfyui_applies_a_dora_of_each_dialect_whole(tmp_path: Path, to: Dialect) -> None:
    means = write_dora(tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Plan(to, None, None))
    assert_close(by_comfyui(tmp_path / "out.safetensors"), means)


def test_a_dora_merged_as_comfyui_merges_it_is_the_one_that_was_written(tmp_path: Path) -> None:
    means = write_dora(tmp_path / "in.safetensors")
    for name, change in read_lora(tmp_path / "in.safetensors").changes.items():
        weight = weights()[name]
        found = merged(weight, name, change, 0.5, "float32")
        assert_close({name: found - weight}, {name: 0.5 * means[name]})


def test_a_dora_keeps_every_bit_through_the_dialects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "0.safetensors"
    write_dora(source)
    first = load_file(source)
    for at, to in enumerate(("comfyui", "kohya", "diffusers", "portable"), start=1):
        out = tmp_path / f"{at}.safetensors"
        outcome = convert(source, out, Plan(to, None, None, verify=True))  # type: ignore[arg-type]
        assert (outcome.error, outcome.by_comfyui, outcome.reads["comfyui"]) == (0.0, 0.0, "all")
        assert outcome.by_diffusers == (0.0 if to in {"diffusers", "portable"} else None)
        _print_outcome(outcome)
        assert f"{to}, {len(LAYERS)} layers, DoRA, rank" in capsys.readouterr().out
        source = out
    last = load_file(source)
    assert first.keys() == last.keys() and all(torch.equal(first[name], last[name]) for name in first)
    assert inspect_file(tmp_path / "1.safetensors").verdict == "convertible"  # diffusers refuses those names


def test_what_a_dora_cannot_become_without_its_base_is_refused(tmp_path: Path) -> None:
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_dora(path)
    for plan, message in (
        (Plan("portable", 2, None), "convert it without `--rank`"),
        (Plan("lycoris", None, None), "LyCORIS and ComfyUI read the lengths of its rows in different ways"),
    ):
        with pytest.raises(InputError, match=message):
            convert(path, out, plan)
    with pytest.raises(InputError, match="no matrix that can be added to another one; use it by itself"):
        merge([path, path], [1.0, 1.0], out, Plan("portable", None, None))
    with pytest.raises(InputError, match="no matrix that can be added"):
        resize(path, out, Plan("portable", 2, None), None)
    write_dora(path, layers=LAYERS[:2])
    with pytest.raises(InputError, match="DoRA on some of q, k and v"):
        convert(path, out, Plan("comfyui", None, None))
    assert not out.exists()


def test_lengths_of_another_number_than_the_rows_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    factors = Factors(torch.ones(2, 96), torch.ones(96, 2))
    save_portable(path, {LAYERS[0]: Decomposed(factors, torch.ones(95), torch.ones(96, 1))}, metadata={})
    with pytest.raises(InputError, match="do not belong together"):
        convert(path, tmp_path / "out.safetensors", Plan("kohya", None, None))
