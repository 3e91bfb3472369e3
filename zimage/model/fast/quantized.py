"""Frozen weights quantised to 8 or 4 bits.

# M rows, K inputs, N outputs
8 bits are not only stored but multiplied: both factors are quantised, row by row, and the product runs on 8-bit units,
forward and back to the input. 4 bits are written out for each product and forgotten after it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

INT8_MAX = 127.0
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
NF4_BLOCK = 64
# The 16 levels of NormalFloat4 (arXiv 2305.14314, appendix E).
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class Int8:
    """A weight of 8-bit integers with one scale an output; inputs get one scale a row when they come."""

    def __init__(self, q: Tensor, scale: Tensor, turned: Tensor | None = None) -> None:
        self.shape = (q.shape[0], q.shape[1])
        self.q, self.scale = q, scale  # (N, K) int8, (N, 1) float32
        self.turned = turned  # (K, N), or None where it is made anew in each backward pass

    def matmul(self, x: Tensor) -> Tensor:
        """Return x @ weight^T, multiplied in integers."""
        return _Int8Product.apply(x, self.q, self.scale, self.turned, x.dtype)  # type: ignore[no-any-return,no-untyped-call]

    def matmul_plus_lora(self, x: Tensor, inner: Tensor, up: Tensor) -> Tensor:
        """Return x @ weight^T + inner (M, R) @ up^T (R, N), for compiled code: rounded once, in one pass."""
        wide = torch.promote_types(x.dtype, torch.float32)
        y: Tensor = _Int8Product.apply(x, self.q, self.scale, self.turned, wide)  # type: ignore[no-untyped-call]
        return (y + functional.linear(inner, up).to(wide)).to(x.dtype)

    def matmul_grad_input(self, dy: Tensor) -> Tensor:
        """Return dy @ weight, multiplied in integers; the outputs' scales join dy before it is rounded."""
        return _int8_back(dy, self.q, self.scale, self.turned)

    def exact(self) -> None:
        """Return None: the weight as it was is not kept."""

    def tensors(self) -> list[Tensor]:
        """Return integers and scales, and the integers transposed too where that is stored."""
        return [self.q, self.scale, *_kept(self.turned)]

    def with_tensors(self, tensors: list[Tensor]) -> "Int8":
        """Return the same weight elsewhere."""
        return Int8(*tensors)


class Fp8:
    """A weight of 8-bit floats (e4m3) with one scale an output; needs a GPU of compute capability 8.9 or more."""

    def __init__(self, q: Tensor, scale: Tensor, turned: Tensor | None = None) -> None:
        self.shape = (q.shape[0], q.shape[1])
        self.q, self.scale = q, scale  # (N, K) float8, (N, 1) float32
        self.turned = turned  # (K, N), or None where it is made anew in each backward pass

    def matmul(self, x: Tensor) -> Tensor:
        """Return x @ weight^T, multiplied in 8-bit floats."""
        return _Fp8Product.apply(x, self.q, self.scale, self.turned)  # type: ignore[no-any-return,no-untyped-call]

    def matmul_grad_input(self, dy: Tensor) -> Tensor:
        """Return dy @ weight, multiplied in 8-bit floats."""
        return _fp8_back(dy, self.q, self.scale, self.turned)

    def matmul_plus_lora(self, x: Tensor, inner: Tensor, up: Tensor) -> Tensor:
        """Return x @ weight^T + inner (M, R) @ up^T (R, N), for compiled code: the sum is no copy of either."""
        return _Fp8Sum.apply(x, self.q, self.scale, self.turned, inner, up)  # type: ignore[no-any-return,no-untyped-call]

    def exact(self) -> None:
        """Return None: the weight as it was is not kept."""

    def tensors(self) -> list[Tensor]:
        """Return 8-bit floats and scales, and the floats transposed too where that is stored."""
        return [self.q, self.scale, *_kept(self.turned)]

    def with_tensors(self, tensors: list[Tensor]) -> "Fp8":
        """Return the same weight elsewhere."""
        return Fp8(*tensors)


