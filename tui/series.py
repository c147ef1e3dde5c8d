"""A run's numbers in constant memory: every metric of every seed in a numpy buffer that never grows.

When the buffer is full, every other step is dropped, and from then on only every second (fourth, eighth ...) step is
kept. So a curve of any length keeps its shape. The newest record is always there in `last`. Only what the screen draws
is thinned out; run folders have every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skewsim.records import StepRecord

CAPACITY = 2048


class Series:
    """Steps (N,) and, for each metric, values (seeds, N); missing and not finite values are NaN."""

    def __init__(self, seeds: Sequence[int], capacity: int = CAPACITY) -> None:
        self.seeds = tuple(seeds)
        self.capacity = capacity
        self.stride = 1
        self.diverged: dict[int, tuple[int, str]] = {}
        self.last: dict[int, StepRecord] = {}
        self._row = {seed: i for i, seed in enumerate(self.seeds)}
        self._steps = np.zeros(capacity, np.int64)
        self._values: dict[str, NDArray[np.float64]] = {}
        self._size = 0

    def append(self, records: Sequence[StepRecord]) -> None:
        """Take one step: a record for every member that is still alive."""
        for record in records:
            self.last[record.seed] = record
            if record.diverged and record.seed not in self.diverged:
                self.diverged[record.seed] = (record.step, record.diverged)
        if not records or records[0].step % self.stride:
            return
        if self._size == self.capacity:
            self._thin()
            if records[0].step % self.stride:
                return
        self._steps[self._size] = records[0].step
        self._size += 1
        for record in records:
            for key, value in record.metrics.items():
                if value is not None and np.isfinite(value):
                    self._column(key)[self._row[record.seed], self._size - 1] = value

    def before(self, step: int) -> Series:
        """A copy of what was before a step. The newest record is not in it: append one before asking for it."""
        copy = Series(self.seeds, self.capacity)
        copy.stride, copy._size = self.stride, int((self._steps[: self._size] < step).sum())
        copy._steps[: copy._size] = self._steps[: copy._size]
        copy._values = {
            key: np.where(self._steps_before(copy._size), column, np.nan) for key, column in self._values.items()
        }
        copy.diverged = {seed: found for seed, found in self.diverged.items() if found[0] < step}
        return copy

    def _steps_before(self, size: int) -> NDArray[np.bool_]:
        return np.arange(self.capacity) < size

    def _column(self, key: str) -> NDArray[np.float64]:
        column = self._values.get(key)
        if column is None:
            column = self._values[key] = np.full((len(self.seeds), self.capacity), np.nan)
        return column

    def _thin(self) -> None:
        self.stride *= 2
        kept = np.flatnonzero(self._steps[: self._size] % self.stride == 0)
        self._steps[: len(kept)] = self._steps[kept]
        for column in self._values.values():
            column[:, : len(kept)] = column[:, kept]
            column[:, len(kept) :] = np.nan
        self._size = len(kept)

    def __len__(self) -> int:
        return self._size

    @property
    def step(self) -> int:
        """The newest step seen, or -1."""
        return max((record.step for record in self.last.values()), default=-1)

    @property
    def steps(self) -> NDArray[np.float64]:
        return self._steps[: self._size].astype(np.float64)

    def __contains__(self, key: str) -> bool:
        """Whether any record had a number of this metric."""
        return key in self._values

    def keys(self) -> list[str]:
        return sorted(self._values)

    def values(self, key: str) -> NDArray[np.float64]:
        """(seeds, N); all NaN for a metric that no record had."""
        column = self._values.get(key)
        return np.full((len(self.seeds), self._size), np.nan) if column is None else column[:, : self._size]

    def mean(self, key: str) -> NDArray[np.float64]:
        """Mean over the seeds that have a value, NaN where none has."""
        values = self.values(key)
        seen = np.isfinite(values)
        count = seen.sum(axis=0)
        total = np.where(seen, values, 0.0).sum(axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def now(self, key: str, window: int = 1) -> float | None:
        """Mean over seeds of the newest `window` kept steps, or None when nothing is finite there."""
        tail = self.values(key)[:, -window:]
        finite = tail[np.isfinite(tail)]
        return float(finite.mean()) if finite.size else None

    @property
    def nbytes(self) -> int:
        return self._steps.nbytes + sum(column.nbytes for column in self._values.values())
