"""Every setting of engine, skew, trainer and correction, from the settings' own fields and help sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from skewsim.errors import UserError, shown
from skewsim.settings import Scenario
from skewsim.share import parse_assignments
from tui.controls import FAULTS, Control, all_controls, number, value_at
from tui.lab import Lab
from tui.screens.dialog import Dialog


class SettingsScreen(Dialog):
    """Up and down choose a setting, left and right change it, enter types a value, escape closes."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,x,q", "dismiss", "Close")]

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self._lab = lab
        self._controls = {control.id: control for control in all_controls()}
        self._default = Scenario()

    def compose(self) -> ComposeResult:
        with Vertical(id="settings"):
            yield Static(
                "Every setting of yours   left/right change   enter types   escape closes", id="settings-title"
            )
            yield OptionList(*self._options())
            yield Static("", id="settings-help", markup=False)

    def _options(self) -> Iterator[Option]:
        for path, control in self._controls.items():
            if path == FAULTS[0]:
                yield Option(Text("  -- faults that people report: each can be switched on --"), disabled=True)
            yield Option(self._line(control), id=path)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self._explain(self._controls[str(event.option.id)])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        from tui.screens.prompt import Prompt

        if not self.on_top:
            return
        control = self._controls[str(event.option.id)]
        value = number(value_at(self._lab.shown, control.id))
        self.app.push_screen(Prompt(control.id, lambda text: self._type(control, text), value=value))

    def _type(self, control: Control, text: str) -> None:
        values = parse_assignments([f"{control.id}={text}"])
        self._set(control, self._lab.yours.with_values(values))

    def on_key(self, event: events.Key) -> None:
        by = {"left": -1, "right": 1, "shift+left": -3, "shift+right": 3}.get(event.key)
        options = self.query_one(OptionList)
        if by is None or options.highlighted is None:
            return
        event.stop()
        control = self._controls[str(options.get_option_at_index(options.highlighted).id)]
        try:
            self._set(control, control.moved(self._lab.yours, by) if control.choices else self._lab.yours)
        except UserError as error:
            self.query_one("#settings-help", Static).update(shown(error))

    def _set(self, control: Control, scenario: Scenario) -> None:
        self._lab.set_yours(scenario, text=f"{control.id} {number(value_at(scenario, control.id))}")
        options = self.query_one(OptionList)
        for other in self._controls.values():
            options.replace_option_prompt(other.id, self._line(other))
        self._explain(control)
        if self._lab.replaying:
            self.query_one("#settings-help", Static).update(self._lab.heard)

    def _line(self, control: Control) -> Text:
        value, default = (value_at(s, control.id) for s in (self._lab.shown, self._default))
        changed = "*" if value != default else " "
        return Text(f"{changed} {control.id:<38} {number(value)}", style="bold" if changed == "*" else "", no_wrap=True)

    def _explain(self, control: Control) -> None:
        default = number(value_at(self._default, control.id))
        allowed = ", ".join(choice.label for choice in control.choices)
        text = f"{control.help}\nDefault {default}." + (f" Left and right go through: {allowed}." if allowed else "")
        self.query_one("#settings-help", Static).update(text)
