"""A line to type into; what is wrong with it is said under it, and the line stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import Input, Label

from skewsim.errors import UserError, shown
from skewsim.share import LONGEST_VALUE
from tui.screens.dialog import Dialog


class Prompt(Dialog):
    """Enter calls `accept`; a UserError of it is shown, anything else closes the prompt. Escape gives up."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss", "Close")]

    def __init__(self, title: str, accept: Callable[[str], None], *, value: str = "") -> None:
        super().__init__()
        self._title, self._accept, self.value = title, accept, value

    def compose(self) -> ComposeResult:
        with Vertical(id="prompt"):
            yield Label(self._title, markup=False)
            yield Input(value=self.value, max_length=2 * LONGEST_VALUE)
            yield Label("enter: accept   escape: close", id="prompt-answer", markup=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if not self.on_top:
            return
        try:
            self._accept(event.value)
        except UserError as error:
            self.query_one("#prompt-answer", Label).update(shown(error))
            return
        self.dismiss()
