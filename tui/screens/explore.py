"""Explore, the first screen: three curves with the same random numbers, and the controls of one of them.

The screen has no numbers of its own: it turns keys into calls of the `Lab`, and draws the lab's curves ten times a
second.
"""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Grid, Vertical

from skewsim.errors import UserError, shown
from tui.actions import bindings, by_id, is_hidden, key_text
from tui.controls import FIXES, Control, explore_controls
from tui.lab import SMOOTH, TWIN, Lab
from tui.lesson import Player
from tui.lesson_panel import LessonPanel
from tui.panel import ControlWidget, TextLine, bottom_line, legend, top_line
from tui.plot import Plot, picture, twin_difference
from tui.shell import ShellScreen
from tui.views import REWARD, VIEWS, View

_EXTRA_PLOTS = 6
_PAGES = ("diagnose", "tokens", "formula", "ladder", "advise", "profile", "lessons")
_OF_TOKENS = ("diagnose", "tokens", "formula")
"""Pages that a recording has nothing for."""
_MENDED = {"reinforce": ("y falls first: the engine now has the newest weights. Give it some 100 steps", 60)}
_MENDED_UNDER_A_CLIP = ("the engine now has the newest weights: y needs some 20 to 60 steps to come back", 30)
"""What is said after the update in flight was mended, and for how many steps."""
_SAID = 15
"""For how many steps it is said where yours went back to."""
_DIFFERENCE = View("", "yours minus twin")
"""A view that stands for the difference that `tui.plot.twin_difference` draws, not for a metric."""


