"""Metrics by step, as other frameworks log them: a table of their metric names, with our metric for each.

A name must match as a whole, after the prefixes that trackers put before it are removed (`RUN - ` in a W&B export,
`train/` of Hugging Face's integration). Where a framework's number is not exactly ours, `remark` says how it differs.
The names are those of the code that logs them: verl/trainer/ppo/rollout_corr_helper.py and verl/utils/debug/metrics.py;
trl/trainer/grpo_trainer.py; nemo_rl/algorithms/loss/loss_functions.py; prime_rl/trainer/rl/train.py;
slime/backends/megatron_utils/loss.py and examples/train_infer_mismatch_helper/mis.py;
miles/backends/training_utils/loss_hub/losses.py; skyrl/train/trainer.py; open_instruct/grpo_utils.py;
areal/trainer/ppo/actor.py; swift/megatron/trainers/grpo_trainer.py; pipelinerl/finetune/rl/__init__.py and
finetune_loop.py; openrlhf/models/loss.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from skewsim.skew.metrics import METRICS

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MetricName:
    """A framework's name for one of our metrics."""

    framework: str
    pattern: str
    """A regular expression for the whole name."""
    key: str
    """One of `metric_table.METRICS`."""
    convert: str = ""
    """How the value is converted to ours: one of `CONVERSIONS`, or empty for no change."""
    remark: str = ""
    """How the number differs from ours."""
    telling: bool = True
    """Whether only this framework uses the name, so that it tells which framework wrote the log."""

    def values(self, logged: Column) -> Column:
        return CONVERSIONS[self.convert](logged)


CONVERSIONS: dict[str, Callable[[Column], Column]] = {
    "": lambda values: values,
    "1 - x": lambda values: 1.0 - values,
    "-x": lambda values: -values,
}


def _names(framework: str, *rows: tuple[str, ...], telling: bool = True) -> tuple[MetricName, ...]:
    """The rows of one framework; each is a pattern, a key and, if needed, a conversion and a remark."""
    whole = [row + ("",) * (4 - len(row)) for row in rows]
    return tuple(MetricName(framework, row[0], row[1], row[2], row[3], telling) for row in whole)


