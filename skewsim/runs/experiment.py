"""What can be run and recorded step by step: a trainer, an ensemble of them, a relay, or something of one's own."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Protocol

from skewsim.records import StepRecord

if TYPE_CHECKING:
    from skewsim.learn.trainer import TrainState


class Experiment(Protocol):
    """What `skewsim.runs.recording.record` drives: `Trainer`, `Ensemble` and `Relay` are experiments."""

    @property
    def alive(self) -> bool | Set[int]:
        """True, or the members that go on, while there is a next step; else False or empty."""

    @property
    def step_number(self) -> int:
        """Steps done."""

    def step(self) -> list[StepRecord]:
        """Do one step; a record for each member that was alive when it began."""

    def state(self) -> TrainState:
        """All that the next step depends on, for a checkpoint."""

    def close(self) -> None:
        """Free whatever is held, engines above all; again and again does no harm."""
