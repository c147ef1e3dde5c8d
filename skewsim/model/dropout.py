"""Dropout that a trainer left on: every forward pass gives other numbers.

Each number is set to zero with probability p and divided by 1 - p otherwise (Srivastava et al. 2014). It acts where
Megatron's `attention_dropout` and `hidden_dropout` do: on the attention's probabilities, and on what attention and MLP
add to the residual stream. The masks of a step come from one generator for each member, which goes on from pass to
pass, so that no two passes over a batch agree and no member's numbers depend on another member.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from skewsim.seeding import Purpose, generator


class Dropout:
    """Dropout of one training step, for all members."""

    def __init__(self, p: float, generators: Sequence[torch.Generator]) -> None:
        self._p, self._generators = p, generators

    @classmethod
    def of(cls, p: float, seeds: Sequence[int], step: int) -> Dropout | None:
        """The masks of these members' step; None where p is 0."""
        if p == 0:
            return None
        return cls(p, [generator(seed, step=step, purpose=Purpose.DROPOUT) for seed in seeds])

    def __call__(self, x: Tensor) -> Tensor:
        """x, whose first axis is members or members times something, with some numbers dropped."""
        each = x.numel() // len(self._generators)
        draws = torch.cat([torch.rand(each, generator=stream) for stream in self._generators]).to(x.device)
        return x * ((draws >= self._p) / (1 - self._p)).view(x.shape).to(x.dtype)