_OF_SEQUENCES = "a mean of the sequences' means"
METRIC_NAMES: tuple[MetricName, ...] = (
    *_names(
        "verl",
        (r"rollout_corr/kl", "skew/kl_k1"),
        (r"rollout_corr/k3_kl", "skew/kl_k3"),
        (r"rollout_corr/chi2_token", "skew/chi2_token"),
        (r"rollout_corr/chi2_seq", "skew/chi2_seq"),
        (r"rollout_corr/ppl_ratio", "skew/ppl_ratio"),
        (r"rollout_corr/rollout_is_mean", "correction/weight_mean"),
        (r"rollout_corr/rollout_is_eff_sample_size", "correction/ess", "", "of truncated weights"),
        (r"rollout_corr/rollout_rs_masked_fraction", "correction/kept", "1 - x"),
        (r"training/rollout_actor_probs_pearson_corr", "skew/pearson"),
        (r"actor/entropy(_loss)?", "policy/entropy"),
        (r"actor/kl_loss", "policy/kl_reference"),
        (r"actor/grad_norm", "optim/grad_norm"),
        (r"actor/pg_loss", "optim/loss"),
        (r"actor/pg_clipfrac", "update/clip_rate", "", "tokens that a bound binds"),
        (r"critic/score/mean", "reward/mean"),
        (r"response_length/mean", "response/length"),
        (r"timing_s/step", "time/step_s"),
    ),
    *_names(
        "TRL",
        (r"sampling/sampling_logp_difference/mean", "skew/logprob_diff_mean"),
        (r"sampling/sampling_logp_difference/max", "skew/logprob_diff_max"),
        (
            r"sampling/importance_sampling_ratio/mean",
            "correction/weight_mean",
            "",
            "of sequences in the default mode, after truncation",
        ),
        (r"clip_ratio/low_mean", "update/clip_rate_low"),
        (r"clip_ratio/high_mean", "update/clip_rate_high"),
        (r"clip_ratio/region_mean", "update/clip_rate", "", "tokens that a bound binds"),
        (r"completions/mean_length", "response/length"),
    ),
    *_names(
        "TRL",
        (r"reward", "reward/mean"),
        (r"kl", "policy/kl_reference"),
        (r"entropy", "policy/entropy"),
        (r"step_time", "time/step_s"),
        (r"loss", "optim/loss"),
        (r"grad_norm", "optim/grad_norm"),
        telling=False,
    ),
    *_names(
        "NeMo-RL",
        (r"gen_kl_error", "skew/kl_k3"),
        (r"token_mult_prob_error", "skew/mult_prob_error"),
        (r"sampling_importance_ratio", "skew/ratio_mean", "", "of sequences with sequence_level_importance_ratios"),
        (r"probs_ratio", "update/ratio_mean"),
        (r"probs_ratio_min", "update/ratio_min"),
        (r"probs_ratio_max", "update/ratio_max"),
        (r"approx_entropy", "policy/entropy", "", "an estimate from the sampled tokens"),
        (r"mean_gen_tokens_per_sample", "response/length"),
    ),
    *_names(
        "prime-rl",
        (r"mismatch_kl/all/mean", "skew/kl_k3"),
        (r"mismatch_kl(/mean)?", "skew/kl_k3"),
        (r"entropy/all/mean", "policy/entropy"),
        (r"is_masked/mean", "correction/kept", "1 - x"),
        (r"off_policy/mean", "lag/mean"),
        (r"off_policy/max", "lag/max"),
        (r"loss/mean", "optim/loss"),
        (r"time/step", "time/step_s"),
    ),
    *_names("prime-rl", (r"optim/grad_norm", "optim/grad_norm"), telling=False),
    *_names(
        "slime",
        (r"(train/)?mis_kl", "skew/kl_k1", "", _OF_SEQUENCES),
        (r"(train/)?mis_k3_kl", "skew/kl_k3", "", _OF_SEQUENCES),
        (r"(train/)?mis_ppl_ratio", "skew/ppl_ratio"),
        (r"(train/)?mis_tis_weight_before_bound", "skew/ratio_mean", "", _OF_SEQUENCES),
        (r"(train/)?mis_tis_weight_after_bound", "correction/weight_mean", "", _OF_SEQUENCES),
        (r"(train/)?tis", "skew/ratio_mean", "", _OF_SEQUENCES),
        (r"rollout/raw_reward", "reward/mean"),
    ),
    *_names(
        "Miles",
        (r"(train/)?train_rollout_kl", "skew/kl_k3", "", f"{_OF_SEQUENCES}, each token's held below 10"),
        (r"(train/)?train_rollout_logprob_abs_diff", "skew/logprob_diff_mean", "", _OF_SEQUENCES),
    ),
    *_names(
        "slime",
        (r"(train/)?train_rollout_logprob_abs_diff", "skew/logprob_diff_mean", "", _OF_SEQUENCES),
        (r"train/entropy_loss", "policy/entropy", "", _OF_SEQUENCES),
        (r"train/pg_clipfrac", "update/clip_rate", "", "tokens that a bound binds"),
        (r"train/pg_loss", "optim/loss"),
        (r"train/kl_loss", "policy/kl_reference"),
        (r"train/grad_norm", "optim/grad_norm"),
        telling=False,
    ),
    *_names(
        "SkyRL",
        (r"policy/rollout_train_logprobs_abs_diff_mean", "skew/logprob_diff_mean"),
        (r"policy/rollout_train_logprobs_abs_diff_max", "skew/logprob_diff_max"),
        (r"policy/rollout_train_logprobs_abs_diff_std", "skew/logprob_diff_std"),
        (r"(policy/)?minibatch_rollout_logprobs_abs_diff_mean", "skew/logprob_diff_mean"),
        (r"(policy/)?minibatch_rollout_logprobs_abs_diff_max", "skew/logprob_diff_max"),
        (r"policy/loss_metrics/is_ratio_mean", "skew/ratio_mean"),
        (r"policy/policy_entropy", "policy/entropy"),
        (r"policy/policy_kl", "policy/kl_reference"),
        (r"policy/final_loss", "optim/loss"),
    ),
    *_names(
        "open-instruct",
        (r"debug/vllm_vs_local_logprob_diff_mean", "skew/logprob_diff_mean"),
        (r"debug/vllm_vs_local_logprob_diff_max", "skew/logprob_diff_max"),
        (r"debug/vllm_vs_local_logprob_diff_std", "skew/logprob_diff_std"),
        (r"val/ratio", "update/ratio_mean", "", _OF_SEQUENCES),
        (r"val/rho_weight", "correction/weight_mean", "", _OF_SEQUENCES),
        (r"val/rho_drop_frac", "correction/kept", "1 - x", _OF_SEQUENCES),
        (r"policy/clipfrac_avg", "update/clip_rate", "", "tokens that a bound binds"),
        (r"policy/entropy_avg", "policy/entropy", "", _OF_SEQUENCES),
    ),
    *_names(
        "AReaL",
        (r"(.*/)?compute_logp/kl_div_direct/avg", "skew/kl_k1"),
        (r"(.*/)?compute_logp/kl_div_dual/avg", "skew/kl_k3"),
        (r"(.*/)?version_stats/sample_staleness_theta_avg", "lag/mean"),
        (r"(.*/)?version_stats/sample_staleness_theta_max", "lag/max"),
        (r"(.*/)?behave_imp_weight/avg", "correction/weight_mean"),
        (r"(.*/)?behave_approx_kl/avg", "skew/kl_k1", "", "of the tokens whose weight is not capped"),
        (r"(.*/)?update/entropy/avg", "policy/entropy"),
        (r"(.*/)?update/importance_weight/avg", "update/ratio_mean"),
    ),
    *_names(
        "ms-swift",
        (r"rollout_correction/kl", "skew/kl_k1"),
        (r"rollout_correction/k3_kl", "skew/kl_k3", "", "each token's held below 10"),
        (r"rollout_correction/ppl_ratio", "skew/ppl_ratio"),
        (r"rollout_correction/chi2_token", "skew/chi2_token"),
        (r"rollout_correction/is_weight_mean", "correction/weight_mean"),
        (r"rollout_correction/ess", "correction/ess", "", "of weights held inside the threshold"),
    ),
    *_names(
        "PipelineRL",
        (r"rl/kl_new_old", "skew/kl_k3", "", f"{_OF_SEQUENCES}; its old logprobs are the engine's"),
        (r"rl/mean_abs_log_ratio_new_old", "skew/logprob_diff_mean", "", f"{_OF_SEQUENCES}; old is the engine's"),
        (r"rl/ratio_new_old", "skew/ratio_mean", "", f"{_OF_SEQUENCES}; old is the engine's"),
        (r"rl/ess", "ratio/ess"),
        (r"rl/clamp_log_ratio_new_old_indicator", "update/clip_rate", "", _OF_SEQUENCES),
        (r"rl/entropy", "policy/entropy", "", _OF_SEQUENCES),
        (r"rl/kl", "policy/kl_reference", "", _OF_SEQUENCES),
        (r"rl/reward", "reward/mean"),
        (r"stats/lag", "lag/max", "", "counted in samples, not in versions"),
    ),
    *_names("OpenRLHF", (r"(train/)?vllm_kl", "skew/kl_k1")),
    *_names("skewsim", *((re.escape(key), key) for key in METRICS if key.startswith(("skew/", "ratio/")))),
    *_names(
        "skewsim",
        *((re.escape(key), key) for key in METRICS if not key.startswith(("skew/", "ratio/"))),
        telling=False,
    ),
)
COVARIATES: tuple[str, ...] = (
    r"vllm:(num_preemptions|prefix_cache_(hits|queries)|spec_decode_.*|request_success)(_total)?",
    r"vllm:(kv_cache_usage_perc|num_requests_(running|waiting)|gpu_cache_usage_perc)",
    r"fully_async/.*(stale|partial|param_version).*",
    r"(train/)?(is_oob_ratio|js_divergence_error|policy_kl_error|(max|mean)_seq_mult_prob_error|num_masked_seqs_.*)",
    r"train/.*(routing_confidence|max_vio).*|(routing_confidence|max_vio)/.*",
)
"""Patterns of metrics that do not measure skew but may change together with it."""
_PREFIXES = ("", "train/", "train_", "actor/", "metrics/")


