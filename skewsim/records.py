"""What a step says: one record for each member, flat as JSON. Needs no torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StepRecord:
    """One member's step. Metric keys are explained in `skewsim.skew.metrics.METRICS`."""

    step: int
    scenario: str
    seed: int
    metrics: dict[str, float | None]
    events: list[str] = field(default_factory=list)
    diverged: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
    """For each part of the skew: computed, measured or invented."""

    def to_json(self) -> dict[str, Any]:
        """One flat object; numbers that are not finite become null."""
        extra: dict[str, Any] = {"events": self.events, "diverged": self.diverged, "sources": self.sources}
        return {"step": self.step, "scenario": self.scenario, "seed": self.seed} | self.metrics | extra

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StepRecord:
        """The inverse of to_json."""
        known = {n: data[n] for n in ("step", "scenario", "seed", "events", "diverged", "sources")}
        metrics = {sys.intern(k): v for k, v in data.items() if k not in known}  # a long run has few names
        return cls(metrics=metrics, **known)
