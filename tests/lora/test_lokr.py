"""LoKr and LoHa files against the libraries that define them: LyCORIS, peft through diffusers, ComfyUI itself."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.lora import comfyui_oracle
from tests.lora.files.test_loaders import NO_CHECKOUT
from tests.lora.loader_table import GROUPS, by_diffusers, weights
from zimage.cli.lora import _print_outcome
from zimage.core.errors import InputError
from zimage.lora.convert.change import difference, norm, written_out
from zimage.lora.convert.conversion import Plan, convert, merge, resize
from zimage.lora.convert.reading import read_lora
from zimage.lora.convert.writing import Dialect
from zimage.lora.files.inspection import inspect_file
from zimage.lora.files.modules import QKV_PARTS, native_name, released_shapes
from zimage.lora.files.portable import Factors, Kronecker, kronecker_of, save_portable

LAYERS = tuple(itertools.chain.from_iterable(GROUPS[group] for group in ("attention", "out", "feed_forward")))
TO: tuple[Dialect, ...] = ("portable", "diffusers", "lycoris")
QKV_LAYERS = tuple(f"layers.0.{part}" for part in QKV_PARTS)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.3


def lokr(shape: tuple[int, int], *, left: int = 8, rank: int | None = 4) -> dict[str, Tensor]:
    large = shape[0] // left, shape[1] // left
    second = (
        {"lokr_w2": drawn(*large)}
        if rank is None
        else {"lokr_w2_a": drawn(large[0], rank), "lokr_w2_b": drawn(rank, large[1])}
    )
    return {"lokr_w1": drawn(left, left), **second}


def write_lokr(path: Path, *, rank: int | None = 4, layers: tuple[str, ...] = LAYERS) -> dict[str, Tensor]:
    """Write a portable LoKr of the small model, and return the changes that it means."""
    parts = {name: lokr((weights()[name].shape[0], weights()[name].shape[1]), rank=rank) for name in layers}
    products = {name: kronecker_of(each) for name, each in parts.items()}
    save_portable(path, products, metadata={}, dtype=torch.float32)
    return {name: written_out(product) for name, product in products.items()}


def changes_in(path: Path) -> dict[str, Tensor]:
    return {name: written_out(change) for name, change in read_lora(path).changes.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], share: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert float((found[name].double() - change).norm()) <= share * float(change.norm()), name


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (LokrModule, {"factor": 8}),
        (LokrModule, {"factor": 8, "full_matrix": True}),
        (LokrModule, {"factor": -1, "decompose_both": True}),
        (LokrModule, {"factor": 4, "unbalanced_factorization": True}),
        (LohaModule, {}),
    ],
)
def test_a_file_is_read_as_lycoris_applies_it(tmp_path: Path, made: Any, options: dict[str, Any]) -> None:
    """The reference is the module's forward pass."""
    tensors, expected = {}, {}
    for name in LAYERS:
        weight = weights()[name]
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
        module = made("layer", plain, lora_dim=3, alpha=1.5, **options).double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(drawn(*parameter.shape).float())  # the file keeps float32
        stem = "lycoris_" + name.replace(".", "_")
        tensors |= {f"{stem}.{part}": value.float() for part, value in module.custom_state_dict().items()}
        one = torch.eye(weight.shape[1], dtype=torch.float64)
        before = plain(one)
        module.apply_to()
        with torch.no_grad():
            expected[name] = (plain(one) - before).T
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "in.safetensors")
    assert_close(changes_in(tmp_path / "in.safetensors"), expected)


@pytest.mark.parametrize("rank", [4, None])
def test_a_lokr_keeps_every_bit_through_all_ways_of_writing_split_names(tmp_path: Path, rank: int | None) -> None:
    first = tmp_path / "0.safetensors"
    expected = write_lokr(first, rank=rank)
    source = first
    for at, to in enumerate([*TO, "portable"], start=1):
        out = tmp_path / f"{at}.safetensors"
        outcome = convert(source, out, Plan(to, None, None, verify=True))  # type: ignore[arg-type]
        assert (outcome.ranks, outcome.error, outcome.by_comfyui) == ((), 0.0, 0.0)
        assert outcome.by_diffusers == (None if to == "lycoris" else 0.0)
        source = out
    before, after = load_file(first), load_file(source)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    found = inspect_file(source)
    assert (found.verdict, found.diffusers, found.comfyui) == ("usable", "all", "all")
    assert_close(by_diffusers(source), expected, 1e-4)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer."])
