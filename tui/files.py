"""Files and names that the app reads and writes: scenarios, the last session's settings, exported tables."""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
from datetime import datetime
from pathlib import Path

from skewsim.border import read_small
from skewsim.errors import FileFormatError, UserError
from skewsim.files import atomic_writer, state_folder
from skewsim.scenarios import find_scenario as named_scenario
from skewsim.settings import Scenario
from skewsim.share import is_share, load_toml, to_share
from tui.lab import Lab, parse_share


def curves_csv(lab: Lab) -> str:
    """Every number on the charts: a row for each curve, seed and step, and the share string in the first line."""
    out = io.StringIO()
    out.write(f"# {to_share(lab.shown)}\n")
    keys = sorted({key for track in lab.tracks.values() for key in track.series.keys()})  # noqa: SIM118
    writer = csv.writer(out)
    writer.writerow(["curve", "seed", "step", *keys])
    for track in lab.tracks.values():
        columns = [track.series.values(key) for key in keys]
        for row, seed in enumerate(track.series.seeds):
            for at, step in enumerate(track.series.steps):
                writer.writerow([track.name, seed, int(step), *(f"{c[row, at]:.6g}" for c in columns)])
    return out.getvalue()


def any_scenario(text: str) -> Scenario:
    """A scenario from a share string, a TOML file, `last`, or the name of a scenario. Raises UserError."""
    text = text.strip()
    if text == "last":
        return last_state()
    if text and not is_share(text) and (text.endswith(".toml") or os.path.isfile(text)):
        return load_toml(Path(text))
    return shared_scenario(text)


def shared_scenario(text: str) -> Scenario:
    """A scenario from a share string or the name of one; no file is looked for. Raises UserError."""
    text = text.strip()
    return parse_share(text) if is_share(text) or not text else named_scenario(text)


def _state_file() -> Path:
    return state_folder() / "last"


def last_state() -> Scenario:
    """The settings that the last session ended with. Raises UserError when there was none."""
    path = _state_file()
    if not os.path.exists(path):
        raise UserError("no last state: no session has ended here yet")
    try:
        return parse_share(read_small(path).decode())
    except (UserError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
        raise FileFormatError(f"the last state ({path}) cannot be taken up: {reason}") from None


_WEB_FONT = re.compile(r',\s*url\("https?:[^)]*\)\s*format\("\w+"\)')


def without_web_fonts(svg: str) -> str:
    """A picture of the screen that asks no server for its font: the machine's own, or any of fixed width, is used."""
    return _WEB_FONT.sub("", svg)


def stamp() -> str:
    return datetime.now().strftime("%Y%m%d-%H%M%S")


def write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def writable_folder(path: Path) -> None:
    """Make a folder if it is not there. Raises UserError if nothing can be kept in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise UserError(f"out={path}: is a file; allowed: a folder, or a new name") from None
    except OSError as error:
        raise UserError(f"out={path}: cannot be written: {error.strerror}") from None


def remember(yours: Scenario) -> None:
    try:
        write(_state_file(), to_share(yours))
    except UserError:
        return  # without a place to write, the next session just cannot take it up
