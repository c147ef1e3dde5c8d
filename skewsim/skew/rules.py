"""The thresholds of every framework on train-inference skew: what each looks at, its default, and how it is set today.

`RULES` is read from the frameworks' own code as of August 2026: verl `verl/trainer/ppo/rollout_corr_helper.py` and
`verl/trainer/config/algorithm.py`; slime and Miles `loss.py`, `ppo_utils.py` and
`examples/train_infer_mismatch_helper/mis.py`; SkyRL `off_policy_correction_utils.py`; NeMo-RL `loss_functions.py` and
`grpo.py`; OpenRLHF `openrlhf/models/loss.py`; TRL `grpo_trainer.py`; prime-rl `trainer/rl/loss.py`; PipelineRL
`finetune/rl/__init__.py`. Papers: IcePop arXiv 2510.18855, GSPO 2507.18071, GRPO 2402.03300, DAPO 2503.14476, CISPO
2506.13585, DPPO 2602.04879. Where a framework has no default, its documentation's example stands for one, and says so.
The clips of objectives are meant for bypass mode, where the skew is in the ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from skewsim.catalogue import CORRECTIONS, OBJECTIVES
from skewsim.skew.effect import Action, Fold, Of

Units = Literal["ratio", "inverse", "distance", "log", "plain"]
"""What a framework's argument counts: the ratio; its inverse, so that low and high change places (verl takes the bounds
of -log rho); its distance from one; minus its logarithm; plain: the number itself, for what is no ratio."""


@dataclass(frozen=True)
class Rule:
    """One threshold of one framework: keep while a token's or sequence's number lies in [low, high]."""

    framework: str
    rule: str
    setting: str
    """Template of the setting, with {low} and {high} in the framework's units, and {cap}: high as a ratio."""
    fold: Fold
    action: Action
    low: float | None = None
    high: float | None = None
    of: Of = "d"
    units: Units = "ratio"
    instead: str = ""
    """For a summed number: the setting that looks at tokens or means in its place."""
    example: bool = False
    """Whether the bounds are an example, of the documentation or ours, where the framework has no default."""

    @property
    def per(self) -> Literal["tokens", "sequences"]:
        """What is counted where the rule fires."""
        return "tokens" if self.fold == "token" else "sequences"

    def bounds(self, low: float | None, high: float | None) -> tuple[float, float]:
        """The two bounds in the number's own units: logarithms for d."""
        if self.of != "d":
            return -math.inf, math.inf if high is None else high
        return -math.inf if not low else math.log(low), math.inf if high is None else math.log(high)

    def text(self, low: float | None, high: float | None) -> str:
        """The setting with these bounds, in the framework's own words and units."""
        if "{low}" not in self.setting and low is not None and high is not None:
            high = max(high, 2 - low)  # one argument for both sides
        cap = number(high)
        if self.units == "inverse":
            low, high = None if high is None else 1 / high, None if not low else 1 / low
        if self.units == "distance":
            low, high = None if low is None else 1 - low, None if high is None else high - 1
        if self.units == "log" and low is not None:
            low = max(-math.log(low), 0.0)
        return self.setting.format(low=number(low), high=number(high), cap=cap)


def number(value: float | None) -> str:
    """A bound as text: three digits, or three of its distance from one."""
    if value is None:
        return ""
    if 0.5 < value < 1.5 and value != 1:
        digits = max(1, 2 - math.floor(math.log10(abs(value - 1))))
        return f"{value:.{min(digits, 9)}f}".rstrip("0").rstrip(".")
    return f"{value:.3g}"


def _default(method: str, framework: str) -> tuple[float | None, float | None]:
    bounds = CORRECTIONS[method].defaults[framework]
    return bounds.low, bounds.high


def _weight(framework: str, name: str, setting: str, method: str, instead: str = "") -> Rule:
    """The rule of an importance weight: truncated (TIS) or masked (MIS), per token or per sequence."""
    per, kind = method.split("_")
    action: Action = "truncate" if kind == "tis" else "mask"
    fold: Fold = "sum" if per == "sequence" else "token"
    return Rule(framework, name, setting, fold, action, *_default(method, framework), instead=instead)


def _geometric(framework: str, setting: str) -> Rule:
    return Rule(framework, "geometric rejection", setting, "mean", "reject", *_default("geometric", framework))


def _off_policy(framework: str, setting: str, remark: str = "") -> Rule:
    """The framework's argument is a distance in nats; it bounds the mean log-ratio from below."""
    distance = CORRECTIONS["off_policy_mask"].defaults[framework].high or 0.0
    name = f"off-policy sequence mask (of negative advantages{remark})"
    return Rule(framework, name, setting, "mean", "reject", math.exp(-distance), units="log")


