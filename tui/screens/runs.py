"""Runs: the run folders at hand and the runs that ship with the app; enter replays one in Explore."""

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


class RunsScreen(Dialog):
    """Choose a folder or a recording from the list, or type a path."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q", "dismiss", "Close")]

    def __init__(self, lab: Lab, root: Path) -> None:
        super().__init__()
        self._lab = lab
        self._entries: list[Path | Show] = [*find_runs(root), *shows()]

    def compose(self) -> ComposeResult:
        with Vertical(id="runs"):
            yield Label("Replay a run folder or a recording: enter opens, escape closes")
            yield OptionList(*(Option(_line(entry)) for entry in self._entries), markup=False)
            yield Input(placeholder="or the path of a run folder; `skewsim run SCENARIO --out DIR` makes one")
            yield Label("", id="runs-answer", markup=False)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self._open(self._entries[event.option_index])

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._open(Path(event.value).expanduser())

    def _open(self, entry: Path | Show) -> None:
        if not self.on_top:
            return
        try:
            self._lab.replay(*_replay(entry))
        except UserError as error:
            self.query_one("#runs-answer", Label).update(shown(error))
            return
        self._lab.driver.play(True)
        self._lab.heard = ""
        self.dismiss()


def _line(entry: Path | Show) -> str:
    return summary_line(entry) if isinstance(entry, Path) else f"recorded: {entry.title}"


def _replay(entry: Path | Show) -> tuple[str, list[TrackSpec]]:
    """What the replay is called, and its curves. Raises UserError."""
    if isinstance(entry, Path):
        return f"replay of {entry.name}", open_run(entry)
    return entry.title, entry.tracks(shipped())
