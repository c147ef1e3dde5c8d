"""What a screen may ask of the app, so that no screen has to import the app.

The app imports the screens; the screens import this module. `Shell` lists the app's attributes and methods that screens
use, and the app (`tui.app.SkewsimApp`) is checked against it by mypy. `ShellScreen` is the base of every screen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from textual import events
from textual.screen import Screen
from textual.widgets import Footer

from tui.lab import Lab
from tui.lesson import Player
from tui.measuring import Measuring
from tui.process import Watch
from tui.views import Look


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    hidden: frozenset[str] = frozenset()
    lesson: str | None = None
    out: Path | None = None
    view: str | None = None
    visiting: bool = False
    """Whether the app is one visitor's of `skewsim serve`, who may reach no file of this machine."""


class Shell(Protocol):
    """The app, as its screens see it."""

    lab: Lab
    options: Options
    look: Look
    lens: Watch
    player: Player | None
    """The lesson under way, if there is one."""
    profiles: tuple[str, ...]
    """Names or paths of the measured profiles that can be chosen."""
    measuring: Measuring | None
    leaving: bool
    """Whether the app is being closed: nothing is drawn any more."""

    def say(self, text: str) -> None:
        """Show a line, whichever screen is on top."""

    def start_lesson(self, name: str) -> None:
        """Begin a lesson. Raises UserError."""

    def lesson_changed(self) -> None:
        """Draw the lesson's panel again, and keep its score."""

    def measure(self, arguments: str) -> None:
        """Start `skewsim measure` with these arguments. Raises UserError."""

    def close(self, screen: Screen[None]) -> bool:
        """Take a screen off Explore. False, and nothing done, where another one is on top."""

    def footer(self) -> Footer:
        """A new line of keys for the bottom of a screen."""


class ShellScreen(Screen[None]):
    """The base of every screen: it knows the shell, and it ignores a size which the terminal no longer has.

    Textual (8.2.8) lays a screen out for the size that an event names, and tells the screen that its size has changed
    with another such event. With two sizes under way at once they would chase each other without end.
    """

    @property
    def shell(self) -> Shell:
        return cast(Shell, self.app)

    def on_resize(self, event: events.Resize) -> None:
        if event.size != self.app.size:
            event.prevent_default()
