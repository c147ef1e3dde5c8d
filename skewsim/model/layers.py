"""The row-wise layers of a Llama (RMSNorm, SwiGLU), with their gradients written by hand.

Autograd needs five to ten passes over all rows for each of them, forward and backward. Written by hand they need about
half as many, and a training step of a model this small consists mostly of such passes. Norms are computed in float32
and rounded to the rows' dtype, as in transformers. The gradients are tested against autograd.

Axes: E member, R rows (tokens), H width, I intermediate width, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight``; x (E, R, H), weight (E, H)."""
    if not torch.is_grad_enabled():
        return _over_rms(x, eps)[0].mul_(weight.unsqueeze(1))
    return _RMSNorm.apply(x, weight.unsqueeze(1), eps)  # type: ignore[no-any-return, no-untyped-call]


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of (E, R, 2 I), gate first."""
    if not torch.is_grad_enabled():
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)
    return _SwiGLU.apply(gate_up)  # type: ignore[no-any-return, no-untyped-call]


def _over_rms(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x / rms(x)`` in x's dtype, and ``1 / rms(x)`` (E, R, 1)."""
    wide = x.float()
    scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = _over_rms(x, eps)
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, weight = ctx.saved_tensors
        along = gradient * normed
        inner = along @ weight.transpose(1, 2) / -weight.shape[-1]
        to_x = (gradient * weight).addcmul_(normed, inner).mul_(scale)
        return to_x, along.sum(1, keepdim=True), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        activated = torch.nn.functional.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        both = torch.empty_like(gate_up)
        to_gate, to_up = both.chunk(2, dim=-1)
        torch.mul(gradient, up, out=to_gate)
        torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        torch.mul(gradient, activated, out=to_up)
        return both
