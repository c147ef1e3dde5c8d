"""What each objective and each correction is, in one table that needs nothing but Python.

Settings, the loss functions, their clips, `skewsim advise` and the screens of the terminal UI all read these tables, so
each fact about an objective (its formula, where it clips by default, what it is called elsewhere) stands here and in no
other module. The loss functions themselves need torch: `skewsim.learn.objectives` and `skewsim.learn.corrections`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Ratio = Literal["old", "engine", "none"]
"""What the trainer's probability is divided by: old, the engine's, or nothing (the loss has no update ratio)."""

Clip = Literal["token", "log", "sequence_mean", "sequence_sum", "cap", "probability", "divergence", "none"]
"""What is held inside the clip bounds.

token: each token's ratio, inside [1 - epsilon, 1 + epsilon_high]. log: each token's log-ratio, inside [-epsilon,
epsilon_high]. sequence_mean: the geometric mean of a sequence's
ratios. sequence_sum: the product of a sequence's ratios. cap: each token's ratio, at most epsilon_high itself.
probability: the change of a token's probability, at most epsilon down and epsilon_high up. divergence: the Kullback-
Leibler divergence of "this token or another one", at most epsilon where the token lost and epsilon_high where it
gained. none: nothing is.
"""


def _always(settings: Any) -> bool:
    return True


@dataclass(frozen=True)
class ObjectiveForm:
    """One form of an objective. Most have one; GSPO has two, and RLOO is another loss once it is clipped."""

    formula: str
    """The loss of a token (or sequence): A advantage, lp_t trainer, lp_o old, lp_r engine, r and s ratios, d skew."""
    source: str
    """The paper or code that it is from."""
    ratio: Ratio = "old"
    clip: Clip = "token"
    epsilon: float | None = None
    """Default lower bound; None: there is none."""
    epsilon_high: float | None = None
    """Default upper bound; None: there is none. It follows `epsilon` where both defaults are equal, as in TRL."""
    needs_groups: bool = True
    """Whether a group of one is refused: its baseline is the prompt's group, and the batch is no stand-in for that."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Framework -> the setting that chooses it there, or the nearest thing with the difference in brackets."""
    when: Callable[[Any], bool] = _always
    """Whether trainer settings with this objective mean this form."""


_CLIPPED = "loss = -min(r A, clip(r, lo, hi) A)     r = exp(lp_t - lp_o)"
_CLIPPED_MEAN = "loss = -min(s A, clip(s, lo, hi) A)     s = exp(mean_t(lp_t - lp_o))"
_CLIPPED_SUM = "loss = -min(s A, clip(s, lo, hi) A)     s = exp(sum_t(lp_t - lp_o))"
_SCORE = "loss = -A * lp_t"

