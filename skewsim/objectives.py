"""The objectives: rewards to advantages, and logprobs to one loss per ensemble member.

With ``r = exp(trainer - old)``, advantage ``A`` and correction weight ``w`` (see ``corrections``), an objective is a
loss per token, times ``w``, and a normaliser:

================  =============================================================  =======================  =============
objective         loss of a token (GSPO, RLOO: of a sequence)                    normaliser               source
================  =============================================================  =======================  =============
reinforce, rloo   ``-A logprob``; RLOO with epsilon: clipped, r of the sequence  sum; mean of sequences   2402.14740
reinforce_pp      ``-min(r A, clip(r, 1-.2, 1+.2) A)``                           mean of tokens           2501.03262
ppo               the same; delta: r at most that where A < 0 (dual clip, 3)     mean of tokens           1707.06347
grpo              the same                                                       tokens, then sequences   2402.03300
dr_grpo           the same                                                       sequences x T, constant  2503.20783
dapo              the same, high .28; groups without reward spread are dropped   mean of tokens           2503.14476
gspo, paper       the same, s = exp(mean(trainer - old)), 3e-4 / 4e-4            sequences                2507.18071
gspo, pipelinerl  the same, 2e-2 / 2e-2, weighted by the sequence's length       sequences                PipelineRL
cispo             ``-detach(min(r, 5)) A logprob``                               mean of tokens           2506.13585
dppo              ``-r A`` within .2 of the engine's probability, + 1e-3 d^2     mean of tokens           2602.04879
================  =============================================================  =======================  =============

PipelineRL's GSPO is TRL's ``luspo`` at sequence level; PPO's normaliser is TRL's ``bnpo``. DPPO's ratio is
``exp(trainer - engine)``, as in prime-rl. ``epsilon_high`` follows ``epsilon`` where both defaults are equal (as in TRL);
CISPO's is the cap itself, and DPPO's bounds are on probabilities. There is no critic: PPO whitens rewards over the batch.
Every reduction is over the last two axes, so members of an ensemble are independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from skewsim.corrections import compute_weights, has_update_ratio
from skewsim.errors import UserError
from skewsim.settings import TrainerSettings

STD_OFFSET = 1e-4  # TRL's, under every standard deviation of rewards
DPPO_PENALTY = 1e-3  # prime-rl's `kl_tau`

Normaliser = Literal["token", "sequence", "sequence_sum", "constant"]


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

    def __post_init__(self) -> None:
        shape = self.trainer_logprobs.shape
        expected = {"old_logprobs": shape, "engine_logprobs": shape, "mask": shape}
        expected |= {"advantages": shape[:-1], "group_ids": shape[-2:-1]}
        for name, allowed in expected.items():
            found = getattr(self, name).shape
            if found != allowed:
                raise UserError(f"{name} has shape {tuple(found)}; allowed: {tuple(allowed)}")


@dataclass(frozen=True)
class LossOutputs:
    """Loss ``(...)`` to minimise, and metrics: floats without a leading axis, else detached tensors ``(...)``."""

    loss: Tensor
    metrics: dict[str, Tensor | float]


@dataclass(frozen=True)
class Batch:
    """What an objective sees: logprobs and ratios are 0 and 1 where the mask is False."""

    logprobs: Tensor  # (..., N, T)
    engine: Tensor  # (..., N, T)
    log_ratio: Tensor  # (..., N, T) trainer - old
    mask: Tensor  # (..., N, T) bool
    advantages: Tensor  # (..., N, 1)
    low: float | None
    high: float | None
    delta: float | None


@dataclass(frozen=True)
class Terms:
    """An objective's loss per token or sequence, and what its clip compares with which bounds."""

    loss: Tensor  # (..., N, T) or (..., N, 1)
    clipped: Tensor | None = None  # same shape: the value that is held inside [low, high]
    low: float | None = None
    high: float | None = None
    penalty: Tensor | None = None  # (..., N, T) added after the correction's weight


