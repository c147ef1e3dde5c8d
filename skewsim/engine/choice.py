"""A real engine as ``--engine`` names it, before anything of it runs.

A name becomes an `EngineChoice` once, where a command begins, and everything after that takes the choice. Real engines
live in the harness, which this package does not import: `skewsim.cli.main.CHOOSE_ENGINE` is the way there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from skewsim.settings import EngineSettings, Scenario

if TYPE_CHECKING:
    from skewsim.engine.rollouts import RolloutEngine


@dataclass(frozen=True)
class StandIn:
    """What to set on the simulated engine so that it stands for a real one."""

    values: dict[str, Any]
    """Path of a setting -> its value."""
    profile: str | None
    """Name or path of the profile whose noise is injected; None: no noise."""
    said: str
    """Both in words."""


class EngineChoice(Protocol):
    """An engine that was chosen by its name; nothing of it runs yet."""

    @property
    def name(self) -> str:
        """How records and messages call it."""

    def check(self, scenario: Scenario) -> None:
        """Raises UserError if it cannot train this scenario, as far as that is known before it runs."""

    def open(self, *, progress: Callable[[str], None] | None = None) -> RolloutEngine:
        """The engine to make rollouts with. Raises EngineNotInstalled."""

    def stand_in(self, settings: EngineSettings, *, profile: str | None = None) -> StandIn:
        """How to simulate it under these settings.

        `profile` is a name or a path, ``none``, or None for the one that ships and was measured on this engine.
        """
