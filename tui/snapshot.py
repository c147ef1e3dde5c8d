"""One step's sequences, token by token, for the Tokens, Formula and Diagnose screens; as JSON between the processes."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from skewsim.learn.look import Look
from skewsim.settings import Scenario


@dataclass(frozen=True)
class LossSource:
    """The loss function of an objective: the file and line where it stands, and its source code."""

    where: str
    code: str


@dataclass(frozen=True)
class Worked:
    """What the objective's own function gave for one token, or for its sequence where the clip looks at sequences."""

    loss: float
    clipped: float | None = None
    """What the clip compares with its bounds; None: the loss has no clip."""
    low: float | None = None
    high: float | None = None

    @property
    def outside(self) -> bool:
        """Whether the clip would change it, whatever the advantage's sign."""
        if self.clipped is None:
            return False
        return (self.low is not None and self.clipped < self.low) or (
            self.high is not None and self.clipped > self.high
        )


@dataclass(frozen=True, kw_only=True)
class Snapshot(Look):
    """A look at one member's step, with the loss that it was trained by."""

    loss: LossSource
    worked: Worked | None = None
    """The loss of the token at `worst`, worked out by the training process."""

    @property
    def worst(self) -> tuple[int, int]:
        """Sequence and position of the token that skew moved most."""
        row, t = np.unravel_index(int(np.abs(self.skew).argmax()), self.skew.shape)
        return int(row), int(t)

    def to_json(self) -> dict[str, Any]:
        """As JSON; the arrays as safetensors in base64."""
        from safetensors.numpy import save

        arrays = save({k: np.ascontiguousarray(v) for k, v in vars(self).items() if isinstance(v, np.ndarray)})
        return {
            "step": self.step,
            "scenario": self.scenario.model_dump(mode="json"),
            "loss": asdict(self.loss),
            "worked": None if self.worked is None else asdict(self.worked),
            "arrays": base64.b64encode(arrays).decode(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Snapshot:
        """The inverse of to_json."""
        from safetensors.numpy import load

        arrays = load(base64.b64decode(data["arrays"]))
        return cls(
            step=data["step"],
            scenario=Scenario.model_validate(data["scenario"]),
            loss=LossSource(**data["loss"]),
            worked=None if data["worked"] is None else Worked(**data["worked"]),
            **arrays,
        )
