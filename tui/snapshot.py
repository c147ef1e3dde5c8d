"""One step's sequences, token by token, for the screens that look closer; how they travel from the training process."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from skewsim.learn.look import Look
from skewsim.settings import Scenario


@dataclass(frozen=True)
class LossSource:
    """The loss function of an objective: its name, the file and line where it stands, and its source code."""

    name: str
    where: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Snapshot(Look):
    """A look at one member's step, with the loss that it was trained by."""

    loss: LossSource

    def to_json(self) -> dict[str, Any]:
        """As JSON; the arrays as safetensors in base64."""
        from safetensors.numpy import save

        arrays = save({k: np.ascontiguousarray(v) for k, v in vars(self).items() if isinstance(v, np.ndarray)})
        return {
            "step": self.step,
            "scenario": self.scenario.model_dump(mode="json"),
            "loss": [self.loss.name, self.loss.where, self.loss.code],
            "arrays": base64.b64encode(arrays).decode(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Snapshot:
        """The inverse of to_json."""
        from safetensors.numpy import load

        scenario, loss = Scenario.model_validate(data["scenario"]), LossSource(*data["loss"])
        return cls(step=data["step"], scenario=scenario, loss=loss, **load(base64.b64decode(data["arrays"])))
