"""What healthy skew of a given size looks like, token by token and summed over sequences: what `advise` puts rules to.

Healthy means: the engine samples from its own, slightly different distribution and reports that truthfully, so the
mismatch ratio exp(d) has mean one under the engine. Noise on the logits falls on improbable tokens, so the skew of all
tokens together is no Gaussian but a mixture: most tokens hardly differ, a few differ much. `SHARES` and `SCALES` are
that mixture as measured on 771,300 tokens of Qwen3-1.7B, bfloat16 vLLM against bfloat16 transformers, in five bins of
the token's probability (AknA13/train-infer-mismatch, docs/RESULTS_MEASURE_Qwen3-1p7B.md). Within a bin the scales still
differ; two of them, equally frequent, are what the measured rms and the measured mean together ask for. At another
noise level every scale moves alike. In a component of scale s the skew is N(-s^2/2, s^2).

Means and sums over a sequence of T independent tokens: of the skew itself a normal distribution, corrected for the
skewness and the tails of its tokens (Edgeworth); of what cannot be
negative (k2, k3, exp of the size) a gamma distribution with the right mean, variance and skewness. Where a sequence is
short, or so noisy that a single token rules its mean, sequences are drawn from the mixture instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from skewsim.catalogue import SEQUENCE_EXPONENT
from skewsim.errors import UserError
from skewsim.skew.published import MEAN_ABS_BY_PROBABILITY, find_run

if TYPE_CHECKING:
    from skewsim.skew.profile import SkewProfile
    from skewsim.skew.tokens import TokenTable

Array = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Array]
"""(generator, sequences, tokens) -> skew of that shape, nats."""

Of = Literal["d", "k2", "k3", "mult"]
"""A token's number: its skew d = log rho; k2 = d^2/2; k3 = exp(d) - 1 - d; mult = exp(|d|)."""
Fold = Literal["token", "mean", "sum", "max", "min", "any"]
"""Over what it is taken: each token; a sequence's mean, sum, greatest or least; any: no token may leave the bounds."""
Action = Literal["truncate", "mask", "reject", "clip"]
"""truncate: the weight is clamped. mask: the weight is zero outside. reject, clip: the token or sequence is lost."""

TOKENS_BY_PROBABILITY = (2099, 13645, 61666, 116287, 577603)
"""How many of the 771,300 tokens have a probability below .01, .1, .5, .9 and above; as `MEAN_ABS_BY_PROBABILITY`."""
SHORT = 64
"""Tokens below which sequences are drawn."""
LONG = 4096
"""Tokens above which no sequences are drawn: there would be too few of them."""
MOST_SKEWED = 1.0
"""Skewness of a sequence's mean above which sequences are drawn."""
LARGEST_SIGMA = 2.0
_LARGEST_EXPONENT = 200.0


def _mixture() -> tuple[Array, Array]:
    """Shares (2K,) and scales (2K,) relative to an rms of one."""
    share = np.array(TOKENS_BY_PROBABILITY) / sum(TOKENS_BY_PROBABILITY)
    scale = np.array(MEAN_ABS_BY_PROBABILITY) * math.sqrt(math.pi / 2)  # a Gaussian's, from its mean size
    rms = find_run("qwen3-1.7b-bf16").values["rms"]
    excess = rms**2 / float((share * scale**2).sum())  # what one scale a bin leaves unexplained
    spread = math.sqrt(max(excess - 1, 0.0))
    both = np.concatenate([scale * (1 - spread), scale * (1 + spread)])
    return np.tile(share / 2, 2), both / rms


SHARES, SCALES = _mixture()


@dataclass(frozen=True)
class Effect:
    """What a rule makes of healthy data: moments of the weights it leaves."""

    mean: float
    """E w; 1 for exact weights."""
    square: float
    """E w^2."""
    bias: float
    """E |w - exact|: how far the expected gradient can be off, as a share of it. Exact is rho, or 1 for a rejection."""

    @property
    def ess(self) -> float:
        """(E w)^2 / E w^2: the share of the data that counts."""
        return min(self.mean**2 / self.square, 1.0) if self.square > 0 else 0.0

    @property
    def harm(self) -> float:
        """The share of the data lost to bias or to variance, whichever is more."""
        return max(min(self.bias, 1.0), 1 - self.ess)


