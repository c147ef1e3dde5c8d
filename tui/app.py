"""The app: one lab, a stack of screens, and what every screen shares (look, keys, share string, exit).

The trainer runs in a process of its own (`tui.process`), so nothing here waits for torch. Ten times a second the app
takes in the steps that the driver's thread has received, and lets the screen on top draw itself.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console, RenderableType
from textual import events
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer

from skewsim.errors import UserError, shown
from skewsim.share import to_share
from tui.actions import ACTIONS, REVERSING, Action, bindings, by_id, key_text, valid_on
from tui.files import any_scenario, curves_csv, last_state, shared_scenario, stamp, without_web_fonts, write
from tui.lab import Lab, next_speed, speed_text
from tui.lesson import Player, load_lesson
from tui.measuring import Measuring
from tui.playback import Playback
from tui.plot import Plot
from tui.process import Watch
from tui.screens.explore import Explore
from tui.shell import Options
from tui.terminal import make_safe
from tui.views import Look, ascii_wanted

_FRAME = 0.1
_SKIP = 10
SMALLEST = (60, 18)
LARGEST = (2000, 1000)
"""Columns and rows; a terminal that says it has more is not believed, because its screen would fill the memory."""


class KeyLine(Footer):
    """Textual's footer, without its memory leak.

    It makes new key widgets whenever a screen opens or closes, and keeps every old one (a megabyte for ten) as a
    watcher of its `compact` attribute. Textual drops closed watchers when the attribute changes: here it is told so.
    """

    async def recompose(self) -> None:
        await super().recompose()
        self.mutate_reactive(Footer.compact)


class SkewsimApp(App[None]):
    """`lab` is the state, `look` how it is drawn, `lens` asks for a step's tokens. See `tui.shell.Shell`."""

    CSS_PATH = "app.tcss"
    TITLE = "skewsim"
    ENABLE_COMMAND_PALETTE = False
    ALLOW_SELECT = False
    """The terminal's own way of selecting text is used: Textual's (8.2.8) crashes on a click on a closing widget."""
    BINDINGS: ClassVar[list[BindingType]] = bindings("app")

    def __init__(
        self,
        lab: Lab,
        options: Options | None = None,
        *,
        lens: Watch | None = None,
        keymap: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.lab = lab
        self.options = options or Options()
        self.lens = lens or Watch()
        self.look = Look(ascii_only=ascii_wanted())
        self.player: Player | None = None
        self.score = ""
        self.profiles: tuple[str, ...] = ()
        self.measuring: Measuring | None = None
        self.explore = Explore(lab, hidden=self.options.hidden, view=self.options.view)
        self.leaving = False
        """Whether the app is being closed: from then on no key or click is acted on."""
        self.signal = 0
        """The number of a signal that asked the app to end, or 0; the next tick acts on it."""
        self._keys = keymap or {}
        self.fault: Exception | None = None
        """What ended the app though nobody foresaw it; whoever runs the app reports it."""
        make_safe()

    def on_mount(self) -> None:
        self.set_keymap(self._keys)
        self.set_class(self.look.ascii_only, "-ascii")
        self.push_screen(self.explore)
        self.lab.reset()
        self.lab.driver.start()
        self.set_interval(_FRAME, self.tick)
        self._arrival = self.set_interval(_FRAME / 5, self._look_out)
        self.call_after_refresh(self._arrived)
        if self.options.lesson is not None:
            self.call_after_refresh(self.start_lesson, self.options.lesson)

    def _look_out(self) -> None:
        """Tick more often than usual until the first step is there, so that it is shown at once."""
        if self.lab.step >= 0:
            self._arrival.stop()
        else:
            self.tick()

    def _arrived(self) -> None:
        if not gc.isenabled():  # since the command began
            gc.freeze()  # imported modules are never freed: keep the collector from searching them
            gc.enable()
        self._list_profiles()

    def _list_profiles(self) -> None:
        from skewsim.skew.profile import shipped_profiles

        measured = (str(self.measuring.profile),) if self.measuring and self.measuring.profile else ()
        self.profiles = (*measured, *shipped_profiles())
        self.explore.profiles_changed()

    def tick(self) -> None:
        """Take in what is new, and draw the screen on top if anything is."""
        if self.signal:
            self.exit(return_code=128 + self.signal)
        if self.playback.backward:
            self.playback.rewind(_FRAME)
        news = self.lab.tick()
        if not self.is_running or not self.screen_stack:
            return
        own = getattr(self.screen, "tick", None)
        if own is not None:
            news = own() or news
        if self.player is not None and self.player.observe(self.lab, self._screen_name()):
            self.lesson_changed()
        elif news:
            self.redraw()

    def _handle_exception(self, error: Exception) -> None:
        """Textual's way out of an exception in the app, without its pages of traceback (with every local variable)."""
        self.fault = self.fault or error
        super()._handle_exception(error)
        self._exit_renderables.clear()

    def panic(self, *renderables: RenderableType) -> None:
        """Textual's way out of an exception in the thread that reads the terminal."""
        console = Console(file=StringIO(), width=120)
        console.print(*renderables)
        error = RuntimeError("reading the terminal failed")
        error.add_note(console.file.getvalue())  # type: ignore[attr-defined]
        self.fault = self.fault or error
        super().panic()

    def exit(self, result: None = None, return_code: int = 0, message: RenderableType | None = None) -> None:
        self.leaving = True
        super().exit(result, return_code, message)

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Resize) and (event.size.width > LARGEST[0] or event.size.height > LARGEST[1]):
            return
        if not (self.leaving and isinstance(event, events.InputEvent)):
            await super().on_event(event)

    async def run_action(self, *arguments: Any, **named: Any) -> bool:
        return not self.leaving and await super().run_action(*arguments, **named)

    def _screen_name(self) -> str:
        return type(self.screen).__name__.removesuffix("Screen").lower()

    def start_lesson(self, name: str) -> None:
        """Begin a lesson, in Explore."""
        lesson = load_lesson(name)
        lesson.check_visible(self.options.hidden)
        self.player = Player(lesson)
        self.player.begin(self.lab)
        self.lesson_changed()

    def lesson_changed(self) -> None:
        """Draw the lesson's panel after any change, and keep its score for the end."""
        self.score = self.player.score if self.player else self.score
        self.explore.show_lesson(self.player)
        self.redraw()

    def redraw(self) -> None:
        draw = getattr(self.screen, "redraw", None)
        if draw is not None and self.screen.is_mounted and not self.leaving:
            draw()

    def on_resize(self, event: events.Resize) -> None:
        from tui.screens.too_small import TooSmall

        fits = event.size.width >= SMALLEST[0] and event.size.height >= SMALLEST[1]
        if not fits and not isinstance(self.screen, TooSmall):
            self.push_screen(TooSmall(SMALLEST))
        elif fits and isinstance(self.screen, TooSmall):
            self.pop_screen()

    def get_key_display(self, binding: Binding) -> str:
        """Keys as words where the terminal may not have the arrows; both keys of a pair of opposite actions."""
        shown = key_text(binding.key) if self.look.ascii_only else super().get_key_display(binding)
        action = next((action for action in ACTIONS if action.id == binding.id), None)
        if action is None or action.other is None:
            return shown
        other = by_id(action.other)
        keys = self._keys.get(other.id, other.keys)
        return f"{self.get_key_display(Binding(keys, '', id=other.id))}{'/' * self.look.ascii_only}{shown}"

    def footer(self) -> Footer:
        return KeyLine(show_command_palette=False, compact=True)

    def watch_theme(self, name: str) -> None:
        self.look = replace(self.look, dark=self.current_theme.dark)
        if self.is_running:
            self.call_after_refresh(self.redraw)

    def say(self, text: str) -> None:
        """A line that any screen shows: what was heard."""
        text = self.lab.heard = shown(text)
        if self.screen is not self.explore:
            self.notify(text, markup=False)
        self.redraw()

    def _valid(self, screen: Screen[Any]) -> list[Action]:
        """Every action that can be done on a screen now."""
        found = []
        for action in valid_on(getattr(screen, "where", "page")):
            owner = self if action.where == "app" else screen
            if action.id != "palette" and owner.check_action("do", (action.id,)):
                found.append(action)
        return found

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What is hidden, or cannot be done now, has no key, no footer entry and no line in the palette."""
        if action != "do" or not parameters:
            return True
        playback = self.playback
        if parameters[0] in REVERSING and not playback.reversible:
            return playback is self.lab and parameters[0] != "backward"
        return parameters[0] not in self.options.hidden

    def action_do(self, id: str) -> None:
        try:
            getattr(self, f"do_{id}")()
        except UserError as error:
            self.say(str(error))

    @property
    def playback(self) -> Playback:
        """What play, pause, step, speed and back act on: the screen's own curves, or the lab's."""
        shown = self.screen if self.screen_stack else None
        return getattr(shown, "playback", None) or self.lab

    def do_pause(self) -> None:
        playback = self.playback
        playing = not playback.driver.playing
        if playing and playback.over and not playback.backward:
            again = ": 0 starts it again, n takes a new seed" if playback is self.lab else ""
            self.say(f"the run is over{': , goes back' if playback.reversible else again}")
            return
        playback.driver.play(playing)
        playback.backward = False
        self.lab.heard = ""
        self.redraw()

    def do_step(self) -> None:
        self.playback.driver.step()
        self.playback.backward = False
        self.lab.look_ahead()
        self.lab.heard = "one step"
        self.redraw()

    def do_back_step(self) -> None:
        self._move(-1)

    def do_skip_back(self) -> None:
        self._move(-_SKIP)

    def do_skip(self) -> None:
        self._move(_SKIP)

    def on_plot_pointed(self, message: Plot.Pointed) -> None:
        if self.playback.reversible:
            self._move(message.step + 1 - self.playback.position)

    def _move(self, steps: int) -> None:
        """To another step of what is recorded or kept, and pause there."""
        if not self.playback.reversible:
            self.lab.look_back(steps)
            self.redraw()
            return
        self.playback.driver.play(False)
        self.playback.backward = False
        self.playback.seek(self.playback.position + steps)
        self.redraw()

    def do_backward(self) -> None:
        playback = self.playback
        playback.backward = not playback.backward
        playback.driver.play(not playback.backward)
        self.lab.heard = "backward" if playback.backward else "forward"
        self.redraw()

    def do_faster(self) -> None:
        self._turn_speed(1)

    def do_slower(self) -> None:
        self._turn_speed(-1)

    def _turn_speed(self, by: int) -> None:
        driver = self.playback.driver
        driver.set_speed(next_speed(driver.speed, by))
        self.say(f"speed {speed_text(driver.speed)}")

    def _look_closer(self, screen: Screen[Any]) -> None:
        """Put a screen over Explore, in place of the one that is there; the key of the one that is there closes it."""
        shown = self.screen
        if self.close(shown) and type(shown) is not type(screen):
            self.push_screen(screen)

    def close(self, screen: Screen[Any]) -> bool:
        """Take a look-closer screen off Explore. False, and nothing done, where another kind of screen is on top.

        A second escape may arrive while the first is being served: only the screen that is shown can be closed.
        """
        if self.screen is not screen or not hasattr(screen, "where"):
            return False
        if screen is not self.explore:
            self.pop_screen()
        return True

    def do_tokens(self) -> None:
        from tui.screens.tokens import TokensScreen

        self._look_closer(TokensScreen())

    def do_formula(self) -> None:
        from tui.screens.formula import FormulaScreen

        self._look_closer(FormulaScreen())

    def do_profile(self) -> None:
        from tui.screens.profile import ProfileScreen

        self._look_closer(ProfileScreen(self.lab))

    def do_diagnose(self) -> None:
        from tui.screens.diagnose import DiagnoseScreen

        self._look_closer(DiagnoseScreen())

    def do_advise(self) -> None:
        from tui.screens.advise import AdviseScreen

        self._look_closer(AdviseScreen(self.lab))

    def do_ladder(self) -> None:
        from tui.screens.ladder import LadderScreen

        self._look_closer(LadderScreen(self.lab))

    def do_runs(self) -> None:
        from tui.screens.runs import RunsScreen

        if self.close(self.screen):
            self.push_screen(RunsScreen(self.lab, self.options.out or Path.cwd()))

    def do_lessons(self) -> None:
        from tui.screens.lessons import LessonsScreen

        if self.close(self.screen):
            self.push_screen(LessonsScreen())

    def measure(self, arguments: str) -> None:
        """Start `skewsim measure` as a child process and go on."""
        folder = (self.options.out or Path.cwd()) / f"measure-{stamp()}"
        self.measuring = measuring = Measuring(arguments, folder)

        def changed() -> None:
            self._list_profiles()
            self.redraw()

        self.run_worker(measuring.run(changed), group="measure")

    def do_help(self) -> None:
        from tui.screens.help import HelpScreen

        if isinstance(self.screen, HelpScreen):
            self.pop_screen()
            return
        candidates = (self.focused, self.screen)
        subject = next((c for c in candidates if hasattr(c, "help_title")), None)
        title, text = (getattr(subject, name, "") for name in ("help_title", "help_text"))
        self.push_screen(HelpScreen(title, text, self.options.hidden))

    def do_palette(self) -> None:
        from tui.screens.palette import PaletteScreen

        below = self.screen

        def do(action: Action) -> None:
            owner: Any = self if action.where == "app" else below
            if below is self.screen:
                owner.action_do(action.id)

        self.push_screen(PaletteScreen(self._valid(below), do))

    def do_markers(self) -> None:
        self.look = replace(self.look, ascii_only=not self.look.ascii_only)
        self.set_class(self.look.ascii_only, "-ascii")
        for screen in self.screen_stack:
            screen.refresh_bindings()
        self.say("ASCII letters" if self.look.ascii_only else "braille dots")

    def do_theme(self) -> None:
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"

    def do_screenshot(self) -> None:
        path = self._output(f"skewsim-{stamp()}.svg")
        write(path, without_web_fonts(self.export_screenshot(title="skewsim")))
        self._saved(path)

    def do_export(self) -> None:
        path = self._output(f"skewsim-{stamp()}.csv")
        write(path, curves_csv(self.lab))
        self._saved(path)

    def _saved(self, path: Path) -> None:
        """Say where a file is in a notice: the headline may have no room for the whole path."""
        self.lab.heard = "saved"
        self.notify(str(path), title="saved", markup=False)
        self.redraw()

    def _output(self, name: str) -> Path:
        return (self.options.out or Path.cwd()) / name

    def do_share(self) -> None:
        from tui.screens.share import ShareScreen

        share = to_share(self.lab.shown)
        self.copy_to_clipboard(share)
        self.push_screen(ShareScreen(share))

    def do_paste(self) -> None:
        from tui.screens.prompt import Prompt

        title = (
            "Share string or scenario name" if self.options.visiting else "Share string, scenario name, or TOML file"
        )
        self.push_screen(Prompt(title, self._enter))

    def _enter(self, text: str) -> None:
        self.lab.load(shared_scenario(text) if self.options.visiting else any_scenario(text))
        self.say(f"loaded {text[:24]}: from step 0")

    def do_restore(self) -> None:
        self.lab.load(last_state())
        self.say("the last session's settings, from step 0")

    def do_quit(self) -> None:
        self.exit()
