"""How a map is laid out on paper and on a terminal: which axis goes where, and what is shown of each cell.

The sweep's first axis runs to the right and its second upward; each combination of values of further axes has a panel
of its own. The values that an adaptive sweep adds have a row or column like any other, most of whose places have no
cell: on paper such a place has the colour of the nearest cell, so that cells are the wider, the farther apart they are.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skewsim.runs.outcome import WARNINGS
from skewsim.skew.metric_table import METRICS
from skewsim.sweeps.map import SweepMap, positions
from skewsim.sweeps.plan import Point, is_numeric


@dataclass(frozen=True)
class Shown:
    """Something that a map shows: a field of `CellResult`, a key within it, and what it is called."""

    field: str
    title: str
    key: str | None = None

    def text(self, value: float) -> str:
        """A cell's number in a few characters; a dash where there is none."""
        if math.isnan(value):
            return "-"
        if self.field == "means":
            return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.2f}"
        return f"{value:.2f}" if self.field in ("probability", "final_reward") else f"{value:.0f}"


PROBABILITY = Shown("probability", "share of the members whose reward collapsed")
REWARD = Shown("final_reward", "reward at the end, mean over the members")
STEPS = Shown("steps_to_collapse", "steps until the reward collapsed, median")
LEADS = tuple(
    Shown("lead", f"steps from the warning of {name} to the fall of the reward, median", key)
    for key, name in WARNINGS.items()
)


def means_of(found: SweepMap) -> tuple[Shown, ...]:
    """The metrics that the sweep asks to be shown, after what every map shows."""
    return tuple(
        Shown("means", f"mean of {key} ({METRICS[key].formula}) over the second half of the steps", key)
        for key in found.sweep.settings.show
    )


@dataclass(frozen=True)
class Panel:
    """One grid of a map: its rows from the bottom up, its columns from left to right."""

    title: str
    values: NDArray[np.float64]
    """(rows, columns); NaN where there is no number."""
    places: tuple[tuple[tuple[int, ...], ...], ...]
    """The cell at each row and column, as its place on the sweep's axes."""
    cells: NDArray[np.bool_]
    """(rows, columns) whether the sweep has a cell there."""


def x_axis(found: SweepMap) -> tuple[str, tuple[Point, ...]]:
    """What the columns are, and their values."""
    return found.sweep.titles[0], found.sweep.axes[0]


def y_axis(found: SweepMap) -> tuple[str, tuple[Point, ...]]:
    """What the rows are, from the bottom up; one without a name if the sweep has one axis."""
    if len(found.sweep.axes) == 1:
        return "", (Point("", None, {}),)
    return found.sweep.titles[1], found.sweep.axes[1]


def panels(found: SweepMap, shown: Shown) -> list[Panel]:
    """The map's panels."""
    grid, sweep = found.grid(shown.field, shown.key), found.sweep
    rows, columns = len(y_axis(found)[1]), len(sweep.axes[0])
    there = {cell.place for cell in found.cells}
    made = []
    for rest in itertools.product(*(range(len(axis)) for axis in sweep.axes[2:])):
        places = tuple(
            tuple(((x, y) if len(sweep.axes) > 1 else (x,)) + rest for x in range(columns)) for y in range(rows)
        )
        words = [
            f"{title}: {axis[n].label}" for title, axis, n in zip(sweep.titles[2:], sweep.axes[2:], rest, strict=True)
        ]
        values = np.array([[grid[place] for place in row] for row in places])
        cells = np.array([[place in there for place in row] for row in places])
        made.append(Panel(", ".join(words), values, places, cells))
    return made


def scale(found: SweepMap, axis: int) -> NDArray[np.float64]:
    """Where an axis's values lie, from 0 to 1; far apart where they are no numbers. ``axis`` may be one too many."""
    if axis >= len(found.sweep.axes):
        return np.zeros(1)
    points = found.sweep.axes[axis]
    if not is_numeric(points):
        return np.arange(0, 10 * len(points), 10, dtype=np.float64)
    at = positions(points, log=found.sweep.settings.axis[axis].logarithmic)
    return np.asarray([(each - at[0]) / (at[-1] - at[0]) for each in at], dtype=np.float64)


def spread(found: SweepMap, panel: Panel) -> NDArray[np.float64]:
    """A panel's values, those of the nearest cell where there is none."""
    x, y = scale(found, 0), scale(found, 1)
    rows, columns = np.nonzero(panel.cells)
    values = panel.values.copy()
    for row, column in zip(*np.nonzero(~panel.cells), strict=True):
        nearest = np.argmin(np.hypot(x[columns] - x[column], y[rows] - y[row]))
        values[row, column] = panel.values[rows[nearest], columns[nearest]]
    return values


SHADES = " ░▒▓█"


def shade(value: float, low: float, high: float) -> str:
    """A character that is the darker, the higher a value lies between two others."""
    if math.isnan(value):
        return " "
    share = 0.0 if high <= low else (value - low) / (high - low)
    return SHADES[min(4, max(0, round(4 * share)))]


def text_panel(found: SweepMap, shown: Shown, panel: Panel) -> list[str]:
    """A panel as lines of text: a number and a shade for each cell."""
    x_title, columns = x_axis(found)
    y_title, rows = y_axis(found)
    low, high = limits(shown, [panel])
    left = max(len(point.label) for point in rows)
    width = max(7, *(len(point.label) + 2 for point in columns))
    lines = [f"{panel.title}".rstrip()] if panel.title else []
    lines.append(f"{y_title} (down), {x_title} (across)" if y_title else x_title)
    lines.append(" " * (left + 1) + "".join(f"{point.label:>{width}}" for point in columns))
    for point, values in reversed(list(zip(rows, panel.values, strict=True))):
        cells = (f"{shown.text(value)} {shade(value, low, high)}" for value in values)
        lines.append(f"{point.label:<{left}} " + "".join(f"{cell:>{width}}" for cell in cells).rstrip())
    return lines


def text_map(found: SweepMap, shown: Shown) -> list[str]:
    """All panels of one view as lines of text, with a headline."""
    lines = [f"{shown.title[0].upper()}{shown.title[1:]}"]
    for panel in panels(found, shown):
        lines += ["", *text_panel(found, shown, panel)]
    return lines


def limits(shown: Shown, made: list[Panel]) -> tuple[float, float]:
    """The lowest and the highest value of a view's scale."""
    if shown.field in ("probability", "final_reward"):
        return 0.0, 1.0
    known = [panel.values[np.isfinite(panel.values)] for panel in made]
    every = np.concatenate(known) if known else np.zeros(0)
    return (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)


def progress_words(found: SweepMap) -> str:
    """How much of a sweep is there, in words."""
    words = (
        f"{found.done} of {found.planned} members, {seeds_words(found)}, {found.sweep.base.steps} steps; {found.status}"
    )
    if not found.strangers:
        return words
    return f"{words}; {found.strangers} curves in the folder belong to no member (made with other settings or another version)"


def seeds_words(found: SweepMap) -> str:
    """How many seeds a cell has, in words."""
    counts = sorted({cell.members for cell in found.cells if cell.members})
    if not counts:
        return "no seeds yet"
    if len(counts) == 1:
        return f"{counts[0]} seeds a cell" if counts[0] > 1 else "one seed a cell"
    return f"{counts[0]} to {counts[-1]} seeds a cell"
