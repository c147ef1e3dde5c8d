"""What a terminal that is too small shows: which size is needed."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widgets import Static

from tui.shell import ShellScreen


class TooSmall(ShellScreen):
    """Covers everything until the terminal is large enough."""

    def __init__(self, needed: tuple[int, int]) -> None:
        super().__init__()
        self._needed = needed

    def compose(self) -> ComposeResult:
        width, height = self._needed
        yield Static(
            f"skewsim needs {width} x {height} characters.\n"
            f"This terminal is {self.app.size.width} x {self.app.size.height}.\n"
            "Enlarge it, or press q to quit."
        )
