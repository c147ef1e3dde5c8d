"""How a run ended: whether its reward collapsed, when, what it ended at, and which number warned how long before.

All from one member's curves. Its reward at a step is the mean of the last `WINDOW` steps up to it.

- It has collapsed once that is at most half of the highest that it was before, or once a loss or gradient is not finite
  (diverged). A reward that never came to `LEAST` is too rare to be said to collapse.
- It has settled once the reward of the last two windows is at least `SOLVED`, or exactly 0: where all responses of a
  prompt earn the same, there is no advantage and so no gradient.
- Its reward falls at the last step, before it collapsed, at which it was within a tenth of the highest before.
- A number warns at the first of `IN_A_ROW` steps at which it is outside of the healthy band: below the lowest or above
  the highest that it is, at the same step, in runs that do not collapse (at least `LEAST_HEALTHY` of them; a run that
  is one of them itself is compared with the others). The lead is the step at which the reward falls minus that step; a
  negative lead is a warning that came too late, and a warning of a run that does not collapse is a false alarm.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skewsim.records import tenth

WINDOW = 10
"""Steps over which a reward is averaged; a step of 64 responses alone is too noisy to be judged."""
LEAST = 0.1
SOLVED = 0.98
IN_A_ROW = 3
LEAST_HEALTHY = 4
_ROUNDING = 1e-12
WARNINGS = {
    "skew/kl_k3": "k3",
    "update/clip_rate": "clip rate",
    "ratio/ess": "ESS",
    "optim/grad_norm": "gradient norm",
    "policy/entropy": "entropy",
}
"""The numbers that may warn, and what they are called in a figure."""


class Watch:
    """Follows one member's reward, step by step, until it has collapsed or settled."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._longer: deque[float] = deque(maxlen=2 * WINDOW)
        self._steps, self._highest = 0, 0.0
        self.collapsed: int | None = None
        """The step at which it collapsed."""
        self.settled: int | None = None
        """The step at which it first had settled."""

    def add(self, reward: float | None, *, diverged: bool = False) -> None:
        """Take in the next step."""
        value = 0.0 if reward is None or math.isnan(reward) else reward
        self._last.append(value)
        self._longer.append(value)
        mean = math.fsum(self._last) / len(self._last)
        full = len(self._last) == WINDOW
        if self.collapsed is None and (
            diverged or (full and self._highest >= LEAST and mean <= self._highest / 2 + _ROUNDING)
        ):
            self.collapsed = self._steps
        if full:
            self._highest = max(self._highest, mean)
        longer = math.fsum(self._longer) / len(self._longer)
        if self.settled is None and len(self._longer) == 2 * WINDOW and (longer >= SOLVED or longer == 0):
            self.settled = self._steps
        self._steps += 1


@dataclass(frozen=True)
class Outcome:
    """How one member ended."""

    steps: int
    """Steps that it was trained for; fewer than it could have been if it was stopped early."""
    final_reward: float
    """Mean over the last tenth of the planned number of steps, counted back from the member's last one."""
    collapsed: int | None
    """The step at which it collapsed."""
    fell: int | None
    """The step at which its reward fell before that."""


def judge(reward: Sequence[float] | NDArray[np.float64], *, steps: int, diverged: bool = False) -> Outcome:
    """The outcome of one member from its reward at each step done, of which ``steps`` were planned."""
    values = np.nan_to_num(np.asarray(reward, dtype=float))
    watch = Watch()
    for index, value in enumerate(values):
        watch.add(float(value), diverged=diverged and index == len(values) - 1)
    return Outcome(
        steps=len(values),
        final_reward=float(values[-tenth(steps) :].mean()) if len(values) else 0.0,
        collapsed=watch.collapsed,
        fell=None if watch.collapsed is None else fall(values, watch.collapsed),
    )


def fall(reward: NDArray[np.float64], collapsed: int) -> int:
    """The last step, before it collapsed, at which the windowed reward was within a tenth of the highest before.

    Where it collapsed before the first window was full: the step before.
    """
    means = windowed(reward)[: collapsed + 1]
    near = means >= 0.9 * np.maximum.accumulate(np.where(np.arange(len(means)) < WINDOW - 1, 0.0, means))
    near[: WINDOW - 1] = False
    near[collapsed] = False
    found = np.flatnonzero(near)
    return int(found[-1]) if len(found) else max(0, collapsed - 1)


class HealthyBand:
    """What a number is in runs that do not collapse: the lowest and the highest of it at each step."""

    def __init__(self, curves: Sequence[NDArray[np.float64]]) -> None:
        length = max((len(curve) for curve in curves), default=0)
        rows = np.full((max(2, len(curves)), length), math.nan)
        for row, curve in zip(rows, curves, strict=False):
            row[: len(curve)] = curve
        self._count = np.isfinite(rows).sum(axis=0)
        self._low = np.sort(np.where(np.isfinite(rows), rows, math.inf), axis=0)[:2]
        self._high = np.sort(np.where(np.isfinite(rows), rows, -math.inf), axis=0)[:-3:-1]

    def warning(self, values: NDArray[np.float64], *, healthy: bool = False) -> int | None:
        """The first of `IN_A_ROW` steps at which a run is outside of the band; None if there is none.

        ``healthy``: the run is one of those that the band is of, and is compared with the others.
        """
        count = min(len(values), len(self._count))
        if count < IN_A_ROW:
            return None
        values, low, high = values[:count], self._low[:, :count], self._high[:, :count]
        lowest = np.where((values == low[0]) & healthy, low[1], low[0])
        highest = np.where((values == high[0]) & healthy, high[1], high[0])
        known = self._count[:count] - healthy >= LEAST_HEALTHY
        outside = known & ((values < lowest) | (values > highest))
        found = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(outside, IN_A_ROW).all(axis=1))
        return int(found[0]) if len(found) else None


def windowed(reward: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the last `WINDOW` steps up to each step; of fewer at the start."""
    total = np.concatenate([[0.0], np.cumsum(reward)])
    begin = np.maximum(0, np.arange(len(reward)) + 1 - WINDOW)
    return (total[1:] - total[begin]) / (np.arange(len(reward)) + 1 - begin)  # type: ignore[no-any-return]
