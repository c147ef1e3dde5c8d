"""What every framework's default threshold does to perfectly healthy data, and the setting that would not fire.

Healthy means: the engine samples from its own, slightly different distribution and reports that truthfully, so
the mismatch ratio has mean one under the engine. With Gaussian skew of rms `sigma` that is

    d ~ N(-sigma^2/2, sigma^2),   mean_t d ~ N(-sigma^2/2, sigma^2/T),   sum_t d ~ N(-T sigma^2/2, T sigma^2),

and every rule is a bound on one of these, so its firing rate and the effective sample size of the weights it
leaves, (E w)^2 / E w^2, are partial moments of a lognormal. With a measured profile the same rules are applied
to sequences drawn from it (Monte Carlo: tails, bias and a component shared by a sequence included).

Defaults: verl `rollout_correction`, slime `--use-tis`/`--use-opsm`/mis.yaml, SkyRL, NeMo-RL, OpenRLHF, TRL
`GRPOConfig`, PipelineRL, prime-rl; IcePop arXiv 2510.18855, GSPO 2507.18071, GRPO 2402.03300, DAPO 2503.14476,
CISPO 2506.13585, DPPO 2602.04879. The clips of objectives are meant for bypass mode, where the skew is in the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from skewsim.catalogue import CORRECTIONS, OBJECTIVES, SEQUENCE_EXPONENT
from skewsim.errors import UserError

if TYPE_CHECKING:
    from skewsim.skew.profile import SkewProfile

Array = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Array]
"""(generator, sequences, tokens) -> skew of that shape, nats."""

Statistic = Literal["token", "mean", "sum", "k3", "min"]
Action = Literal["truncate", "mask", "reject", "clip"]


@dataclass(frozen=True)
class Rule:
    """One threshold of one framework: keep `low <= exp(statistic) <= high` (for k3: statistic <= high)."""

    framework: str
    rule: str
    setting: str
    """Template of the setting, with {low} and {high}."""
    statistic: Statistic
    action: Action
    """truncate: the weight is clamped. mask: the weight is zero outside. reject, clip: the token or sequence is lost."""
    low: float | None = None
    high: float | None = None
    units: Literal["ratio", "distance", "log"] = "ratio"
    """What the framework's argument counts: the ratio, its distance from one, or minus its logarithm."""

    @property
    def log_bounds(self) -> tuple[float, float]:
        low = -math.inf if not self.low else math.log(self.low)
        return low, math.inf if self.high is None else math.log(self.high)

    def text(self, low: float | None, high: float | None) -> str:
        """The bounds in the units of the framework's own argument."""
        if self.units == "distance":
            low, high = None if low is None else 1 - low, None if high is None else high - 1
        if self.units == "log" and low is not None:
            low = max(-math.log(low), 0.0)
        return self.setting.format(low=_number(low), high=_number(high))


@dataclass(frozen=True)
class AdviseRow:
    """What one rule does to healthy data."""

    source: Rule
    fired: float
    """Share of tokens (token rules) or sequences (the others) that the default touches."""
    ess: float
    """Effective sample size of the weights it leaves, as a fraction."""
    bounds: tuple[float | None, float | None] | None
    """Bounds that fire on at most the tolerance; None: the default already does."""

    @property
    def framework(self) -> str:
        return self.source.framework

    @property
    def rule(self) -> str:
        return self.source.rule

    @property
    def default(self) -> str:
        return self.source.text(self.source.low, self.source.high)

    @property
    def healthy(self) -> str | None:
        """The setting that would not fire, in the framework's own words."""
        return None if self.bounds is None else self.source.text(*self.bounds)

    def to_json(self) -> dict[str, Any]:
        setting = self.default if self.healthy is None else f"{self.default} (would not fire: {self.healthy})"
        keeps = self.source.action in ("reject", "mask")
        share = {"kept": 1 - self.fired} if keeps else {"clipped": self.fired}
        return {"framework": self.framework, "rule": self.rule, "setting": setting, **share, "ess": self.ess}


