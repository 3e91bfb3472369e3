"""The change that a LoRA file makes to one weight, in the five forms of files, and as two thin matrices.

O, I out and in features; R rank.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zimage.core.errors import InputError
from zimage.lora.files.portable import Decomposed, Factors, Kronecker, Weight

# Singular values below this share of the largest are numerical zeros of products of stored (float32) factors.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Hadamard:
    """LoHa: the entry-wise product of two low-rank matrices (arXiv 2108.06098; lycoris: modules/loha.py)."""

    first: Factors
    second: Factors


@dataclass(frozen=True)
class Dense:
    """The change itself, written out."""

    weight: Tensor  # (O, I)


Change = Factors | Hadamard | Kronecker | Dense | Decomposed
DORA_NEEDS_A_BASE = (
    "it is DoRA, which gives the rows of the base's weights other lengths, so it is no matrix that can be added to "
    "another one; use it by itself, or train a LoRA or LoKr."
)


@dataclass(frozen=True)
class Spectrum:
    """A change as a sum of rank-one parts of falling size: `up * sizes @ down`, columns and rows of unit length."""

    up: Tensor  # (O, R)
    sizes: Tensor  # (R,), falling
    down: Tensor  # (R, I)
    rest: float  # Frobenius norm of what these parts leave out; 0 where they are all

    def factors(self, rank: int) -> Factors:
        """Return the largest `rank` parts as two matrices of equal size, which rounds best."""
        root = self.sizes[:rank].sqrt()
        return Factors(root[:, None] * self.down[:rank], self.up[:, :rank] * root)

    def left_out(self, rank: int) -> float:
        """Return the Frobenius norm of what the largest `rank` parts leave out."""
        return math.hypot(float(self.sizes[rank:].norm()), self.rest)

    def norm(self) -> float:
        """Return the Frobenius norm of the whole change."""
        return self.left_out(0)


def written_out(change: Change) -> Tensor:
    """Return the change of the weight, (O, I), in float64.

    Raises:
        InputError: it depends on the weight (DoRA); see `added_to`.
    """
    match change:
        case Decomposed():
            raise InputError(f"A change cannot be written out: {DORA_NEEDS_A_BASE}")
        case Factors():
            return change.change()
        case Hadamard():
            return change.first.change() * change.second.change()
        case Kronecker():
            return torch.kron(change.left.double(), change.right.double())
        case Dense():
            return change.weight.double()


def added_to(weight: Tensor, change: Change) -> Tensor:
    """Return what a file adds to a weight (O, I) at strength 1 where ComfyUI reads it, in float64."""
    return change.added_to(weight) if isinstance(change, Decomposed) else written_out(change).to(weight.device)


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity; its extremes tell, sooner than a look at each value."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return math.isfinite(float(low)) and math.isfinite(float(high))


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or as it is where it is wider."""
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def thirds(change: Change) -> list[Change]:
    """Return the change of a fused qkv as the changes of q, k and v; exact in every form."""
    match change:
        case Factors(down, up):
            return [_without_zeros(Factors(down, part.contiguous())) for part in up.chunk(3)]
        case Hadamard(first, second):
            ups = zip(first.up.chunk(3), second.up.chunk(3), strict=True)
            return [Hadamard(Factors(first.down, one), Factors(second.down, other)) for one, other in ups]
        case Kronecker(left, right, parts) if left.shape[0] % 3 == 0:
            return [Kronecker(part, right, _third_of(parts, at)) for at, part in enumerate(left.chunk(3))]
        case Decomposed(factors, magnitude, comfyui):
            pairs = [each for each in thirds(factors) if isinstance(each, Factors)]
            vectors = zip(pairs, magnitude.chunk(3), comfyui.chunk(3), strict=True)
            return [Decomposed(pair, one.contiguous(), other.contiguous()) for pair, one, other in vectors]
        case _:
            return [Dense(part.contiguous()) for part in written_out(change).chunk(3)]


