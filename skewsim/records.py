"""The record of one training step, one for each member, and the last tenth of a run's steps. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StepRecord:
    """One step of one member (a seed of a scenario). `skewsim.skew.metrics.METRICS` explains the metrics' keys."""

    step: int
    scenario: str
    seed: int
    metrics: dict[str, float | None]
    events: list[str] = field(default_factory=list)
    diverged: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
    """For each part of the skew: computed, measured or invented."""

    def to_json(self) -> dict[str, Any]:
        """One flat JSON object: the record's own keys, a key for each metric, and the schema's version."""
        extra: dict[str, Any] = {"events": self.events, "diverged": self.diverged, "sources": self.sources}
        whose = {"step": self.step, "scenario": self.scenario, "seed": self.seed}
        return whose | self.metrics | extra | {"schema_version": SCHEMA_VERSION}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StepRecord:
        """The inverse of to_json; the caller has checked the schema version.

        KeyError if something is missing, TypeError if a field has another type.
        """
        known = {n: data[n] for n in ("step", "scenario", "seed", "events", "diverged", "sources")}
        metrics = {sys.intern(k): v for k, v in data.items() if k not in _NO_METRICS}  # every record's names
        row = cls(metrics=metrics, **known)
        if not row._well_typed():
            raise TypeError("a field of another type than a record's")
        return row

    def _well_typed(self) -> bool:
        counts = type(self.step) is int and self.step >= 0 and type(self.seed) is int
        texts = isinstance(self.scenario, str) and isinstance(self.diverged, str | None)
        inner = isinstance(self.events, list) and isinstance(self.sources, dict)
        return (
            counts
            and texts
            and inner
            and all(isinstance(each, str) for each in (*self.events, *self.sources.values()))
            and _NUMBERS.issuperset(map(type, self.metrics.values()))
        )


_NUMBERS = {int, float, bool, type(None)}
_NO_METRICS = frozenset({"step", "scenario", "seed", "events", "diverged", "sources", "schema_version"})


def tenth(steps: int) -> int:
    """How many of a run's steps are its last tenth: a tenth, rounded down, but at least one."""
    return max(1, steps // 10)


def last_tenth(records: Iterable[StepRecord], steps: int | None = None) -> list[StepRecord]:
    """The records of the last tenth of a run's steps.

    ``steps`` is the run's length; by default, the number of steps that the records cover. A member that ended before
    the last tenth began has no record in it.
    """
    rows = list(records)
    end = max((row.step + 1 for row in rows), default=0) if steps is None else steps
    return [row for row in rows if row.step >= end - tenth(end)]


def seeds_in_words(count: int) -> str:
    """5 seeds, or one seed."""
    return f"{count} seeds" if count > 1 else "one seed"
