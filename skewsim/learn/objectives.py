"""The objectives: rewards to advantages, and logprobs to one loss per ensemble member.

With ``r = exp(trainer - old)``, advantage ``A`` and correction weight ``w`` (see ``corrections``), an objective is a
loss per token, times ``w``, and a normaliser. ``OBJECTIVES`` at the end says which function, normaliser and advantage
each of them has; what else there is to know of one (formula, default bounds, source, names elsewhere) is its row in
`skewsim.catalogue`. To add one: its function and its line in ``OBJECTIVES`` here, its row there.

There is no critic: PPO whitens rewards over the batch. Every reduction is over the last two axes, so members of an
ensemble are independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from skewsim.catalogue import find_form
from skewsim.errors import UserError
from skewsim.learn.advantages import (
    batch_centered,
    batch_normalised,
    globally_normalised,
    group_centered,
    group_normalised,
    leave_one_out,
    whitened_over_tokens,
    without_spread,
)
from skewsim.learn.clipping import clip_bounds, epsilons, form
from skewsim.learn.corrections import compute_weights
from skewsim.learn.losses import LossInputs, LossOutputs
from skewsim.settings import TrainerSettings

Normaliser = Literal["token", "sequence", "sequence_sum", "constant"]


@dataclass(frozen=True)
class Batch:
    """What an objective sees: logprobs and log-ratios are 0 where the mask is False, whatever stands there."""

    inputs: LossInputs
    mask: Tensor  # (..., N, T) bool: the tokens that count
    advantages: Tensor  # (..., N, 1)

    @property
    def logprobs(self) -> Tensor:
        return torch.where(self.mask, self.inputs.trainer_logprobs, 0.0)

    @property
    def engine(self) -> Tensor:
        return torch.where(self.mask, self.inputs.engine_logprobs, 0.0)

    @property
    def log_ratio(self) -> Tensor:
        return torch.where(self.mask, self.inputs.trainer_logprobs - self.inputs.old_logprobs, 0.0)


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
    corrected = settings.correction.active
    weights, counted = compute_weights(inputs, settings)
    sampled = inputs.mask > 0
    mask = counted > 0 if corrected else sampled
    if objective.drops_equal_groups:
        mask = mask & ~without_spread(inputs.advantages, inputs.group_ids).unsqueeze(-1)
    batch = Batch(inputs, mask, inputs.advantages.unsqueeze(-1))
    terms = objective.loss(batch, settings)
    per_token = terms.loss * weights if corrected else terms.loss
    if terms.penalty is not None:
        per_token = per_token + terms.penalty
    kl = _kl_to_reference(inputs, sampled) if settings.beta else None
    if kl is not None:
        per_token = per_token + settings.beta * (kl * _kl_weight(batch, settings))
    loss = _normalise(torch.where(mask, per_token, 0.0), mask, sampled, objective.normaliser)
    return LossOutputs(loss, _metrics(inputs, terms, weights, sampled, kl, corrected=corrected))


def objective_terms(inputs: LossInputs, settings: TrainerSettings) -> Terms:
    """The objective's own terms on every sampled token, before corrections and the normaliser."""
    batch = Batch(inputs, inputs.mask > 0, inputs.advantages.unsqueeze(-1))
    return find_objective(settings).loss(batch, settings)


def compute_advantages(
    rewards: Tensor, group_ids: Tensor, settings: TrainerSettings, *, lengths: Tensor | None = None
) -> Tensor:
    """Advantages ``(..., N)`` of rewards ``(..., N)``: over the whole rollout, before it is cut into minibatches.

    `lengths` ``(..., N)``, the sequences' sampled tokens, are needed where `settings.whiten_over` is tokens.
    UserError if they are missing then.
    """
    objective = find_objective(settings)
    if settings.whiten_over == "sequences" or objective.centered is None:
        return objective.advantage(rewards, group_ids)
    if lengths is None:
        raise UserError('trainer.whiten_over="tokens" needs the lengths of the sequences: compute_advantages(lengths=)')
    return whitened_over_tokens(objective.centered(rewards, group_ids), lengths.to(rewards.dtype))


def _kl_to_reference(inputs: LossInputs, sampled: Tensor) -> Tensor:
    """k3 of each sampled token towards the policy that training started from (..., N, T)."""
    if inputs.reference_logprobs is None:
        raise UserError("beta needs reference_logprobs; they are None")
    gap = torch.where(sampled, inputs.reference_logprobs - inputs.trainer_logprobs, 0.0)
    return gap.exp() - gap - 1


def _kl_weight(batch: Batch, settings: TrainerSettings) -> Tensor | float:
    """What the penalty is multiplied by: the update ratio, where that is asked for, as the objective has it."""
    if not settings.use_bias_correction_kl:
        return 1.0
    if find_form(settings).clip == "sequence_mean":
        return _sequence_mean_log_ratio(batch).exp()
    return batch.log_ratio.exp()


