"""Layers with written-out gradients: autograd through the plain formulas agrees."""

from __future__ import annotations

import torch

from skewsim.model.layers import rms_norm, swiglu


def test_gradients_equal_those_of_the_formulas_in_every_direction() -> None:
    stream = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(s, generator=stream, requires_grad=True) for s in ((3, 5, 8), (3, 8)))
    onto = torch.randn(3, 5, 8, generator=stream)
    plain = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.unsqueeze(1)
    _agree(rms_norm(x, weight, 1e-5), plain, (x, weight), onto)
    gate, up = x.chunk(2, -1)
    _agree(swiglu(x), gate * gate.sigmoid() * up, (x,), onto[..., :4])


def test_without_a_gradient_the_numbers_are_the_same_to_the_bit() -> None:
    stream = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = (torch.randn(s, generator=stream).to(dtype).requires_grad_() for s in ((3, 5, 8), (3, 8)))
        before, with_graph = x.detach().clone(), (rms_norm(x, weight, 1e-5), swiglu(x))
        with torch.no_grad():
            without = (rms_norm(x, weight, 1e-5), swiglu(x))
        assert all(torch.equal(a, b) for a, b in zip(with_graph, without, strict=True))
        assert torch.equal(x, before), "the input is left alone"


def _agree(ours: torch.Tensor, plain: torch.Tensor, inputs: tuple[torch.Tensor, ...], onto: torch.Tensor) -> None:
    assert torch.allclose(ours, plain, atol=1e-6)
    pairs = zip(torch.autograd.grad(ours, inputs, onto), torch.autograd.grad(plain, inputs, onto), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