@dataclass(frozen=True)
class AdviseReport:
    """The table for one noise level and one length."""

    sigma: float
    length: int
    rows: tuple[AdviseRow, ...]
    source: str
    """"closed form", or the profile's name."""
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "length": self.length, "rows": [row.to_json() for row in self.rows]}


def _weight(framework: str, setting: str, method: str) -> Rule:
    """The rule of an importance weight: truncated (TIS) or masked (MIS), per token or per sequence."""
    bounds = CORRECTIONS[method].defaults[framework]
    per, kind = method.split("_")
    action: Action = "truncate" if kind == "tis" else "mask"
    statistic: Statistic = "sum" if per == "sequence" else "token"
    return Rule(framework, f"{per} {kind.upper()}", setting, statistic, action, bounds.low, bounds.high)


def _geometric(framework: str, setting: str) -> Rule:
    bounds = CORRECTIONS["geometric"].defaults[framework]
    return Rule(framework, "geometric rejection", setting, "mean", "reject", bounds.low, bounds.high)


def _off_policy(framework: str, setting: str) -> Rule:
    """The framework's argument is a distance in nats; it bounds the mean log-ratio from below."""
    distance = CORRECTIONS["off_policy_mask"].defaults[framework].high or 0.0
    name = "off-policy sequence mask (of negative advantages)"
    return Rule(framework, name, setting, "mean", "reject", math.exp(-distance), units="log")


def _clip(framework: str, name: str, setting: str, form: str) -> Rule:
    """The rule of an objective's own clip; of a probability's, whose change is at most the ratio's distance from one."""
    objective = OBJECTIVES[form]
    high = objective.epsilon_high
    if objective.clip == "cap":
        return Rule(framework, name, setting, "token", "truncate", high=high)
    bounds = (None if objective.epsilon is None else 1 - objective.epsilon, None if high is None else 1 + high)
    statistic: Statistic = "mean" if objective.clip == "sequence_mean" else "token"
    return Rule(framework, name, setting, statistic, "clip", *bounds, units="distance")


RULES: tuple[Rule, ...] = (
    Rule("any", "sequence weight, unbounded", "no correction bound", "sum", "truncate"),
    _weight("verl", "rollout_is=token rollout_is_threshold={high}", "token_tis"),
    _weight("verl", "rollout_is=sequence rollout_is_threshold={high}", "sequence_tis"),
    _weight("verl", "sequence ratio masked above {high}", "sequence_mis"),
    _geometric("verl", "rollout_rs=seq_mean_k1 rollout_rs_threshold={low}_{high}"),
    Rule(
        "verl",
        "k3 rejection",
        "rollout_rs=seq_mean_k3 rollout_rs_threshold={high}",
        "k3",
        "reject",
        high=CORRECTIONS["k3"].defaults["verl"].high,
    ),
    _weight("slime", "--use-tis --tis-clip {high}", "token_tis"),
    _geometric("slime", "rs_level=geometric rs_lower_bound={low} rs_upper_bound={high}"),
    Rule(
        "slime",
        "token veto",
        "rs_veto_threshold={low}",
        "min",
        "reject",
        low=CORRECTIONS["veto"].defaults["slime"].low,
    ),
    _off_policy("slime", "--use-opsm --opsm-delta {low}"),
    _weight("SkyRL", "token weight cap {high}", "token_tis"),
    _weight("SkyRL", "sequence weight cap {high}", "sequence_tis"),
    _geometric("SkyRL", "geometric bounds {low} to {high}"),
    _geometric("NeMo-RL", "geometric bounds {low} to {high}"),
    _weight("OpenRLHF", "token weight clamped to {low} to {high}", "token_tis"),
    _weight("IcePop", "token ratio kept in {low} to {high}", "token_mis"),
    _weight(
        "TRL", "vllm_importance_sampling_mode=sequence_mask vllm_importance_sampling_clip_max={high}", "sequence_mis"
    ),
    _off_policy("TRL", "off_policy_mask_threshold={low}"),
    _clip("TRL", "GRPO clip", "epsilon={low} epsilon_high={high}", "grpo"),
    _clip("TRL", "CISPO cap", "epsilon_high={high}", "cispo"),
    _clip("DAPO", "clip-higher", "epsilon={low} epsilon_high={high}", "dapo"),
    _clip("GSPO", "paper clip", "epsilon={low} epsilon_high={high}", "gspo/paper"),
    _clip("PipelineRL", "GSPO clip", "epsilon_low={low} epsilon_high={high}", "gspo/pipelinerl"),
    _clip("prime-rl", "DPPO total variation (at most)", "total variation threshold {high}", "dppo"),
)