def _clip(framework: str, name: str, setting: str, form: str) -> Rule:
    """The rule of an objective's own clip; of a probability's, whose change is at most the ratio's distance from
    one.
    """
    objective = OBJECTIVES[form]
    high = objective.epsilon_high
    if objective.clip == "cap":
        return Rule(framework, name, setting, "token", "truncate", high=high)
    bounds = (None if objective.epsilon is None else 1 - objective.epsilon, None if high is None else 1 + high)
    fold: Fold = "mean" if objective.clip == "sequence_mean" else "token"
    return Rule(framework, name, setting, fold, "clip", *bounds, units="distance")


def _verl(option: str, high: float, *, low: float | None = None, instead: str = "") -> Rule:
    """A verl rejection by the name of its option: ``token_k1``, ``seq_mean_k3`` and so on."""
    level, kind = option.rsplit("_", 1)
    fold: Fold = {"token": "token", "seq_sum": "sum", "seq_mean": "mean", "seq_max": "max"}[level]  # type: ignore[assignment]
    if kind == "k1":
        assert low is not None
        setting = f"rollout_rs={option} rollout_rs_threshold={{low}}_{{high}}"
        return Rule(
            "verl", option, setting, fold, "reject", 1 / high, 1 / low, units="inverse", instead=instead, example=True
        )
    of: Of = "k2" if kind == "k2" else "k3"
    setting = f"rollout_rs={option} rollout_rs_threshold={{high}}"
    return Rule(
        "verl", option, setting, fold, "reject", high=high, of=of, units="plain", instead=instead, example=high != _K3
    )


_VERL_SEQUENCE = "rollout_is=token"
_K3 = CORRECTIONS["k3"].defaults["verl"].high or 0.0
_GEOMETRIC_LOW, _GEOMETRIC_HIGH = _default("geometric", "verl")
_MIS_LOW, _MIS_HIGH = _default("sequence_mis", "verl")
assert _GEOMETRIC_LOW is not None
assert _GEOMETRIC_HIGH is not None
assert _MIS_LOW is not None
assert _MIS_HIGH is not None

