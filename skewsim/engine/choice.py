"""A real engine chosen with ``--engine``, before any of its processes run.

A command turns the name into an `EngineChoice` once, and passes the choice on. Real engines are in the harness, which
this package does not import; `skewsim.cli.main.CHOOSE_ENGINE` names the harness function that makes the choice.
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
    """What to set on the simulated engine so that it imitates a real one."""

    values: dict[str, Any]
    """Path of a setting -> its value."""
    profile: str | None
    """Name or path of the profile whose noise is injected; None: no noise."""
    said: str
    """The values and the profile in words, for a message."""


class EngineChoice(Protocol):
    """An engine chosen by its name and not started yet."""

    @property
    def name(self) -> str:
        """The engine's name in records and messages."""

    def check(self, scenario: Scenario) -> None:
        """Raises UserError if the engine is known not to be able to train this scenario."""

    def open(self, *, progress: Callable[[str], None] | None = None) -> RolloutEngine:
        """The engine, ready to make rollouts. Raises EngineNotInstalled."""

    def stand_in(self, settings: EngineSettings, *, profile: str | None = None) -> StandIn:
        """How to simulate the engine under these settings.

        `profile` is a profile's name or path, ``"none"`` for no noise, or None for the shipped profile that was
        measured on this engine.
        """
