"""How a run ended: whether its reward collapsed, when, what it ended at, and which number warned how long before.

All from one member's curves. Its reward at a step is the mean of the last `WINDOW` steps up to it.

- It has collapsed once that is at most half of the highest that it was before, or once a loss or gradient is not finite
  (diverged). A reward that never came to `LEAST` is too rare to be said to collapse.
- It has settled once the reward of the last two windows is at least `SOLVED`, or exactly 0: where all responses of a
  prompt earn the same, there is no advantage and so no gradient.
- Its reward falls at the last step, before it collapsed, at which it was within a tenth of the highest before.
- A number warns at the first of `IN_A_ROW` steps at which it is outside of the band of the run's own first `WINDOW`
  steps: their mean and `SIGMAS` standard deviations on both sides. The lead is the step at which the reward falls minus
  that step; a negative lead is a warning that came too late.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skewsim.records import tenth

WINDOW = 10
"""Steps over which a reward is averaged; a step of 64 responses alone is too noisy to be judged."""
LEAST = 0.1
SOLVED = 0.98
SIGMAS = 4.0
IN_A_ROW = 3
_ROUNDING = 1e-12
NARROWEST = 0.05
"""A band is at least so wide on each side, as a share of its mean: numbers that do not move at first have no spread."""
WARNINGS = {
    "skew/kl_k3": "k3",
    "update/clip_rate": "clip rate",
    "ratio/ess": "ESS",
    "optim/grad_norm": "gradient norm",
    "policy/entropy": "entropy",
}
"""The numbers that may warn, and what they are called in a figure."""

Curves = Mapping[str, Sequence[float] | NDArray[np.float64]]


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
    fell: int | None
    leads: dict[str, int | None]
    """Metric -> steps from its warning to the fall; None: no fall, or no warning before the collapse."""
    false_alarms: dict[str, bool]
    """Metric -> whether it warned although nothing collapsed; False where something did."""


def judge(curves: Curves, *, steps: int, diverged: bool = False) -> Outcome:
    """The outcome of one member from its curves, each (steps done,), of which ``steps`` were planned."""
    reward = np.nan_to_num(np.asarray(curves["reward/mean"], dtype=float))
    watch = Watch()
    for index, value in enumerate(reward):
        watch.add(float(value), diverged=diverged and index == len(reward) - 1)
    fell = None if watch.collapsed is None else fall(reward, watch.collapsed)
    end = len(reward) if watch.collapsed is None else watch.collapsed
    alarms = {key: warning(np.asarray(curves[key], dtype=float)[:end]) for key in WARNINGS if key in curves}
    return Outcome(
        steps=len(reward),
        final_reward=float(reward[-tenth(steps) :].mean()) if len(reward) else 0.0,
        collapsed=watch.collapsed,
        fell=fell,
        leads={key: None if fell is None or at is None else fell - at for key, at in alarms.items()},
        false_alarms={key: watch.collapsed is None and at is not None for key, at in alarms.items()},
    )


def fall(reward: NDArray[np.float64], collapsed: int) -> int:
    """The last step, before it collapsed, at which the windowed reward was within a tenth of the highest before."""
    means = windowed(reward)[: collapsed + 1]
    highest = np.maximum.accumulate(means)
    return int(np.flatnonzero(means >= 0.9 * highest)[-1])


def warning(values: NDArray[np.float64]) -> int | None:
    """The first of `IN_A_ROW` steps outside of the band of the first `WINDOW` steps; None if there is none."""
    first = values[:WINDOW]
    if len(values) <= WINDOW or not np.isfinite(first).all():
        return None
    middle = first.mean()
    reach = max(SIGMAS * first.std(ddof=1), NARROWEST * abs(middle))
    outside = np.abs(values - middle) > reach
    outside[:WINDOW] = False
    found = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(outside, IN_A_ROW).all(axis=1))
    return int(found[0]) if len(found) else None


def windowed(reward: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the last `WINDOW` steps up to each step; of fewer at the start."""
    total = np.concatenate([[0.0], np.cumsum(reward)])
    begin = np.maximum(0, np.arange(len(reward)) + 1 - WINDOW)
    return (total[1:] - total[begin]) / (np.arange(len(reward)) + 1 - begin)  # type: ignore[no-any-return]