def compute_loss(inputs: LossInputs, settings: TrainerSettings) -> LossOutputs:
    """The loss of ``settings.objective`` with ``settings.correction`` applied, and its metrics.

    Rejected tokens leave as ``correction.masking`` says. A batch without tokens has loss 0 and gradient 0, and
    metrics that are NaN, for there is nothing to measure.
    """
    objective = find_objective(settings)
    weights, counted = compute_weights(inputs, settings)
    sampled, mask = inputs.mask > 0, counted > 0
    if settings.objective == "dapo":
        mask = mask & ~_without_spread(inputs)
    batch = _batch(inputs, mask, objective, settings)
    terms = objective.loss(batch)
    per_token = terms.loss * weights
    if terms.penalty is not None:
        per_token = per_token + terms.penalty
    loss = _normalise(torch.where(mask, per_token, 0.0), mask, sampled, objective.normaliser)
    with torch.no_grad():
        metrics = _ratio_metrics(inputs, sampled)
        metrics |= _clip_metrics(terms, batch.advantages, sampled)
        metrics |= _correction_metrics(weights, counted > 0, sampled)
    if loss.ndim == 0:
        return LossOutputs(loss, {key: value.item() for key, value in metrics.items()})
    return LossOutputs(loss, dict(metrics))


def _batch(inputs: LossInputs, mask: Tensor, objective: Objective, settings: TrainerSettings) -> Batch:
    symmetric = objective.high == objective.low
    low = objective.low if settings.epsilon is None else settings.epsilon
    high = settings.epsilon_high
    if high is None:
        high = low if symmetric else objective.high
    return Batch(
        logprobs=torch.where(mask, inputs.trainer_logprobs, 0.0),
        engine=torch.where(mask, inputs.engine_logprobs, 0.0),
        log_ratio=torch.where(mask, inputs.trainer_logprobs - inputs.old_logprobs, 0.0),
        mask=mask,
        advantages=inputs.advantages.unsqueeze(-1),
        low=low,
        high=high,
        delta=settings.delta,
    )


# Objectives: Batch -> Terms


def score(batch: Batch) -> Terms:
    """REINFORCE: ``-A logprob``."""
    return Terms(-batch.advantages * batch.logprobs)


def clipped_ratio(batch: Batch) -> Terms:
    """PPO's clip on each token's ratio."""
    return _clip(batch.log_ratio.exp(), batch)


def sequence_mean_ratio(batch: Batch) -> Terms:
    """GSPO: PPO's clip on the geometric mean of a sequence's ratios."""
    tokens = batch.mask.sum(-1, keepdim=True).clamp(min=1)
    return _clip((batch.log_ratio.sum(-1, keepdim=True) / tokens).exp(), batch)


def sequence_sum_ratio(batch: Batch) -> Terms:
    """RLOO as TRL clips it: PPO's clip on the ratio of whole sequences."""
    terms = _clip(batch.log_ratio.sum(-1, keepdim=True).exp(), batch)
    # spread over the sequence's tokens, which the normaliser sums up again
    tokens = batch.mask.sum(-1, keepdim=True).clamp(min=1)
    return Terms(terms.loss / tokens, terms.clipped, terms.low, terms.high)


def _clip(ratio: Tensor, batch: Batch) -> Terms:
    assert batch.low is not None
    assert batch.high is not None
    low, high = 1 - batch.low, 1 + batch.high
    bounded = ratio if batch.delta is None else ratio.clamp(max=batch.delta)  # bites only where A < 0: delta > high
    loss = -torch.min(bounded * batch.advantages, ratio.clamp(low, high) * batch.advantages)
    return Terms(loss, ratio, low, high)


def capped_weight(batch: Batch) -> Terms:
    """CISPO: the ratio, capped and detached, weighs the score."""
    ratio = batch.log_ratio.detach().exp()
    return Terms(-ratio.clamp(max=batch.high) * batch.advantages * batch.logprobs, ratio, None, batch.high)


def trust_region(batch: Batch) -> Terms:
    """DPPO: a token counts until its probability has moved beyond the bound in the advantage's direction."""
    assert batch.low is not None
    assert batch.high is not None
    moved = batch.logprobs.detach().exp() - batch.engine.exp()
    dropped = _beyond(moved, -batch.low, batch.high, batch.advantages)
    log_ratio = batch.logprobs - batch.engine
    loss = torch.where(dropped, 0.0, -log_ratio.exp() * batch.advantages)
    return Terms(loss, moved, -batch.low, batch.high, penalty=DPPO_PENALTY * log_ratio.square())


def _beyond(value: Tensor, low: float | None, high: float | None, advantages: Tensor) -> Tensor:
    """Where a bound binds: below low with a negative advantage, or above high with a positive one."""
    below = value < low if low is not None else torch.zeros_like(value, dtype=torch.bool)
    above = value > high if high is not None else torch.zeros_like(value, dtype=torch.bool)
    return (below & (advantages < 0)) | (above & (advantages > 0))


# Advantages


