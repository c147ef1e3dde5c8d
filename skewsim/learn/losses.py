"""What goes into a loss and what comes out of it.

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
    """(..., N, T) of the policy being trained; the only one that carries a gradient."""
    old_logprobs: Tensor
    """(..., N, T) the denominator of the update ratio: in bypass the very ``engine_logprobs``, else recomputed."""
    engine_logprobs: Tensor
    """(..., N, T) as the engine reported them."""
    mask: Tensor
    """(..., N, T) 1 where a token was sampled; what stands elsewhere is never read."""
    advantages: Tensor
    """(..., N), from ``compute_advantages`` over the whole rollout."""
    group_ids: Tensor
    """(N,) int64: which prompt's group a sequence belongs to."""
    reference_logprobs: Tensor | None = None
    """(..., N, T) of the policy that training started from; needed where ``beta`` is not 0."""

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
    """Loss ``(...)`` to minimise, and metrics: floats without a leading axis, else detached tensors ``(...)``."""

    loss: Tensor
    metrics: dict[str, Tensor | float]
