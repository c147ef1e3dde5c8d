"""A map as figures: a heat map for each panel, every cell with its number, and the border over the probability's.

Where an axis has numbers and the other has not, the border is a stroke in each row, with a bar from the fifth to the
95th percentile of where other seeds might put it; where both have numbers, it is the contour at one half, with sixty
thin contours of shares drawn as other seeds might give them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skewsim.runs.figures import Picture, safe
from skewsim.runs.outcome import WARNINGS
from skewsim.sweeps.layout import (
    LEADS,
    PROBABILITY,
    REWARD,
    STEPS,
    Panel,
    Shown,
    limits,
    means_of,
    panels,
    scale,
    seeds_words,
    spread,
    x_axis,
    y_axis,
)
from skewsim.sweeps.map import SweepMap, crossing
from skewsim.sweeps.plan import is_numeric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILES = {"collapse": PROBABILITY, "reward": REWARD, "steps": STEPS}
"""Figure -> what it shows; ``lead`` has a row for each number that warns."""
MESSAGES = {
    "collapse": "Where does training collapse?",
    "reward": "What reward does training end at?",
    "steps": "How soon does training collapse?",
    "lead": "How long before the reward falls does a number warn?",
}
NOTES = {
    "collapse": "A run collapses when its reward falls to half of its best (means over 10 steps).",
    "reward": "Mean reward over the last tenth of the steps; a collapsed run's where it was stopped.",
    "steps": "Median over the runs that collapsed. Grey: none did.",
    "lead": "Median over the runs that collapsed and were warned of. Below 0: too late. Grey: no warning, or no collapse.",
}
NOTE_OF_A_METRIC = "Mean over the second half of each run's steps, and over the runs. Grey: there is no such number."
COLOURS = {"collapse": "YlOrBr", "reward": "YlGnBu", "steps": "YlOrBr_r", "lead": "PuOr_r"}
COLOURS_OF_A_METRIC = "PuBu"
BORDER = "#0072B2"
_NOTHING = "#d9d9d9"


def map_figures(found: SweepMap) -> dict[str, Picture]:
    """The map's figures, by name; that of a metric is called after it. Needs matplotlib."""
    each = FILES | {str(shown.key): shown for shown in means_of(found)}
    figures = {name: _figure(found, name, [shown]) for name, shown in each.items()}
    return figures | {"lead": _figure(found, "lead", list(LEADS))}


def message(found: SweepMap, name: str) -> str:
    """The sentence over a figure: the sweep's own, or a question."""
    return found.sweep.settings.messages.get(name) or MESSAGES.get(name) or f"How large is {name}?"


def save_figures(found: SweepMap, folder: Path) -> list[Path]:
    """Every figure as PNG and SVG in a folder; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        picture.save(folder / f"{name.rpartition('/')[2]}.{kind}")
        for name, picture in map_figures(found).items()
        for kind in ("png", "svg")
    ]


def _figure(found: SweepMap, name: str, views: Sequence[Shown]) -> Picture:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = [panels(found, shown) for shown in views]
    if name in found.sweep.settings.show:
        made = [_distinct(its) for its in made]
    columns = len(made[0])
    wide, high = len(x_axis(found)[1]), len(y_axis(found)[1])
    size = (1.6 + columns * max(2.6, 0.62 * wide), 1.9 + len(views) * (0.75 + max(0.9, 0.5 * high)))
    figure = Figure(figsize=(max(6.4, size[0]), size[1]), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(views), columns, squeeze=False)
    span = _span(views[0], [panel for its in made for panel in its])
    for row, (shown, its) in enumerate(zip(views, made, strict=True)):
        for column, panel in enumerate(its):
            axis = grid[row][column]
            image = _heat(axis, found, shown, panel, span, COLOURS.get(name, COLOURS_OF_A_METRIC))
            _label(axis, found, first=column == 0, last=row == len(views) - 1)
            axis.set_title(_title(shown, panel, of_many=len(views) > 1), fontsize=9, loc="left")
            if name == "collapse" and _has_border(found):
                _border(axis, found, panel)
        figure.colorbar(image, ax=list(grid[row]), shrink=0.9, label=_unit(shown))
    _words(figure, found, name)
    return Picture(figure)


def _distinct(made: list[Panel]) -> list[Panel]:
    """One panel without a title where all are the same: what is shown does not depend on the further axes."""
    first = made[0]
    same = all(np.array_equal(first.values, panel.values, equal_nan=True) for panel in made)
    return [replace(first, title="")] if same else made


def _words(figure: Figure, found: SweepMap, name: str) -> None:
    figure.suptitle(_folded(figure, safe(message(found, name)), 12), fontsize=12, ha="left", x=0.01)
    settings = f"{safe(found.title)}; {seeds_words(found)}, {found.sweep.base.steps} steps."
    note = f"{settings}\n{NOTES.get(name, NOTE_OF_A_METRIC)}"
    if name == "collapse" and _has_border(found):
        note += "\nBlue: the border, where half of the seeds collapse, and how far other seeds might move it (90 %)."
    if name in ("collapse", "reward") and any(cell.members == 0 for cell in found.cells):
        note += "\nGrey: not computed."
    if any(point.added for points in found.sweep.axes for point in points):
        note += "\nNo number: the nearest cell's colour. Cells were added where the border is."
    figure.supxlabel(_folded(figure, note, 8), fontsize=8, ha="left", x=0.01)


def _folded(figure: Figure, text: str, points: int) -> str:
    """Lines of text that are no wider than the figure; a character is about 0.6 of its size wide."""
    columns = int(72 * figure.get_figwidth() / (0.6 * points))
    return "\n".join(textwrap.fill(line, columns) for line in text.splitlines())


def _heat(axis: Axes, found: SweepMap, shown: Shown, panel: Panel, span: tuple[float, float], colours: str) -> Any:
    from matplotlib import colormaps
    from matplotlib.patheffects import withStroke

    inks = colormaps[colours].with_extremes(bad=_NOTHING)
    image = axis.imshow(
        np.ma.masked_invalid(spread(found, panel)), origin="lower", aspect="auto", cmap=inks, vmin=span[0], vmax=span[1]
    )
    for (y, x), value in np.ndenumerate(panel.values):
        if not math.isnan(value):
            ink, paper = _inks(image, value)
            text = axis.text(x, y, shown.text(value), ha="center", va="center", fontsize=8, color=ink, zorder=4)
            text.set_path_effects([withStroke(linewidth=2.5, foreground=paper)])  # legible over the border
    return image


def _inks(image: Any, value: float) -> tuple[str, Any]:
    """Black or white, whichever can be read on a cell's colour, and that colour."""
    paper = image.cmap(image.norm(value))
    red, green, blue, _ = paper
    return ("black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"), paper