class Healthy(Protocol):
    """Healthy data of one noise level and length. Bounds are in the number's own units; those of d are logarithms."""

    @property
    def rms(self) -> float: ...
    @property
    def length(self) -> int: ...
    def inside(self, fold: Fold, of: Of, low: float, high: float) -> float: ...
    def quantile(self, fold: Fold, of: Of, level: float) -> float: ...
    def effect(self, fold: Fold, of: Of, low: float, high: float, action: Action) -> Effect: ...


# ------------------------------------------------------------------------------------------------ one token


def d_interval(of: Of, bound: float) -> tuple[float, float]:
    """The skews at which a token's number is at most ``bound``: (-inf, bound] for d itself."""
    if of == "d":
        return -math.inf, bound
    if of == "mult":
        return -math.log(bound), math.log(bound)
    if of == "k2":
        return -math.sqrt(2 * bound), math.sqrt(2 * bound)
    return _k3_root(bound, upper=False), _k3_root(bound, upper=True)


def _k3_root(bound: float, *, upper: bool) -> float:
    """The root of exp(d) - 1 - d = bound on one side of 0."""
    far = math.log1p(bound)
    edge = min(math.sqrt(2 * bound), far + math.log1p(far) + 2) * (1 + 1e-9) if upper else -1 - bound
    return float(optimize.brentq(lambda d: _k3(d) - bound, 0.0, edge))


def _k3(d: float) -> float:
    """exp(d) - 1 - d, by its series where the terms would cancel."""
    return d**2 / 2 * (1 + d / 3 * (1 + d / 4)) if abs(d) < 1e-4 else math.expm1(d) - d


