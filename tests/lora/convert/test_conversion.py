"""Converting, merging and resizing, checked against the change itself and against diffusers' loader."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.lora.dialect_files import (
    DIALECTS,
    factors_for_every_linear,
    pipeline_of,
    tiny_transformer,
    write_dialect,
)
from zimage.core.errors import InputError
from zimage.lora.convert.change import written_out
from zimage.lora.convert.conversion import Plan, convert, merge, resize
from zimage.lora.convert.reading import read_lora
from zimage.lora.convert.writing import Dialect
from zimage.lora.files.inspection import inspect_file
from zimage.lora.files.modules import released_shapes

PORTABLE = Plan("portable", None, None, verify=True)
SCALE = 0.7  # alpha / rank in dialects that store alpha; no power of two, so folding must widen half precision
TO_Q = "diffusion_model.layers.0.attention.to_q"
TO_K = "diffusion_model.layers.0.attention.to_k"


def changes_in(path: Path) -> dict[str, Tensor]:
    return {name: written_out(change) for name, change in read_lora(path).changes.items()}


def changes_made_by_diffusers(path: Path) -> dict[str, Tensor]:
    """What fusing the file into a real model adds to its weights."""
    model = tiny_transformer()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pipeline = pipeline_of(model)
    pipeline.load_lora_weights(str(path))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    changes = {name.removesuffix(".weight"): weight - before[name] for name, weight in model.state_dict().items()}
    return {name: change.double() for name, change in changes.items() if bool(change.any())}


@pytest.mark.parametrize(
    ("dialect", "to"),
    [(dialect, "portable") for dialect in DIALECTS]
    + [(dialect, to) for dialect in ("bare", "kohya-native") for to in ("comfyui", "kohya", "diffusers")],
)
def test_every_dialect_becomes_the_asked_one_with_the_same_change(tmp_path: Path, dialect: str, to: Dialect) -> None:
    weights = factors_for_every_linear(tiny_transformer(), keep="layers.1" if to != "portable" else "")
    write_dialect(tmp_path / "in.safetensors", dialect, weights, SCALE)
    outcome = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Plan(to, None, None, verify=True))
    found = changes_in(tmp_path / "out.safetensors")
    assert found.keys() == weights.keys()
    for name, factors in weights.items():
        expected = SCALE * factors.change()
        assert float((found[name] - expected).norm()) <= 1e-6 * float(expected.norm())
    assert outcome.worst_error <= 1e-6
    assert outcome.by_comfyui is not None
    assert outcome.by_comfyui <= 1e-6
    assert (outcome.by_diffusers is not None) == (to in {"portable", "diffusers"})


def test_the_portable_file_changes_a_real_model_as_the_source_should(tmp_path: Path) -> None:
    weights = factors_for_every_linear(tiny_transformer())
    write_dialect(tmp_path / "in.safetensors", "kohya-native", weights, SCALE)
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", PORTABLE)
    found = changes_made_by_diffusers(tmp_path / "out.safetensors")
    assert found.keys() == weights.keys()
    for name, factors in weights.items():
        torch.testing.assert_close(found[name], SCALE * factors.change(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dialect", ["native", "kohya-native"])
def test_fusing_and_splitting_again_gives_the_first_ranks_back(tmp_path: Path, dialect: str) -> None:
    write_dialect(tmp_path / "in.safetensors", dialect, factors_for_every_linear(tiny_transformer()), 1.0)
    assert convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", PORTABLE).ranks == (3,)


def test_a_shared_down_factor_stays_shared_when_fused(tmp_path: Path) -> None:
    down, ups = torch.randn(4, 32), torch.randn(96, 4)
    tensors = {
        "lora_unet_layers_0_attention_qkv.lora_down.weight": down,
        "lora_unet_layers_0_attention_qkv.lora_up.weight": ups,
    }
    save_file(tensors, tmp_path / "in.safetensors")
    outcome = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Plan("comfyui", None, None))
    assert outcome.ranks == (4,)
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["diffusion_model.layers.0.attention.qkv.lora_B.weight"], ups)


@pytest.mark.parametrize(("scale", "dtype"), [(0.5, "bfloat16"), (1.0, "bfloat16"), (0.7, "float32")])
def test_half_precision_stays_where_it_loses_nothing(tmp_path: Path, scale: float, dtype: str) -> None:
    weights = factors_for_every_linear(tiny_transformer(), keep="layers.0")
    halves = {name: type(pair)(*(factor.bfloat16() for factor in pair)) for name, pair in weights.items()}
    write_dialect(tmp_path / "in.safetensors", "kohya-split", halves, scale)
    outcome = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", PORTABLE)
    assert outcome.dtype == dtype
    assert outcome.worst_error <= 1e-6


def test_a_dtype_that_rounds_is_obeyed_and_its_error_told(tmp_path: Path) -> None:
    write_dialect(tmp_path / "in.safetensors", "bare", factors_for_every_linear(tiny_transformer()), 1.0)
    plan = Plan("portable", None, torch.bfloat16)
    outcome = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan)
    assert 1e-4 < outcome.error <= outcome.worst_error < 1e-2


def test_a_strength_in_diffusers_metadata_is_folded_in(tmp_path: Path) -> None:
    down, up = torch.randn(4, 32), torch.randn(32, 4)
    told = {
        "transformer.r": 4,
        "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"^layers.1.attention.to_k": 2},
    }
    tensors: dict[str, Tensor] = {}
    for name in ("layers.0.attention.to_q", "layers.1.attention.to_k"):
        tensors |= {f"transformer.{name}.lora_A.weight": down.clone(), f"transformer.{name}.lora_B.weight": up.clone()}
    save_file(tensors, tmp_path / "in.safetensors", metadata={"lora_adapter_metadata": json.dumps(told)})
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", PORTABLE)
    found = changes_in(tmp_path / "out.safetensors")
    torch.testing.assert_close(found["layers.0.attention.to_q"], 2.0 * (up @ down).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["layers.1.attention.to_k"], 0.5 * (up @ down).double(), rtol=1e-5, atol=1e-5)
    as_diffusers_reads = changes_made_by_diffusers(tmp_path / "out.safetensors")
    torch.testing.assert_close(
        as_diffusers_reads["layers.0.attention.to_q"], found["layers.0.attention.to_q"], rtol=1e-4, atol=1e-4
    )
    assert inspect_file(tmp_path / "out.safetensors").verdict == "usable"


def test_metadata_goes_along_except_what_is_no_longer_true(tmp_path: Path) -> None:
    told = {"ss_base_model_version": "zimage", "sshs_model_hash": "1", "modelspec.trigger_phrase": "ohwx"}
    save_file(
        {f"{TO_Q}.lora_A.weight": torch.ones(1, 32), f"{TO_Q}.lora_B.weight": torch.ones(32, 1)},
        tmp_path / "in.safetensors",
        told,
    )
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Plan("diffusers", None, None))
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "zimage"
    assert metadata["modelspec.trigger_phrase"] == "ohwx"
    assert metadata["zimage.converted_from"] == "portable"
    assert "sshs_model_hash" not in metadata


def loha(rank: int) -> dict[str, Tensor]:
    stem = "lycoris_layers_0_attention_qkv"
    shapes = {"hada_w1_a": (96, rank), "hada_w1_b": (rank, 32), "hada_w2_a": (96, rank), "hada_w2_b": (rank, 32)}
    generator = torch.Generator().manual_seed(5)
    tensors = {f"{stem}.{part}": torch.randn(shape, generator=generator) for part, shape in shapes.items()}
    return tensors | {f"{stem}.alpha": torch.tensor(rank / 2)}


def test_a_loha_is_written_exactly_as_a_lora_of_its_rank_squared(tmp_path: Path) -> None:
    tensors = loha(3)
    save_file(tensors, tmp_path / "in.safetensors")
    outcome = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", PORTABLE)
    assert (outcome.ranks, outcome.num_layers) == ((9,), 3)
    one, two, three, four = (
        tensors[f"lycoris_layers_0_attention_qkv.hada_{part}"].double() for part in ("w1_a", "w1_b", "w2_a", "w2_b")
    )
    expected = 0.5 * (one @ two) * (three @ four)  # lycoris: modules/loha.py, alpha / rank
    found = changes_in(tmp_path / "out.safetensors")
    rows = torch.cat([found[f"layers.0.attention.to_{part}"] for part in "qkv"])
    assert float((rows - expected).norm()) <= 1e-6 * float(expected.norm())


def test_a_loha_is_reduced_to_a_rank_with_the_error_told(tmp_path: Path) -> None:
    save_file(loha(4), tmp_path / "in.safetensors")
    outcome = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Plan("portable", 6, None))
    assert outcome.ranks == (6,)
    source, found = changes_in(tmp_path / "in.safetensors"), changes_in(tmp_path / "out.safetensors")
    off = sum(float((source[name] - found[name]).norm() ** 2) for name in source) ** 0.5
    size = sum(float(source[name].norm() ** 2) for name in source) ** 0.5
    assert outcome.error == pytest.approx(off / size, rel=1e-3)
    assert 0.01 < outcome.error < 1


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_lokr_is_written_exactly_where_its_rank_is_small(tmp_path: Path, decomposed: bool) -> None:
    small, tall, wide = torch.randn(4, 4), torch.randn(8, 2), torch.randn(2, 8)
    large = (
        {"lokr_w2_a": tall, "lokr_w2_b": wide, "alpha": torch.tensor(1.0)} if decomposed else {"lokr_w2": tall @ wide}
    )
    tensors = {f"{TO_Q}.{part}": tensor for part, tensor in {"lokr_w1": small, **large}.items()}
    tensors |= {f"{TO_K}.lokr_w1": torch.randn(4, 4), f"{TO_K}.lokr_w2": torch.randn(8, 1) @ torch.randn(1, 8)}
    save_file(tensors, tmp_path / "in.safetensors")
    outcome = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Plan("comfyui", None, None))
    assert outcome.ranks == (4, 8)
    expected = torch.kron(small, tall @ wide).double() * (0.5 if decomposed else 1.0)
    found = changes_in(tmp_path / "out.safetensors")["layers.0.attention.to_q"]
    assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())


def test_a_lokr_agrees_with_diffusers_own_reading_of_it(tmp_path: Path) -> None:
    tensors = {
        f"{TO_Q}.lokr_w1": torch.randn(4, 4),
        f"{TO_Q}.lokr_w2_a": torch.randn(8, 2),
        f"{TO_Q}.lokr_w2_b": torch.randn(2, 8),
    }
    save_file(tensors | {f"{TO_Q}.alpha": torch.tensor(1.0)}, tmp_path / "in.safetensors")
    found = changes_made_by_diffusers(tmp_path / "in.safetensors")["layers.0.attention.to_q"]
    torch.testing.assert_close(
        found, changes_in(tmp_path / "in.safetensors")["layers.0.attention.to_q"], rtol=1e-4, atol=1e-4
    )


def test_a_lokr_of_full_rank_asks_how_much_to_keep_and_says_what_it_costs(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    sides = {"lokr_w1": (2, 2), "lokr_w2": (300, 300)}  # of q and of k, which make no Kronecker product together
    save_file({f"{stem}.{side}": torch.randn(shape) for stem in (TO_Q, TO_K) for side, shape in sides.items()}, path)
    with pytest.raises(InputError, match=r"no exact form of rank 256 or less.*--rank .*16: \d+\.\d%.*256: \d+\.\d%"):
        convert(path, tmp_path / "out.safetensors", Plan("comfyui", None, None))
    assert not (tmp_path / "out.safetensors").exists()
    outcome = convert(path, tmp_path / "out.safetensors", Plan("portable", 64, None))
    assert outcome.ranks == (64,)
    assert 0.1 < outcome.error < 0.9


def test_a_full_difference_becomes_a_lora_of_its_rank(tmp_path: Path) -> None:
    weight = torch.randn(32, 5) @ torch.randn(5, 32)
    save_file({f"{TO_Q}.diff": weight}, tmp_path / "in.safetensors")
    assert convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", PORTABLE).ranks == (5,)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"lora_te_layers_0_mlp.lora_up.weight": torch.ones(2, 1)},
            r"no place for 1 of its keys: 1 of the text encoder, such as 'lora_te_layers_0_mlp\.lora_up\.weight'",
        ),
        ({"diffusion_model.layers.0.attention.to_z.lora_A.weight": torch.ones(1, 2)}, "have no place"),
        ({"diffusion_model.layers.0.attention.to_k.lora_mid.weight": torch.ones(1, 2)}, "is incomplete"),
        ({f"{TO_Q}.lora_B.bias": torch.ones(32)}, r"no place .* 1 of biases, such as .*to_q\.lora_B\.bias"),
        ({"diffusion_model.layers.0.attention.to_k.lora_A.weight": torch.ones(1, 32)}, "is incomplete"),
        (
            {"layers.0.attention.to_q.lora_A.weight": torch.ones(1, 32)}
            | {"layers.0.attention.to_q.lora_B.weight": torch.ones(32, 1)},
            "several adapters of the same layers: diffusion_model.lora_A and lora_A",
        ),
        ({f"{TO_Q}.dora_scale": torch.ones(32, 1)}, "is DoRA, whose magnitudes depend on the base's weights"),
        ({f"{TO_Q}.alpha": torch.tensor([1.0, 2.0])}, "is not one number"),
        ({f"{TO_Q}.alpha": torch.tensor(torch.nan)}, "only a finite number above zero"),
    ],
)
def test_what_has_no_place_is_an_error_that_lists_it_and_nothing_is_written(
    tmp_path: Path, extra: dict[str, Tensor], message: str
) -> None:
    good = {f"{TO_Q}.lora_A.weight": torch.ones(2, 32), f"{TO_Q}.lora_B.weight": torch.ones(32, 2)}
    save_file(good | extra, tmp_path / "in.safetensors")
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", PORTABLE)
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_layers_of_two_models_of_different_width_are_refused(tmp_path: Path) -> None:
    tensors = {f"{TO_Q}.lora_A.weight": torch.ones(1, 32), f"{TO_Q}.lora_B.weight": torch.ones(32, 1)}
    other = "diffusion_model.layers.0.feed_forward.w1"
    tensors |= {f"{other}.lora_A.weight": torch.ones(1, 32), f"{other}.lora_B.weight": torch.ones(99, 1)}
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(InputError, match=r"feed_forward.w1 changes a weight of shape \(99, 32\).* it has \(85, 32\)"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", PORTABLE)


def test_another_models_lora_is_refused_with_the_inspection(tmp_path: Path) -> None:
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file(
        {f"{stem}.lora_down.weight": torch.ones(1, 2048), f"{stem}.lora_up.weight": torch.ones(640, 1)},
        tmp_path / "in.safetensors",
    )
    with pytest.raises(InputError, match="This file is an SDXL LoRA"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", PORTABLE)


def test_the_source_is_never_overwritten_and_only_safetensors_are_written(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    write_dialect(path, "bare", factors_for_every_linear(tiny_transformer(), keep="layers.0"), 1.0)
    with pytest.raises(InputError, match="is the file that is read"):
        convert(path, tmp_path / "." / "in.safetensors", PORTABLE)
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        convert(path, tmp_path / "out.bin", PORTABLE)


def two_loras(folder: Path) -> tuple[Path, Path]:
    model = tiny_transformer()
    write_dialect(folder / "one.safetensors", "portable", factors_for_every_linear(model, 3, keep="attention"), 1.0)
    write_dialect(folder / "two.safetensors", "kohya-split", factors_for_every_linear(model, 2, keep="layers.1"), 0.5)
    return folder / "one.safetensors", folder / "two.safetensors"


def test_merging_is_the_weighted_sum_exactly(tmp_path: Path) -> None:
    one, two = two_loras(tmp_path)
    outcome = merge([one, two], [0.8, 0.3], tmp_path / "sum.safetensors", PORTABLE)
    first, second, found = changes_in(one), changes_in(two), changes_in(tmp_path / "sum.safetensors")
    assert found.keys() == first.keys() | second.keys()
    for name, change in found.items():
        expected = 0.8 * first.get(name, torch.zeros(())) + 0.3 * second.get(name, torch.zeros(()))
        assert float((change - expected).norm()) <= 1e-6 * float(expected.norm())
    assert outcome.ranks == (2, 3, 5)
    assert outcome.worst_error <= 1e-6


def test_merging_to_a_rank_tells_its_error(tmp_path: Path) -> None:
    one, two = two_loras(tmp_path)
    outcome = merge([one, two], [0.8, 0.3], tmp_path / "sum.safetensors", Plan("portable", 3, None))
    assert max(outcome.ranks) == 3
    assert 0.001 < outcome.error < 0.5


def test_merging_files_for_models_of_two_widths_is_refused(tmp_path: Path) -> None:
    one, _ = two_loras(tmp_path)
    other = "diffusion_model.layers.0.attention.to_q"
    save_file(
        {f"{other}.lora_A.weight": torch.ones(1, 64), f"{other}.lora_B.weight": torch.ones(64, 1)},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(InputError, match="models of different widths"):
        merge([one, tmp_path / "w.safetensors"], [1, 1], tmp_path / "sum.safetensors", PORTABLE)
    with pytest.raises(InputError, match="at least two files"):
        merge([one], [1], tmp_path / "sum.safetensors", PORTABLE)


def test_resizing_to_a_rank_is_the_best_of_that_rank(tmp_path: Path) -> None:
    one, _ = two_loras(tmp_path)
    outcome = resize(one, tmp_path / "small.safetensors", Plan("portable", 2, None), None)
    source, found = changes_in(one), changes_in(tmp_path / "small.safetensors")
    for name, whole in source.items():
        best = float(torch.linalg.svdvals(whole)[2:].norm())
        assert float((whole - found[name]).norm()) == pytest.approx(best, rel=1e-4)
    assert outcome.ranks == (2,)
    assert outcome.error > 0.05


def test_resizing_to_an_energy_keeps_in_each_layer_no_more_parts_than_that_needs(tmp_path: Path) -> None:
    tensors = {}
    for name, sizes in (("to_q", (10.0, 0.1)), ("to_k", (1.0, 1.0))):
        stem = f"diffusion_model.layers.0.attention.{name}"
        tensors[f"{stem}.lora_A.weight"] = torch.eye(2, 32)
        tensors[f"{stem}.lora_B.weight"] = torch.eye(32, 2) * torch.tensor(sizes)
    save_file(tensors, tmp_path / "in.safetensors")
    outcome = resize(tmp_path / "in.safetensors", tmp_path / "small.safetensors", PORTABLE, 0.99)
    assert outcome.ranks == (1, 2)
    assert outcome.worst_layer == "layers.0.attention.to_q"
    assert outcome.worst_error == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("rank", "energy"), [(None, None), (4, 0.9), (0, None), (None, 0.0), (None, 1.5)])
def test_a_resize_without_one_clear_aim_is_refused(tmp_path: Path, rank: int | None, energy: float | None) -> None:
    one, _ = two_loras(tmp_path)
    with pytest.raises(InputError, match=r"--rank 16|a share above 0|from 1 on"):
        resize(one, tmp_path / "small.safetensors", Plan("portable", rank, None), energy)


# Prints by how many bytes the largest memory grew while a file was converted, after a small one had loaded the code.
CONVERTING = """
import resource, sys
from pathlib import Path
from zimage.lora.convert.conversion import Plan, convert
small, large, out, to = sys.argv[1:]
convert(Path(small), Path(out), Plan(to, None, None))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(Path(large), Path(out), Plan(to, None, None))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("to", ["portable", "comfyui"])
def test_a_lora_of_any_size_is_converted_with_a_part_of_it_in_memory(to: str, tmp_path: Path) -> None:
    sizes = []
    for name, ranks in (("small", 1), ("large", 32)):
        tensors = {}
        for module, (outputs, inputs) in released_shapes().items():
            if module.startswith("layers."):
                tensors[f"transformer.{module}.lora_A.weight"] = torch.randn(ranks, inputs).bfloat16()
                tensors[f"transformer.{module}.lora_B.weight"] = torch.randn(outputs, ranks).bfloat16()
        save_file(tensors, tmp_path / name)
        sizes.append((tmp_path / name).stat().st_size)
    names = [str(tmp_path / each) for each in ("small", "large", "out.safetensors")]
    ran = subprocess.run([sys.executable, "-c", CONVERTING, *names, to], capture_output=True, check=True, text=True)

    assert int(ran.stdout) < 0.25 * sizes[1]
