"""Map: where a sweep's training collapses, cell by cell; enter opens a cell's curves in Explore."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from rich.text import Text
from textual.binding import BindingType

from skewsim.errors import UserError
from skewsim.errors import shown as printable
from tui.actions import bindings
from tui.lab import YOURS
from tui.screens.page import Page
from tui.sweeps import cell_tracks
from tui.views import Look

if TYPE_CHECKING:
    from skewsim.sweeps.layout import Panel, Shown
    from skewsim.sweeps.map import CellResult

_PLAIN = {"░": ".", "▒": "o", "▓": "#", "█": "@"}


class MapScreen(Page):
    """The arrows move over the cells, v shows another number, n the next panel, enter opens the cell's curves."""

    heading = "Map"
    about = (
        "A sweep trained every cell of this grid with several seeds. A run collapses when its reward falls to half of "
        "its best (means over ten steps), or when a loss is not finite. The darker a cell, the larger its number. The "
        "warnings below are of the cell under the cursor: how many steps before the reward fell did a number leave "
        "the band of the runs that do not collapse. skewsim sweep show prints all of this, and draws it with --figures."
    )
    BINDINGS: ClassVar[list[BindingType]] = bindings("page") + bindings("map")
    where: ClassVar[str] = "map"

    def __init__(self, folder: Path) -> None:
        from skewsim.sweeps.layout import PROBABILITY, REWARD, STEPS, means_of
        from skewsim.sweeps.map import load_map

        super().__init__()
        self._folder, self._map = folder, load_map(folder)
        self._views: tuple[Shown, ...] = (PROBABILITY, REWARD, STEPS, *means_of(self._map))
        self._view = self._panel = self._column = self._row = 0

    @property
    def shown(self) -> Shown:
        return self._views[self._view]

    def subtitle(self) -> str:
        from skewsim.sweeps.layout import seeds_words

        found = self._map
        return printable(f"{found.title}: {found.done} of {found.planned} members, {seeds_words(found)}", 120)

    def content(self, width: int, look: Look) -> Text:
        from skewsim.sweeps.layout import panels

        made = panels(self._map, self.shown)
        panel = made[self._panel]
        text = Text(no_wrap=True, end="")
        text.append(f"{self.shown.title[0].upper()}{self.shown.title[1:]}\n", style="bold")
        if panel.title:
            text.append(printable(panel.title, width))
            text.append(f"  ({self._panel + 1} of {len(made)}: n)\n" if len(made) > 1 else "\n", style=look.muted)
        text.append("\n")
        self._grid(text, panel, width, look)
        text.append("\n")
        self._details(text, self._cell(panel), width, look)
        return text

    def _grid(self, text: Text, panel: Panel, width: int, look: Look) -> None:
        """The panel with the cursor; where not all columns fit, those around it."""
        from skewsim.sweeps.layout import limits, shade, x_axis, y_axis

        (x_title, columns), (y_title, rows) = x_axis(self._map), y_axis(self._map)
        low, high = limits(self.shown, [panel])
        left = max(len(row.label) for row in rows) + 1
        wide = max(8, *(len(column.label) + 2 for column in columns))
        count = max(1, min(len(columns), (width - left) // wide))
        first = min(max(0, self._column - count // 2), len(columns) - count)
        part = range(first, first + count)
        text.append(f"{y_title} (down), {x_title} (across)" if y_title else x_title, style=look.muted)
        hidden = len(columns) - count
        text.append(f", {hidden} columns more: move\n" if hidden else "\n", style=look.muted)
        text.append(" " * left + "".join(f"{columns[n].label:>{wide - 1}} " for n in part) + "\n", style="bold")
        for y in reversed(range(len(rows))):
            text.append(f"{rows[y].label:<{left}}", style="bold")
            for x in part:
                value = float(panel.values[y, x])
                mark = shade(value, low, high)
                cell = f"{self.shown.text(value)} {_PLAIN.get(mark, mark) if look.ascii_only else mark}"
                here = (x, y) == (self._column, self._row)
                cell = f"[{cell}]" if here else f"{cell} "
                text.append(f"{cell:>{wide}}", style=f"bold reverse {look.strong}" if here else "")
            text.append("\n")

    def _details(self, text: Text, cell: CellResult | None, width: int, look: Look) -> None:
        if cell is None:
            text.append("No cell here: an adaptive sweep adds cells where the border is.")
            return
        names = self._map.sweep.titles
        where = ", ".join(f"{name} {label}" for name, label in zip(names, cell.labels, strict=True))
        text.append(f"{printable(where, width)}\n", style=f"bold {look.strong}")
        if not cell.members:
            text.append("No member of this cell is there yet.")
            return
        low, high = cell.interval or (math.nan, math.nan)
        text.append(
            f"{cell.collapsed} of {cell.members} collapsed (90 % interval of the share: {low:.2f} to {high:.2f})"
        )
        if cell.steps_to_collapse is not None:
            text.append(f", after {cell.steps_to_collapse:.0f} steps")
        first, final = cell.first_reward, cell.final_reward
        band = cell.final_reward_band
        if first is not None and final is not None and band is not None:
            text.append(
                f"\nReward {first:.2f} at first, {final:.2f} at the end (seeds: {band[0]:.2f} to {band[1]:.2f})"
            )
        text.append(f"\n{self._warnings(cell)}")

    def _warnings(self, cell: CellResult) -> str:
        from skewsim.runs.outcome import WARNINGS

        known = {name: lead for key, name in WARNINGS.items() if (lead := cell.lead[key]) is not None}
        if not known:
            return "No number warned of a collapse here."
        ordered = sorted(known.items(), key=lambda item: -item[1])
        return "Warned, steps before the fall: " + ", ".join(f"{name} {lead:.0f}" for name, lead in ordered)

    def _cell(self, panel: Panel) -> CellResult | None:
        """The cell under the cursor; None where an adaptive sweep has none."""
        place = panel.places[self._row][self._column]
        return next((cell for cell in self._map.cells if cell.place == place), None)

    def _move(self, columns: int, rows: int) -> None:
        from skewsim.sweeps.layout import x_axis, y_axis

        self._column = int(np.clip(self._column + columns, 0, len(x_axis(self._map)[1]) - 1))
        self._row = int(np.clip(self._row + rows, 0, len(y_axis(self._map)[1]) - 1))

    def do_map_left(self) -> None:
        self._move(-1, 0)

    def do_map_right(self) -> None:
        self._move(1, 0)

    def do_map_down(self) -> None:
        self._move(0, -1)

    def do_map_up(self) -> None:
        self._move(0, 1)

    def do_map_view(self) -> None:
        self._view = (self._view + 1) % len(self._views)

    def do_map_panel(self) -> None:
        from skewsim.sweeps.layout import panels

        self._panel = (self._panel + 1) % len(panels(self._map, self.shown))

    def do_map_open(self) -> None:
        """The cell's curves in Explore: the mean over its seeds, and their band."""
        from skewsim.sweeps.layout import panels

        cell = self._cell(panels(self._map, self.shown)[self._panel])
        if cell is None:
            raise UserError("there is no cell here")
        lab = self.shell.lab
        lab.replay(f"a cell of {self._folder.name}", cell_tracks(self._folder, self._map, cell, YOURS))
        lab.driver.play(True)
        lab.heard = ""
        self.shell.close(self)
