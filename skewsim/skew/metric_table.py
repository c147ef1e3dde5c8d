"""Definition of every metric: its formula, its unit, and its names in other frameworks.

The skew of a token is ``d = trainer - engine`` in nats, its ratio ``rho = exp(d)``; r is the update ratio, R a reward,
A an advantage, w a correction weight. `skewsim.skew.metrics` computes the metrics of the skew.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A record key with its meaning; ``aliases``: a framework -> its name for the same or nearly the same number."""

    key: str
    formula: str
    unit: str
    description: str
    aliases: dict[str, str]


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
            "slime": "train/train_rollout_logprob_abs_diff (mean of sequence means)",
            "Miles": "train/train_rollout_logprob_abs_diff (mean of sequence means)",
            "SkyRL": "policy/rollout_train_logprobs_abs_diff_mean",
            "PipelineRL": "rl/mean_abs_log_ratio_new_old (mean of sequence means)",
        },
    ),
    Metric(
        "skew/logprob_diff_std",
        "std |d|",
        "nats",
        "Spread of the skew's size.",
        {"SkyRL": "policy/rollout_train_logprobs_abs_diff_std"},
    ),
    Metric(
        "skew/logprob_diff_max",
        "max |d|",
        "nats",
        "The worst token.",
        {"TRL": "sampling/sampling_logp_difference/max", "SkyRL": "policy/rollout_train_logprobs_abs_diff_max"},
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
            "PipelineRL": "rl/kl_new_old (mean of sequence means)",
            "prime-rl": "mismatch_kl/all/mean",
            "Miles": "train/train_rollout_kl (mean of sequence means, a token's at most 10)",
            "slime": "train/mis_k3_kl (mean of sequence means)",
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
        "Mismatch ratio exp(trainer - engine): 1 if the engine reports what it samples from.",
        {
            "PipelineRL": "rl/ratio_new_old (mean of sequence means; old is the engine's)",
            "NeMo-RL": "sampling_importance_ratio",
            "TRL": "sampling/importance_sampling_ratio/mean (after clipping; of sequences in its default mode)",
        },
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
        {"verl": "rollout_corr/rollout_is_eff_sample_size (of truncated weights)", "PipelineRL": "rl/ess"},
    ),
    Metric("ratio/ess_seq", "the same of exp(clamp(sum d, +-20))", "1", "Share of sequences that count.", {}),
    Metric(
        "update/ratio_mean",
        "mean r",
        "1",
        "Update ratio exp(trainer - old), which enters the loss.",
        {},
    ),
    Metric("update/ratio_std", "std r", "1", "Spread of the update ratio.", {}),
    Metric("update/ratio_min", "min r", "1", "Least update ratio.", {}),
    Metric("update/ratio_max", "max r", "1", "Greatest update ratio.", {}),
    Metric(
        "update/clip_rate",
        "share with clip(r) != r",
        "1",
        "Tokens (GSPO: sequences) outside the clip, whatever the advantage's sign.",
        {"PipelineRL": "rl/clamp_log_ratio_new_old_indicator"},
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
        {"TRL": "entropy", "verl": "actor/entropy", "PipelineRL": "rl/entropy"},
    ),
    Metric(
        "policy/kl_reference",
        "mean (exp(ref - lp) - (ref - lp) - 1)",
        "nats",
        "Distance from the policy that training started from; where `beta` is not 0.",
        {"TRL": "kl", "verl": "actor/kl_loss", "PipelineRL": "rl/kl"},
    ),
    Metric(
        "lag/mean",
        "mean (trainer version - token's version)",
        "versions",
        "Staleness of the tokens.",
        {"prime-rl": "off_policy/mean"},
    ),
    Metric(
        "lag/max", "max of the same", "versions", "The stalest token.", {"PipelineRL": "stats/lag (counted in samples)"}
    ),
    Metric(
        "skew/kl_k3_lag0",
        "mean (exp(d) - d - 1) of the tokens with lag 0",
        "nats",
        "k3 without staleness: of the tokens that were sampled with the trainer's own version.",
        {},
    ),
    Metric(
        "routing/decisions_differ",
        "share of (token, layer) with different sets of experts",
        "1",
        "Router decisions in which trainer and engine differ; where the policy is a mixture of experts.",
        {},
    ),
    Metric(
        "routing/tokens_differ",
        "share of tokens with such a layer",
        "1",
        "Tokens predicted from a row of which trainer and engine chose different experts in some layer.",
        {},
    ),
    Metric("routing/rms_differ", "sqrt(mean d^2) of these tokens", "nats", "Skew of tokens routed otherwise.", {}),
    Metric("routing/rms_same", "sqrt(mean d^2) of the others", "nats", "Skew of tokens routed alike.", {}),
    Metric(
        "routing/skew_share",
        "sum d^2 of these tokens / sum d^2",
        "1",
        "Share of the mean square skew that tokens routed otherwise carry.",
        {},
    ),
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
        {"verl": "rollout_corr/rollout_rs_masked_fraction (one minus that)"},
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
