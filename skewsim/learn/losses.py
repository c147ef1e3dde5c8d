"""The inputs and outputs of a loss.

Axes: N sequences, T response tokens; leading axes (an ensemble) are allowed before N, but not in ``group_ids``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from skewsim.errors import UserError


@dataclass(frozen=True)
class LossInputs:
    """What a loss is computed from. Leading axes (an ensemble) are allowed before N, in every tensor but group_ids."""

    trainer_logprobs: Tensor
    """(..., N, T) under the policy being trained; the only input with a gradient."""
    old_logprobs: Tensor
    """(..., N, T) the update ratio's denominator: ``engine_logprobs`` in bypass, else recomputed by the trainer."""
    engine_logprobs: Tensor
    """(..., N, T) as the engine reported them."""
    mask: Tensor
    """(..., N, T) 1 where a token was sampled; the other inputs' values elsewhere are never used."""
    advantages: Tensor
    """(..., N) advantages, from ``compute_advantages`` over the whole rollout."""
    group_ids: Tensor
    """(N,) int64: equal for responses to the same prompt."""
    reference_logprobs: Tensor | None = None
    """(..., N, T) under the policy that training started from; needed where ``beta`` is not 0."""

    def __post_init__(self) -> None:
        shape = self.trainer_logprobs.shape
        expected = {"old_logprobs": shape, "engine_logprobs": shape, "mask": shape}
        expected |= {"advantages": shape[:-1], "group_ids": shape[-2:-1]}
        if self.reference_logprobs is not None:
            expected["reference_logprobs"] = shape
        for name, allowed in expected.items():
            found = getattr(self, name).shape
            if found != allowed:
                raise UserError(f"{name} has shape {tuple(found)}; allowed: {tuple(allowed)}")


@dataclass(frozen=True)
class LossOutputs:
    """The loss ``(...)`` to minimise, and its metrics: detached tensors ``(...)``, or floats without leading axes."""

    loss: Tensor
    metrics: dict[str, Tensor | float]