@dataclass(frozen=True)
class Curve:
    """One metric by step, in our unit and sign."""

    key: str
    steps: npt.NDArray[np.int64]
    values: Column
    name: str
    """The name it was logged under."""
    framework: str
    remark: str = ""


@dataclass(frozen=True)
class MetricCurves:
    """The metrics that were recognised in a log, and the names that were not."""

    source: str
    framework: str | None
    """The framework that wrote the log; None if the names do not tell."""
    curves: dict[str, Curve] = field(default_factory=dict)
    """Curves by our key."""
    covariates: dict[str, Curve] = field(default_factory=dict)
    """Curves of `COVARIATES` by the name they were logged under."""
    unknown: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    """The runs in the file; the curves are those of the first."""


def find_name(logged: str, framework: str | None = None) -> MetricName | None:
    """The row of `METRIC_NAMES` for a logged name, preferring that framework's; None if there is none."""
    rows = sorted(METRIC_NAMES, key=lambda row: row.framework != framework)
    for prefix in _PREFIXES:
        name = logged.removeprefix(prefix) if prefix and logged.startswith(prefix) else logged
        if prefix and name == logged:
            continue
        found = next((row for row in rows if re.fullmatch(row.pattern, name)), None)
        if found is not None:
            return found
    return None


def guess_framework(logged: Iterable[str]) -> str | None:
    """The framework that logged these names; names that only one framework uses count most."""
    votes: Counter[str] = Counter()
    for name in logged:
        row = find_name(name)
        if row is not None:
            votes[row.framework] += 100 if row.telling else 1
    return votes.most_common(1)[0][0] if votes else None


def curves_of(
    logged: dict[str, tuple[list[int], list[float]]], *, source: str, runs: Iterable[str] = ()
) -> MetricCurves:
    """Convert logged columns of (steps, values) to our metrics. Of two names for one key, the first row's is used."""
    framework = guess_framework(logged)
    found: list[tuple[int, Curve]] = []
    covariates: dict[str, Curve] = {}
    unknown: list[str] = []
    for name, (steps, values) in logged.items():
        row = find_name(name, framework)
        column = np.asarray(values, dtype=np.float64)
        at = np.asarray(steps, dtype=np.int64)
        if row is not None:
            curve = Curve(row.key, at, row.values(column), name, row.framework, row.remark)
            found.append((METRIC_NAMES.index(row), curve))
        elif any(re.fullmatch(pattern, name) for pattern in COVARIATES):
            covariates[name] = Curve(name, at, column, name, framework or "")
        else:
            unknown.append(name)
    curves: dict[str, Curve] = {}
    for _, curve in sorted(found, key=lambda pair: pair[0]):
        curves.setdefault(curve.key, curve)
    return MetricCurves(source, framework, curves, covariates, tuple(unknown), tuple(runs))
