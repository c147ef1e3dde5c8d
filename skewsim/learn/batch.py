"""A rollout with everything that the loss needs, and the minibatches of it.

Axes: E member, N sequences, T response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from skewsim.engine.rollouts import Rollouts
from skewsim.learn.losses import LossInputs


@dataclass(frozen=True)
class Batch:
    """A rollout, or some of its prompts, with everything that the loss needs."""

    rollouts: Rollouts
    old: Tensor
    advantages: Tensor
    group_ids: Tensor
    mask: Tensor
    reference: Tensor | None = None
    replayed: Tensor | None = None
    """Experts that the update uses, as `Rollouts.routed_experts`; None: those that its routers choose."""

    def loss_inputs(self, trainer_logprobs: Tensor) -> LossInputs:
        return LossInputs(
            trainer_logprobs=trainer_logprobs,
            old_logprobs=self.old,
            engine_logprobs=self.rollouts.engine_logprobs,
            mask=self.mask,
            advantages=self.advantages,
            group_ids=self.group_ids,
            reference_logprobs=self.reference,
        )

    def minibatches(self, count: int) -> list[Batch]:
        """Split the batch into equal numbers of whole groups, in order (prompts were drawn at random)."""
        size = self.old.shape[1] // count
        return [self._rows(slice(i * size, (i + 1) * size)) for i in range(count)]

    def _rows(self, rows: slice) -> Batch:
        reference, replayed = (None if x is None else x[:, rows] for x in (self.reference, self.replayed))
        return Batch(
            some(self.rollouts, rows),
            self.old[:, rows],
            self.advantages[:, rows],
            self.group_ids[rows],
            self.mask[:, rows],
            reference,
            replayed,
        )


def some(rollouts: Rollouts, rows: slice) -> Rollouts:
    """Some sequences of a rollout."""
    parts: dict[str, Any] = {name: None if t is None else t[:, rows] for name, t in vars(rollouts).items()}
    return Rollouts(**parts)
