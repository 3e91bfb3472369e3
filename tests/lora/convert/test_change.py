"""The four forms of a change against the matrices they stand for, in float64."""

import pytest
import torch
from torch import Tensor

from zimage.lora.convert.change import (
    Change,
    Dense,
    Hadamard,
    difference,
    exact_factors,
    norm,
    spectrum,
    thirds,
    written_out,
)
from zimage.lora.files.portable import Factors, Kronecker


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(rank: int, seed: int = 0) -> Factors:
    return Factors(random(rank, 20, seed=seed), random(18, rank, seed=seed + 1))


FORMS: dict[str, Change] = {
    "LoRA": low_rank(4),
    "LoHa": Hadamard(low_rank(3, 2), low_rank(2, 4)),
    "LoKr, rows split by the first matrix": Kronecker(random(3, 4, seed=6), random(6, 5, seed=7)),
    "LoKr, rows split by the second": Kronecker(random(2, 4, seed=8), random(9, 5, seed=9)),
    "full": Dense(random(18, 20, seed=10)),
    "nothing": Factors(torch.zeros(2, 20), torch.zeros(18, 2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_spectrum_of_all_parts_is_the_change(form: str) -> None:
    change = FORMS[form]
    parts = spectrum(change, 1000)
    factors = parts.factors(len(parts.sizes))
    torch.testing.assert_close(factors.change(), written_out(change), rtol=1e-10, atol=1e-10)
    assert parts.norm() == pytest.approx(norm(change), rel=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 3])
def test_a_truncated_spectrum_is_the_best_of_its_rank_and_knows_its_error(form: str, rank: int) -> None:
    whole = written_out(FORMS[form])
    parts = spectrum(FORMS[form], rank)
    left_out = float((whole - parts.factors(rank).change()).norm())
    best = float(torch.linalg.svdvals(whole)[rank:].norm())  # Eckart and Young
    assert left_out == pytest.approx(best, rel=1e-9, abs=1e-10)
    assert parts.left_out(rank) == pytest.approx(best, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_thirds_of_a_fused_change_are_its_rows(form: str) -> None:
    rows = written_out(FORMS[form]).chunk(3)
    for part, row in zip(thirds(FORMS[form]), rows, strict=True):
        torch.testing.assert_close(written_out(part), row, rtol=1e-12, atol=1e-12)


def test_thirds_of_a_block_diagonal_change_have_their_own_ranks_again() -> None:
    ups = torch.block_diag(random(6, 2), random(6, 3), random(6, 4))
    assert [len(part.down) for part in thirds(Factors(random(9, 20), ups)) if isinstance(part, Factors)] == [2, 3, 4]


def test_a_loha_is_a_lora_of_the_product_of_its_ranks() -> None:
    exact = exact_factors(FORMS["LoHa"])
    assert exact is not None
    assert len(exact.down) == 6
    torch.testing.assert_close(exact.change(), written_out(FORMS["LoHa"]), rtol=1e-12, atol=1e-12)


def test_the_difference_of_two_loras_needs_no_full_matrix() -> None:
    one, other = low_rank(4), low_rank(3, seed=20)
    assert difference(one, other) == pytest.approx(float((one.change() - other.change()).norm()), rel=1e-9)
    near = Factors(one.down * (1 + 1e-9), one.up)
    assert difference(one, near) == pytest.approx(1e-9 * norm(one), rel=1e-4)
    assert difference(one, one) == 0.0
    assert difference(one, Factors(one.down * 2, one.up / 2)) < 1e-7 * norm(one)


def test_a_full_change_too_large_for_an_exact_svd_still_knows_its_error() -> None:
    change = Dense(random(600, 8) @ random(8, 700, seed=1) + 1e-3 * random(600, 700, seed=2))
    parts = spectrum(change, 8)
    left_out = float((written_out(change) - parts.factors(8).change()).norm())
    assert parts.left_out(8) == pytest.approx(left_out, rel=1e-6)
    assert left_out < 1.01 * float(torch.linalg.svdvals(change.weight)[8:].norm())
    assert torch.equal(spectrum(change, 8).up, parts.up)