OBJECTIVES: dict[str, ObjectiveForm] = {
    "grpo": ObjectiveForm(
        _CLIPPED,
        "arXiv 2402.03300",
        epsilon=0.2,
        epsilon_high=0.2,
        names={"TRL": "loss_type=grpo", "verl": "adv_estimator=grpo loss_agg_mode=seq-mean-token-mean"},
    ),
    "gspo/paper": ObjectiveForm(
        _CLIPPED_MEAN,
        "arXiv 2507.18071",
        clip="sequence_mean",
        epsilon=3e-4,
        epsilon_high=4e-4,
        names={"TRL": "importance_sampling_level=sequence", "verl": "loss_mode=gspo"},
        when=lambda settings: settings.gspo_form == "paper",
    ),
    "gspo/pipelinerl": ObjectiveForm(
        _CLIPPED_MEAN,
        "PipelineRL, conf/finetune/base.yaml",
        clip="sequence_mean",
        epsilon=2e-2,
        epsilon_high=2e-2,
        names={"PipelineRL": "policy_loss=gspo", "TRL": "loss_type=luspo importance_sampling_level=sequence"},
        when=lambda settings: settings.gspo_form == "pipelinerl",
    ),
    "ppo": ObjectiveForm(
        _CLIPPED,
        "arXiv 1707.06347",
        epsilon=0.2,
        epsilon_high=0.2,
        needs_groups=False,
        names={
            "TRL": "loss_type=bnpo",
            "verl": "loss_mode=vanilla (with clip_ratio_c=3)",
            "PipelineRL": "policy_loss=ppo",
        },
    ),
    "dapo": ObjectiveForm(
        _CLIPPED,
        "arXiv 2503.14476",
        epsilon=0.2,
        epsilon_high=0.28,
        names={"TRL": "loss_type=dapo epsilon_high=0.28", "verl": "clip_ratio_high=0.28 loss_agg_mode=token-mean"},
    ),
    "dr_grpo": ObjectiveForm(
        _CLIPPED,
        "arXiv 2503.20783",
        epsilon=0.2,
        epsilon_high=0.2,
        names={
            "TRL": "loss_type=dr_grpo scale_rewards=none",
            "verl": "norm_adv_by_std_in_grpo=False loss_agg_mode=seq-mean-token-sum-norm",
        },
    ),
    "cispo": ObjectiveForm(
        "loss = -stop_gradient(min(r, hi)) A lp_t     r = exp(lp_t - lp_o)",
        "arXiv 2506.13585",
        clip="cap",
        epsilon_high=5.0,
        needs_groups=False,
        names={
            "TRL": "loss_type=cispo epsilon_high=5",
            "verl": "loss_mode=cispo (clip_ratio bounds both sides: 0.8 to 1.2)",
            "SkyRL": "policy_loss_type=cispo (cap 1 + cispo_eps_clip_high = 5)",
            "PipelineRL": "policy_loss=reinforce (cap 1 + epsilon_high)",
        },
    ),
    "sapo": ObjectiveForm(
        "loss = -4/t sigmoid(t (r - 1)) A     r = exp(lp_t - lp_o), t by the sign of A",
        "arXiv 2511.20347",
        clip="none",
        names={"TRL": "loss_type=sapo", "verl": "loss_mode=sapo"},
    ),
    "dppo": ObjectiveForm(
        "loss = -r A unless A (p_t - p_r) has left the bound, + 1e-3 d^2     r = exp(lp_t - lp_r)",
        "arXiv 2602.04879",
        ratio="engine",
        clip="probability",
        epsilon=0.2,
        epsilon_high=0.2,
        needs_groups=False,
        names={"prime-rl": "loss.type=default dppo_mask_low=0.2 dppo_mask_high=0.2"},
    ),
    "dppo_kl": ObjectiveForm(
        "loss = -stop_gradient(min(r, 20)) A lp_t unless KL(p_o, p_t) has left the bound     r = exp(lp_t - lp_o)",
        "arXiv 2602.04879; verl",
        clip="divergence",
        epsilon=0.05,
        epsilon_high=0.05,
        needs_groups=False,
        names={
            "verl": "loss_mode=dppo_kl clip_ratio=0.05",
            "SkyRL": "policy_loss_type=dppo dppo.dppo_type=binary_kl (ratio to the engine, no cap at 20)",
        },
    ),
    "ipo": ObjectiveForm(
        "loss = -r A unless |p_t - p_r| has left the bound, + 1e-3 d^2     r = exp(lp_t - lp_r)",
        "prime-rl, trainer/rl/loss.py",
        ratio="engine",
        clip="probability",
        epsilon=0.1,
        epsilon_high=0.1,
        needs_groups=False,
        names={"prime-rl": "loss.type=ipo ipo_threshold=0.1"},
    ),
    "geo_mean": ObjectiveForm(
        "loss = -exp(mean_t(bound(lp_t - lp_o))) A     the bound holds on the side that A pushes to",
        "arXiv 2507.20673; verl",
        clip="log",
        epsilon=0.2,
        epsilon_high=0.2,
        names={"verl": "loss_mode=geo_mean"},
    ),
    "clip_cov": ObjectiveForm(
        f"{_CLIPPED}, 0 for a few tokens whose (A - mean A)(lp_t - mean lp_t) is in (1, 5)",
        "arXiv 2505.22617; verl",
        epsilon=0.2,
        epsilon_high=0.2,
        names={"verl": "loss_mode=clip_cov clip_cov_ratio=0.0002", "SkyRL": "policy_loss_type=clip_cov"},
    ),
    "kl_cov": ObjectiveForm(
        "loss = -r A, + |lp_t - lp_o| for the few tokens with the greatest (A - mean A)(lp_t - mean lp_t)",
        "arXiv 2505.22617; verl",
        clip="none",
        names={"verl": "loss_mode=kl_cov kl_cov_ratio=0.0002", "SkyRL": "policy_loss_type=kl_cov"},
    ),
    "rloo/clipped": ObjectiveForm(
        _CLIPPED_SUM,
        "arXiv 2402.14740",
        clip="sequence_sum",
        names={"TRL": "RLOOTrainer"},
        when=lambda settings: settings.epsilon is not None,
    ),
    "rloo": ObjectiveForm(
        _SCORE,
        "arXiv 2402.14740",
        ratio="none",
        clip="none",
        names={"verl": "adv_estimator=rloo loss_mode=gpg"},
        when=lambda settings: settings.epsilon is None,
    ),
    "reinforce_pp": ObjectiveForm(
        _CLIPPED,
        "arXiv 2501.03262",
        epsilon=0.2,
        epsilon_high=0.2,
        needs_groups=False,
        names={
            "verl": "adv_estimator=reinforce_plus_plus_baseline",
            "OpenRLHF": "--advantage_estimator reinforce_baseline",
        },
    ),
    "reinforce": ObjectiveForm(
        _SCORE, "Williams 1992", ratio="none", clip="none", needs_groups=False, names={"verl": "loss_mode=gpg"}
    ),
}
"""Form -> what it is, in the order of the terminal UI. A form's key is the objective's name, then a slash and its own.

Where the names are from: TRL 1.16 `GRPOConfig` and `RLOOConfig` (https://huggingface.co/docs/trl), verl
`verl/trainer/ppo/core_algos.py` and `verl/trainer/config/algorithm.py` (https://github.com/volcengine/verl), PipelineRL
`pipelinerl/finetune/rl/__init__.py` (https://github.com/ServiceNow/PipelineRL), prime-rl
`prime_rl/configs/trainer.py` (https://github.com/PrimeIntellect-ai/prime-rl), OpenRLHF's command line
(https://github.com/OpenRLHF/OpenRLHF).
"""


