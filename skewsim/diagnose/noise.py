"""Noise on the logits and its law, and whether logits lie on bfloat16's grid: the marks of precision."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from skewsim.diagnose.rows import Bools, Floats, Mean, Rows, mean, sequence_means

GRID = 2.0**-7  # bfloat16's spacing of logits in [1, 2); coarser ones are multiples of it
GRID_TOLERANCE = 2e-5  # float32 rounding of a log-softmax
CERTAIN = 0.99
MOST_SPREAD = 12.0  # of a law that real models keep within 1.3, tiny ones with tied logits hardly


@dataclass(frozen=True)
class Noise:
    """The logit-noise law fitted to a skew."""

    sigma_z: float
    spread: float
    """Largest over smallest sigma_z of the probability bins: 1 if the law holds."""
    bias: Mean
    square: float
    shared: float
    """Share of the square that sequences have in common."""

    @property
    def lawful(self) -> bool:
        unbiased = abs(self.bias.value) <= 4 * self.bias.error + self.square
        return self.spread < MOST_SPREAD and unbiased and self.shared < 0.35


def noise_law(rows: Rows, skew: Floats) -> Noise:
    """Bins below `CERTAIN`, where d is more than rounding; the others' squares from the table, or half their most."""
    p = rows.probability
    rest = (1 - p) ** 2 / 2
    if rows.square_mass is not None and np.isfinite(rows.square_mass).all():
        rest = np.clip(rows.square_mass - p**2, 0.0, (1 - p) ** 2)
    law = np.maximum((1 - p) ** 2 + rest, 1e-12)
    sigma = float(np.sqrt((skew**2).sum() / law.sum()))
    edges = np.quantile(p[p < CERTAIN], np.linspace(0, 1, 7)) if (p < CERTAIN).sum() >= 120 else np.array([0, CERTAIN])
    sigmas = []
    for low, high in pairwise(edges):
        inside = (p >= low) & (p < high)
        if inside.sum() >= 15 and high > low:
            sigmas.append(float(np.sqrt((skew[inside] ** 2).sum() / law[inside].sum())))
    spread = max(sigmas) / max(min(sigmas), 1e-12) if sigmas else 1.0
    _, level = sequence_means(skew, rows.sequence)
    _, count = np.unique(rows.sequence, return_counts=True)
    square = float((skew**2).mean())
    between = float((count * level**2).sum()) / max(float((skew**2).sum()), 1e-30) - len(count) / max(len(skew), 1)
    return Noise(sigma, spread, mean(skew, rows.sequence), square, between)


@dataclass(frozen=True)
class Lattice:
    """How many differences of logits within a context lie on bfloat16's grid."""

    share: float
    pairs: int
    spacing: float
    """The coarsest grid that most of them lie on."""

    @property
    def coarse(self) -> bool:
        return self.pairs >= 12 and self.share > 0.5


def lattice(logprobs: Floats, rows: Rows, temperature: float) -> Lattice:
    """Differences to the first token of each context, times the temperature: differences of logits."""
    known = rows.context >= 0
    order = np.argsort(rows.context[known], kind="stable")
    context, token, value = (column[known][order] for column in (rows.context, rows.token, logprobs))
    first = np.flatnonzero(np.diff(context, prepend=-1))
    anchor = np.repeat(first, np.diff(np.append(first, len(context))))
    other = token != token[anchor] if len(token) else np.zeros(0, dtype=bool)
    steps = np.zeros(0)
    if other.any():
        pairs = np.unique(np.stack([context[other], token[other]]), axis=1, return_index=True)[1]
        steps = ((value - value[anchor])[other] * temperature)[pairs]
    on = _on_grid(steps, GRID)
    spacing = GRID
    while len(steps) and spacing < 1 and _on_grid(steps, 2 * spacing).mean() > 0.5:
        spacing *= 2
    return Lattice(float(on.mean()) if len(steps) else 0.0, len(steps), spacing)


def _on_grid(steps: Floats, spacing: float) -> Bools:
    return np.abs(steps / spacing - np.rint(steps / spacing)) * spacing < GRID_TOLERANCE
