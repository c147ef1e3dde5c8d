"""`skewsim tui`: from command-line options to a running app, and the lines it prints when it ends."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skewsim.errors import FileFormatError, UserError
from tui.process import TrainingProcess

if TYPE_CHECKING:
    from skewsim.settings import Scenario
    from tui.app import SkewsimApp
    from tui.lab import Lab


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
    if not (sys.stdin.isatty() and sys.stdout.isatty()) and "TEXTUAL_DRIVER" not in os.environ:
        build(target, _process(), lesson=lesson, hide=hide, preset=preset)  # other mistakes come first
        raise UserError("the terminal UI needs a terminal; `skewsim run --plain` prints the numbers")
    return open_app(target, lesson=lesson, hide=hide, preset=preset, out=out)


def open_app(
    target: str = "",
    *,
    lesson: str = "",
    hide: Sequence[str] = (),
    preset: str = "",
    out: Path | None = None,
    visiting: bool = False,
) -> int:
    """The app from its start to its end; a visitor's neither reads nor writes what the owner has left. Returns the
    exit code.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # to look for some takes a twentieth of a second
    gc.disable()  # until the first frame: collections during the imports would find nothing
    process = _process(out)
    if process is not None:
        process.start()  # torch is imported while the first frame is drawn
    os.environ.setdefault("TEXTUAL_FPS", "120")  # a change is drawn at the next frame: more frames answer a key sooner
    try:
        app = build(target, process, lesson=lesson, hide=hide, preset=preset, out=out, visiting=visiting)
        return _run(app, process)
    finally:
        if process is not None:
            process.stop()


def _process(out: Path | None = None) -> TrainingProcess | None:
    """The process that trains; None where torch is not installed: then the app plays the runs that ship with it."""
    try:
        installed = importlib.util.find_spec("torch") is not None
    except ModuleNotFoundError:
        installed = False
    return TrainingProcess(out) if installed else None


def _run(app: SkewsimApp, process: TrainingProcess | None) -> int:
    from tui.files import remember

    def heed(number: int, _: object) -> None:
        if app.signal:  # asked twice
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        app.signal = number

    asked = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, heed) for number in asked]
    app.run()
    for number, handler in zip(asked, before, strict=True):
        signal.signal(number, handler)
    if app.measuring is not None:
        app.measuring.stop()
    app.lab.driver.stop(0)
    if process is not None:
        process.stop()
    app.lab.driver.stop()  # by now it is waiting for nothing
    if not app.options.visiting:
        remember(app.lab.yours)
    if app.fault is not None and not app.signal:  # what breaks while a signal ends it is no news
        raise app.fault
    if "TEXTUAL_DRIVER" not in os.environ:
        print(farewell(app.lab, app.score), flush=True)
    return app.return_code or 0


def build(
    target: str,
    process: TrainingProcess | None,
    *,
    lesson: str = "",
    hide: Sequence[str] = (),
    preset: str = "",
    out: Path | None = None,
    visiting: bool = False,
) -> SkewsimApp:
    """The app for these options, with the process that trains for it, or with recorded runs. Raises UserError."""
    from tui.actions import load_keymap
    from tui.app import SkewsimApp
    from tui.driver import Driver
    from tui.files import writable_folder
    from tui.lab import Lab
    from tui.lesson import load_lesson
    from tui.limits import MOST_STEPS, check_visit
    from tui.presets import check_hidden, find_preset
    from tui.recordings import shipped
    from tui.shell import Options

    chosen = find_preset(preset) if preset else None
    keymap = {} if visiting else load_keymap()
    hidden = check_hidden({*hide, *(chosen.hide if chosen else ())})
    if lesson:
        found = load_lesson(lesson)
        found.check_visible(hidden)
        lesson = found.name
    if out is not None:
        writable_folder(out)
    yours, heard = _opening(target)
    if chosen is not None:
        yours = yours.with_values(chosen.set)
    archive = shipped() if process is None else None
    if archive is not None:
        archive.run(yours)  # or say that it is not recorded
    train = process.train if process is not None else shipped().train
    driver = Driver(train, speed=chosen.speed if chosen else 10, most=MOST_STEPS if visiting else math.inf)
    view = chosen.view if chosen else None
    options = Options(hidden=hidden, lesson=lesson or None, out=out, view=view, visiting=visiting)
    lab = Lab(driver, yours=yours, archive=archive, pause_at=chosen.pause_at if chosen else None, heard=heard)
    if visiting:
        lab.check = check_visit
    return SkewsimApp(lab, options, lens=process.watch if process is not None else None, keymap=keymap)


def _opening(target: str) -> tuple[Scenario, str]:
    """What yours starts with, and a word on it: a last state that cannot be read is the app's own, and is left
    alone.
    """
    from tui.files import any_scenario
    from tui.lab import YOURS, opening

    try:
        return (any_scenario(target).with_values({"name": YOURS}) if target else opening()), ""
    except FileFormatError as error:
        if target.strip() != "last":
            raise
        return opening(), str(error)


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
    """One line on how far the curves came, and one with the command that shows these settings again."""
    from skewsim.share import to_share
    from tui.views import REWARD

    parts = []
    for track in lab.tracks.values():
        value = track.series.now(REWARD.key, 5)
        parts.append(f"{track.name} {'-' if value is None else f'{value:.2f}'}")
    head = f"step {max(lab.step, 0)}, reward: {', '.join(parts)}" + (f"; {score}" if score else "")
    return f"{head}\nskewsim tui {to_share(lab.yours)}"
