"""What healthy skew of a given size looks like, token by token and summed over sequences: what `advise` puts rules to.

Healthy means: the engine samples from its own, slightly different distribution and reports that truthfully, so the
mismatch ratio exp(d) has mean one under the engine. One token is a mixture of normals (`mixture`).

Means and sums over a sequence of T independent tokens: of the skew itself a normal distribution, corrected for the
skewness and the tails of its tokens (Edgeworth); of what cannot be negative (k2, k3, exp of the size) a gamma
distribution with the right mean, variance and skewness. Where a sequence is short, or so noisy that a single token
rules its mean, sequences are drawn from the mixture instead (`drawn`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import optimize, special

from skewsim.catalogue import SEQUENCE_EXPONENT
from skewsim.skew.drawn import Drawn, mixture_draw
from skewsim.skew.effect import Action, Effect, Fold, Of
from skewsim.skew.mixture import LARGEST_EXPONENT, SCALES, SHARES, Array, d_interval, expected, token_number

SHORT = 64
"""Tokens below which sequences are drawn."""
LONG = 4096
"""Tokens above which no sequences are drawn: there would be too few of them."""
MOST_SKEWED = 1.0
"""Skewness of a sequence's mean above which sequences are drawn."""


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
        return lowest, math.log(max(self.length, 1)) + min(2 * reach + 14 * widest + 1, 2 * LARGEST_EXPONENT)

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
    return np.exp(np.minimum(log, LARGEST_EXPONENT))


def _log_between(a: Array, b: Array) -> Array:
    """log P(a < Z < b) of a standard normal, also far out in its tails."""
    flip = a > 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    upper, lower = special.log_ndtr(b), special.log_ndtr(a)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = upper + np.log1p(-np.exp(np.minimum(lower - upper, 0.0)))
    return np.where(np.isneginf(upper), -np.inf, inside)