def advise(
    noise: float | SkewProfile, length: int, *, tolerance: float = 1e-3, draws: int = 4_000_000, seed: int = 0
) -> AdviseReport:
    """What every default does to healthy data of this noise level and length.

    `noise` is sigma, the rms skew per token in nats, or a profile; `length` is response tokens; `tolerance` is
    the share of tokens or sequences on which a setting may fire and still counts as not firing. UserError on
    values outside (0, 5], [1, 1e6], (0, 0.5).
    """
    if not 1 <= length <= 1_000_000:
        raise UserError(f"length={length}: allowed are 1 to 1000000 tokens")
    if not 0 < tolerance < 0.5:
        raise UserError(f"tolerance={tolerance}: allowed is more than 0 and less than 0.5")
    if isinstance(noise, int | float):
        if not 0 < noise <= 5:
            raise UserError(f"sigma={noise}: allowed is more than 0 and at most 5 nats")
        rows = tuple(_closed_row(rule, float(noise), length, tolerance) for rule in RULES)
        return AdviseReport(float(noise), length, rows, "closed form", tolerance)
    sequences = int(min(20_000, max(1000, draws // length)))
    sample = Sample.draw(profile_draw(noise), sequences, length, seed)
    rows = tuple(_sampled_row(rule, sample, tolerance) for rule in RULES)
    return AdviseReport(sample.rms, length, rows, noise.name, tolerance)


def simulate(
    sigma: float, length: int, *, sequences: int = 4000, tolerance: float = 1e-3, seed: int = 0
) -> AdviseReport:
    """The same table by drawing Gaussian skew and applying every rule: the check of the closed forms."""

    def draw(rng: np.random.Generator, rows: int, tokens: int) -> Array:
        return rng.normal(-(sigma**2) / 2, sigma, (rows, tokens))

    sample = Sample.draw(draw, sequences, length, seed)
    return AdviseReport(
        sigma, length, tuple(_sampled_row(rule, sample, tolerance) for rule in RULES), "simulated", tolerance
    )


def profile_draw(profile: SkewProfile) -> Draw:
    """Skew of healthy tokens as measured: a probability bin by its share, then its quantiles, inverted.

    The latent normal of a token is partly its sequence's, by the measured correlation. A constant is taken off so
    that the ratio has mean one: what it was measured with, a few thousand tokens, does not fix the mean well enough
    for bounds of 1e-4, and in healthy data the ratio's mean is one by definition.
    """
    bins = [item for item in profile.by_probability if item.tokens > 0]
    levels, table = np.array(profile.quantile_levels), np.array([item.quantiles for item in bins])
    shares = np.array([item.tokens for item in bins]) / sum(item.tokens for item in bins)
    shared = min(max(profile.fit.sequence_correlation.value or 0.0, 0.0), 1.0)
    grid = np.linspace(0, 1, 100_001)
    ratio = sum(share * np.exp(np.interp(grid, levels, row)).mean() for share, row in zip(shares, table, strict=True))
    shift = math.log(ratio)

    def draw(rng: np.random.Generator, rows: int, tokens: int) -> Array:
        latent = math.sqrt(1 - shared) * rng.standard_normal((rows, tokens))
        if shared:
            latent += math.sqrt(shared) * rng.standard_normal((rows, 1))
        uniform = special.ndtr(latent)
        chosen = rng.choice(len(bins), size=(rows, tokens), p=shares)
        right = np.clip(np.searchsorted(levels, uniform), 1, len(levels) - 1)
        part = (uniform - levels[right - 1]) / (levels[right] - levels[right - 1])
        left = table[chosen, right - 1]
        drawn: Array = left + part * (table[chosen, right] - left) - shift
        return drawn

    return draw


# ---------------------------------------------------------------------------------------------- closed forms


def _closed_row(rule: Rule, sigma: float, length: int, tolerance: float) -> AdviseRow:
    if rule.statistic == "k3":
        return _k3_row(rule, sigma, length, tolerance)
    if rule.statistic == "min":
        return _veto_row(rule, sigma, length, tolerance)
    scale = {"token": sigma, "mean": sigma / math.sqrt(length), "sum": sigma * math.sqrt(length)}[rule.statistic]
    mean = -(sigma**2) / 2 * (length if rule.statistic == "sum" else 1)
    low, high = rule.log_bounds
    inside = float(stats.norm.cdf(high, mean, scale) - stats.norm.cdf(low, mean, scale))
    weights = [_weight_moment(rule.action, power, mean, scale, (low, high)) for power in (1, 2)]
    suggestion = _suggest(rule, lambda q: float(stats.norm.ppf(q, mean, scale)), tolerance)
    return _row(rule, 1 - inside, weights[0] ** 2 / weights[1] if weights[1] > 0 else 0.0, suggestion, tolerance)


def _weight_moment(action: Action, power: int, mean: float, scale: float, bounds: tuple[float, float]) -> float:
    """E w^power for a log-ratio N(mean, scale^2) under the rule; reject and clip leave weight one inside."""
    low, high = bounds
    if action == "reject":
        return float(stats.norm.cdf(high, mean, scale) - stats.norm.cdf(low, mean, scale))
    inner_low, inner_high = max(low, -SEQUENCE_EXPONENT), min(high, SEQUENCE_EXPONENT)
    shifted = mean + power * scale**2
    inside = stats.norm.cdf(inner_high, shifted, scale) - stats.norm.cdf(inner_low, shifted, scale)
    moment = math.exp(power * mean + power**2 * scale**2 / 2) * float(inside)
    if action == "truncate" or math.isinf(low):
        moment += math.exp(power * inner_low) * float(stats.norm.cdf(inner_low, mean, scale))
    if action == "truncate" or math.isinf(high):
        moment += math.exp(power * inner_high) * float(stats.norm.sf(inner_high, mean, scale))
    return moment


def _k3_row(rule: Rule, sigma: float, length: int, tolerance: float) -> AdviseRow:
    """Mean of T terms exp(d)-d-1 with mean sigma^2/2 and variance exp(sigma^2)-1-sigma^2: a gamma by moments."""
    mean, variance = sigma**2 / 2, (math.expm1(sigma**2) - sigma**2) / length
    gamma = stats.gamma(mean**2 / variance, scale=variance / mean)
    fired = float(gamma.sf(rule.high))
    return _row(rule, fired, 1 - fired, _suggest(rule, lambda q: float(gamma.ppf(q)), tolerance), tolerance)


def _veto_row(rule: Rule, sigma: float, length: int, tolerance: float) -> AdviseRow:
    """A sequence survives if each of its T independent tokens does."""
    low = rule.log_bounds[0]
    kept = math.exp(length * float(stats.norm.logsf(low, -(sigma**2) / 2, sigma)))
    worst = float(stats.norm.ppf(-math.expm1(math.log1p(-tolerance) / length), -(sigma**2) / 2, sigma))
    return _row(rule, 1 - kept, kept, (math.exp(worst), None), tolerance)


# ------------------------------------------------------------------------------------------------ Monte Carlo


@dataclass(frozen=True)
class Sample:
    """Sequences of healthy skew, reduced to what the rules look at."""

    token: Array
    mean: Array
    k3: Array
    smallest: Array
    length: int
    rms: float

    @classmethod
    def draw(cls, draw: Draw, sequences: int, length: int, seed: int) -> Sample:
        rng = np.random.default_rng(seed)
        parts: list[tuple[Array, Array, Array, Array]] = []
        square = 0.0
        step = max(1, 2_000_000 // length)  # 16 MB at a time
        for start in range(0, sequences, step):
            skew = draw(rng, min(step, sequences - start), length)
            square += float((skew**2).sum())
            k3 = (np.expm1(skew) - skew).mean(axis=1)
            tokens = skew.reshape(-1)[:: max(1, sequences * length // 1_000_000)]
            parts.append((tokens, skew.mean(axis=1), k3, skew.min(axis=1)))
        token, mean, k3_mean, smallest = (np.concatenate(column) for column in zip(*parts, strict=True))
        return cls(token, mean, k3_mean, smallest, length, math.sqrt(square / (sequences * length)))

    def statistic(self, name: Statistic) -> Array:
        values = {"token": self.token, "mean": self.mean, "sum": self.mean * self.length, "k3": self.k3}
        return values.get(name, self.smallest)


def _sampled_row(rule: Rule, sample: Sample, tolerance: float) -> AdviseRow:
    values = sample.statistic(rule.statistic)
    low, high = (-math.inf, rule.high or math.inf) if rule.statistic == "k3" else rule.log_bounds
    inside = (values >= low) & (values <= high)
    if rule.statistic in ("k3", "min") or rule.action == "reject":
        weights = inside.astype(float)
    else:
        bounds = (low, high) if rule.action == "truncate" else (-math.inf, math.inf)
        bounded = np.clip(np.clip(values, -SEQUENCE_EXPONENT, SEQUENCE_EXPONENT), *bounds)
        weights = np.exp(bounded) * (1.0 if rule.action == "truncate" else inside)
    square = float((weights**2).mean())
    ess = float(weights.mean()) ** 2 / square if square > 0 else 0.0
    suggestion = _suggest(rule, lambda q: float(np.quantile(values, q)), tolerance)
    return _row(rule, 1 - float(inside.mean()), ess, suggestion, tolerance)


# --------------------------------------------------------------------------------------------------- settings


def _suggest(rule: Rule, quantile: Callable[[float], float], tolerance: float) -> tuple[float | None, float | None]:
    """Bounds outside which healthy data falls with at most the tolerance, rounded outward by a little."""
    sides = (rule.low is not None) + (rule.high is not None)
    if sides == 0:
        return None, None
    if rule.statistic == "k3":
        return None, 1.02 * quantile(1 - tolerance)
    low = None if rule.low is None else math.exp(quantile(tolerance / sides))
    high = None if rule.high is None else math.exp(quantile(1 - tolerance / sides))
    return (
        None if low is None or rule.low is None else min(1 - (1 - low) * 1.02, rule.low),
        None if high is None or rule.high is None else max(1 + (high - 1) * 1.02, rule.high),
    )


def _row(
    rule: Rule, fired: float, ess: float, suggestion: tuple[float | None, float | None], tolerance: float
) -> AdviseRow:
    fires = fired > tolerance and suggestion != (None, None)
    return AdviseRow(rule, min(max(fired, 0.0), 1.0), min(ess, 1.0), suggestion if fires else None)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if 0.5 < value < 1.5 and value != 1:  # bounds around one: keep three digits of the distance from it
        digits = max(1, 2 - math.floor(math.log10(abs(value - 1))))
        return f"{value:.{min(digits, 9)}f}".rstrip("0")
    return f"{value:.3g}"