def _third_of(parts: Mapping[str, Tensor] | None, at: int) -> dict[str, Tensor] | None:
    """The tensors of one third of the rows: those of the first matrix, or of its first factor, are cut."""
    if parts is None:
        return None
    cut = "lokr_w1" if "lokr_w1" in parts else "lokr_w1_a"
    return {name: part.chunk(3)[at].contiguous() if name == cut else part for name, part in parts.items()}


def _without_zeros(factors: Factors) -> Factors:
    """The same product without parts that add nothing: a fused qkv made of three LoRAs is block-diagonal."""
    used = factors.up.any(dim=0)
    used[0] = used[0] or not bool(used.any())
    return Factors(factors.down[used], factors.up[:, used])


def exact_factors(change: Change) -> Factors | None:
    """Return a LoRA's or LoHa's change as the product that it exactly is; None for the other forms."""
    match change:
        case Factors():
            return change
        case Hadamard(first, second):
            # (B1 A1) * (B2 A2) = (columns of B1 times columns of B2) (rows of A1 times rows of A2), rank R1 R2.
            up = torch.einsum("or,os->ors", wide(first.up), wide(second.up)).flatten(1)
            down = torch.einsum("ri,si->rsi", wide(first.down), wide(second.down)).flatten(0, 1)
            return Factors(down, up)
        case _:
            return None


def spectrum(change: Change, most: int) -> Spectrum:
    """Return the parts of a change by falling size, at most `most` of them, in float64.

    LoRA and LoHa by QR of the thin factors; LoKr from the singular values of its two matrices (multiplied,
    they are those of the Kronecker product); what is written out by a randomised SVD, its remainder measured.
    """
    match change:
        case Kronecker(left, right):
            return _kronecker_spectrum(left.double(), right.double(), most)
        case Dense(weight):
            return _dense_spectrum(weight.double(), most)
        case _:
            factors = exact_factors(change)
            assert factors is not None
            return _thin_spectrum(factors, most)


def difference(one: Weight, other: Weight) -> float:
    """Return the Frobenius norm of the difference of two changes, without writing out those of one form.

    Exact to float64 where the factors themselves are close, else to 1e-8 of the changes' size. Of DoRAs it is that of
    their LoRAs where the lengths of all rows are equal, and infinite where one is not.
    """
    if isinstance(one, Decomposed) or isinstance(other, Decomposed):
        if not (isinstance(one, Decomposed) and isinstance(other, Decomposed) and _same_lengths(one, other)):
            return math.inf
        return difference(one.factors, other.factors)
    if isinstance(one, Kronecker) or isinstance(other, Kronecker):
        return _kronecker_difference(one, other)
    down, up, down2, up2 = one.down.double(), one.up.double(), other.down.double(), other.up.double()
    if down.shape == down2.shape and up.shape == up2.shape:
        # B A - B' A' = (B - B') A + B' (A - A'): nothing large cancels when the factors are alike.
        return _thin_norm(Factors(torch.cat([down, down - down2]), torch.cat([up - up2, up2], dim=1)))
    return _thin_norm(Factors(torch.cat([down, down2]), torch.cat([up, -up2], dim=1)))


def _same_lengths(one: Decomposed, other: Decomposed) -> bool:
    return all(torch.equal(one.lengths[name].float(), other.lengths[name].float()) for name in one.lengths)


def _kronecker_difference(one: Factors | Kronecker, other: Factors | Kronecker) -> float:
    if not (isinstance(one, Kronecker) and isinstance(other, Kronecker)):
        product, factors = (one, other) if isinstance(one, Kronecker) else (other, one)
        assert isinstance(product, Kronecker) and isinstance(factors, Factors)
        inner = _inner_product(product, factors)
        return math.sqrt(max(0.0, norm(product) ** 2 + norm(factors) ** 2 - 2 * inner))
    if one.left.shape != other.left.shape:
        return float((written_out(one) - written_out(other)).norm())
    left, right, left2, right2 = one.left.double(), one.right.double(), other.left.double(), other.right.double()
    # L x R - L' x R' = (L - L') x R + L' x (R - R'), and the inner product of A x B and C x D is <A, C> <B, D>.
    off_left, off_right = left - left2, right - right2
    square = (off_left.norm() * right.norm()) ** 2 + (left2.norm() * off_right.norm()) ** 2
    mixed = 2 * (off_left * left2).sum() * (right * off_right).sum()
    return math.sqrt(max(0.0, float(square + mixed)))