class Explore(ShellScreen):
    """Charts on the left, controls on the right; under each other where the terminal is narrow."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("explore")
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (112, "-wide"), (170, "-full")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]  # noqa: RUF012

    where = "explore"
    help_title = "Explore"
    help_text = "Three runs of one small policy that differ in the engine's settings alone."

    def __init__(self, lab: Lab, *, hidden: frozenset[str] = frozenset(), view: str | None = None) -> None:
        super().__init__()
        self.lab = lab
        self.hidden_controls = hidden
        self.first_view = next((i for i, each in enumerate(VIEWS) if each.key == view), 0)
        self._drawn: object = None
        self.last_control: Control = FIXES[0]

    def compose(self) -> ComposeResult:
        look = self.shell.look
        yield TextLine("headline")
        with Container(id="body"):
            with Vertical(id="charts"):
                yield Plot(REWARD, look=look, id="plot-reward")
                with Grid(id="more-plots"):
                    for i in range(_EXTRA_PLOTS):
                        yield Plot(VIEWS[i], look=look, id=f"plot-{i}")
            with Vertical(id="side"):
                yield TextLine("legend")
                with Grid(id="controls"):
                    for control in self.controls():
                        yield ControlWidget(control, self.lab.yours, look, key=_key_of(control))
        yield LessonPanel(id="lesson")
        yield TextLine("hint")
        yield TextLine("status")
        yield self.shell.footer()

    def controls(self) -> list[Control]:
        return [c for c in explore_controls(self.shell.profiles) if c.id not in self.hidden_controls]

    def on_mount(self) -> None:
        """Find all widgets once: `redraw` comes ten times a second, and searching each time would be slow."""
        self._plots = [self.query_one(f"#plot-{i}", Plot) for i in range(_EXTRA_PLOTS)]
        self._reward = self.query_one("#plot-reward", Plot)
        self._lines = {name: self.query_one(f"#{name}", TextLine) for name in ("headline", "legend", "hint", "status")}
        self._widgets = {widget.control.id: widget for widget in self.query(ControlWidget)}
        self.redraw()

    def profiles_changed(self) -> None:
        """The noise source has another choice for each measured profile."""
        if self.is_mounted:
            for control in self.controls():
                self._widgets[control.id].control = control
                self._widgets[control.id].refresh()
            self.redraw()

    def on_screen_resume(self) -> None:
        self.redraw()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self.redraw)

    def redraw(self) -> None:
        """Draw the lab as it is now."""
        lab, look = self.lab, self.shell.look
        wide, full = self.size.width >= 112, self.size.width >= 170
        two = wide and self.size.height >= 36 and self.shell.player is None  # a lesson's card takes the room of a chart
        self._draw_plots(shown=_EXTRA_PLOTS if full else 2 if two else 1)
        self._lines["legend"].show(legend(lab, look, width=None if wide else self.size.width - 1))
        self._lines["legend"].styles.height = len(lab.tracks) if wide else 1
        self._lines["headline"].show(top_line(lab, look))
        self._lines["status"].show(bottom_line(lab, look))
        for widget in self._widgets.values():
            widget.show(lab.shown, look)
        self._lines["hint"].show(self._hint())

    def _draw_plots(self, *, shown: int) -> None:
        """Draw the charts, but only if something on them has changed: most keys change nothing there."""
        lab, look = self.lab, self.shell.look
        curves = [(t.series, t.series.step, t.hidden) for t in lab.tracks.values()]
        state = (look, shown, self.first_view, lab.smooth, lab.twin, lab.replaying, lab.marks[-1:], lab.chosen, curves)
        if state == self._drawn:
            return
        self._drawn = state
        self._reward.show(picture(lab, REWARD), look)
        views = self._below()
        for i, plot in enumerate(self._plots):
            plot.display = i < shown
            if i >= shown:
                continue
            view = views[i]
            plot.show(twin_difference(lab, REWARD) if view is _DIFFERENCE else picture(lab, view), look)
        self._point()

    def _below(self) -> list[View]:
        """The charts below the reward: the chosen one, then those after it, and last those without any number."""
        first, *others = [*self._views()[self.first_view :], *self._views()[: self.first_view]]
        return [first, *sorted(others, key=lambda view: not self._has_numbers(view))]

    def _has_numbers(self, view: View) -> bool:
        """Whether a curve has a number of this, or none has any yet."""
        tracks = [track.series for track in self.lab.visible() if len(track.series)]
        return not tracks or view is _DIFFERENCE or any(view.key in series for series in tracks)

    def _views(self) -> tuple[View, ...]:
        """The metrics that the charts below the reward can show, in the order in which the key goes through them."""
        return (_DIFFERENCE, *VIEWS) if TWIN in self.lab.tracks else VIEWS

    def _hint(self) -> Text:
        """What the focused control is called in vLLM, TRL or verl; without a focus, which keys to press next."""
        look, focused = self.shell.look, self.focused
        if isinstance(focused, ControlWidget):
            return Text(f" {focused.control.names}", style=f"bold {look.strong}", no_wrap=True)
        if said := self._said():
            return Text(f" {said}", style=f"bold {look.strong}", no_wrap=True)
        text = " "
        for words, there in self._keys():
            if there and len(text) + len(words) <= self.size.width:
                text += f"{words} "
        return Text(text.rstrip(), style=look.muted)

    def _keys(self) -> list[tuple[str, bool]]:
        """What the bottom line has no room for, in the order of its use, and whether it can be done here."""
        keys = [str(i) for i, fix in enumerate(FIXES, 1) if fix.id not in self.hidden_controls]
        fixes = "1-5 fixes" if len(keys) == len(FIXES) else f"{' '.join(keys)} {'fix' if len(keys) == 1 else 'fixes'}"
        recorded = self.lab.archive is not None
        pages = [(by_id(id), id in _OF_TOKENS) for id in _PAGES]
        return [
            (f"{fixes} ", bool(keys)),
            (", back  backspace backward ", recorded),
            *(
                (f"{key_text(page.keys)} {page.title.lower()}", not (recorded and of_tokens))
                for page, of_tokens in pages
                if not is_hidden(page, self.shell.options.hidden)
            ),
            (" , j go back and replay", not recorded),
            (f" {key_text(by_id('objective').keys)} objective", not recorded and "objective" in self._widgets),
            (" tab and arrows turn a knob", not recorded and len(self._widgets) > len(keys)),
            (" F1 explains", not recorded),
        ]

    def _said(self) -> str:
        """Advice on the state that the curves are in, if there is any to give."""
        lab = self.lab
        if lab.replaying and lab.archive is None:
            return "a replay: , steps back   backspace plays backward   0 is live again"
        if lab.main is not None and lab.main.failed:
            return f"{lab.main.failed}: 0 starts another"
        if lab.chosen is not None:
            return f"back at step {lab.chosen}: turn switches, then j replays from there; space goes on"
        if lab.driver.resting:
            return f"{lab.now + 1} steps are done: space goes on, a switch does too; 0 starts again"
        back = next((mark for mark in reversed(lab.marks) if mark.letter == "J"), None)
        if back is not None and lab.now < back.step + _SAID:
            return f"w is yours as it was; y goes on from step {back.step} with the switches as they are"
        mark = lab.marks[-1] if lab.marks else None
        if mark is not None and mark.letter in "AI" and all(fix.is_on(lab.yours) for fix in FIXES[1:3]):
            words, steps = _MENDED.get(lab.yours.trainer.objective, _MENDED_UNDER_A_CLIP)
            if lab.step < mark.step + steps:
                return words
        return "y has no reward left to learn from: , steps back, j replays; 0 starts again" if lab.stuck else ""

    def on_descendant_focus(self) -> None:
        if isinstance(self.focused, ControlWidget):
            self.last_control = self.focused.control
        self._lines["hint"].show(self._hint())

    def show_lesson(self, player: Player | None) -> None:
        """Draw the lesson's panel, and highlight the control and the metric that its card is about."""
        panel = self.query_one(LessonPanel)
        self.set_class(player is not None, "-asking")
        self.set_class(player is not None and player.phase in ("ask", "revealed"), "-predicting")
        panel.show(player, self.shell.look)
        for widget in self._widgets.values():
            widget.highlight(player is not None and widget.control.id == player.step.highlight)
        watched, keys = player.watched if player is not None else None, [view.key for view in self._views()]
        if watched in keys and watched not in {plot.view.key for plot in self._plots if plot.display}:
            self.first_view = keys.index(watched)
            self.redraw()
        self._point()
        turned = self._widgets.get(player.step.highlight or "") if player is not None else None
        if player is not None and player.phase != "do":
            panel.focus()
        elif turned is not None and turned.control.kind != "switch":
            turned.focus()  # the card says which way to turn it

    def _point(self) -> None:
        """Mark the chart that a lesson's card is about."""
        player = self.shell.player
        for plot in (self._reward, *self._plots):
            plot.highlight(player is not None and plot.view.key == player.step.watch)

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape" and self.shell.player is not None:
            event.stop()
            self.on_lesson_panel_left()

    def on_lesson_panel_answered(self, message: LessonPanel.Answered) -> None:
        player = self.shell.player
        if player is not None:
            player.answer(message.index, self.lab)
            self.shell.lesson_changed()

    def on_lesson_panel_proceeded(self) -> None:
        player = self.shell.player
        try:
            if player is not None and player.proceed(self.lab):
                self.shell.lesson_changed()
        except UserError as error:
            self.shell.say(str(error))

    def on_lesson_panel_left(self) -> None:
        if self.shell.player is not None:
            self.shell.player.leave(self.lab)
        self.shell.player = None
        self.shell.lesson_changed()
        self.set_focus(None)

    def on_control_widget_moved(self, message: ControlWidget.Moved) -> None:
        self._move(message.turned, message.by)

    def _move(self, control: Control, by: int) -> None:
        self.last_control = control
        try:
            self.lab.move(control, by)
        except UserError as error:
            self.lab.heard = shown(error)
        self.redraw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A key that is hidden, or means nothing in a replay, does nothing and is not listed."""
        if action != "do" or not parameters:
            return True
        entry = by_id(str(parameters[0]))
        if entry.id == "go_back" and self.lab.replaying:
            return False
        return not is_hidden(entry, self.hidden_controls)

    def action_do(self, id: str) -> None:
        entry = by_id(id)
        if entry.argument is not None:
            self._move(next(fix for fix in FIXES if fix.id == entry.argument), 1)
            return
        try:
            getattr(self, f"do_{id}")()
        except UserError as error:
            self.shell.say(str(error))
        self.redraw()

    def do_fix_all(self) -> None:
        self.lab.move_fixes()

    def do_objective(self) -> None:
        self.lab.next_objective()

    def do_reset(self) -> None:
        self.lab.reset()
        self.lab.driver.play(True)
        self.lab.heard = "from step 0"

    def do_go_back(self) -> None:
        self.lab.go_back()

    def do_seed(self) -> None:
        if self.lab.new_seed():
            self.lab.driver.play(True)

    def do_twin(self) -> None:
        if self.lab.toggle_twin(self.last_control):
            self.first_view = 0
            self.lab.driver.play(True)

    def do_band(self) -> None:
        if self.lab.toggle_band():
            self.lab.driver.play(True)

    def do_undo(self) -> None:
        self.lab.undo()

    def do_smooth(self) -> None:
        self.lab.smooth = 1 if self.lab.smooth > 1 else SMOOTH
        self.lab.heard = f"mean of {SMOOTH} steps" if self.lab.smooth > 1 else "every step as it is"

    def do_metric(self) -> None:
        self._turn_view(1)

    def do_metric_back(self) -> None:
        self._turn_view(-1)

    def _turn_view(self, by: int) -> None:
        """To the next chart, or the one before, that has anything to show."""
        views = self._views()
        around = [(self.first_view + by * turns) % len(views) for turns in range(1, len(views) + 1)]
        self.first_view = next((at for at in around if self._has_numbers(views[at])), around[0])
        self.lab.heard = views[self.first_view].title

    def do_hide(self) -> None:
        self.lab.hide_next()

    def do_more(self) -> None:
        from tui.screens.settings import SettingsScreen

        self.app.push_screen(SettingsScreen(self.lab))


def _key_of(control: Control) -> str:
    return str(FIXES.index(control) + 1) if control in FIXES else ""
