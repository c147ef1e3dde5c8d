"""The interface of anything that can be run and recorded step by step: a trainer, an ensemble, a relay, or your own."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from skewsim.records import StepRecord

if TYPE_CHECKING:
    from skewsim.learn.trainer import TrainState


class Experiment(Protocol):
    """What `skewsim.runs.recording.record` drives: `Trainer`, `Ensemble` and `Relay` are experiments."""

    @property
    def alive(self) -> bool | Set[int]:
        """True, or the set of members still training, while there is a next step; else False or an empty set."""

    @property
    def step_number(self) -> int:
        """Steps done."""

    def step(self) -> list[StepRecord]:
        """Do one step; returns a record for each member that was still training when it began."""

    def state(self) -> TrainState:
        """All that the next step depends on, for a checkpoint."""

    def close(self) -> None:
        """Free engines and other resources; may be called more than once."""


@runtime_checkable
class Grows(Protocol):
    """An experiment whose later checkpoints are larger than the first one, and that knows how large."""

    def checkpoint_bytes(self) -> int:
        """Bytes of the tensors of its largest checkpoint."""