def test_diffusers_applies_a_lokr_whose_second_matrix_is_whole_in_some_layers(tmp_path: Path, prefix: str) -> None:
    expected, tensors = {}, {}
    for at, name in enumerate(LAYERS):
        parts = lokr((weights()[name].shape[0], weights()[name].shape[1]), rank=None if at % 2 else 4)
        tensors |= {f"{prefix}{name}.{part}": value for part, value in parts.items()}
        expected[name] = written_out(kronecker_of(parts))
    save_file(tensors, tmp_path / "in.safetensors")
    assert_close(by_diffusers(tmp_path / "in.safetensors"), expected, 1e-4)
    assert inspect_file(tmp_path / "in.safetensors").diffusers == "all"


@pytest.mark.parametrize("to", ["comfyui", "kohya"])
def test_a_lokr_of_a_fused_qkv_is_split_and_fused_again_to_the_last_bit(tmp_path: Path, to: Dialect) -> None:
    stem = "diffusion_model.layers.0.attention.qkv"
    content = {f"{stem}.{part}": value for part, value in lokr((288, 96), left=6).items()}
    save_file(content, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "split.safetensors", Plan("lycoris", None, None, verify=True))
    assert len(read_lora(tmp_path / "split.safetensors").changes) == 3
    outcome = convert(tmp_path / "split.safetensors", tmp_path / "out.safetensors", Plan(to, None, None, verify=True))
    assert (outcome.ranks, outcome.error, outcome.by_comfyui) == ((), 0.0, 0.0)
    found = {name.rpartition(".")[2]: value for name, value in load_file(tmp_path / "out.safetensors").items()}
    assert all(torch.equal(found[name.rpartition(".")[2]], value) for name, value in content.items())


def test_a_lokr_whose_q_k_and_v_differ_is_fused_as_a_lora_only(tmp_path: Path) -> None:
    expected = write_lokr(tmp_path / "in.safetensors", layers=QKV_LAYERS)
    outcome = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Plan("comfyui", None, None))
    assert outcome.from_lokr and outcome.ranks == (32,)  # 8 of w1 times 4 of w2
    assert_close(changes_in(tmp_path / "out.safetensors"), expected)


def test_merging_a_lokr_with_a_lora_is_the_weighted_sum(tmp_path: Path) -> None:
    first = write_lokr(tmp_path / "lokr.safetensors", layers=LAYERS[:4])
    pairs = {name: Factors(drawn(2, 96), drawn(96, 2)) for name in LAYERS[2:4]}
    save_portable(tmp_path / "lora.safetensors", pairs, metadata={}, dtype=torch.float32)
    files = [tmp_path / "lokr.safetensors", tmp_path / "lora.safetensors"]
    outcome = merge(files, [0.5, 2.0], tmp_path / "out.safetensors", Plan("portable", None, None, verify=True))
    expected = {name: 0.5 * change for name, change in first.items()}
    for name, pair in pairs.items():
        expected[name] = expected[name] + 2.0 * pair.change()
    assert_close(changes_in(tmp_path / "out.safetensors"), expected)
    assert outcome.worst_error <= 1e-6 and outcome.ranks == (32, 34)


