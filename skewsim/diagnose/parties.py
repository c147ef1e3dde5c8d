"""Three numbers for one token, and which of them is the odd one out: the engine's, the trainer's, a model's in
float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skewsim.diagnose.rows import Bools, Floats

AGREE = 2e-3
"""rms within which two float32 implementations of one model are the same (published 0.0024)."""
APART = 3.0


@dataclass(frozen=True)
class Parties:
    """rms distances of the three pairs, nats."""

    agreement: dict[str, float]
    odd: str | None

    def __str__(self) -> str:
        pairs = ", ".join(f"{pair} {value:.3g}" for pair, value in self.agreement.items())
        if self.odd is None:
            return f"no one of engine, trainer and model is the odd one out (rms apart: {pairs})"
        others = " and ".join(name for name in ("engine", "trainer", "model") if name != self.odd)
        return f"the {self.odd}'s numbers are the odd ones: {others} agree (rms apart: {pairs})"


def compare_three(engine: Floats, trainer: Floats, model: Floats, bad: Bools, culprit: str | None) -> Parties:
    """Pairwise distances over rows that are not `bad`; `culprit` is whose values the bad ones are, if they decide."""
    values = {"engine": engine, "trainer": trainer, "model": model}
    usable = ~bad & np.isfinite(engine) & np.isfinite(trainer) & np.isfinite(model)
    names = (("engine", "trainer"), ("engine", "model"), ("trainer", "model"))
    apart = {f"{a}-{b}": _rms((values[a] - values[b])[usable]) for a, b in names}
    odd = culprit
    if odd is None:
        closest = min(names, key=lambda pair: apart[f"{pair[0]}-{pair[1]}"])
        least = apart[f"{closest[0]}-{closest[1]}"]
        others = [value for pair, value in apart.items() if pair != f"{closest[0]}-{closest[1]}"]
        if min(others) > max(APART * least, AGREE):
            odd = next(name for name in values if name not in closest)
    return Parties({pair: float(f"{value:.4g}") for pair, value in apart.items()}, odd)


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean())) if len(values) else 0.0
