"""How a number by step moves: not at all, with the step, at one step, or with the lag of the engine's weights.

The logarithm of the number is described by a constant, by a line in the step (or its logarithm), by two levels with a
jump between them, and by a line in the lag. Each description pays for its parameters (the Bayesian information
criterion), and what it describes must be a change that a person would call one: by a factor of at least `LEAST`, and
of several times the scatter around it. Anything less is flat.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Shape = Literal["flat", "growing", "falling", "jump", "follows_lag", "too_short"]

FEWEST = 3
"""Steps below which there is no trend."""
LEAST, LEAST_OF_FEW = 1.4, 2.0
"""The least factor between beginning and end that counts as a change; where there are fewer than `FEW` steps, two."""
FEW = 10
SCATTER = 3.0
"""How many times the scatter around its description a change must be."""
EXACT = 0.02
"""Scatter of the logarithm below which a description gets no better."""
EDGE = 4
"""Share (one in so many) of the steps whose median is the level at the beginning and at the end."""


@dataclass(frozen=True)
class Trend:
    """The shape of a curve, and its figures in the curve's own unit."""

    shape: Shape
    steps: int
    first: float
    """Level at the beginning; before the jump."""
    last: float
    """Level at the end; after the jump."""
    at: int | None = None
    """The first step of the new level."""

    @property
    def factor(self) -> float:
        return self.last / self.first if self.first > 0 else float("nan")

    def __str__(self) -> str:
        change = f"{self.first:.3g} -> {self.last:.3g}, a factor of {max(self.factor, 1 / self.factor):.3g}"
        words = {
            "flat": f"flat over {self.steps} steps ({self.first:.3g} at first, {self.last:.3g} at the end)",
            "growing": f"grows with the step, over {self.steps} steps: {change}",
            "falling": f"falls with the step, over {self.steps} steps: {change}",
            "jump": f"jumps at step {self.at}: {change}",
            "follows_lag": f"follows the lag of the engine's weights, over {self.steps} steps: {change}",
            "too_short": f"{self.steps} step{'' if self.steps == 1 else 's'}: too few for a trend",
        }
        return words[self.shape]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"words": str(self)}


def trend(steps: npt.ArrayLike, values: npt.ArrayLike, *, lag: npt.ArrayLike | None = None) -> Trend:
    """The trend of a positive number by step; `lag` is the engine's lag at the same steps.

    Steps may come in any order; values that are not finite or not above 0 are left out.
    """
    at, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    known = np.isfinite(y) & (y > 0)
    late = None if lag is None else np.asarray(lag, dtype=np.float64)
    if late is not None and not np.isfinite(late[known]).all():
        late = None
    order = np.argsort(at[known], kind="stable")
    at, y = at[known][order], y[known][order]
    late = None if late is None else late[known][order]
    if len(y) < FEWEST:
        return Trend("too_short", len(y), *((float(y[0]), float(y[-1])) if len(y) else (np.nan, np.nan)))
    return _described(at, np.log(y), late)


def _described(at: Floats, y: Floats, lag: Floats | None) -> Trend:
    edge = max(1, len(y) // EDGE)
    first, last = float(np.exp(np.median(y[:edge]))), float(np.exp(np.median(y[-edge:])))
    flat = Trend("flat", len(y), first, last)
    best, score = flat, _score(y - y.mean(), 1)
    for found, fitted, parameters in _descriptions(at, y, lag):
        scatter = float(np.sqrt(np.mean((y - fitted) ** 2)))
        change = float(np.ptp(fitted))
        if change < np.log(LEAST if len(y) >= FEW else LEAST_OF_FEW) or change < SCATTER * scatter:
            continue
        cost = _score(y - fitted, parameters)
        if cost < score:
            best, score = found, cost
    return best


def _descriptions(at: Floats, y: Floats, lag: Floats | None) -> list[tuple[Trend, Floats, int]]:
    """(the trend, what it says of the logarithm at each step, how many parameters it has)."""
    count = len(y)
    found = []
    for x in (at, np.log1p(at - at[0])):
        fitted = _line(x, y)
        shape: Shape = "growing" if fitted[-1] > fitted[0] else "falling"
        found.append((Trend(shape, count, *_ends(fitted)), fitted, 2))
    fitted, place = _step(y)
    found.append((Trend("jump", count, *_ends(fitted), at=int(at[place])), fitted, 3))
    if lag is not None and np.ptp(lag) > 0:
        fitted = _line(lag, y)
        if np.ptp(fitted) > 0 and fitted[int(np.argmax(lag))] > fitted[int(np.argmin(lag))]:
            ends = np.exp([fitted.min(), fitted.max()])
            found.append((Trend("follows_lag", count, float(ends[0]), float(ends[1])), fitted, 2))
    return found


def _ends(fitted: Floats) -> tuple[float, float]:
    return float(np.exp(fitted[0])), float(np.exp(fitted[-1]))


def _line(x: Floats, y: Floats) -> Floats:
    """Least squares of a line."""
    if np.ptp(x) == 0:
        return np.full(len(y), y.mean())
    centred = x - x.mean()
    return np.asarray(y.mean() + centred * (centred @ y) / (centred @ centred))


def _step(y: Floats) -> tuple[Floats, int]:
    """(the two levels that fit best, the first place of the second)."""
    count, sums = np.arange(1, len(y)), np.cumsum(y)
    before, after = sums[:-1] / count, (sums[-1] - sums[:-1]) / (len(y) - count)
    place = int(np.argmax(count * before**2 + (len(y) - count) * after**2)) + 1
    return np.where(np.arange(len(y)) < place, before[place - 1], after[place - 1]), place


def _score(rest: Floats, parameters: int) -> float:
    count = len(rest)
    return float(count * np.log(np.mean(rest**2) + EXACT**2) + parameters * np.log(count))
