"""Every metric, once: its formula, its unit, and what other frameworks call it.

The skew of a token is ``d = trainer - engine`` in nats, its ratio ``rho = exp(d)``. With a mask, means are over sampled
tokens, or over sequences that have one. A token whose pair of logprobs is not finite is left out (``count_nonfinite``
says how many there are); a metric with nothing to measure is NaN, never 0. Sequence exponents are held inside +-20, as in
verl; effective sample sizes are of the raw ratios, where verl takes truncated ones, which look better.

The laws at the end are what independent Gaussian noise on each logit gives in first order, from
``d(a) = eta_a - sum_v p_v eta_v``; they tell noise of a known size from anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skewsim.catalogue import SEQUENCE_EXPONENT

TOKENS = (-2, -1)
SEQUENCES = (-1,)

Array = Tensor | NDArray[np.floating]


@dataclass(frozen=True)
class Metric:
    """A record key with its meaning; ``aliases`` maps a framework to its name for the same, or nearly the same, number."""

    key: str
    formula: str
    unit: str
    description: str
    aliases: dict[str, str]


@dataclass(frozen=True)
class ProbabilityBin:
    """Skew of the tokens whose probability lies in [low, high)."""

    low: float
    high: float
    tokens: int
    abs_mean: float
    rms: float
    bias: float


def skew_metrics(trainer_logprobs: Array, engine_logprobs: Array, mask: Array) -> dict[str, float]:
    """Every skew metric of ``(N, T)`` logprobs (torch or numpy), computed in float64; keys as in ``SKEW_KEYS``."""
    trainer, engine, sampled = (_tensor(x) for x in (trainer_logprobs, engine_logprobs, mask))
    return {name: float(value) for name, value in batched_skew_metrics(trainer, engine, sampled).items()}


def batched_skew_metrics(trainer_logprobs: Tensor, engine_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The same with leading axes: ``(..., N, T)`` to float64 ``(...)``."""
    trainer, engine = trainer_logprobs.detach().double(), engine_logprobs.detach().double()
    valid = (mask > 0) & trainer.isfinite() & engine.isfinite()
    d = torch.where(valid, trainer - engine, 0.0)
    sequences = valid.any(-1)
    tokens = valid.sum(-1).clamp(min=1)
    log_ratio = d.sum(-1).clamp(-SEQUENCE_EXPONENT, SEQUENCE_EXPONENT)
    size = d.abs()
    size_mean = _mean(size, valid, TOKENS)
    return {
        "logprob_diff_mean": size_mean,
        "logprob_diff_std": _mean((size - size_mean[..., None, None]).square(), valid, TOKENS).sqrt(),
        "logprob_diff_max": torch.where(sequences.any(-1), size.amax(TOKENS), torch.nan),
        "bias": _mean(d, valid, TOKENS),
        "kl_k1": _mean(-d, valid, TOKENS),
        "kl_k3": _mean(torch.expm1(d) - d, valid, TOKENS),
        "mult_prob_error": _mean(size.exp(), valid, TOKENS),
        "ratio_mean": _mean(d.exp(), valid, TOKENS),
        "chi2_token": _mean(torch.expm1(2 * d), valid, TOKENS),
        "chi2_seq": _mean(torch.expm1(2 * log_ratio), sequences, SEQUENCES),
        "ess": _effective_share(d, valid, TOKENS),
        "ess_seq": _effective_share(log_ratio, sequences, SEQUENCES),
        "ppl_ratio": _mean((-d.sum(-1) / tokens).exp(), sequences, SEQUENCES),
        "pearson": _correlation(trainer.exp(), engine.exp(), valid),
    }


def count_nonfinite(trainer_logprobs: Array, engine_logprobs: Array, mask: Array) -> int:
    """Sampled tokens left out of the metrics, because either logprob is NaN or infinite."""
    trainer, engine, sampled = (_tensor(x) for x in (trainer_logprobs, engine_logprobs, mask))
    return int(((sampled > 0) & ~(trainer.isfinite() & engine.isfinite())).sum())


