"""The parts of a block that are not matrix products with a weight, each with a hand-written gradient.

# B batch, T tokens, D width, H heads, E width of a head, F width of the feed-forward
Autograd would run and keep three to six times as many tensors. Every function here has its plain formula beside it:
tests compare the two, and torch.compile, which fuses better than anyone by hand, is given the formula.
Sums of squares and softmax are computed in float32 whatever the inputs are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

# Up to here the attention weights of a CPU's batch stay in its cache, and products over them beat the flash kernel.
MATERIALISED_TOKENS = 512


def rms_scale(x: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return `x / rms(x) * scale` in `dtype`.

    Args:
        x: (B, T, D).
        scale: The norm's weight, times the modulation where there is one; (D,) or (B, 1, D), float32.
        eps: Added to the mean square.
        dtype: Of the result: that of the product it goes into.
    """
    if torch.compiler.is_compiling():
        return rms_scale_formula(x, scale, eps, dtype)
    return _RmsScale.apply(x, scale, eps, dtype)  # type: ignore[no-any-return,no-untyped-call]


def rms_scale_formula(x: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the same as `rms_scale`, by autograd."""
    x32 = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * scale).to(dtype)


def gated_add(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return `x + y / rms(y) * scale` in the dtype of x: a sandwich norm, its gate and the residual in one.

    Args:
        x: The residual stream (B, T, D).
        y: What a branch adds to it, before its norm.
        scale: The norm's weight, times the gate where there is one; (D,) or (B, 1, D), float32.
        eps: Added to the mean square.
    """
    if torch.compiler.is_compiling():
        return gated_add_formula(x, y, scale, eps)
    return _GatedAdd.apply(x, y, scale, eps)  # type: ignore[no-any-return,no-untyped-call]


def gated_add_formula(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return the same as `gated_add`, by autograd."""
    return x + rms_scale_formula(y, scale, eps, x.dtype)


def heads(qkv: Tensor, weights: Tensor, table: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (B, H, T, E): split, normed, and turned by their positions.

    Args:
        qkv: (B, T, 3 * D).
        weights: Of the two norms, (2, E) float32; the attention's own scale multiplied into the first.
        table: Rotations (T, E / 2) as complex numbers (T, E / 2) or, for compiled code, their parts (T, E / 2, 2).
        eps: Added to the mean square.
    """
    if torch.compiler.is_compiling():
        return heads_formula(qkv, weights, table, eps)
    return _Heads.apply(qkv, weights, table, eps)  # type: ignore[no-any-return,no-untyped-call]


def heads_formula(qkv: Tensor, weights: Tensor, table: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as `heads`, by autograd and in real arithmetic."""
    D, E = qkv.shape[-1] // 3, weights.shape[-1]
    qk, v = qkv.split([2 * D, D], dim=-1)
    weight = weights.repeat_interleave(D // E, dim=0)  # of each of the 2 H heads
    normed = rms_scale_formula(qk.unflatten(-1, (-1, E)), weight, eps, _wide(qkv.dtype))  # (B, T, 2 H, E)
    q, k = _turned(normed, table).to(qkv.dtype).chunk(2, dim=2)
    return q.transpose(1, 2), k.transpose(1, 2), v.unflatten(-1, (-1, E)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T) v as (B, T, H * E); the scale is in q already.

    Args:
        q: (B, H, T, E), possibly of fewer tokens than k.
        k: (B, H, T, E).
        v: (B, H, T, E).
    """
    if q.device.type == "cpu" and k.shape[2] <= MATERIALISED_TOKENS and not torch.compiler.is_compiling():
        return _Attention.apply(q, k, v)  # type: ignore[no-any-return,no-untyped-call]
    return attention_formula(q, k, v)


def attention_formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the same as `attention`, by whatever kernel torch holds fastest; without a mask flash is among them."""
    return functional.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)


def swiglu(hidden: Tensor) -> Tensor:
    """Return `silu(first half) * second half` of (..., 2 * F)."""
    if torch.compiler.is_compiling():
        return swiglu_formula(hidden)
    return _Swiglu.apply(hidden)  # type: ignore[no-any-return,no-untyped-call]


def swiglu_formula(hidden: Tensor) -> Tensor:
    """Return the same as `swiglu`, by autograd."""
    gate, value = hidden.chunk(2, dim=-1)
    return functional.silu(gate) * value


@torch.library.custom_op("zimage::sum_of_products", mutates_args=())
def sum_of_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return `a @ b + c @ d`: the second product is written, and the kernel of the first one adds to it as it writes.

    It is an operation of its own because the compiler would copy the second product first.

    Args:
        a: (M, K).
        b: (K, N).
        c: (M, R), R small.
        d: (R, N).
    """
    return (c @ d).addmm_(a, b)


@sum_of_products.register_fake
def _(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for the half types, and every other type as it is (tests check gradients in float64)."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _turned(x: Tensor, table: Tensor) -> Tensor:
    """Return x (B, T, H, E) with each pair of neighbours turned by the table's (cosine, sine) (T, E / 2, 2)."""
    pairs = x.unflatten(-1, (-1, 2))  # (B, T, H, E / 2, 2)
    cos, sin = table.to(x.dtype)[:, None].chunk(2, dim=-1)  # (T, 1, E / 2, 1)
    signs = 2 * torch.arange(2, dtype=x.dtype, device=x.device) - 1
    turned: Tensor = pairs * cos + pairs.flip(-1) * (sin * signs)
    return turned.flatten(-2)


def _reciprocal_rms(x: Tensor, eps: float) -> Tensor:
    squares: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return squares.div_(x.shape[-1]).add_(eps).rsqrt_()


def _rms_gradient(g: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """Return the gradient at x of `x * rstd(x)` for the gradient `g` at the result; `g` is overwritten."""
    along = torch.linalg.vecdot(g, x).unsqueeze(-1).mul_(rstd**3).div_(-x.shape[-1])
    return g.mul_(rstd).addcmul_(x, along)


class _RmsScale(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.to(_wide(x.dtype))
        rstd = _reciprocal_rms(wide, eps)
        ctx.save_for_backward(x, scale, rstd)
        return (wide * rstd).mul_(scale).to(dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, rstd = ctx.saved_tensors
        wide, dy = x.to(rstd.dtype), dy.to(rstd.dtype)
        dscale = (dy * wide).mul_(rstd).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None
        dx = _rms_gradient(dy * scale, wide, rstd).to(x.dtype) if ctx.needs_input_grad[0] else None
        return dx, dscale, None, None


class _GatedAdd(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, eps: float) -> Tensor:
        wide = y.to(_wide(y.dtype))
        rstd = _reciprocal_rms(wide, eps)
        ctx.save_for_backward(y, scale, rstd)
        return torch.addcmul(x.to(wide.dtype), wide * rstd, scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, scale, rstd = ctx.saved_tensors
        wide, g = y.to(rstd.dtype), dout.to(rstd.dtype)
        dscale = (g * wide).mul_(rstd).sum_to_size(scale.shape) if ctx.needs_input_grad[2] else None
        dy = _rms_gradient(g * scale, wide, rstd).to(y.dtype) if ctx.needs_input_grad[1] else None
        return dout, dy, dscale, None


class _Heads(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, weights: Tensor, table: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        split = qkv.unflatten(-1, (3, -1, weights.shape[-1]))  # (B, T, 3, H, E)
        qk = split[:, :, :2].to(_wide(qkv.dtype))
        rstd = _reciprocal_rms(qk, eps)
        normed = (qk * rstd).mul_(weights[:, None].to(qk.dtype))
        turned = _multiplied(normed, torch.view_as_complex(table)).to(qkv.dtype)
        ctx.save_for_backward(qkv, weights, table, rstd)
        return turned[0], turned[1], split[:, :, 2].transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        qkv, weights, table, rstd = ctx.saved_tensors
        split = qkv.unflatten(-1, (3, -1, weights.shape[-1]))
        qk = split[:, :, :2].to(rstd.dtype)
        back = torch.view_as_complex(table).conj().resolve_conj()[:, None]
        g = torch.empty_like(qk, memory_format=torch.contiguous_format)
        for i, d in enumerate((dq, dk)):
            pairs = _pairs(d.transpose(1, 2).to(rstd.dtype))
            torch.mul(pairs, back, out=torch.view_as_complex(g[:, :, i].unflatten(-1, (-1, 2))))
        dqkv = torch.empty(split.shape, dtype=qkv.dtype, device=qkv.device)
        dqkv[:, :, :2] = _rms_gradient(g.mul_(weights[:, None].to(g.dtype)), qk, rstd)
        dqkv[:, :, 2] = dv.transpose(1, 2)
        return dqkv.flatten(2), None, None, None


def _pairs(x: Tensor) -> Tensor:
    """Return neighbours of the last axis as complex numbers, without a copy where the layout allows it."""
    return torch.view_as_complex((x if x.stride(-1) == 1 else x.contiguous()).unflatten(-1, (-1, 2)))


def _multiplied(normed: Tensor, table: Tensor) -> Tensor:
    """Return (2, B, H, T, E), contiguous, of (B, T, 2, H, E) turned by the complex table (T, E / 2)."""
    B, T, _, H, E = normed.shape
    turned = torch.empty((2, B, H, T, E // 2), dtype=table.dtype, device=normed.device)
    torch.mul(_pairs(normed), table[:, None, None], out=turned.permute(1, 3, 0, 2, 4))
    return torch.view_as_real(turned).flatten(-2)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, H, T, E = q.shape
        q, k, v = (x.reshape(B * H, -1, E) for x in (q, k, v))
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(B, H, T, E).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
        q, k, v, weights = ctx.saved_tensors
        B, T, E = dout.shape[0], dout.shape[1], q.shape[-1]
        do = dout.unflatten(-1, (-1, E)).transpose(1, 2).reshape(-1, T, E)
        dv = torch.bmm(weights.transpose(1, 2), do)
        dscores = torch._softmax_backward_data(torch.bmm(do, v.transpose(1, 2)), weights, -1, weights.dtype)
        dq, dk = torch.bmm(dscores, k), torch.bmm(dscores.transpose(1, 2), q)
        return tuple(d.unflatten(0, (B, -1)) for d in (dq, dk, dv))


class _Swiglu(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        gate, value = hidden.chunk(2, dim=-1)
        opened = functional.silu(gate)
        ctx.save_for_backward(hidden, opened)
        return opened * value

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        hidden, opened = ctx.saved_tensors
        gate, value = hidden.chunk(2, dim=-1)
        dhidden = torch.empty_like(hidden)
        dgate, dvalue = dhidden.chunk(2, dim=-1)
        torch.mul(dout, opened, out=dvalue)
        torch.ops.aten.silu_backward.grad_input(dout * value, gate, grad_input=dgate)
        return dhidden


_FUNCTIONS: dict[Any, type[Function]] = {
    rms_scale: _RmsScale,
    gated_add: _GatedAdd,
    heads: _Heads,
    attention: _Attention,
    swiglu: _Swiglu,
}


class Context:
    """What a function of autograd keeps for its backward pass, in place of autograd's own context.

    Args:
        needs: For which of its inputs, from the first on, a gradient is wanted.
    """

    def __init__(self, needs: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs
        self.saved_tensors: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep these tensors."""
        self.saved_tensors = tensors


def vjp(function: Callable[..., Any], *inputs: Any, needs: tuple[bool, ...] = ()) -> tuple[Any, Callable[..., Any]]:
    """Run a function without autograd; return its result, and what takes the gradient there to those at its inputs.

    Args:
        function: A class of autograd's functions, or a function of this module that has a formula beside it.
        inputs: Of its forward pass.
        needs: For which inputs, from the first on, a gradient is wanted; functions that do not ask return all.
    """
    own: Any = _FUNCTIONS.get(function, function)
    context = Context(needs)
    return own.forward(context, *inputs), partial(own.backward, context)
