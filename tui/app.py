"""The app: one lab, one driver, a stack of screens, and what every screen shares (look, keys, share string, exit).

The first frame does not wait for torch: it is imported by the driver's thread. Ten times a second the app takes in
what the thread has computed and lets the screen on top draw itself.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from platformdirs import user_state_path
from textual import events
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer

from skewsim.errors import UserError
from skewsim.files import atomic_writer
from skewsim.scenarios import find_scenario as named_scenario
from skewsim.settings import Scenario
from skewsim.share import is_share, load_toml, to_share
from tui.actions import Action, bindings, key_text, load_keymap, valid_on
from tui.driver import Driver, Train, training_alive
from tui.lab import YOURS, Lab, next_speed, opening, parse_share, speed_text
from tui.lesson import Player, load_lesson
from tui.measuring import Measuring
from tui.presets import check_hidden, find_preset
from tui.recorder import recorder
from tui.screens.explore import Explore
from tui.snapshot import Watch, watched
from tui.views import REWARD, Look, ascii_wanted

_FRAME = 0.1
SMALLEST = (60, 18)


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    hidden: frozenset[str] = frozenset()
    lesson: str | None = None
    out: Path | None = None


class SkewsimApp(App[None]):
    """`lab` is the state, `look` how it is drawn, `lens` the wish to see tokens."""

    CSS_PATH = "app.tcss"
    TITLE = "skewsim"
    ENABLE_COMMAND_PALETTE = False
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
        self.explore = Explore(lab, hidden=self.options.hidden)
        self._keys = keymap or {}

    def on_mount(self) -> None:
        self.set_keymap(self._keys)
        self.set_class(self.look.ascii_only, "-ascii")
        self.push_screen(self.explore)
        self.lab.reset()
        self.lab.driver.start()
        self.set_interval(_FRAME, self.tick)
        self.call_after_refresh(self._list_profiles)
        if self.options.lesson is not None:
            self.call_after_refresh(self.start_lesson, self.options.lesson)

    def _list_profiles(self) -> None:
        from skewsim.profile import shipped_profiles

        measured = (str(self.measuring.profile),) if self.measuring and self.measuring.profile else ()
        self.profiles = (*measured, *shipped_profiles())
        self.explore.profiles_changed()

    def tick(self) -> None:
        """Take in what is new, and draw the screen on top if anything is."""
        if self.lab.backward:
            self.lab.rewind(_FRAME)
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

    def _screen_name(self) -> str:
        return type(self.screen).__name__.removesuffix("Screen").lower()

    def start_lesson(self, name: str) -> None:
        """Begin a lesson, in Explore."""
        self.player = Player(load_lesson(name))
        self.player.begin(self.lab)
        self.lesson_changed()

    def lesson_changed(self) -> None:
        """A card was turned, answered or left: draw it, and keep the score."""
        self.score = self.player.score if self.player else self.score
        self.explore.show_lesson(self.player)
        self.redraw()

    def redraw(self) -> None:
        draw = getattr(self.screen, "redraw", None)
        if draw is not None and self.screen.is_mounted:
            draw()

    def on_resize(self, event: events.Resize) -> None:
        from tui.screens.too_small import TooSmall

        fits = event.size.width >= SMALLEST[0] and event.size.height >= SMALLEST[1]
        if not fits and not isinstance(self.screen, TooSmall):
            self.push_screen(TooSmall(SMALLEST))
        elif fits and isinstance(self.screen, TooSmall):
            self.pop_screen()

    def get_key_display(self, binding: Binding) -> str:
        """Keys as words where the terminal may not have the arrows."""
        return key_text(binding.key) if self.look.ascii_only else super().get_key_display(binding)

    def footer(self) -> Footer:
        return Footer(show_command_palette=False, compact=True)

    def watch_theme(self, name: str) -> None:
        self.look = replace(self.look, dark=self.current_theme.dark)
        if self.is_running:
            self.call_after_refresh(self.redraw)

    def say(self, text: str) -> None:
        """A line that any screen shows: what was heard."""
        self.lab.heard = text
        if self.screen is not self.explore:
            self.notify(text)
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
        """What is hidden for teaching has no key, no footer entry and no line in the palette."""
        return not (action == "do" and parameters and parameters[0] in self.options.hidden)

    def action_do(self, id: str) -> None:
        try:
            getattr(self, f"do_{id}")()
        except UserError as error:
            self.say(str(error))

    @property
    def driver(self) -> Driver:
        """What play, pause, step and speed act on: the screen's own training, or the lab's."""
        return getattr(self.screen, "driver", None) or self.lab.driver

    def do_pause(self) -> None:
        playing = not self.driver.playing
        if playing and self.lab.over and self.driver is self.lab.driver:
            self.say("the run is over: 0 starts it again, n takes a new seed")
            return
        self.driver.play(playing)
        self.lab.backward = False
        self.lab.heard = ""
        self.redraw()

    def do_step(self) -> None:
        self.driver.step()
        self.lab.backward = False
        self.lab.heard = "one step"
        self.redraw()

    def do_faster(self) -> None:
        self._turn_speed(1)

    def do_slower(self) -> None:
        self._turn_speed(-1)

    def _turn_speed(self, by: int) -> None:
        self.driver.set_speed(next_speed(self.driver.speed, by))
        self.say(f"speed {speed_text(self.driver.speed)}")

    def _look_closer(self, screen: Screen[Any]) -> None:
        """Put a screen over Explore, in place of another one of its kind; the same one again closes it."""
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
        folder = (self.options.out or Path.cwd()) / f"measure-{_stamp()}"
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
        self.push_screen(HelpScreen(getattr(subject, "help_title", ""), getattr(subject, "help_text", "")))

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
        path = self._output(f"skewsim-{_stamp()}.svg")
        _write(path, self.export_screenshot(title="skewsim"))
        self.say(f"picture: {path}")

    def do_export(self) -> None:
        path = self._output(f"skewsim-{_stamp()}.csv")
        _write(path, curves_csv(self.lab))
        self.say(f"numbers: {path}")

    def _output(self, name: str) -> Path:
        return (self.options.out or Path.cwd()) / name

    def do_share(self) -> None:
        share = to_share(self.lab.yours)
        self.copy_to_clipboard(share)
        self.say(f"copied {share}")

    def do_paste(self) -> None:
        from tui.screens.prompt import Prompt

        self.push_screen(Prompt("Share string, scenario name, or TOML file", self._enter))

    def _enter(self, text: str) -> None:
        self.lab.load(find_scenario(text))
        self.say(f"loaded {text[:24]}")

    def do_restore(self) -> None:
        self.lab.load(last_state())
        self.say("the last session's settings, from step 0")

    def do_quit(self) -> None:
        self.exit()


def curves_csv(lab: Lab) -> str:
    """Every number on the charts: a row for each curve, seed and step, and the share string in the first line."""
    out = io.StringIO()
    out.write(f"# {to_share(lab.yours)}\n")
    keys = sorted({key for track in lab.tracks.values() for key in track.series.keys()})  # noqa: SIM118
    writer = csv.writer(out)
    writer.writerow(["curve", "seed", "step", *keys])
    for track in lab.tracks.values():
        columns = [track.series.values(key) for key in keys]
        for row, seed in enumerate(track.series.seeds):
            for at, step in enumerate(track.series.steps):
                writer.writerow([track.name, seed, int(step), *(f"{c[row, at]:.6g}" for c in columns)])
    return out.getvalue()


def find_scenario(text: str) -> Scenario:
    """A scenario from a share string, a TOML file, `last`, or a name that `skewsim scenarios` lists. Raises UserError."""
    text = text.strip()
    if text == "last":
        return last_state()
    if is_share(text) or not text:
        return parse_share(text)
    if text.endswith(".toml") or Path(text).is_file():
        return load_toml(Path(text))
    return named_scenario(text)


def _state_file() -> Path:
    return user_state_path("skewsim") / "last"


def last_state() -> Scenario:
    """The settings that the last session ended with. Raises UserError when there was none."""
    try:
        return parse_share(_state_file().read_text(encoding="utf-8"))
    except OSError:
        raise UserError("no last state: no session has ended here yet") from None


def _stamp() -> str:
    return datetime.now().strftime("%Y%m%d-%H%M%S")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def run(
    target: str = "",
    /,
    *,
    lesson: str = "",
    hide: Sequence[str] = (),
    preset: str = "",
    out: Path | None = None,
) -> int:
    """Open the terminal UI.

    Parameters
    ----------
    target
        A scenario's name, a TOML file, a share string, or last; default: initial V1.
    lesson
        Start with this lesson: its name or a part of it.
    hide
        A control or action to hide, for teaching; may be given several times.
    preset
        A classroom preset: what is hidden, the speed, where yours starts.
    out
        Folder for run folders, pictures and exports.
    """
    if not (sys.stdout.isatty() or "TEXTUAL_DRIVER" in os.environ):
        raise UserError("the terminal UI needs a terminal; `skewsim run --plain` prints the numbers")
    app = build(target, lesson=lesson, hide=hide, preset=preset, out=out)
    app.run()
    if app.measuring is not None:
        app.measuring.stop()
    app.lab.driver.stop()
    _remember(app.lab.yours)
    if "TEXTUAL_DRIVER" not in os.environ:
        print(farewell(app.lab, app.score), flush=True)
    if training_alive():  # a step under way is not waited for; every record is already in its file
        sys.stdout.flush()
        os._exit(app.return_code or 0)
    return app.return_code or 0


def build(
    target: str = "",
    *,
    lesson: str = "",
    hide: Sequence[str] = (),
    preset: str = "",
    out: Path | None = None,
    train: Train | None = None,
) -> SkewsimApp:
    """The app for these options; `train` computes the curves (default: the simulator). Raises UserError."""
    chosen = find_preset(preset) if preset else None
    keymap = load_keymap()
    if lesson:
        lesson = load_lesson(lesson).name
    hidden = check_hidden({*hide, *(chosen.hide if chosen else ())})
    yours = find_scenario(target).with_values({"name": YOURS}) if target else opening()
    if chosen is not None:
        yours = yours.with_values(chosen.set)
    lens = Watch()
    recording = recorder(out) if out is not None else None
    driver = Driver(train or watched(lens, recording), speed=chosen.speed if chosen else 10)
    options = Options(hidden=hidden, lesson=lesson or None, out=out)
    return SkewsimApp(Lab(driver, yours=yours), options, lens=lens, keymap=keymap)


def main(arguments: Sequence[str]) -> int:
    """`skewsim` without a command: options only."""
    if not arguments:
        return run()
    from cyclopts import App as Parser
    from cyclopts import CycloptsError

    parser = Parser(name="skewsim", default_command=run)
    try:
        result = parser(list(arguments), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise UserError(f"tui: {error}; see skewsim tui --help") from None
    return int(result or 0)


def farewell(lab: Lab, score: str) -> str:
    """One line on what was seen, and the share string that brings it back."""
    parts = []
    for track in lab.tracks.values():
        value = track.series.now(REWARD.key, 5)
        parts.append(f"{track.name} {'-' if value is None else f'{value:.2f}'}")
    head = f"step {max(lab.step, 0)}, reward: {', '.join(parts)}" + (f"; {score}" if score else "")
    return f"{head}\nskewsim tui {to_share(lab.yours)}"


def _remember(yours: Scenario) -> None:
    try:
        _write(_state_file(), to_share(yours))
    except UserError:
        return  # a read-only home is no reason to complain on the way out