def objective_names(forms: Mapping[str, ObjectiveForm] = OBJECTIVES) -> tuple[str, ...]:
    """The objectives that settings may name, each once, in the table's order."""
    return tuple(dict.fromkeys(key.partition("/")[0] for key in forms))


def form_key(settings: Any) -> str:
    """The key of the form that trainer settings mean. KeyError where the table has none."""
    for key, form in OBJECTIVES.items():
        if key.partition("/")[0] == settings.objective and form.when(settings):
            return key
    raise KeyError(settings.objective)


def find_form(settings: Any) -> ObjectiveForm:
    """The form that trainer settings mean."""
    return OBJECTIVES[form_key(settings)]


def default_clip(key: str) -> str:
    """A form's default epsilons as text: ``3e-4/4e-4``."""
    form = OBJECTIVES[key]
    return f"{short(form.epsilon)}/{short(form.epsilon_high)}"


def short(value: float | None) -> str:
    """A bound as text: ``2``, ``0.999``, ``3e-4``, ``none``."""
    if value is None:
        return "none"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:g}"
    digits, exponent = f"{value:e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


# Corrections

SEQUENCE_EXPONENT = 20.0
"""A sequence's log-ratio is held inside plus and minus this before it is exponentiated, as in verl."""


@dataclass(frozen=True)
class Bounds:
    """Lowest and highest ratio (or distance) that a rule leaves alone; None: no bound on that side."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Correction:
    """A weight or a rejection: its default bounds by framework, the first of which are this project's own."""

    of: Literal["weight", "reject", "threshold"]
    """weight, reject: a value of that setting. threshold: a setting of its own, off unless it is set."""
    defaults: Mapping[str, Bounds]

    @property
    def bounds(self) -> Bounds:
        return next(iter(self.defaults.values()))


CORRECTIONS: dict[str, Correction] = {
    "token_tis": Correction(
        "weight",
        {
            "verl": Bounds(high=2.0),
            "slime": Bounds(high=2.0),
            "SkyRL": Bounds(high=2.0),
            "OpenRLHF": Bounds(0.5, 5.0),
            "Miles": Bounds(high=2.0),
            "NeMo-RL": Bounds(high=2.0),
            "TRL": Bounds(high=3.0),
        },
    ),
    "token_mis": Correction(
        "weight",
        {
            "IcePop": Bounds(0.5, 5.0),
            "verl": Bounds(0.5, 5.0),
            "NeMo-RL": Bounds(0.5, 5.0),
            "OpenRLHF": Bounds(0.5, 5.0),
        },
    ),
    "sequence_tis": Correction(
        "weight", {"verl": Bounds(high=2.0), "slime": Bounds(high=2.0), "SkyRL": Bounds(high=5.0)}
    ),
    "sequence_mis": Correction("weight", {"verl": Bounds(0.5, 2.0), "TRL": Bounds(high=3.0)}),
    "geometric": Correction(
        "reject",
        {
            "verl": Bounds(0.999, 1.001),
            "slime": Bounds(0.9999, 1.0001),
            "SkyRL": Bounds(0.99, 1.01),
            "NeMo-RL": Bounds(0.999, 1.002),
        },
    ),
    "k3": Correction("reject", {"verl": Bounds(high=0.01)}),
    "veto": Correction("threshold", {"slime": Bounds(low=1e-4)}),
    "off_policy_mask": Correction("threshold", {"slime": Bounds(high=1e-4), "TRL": Bounds(high=0.5)}),
}
"""Name -> what it is. Sources: verl `docs/algo/rollout_corr.md`, slime `--use-tis`, `--use-opsm` and `mis.yaml`, SkyRL,
NeMo-RL's recipes, OpenRLHF, Miles, TRL `GRPOConfig`; IcePop arXiv 2510.18855. verl's bounds of a geometric mean are of
exp(-mean d), so that in ratios they are [1/1.001, 1/0.999]. TRL's off-policy mask is its documentation's example."""


def correction_names(of: Literal["weight", "reject"]) -> tuple[str, ...]:
    """The values that one of the two settings may have, "none" first."""
    return ("none", *(name for name, correction in CORRECTIONS.items() if correction.of == of))


def truncates(top_p: Any, top_k: Any, min_p: Any) -> Any:
    """Whether a sampler with these settings drops any token; given arrays, it answers element by element."""
    return (top_p < 1) | (top_k > 0) | (min_p > 0)
