"""What is counted over every token of a log, in constant memory, however long it is: sizes, moments, odd values, steps.

A log's tokens arrive in tables of some ten thousand rows. What a diagnosis needs beyond these sums it takes from a
sample (`skewsim.check.sample`); what is rare, as one value that is no number, is counted here and cannot be missed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from skewsim.diagnose.values import ABOVE_ZERO, SENTINEL, SURE
from skewsim.skew.tokens import TokenTable

Floats = npt.NDArray[np.float64]
SUMS = ("tokens", "d", "d2", "abs", "k3", "lag", "lagged")
"""What is summed for every step: tokens, skew, its square and size, k3; lag, and the tokens whose lag is known."""
MOST_EXPONENT = 200.0
UNBORNE = f"exactly 0 where the other side is below {-SURE:g}"


@dataclass
class Moments:
    """Sums over all tokens so far."""

    sequences: int = 0
    tokens: int = 0
    measured: int = 0
    """Tokens with two log-probabilities: the others are in none of the sums below."""
    trainer_known: bool = False
    d: float = 0.0
    d2: float = 0.0
    abs: float = 0.0
    k3: float = 0.0
    ratio: float = 0.0
    inverse: float = 0.0
    worst: float = 0.0
    worst_at: tuple[int, int] = (-1, -1)
    """Number of the sequence and position of the token with the largest skew."""
    odd: dict[str, Counter[str]] = field(default_factory=lambda: {"engine": Counter(), "trainer": Counter()})
    """Values that are no log-probability, by side and kind."""
    by_step: dict[int, Floats] = field(default_factory=dict)

    def add(self, table: TokenTable) -> None:
        """Count the rows of a table; no sequence may be in two tables."""
        if not len(table):
            return
        number, index = np.unique(table.sequence, return_inverse=True)
        sides = {"engine": table.engine_logprob, "trainer": table.trainer_logprob}
        bad = np.zeros(len(table), dtype=bool)
        for side, other in (("engine", "trainer"), ("trainer", "engine")):
            for kind, inside in _odd(sides[side], sides[other], index):
                self.odd[side][kind] += int(inside.sum())
                if kind != UNBORNE:
                    bad |= inside
        self.sequences += len(number)
        self.tokens += len(table)
        self.trainer_known |= bool(np.isfinite(table.trainer_logprob).any())
        self._measure(table, np.isfinite(table.skew) & ~bad)

    def _measure(self, table: TokenTable, usable: npt.NDArray[np.bool_]) -> None:
        skew = table.skew[usable]
        if not len(skew):
            return
        held = np.clip(skew, -MOST_EXPONENT, MOST_EXPONENT)
        size, ratio = np.abs(skew), np.exp(held)
        k3 = np.expm1(held) - held
        self.measured += len(skew)
        self.d += float(skew.sum())
        self.d2 += float((skew**2).sum())
        self.abs += float(size.sum())
        self.k3 += float(k3.sum())
        self.ratio += float(ratio.sum())
        self.inverse += float((1 / ratio).sum())
        if float(size.max()) > self.worst:
            row = np.flatnonzero(usable)[int(np.argmax(size))]
            self.worst = float(size.max())
            self.worst_at = (int(table.sequence[row]), int(table.position[row]))
        if table.step is not None:
            self._by_step(table, usable, (skew, skew**2, size, k3))

    def _by_step(self, table: TokenTable, usable: npt.NDArray[np.bool_], values: tuple[Floats, ...]) -> None:
        assert table.step is not None
        steps, index = np.unique(table.step[usable], return_inverse=True)
        version = table.weight_version[usable]
        aged = (version >= 0).astype(np.float64)
        lag = np.where(version >= 0, table.step[usable] - version, 0).astype(np.float64)
        columns = [np.bincount(index, weights=w, minlength=len(steps)) for w in (None, *values, lag, aged)]
        for place, step in enumerate(steps):
            sums = np.array([float(column[place]) for column in columns])
            self.by_step[int(step)] = self.by_step.get(int(step), np.zeros(len(SUMS))) + sums

    @property
    def rms(self) -> float:
        return float(np.sqrt(self.d2 / self.measured)) if self.measured else float("nan")

    @property
    def impossible(self) -> int:
        """Values that no computation gives: not finite, above 0, sentinels."""
        return sum(count for found in self.odd.values() for kind, count in found.items() if kind != UNBORNE)

    def curve(self) -> tuple[npt.NDArray[np.int64], Floats, Floats | None]:
        """(steps, rms of each, mean lag of each or None)."""
        steps = np.array(sorted(step for step in self.by_step if step >= 0), dtype=np.int64)
        if not len(steps):
            return steps, np.empty(0), None
        sums = dict(zip(SUMS, np.stack([self.by_step[int(step)] for step in steps], axis=1), strict=True))
        lag = sums["lag"] / np.maximum(sums["lagged"], 1)
        return steps, np.sqrt(sums["d2"] / sums["tokens"]), lag if (sums["lagged"] > 0).all() else None

    def to_json(self) -> dict[str, Any]:
        """Sizes in nats; None where there is nothing to measure."""
        if not self.measured:
            return {"rms": None, "mean_abs": None, "k3": None, "bias": None, "ratio_mean": None, "worst": None}
        n = self.measured
        return {
            "rms": self.rms,
            "mean_abs": self.abs / n,
            "k3": self.k3 / n,
            "bias": self.d / n,
            "ratio_mean": self.ratio / n,
            "worst": self.worst,
            "worst_at": {"sequence": self.worst_at[0], "position": self.worst_at[1]},
        }

    def values(self) -> list[str]:
        """The odd values in words, a sentence for each side and kind."""
        return [
            f"{count:,} of the {side}'s {self.tokens:,} values {'is' if count == 1 else 'are'} {kind}"
            for side, found in self.odd.items()
            for kind, count in found.items()
            if count
        ]


def _odd(here: Floats, there: Floats, index: npt.NDArray[Any]) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """(kind, rows) of one side's values that are no log-probability.

    A sequence none of whose tokens has a number was not scored, which is no fault of its values.
    """
    with np.errstate(invalid="ignore"):
        scored = (np.bincount(index, weights=np.isfinite(here)) > 0)[index]
        return [
            ("missing (null or NaN)", np.isnan(here) & scored),
            ("infinite", np.isinf(here)),
            ("above 0", np.isfinite(here) & (here > ABOVE_ZERO)),
            (f"at or below {SENTINEL:g}", np.isfinite(here) & (here <= SENTINEL)),
            (UNBORNE, (here == 0) & (there < -SURE)),
        ]
