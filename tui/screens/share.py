"""The share string, whole: not every terminal lets a program write to the clipboard."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import Label

from tui.screens.dialog import Dialog


class ShareScreen(Dialog):
    """Escape, enter or y closes."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,enter,y,q", "dismiss", "Close")]

    def __init__(self, share: str) -> None:
        super().__init__()
        self._share = share

    def compose(self) -> ComposeResult:
        with Vertical(id="share"):
            yield Label("These settings as one word, copied where the terminal allows it:\n")
            yield Label(self._share, id="share-text", markup=False)
            yield Label("\nskewsim tui WORD takes them up again, and so does i in the app. Escape closes.")
