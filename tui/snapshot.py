"""One step's sequences, token by token, for the Tokens, Formula and Diagnose screens; as JSON between the processes."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skewsim.settings import Scenario

if TYPE_CHECKING:
    from skewsim.skew.sequences import SequenceLog

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LossSource:
    """The loss function of an objective: its name, the file and line where it stands, and its source code."""

    name: str
    where: str
    code: str


@dataclass(frozen=True)
class Snapshot:
    """One member's rollout; (N, P) prompts, (N, T) the rest, (N,) rewards and advantages."""

    step: int
    scenario: Scenario
    loss: LossSource
    prompts: Ints
    tokens: Ints
    mask: NDArray[np.bool_]
    engine_logprobs: Floats
    trainer_logprobs: Floats
    versions: Ints
    rewards: Floats
    advantages: Floats

    @property
    def skew(self) -> Floats:
        """Trainer minus engine, 0 where no token was sampled."""
        return np.where(self.mask, self.trainer_logprobs - self.engine_logprobs, 0.0)

    @property
    def old_logprobs(self) -> Floats:
        """The denominator of the update ratio: the engine's (bypass) or the trainer's own (recompute)."""
        bypass = self.scenario.trainer.old_logprobs == "rollout"
        return self.engine_logprobs if bypass else self.trainer_logprobs

    @property
    def ratios(self) -> Floats:
        """Ratio of the first minibatch, before any update: the trainer's over old; 1 under recompute."""
        return np.where(self.mask, np.exp(self.trainer_logprobs - self.old_logprobs), 1.0)

    def sequences(self) -> SequenceLog:
        """The rollout as what `skewsim diagnose` reads."""
        from skewsim.skew.sequences import SequenceLog, SequenceRecord

        engine = self.scenario.engine
        names = ("temperature", "top_p", "top_k", "min_p")
        settings = {name: float(getattr(engine, name)) for name in names}
        rows = zip(self.prompts, self.mask, strict=True)
        records = (
            SequenceRecord(
                tokens=self.tokens[i][live],
                engine_logprobs=self.engine_logprobs[i][live],
                trainer_logprobs=self.trainer_logprobs[i][live],
                weight_versions=self.versions[i][live],
                prompt_tokens=prompt,
                settings=settings,
            )
            for i, (prompt, live) in enumerate(rows)
        )
        return SequenceLog(tuple(records))

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