# Objectives: (Batch, settings) -> Terms


def score(batch: Batch, settings: TrainerSettings) -> Terms:
    """REINFORCE: ``-A logprob``."""
    return Terms(-batch.advantages * batch.logprobs)


def clipped_ratio(batch: Batch, settings: TrainerSettings) -> Terms:
    """PPO's clip on each token's ratio."""
    return _clip(batch.log_ratio.exp(), batch, settings)


def sequence_mean_ratio(batch: Batch, settings: TrainerSettings) -> Terms:
    """GSPO: PPO's clip on the geometric mean of a sequence's ratios."""
    return _clip(_sequence_mean_log_ratio(batch).exp(), batch, settings)


def _sequence_mean_log_ratio(batch: Batch) -> Tensor:
    return batch.log_ratio.sum(-1, keepdim=True) / batch.mask.sum(-1, keepdim=True).clamp(min=1)


def sequence_sum_ratio(batch: Batch, settings: TrainerSettings) -> Terms:
    """RLOO as TRL clips it: PPO's clip on the ratio of whole sequences."""
    terms = _clip(batch.log_ratio.sum(-1, keepdim=True).exp(), batch, settings)
    # spread over the sequence's tokens, which the normaliser sums up again
    tokens = batch.mask.sum(-1, keepdim=True).clamp(min=1)
    return replace(terms, loss=terms.loss / tokens)


def _clip(ratio: Tensor, batch: Batch, settings: TrainerSettings) -> Terms:
    low, high = clip_bounds(settings)
    delta = settings.delta
    bounded = ratio if delta is None else ratio.clamp(max=delta)  # bites only where A < 0: delta > high
    loss = -torch.min(bounded * batch.advantages, ratio.clamp(low, high) * batch.advantages)
    return Terms(loss, ratio, low, high)


def capped_weight(batch: Batch, settings: TrainerSettings) -> Terms:
    """CISPO: the ratio, capped and detached, weighs the score."""
    _, cap = clip_bounds(settings)
    ratio = batch.log_ratio.detach().exp()
    return Terms(-ratio.clamp(max=cap) * batch.advantages * batch.logprobs, ratio, None, cap)


def soft_gate(batch: Batch, settings: TrainerSettings) -> Terms:
    """SAPO: a sigmoid around ratio 1 in place of the clip, with slope 1 there and a temperature for each sign of A."""
    positive = torch.full_like(batch.advantages, settings.sapo_temperature_pos)
    temperature = torch.where(batch.advantages > 0, positive, settings.sapo_temperature_neg)
    gate = (temperature * (batch.log_ratio.exp() - 1)).sigmoid() * 4 / temperature
    return Terms(-gate * batch.advantages)


def trust_region(batch: Batch, settings: TrainerSettings, penalty: float = 1e-3) -> Terms:
    """DPPO: a token counts until its probability has moved beyond the bound in the advantage's direction.

    The penalty on the squared log-ratio is prime-rl's `kl_tau`.
    """
    low, high = _epsilons(settings)
    moved = batch.logprobs.detach().exp() - batch.engine.exp()
    dropped = ((moved < -low) & (batch.advantages < 0)) | ((moved > high) & (batch.advantages > 0))
    return _unless(dropped, batch, Terms(moved, moved, -low, high), penalty)


def symmetric_trust_region(batch: Batch, settings: TrainerSettings, penalty: float = 1e-3) -> Terms:
    """IPO as prime-rl has it: a token counts while its probability has not moved beyond the bound, whichever way."""
    low, high = _epsilons(settings)
    moved = batch.logprobs.detach().exp() - batch.engine.exp()
    return _unless((moved < -low) | (moved > high), batch, Terms(moved, moved, -low, high), penalty)


def _unless(dropped: Tensor, batch: Batch, terms: Terms, penalty: float) -> Terms:
    """``-rho A`` of the tokens that are not dropped, and the penalty of all of them."""
    log_ratio = batch.logprobs - batch.engine
    loss = torch.where(dropped, 0.0, -log_ratio.exp() * batch.advantages)
    return replace(terms, loss=loss, penalty=penalty * log_ratio.square())


