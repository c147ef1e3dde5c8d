"""Healthy sequences by drawing: tokens of the mixture, of a profile, or of a log, and what the rules count on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from skewsim.catalogue import SEQUENCE_EXPONENT
from skewsim.errors import UserError
from skewsim.skew.effect import Action, Effect, Fold, Of
from skewsim.skew.mixture import LARGEST_EXPONENT, SCALES, SHARES, Array, token_number

if TYPE_CHECKING:
    from skewsim.skew.profile import SkewProfile
    from skewsim.skew.tokens import TokenTable

Draw = Callable[[np.random.Generator, int, int], Array]
"""(generator, sequences, tokens) -> skew of that shape, nats."""


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
    skew = np.clip(skew, -LARGEST_EXPONENT, LARGEST_EXPONENT)
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
        exact = np.exp(np.clip(values, -LARGEST_EXPONENT, LARGEST_EXPONENT))
        if action == "truncate":
            weights = np.exp(values.clip(max(low, -SEQUENCE_EXPONENT), min(high, SEQUENCE_EXPONENT)))
        else:
            weights = exact * ((values >= low) & (values <= high))
        mean = float(weights.mean())
        whole = float(exact.mean()) if fold == "mean" else 1.0  # a true ratio's mean: no sample finds it in the tail
        bias = max(whole - mean, 0.0) + 2 * float(np.maximum(weights - exact, 0.0).mean())
        return Effect(mean, float((weights**2).mean()), bias)
