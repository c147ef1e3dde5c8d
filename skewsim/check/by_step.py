"""What metrics by step tell without a single token: the level, its trend, bias or noise, and what the weights do.

The level is the noise level of healthy data with the same metric (`noise_level.levels_of`), so that every framework's
metric is one number, an rms in nats. With d = trainer - engine, the two estimates of the KL divergence tell whether
the report is truthful: k3 - k1 = E exp(d) - 1 exactly, which is 0 for a truthful engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skewsim.skew.curves import Curve, MetricCurves
from skewsim.skew.noise_level import LARGEST, TELLING, levels_of
from skewsim.skew.trends import Trend, trend

Floats = npt.NDArray[np.float64]
LAST = 4
"""The last one in so many steps are what the run is like now."""
OFF = 0.02
"""E exp(d) - 1 from which on a report is not truthful; rounding leaves it well below."""
SURE = 4.0
"""Standard errors over steps."""
COLLAPSED = 0.5
"""A mean weight below this means that less than half of the gradient is left."""
HEAVY = 3.0
"""By which factor the level by k3 exceeds that by the mean size where a few tokens are far off."""


@dataclass(frozen=True)
class Level:
    """The noise level by step."""

    curve: Curve
    """The metric that it is told by."""
    steps: npt.NDArray[np.int64]
    sigma: Floats
    trend: Trend

    @property
    def now(self) -> float:
        """Median over the last steps; NaN if there is none."""
        return recent(self.sigma)

    @property
    def beyond(self) -> bool:
        """Whether healthy data of any level has no such value."""
        return self.now >= LARGEST


@dataclass(frozen=True)
class ByStep:
    """What one file of metrics says."""

    source: MetricCurves
    level: Level | None
    others: dict[str, float]
    """Level by each further metric that tells one."""
    ratio: tuple[float, float] | None
    """(E exp(d) - 1, its standard error over steps), where it can be told."""
    k1: tuple[float, float] | None
    """(k1, its standard error over steps), which is a KL divergence, and so not below 0, if the report is truthful."""
    missing: int
    """Values of skew metrics that are no number."""

    @property
    def heavy(self) -> bool:
        """Whether a few tokens are far off: k3 sees them, the mean size does not."""
        k3, mean = self.others.get("kl_k3"), self.others.get("logprob_diff_mean")
        return k3 is not None and mean is not None and k3 > HEAVY * mean

    @property
    def untruthful(self) -> bool:
        """Whether E exp(d) is not 1, beyond chance and rounding; or, where it is not known, k1 is below 0."""
        if self.ratio is None:
            return self.k1 is not None and self.k1[0] < -max(OFF / 2, SURE * self.k1[1])
        off, error = self.ratio
        return abs(off) > OFF and abs(off) > SURE * error

    @property
    def weight(self) -> tuple[Curve, float] | None:
        """The weight that the run multiplies its gradient by, now; a ratio stands for it where that is all there is."""
        for key in ("correction/weight_mean", "skew/ratio_mean"):
            curve = self.source.curves.get(key)
            if curve is not None and np.isfinite(now := recent(curve.values)):
                return curve, now
        return None

    @property
    def collapsed(self) -> bool:
        """Whether the weight is far below what skew of this level leaves: it was multiplied up over a sequence."""
        return self.weight is not None and self.weight[1] < COLLAPSED

    def recent(self, key: str) -> float | None:
        """The last level of a metric, or None."""
        curve = self.source.curves.get(key)
        return None if curve is None else _finite(recent(curve.values))


def recent(values: Floats) -> float:
    """Median of the last of the known values."""
    known = values[np.isfinite(values)]
    return float(np.median(known[-max(1, len(known) // LAST) :])) if len(known) else float("nan")


def look(curves: MetricCurves) -> ByStep:
    """Read the curves of one file."""
    found = {
        key.partition("/")[2]: curve for key, curve in curves.curves.items() if key.startswith(("skew/", "ratio/"))
    }
    levels = {name: levels_of(name, found[name].values) for name in TELLING if name in found}
    usable = {name: sigma for name, sigma in levels.items() if np.isfinite(sigma).any()}
    level = None
    if usable:
        name, sigma = next(iter(usable.items()))
        curve = found[name]
        level = Level(curve, curve.steps, sigma, trend(curve.steps, sigma, lag=_lag(curves, curve)))
    missing = sum(int((~np.isfinite(curve.values)).sum()) for curve in found.values())
    others = {name: recent(sigma) for name, sigma in usable.items()}
    k1 = _recent_mean(found["kl_k1"].values) if "kl_k1" in found else None
    return ByStep(curves, level, others, _ratio(found), k1, missing)


def _lag(curves: MetricCurves, curve: Curve) -> Floats | None:
    """The lag at the same steps as a curve."""
    lag = curves.curves.get("lag/mean") or curves.curves.get("lag/max")
    if lag is None:
        return None
    known = dict(zip(lag.steps.tolist(), lag.values.tolist(), strict=True))
    return np.array([known.get(step, np.nan) for step in curve.steps.tolist()])


def _ratio(found: dict[str, Curve]) -> tuple[float, float] | None:
    """(mean of exp(d) - 1, its standard error), by k3 - k1 where both are means over the same tokens."""
    k1, k3 = found.get("kl_k1"), found.get("kl_k3")
    if k1 is None or k3 is None or k1.remark != k3.remark or not np.array_equal(k1.steps, k3.steps):
        return None
    return _recent_mean(k3.values - k1.values)


def _recent_mean(values: Floats) -> tuple[float, float] | None:
    """(mean of the last values, its standard error); None for fewer than two."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None
    known = known[-max(2, len(known) // LAST) :]
    return float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known)))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
