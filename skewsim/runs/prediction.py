"""How far a simulated ladder lies from the same ladder on a real engine.

For each rung and metric, the distance is the mean over the steps of |real - simulated|, where both curves are means
over the seeds, smoothed as in the figure. The band is half the width from the lowest to the highest seed, the mean of
both engines'. A ratio of distance to band below 1 says that the two engines differ by less than seeds do. They draw
different random numbers, so the distance is never 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skewsim.runs.figures import PANELS, Curve, curve
from skewsim.runs.ladder import LadderResult


@dataclass(frozen=True)
class Distance:
    """The distance between two curves and the band; None where a curve or the band is missing."""

    distance: float | None
    band: float | None

    @property
    def ratio(self) -> float | None:
        """The distance divided by the band."""
        return self.distance / self.band if self.distance is not None and self.band else None

    def to_json(self) -> dict[str, float | None]:
        return {"distance": self.distance, "band": self.band, "ratio": self.ratio}


def distances(real: LadderResult, simulated: LadderResult) -> dict[str, dict[str, Distance]]:
    """Rung -> metric -> distance, for the metrics of the figure."""
    return {
        name: {key: _distance(curve(records, key), curve(simulated.records[name], key)) for key in PANELS}
        for name, records in real.records.items()
    }


def _distance(real: Curve, simulated: Curve) -> Distance:
    both, here, there = np.intersect1d(real.steps, simulated.steps, return_indices=True)
    if not len(both):
        return Distance(None, None)
    gap = np.abs(real.mean[here] - simulated.mean[there])
    band = ((real.high - real.low)[here] + (simulated.high - simulated.low)[there]) / 4
    return Distance(_mean(gap), _mean(band))


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