def divergence_trust_region(batch: Batch, settings: TrainerSettings, cap: float = 20.0) -> Terms:
    """DPPO by divergence, as verl has it: a token counts until KL(old, new) of "this token or another" is too large.

    The ratio is capped, detached, and weighs the score. Signed as the probability moved, the divergence is held inside
    [-epsilon, epsilon_high], and a token is dropped on the side that its advantage pushes to.
    """
    low, high = _epsilons(settings)
    logprobs, old = batch.logprobs.detach(), torch.where(batch.mask, batch.inputs.old_logprobs, 0.0)
    p_new, p_old = (x.exp().clamp(max=1.0) for x in (logprobs, old))
    rest = (1 - p_old) * ((1 - p_old + 1e-8) / (1 - p_new + 1e-8)).log()
    divergence = (p_old * (old - logprobs) + rest) * (p_new - p_old).sign()
    dropped = ((divergence < -low) & (batch.advantages <= 0)) | ((divergence > high) & (batch.advantages > 0))
    ratio = (logprobs - old).clamp(-20, 20).exp().clamp(max=cap)
    loss = torch.where(dropped, 0.0, -ratio * batch.advantages * batch.logprobs)
    return Terms(loss, divergence, -low, high)


def _epsilons(settings: TrainerSettings) -> tuple[float, float]:
    """Both epsilons of an objective that has both."""
    low, high = epsilons(settings)
    assert low is not None
    assert high is not None
    return low, high


def geometric_mean_ratio(batch: Batch, settings: TrainerSettings) -> Terms:
    """GMPO: the geometric mean of a sequence's ratios, each bounded on the side that the advantage pushes to."""
    low, high = _epsilons(settings)
    tokens = batch.mask.sum(-1, keepdim=True).clamp(min=1)
    held = torch.where(batch.advantages > 0, batch.log_ratio.clamp(max=high), batch.log_ratio.clamp(min=-low))
    loss = -(held.sum(-1, keepdim=True) / tokens).exp() * batch.advantages
    return Terms(loss, batch.log_ratio.exp(), *clip_bounds(settings))


def covariance_clip(batch: Batch, settings: TrainerSettings, share: float = 2e-4) -> Terms:
    """Clip-Cov: PPO's clip, and no loss for a few tokens whose covariance of advantage and logprob is in (1, 5).

    At most ``share`` of the tokens, but one at least (verl `clip_cov_ratio`). Where more are eligible, verl draws among
    them; here the order of the draw is fixed for a shape, so that a run stays a function of its seed.
    """
    terms = _clip(batch.log_ratio.exp(), batch, settings)
    covariance = _covariance(batch)
    binding = terms.loss.detach() > (-batch.log_ratio.exp() * batch.advantages).detach()
    eligible = batch.mask & ~binding & (covariance > 1) & (covariance < 5)
    shape = covariance.shape[-2:]
    order = torch.randperm(shape.numel(), generator=torch.Generator().manual_seed(0)).reshape(shape)
    order = order.to(covariance)
    chosen = _least(order.expand_as(covariance), eligible, _few(batch, share))
    return replace(terms, loss=torch.where(chosen, 0.0, terms.loss))


def covariance_penalty(batch: Batch, settings: TrainerSettings, share: float = 2e-4, weight: float = 1.0) -> Terms:
    """KL-Cov: the plain ratio, and ``weight |lp_t - lp_o|`` on the tokens whose covariance is greatest.

    ``share`` of the tokens, but one at least (verl `kl_cov_ratio`, `ppo_kl_coef`).
    """
    chosen = _least(-_covariance(batch), batch.mask, _few(batch, share))
    loss = -batch.log_ratio.exp() * batch.advantages
    return Terms(loss + torch.where(chosen, weight * batch.log_ratio.abs(), 0.0))


def _covariance(batch: Batch) -> Tensor:
    """Each token's share (..., N, T) in the covariance of advantage and logprob over all tokens, detached."""
    advantages, logprobs = batch.advantages.expand_as(batch.logprobs), batch.logprobs.detach()
    return _less_mean(advantages, batch.mask) * _less_mean(logprobs, batch.mask)