RULES: tuple[Rule, ...] = (
    Rule("any", "sequence weight, unbounded", "no correction bound", "sum", "truncate", instead="a weight per token"),
    _weight("verl", "token TIS", "rollout_is=token rollout_is_threshold={high}", "token_tis"),
    _weight("verl", "token IcePop", "rollout_is=token rollout_is_threshold={low}_{high}", "token_mis"),
    _weight("verl", "sequence TIS", "rollout_is=sequence rollout_is_threshold={high}", "sequence_tis", _VERL_SEQUENCE),
    Rule(
        "verl",
        "sequence MIS",
        "rollout_is=sequence rollout_is_threshold={cap} rollout_rs=seq_sum_k1 rollout_rs_threshold={low}_{high}",
        "sum",
        "mask",
        1 / _MIS_HIGH,
        1 / _MIS_LOW,
        units="inverse",
        instead="rollout_is=token rollout_rs=seq_mean_k1",
    ),
    Rule(
        "verl",
        "geometric rejection",
        "rollout_rs=seq_mean_k1 rollout_rs_threshold={low}_{high}",
        "mean",
        "reject",
        1 / _GEOMETRIC_HIGH,
        1 / _GEOMETRIC_LOW,
        units="inverse",
    ),
    _verl("token_k1", 1.4, low=0.6),
    _verl("token_k2", 2.0),
    _verl("token_k3", 2.0),
    _verl("seq_sum_k1", 2.0, low=0.5, instead="rollout_rs=seq_mean_k1"),
    _verl("seq_sum_k2", 2.5, instead="rollout_rs=seq_mean_k2"),
    _verl("seq_sum_k3", 2.5, instead="rollout_rs=seq_mean_k3"),
    _verl("seq_mean_k2", 2.0),
    _verl("seq_mean_k3", _K3),
    _verl("seq_max_k2", 2.5),
    _verl("seq_max_k3", 2.5),
    _weight("slime", "token TIS", "--use-tis --tis-clip {high}", "token_tis"),
    _weight(
        "slime",
        "sequence TIS",
        "mis.yaml: tis_level=sequence tis_mode=truncate tis_upper_bound={high}",
        "sequence_tis",
        "tis_level=token",
    ),
    Rule(
        "slime",
        "token rejection",
        "mis.yaml: rs_level=token rs_lower_bound={low} rs_upper_bound={high}",
        "token",
        "reject",
        0.5,
        2.0,
    ),
    _geometric("slime", "mis.yaml: rs_level=geometric rs_lower_bound={low} rs_upper_bound={high}"),
    Rule(
        "slime",
        "token veto",
        "mis.yaml: rs_veto_threshold={low}",
        "min",
        "reject",
        low=CORRECTIONS["veto"].defaults["slime"].low,
    ),
    _off_policy("slime", "--use-rollout-logprobs --use-opsm --opsm-delta {low}", "; only with --use-rollout-logprobs"),
    _weight("Miles", "token TIS", "--use-tis --tis-clip {high}", "token_tis"),
    _weight("SkyRL", "token TIS", "tis_ratio_type=token token_tis_ratio_clip_high={high}", "token_tis"),
    _weight(
        "SkyRL",
        "sequence TIS",
        "tis_ratio_type=sequence sequence_tis_ratio_clip_high={high}",
        "sequence_tis",
        "tis_ratio_type=token",
    ),
    _geometric("SkyRL", "sequence_mask_metric=geometric geo_mask_low={low} geo_mask_high={high}"),
    Rule(
        "SkyRL",
        "product mask",
        "sequence_mask_metric=product product_mask_low={low} product_mask_high={high}",
        "sum",
        "reject",
        0.5,
        2.0,
        instead="sequence_mask_metric=geometric",
    ),
    Rule(
        "SkyRL",
        "outlier token mask",
        "outlier_token_is_threshold_low={low} outlier_token_is_threshold_high={high}",
        "any",
        "reject",
        1e-4,
        100.0,
    ),
    _geometric(
        "NeMo-RL",
        "truncated_importance_sampling_type=seq-mask-tis truncated_importance_sampling_ratio_min={low} "
        "truncated_importance_sampling_ratio={high}",
    ),
    _weight(
        "NeMo-RL",
        "token TIS",
        "truncated_importance_sampling_type=tis truncated_importance_sampling_ratio={high}",
        "token_tis",
    ),
    _weight(
        "NeMo-RL",
        "IcePop",
        "truncated_importance_sampling_type=icepop truncated_importance_sampling_ratio_min={low} "
        "truncated_importance_sampling_ratio={high}",
        "token_mis",
    ),
    Rule(
        "NeMo-RL",
        "sequence logprob error",
        "grpo.seq_logprob_error_threshold={high}",
        "mean",
        "reject",
        high=2.0,
        of="mult",
        units="plain",
    ),
    _weight(
        "OpenRLHF",
        "token TIS",
        "--algo.advantage.is_correction_type tis --algo.advantage.is_correction_threshold {low} {high}",
        "token_tis",
    ),
    _weight(
        "OpenRLHF",
        "IcePop",
        "--algo.advantage.is_correction_type icepop --algo.advantage.is_correction_threshold {low} {high}",
        "token_mis",
    ),
    Rule(
        "OpenRLHF",
        "geometric rejection",
        "--algo.advantage.is_correction_type seq-mask-tis --algo.advantage.is_correction_threshold {low} {high}",
        "mean",
        "reject",
        *_default("token_mis", "OpenRLHF"),
    ),
    _weight("IcePop", "paper", "low={low} high={high}", "token_mis"),
    _weight(
        "TRL",
        "sequence MIS",
        "vllm_importance_sampling_mode=sequence_mask vllm_importance_sampling_clip_max={high}",
        "sequence_mis",
        "vllm_importance_sampling_mode=token_truncate",
    ),
    _weight(
        "TRL",
        "token TIS",
        "vllm_importance_sampling_mode=token_truncate vllm_importance_sampling_clip_max={high}",
        "token_tis",
    ),
    _off_policy("TRL", "off_policy_mask_threshold={low}"),
    _clip("TRL", "GRPO clip", "epsilon={low} epsilon_high={high}", "grpo"),
    _clip("TRL", "CISPO cap", "epsilon_high={high}", "cispo"),
    _clip("DAPO", "clip-higher", "epsilon={low} epsilon_high={high}", "dapo"),
    _clip("GSPO", "paper clip", "epsilon={low} epsilon_high={high}", "gspo/paper"),
    _clip("PipelineRL", "GSPO clip", "epsilon_low={low} epsilon_high={high}", "gspo/pipelinerl"),
    _clip("prime-rl", "DPPO total variation (at most)", "dppo_mask_low={low} dppo_mask_high={high}", "dppo"),
    _clip("prime-rl", "IPO total variation (at most)", "ipo_threshold={high}", "ipo"),
)
