"""A running OpenAI-compatible server as a `RolloutEngine`: the harness beyond one machine.

Requests, updates and members go as they do with a local vLLM (`harness.vllm_engine`); only the session differs. Weights
travel through a folder, which the server must see under the same path (TMPDIR chooses where it lies). A server without
vLLM's development endpoints takes no weights: it is for scenarios in which nothing is learned, and is trusted to serve
the scenario's own policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from harness.server_session import ServerLimits, ServerSession, split_address
from harness.vllm_engine import VllmEngine
from skewsim.engine.rollouts import RolloutRequest, Rollouts, WeightUpdate
from skewsim.errors import UserError
from skewsim.model.policy import Policy
from skewsim.settings import EngineSettings, Scenario


class ServerEngine(VllmEngine):
    """Rollouts from ``http://host:port/v1``; `info` holds what the server said of itself, and what it did not."""

    def __init__(
        self, url: str, *, limits: ServerLimits | None = None, progress: Callable[[str], None] | None = None
    ) -> None:
        self._url, self._server_limits = url, limits
        self._prepare(split_address(url).name, progress)

    def start(self, scenario: Scenario, policy: Policy, *, version: int) -> None:
        """As for a local engine; settings that the server fixed at its own start can only be looked at."""
        if scenario.trainer.correction.keep_sampling_mask:
            raise UserError(
                f"trainer.correction.keep_sampling_mask=true: {self.name} does not tell what top-p left; "
                "a local engine does"
            )
        super().start(scenario, policy, version=version)
        if scenario.trainer.learning_rate > 0 and not self._session_takes_weights:
            self.close()
            raise UserError(
                f"trainer.learning_rate={scenario.trainer.learning_rate:g}: {self.name} takes no new weights; allowed "
                "is 0, or a vLLM server started with VLLM_SERVER_DEV_MODE=1"
            )

    def _refuse(self, settings: EngineSettings) -> None:
        """What a server cannot do it says itself."""

    def generate(self, request: RolloutRequest) -> Rollouts:
        """Sample for every member; an update that changes nothing needs nothing of the server."""
        update = request.update
        if update is None or self._session_takes_weights or not torch.equal(update.flat, self._flat_now):
            return super().generate(request)
        rollouts = super().generate(replace(request, update=None))
        self.version = update.version
        return rollouts

    @property
    def _session_takes_weights(self) -> bool:
        return isinstance(self._session, ServerSession) and self._session.takes_weights

    @property
    def _flat_now(self) -> torch.Tensor:
        assert self._flat is not None, "start() comes first"
        return self._flat

    def _open(self, folder: Path) -> ServerSession:
        session = ServerSession(self._url, self._settings, limits=self._server_limits)
        length, most = self._size.prompt_tokens + self._size.max_tokens, session.info.get("max_model_len")
        if most is not None and length > most:
            session.close()
            raise UserError(f"engine={self.name} takes {most} tokens a request (--max-model-len); {length} are needed")
        return session

    def _launch(self) -> None:
        super()._launch()
        self._held = None  # whatever the server was started with
        if self.info["not_known"]:
            self._say(f"{self.name} does not tell its {', '.join(self.info['not_known'])}")

    def _load(self, member: int, weights: WeightUpdate, *, clear_cache: bool) -> None:
        if self._session_takes_weights:
            super()._load(member, weights, clear_cache=clear_cache)
        elif not torch.equal(weights.flat[member], self._flat_now[0]):
            raise UserError(f"engine={self.name} takes no new weights, and members' weights differ; allowed: one seed")
        else:
            assert isinstance(self._session, ServerSession)
            self._session.version = weights.version
            self._held = (weights.version, member, weights.flat[member].clone())