def _label(axis: Axes, found: SweepMap, *, first: bool, last: bool) -> None:
    for which, (title, points), shown in (("x", x_axis(found), last), ("y", y_axis(found), first)):
        labels = [safe(point.label) for point in points] if shown else [""] * len(points)
        getattr(axis, f"set_{which}ticks")(range(len(points)), labels)
        if shown:
            getattr(axis, f"set_{which}label")(safe(title), fontsize=9)
    axis.tick_params(labelsize=8)
    longest = max(len(point.label) for point in x_axis(found)[1])
    if last and longest > 6:
        axis.tick_params(axis="x", rotation=30)


def _title(shown: Shown, panel: Panel, *, of_many: bool) -> str:
    words = [WARNINGS[shown.key]] if of_many and shown.key else []
    return ", ".join([*words, *([safe(panel.title)] if panel.title else [])])


def _unit(shown: Shown) -> str:
    units = {
        "probability": "share that collapsed",
        "final_reward": "reward",
        "steps_to_collapse": "steps",
        "lead": "steps of warning",
    }
    return units.get(shown.field) or str(shown.key)


def _span(shown: Shown, made: list[Panel]) -> tuple[float, float]:
    low, high = limits(shown, made)
    if shown.field == "lead":  # a scale with 0 in its middle
        reach = max(abs(low), abs(high), 1.0)
        return -reach, reach
    return low, high


# ------------------------------------------------------------------------------------------------------- the border


def _has_border(found: SweepMap) -> bool:
    shares = found.grid("probability")
    numeric = any(is_numeric(axis) for axis in found.sweep.axes[:2])
    return numeric and bool((shares < 0.5).any() and (shares >= 0.5).any())


def _border(axis: Axes, found: SweepMap, panel: Panel) -> None:
    """The border over a heat map, in units of its rows and columns."""
    x, y = is_numeric(x_axis(found)[1]), is_numeric(y_axis(found)[1])
    drawn = [np.array([[each[place] for place in row] for row in panel.places]) for each in found.drawn()]
    if x and y and min(panel.values.shape) > 1:
        _contours(axis, _filled(found, panel, panel.values), [_filled(found, panel, each) for each in drawn[:60]])
    elif x:
        _strokes(axis, panel.values, drawn, scale(found, 0), upright=True)
    elif y:
        _strokes(axis, panel.values.T, [each.T for each in drawn], scale(found, 1), upright=False)


def _filled(found: SweepMap, panel: Panel, shares: Any) -> Any:
    """A panel's shares, where it has no cell those between its cells: first up the file's columns, then along rows."""
    x, y = scale(found, 0), scale(found, 1)
    filled = shares.copy()
    for column, point in enumerate(x_axis(found)[1]):
        if not point.added:
            filled[:, column] = _interpolated(filled[:, column], y)
    rows = np.array([_interpolated(row, x) for row in filled])
    return np.where(panel.cells, shares, rows)


def _interpolated(values: Any, at: Any) -> Any:
    known = np.isfinite(values)
    return np.interp(at, at[known], values[known]) if known[[0, -1]].all() else values


def _contours(axis: Axes, shares: Any, drawn: Sequence[Any]) -> None:
    for each in drawn:
        if np.nanmin(each) < 0.5 < np.nanmax(each):
            axis.contour(each, levels=[0.5], colors=[BORDER], linewidths=0.5, alpha=0.18)
    if np.nanmin(shares) < 0.5 <= np.nanmax(shares):
        axis.contour(shares, levels=[0.5 - 1e-9], colors=[BORDER], linewidths=2.2)


def _strokes(axis: Axes, shares: Any, drawn: Sequence[Any], at_values: Any, *, upright: bool) -> None:
    """``at_values``: where the values of the axis lie on its scale."""
    line, bar = (axis.vlines, axis.hlines) if upright else (axis.hlines, axis.vlines)
    for row, values in enumerate(shares):
        crossed = crossing(at_values, values)
        others = [c for each in drawn if (c := crossing(at_values, each[row])) is not None]
        if crossed is None or not others:
            continue
        low, high = np.quantile(others, [0.05, 0.95])
        at, low, high = np.interp([crossed, low, high], at_values, range(len(at_values)))
        line(at, row - 0.5, row + 0.5, color=BORDER, linewidth=2.6)
        bar(row - 0.32, low, high, color=BORDER, linewidth=1.4)
        line([low, high], row - 0.38, row - 0.26, color=BORDER, linewidth=1.4)