@dataclass(frozen=True)
class Groups:
    """Sequences sorted into groups of any size: ``members`` (K, largest) are positions, valid where ``present``."""

    members: Tensor
    present: Tensor
    group_of: Tensor  # (N,) row of each sequence

    @classmethod
    def of(cls, group_ids: Tensor) -> Groups:
        """Groups by id; where no two sequences share one, the whole batch is the group."""
        unique, group_of, counts = torch.unique(group_ids, return_inverse=True, return_counts=True)
        if len(unique) == len(group_ids):
            group_of, counts = torch.zeros_like(group_of), counts.sum(0, keepdim=True)
        place = torch.arange(int(counts.max()), device=counts.device)
        present = place < counts.unsqueeze(-1)
        members = torch.zeros_like(present, dtype=torch.int64)
        members[present] = torch.argsort(group_of, stable=True)
        return cls(members, present, group_of)

    @classmethod
    def whole(cls, group_ids: Tensor) -> Groups:
        """The batch as one group."""
        return cls.of(torch.zeros_like(group_ids))

    def sum(self, values: Tensor) -> Tensor:
        """(..., N) -> (..., N): each sequence's group sum."""
        return torch.where(self.present, values[..., self.members], 0.0).sum(-1)[..., self.group_of]

    def center(self, values: Tensor) -> Tensor:
        """Values less their group's mean; exactly 0 in a group without spread, whatever the mean's rounding."""
        first = values[..., self.members[:, 0]][..., self.group_of]
        differs = self.sum((values != first).to(values.dtype)) > 0
        return torch.where(differs, values - self.sum(values) / self.size(values), 0.0)

    def size(self, values: Tensor) -> Tensor:
        """(N,) how many share each sequence's group."""
        return self.present.sum(-1)[self.group_of].to(values.dtype)

    def std(self, values: Tensor) -> Tensor:
        """(..., N) unbiased standard deviation of each sequence's group (as in TRL), 0 in a group of one."""
        variance = self.sum(self.center(values).square()) / (self.size(values) - 1).clamp(min=1)
        return variance.sqrt()


def compute_advantages(rewards: Tensor, group_ids: Tensor, settings: TrainerSettings) -> Tensor:
    """Advantages ``(..., N)`` of rewards ``(..., N)``: over the whole rollout, before it is cut into minibatches."""
    return find_objective(settings).advantage(rewards, group_ids)


