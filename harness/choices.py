"""Real engines that were chosen by name: a process on this machine, or a server. What differs between them stands here.

Neither holds anything that runs, so both are cheap to make and to compare. What does the work is imported when it is
asked for, so that choosing an engine loads neither torch nor an HTTP client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.address import Address
from harness.arguments import refuse_lacking, refuse_simulated, refuse_update
from harness.places import require
from harness.requests import Size
from harness.specs import EngineSpec
from skewsim.engine.choice import StandIn
from skewsim.errors import UserError
from skewsim.settings import EngineSettings, Scenario

if TYPE_CHECKING:
    from harness.client import Limits
    from harness.server_session import ServerLimits, ServerSession
    from harness.session import EngineSession
    from skewsim.engine.rollouts import RolloutEngine

SERVER_BLOCK = 16
"""Tokens of a block of the prefix cache: vLLM's own default, since a server does not always tell."""


@dataclass(frozen=True)
class LocalChoice:
    """A version of vLLM that runs as a process of its own on this machine."""

    spec: EngineSpec
    root: Path | str | None = None
    """The folder of installed engines; None: the user's."""
    limits: Limits | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def package(self) -> str:
        return self.spec.package

    @property
    def profile_stem(self) -> str:
        return self.spec.name

    def require(self) -> None:
        """Raises EngineNotInstalled, with the command that installs it, unless it is there."""
        require(self.spec, root=self.root)

    def check(self, scenario: Scenario) -> None:
        """Raises UserError for what it cannot do where weights change, and for settings that its version lacks."""
        refuse_simulated(scenario, self.name)
        engine = scenario.engine
        refuse_update(self.spec, engine)
        refuse_lacking(self.spec, engine)
        masked = scenario.trainer.correction.keep_sampling_mask and engine.truncates
        if masked and engine.logprobs_mode != "processed_logprobs":
            raise UserError(
                f"trainer.correction.keep_sampling_mask=true with {self.name} needs "
                'engine.logprobs_mode="processed_logprobs", which shows what top-p left'
            )

    def open(self, *, progress: Callable[[str], None] | None = None) -> RolloutEngine:
        from harness.vllm_engine import VllmEngine

        self.require()
        return VllmEngine(self, progress=progress)

    def session(
        self,
        model: Path,
        settings: EngineSettings,
        *,
        size: Size,
        version: int = 0,
        full_logprobs: bool = False,
        forced: bool = False,
    ) -> EngineSession:
        """Start a process. `forced`: it can replay given tokens, and its logprobs are raw."""
        from harness.session import EngineSession

        return EngineSession(
            self.spec,
            model,
            settings,
            size=size,
            version=version,
            full_logprobs=full_logprobs,
            forced=forced,
            root=self.root,
            limits=self.limits,
        )

    def stand_in(self, settings: EngineSettings, *, profile: str | None = None) -> StandIn:
        from harness.prediction import make_stand_in

        off = {f"engine.{name}": False for name in self.spec.forced_off}
        values = {"engine.block_size": self.spec.block_size, **off}
        return make_stand_in(values, settings, measured_as=self.name, profile=profile)


@dataclass(frozen=True)
class ServerChoice:
    """An OpenAI-compatible server that runs already, here or elsewhere."""

    address: Address
    limits: ServerLimits | None = None

    @property
    def name(self) -> str:
        return str(self.address)

    @property
    def package(self) -> str:
        return "server"

    @property
    def profile_stem(self) -> str:
        return "server"

    def require(self) -> None:
        """Nothing: whether it is there shows when it is asked."""

    def check(self, scenario: Scenario) -> None:
        """Raises UserError for what no server can do; the rest is asked of the server when it is there."""
        refuse_simulated(scenario, self.name)
        self._refuse_routes(scenario.engine)
        if scenario.trainer.correction.keep_sampling_mask:
            raise UserError(
                f"trainer.correction.keep_sampling_mask=true: {self.name} does not tell what top-p left; "
                "a local engine does"
            )

    def _refuse_routes(self, settings: EngineSettings) -> None:
        if settings.enable_return_routed_experts:
            raise UserError(
                f"engine.enable_return_routed_experts=true: what {self.name} returns is not read; a local engine's is"
            )

    def open(self, *, progress: Callable[[str], None] | None = None) -> RolloutEngine:
        from harness.vllm_engine import VllmEngine

        return VllmEngine(self, progress=progress)

    def session(
        self, model: Path, settings: EngineSettings, *, size: Size, version: int = 0, full_logprobs: bool = False
    ) -> ServerSession:
        """Connect; the server must have the model, since `model` is not sent there."""
        self._refuse_routes(settings)
        from harness.server_session import ServerSession

        return ServerSession(self.address, settings, size=size, limits=self.limits)

    def stand_in(self, settings: EngineSettings, *, profile: str | None = None) -> StandIn:
        from harness.prediction import make_stand_in

        return make_stand_in({"engine.block_size": SERVER_BLOCK}, settings, measured_as=None, profile=profile)