def test_merging_lokrs_of_full_rank_needs_a_rank_and_states_the_error(tmp_path: Path) -> None:
    stem, large = "diffusion_model.layers.0.attention.to_q", {}
    for name in ("one", "two"):
        product = {"lokr_w1": drawn(2, 2), "lokr_w2": drawn(150, 150)}
        save_file({f"{stem}.{part}": value for part, value in product.items()}, tmp_path / f"{name}.safetensors")
        large[name] = torch.kron(*product.values()).double()
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    with pytest.raises(InputError, match=r"sum of these files is no LoRA: its change .* say with --rank"):
        merge(files, [1.0, 0.5], tmp_path / "out.safetensors", Plan("portable", None, None))
    outcome = merge(files, [1.0, 0.5], tmp_path / "out.safetensors", Plan("portable", 16, None))
    expected = large["one"] + 0.5 * large["two"]
    found = changes_in(tmp_path / "out.safetensors")["layers.0.attention.to_q"]
    assert outcome.error == pytest.approx(float((found - expected).norm() / expected.norm()), rel=1e-3)
    assert 0.1 < outcome.error < 1


def test_resizing_a_lokr_makes_the_best_lora_of_that_rank_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = write_lokr(tmp_path / "in.safetensors", rank=None, layers=LAYERS[:2])
    outcome = resize(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Plan("portable", 16, None), None)
    found = changes_in(tmp_path / "out.safetensors")
    for name, change in expected.items():
        best = float(torch.linalg.svdvals(change)[16:].norm())
        assert float((found[name] - change).norm()) == pytest.approx(best, rel=1e-4)
    _print_outcome(outcome)
    assert "the source is a LoKr; this is a LoRA" in capsys.readouterr().out
    energy = resize(tmp_path / "in.safetensors", tmp_path / "small.safetensors", Plan("portable", None, None), 0.9)
    assert energy.from_lokr and energy.worst_error <= 0.1**0.5 + 1e-6


def test_the_difference_of_a_lokr_and_a_lora_needs_no_written_out_matrix() -> None:
    product, pair = kronecker_of(lokr((96, 128))), Factors(drawn(5, 128), drawn(96, 5))
    expected = float((written_out(product) - pair.change()).norm())
    assert difference(product, pair) == pytest.approx(expected, rel=1e-9)
    assert difference(pair, product) == pytest.approx(expected, rel=1e-9)
    assert norm(product) > 0


@pytest.mark.skipif(comfyui_oracle.checkout() is None, reason=NO_CHECKOUT)
@pytest.mark.parametrize("to", ["portable", "diffusers", "lycoris", "comfyui", "kohya"])
@pytest.mark.parametrize("form", ["LoRA", "LoKr", "LoKr of whole matrices"])
def test_comfyui_applies_every_output_at_the_released_size(tmp_path: Path, form: str, to: Dialect) -> None:
    """Its real key map, `load_lora` and `calculate_weight`, on the released model, which is on the meta device."""
    layers = [*QKV_LAYERS, "layers.0.attention.to_out.0", "layers.29.feed_forward.w2"]
    layers += ["noise_refiner.1.adaLN_modulation.0", "all_x_embedder.2-1", "cap_embedder.1"]
    made: dict[str, Factors | Kronecker] = {}
    shared = lokr(released_shapes()[QKV_LAYERS[0]], rank=None if "whole" in form else 4)
    for name in layers:
        out, width = released_shapes()[name]
        if form == "LoRA":
            made[name] = Factors(drawn(4, width), drawn(out, 4))
        else:
            parts = lokr((out, width), rank=None if "whole" in form else 4)
            # Fused names can keep a LoKr where q, k and v share the second matrix.
            made[name] = kronecker_of({**shared, "lokr_w1": parts["lokr_w1"]} if name in QKV_LAYERS else parts)
    source, out_path = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_portable(source, made, metadata={}, dtype=torch.float32)
    outcome = convert(source, out_path, Plan(to, None, None))
    assert bool(outcome.ranks) == (form == "LoRA")
    found = comfyui_oracle.changes(out_path)
    assert not comfyui_oracle.unread_keys(out_path)
    assert len(found) == len(layers) - 2  # q, k and v are one weight there
    for name, change in made.items():
        part = next((at for at, part in enumerate(QKV_PARTS) if name.endswith(part)), None)
        whole = found[f"diffusion_model.{native_name(name)}.weight"]
        applied = whole if part is None else whole.chunk(3)[part]
        expected = written_out(change).float()
        assert float((applied - expected).norm()) <= 1e-5 * float(expected.norm()), name