def batch_centered(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """REINFORCE's baseline: the batch's mean reward."""
    return Groups.whole(group_ids).center(rewards)


def batch_normalised(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """PPO without a critic: whitened over the batch."""
    return _normalised(rewards, Groups.whole(group_ids))


def group_centered(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Dr.GRPO, DPPO: the group's mean taken off, no standard deviation."""
    return Groups.of(group_ids).center(rewards)


def group_normalised(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """GRPO: ``(R - mean) / (std + 1e-4)`` of the group."""
    return _normalised(rewards, Groups.of(group_ids))


def leave_one_out(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """RLOO: the mean of the others is the baseline, ``R_i - mean_{j!=i} R_j = (R_i - mean) G / (G - 1)``."""
    groups = Groups.of(group_ids)
    size = groups.size(rewards)
    return groups.center(rewards) * size / (size - 1).clamp(min=1)


def globally_normalised(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """REINFORCE++: the group's mean taken off, then whitened over the batch."""
    return _normalised(group_centered(rewards, group_ids), Groups.whole(group_ids))


def _normalised(rewards: Tensor, groups: Groups) -> Tensor:
    return groups.center(rewards) / (groups.std(rewards) + STD_OFFSET)


def _without_spread(inputs: LossInputs) -> Tensor:
    """(..., N, 1): DAPO's dropped groups, those whose advantages are all exactly 0."""
    groups = Groups.of(inputs.group_ids)
    return (groups.sum((inputs.advantages != 0).to(inputs.mask.dtype)) == 0).unsqueeze(-1)


# The registry


@dataclass(frozen=True)
class Objective:
    """An objective: its loss, normaliser, advantage and default clip bounds."""

    loss: Callable[[Batch], Terms]
    normaliser: Normaliser
    advantage: Callable[[Tensor, Tensor], Tensor]
    low: float | None = None
    high: float | None = None


OBJECTIVES: dict[str, Objective] = {
    "reinforce": Objective(score, "sequence_sum", batch_centered),
    "rloo": Objective(score, "sequence_sum", leave_one_out),
    "rloo/clipped": Objective(sequence_sum_ratio, "sequence_sum", leave_one_out),
    "reinforce_pp": Objective(clipped_ratio, "token", globally_normalised, 0.2, 0.2),
    "ppo": Objective(clipped_ratio, "token", batch_normalised, 0.2, 0.2),
    "grpo": Objective(clipped_ratio, "sequence", group_normalised, 0.2, 0.2),
    "dr_grpo": Objective(clipped_ratio, "constant", group_centered, 0.2, 0.2),
    "dapo": Objective(clipped_ratio, "token", group_normalised, 0.2, 0.28),
    "gspo/paper": Objective(sequence_mean_ratio, "sequence", group_normalised, 3e-4, 4e-4),
    "gspo/pipelinerl": Objective(sequence_mean_ratio, "sequence_sum", leave_one_out, 2e-2, 2e-2),
    "cispo": Objective(capped_weight, "token", group_normalised, None, 5.0),
    "dppo": Objective(trust_region, "token", group_centered, 0.2, 0.2),
}


def find_objective(settings: TrainerSettings) -> Objective:
    """The registry's entry for these settings; GSPO has two forms, and RLOO with an epsilon is TRL's clipped one."""
    name: str = settings.objective
    if name == "gspo":
        name = f"gspo/{settings.gspo_form}"
    elif name == "rloo" and has_update_ratio(settings):
        name = "rloo/clipped"
    return OBJECTIVES[name]


def _normalise(per_token: Tensor, mask: Tensor, sampled: Tensor, normaliser: Normaliser) -> Tensor:
    """(..., N, T) -> (...). Sequences that a rejection emptied do not count; those empty from the start do (TRL)."""
    if normaliser == "token":
        return per_token.sum((-2, -1)) / mask.sum((-2, -1)).clamp(min=1)
    removed = sampled.any(-1) & ~mask.any(-1)
    sequences = (~removed).sum(-1).clamp(min=1)
    if normaliser == "sequence":
        return (per_token.sum(-1) / mask.sum(-1).clamp(min=1)).sum(-1) / sequences
    length = per_token.shape[-1] if normaliser == "constant" else 1
    return per_token.sum((-2, -1)) / (sequences * length)


# Metrics


def _ratio_metrics(inputs: LossInputs, sampled: Tensor) -> dict[str, Tensor]:
    """Mean, spread, least and greatest update ratio of the sampled tokens."""
    ratio = torch.where(sampled, inputs.trainer_logprobs - inputs.old_logprobs, 0.0).exp()
    mean = _share(ratio, sampled)
    spread = _share((ratio - mean[..., None, None]).square(), sampled).sqrt()
    nothing = torch.where(sampled.any(-1).any(-1), 0.0, torch.nan)
    return {
        "update/ratio_mean": mean,
        "update/ratio_std": spread,
        "update/ratio_min": torch.where(sampled, ratio, torch.inf).amin((-2, -1)) + nothing,
        "update/ratio_max": torch.where(sampled, ratio, -torch.inf).amax((-2, -1)) + nothing,
    }


def _clip_metrics(terms: Terms, advantages: Tensor, sampled: Tensor) -> dict[str, Tensor]:
    """Share outside the bounds whatever the advantage (PipelineRL), and where the bound binds (TRL, verl), by side."""
    value = terms.clipped if terms.clipped is not None else torch.zeros_like(advantages)
    never = torch.zeros_like(value, dtype=torch.bool)
    below = value < terms.low if terms.low is not None else never
    above = value > terms.high if terms.high is not None else never
    counted = sampled.any(-1, keepdim=True) if value.shape[-1] == 1 else sampled
    return {
        "update/clip_rate": _share(below | above, counted),
        "update/clip_rate_low": _share(below & (advantages < 0), counted),
        "update/clip_rate_high": _share(above & (advantages > 0), counted),
    }


def _correction_metrics(weights: Tensor, mask: Tensor, sampled: Tensor) -> dict[str, Tensor]:
    """Mean weight of the tokens that count, share of sampled tokens kept, and effective share after weighting."""
    total, squares = weights.sum((-2, -1)), weights.square().sum((-2, -1))
    return {
        "correction/weight_mean": _share(weights, mask),
        "correction/kept": _share(weights != 0, sampled),
        "correction/ess": total.square() / (sampled.sum((-2, -1)) * squares),
    }


def _share(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over what is counted; NaN if that is nothing."""
    counted = counted.to(torch.float32) if not values.is_floating_point() else counted.to(values.dtype)
    return (values * counted).sum((-2, -1)) / counted.sum((-2, -1))