def _less_mean(values: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum((-2, -1), keepdim=True).clamp(min=1)
    return values - torch.where(mask, values, 0.0).sum((-2, -1), keepdim=True) / count


def _few(batch: Batch, share: float) -> Tensor:
    """How many tokens (..., 1) a share of them is; one at least."""
    return (batch.mask.sum((-2, -1)).double() * share).floor().clamp(min=1).unsqueeze(-1)


def _least(values: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """(..., N, T) bool: of the eligible tokens the ``count`` with the least values, the first of equals first."""
    flat = torch.where(eligible, values, torch.inf).flatten(-2)
    rank = flat.argsort(dim=-1, stable=True).argsort(dim=-1)
    return (rank < count).reshape(values.shape) & eligible


# The registry


@dataclass(frozen=True)
class Objective:
    """How an objective is computed; what else there is to know of it is in `skewsim.catalogue`."""

    loss: Callable[[Batch, TrainerSettings], Terms]
    normaliser: Normaliser
    advantage: Callable[[Tensor, Tensor], Tensor]
    drops_equal_groups: bool = False
    """Whether groups whose rewards are all equal leave the batch."""
    centered: Callable[[Tensor, Tensor], Tensor] | None = None
    """For an advantage that is whitened over the batch: what is whitened."""


OBJECTIVES: dict[str, Objective] = {
    "reinforce": Objective(score, "sequence_sum", batch_centered),
    "rloo": Objective(score, "sequence_sum", leave_one_out),
    "rloo/clipped": Objective(sequence_sum_ratio, "sequence_sum", leave_one_out),
    "reinforce_pp": Objective(clipped_ratio, "token", globally_normalised, centered=group_centered),
    "ppo": Objective(clipped_ratio, "token", batch_normalised, centered=batch_centered),
    "grpo": Objective(clipped_ratio, "sequence", group_normalised),
    "dr_grpo": Objective(clipped_ratio, "constant", group_centered),
    "dapo": Objective(clipped_ratio, "token", group_normalised, drops_equal_groups=True),
    "gspo/paper": Objective(sequence_mean_ratio, "sequence", group_normalised),
    "gspo/pipelinerl": Objective(sequence_mean_ratio, "sequence_sum", leave_one_out),
    "cispo": Objective(capped_weight, "token", group_normalised),
    "sapo": Objective(soft_gate, "sequence", group_normalised),
    "dppo": Objective(trust_region, "token", group_centered),
    "dppo_kl": Objective(divergence_trust_region, "token", group_normalised),
    "ipo": Objective(symmetric_trust_region, "token", group_centered),
    "geo_mean": Objective(geometric_mean_ratio, "sequence", group_normalised),
    "clip_cov": Objective(covariance_clip, "token", group_normalised),
    "kl_cov": Objective(covariance_penalty, "token", group_normalised),
}


def find_objective(settings: TrainerSettings) -> Objective:
    """The registry's entry for these settings."""
    return OBJECTIVES[form(settings)]


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


@torch.no_grad()
def _metrics(
    inputs: LossInputs, terms: Terms, weights: Tensor, sampled: Tensor, kl: Tensor | None, *, corrected: bool
) -> dict[str, Tensor | float]:
    tokens = sampled.to(weights.dtype)
    metrics = _ratio_metrics(inputs, sampled, tokens)
    metrics |= _clip_metrics(terms, inputs.advantages.unsqueeze(-1), tokens)
    metrics |= _correction_metrics(weights, tokens, corrected=corrected)
    if kl is not None:
        metrics["policy/kl_reference"] = _share(kl.detach(), tokens)
    if weights.ndim > 2:
        return dict(metrics)
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


def _ratio_metrics(inputs: LossInputs, sampled: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Mean, spread, least and greatest update ratio of the sampled tokens."""
    ratio = torch.where(sampled, inputs.trainer_logprobs - inputs.old_logprobs, 0.0).exp()
    mean = _share(ratio, tokens)
    something = _share(tokens, tokens)  # 1, or NaN if no token was sampled
    return {
        "update/ratio_mean": mean,
        "update/ratio_std": _share((ratio - mean[..., None, None]).square(), tokens).sqrt(),
        "update/ratio_min": torch.where(sampled, ratio, torch.inf).amin((-2, -1)) * something,
        "update/ratio_max": torch.where(sampled, ratio, -torch.inf).amax((-2, -1)) * something,
    }


def _clip_metrics(terms: Terms, advantages: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Share outside the bounds whatever the advantage (PipelineRL), and where the bound binds (TRL, verl), by side."""
    value = advantages if terms.clipped is None else terms.clipped
    counted = tokens.amax(-1, keepdim=True) if value.shape[-1] == 1 else tokens
    below = value < (-torch.inf if terms.low is None else terms.low)
    above = value > (torch.inf if terms.high is None else terms.high)
    return {
        "update/clip_rate": _share(below | above, counted),
        "update/clip_rate_low": _share(below & (advantages < 0), counted),
        "update/clip_rate_high": _share(above & (advantages > 0), counted),
    }


def _correction_metrics(weights: Tensor, tokens: Tensor, *, corrected: bool) -> dict[str, Tensor]:
    """Mean weight of the tokens kept, share of sampled tokens kept, and effective share of the sampled tokens."""
    if not corrected:
        something = _share(tokens, tokens)
        return {f"correction/{name}": something for name in ("weight_mean", "kept", "ess")}
    kept = (weights != 0).to(tokens.dtype)
    return {
        "correction/weight_mean": _share(weights, kept),
        "correction/kept": _share(kept, tokens),
        "correction/ess": weights.sum((-2, -1)).square() / (tokens.sum((-2, -1)) * weights.square().sum((-2, -1))),
    }


def _share(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over what is counted; NaN if that is nothing."""
    return (values * counted).sum((-2, -1)) / counted.sum((-2, -1))