PROBABILITY_EDGES = (0.0, 0.01, 0.1, 0.5, 0.9, float("inf"))


def by_probability(logprobs: Array, d: Array, mask: Array | None = None) -> list[ProbabilityBin]:
    """Skew by the token's probability ``exp(logprobs)``, in the published bins; a bin without tokens has NaN."""
    lp, skew = _tensor(logprobs).double(), _tensor(d).double()
    valid = lp.isfinite() & skew.isfinite()
    if mask is not None:
        valid &= _tensor(mask) > 0
    probability, skew = lp[valid].exp(), skew[valid]
    table = []
    for low, high in pairwise(PROBABILITY_EDGES):
        inside = skew[(probability >= low) & (probability < high)]
        table.append(
            ProbabilityBin(
                low=low,
                high=min(high, 1.0),
                tokens=len(inside),
                abs_mean=inside.abs().mean().item(),
                rms=inside.square().mean().sqrt().item(),
                bias=inside.mean().item(),
            )
        )
    return table


def _tensor(values: Array) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.ascontiguousarray(values))


def _mean(values: Tensor, counted: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mean of the counted values; NaN if there are none."""
    return torch.where(counted, values, 0.0).sum(axes) / counted.sum(axes)


def _effective_share(log_weights: Tensor, counted: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``1 / mean((w / mean w)^2)``; the weights' common factor is free, so the largest is 1 and nothing overflows."""
    log_weights = torch.where(counted, log_weights, -torch.inf)
    weights = (log_weights - log_weights.amax(axes, keepdim=True)).exp()
    weights = torch.where(counted, weights, 0.0)
    return weights.sum(axes).square() / (counted.sum(axes) * weights.square().sum(axes))


def _correlation(x: Tensor, y: Tensor, counted: Tensor) -> Tensor:
    """Pearson's correlation over tokens; NaN where either side is constant."""
    x = torch.where(counted, x - _mean(x, counted, TOKENS)[..., None, None], 0.0)
    y = torch.where(counted, y - _mean(y, counted, TOKENS)[..., None, None], 0.0)
    return (x * y).sum(TOKENS) / (x.square().sum(TOKENS) * y.square().sum(TOKENS)).sqrt()


# Laws of independent Gaussian noise on the logits


def expected_skew_variance(probabilities: Array, token: int, sigma_z: float) -> float:
    """``Var d = sigma_z^2 ((1 - p_a)^2 + sum_{v != a} p_v^2)`` for the sampled token a: improbable tokens are noisier."""
    p = _tensor(probabilities).double()
    return float(sigma_z**2 * ((1 - p[token]) ** 2 + p.square().sum() - p[token] ** 2))


def expected_kl(sigma_d: float) -> float:
    """``sigma_d^2 / 2``: k1 and k3 of Gaussian skew with spread sigma_d."""
    return sigma_d**2 / 2


def expected_ess_seq(sigma_d: float, tokens: float) -> float:
    """``exp(-T sigma_d^2)``: effective share of sequences of T tokens."""
    return float(np.exp(-tokens * sigma_d**2))


def expected_kept(sigma_d: float, tokens: float, low: float, high: float) -> float:
    """Share of sequences whose geometric mean ratio lies inside [low, high].

    Its log has mean ``-sigma_d^2 / 2`` and spread ``sigma_d / sqrt(T)``.
    """
    from scipy.special import ndtr  # here, not above: the trainer's start does not wait for scipy

    spread, mean = sigma_d / np.sqrt(tokens), -(sigma_d**2) / 2
    return float(ndtr((np.log(high) - mean) / spread) - ndtr((np.log(low) - mean) / spread))


# The table of record keys


def _table(*metrics: Metric) -> dict[str, Metric]:
    return {metric.key: metric for metric in metrics}


METRICS: dict[str, Metric] = _table(
    Metric(
        "reward/mean",
        "mean R",
        "1",
        "Share of exactly right responses.",
        {"TRL": "reward", "verl": "critic/score/mean"},
    ),
    Metric("reward/partial", "mean share", "1", "Share of right positions, whatever is rewarded.", {}),
    Metric(
        "skew/logprob_diff_mean",
        "mean |d|",
        "nats",
        "Typical size of the skew.",
        {
            "TRL": "sampling/sampling_logp_difference/mean",
            "slime": "train_rollout_logprob_abs_diff (mean of sequence means)",
            "Miles": "train_rollout_logprob_abs_diff (mean of sequence means)",
        },
    ),
    Metric("skew/logprob_diff_std", "std |d|", "nats", "Spread of the skew's size.", {}),
    Metric(
        "skew/logprob_diff_max",
        "max |d|",
        "nats",
        "The worst token.",
        {"TRL": "sampling/sampling_logp_difference/max"},
    ),
    Metric("skew/bias", "mean d", "nats", "Systematic part of the skew: trainer minus engine.", {}),
    Metric(
        "skew/kl_k1",
        "mean -d",
        "nats",
        "KL(engine, trainer), unbiased for truthful logprobs; a sample of it may be negative.",
        {"verl": "rollout_corr/kl", "OpenRLHF": "vllm_kl"},
    ),
    Metric(
        "skew/kl_k3",
        "mean (exp(d) - d - 1)",
        "nats",
        "The same KL, never negative.",
        {
            "verl": "rollout_corr/k3_kl",
            "NeMo-RL": "gen_kl_error",
            "PipelineRL": "kl_new_old",
            "prime-rl": "mismatch_kl",
            "Miles": "train_rollout_kl",
        },
    ),
    Metric(
        "skew/mult_prob_error",
        "mean exp(|d|)",
        "1",
        "Factor by which probabilities differ; NeMo-RL advises a look above 1.05.",
        {"NeMo-RL": "token_mult_prob_error"},
    ),
    Metric(
        "skew/ratio_mean",
        "mean rho",
        "1",
        "1 if the engine reports what it samples from: else the reported number is wrong.",
        {"NeMo-RL": "sampling_importance_ratio", "TRL": "sampling/importance_sampling_ratio/mean (after clipping)"},
    ),
    Metric(
        "skew/chi2_token",
        "mean rho^2 - 1",
        "1",
        "Variance a token weight would add.",
        {"verl": "rollout_corr/chi2_token"},
    ),
    Metric(
        "skew/chi2_seq",
        "mean exp(2 clamp(sum d, +-20)) - 1",
        "1",
        "Variance a sequence weight would add.",
        {"verl": "rollout_corr/chi2_seq", "ms-swift": "chi2_seq (of the geometric mean)"},
    ),
    Metric(
        "skew/ppl_ratio",
        "mean exp(mean engine - mean trainer)",
        "1",
        "Trainer's perplexity over the engine's, per sequence.",
        {"verl": "rollout_corr/ppl_ratio"},
    ),
    Metric(
        "skew/pearson",
        "corr(exp trainer, exp engine)",
        "1",
        "Correlation of the two probabilities; improbable tokens hardly count.",
        {"verl": "training/rollout_actor_probs_pearson_corr"},
    ),
    Metric(
        "ratio/ess",
        "1 / mean((rho / mean rho)^2)",
        "1",
        "Share of tokens that count after exact weighting.",
        {"verl": "rollout_corr/rollout_is_eff_sample_size (of truncated weights)"},
    ),
    Metric("ratio/ess_seq", "the same of exp(clamp(sum d, +-20))", "1", "Share of sequences that count.", {}),
    Metric("update/ratio_mean", "mean r", "1", "Update ratio exp(trainer - old).", {"PipelineRL": "ratio_new_old"}),
    Metric("update/ratio_std", "std r", "1", "Spread of the update ratio.", {}),
    Metric("update/ratio_min", "min r", "1", "Least update ratio.", {}),
    Metric("update/ratio_max", "max r", "1", "Greatest update ratio.", {}),
    Metric(
        "update/clip_rate",
        "share with clip(r) != r",
        "1",
        "Tokens (GSPO: sequences) outside the clip, whatever the advantage's sign.",
        {"PipelineRL": "clamp_log_ratio_new_old_indicator"},
    ),
    Metric(
        "update/clip_rate_low",
        "share with r < 1 - low and A < 0",
        "1",
        "Where the lower bound binds.",
        {"TRL": "clip_ratio/low_mean", "verl": "actor/pg_clipfrac (both sides together)"},
    ),
    Metric(
        "update/clip_rate_high",
        "share with r > 1 + high and A > 0",
        "1",
        "Where the upper bound binds.",
        {"TRL": "clip_ratio/high_mean", "verl": "actor/pg_clipfrac (both sides together)"},
    ),
    Metric(
        "policy/entropy",
        "mean H(trainer)",
        "nats",
        "Entropy of the trainer's policy at sampled positions.",
        {"TRL": "entropy", "verl": "actor/entropy", "PipelineRL": "entropy"},
    ),
    Metric(
        "policy/kl_reference",
        "mean (exp(ref - lp) - (ref - lp) - 1)",
        "nats",
        "Distance from the policy that training started from; where `beta` is not 0.",
        {"TRL": "kl", "verl": "actor/kl_loss", "PipelineRL": "kl"},
    ),
    Metric(
        "lag/mean",
        "mean (trainer version - token's version)",
        "versions",
        "Staleness of the tokens.",
        {"PipelineRL": "stats/lag"},
    ),
    Metric("lag/max", "max of the same", "versions", "The stalest token.", {}),
    Metric(
        "optim/grad_norm",
        "|g|",
        "1",
        "Gradient norm before clipping.",
        {"TRL": "grad_norm", "verl": "actor/grad_norm"},
    ),
    Metric(
        "optim/grad_cosine",
        "cos(g, g of truthful logprobs)",
        "1",
        "Direction lost to skew: 1 if the gradient is what truthful logprobs would give.",
        {},
    ),
    Metric("optim/loss", "L", "1", "The loss that was minimised.", {"TRL": "loss", "verl": "actor/pg_loss"}),
    Metric(
        "correction/weight_mean",
        "mean w",
        "1",
        "Mean correction weight of the tokens kept.",
        {"verl": "rollout_corr/rollout_is_mean"},
    ),
    Metric(
        "correction/kept",
        "share with w > 0",
        "1",
        "Tokens that no correction rejected.",
        {"verl": "1 - rollout_rs_masked_fraction"},
    ),
    Metric(
        "correction/ess",
        "1 / mean((w / mean w)^2)",
        "1",
        "Effective share of tokens after correction, rejected ones included.",
        {"verl": "rollout_corr/rollout_is_eff_sample_size"},
    ),
    Metric(
        "response/length",
        "mean tokens",
        "tokens",
        "Sampled tokens per response.",
        {"TRL": "completions/mean_length", "verl": "response_length/mean"},
    ),
    Metric("response/aborted", "share aborted", "1", "Responses cut off by a weight update.", {}),
    Metric("time/step_s", "wall time", "s", "Time of the step.", {"TRL": "step_time", "verl": "timing_s/step"}),
)

SKEW_KEYS: dict[str, str] = {
    name: f"ratio/{name}" if name.startswith("ess") else f"skew/{name}"
    for name in (
        "logprob_diff_mean",
        "logprob_diff_std",
        "logprob_diff_max",
        "bias",
        "kl_k1",
        "kl_k3",
        "mult_prob_error",
        "ratio_mean",
        "chi2_token",
        "chi2_seq",
        "ess",
        "ess_seq",
        "ppl_ratio",
        "pearson",
    )
}
"""Name in ``skew_metrics`` -> record key."""
