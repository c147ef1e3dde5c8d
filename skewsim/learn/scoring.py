"""The trainer's side of a rollout: logprobs of its tokens, with gradient, and its rewards and advantages.

A prompt is computed once for all its responses: its rows are put before the responses' rows, row-wise layers process
all rows as one long batch, and only the attention depends on which response belongs to which prompt. The numbers equal
those of G separate sequences (tested against transformers), with about half the work at 14 prompt and 12 response
tokens.

Axes: E member, B prompts, G responses per prompt, N = B*G, P prompt, T response, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from skewsim.learn.objectives import compute_advantages
from skewsim.model.policy import Attend, Policy, Weights, cast_weights

if TYPE_CHECKING:
    from skewsim.engine.rollouts import Rollouts
    from skewsim.settings import Scenario
    from skewsim.task import Scores


@dataclass(frozen=True)
class Scored:
    """The trainer's log-probabilities at the sampled tokens, in nats."""

    logprobs: Tensor
    """(E, N, T)."""
    distribution: Tensor
    """Log-probabilities (E, N, T, V) of all tokens."""

    @property
    def entropy(self) -> Tensor:
        """(E, N, T)."""
        each: Tensor = torch.special.entr(self.distribution.detach().exp())
        return each.sum(-1)

    @property
    def square_mass(self) -> Tensor:
        """(E, N, T) sum of the squared probabilities."""
        return self.distribution.detach().double().exp().square().sum(-1)


@dataclass(frozen=True)
class Graded:
    """A rollout's rewards and advantages."""

    rewards: Tensor
    """(E, N) exact or partial rewards, as `task.reward` says."""
    advantages: Tensor
    """(E, N)."""
    group_ids: Tensor
    """(N,) equal for responses to the same prompt."""


def grade(scores: Scores, mask: Tensor, scenario: Scenario) -> Graded:
    """Rewards and advantages of scored responses, by a scenario's task and trainer; mask (E, N, T): sampled tokens."""
    rewards = scores.exact if scenario.task.reward == "exact" else scores.partial
    group_ids = torch.arange(rewards.shape[1], device=rewards.device) // scenario.trainer.num_generations
    advantages = compute_advantages(rewards, group_ids, scenario.trainer, lengths=mask.sum(-1))
    return Graded(rewards, advantages, group_ids)


def score_rollouts(policy: Policy, rollouts: Rollouts, scenario: Scenario) -> Scored:
    """Score a rollout's tokens under a policy, in the trainer's precision and at its temperature.

    Differentiable with respect to ``policy.flat``.
    """
    trainer = scenario.trainer
    views = policy.config.views(policy.flat)
    return score(
        cast_weights(policy.config, views, dtype=trainer.dtype, head_dtype=trainer.head_dtype),
        rollouts,
        group=trainer.num_generations,
        temperature=trainer.temperature or scenario.engine.temperature,
        sampling_mask=trainer.correction.keep_sampling_mask,
    )


def score(
    weights: Weights, rollouts: Rollouts, *, group: int, temperature: float, sampling_mask: bool = False
) -> Scored:
    """Score the responses under these weights at a temperature.

    sampling_mask: compute the softmax only over the tokens that the engine's top-p/top-k left (DeepSeek-V3.2's
    keep-sampling-mask). It changes nothing if the rollouts have no such support.
    """
    logits = response_logits(weights, rollouts.prompts, rollouts.tokens, group=group) / temperature
    if sampling_mask and rollouts.support is not None:
        logits = logits.masked_fill(~rollouts.support, -math.inf)
    logprobs = logits.log_softmax(-1)
    picked = logprobs.gather(-1, rollouts.tokens.unsqueeze(-1)).squeeze(-1)
    live = rollouts.mask > 0  # elsewhere the token may lie outside the support
    return Scored(torch.where(live, picked, 0.0), logprobs)


def response_logits(weights: Weights, prompts: Tensor, tokens: Tensor, *, group: int) -> Tensor:
    """float32 logits (E, N, T, V) before each response token; prompts (E, N, P) are equal within a group."""
    members, sequences, length = prompts.shape
    family = _Family(sequences // group, group, length, tokens.shape[2] - 1)
    positions, seen = _layout(family, tokens.device)
    responses = tokens[:, :, :-1].reshape(members, family.B, -1)
    rows = torch.cat([prompts[:, ::group], responses], dim=2).flatten(1)
    hidden = weights.hidden(rows, positions, family.attend(seen))
    # the prompt's last row predicts the first token of every response to it
    read = hidden.view(members, family.B, family.rows, -1)[:, :, length - 1 :]
    logits = weights.logits(read.reshape(members, -1, read.shape[-1])).view(*read.shape[:3], -1)
    first, rest = logits.split([1, responses.shape[2]], dim=2)
    first = first.unsqueeze(3).expand(-1, -1, group, -1, -1)
    return torch.cat([first, rest.unflatten(2, (group, -1))], dim=3).flatten(1, 2)


@dataclass(frozen=True)
class _Family:
    """The rows of B prompts, each followed by its G responses: P rows, then G times Q (a response without its end)."""

    B: int
    G: int
    P: int
    Q: int

    @property
    def rows(self) -> int:
        return self.P + self.G * self.Q

    def attend(self, seen: Tensor) -> Attend:
        """Attention in which a row sees only rows of its own prompt and response."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            grouped, dtype = k.shape[2] < q.shape[2], v.dtype
            q, k, v = (x.reshape(-1, self.rows, *x.shape[2:]).transpose(1, 2).float() for x in (q, k, v))
            out = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)
            return out.transpose(1, 2).to(dtype)

        return attend


@lru_cache(maxsize=32)
def _layout(family: _Family, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions (B * rows,), and which rows of a family see which (rows, rows): their prompt and their own past."""
    place = torch.arange(family.rows, device=device)
    response = torch.where(place < family.P, -1, (place - family.P) // family.Q)
    seen = (response == -1) | (response == response.unsqueeze(1))
    seen &= place <= place.unsqueeze(1)
    return (seen.sum(1) - 1).repeat(family.B), seen