def _inner_product(product: Kronecker, factors: Factors) -> float:
    """Return the sum of the entry-wise product of L x R and B A: that of B and (L x R) A', without L x R."""
    left, right = product.left.double(), product.right.double()
    rows = factors.down.double().unflatten(1, (left.shape[1], right.shape[1]))  # (rank, b, d)
    applied = torch.einsum("ab,rbd,cd->acr", left, rows, right).flatten(0, 1)  # (O, rank)
    return float((applied * factors.up.double()).sum())


def shape_of(change: Change) -> tuple[int, int]:
    """Return the shape of the weight that is changed, (out, in)."""
    match change:
        case Factors(down, up):
            return len(up), down.shape[1]
        case Hadamard(first):
            return len(first.up), first.down.shape[1]
        case Kronecker():
            return change.shape
        case Dense(weight):
            return weight.shape[0], weight.shape[1]
        case Decomposed(factors):
            return shape_of(factors)


def norm(change: Change) -> float:
    """Return the Frobenius norm of a change; of a DoRA that of its LoRA, for the rest depends on the base."""
    match change:
        case Decomposed(factors):
            return _thin_norm(factors)
        case Kronecker(left, right):
            return float(left.double().norm() * right.double().norm())
        case Factors():
            return _thin_norm(change)
        case _:
            return float(written_out(change).norm())


def _thin_norm(factors: Factors) -> float:
    """The norm of B A from the small matrices B'B and A A': |B A|^2 is the sum of their entry-wise product."""
    up, down = factors.up.double(), factors.down.double()
    return math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))


def _thin_spectrum(factors: Factors, most: int) -> Spectrum:
    up_basis, small_up = torch.linalg.qr(factors.up.double())
    down_basis, small_down = torch.linalg.qr(factors.down.double().T)
    left, sizes, right = torch.linalg.svd(small_up @ small_down.T)
    keep = min(most, _num_parts(sizes))
    count = min(left.shape[1], right.shape[0], keep)
    rest = float(sizes[count:].norm())
    return Spectrum(up_basis @ left[:, :count], sizes[:count], right[:count] @ down_basis.T, rest)


def _kronecker_spectrum(left: Tensor, right: Tensor, most: int) -> Spectrum:
    left_up, left_sizes, left_down = torch.linalg.svd(left, full_matrices=False)
    right_up, right_sizes, right_down = torch.linalg.svd(right, full_matrices=False)
    sizes, order = torch.outer(left_sizes, right_sizes).flatten().sort(descending=True, stable=True)
    keep = min(most, _num_parts(sizes))
    i, j = order[:keep] // len(right_sizes), order[:keep] % len(right_sizes)
    up = torch.einsum("ar,cr->acr", left_up[:, i], right_up[:, j]).flatten(0, 1)
    down = torch.einsum("rb,rd->rbd", left_down[i], right_down[j]).flatten(1)
    return Spectrum(up, sizes[:keep], down, float(sizes[keep:].norm()))


def _dense_spectrum(weight: Tensor, most: int) -> Spectrum:
    most = min(most, *weight.shape)
    if min(weight.shape) <= 512:
        up, sizes, down = torch.linalg.svd(weight, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            up, sizes, right = torch.svd_lowrank(weight, q=min(most + 16, *weight.shape), niter=4)
            down = right.T
    keep = min(most, _num_parts(sizes))
    kept = Spectrum(up[:, :keep], sizes[:keep], down[:keep], 0.0)
    rest = float((weight - (kept.up * kept.sizes) @ kept.down).norm())
    return Spectrum(kept.up, kept.sizes, kept.down, rest)


def _num_parts(sizes: Tensor) -> int:
    return max(1, int((sizes > NEGLIGIBLE * sizes[0]).sum()))