def token_number(of: Of, d: Array) -> Array:
    """A token's number, from its skew."""
    if of == "d":
        return d
    if of == "k2":
        return np.asarray(d**2 / 2)
    d = np.clip(d, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return np.asarray(np.exp(np.abs(d)) if of == "mult" else np.expm1(d) - d)


_NODES = np.linspace(-9, 9, 3601)
_NODE_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


def expected(sigma: float, value: Callable[[Array], Array]) -> float:
    """The mean of ``value(d)`` over the tokens of the mixture."""
    scale = SCALES[:, None] * sigma
    return float(SHARES @ (value(_NODES * scale - scale**2 / 2) @ _NODE_WEIGHTS))


def sigma_of(metric: str, value: float) -> float:
    """The noise level at which a metric (a key of `skew_metrics`, or rms) of healthy data has this value.

    UserError where the metric says nothing of the noise level, or no level up to 2 nats gives the value.
    """
    if metric == "rms":
        return value
    law = _LAWS.get(metric)
    if law is None:
        raise UserError(f"metric {metric} does not tell the noise level; allowed: rms, {', '.join(_LAWS)}")
    least, most = (law(s) for s in (1e-6, LARGEST_SIGMA))
    if not min(least, most) < value < max(least, most):
        raise UserError(
            f"{metric}={value:g}: healthy data has between {min(least, most):.3g} and {max(least, most):.3g}"
        )
    return float(optimize.brentq(lambda s: law(s) - value, 1e-6, LARGEST_SIGMA, xtol=1e-12))


_LAWS: dict[str, Callable[[float], float]] = {
    "logprob_diff_mean": lambda s: expected(s, np.abs),
    "logprob_diff_std": lambda s: math.sqrt(expected(s, np.square) - expected(s, np.abs) ** 2),
    "kl_k1": lambda s: expected(s, np.negative),
    "kl_k3": lambda s: expected(s, lambda d: token_number("k3", d)),
    "mult_prob_error": lambda s: expected(s, lambda d: token_number("mult", d)),
    "chi2_token": lambda s: float(SHARES @ np.expm1((SCALES * s) ** 2)),
    "ess": lambda s: 1 / float(SHARES @ np.exp((SCALES * s) ** 2)),
}
"""Metric -> its value in healthy data of rms sigma; each of them rises, or falls, throughout."""


# --------------------------------------------------------------------------------------------- closed forms


@dataclass(frozen=True)
class ClosedForm:
    """The mixture at one noise level, and sequences of one length of it."""

    rms: float
    length: int

    @cached_property
    def _tokens(self) -> tuple[Array, Array, Array]:
        """Shares, means and scales of the components."""
        scale = SCALES * self.rms
        return SHARES, -(scale**2) / 2, scale

    @cached_property
    def _drawn(self) -> Drawn:
        """What has no closed form is counted."""
        sequences = min(40_000, 6_000_000 // self.length)
        return Drawn.of(mixture_draw(self.rms), sequences, self.length, seed=0)

    @lru_cache(maxsize=8)  # noqa: B019  (a report's own object, gone with it)
    def _moments(self, of: Of) -> tuple[float, float, float, float]:
        """Mean, variance, skewness and excess kurtosis of a token's number."""
        mean = expected(self.rms, lambda d: token_number(of, d))
        second, third, fourth = (
            expected(self.rms, lambda d, power=power: (token_number(of, d) - mean) ** power)  # type: ignore[misc]
            for power in (2, 3, 4)
        )
        return mean, second, third / second**1.5, fourth / second**2 - 3

    def inside(self, fold: Fold, of: Of, low: float, high: float) -> float:
        if fold in ("mean", "sum"):
            return self._folded_cdf(fold, of, high) - self._folded_cdf(fold, of, low)
        below, above = self._token_interval(of, low, high)
        share, mean, scale = self._tokens
        outside = float(share @ (special.ndtr((below - mean) / scale) + special.ndtr(-(above - mean) / scale)))
        return 1 - outside if fold == "token" else math.exp(self.length * math.log1p(-min(outside, 1 - 1e-16)))

    def _token_interval(self, of: Of, low: float, high: float) -> tuple[float, float]:
        if of == "d":
            return low, high
        return d_interval(of, high)

    def _skewness(self, of: Of) -> float:
        """Of the mean over a sequence."""
        return self._moments(of)[2] / math.sqrt(self.length)

    def _is_drawn(self, of: Of) -> bool:
        """Whether a mean over a sequence is too far from its limiting law, for it is short or one token rules it."""
        skewed = of != "d" and self.length <= LONG and self._skewness(of) > MOST_SKEWED
        return self.length < SHORT or skewed

    def _folded_cdf(self, fold: Fold, of: Of, bound: float) -> float:
        """P(mean or sum <= bound)."""
        if math.isinf(bound):
            return float(bound > 0)
        if self.length == 1:
            return self.inside("token", of, -math.inf, bound)
        mean = bound if fold == "mean" else bound / self.length
        if self._is_drawn(of):
            return self._drawn.inside("mean", of, -math.inf, mean)
        centre, variance, _, kurtosis = self._moments(of)
        z, skewness = (mean - centre) / math.sqrt(variance / self.length), self._skewness(of)
        if of == "d":
            return _edgeworth(z, skewness, kurtosis / self.length)
        shape = 4 / skewness**2
        return float(special.gammainc(shape, max(shape + 2 / skewness * z, 0.0)))

    def quantile(self, fold: Fold, of: Of, level: float) -> float:
        if fold in ("mean", "sum") and self.length > 1 and self._is_drawn(of):
            return self._drawn.quantile(fold, of, level)
        if fold in ("max", "min", "any"):  # the least of T tokens is above x as often as T tokens are, all of them
            power = -math.expm1(math.log1p(-level) / self.length) if fold == "min" else level ** (1 / self.length)
            return self.quantile("token", of, power)

        def excess(x: float) -> float:
            value = x if of == "d" else math.exp(x)
            return self.inside(fold, of, -math.inf, value) - level

        low, high = self._bracket(fold, of)
        root = float(optimize.brentq(excess, low, high, xtol=1e-14, rtol=1e-12))
        return root if of == "d" else math.exp(root)

    def _bracket(self, fold: Fold, of: Of) -> tuple[float, float]:
        """Where a quantile must lie; of what is positive, its logarithm."""
        widest = float(self._tokens[2].max())
        reach = (widest**2 / 2 + 14 * widest) * (self.length if fold == "sum" else 1)
        if of == "d":
            return -reach, reach
        lowest = 0.0 if of == "mult" and fold != "sum" else math.log(1e-30)
        return lowest, math.log(max(self.length, 1)) + min(2 * reach + 14 * widest + 1, 2 * _LARGEST_EXPONENT)

    def effect(self, fold: Fold, of: Of, low: float, high: float, action: Action) -> Effect:
        if of != "d" or action == "reject" or fold in ("max", "min", "any"):
            kept = self.inside(fold, of, low, high)
            return Effect(kept, kept, 1 - kept)
        if fold != "token" and 1 < self.length < SHORT and math.isfinite(high):
            return self._drawn.effect(fold, of, low, high, action)
        return _lognormal_effect(*self._components(fold), low, high, action)

    def _components(self, fold: Fold) -> tuple[Array, Array, Array]:
        """Shares, means and scales of the log-ratio that a weight is made of."""
        if fold == "token" or self.length == 1:
            return self._tokens
        times = self.length if fold == "sum" else 1
        scale = self.rms * math.sqrt(self.length) if fold == "sum" else self.rms / math.sqrt(self.length)
        return np.ones(1), np.array([-(self.rms**2) / 2 * times]), np.array([scale])


def _edgeworth(z: float, skewness: float, kurtosis: float) -> float:
    """P(Z <= z) of a nearly normal number with mean 0 and variance 1, by the Edgeworth series to the fourth moment."""
    third, fourth = z**2 - 1, z**3 - 3 * z
    sixth = z**5 - 10 * z**3 + 15 * z
    change = skewness / 6 * third + kurtosis / 24 * fourth + skewness**2 / 72 * sixth
    return min(max(float(special.ndtr(z)) - math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * change, 0.0), 1.0)


def _lognormal_effect(share: Array, mean: Array, scale: Array, low: float, high: float, action: Action) -> Effect:
    """Moments of the weight made of a ratio whose logarithm is a mixture of normals."""

    def part(power: int, start: float, end: float) -> float:
        return float(share @ _partial_moment(power, mean, scale, start, end))

    if action == "truncate":
        low, high = max(low, -SEQUENCE_EXPONENT), min(high, SEQUENCE_EXPONENT)
    inner, square = part(1, low, high), part(2, low, high)
    below, above = part(1, -math.inf, low), part(1, high, math.inf)
    if action != "truncate":
        return Effect(inner, square, below + above)
    floor, cap = math.exp(low), math.exp(high)
    raised, capped = floor * part(0, -math.inf, low), cap * part(0, high, math.inf)
    bias = max(raised - below, 0.0) + max(above - capped, 0.0)
    return Effect(inner + raised + capped, square + floor * raised + cap * capped, bias)


def _partial_moment(power: int, mean: Array, scale: Array, start: float, end: float) -> Array:
    """E[exp(power x); start < x < end] for x ~ N(mean, scale^2)."""
    moved = mean + power * scale**2
    log = power * mean + power**2 * scale**2 / 2 + _log_between((start - moved) / scale, (end - moved) / scale)
    return np.exp(np.minimum(log, _LARGEST_EXPONENT))


def _log_between(a: Array, b: Array) -> Array:
    """log P(a < Z < b) of a standard normal, also far out in its tails."""
    flip = a > 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    upper, lower = special.log_ndtr(b), special.log_ndtr(a)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = upper + np.log1p(-np.exp(np.minimum(lower - upper, 0.0)))
    return np.where(np.isneginf(upper), -np.inf, inside)


# -------------------------------------------------------------------------------------------------- by drawing


def mixture_draw(sigma: float) -> Draw:
    """Independent tokens of the mixture at rms sigma."""
    edges = np.cumsum(SHARES)[:-1]

    def draw(rng: np.random.Generator, rows: int, tokens: int) -> Array:
        scale = SCALES[np.searchsorted(edges, rng.random((rows, tokens)))] * sigma
        drawn: Array = scale * rng.standard_normal((rows, tokens)) - scale**2 / 2
        return drawn

    return draw


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


def table_draw(table: TokenTable) -> Draw:
    """A log's own tokens, drawn one by one: its distribution without what a sequence shares, moved to a mean ratio
    of 1.
    """
    skew = table.skew[np.isfinite(table.skew)]
    if len(skew) < 2:
        raise UserError(f"the log's {len(table)} rows hold fewer than 2 tokens with both log-probabilities")
    skew = np.clip(skew, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    skew = skew - math.log(np.exp(skew).mean())

    def draw(rng: np.random.Generator, rows: int, tokens: int) -> Array:
        drawn: Array = skew[rng.integers(len(skew), size=(rows, tokens))]
        return drawn

    return draw


@dataclass(frozen=True)
class Drawn:
    """Sequences of healthy skew, reduced to what the rules look at; every array but `token` is (sequences,)."""

    token: Array
    """Skew of some of the tokens, nats."""
    means: dict[Of, Array]
    smallest: Array
    largest: Array
    length: int
    rms: float

    @classmethod
    def of(cls, draw: Draw, sequences: int, length: int, seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        kinds: tuple[Of, ...] = ("d", "k2", "k3", "mult")
        parts: list[list[Array]] = []
        square = 0.0
        step = max(1, 2_000_000 // length)  # 16 MB at a time
        for start in range(0, sequences, step):
            d = draw(rng, min(step, sequences - start), length)
            square += float((d**2).sum())
            some = d.reshape(-1)[:: max(1, sequences * length // 1_000_000)]
            parts.append([some, d.min(axis=1), d.max(axis=1), *(token_number(of, d).mean(axis=1) for of in kinds)])
        token, smallest, largest, *means = (np.concatenate(column) for column in zip(*parts, strict=True))
        rms = math.sqrt(square / (sequences * length))
        return cls(token, dict(zip(kinds, means, strict=True)), smallest, largest, length, rms)

    def _values(self, fold: Fold, of: Of) -> Array:
        if fold == "token":
            return token_number(of, self.token)
        if fold == "max":
            return np.maximum(token_number(of, self.smallest), token_number(of, self.largest))
        if fold == "min":
            return self.smallest
        return self.means[of] * (self.length if fold == "sum" else 1)

    def inside(self, fold: Fold, of: Of, low: float, high: float) -> float:
        if fold == "any":
            return float(((self.smallest >= low) & (self.largest <= high)).mean())
        values = self._values(fold, of)
        return float(((values >= low) & (values <= high)).mean())

    def quantile(self, fold: Fold, of: Of, level: float) -> float:
        if fold == "any":
            return float(np.quantile(self.smallest, level) if level < 0.5 else np.quantile(self.largest, level))
        return float(np.quantile(self._values(fold, of), level))

    def effect(self, fold: Fold, of: Of, low: float, high: float, action: Action) -> Effect:
        if of != "d" or action == "reject" or fold in ("max", "min", "any"):
            kept = self.inside(fold, of, low, high)
            return Effect(kept, kept, 1 - kept)
        values = self._values(fold, of)
        exact = np.exp(np.clip(values, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))
        if action == "truncate":
            weights = np.exp(values.clip(max(low, -SEQUENCE_EXPONENT), min(high, SEQUENCE_EXPONENT)))
        else:
            weights = exact * ((values >= low) & (values <= high))
        mean = float(weights.mean())
        whole = float(exact.mean()) if fold == "mean" else 1.0  # a true ratio's mean: no sample finds it in the tail
        bias = max(whole - mean, 0.0) + 2 * float(np.maximum(weights - exact, 0.0).mean())
        return Effect(mean, float((weights**2).mean()), bias)
