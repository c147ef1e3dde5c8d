"""Runs: the run folders, sweeps and shipped runs at hand; enter replays a run in Explore, or opens a sweep's map."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import Input, Label, OptionList
from textual.widgets.option_list import Option

from skewsim.errors import UserError, shown
from tui.driver import TrackSpec
from tui.folders import find_runs, open_run, summary_line
from tui.lab import Lab
from tui.recordings import shipped
from tui.screens.dialog import Dialog
from tui.shows import Show, shows
from tui.sweeps import find_sweeps, is_sweep, sweep_line


class RunsScreen(Dialog):
    """Choose a folder or a recording from the list, or type a path."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q", "dismiss", "Close")]

    def __init__(self, lab: Lab, root: Path) -> None:
        super().__init__()
        self._lab = lab
        self._entries: list[Path | Show] = [*find_runs(root), *find_sweeps(root), *shows()]

    def compose(self) -> ComposeResult:
        with Vertical(id="runs"):
            yield Label("A run folder, a sweep or a recording: enter opens, escape closes")
            yield OptionList(*(Option(_line(entry)) for entry in self._entries), markup=False)
            yield Input(placeholder="or the path of a folder that `skewsim run` or `sweep run` made")
            yield Label("", id="runs-answer", markup=False)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self._open(self._entries[event.option_index])

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._open(Path(event.value).expanduser())

    def _open(self, entry: Path | Show) -> None:
        if not self.on_top:
            return
        try:
            if isinstance(entry, Path) and is_sweep(entry):
                self._show_map(entry)
                return
            self._lab.replay(*_replay(entry))
        except UserError as error:
            self.query_one("#runs-answer", Label).update(shown(error))
            return
        self._lab.driver.play(True)
        self._lab.heard = ""
        self.dismiss()

    def _show_map(self, folder: Path) -> None:
        from tui.screens.map import MapScreen

        page = MapScreen(folder)
        self.dismiss()
        self.app.push_screen(page)


def _line(entry: Path | Show) -> str:
    if isinstance(entry, Path) and is_sweep(entry):
        return sweep_line(entry)
    return summary_line(entry) if isinstance(entry, Path) else f"recorded: {entry.title}"


def _replay(entry: Path | Show) -> tuple[str, list[TrackSpec]]:
    """What the replay is called, and its curves. Raises UserError."""
    if isinstance(entry, Path):
        return f"replay of {entry.name}", open_run(entry)
    return entry.title, entry.tracks(shipped())
