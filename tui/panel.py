"""The widgets beside the chart: one for each control, the legend, the status line and the line of help."""

from __future__ import annotations

from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget

from skewsim.settings import Scenario
from tui.controls import Control
from tui.lab import Lab, speed_text
from tui.recordings import LIVE
from tui.views import REWARD, Look


class ControlWidget(Widget, can_focus=True):
    """A control on one line; a second line says what it is called elsewhere, where there is room for it."""

    DEFAULT_CSS = """
    ControlWidget { height: 1; width: 1fr; }
    ControlWidget:focus { background: $primary; color: $text; }
    """

    class Moved(Message):
        """The control was turned by some choices, with keys or with the mouse."""

        def __init__(self, control: Control, by: int) -> None:
            super().__init__()
            self.turned = control
            self.by = by

    def __init__(self, control: Control, scenario: Scenario, look: Look, *, key: str = "") -> None:
        super().__init__(id=f"control-{control.id}")
        self.control, self.scenario, self.look, self.key = control, scenario, look, key
        self.highlighted = False

    @property
    def help_title(self) -> str:
        return f"{self.control.label}: {self.control.text(self.scenario)}"

    @property
    def help_text(self) -> str:
        return f"{self.control.help}\n\n{self.control.names}"

    def show(self, scenario: Scenario, look: Look) -> None:
        if scenario is self.scenario and look == self.look:
            return
        same = look == self.look and self.control.text(scenario) == self.control.text(self.scenario)
        self.scenario, self.look = scenario, look
        if not same:
            self.refresh()

    def highlight(self, on: bool) -> None:
        if on != self.highlighted:
            self.highlighted = on
            self.refresh()

    def render(self) -> Text:
        width, look = self.size.width, self.look
        pointer = look.glyph("▶", ">") if self.has_focus else look.glyph("◆", "*") if self.highlighted else " "
        value = self._value()
        room = max(width - len(pointer) - len(value.plain) - 1, 1)
        name = f"{self.key} {self.control.label}" if self.key else self.control.label
        label = name if len(name) <= room else name[: max(room - 1, 1)] + look.glyph("…", ".")
        strong = self.highlighted or self.has_focus
        line = Text(pointer + label.ljust(room), style="bold" if strong else "", no_wrap=True)
        line.append_text(value)
        if self.size.height > 1:
            names = f"  {self.control.names}"[:width]
            line.append("\n" + names, style=look.muted if not self.has_focus else "")
        return line

    def _value(self) -> Text:
        text, look = self.control.text(self.scenario), self.look
        if self.control.kind == "switch":
            if text == "on":
                return Text(
                    look.glyph("● ON ", "[ON] "), style=f"bold {look.colour('r')}" if not self.has_focus else "bold"
                )
            if text == "off":
                return Text(look.glyph("○ off", "[off]"), style=look.colour("v") if not self.has_focus else "")
            return Text(text)
        limit = max(self.size.width - 8, 4)
        short = text if len(text) <= limit else text[: limit - 1] + look.glyph("…", ".")
        return Text(look.glyph("◂", "<") + short + look.glyph("▸", ">"))

    def on_key(self, event: events.Key) -> None:
        steps = {"left": -1, "right": 1, "shift+left": -3, "shift+right": 3, "enter": 1}
        if event.key in steps:
            event.stop()
            self.post_message(self.Moved(self.control, steps[event.key]))

    def on_click(self, event: events.Click) -> None:
        back = self.control.kind != "switch" and event.x < self.size.width - len(self._value().plain) // 2 - 1
        self.post_message(self.Moved(self.control, -1 if back else 1))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.post_message(self.Moved(self.control, 1))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.post_message(self.Moved(self.control, -1))


class TextLine(Widget):
    """One line (or a few) of text that is set from outside."""

    DEFAULT_CSS = """
    TextLine { height: 1; width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._text = Text()

    def show(self, text: Text) -> None:
        if text != self._text:
            self._text = text
            self.refresh()

    @property
    def plain(self) -> str:
        return self._text.plain

    def render(self) -> Text:
        return self._text


def legend(lab: Lab, look: Look, *, width: int | None) -> Text:
    """Each curve's letter, dash pattern, name and newest reward, or why it does not go on.

    One below the other where `width` is None; else on one line, without the dashes where it would not fit with them.
    """
    if width is None:
        return Text("\n").join(_legend_lines(lab, look, dashes=True, short=False))
    line = Text("  ").join(_legend_lines(lab, look, dashes=True, short=True))
    return line if line.cell_len <= width else Text("  ").join(_legend_lines(lab, look, dashes=False, short=True))


def _legend_lines(lab: Lab, look: Look, *, dashes: bool, short: bool) -> list[Text]:
    lines = []
    for track in lab.tracks.values():
        value = track.series.now(REWARD.key, 5)
        said = (track.short_note if short else track.note) or ("-" if value is None else f"{value:.2f}")
        name = {"initial_v1": "initial V1", "was": "yours before"}.get(track.name, track.name)
        line = Text(no_wrap=True)
        line.append(
            f"{track.letter} {look.line(track.dash)} " if dashes else f"{track.letter} ",
            style=look.colour(track.letter),
        )
        line.append(f"{name} {'(hidden)' if track.hidden else said}")
        lines.append(line)
    return lines


def top_line(lab: Lab, look: Look) -> Text:
    """The top line: what is running, how far, how fast, and the answer to the last key."""
    driver, yours = lab.driver, lab.yours
    if lab.over:
        state = look.glyph("■", "[]") + " over"
    elif lab.backward:
        state = look.glyph("◀", "<") + " backward"
    else:
        state = look.glyph("▶", ">") + " playing" if driver.playing else look.glyph("‖", "||") + " paused"
    if lab.replaying:
        what = lab.replaying
    else:
        seeds = f"seeds {lab.seeds[0]}-{lab.seeds[-1]}" if lab.band else f"seed {yours.seed}"
        what = f"{yours.trainer.objective}  {seeds}"
    text = Text(no_wrap=True)
    text.append(" skewsim ", style="bold reverse")
    text.append(f" {state} {speed_text(driver.speed)}  {what}  step {max(lab.now, 0)}")
    if lab.heard:
        text.append(f"  {lab.heard}", style=f"bold {look.strong}")
    return text


def bottom_line(lab: Lab, look: Look) -> Text:
    """The bottom line: the pace, or how to come to live runs; what is computed, measured and invented."""
    main = lab.main
    record = next(iter(main.series.last.values()), None) if main else None
    if record is None:
        failed = main.note if main else None
        return Text(f" {failed or 'starting: loading torch and the base policy'}", style=look.muted, no_wrap=True)
    groups: dict[str, list[str]] = {"computed": [], "measured": [], "invented": []}
    for name, source in record.sources.items():
        groups.setdefault(source, []).append(name)
    known = groups.items() if record.sources else ()  # a cell of a sweep does not say
    parts = [f"{kind}: {', '.join(names) or 'nothing'}" for kind, names in known]
    pace = f"recorded   {LIVE}" if lab.archive is not None else f"{lab.driver.rate:.1f} steps/s"
    text = Text(f" {pace}", style="bold", no_wrap=True)
    text.append("   " + "   ".join(parts), style=look.muted)
    return text