class Nf4:
    """A weight of 4-bit levels, two a byte, with one scale for 64; written out for each product.

    Own code, although bitsandbytes has the format (0.50.2: the same bits for 10 random matrices): its products are not
    used here, it is 43 MB, and its storage is neither swapped between devices nor compiled with the rest of a block.
    """

    def __init__(self, pairs: Tensor, scale: Tensor, levels: Tensor, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.pairs, self.scale, self.levels = pairs, scale, levels  # (N K / 2,) uint8, (N K / 64, 1), (16,)

    def matmul(self, x: Tensor) -> Tensor:
        """Return x @ weight^T; the written-out weight is not kept for the backward pass."""
        return _Nf4Product.apply(x, self.pairs, self.scale, self.levels, self.shape)  # type: ignore[no-any-return,no-untyped-call]

    def matmul_grad_input(self, dy: Tensor) -> Tensor:
        """Return dy @ weight."""
        dx: Tensor = nf4_back(dy, self.pairs, self.scale, self.levels)
        return dx

    def exact(self) -> None:
        """Return None: the weight as it was is not kept."""

    def tensors(self) -> list[Tensor]:
        """Return levels of all weights, scales, and what the levels are."""
        return [self.pairs, self.scale, self.levels]

    def with_tensors(self, tensors: list[Tensor]) -> "Nf4":
        """Return the same weight elsewhere."""
        pairs, scale, levels = tensors
        return Nf4(pairs, scale, levels, self.shape)


def int8_of(weight: Tensor, *, both_ways: bool = False) -> Int8:
    """Return a weight rounded to 8-bit integers, each output's largest value being 127.

    Args:
        weight: (N, K).
        both_ways: Keep it transposed as well, as 8-bit units need it in the backward pass.
    """
    q, scale = _int8_scaled(weight)
    return Int8(q, scale, q.t().contiguous() if both_ways else None)


def fp8_of(weight: Tensor, *, both_ways: bool = False) -> Fp8:
    """Return a weight rounded to 8-bit floats, each output's largest value being 448.

    Args:
        weight: (N, K).
        both_ways: Keep it transposed as well, as 8-bit units need it in the backward pass.
    """
    q, scale = _fp8_scaled(weight)
    return Fp8(q, scale, q.t().contiguous() if both_ways else None)


def nf4_of(weight: Tensor) -> Nf4:
    """Return a weight rounded to the nearest of 16 levels, the largest of each 64 values in a row being 1."""
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    blocks = weight.float().reshape(-1, NF4_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    nearest = torch.bucketize(blocks / scale, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).reshape(-1, 2)
    return Nf4(nearest[:, 0] * 16 + nearest[:, 1], scale, levels, (weight.shape[0], weight.shape[1]))


def _row_scale(values: Tensor, most: float) -> Tensor:
    """Return (M, 1), float32: what the largest value of each row is `most` times of."""
    return values.abs().amax(dim=1, keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny) / most


def _int8_scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (M, J) in 8-bit integers and its scales (M, 1)."""
    scale = _row_scale(x, INT8_MAX)
    return (x.float() / scale).round_().to(torch.int8), scale


def _kept(turned: Tensor | None) -> list[Tensor]:
    return [] if turned is None else [turned]


def _int8_product(x: Tensor, q: Tensor) -> Tensor:
    """Return x (M, J) @ q (J, P) for an integer matrix, float32, x rounded row by row."""
    rounded, scale = _int8_scaled(x)
    return torch._int_mm(rounded, q).float() * scale


def _int8_back(dy: Tensor, q: Tensor, scale: Tensor, turned: Tensor | None) -> Tensor:
    rounded, row_scale = _int8_scaled(dy.float() * scale.t())
    product = int8_turning(rounded, q) if turned is None else torch._int_mm(rounded, turned.t())
    return (product.float() * row_scale).to(dy.dtype)


@torch.library.custom_op("zimage::int8_turning", mutates_args=())
def int8_turning(a: Tensor, q: Tensor) -> Tensor:
    """Return a (M, N) @ q (N, K) of integers, int32.

    A GPU reads a second factor that lies column by column in half the time, so it is transposed here for one
    product. Not under the compiler, which would transpose all weights in the forward pass and store them.
    """
    product: Tensor = torch._int_mm(a, _by_columns(q) if q.is_cuda else q)
    return product


@int8_turning.register_fake
def _(a: Tensor, q: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], q.shape[1]), dtype=torch.int32)


def _fp8_scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (M, J) in 8-bit floats and its scales (M, 1)."""
    scale = _row_scale(x, FP8_MAX)
    return (x.float() / scale).to(FP8), scale


def _fp8_product(a: Tensor, scale: Tensor, q: Tensor, column_scale: Tensor, *, forward: bool) -> Tensor:
    """Return (a * scale) (M, J) @ (q * column_scale) (J, P) in bfloat16; q must lie column by column.

    In the forward pass sums stay in the units' precision; in the backward pass they are added to float32 now and then,
    which takes longer: as pytorch/ao trains by default (torchao/float8/config.py).
    """
    return torch._scaled_mm(a, q, scale_a=scale, scale_b=column_scale, out_dtype=torch.bfloat16, use_fast_accum=forward)


def _fp8_back(dy: Tensor, q: Tensor, scale: Tensor, turned: Tensor | None) -> Tensor:
    a, row_scale = _fp8_scaled(dy.float() * scale.t())
    if turned is None:
        dx: Tensor = fp8_turning(a, row_scale, q)
    else:
        dx = _fp8_product(a, row_scale, turned.t(), _ones(q), forward=False)
    return dx.to(dy.dtype)


@torch.library.custom_op("zimage::fp8_sum", mutates_args=())
def fp8_sum(a: Tensor, scale: Tensor, q: Tensor, column_scale: Tensor, c: Tensor, d: Tensor) -> Tensor:  # noqa: PLR0917
    """Return (a * scale) (M, K) @ (q * column_scale)^T (K, N) + c (M, R) @ d (R, N), the second added in place."""
    y = _fp8_product(a, scale, q.t(), column_scale.t(), forward=True).to(c.dtype)
    return y.addmm_(c, d)


@fp8_sum.register_fake
def _(a: Tensor, scale: Tensor, q: Tensor, column_scale: Tensor, c: Tensor, d: Tensor) -> Tensor:  # noqa: PLR0917
    return c.new_empty((a.shape[0], q.shape[0]))


@torch.library.custom_op("zimage::fp8_turning", mutates_args=())
def fp8_turning(a: Tensor, scale: Tensor, q: Tensor) -> Tensor:
    """Return (a * scale) (M, N) @ q (N, K) of 8-bit floats, in bfloat16; why it is an operation: see `int8_turning`."""
    return _fp8_product(a, scale, _by_columns(q), _ones(q), forward=False)


@fp8_turning.register_fake
def _(a: Tensor, scale: Tensor, q: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], q.shape[1]), dtype=torch.bfloat16)


