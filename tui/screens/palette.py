"""The palette: everything that can be done on the screen below, by name; typing narrows it down.

(Textual's own palette can raise NoMatches when it is closed while its search is under way, so this one is ours.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from tui.actions import Action, key_text
from tui.screens.dialog import Dialog


class Matches(OptionList):
    """A list that ignores a click on an option that typing has removed since; Textual (8.2.8) would fail to find it."""

    def on_click(self, event: events.Click) -> None:
        if event.style.meta.get("option", 0) >= self.option_count:
            event.prevent_default()


class PaletteScreen(Dialog):
    """Enter does the highlighted thing, escape closes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "dismiss", "Close"),
        ("down", "move(1)", "Down"),
        ("up", "move(-1)", "Up"),
    ]

    def __init__(self, actions: list[Action], do: Callable[[Action], None]) -> None:
        super().__init__()
        self._actions, self._do = actions, do
        self._found = actions

    def compose(self) -> ComposeResult:
        with Vertical(id="palette"):
            yield Input(placeholder="what to do", max_length=80)
            yield Matches()

    def on_mount(self) -> None:
        self.query_one(OptionList).can_focus = False
        self._show("")

    def on_input_changed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def _show(self, text: str) -> None:
        words = text.lower().split()
        self._found = [a for a in self._actions if all(w in f"{a.title} {a.help}".lower() for w in words)]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(f"{a.title:<12} {key_text(a.keys):<9} {a.help}", id=a.id) for a in self._found])
        options.highlighted = 0 if self._found else None

    def action_move(self, by: int) -> None:
        options = self.query_one(OptionList)
        if options.highlighted is not None and self._found:
            options.highlighted = (options.highlighted + by) % len(self._found)

    def on_input_submitted(self) -> None:
        at = self.query_one(OptionList).highlighted
        if at is not None and at < len(self._found):
            self._choose(self._found[at])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """By id, not by place: the list may have been narrowed since the click."""
        action = next((a for a in self._found if a.id == event.option.id), None)
        if action is not None:
            self._choose(action)

    def _choose(self, action: Action) -> None:
        if self.on_top:
            self.dismiss()
            self.app.call_after_refresh(self._do, action)