def _ones(q: Tensor) -> Tensor:
    return torch.ones((1, q.shape[1]), device=q.device)


def _by_columns(q: Tensor) -> Tensor:
    """Return the same matrix lying column by column, as 8-bit units read a second factor."""
    return q.t().contiguous().t()


def _nf4_written_out(
    pairs: Tensor, scale: Tensor, levels: Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Return the weight; both levels of a byte are looked up at once, by numbers of 32 bits, which take less memory."""
    both = torch.cartesian_prod(levels, levels)  # (256, 2)
    found = functional.embedding(pairs.int(), both).reshape(-1, NF4_BLOCK)
    return found.mul_(scale).to(dtype).reshape(shape)


@torch.library.custom_op("zimage::nf4_back", mutates_args=())
def nf4_back(dy: Tensor, pairs: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    """Return dy (M, N) @ weight (N, K).

    An operation, or the compiler would see that the weight was written out before, and keep that for the backward pass.
    """
    shape = (dy.shape[1], 2 * pairs.numel() // dy.shape[1])
    return dy @ _nf4_written_out(pairs, scale, levels, shape, dy.dtype)


@nf4_back.register_fake
def _(dy: Tensor, pairs: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    return dy.new_empty((dy.shape[0], 2 * pairs.numel() // dy.shape[1]))


class _Int8Product(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *kept: Any) -> Tensor:
        q, scale, turned, dtype = kept
        ctx.save_for_backward(q, scale, turned)
        ctx.dtype = x.dtype
        y: Tensor = (_int8_product(x, q.t()) * scale.t()).to(dtype)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _int8_back(dy, *ctx.saved_tensors).to(ctx.dtype), None, None, None, None


class _Fp8Product(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, scale: Tensor, turned: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, scale, turned)
        return _fp8_product(*_fp8_scaled(x), q.t(), scale.t(), forward=True).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _fp8_back(dy, *ctx.saved_tensors), None, None, None


class _Fp8Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        q, scale, turned, inner, up = rest
        ctx.save_for_backward(q, scale, turned, inner, up)
        y: Tensor = fp8_sum(*_fp8_scaled(x), q, scale, inner, up.t())
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, scale, turned, inner, up = ctx.saved_tensors
        return _fp8_back(dy, q, scale, turned), None, None, None, dy @ up, dy.t() @ inner


class _Nf4Product(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *kept: Any) -> Tensor:
        pairs, scale, levels, shape = kept
        ctx.save_for_backward(pairs, scale, levels)
        return functional.linear(x, _nf4_written_out(pairs, scale, levels, shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return nf4_back(dy, *ctx.saved_tensors), None, None, None, None
