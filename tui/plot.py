"""The live chart: a thin Textual widget (Line API) around the rasteriser of `tui.chart`.

Styles are read once a frame and never inside `render_line`: `rich_style` walks the whole DOM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui.chart import DOTS_IN_A_CELL, Array, ChartCurve, ChartWindow, Raster, limits, rasterise
from tui.lab import BACK_KEY, TWIN, YOURS, Lab, Mark
from tui.playback import Track
from tui.views import Look, View

LOG_FLOOR = 1e-6  # float32 arithmetic alone is below it
_LEFT = 7  # cells for the y labels


@dataclass(frozen=True)
class Picture:
    """What a plot shows: drawn from the lab's state, independent of the screen."""

    view: View
    curves: list[ChartCurve]
    marks: list[Mark] = field(default_factory=list)
    dead: dict[str, int] = field(default_factory=dict)
    titles: tuple[str, ...] = ()
    """Titles with the same content, the longest first: the first one that fits is drawn."""


def picture(lab: Lab, view: View) -> Picture:
    """The curves of one metric over all visible tracks."""
    window = lab.smooth if view.smooth else 1
    curves = [_curve(track, view, window, seeds=len(track.series.seeds) > 1) for track in lab.visible()]
    dead = {t.letter: min(s for s, _ in t.series.diverged.values()) for t in lab.visible() if t.series.diverged}
    titles = tuple(f"{view.title}  {_values(lab, view, window, digits)}" for digits in (3, 2, 1))
    chosen = [] if lab.chosen is None else [Mark(lab.chosen, BACK_KEY, "stepped back to")]
    return Picture(view, curves, [*lab.marks, *chosen], dead, (*titles, view.title))


def twin_difference(lab: Lab, view: View) -> Picture:
    """Yours minus its twin, step by step."""
    yours, twin = lab.tracks[YOURS].series, lab.tracks[TWIN].series
    steps, a, b = np.intersect1d(yours.steps, twin.steps, return_indices=True)
    gap = yours.mean(view.key)[a] - twin.mean(view.key)[b]
    control = lab.twin.label if lab.twin else ""
    flat = View(view.key, f"difference in {view.title}", view.floor if not len(gap) else None)
    titles = (f"yours minus twin: {view.title}, for {control}", f"yours minus twin: {view.title}")
    zero = ChartCurve(".", steps, np.zeros(len(steps)), dash=2)
    return Picture(flat, [zero, ChartCurve("d", steps, gap)], lab.marks, {}, titles)


def _curve(track: Track, view: View, window: int, *, seeds: bool) -> ChartCurve:
    series = track.series
    y = _scaled(trailing_mean(series.mean(view.key), window), view)
    low = high = None
    if seeds and len(series):
        values = np.stack([trailing_mean(v, window) for v in series.values(view.key)])
        low = _scaled(np.where(np.isfinite(values), values, np.inf).min(axis=0), view)
        high = _scaled(np.where(np.isfinite(values), values, -np.inf).max(axis=0), view)
    return ChartCurve(track.letter, series.steps, y, track.dash, low, high)


def _scaled(values: Array, view: View) -> Array:
    finite = np.where(np.isfinite(values), values, np.nan)
    return np.log10(np.maximum(finite, LOG_FLOOR)) if view.log else finite


def trailing_mean(values: Array, window: int) -> Array:
    """Mean of each value and those before it, as many as `window` and as there are; missing ones do not count."""
    if window <= 1 or not len(values):
        return values
    seen = np.isfinite(values)
    total, count = (np.cumsum(np.where(seen, v, 0.0)) for v in (values, np.ones(len(values))))
    for sums in (total, count):
        sums[window:] -= sums[:-window].copy()
    return np.where(seen, total / np.maximum(count, 1), np.nan)


def _values(lab: Lab, view: View, window: int, digits: int) -> str:
    """The newest value of each curve, by letter."""
    parts = []
    for track in lab.visible():
        value = track.series.now(view.key, window)
        parts.append(f"{track.letter} {'-' if value is None else _compact(value, digits)}")
    return "  ".join(parts)


def _compact(value: float, digits: int) -> str:
    """The shorter of 0.00034 and 3.4e-4."""
    plain, power = f"{value:.{digits}g}", f"{value:.{digits - 1}e}"
    return min(_bare(plain), _bare(power), key=len)


def _bare(text: str) -> str:
    return text.replace("e-0", "e-").replace("e+0", "e+")


class Plot(Widget, can_focus=True):
    """One chart with a title, y labels, an axis with the marks of toggles on it, and a letter at each curve's end."""

    DEFAULT_CSS = """
    Plot { height: 1fr; width: 1fr; }
    """

    class Pointed(Message):
        """A step on the axis was clicked."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    def __init__(self, view: View, *, look: Look, id: str | None = None) -> None:
        super().__init__(id=id)
        self._window: ChartWindow | None = None
        self.view = view
        self.look = look
        self._picture = Picture(view, [])
        self._strips: list[Strip] = []
        self._highlighted = False

    def highlight(self, on: bool) -> None:
        if on != self._highlighted:
            self._highlighted, self._strips = on, []
            self.refresh()

    @property
    def help_title(self) -> str:
        return self.view.title

    @property
    def help_text(self) -> str:
        return self.view.help

    def show(self, picture: Picture, look: Look) -> None:
        """Draw something else at the next refresh."""
        self._picture, self.look, self.view, self._strips = picture, look, picture.view, []
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        if self._window is not None and event.x >= _LEFT:
            share = (event.x - _LEFT) / max(self.size.width - _LEFT - 1, 1)
            self.post_message(self.Pointed(round(self._window.left + share * (self._window.right - self._window.left))))

    def notify_style_update(self) -> None:
        self._strips = []
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        width, height = self.size
        if not self._strips or len(self._strips) != height or self._strips[0].cell_length != width:
            self._strips = self._build(width, height)
        return self._strips[y] if y < len(self._strips) else Strip.blank(width)

    def render_lines(self, crop: Region) -> list[Strip]:
        """Around Textual's cache of styled lines: a plot has no border, and ten times a second each line is new."""
        strips = [self.render_line(y) for y in crop.line_range]
        background = self.background_colors[1]
        for filter in self.get_line_filters():
            strips = [strip.apply_filter(filter, background) for strip in strips]
        if crop.column_span != (0, self.size.width):
            strips = [strip.crop(*crop.column_span) for strip in strips]
        return strips

    def _build(self, width: int, height: int) -> list[Strip]:
        base, look = self.rich_style, self.look
        if width < _LEFT + 6 or height < 4:
            return [Strip.blank(width, base)] * height
        axis = base + Style(color=look.muted)
        title_style = base + Style(bold=True, reverse=self.has_focus)
        curves = [c for c in self._picture.curves if len(c.x)]
        window = limits(curves, floor=self.view.floor, ceiling=self.view.ceiling, log=self.view.log)
        self._window = window
        grid_w, grid_h = width - _LEFT, height - 2
        raster = rasterise(curves, grid_w, grid_h, window, ascii_only=look.ascii_only)
        columns = {mark.step: _column(mark.step, window, grid_w) for mark in self._picture.marks}
        _decorate(raster, curves, window, sorted(set(columns.values())), self._picture.dead, look)
        styles = [base + Style(color=look.colour(c.letter)) for c in curves]
        pointer = look.glyph("◆ ", "* ") if self._highlighted else ""
        titles = [pointer + title for title in self._picture.titles or (self.view.title,)]
        title = next((title for title in titles if len(title) <= width), titles[-1])
        strips = [_titled(title, width, title_style, axis)]
        known = any(np.isfinite(c.y).any() for c in curves)
        labels = _labels(window, grid_h, log=self.view.log) if known else [""] * grid_h
        bar = look.glyph("│", "|")
        for label, segments in zip(labels, _segments(raster, styles, axis), strict=True):
            strips.append(Strip([Segment(label.rjust(_LEFT - 1) + bar, axis), *segments], width))
        strips.append(Strip(self._axis(window, grid_w, columns, axis, base), width))
        return strips

    def _axis(
        self, window: ChartWindow, width: int, columns: dict[int, int], axis: Style, base: Style
    ) -> list[Segment]:
        """The bottom line: first and last step, and the letter of each toggle under its step."""
        line = list(self.look.glyph("─", "-") * width)
        first, last = f"{window.left:.0f}", f"{window.right:.0f}"
        line[: len(first)] = first
        lead = " " * (_LEFT - 1) + self.look.glyph("└", "+")
        marked = set()
        for mark in self._picture.marks:
            if window.left <= mark.step <= window.right:
                at = columns[mark.step]
                while at in marked and at + 1 < width:
                    at += 1
                line[at] = mark.letter
                marked.add(at)
        end = width - len(last)
        if not marked & set(range(end, width)):  # a toggle's letter says more than the number, which the headline has
            line[end:] = last
        strong = base + Style(color=self.look.strong, bold=True)
        runs = groupby(range(width), key=lambda i: i in marked)
        parts = [("".join(line[i] for i in run), strong if on else axis) for on, run in runs]
        return [Segment(lead, axis), *(Segment(text, style) for text, style in parts)]


def _titled(title: str, width: int, style: Style, rest: Style) -> Strip:
    text = title[:width]
    return Strip([Segment(text, style), Segment(" " * (width - len(text)), rest)], width)


def _column(step: int, window: ChartWindow, width: int) -> int:
    share = (step - window.left) / (window.right - window.left)
    return min(max(round(share * (width - 1)), 0), width - 1)


def _labels(window: ChartWindow, height: int, *, log: bool) -> list[str]:
    every = max(2, height // 4)
    rows = [r for r in range(height) if (r % every == 0 and r + every // 2 < height) or r == height - 1]
    heights = [window.top - (window.top - window.bottom) * row / max(1, height - 1) for row in rows]
    values = [10**value if log else value for value in heights]
    several = [[_short(value, digits) for value in values] for digits in range(2, 7)]
    texts = next((texts for texts in several if len(set(texts)) == len(texts)), several[-1])
    shown = {row: text for i, (row, text) in enumerate(zip(rows, texts, strict=True)) if text not in texts[:i]}
    return [shown.get(row, "") for row in range(height)]


def _short(value: float, digits: int) -> str:
    """The number with so many digits, or with as many as there is room for: plain, without its 0, or as a power."""
    value = 0.0 if abs(value) < 1e-12 else value
    for fewer in range(digits, 0, -1):
        plain, power = _bare(f"{value:.{fewer}g}"), _bare(f"{value:.{fewer - 1}e}")
        fitting = [text for text in (plain, plain.replace("0.", ".", 1), power) if len(text) < _LEFT]
        if fitting:
            return fitting[0]
    return _bare(f"{value:.0e}")


def _decorate(
    raster: Raster, curves: list[ChartCurve], window: ChartWindow, marks: list[int], dead: dict[str, int], look: Look
) -> None:
    """Put a thin line at every toggle and a letter (X: diverged) at every curve's end into the raster."""
    codes = raster.codes
    for column in marks:
        codes[codes[:, column] == ord(" "), column] = ord(look.glyph("┊", ":"))
    free = dict.fromkeys(range(codes.shape[0]), 0)
    for (row, column), meeting in sorted(_ends(curves, window, raster, ascii_only=look.ascii_only).items()):
        first = max(column + 1 - len(meeting), free[row])  # side by side, so that each is in the row of its value
        for at, index in enumerate(sorted(meeting, key=lambda i: _newest(curves[i])), start=first):
            at = min(at, codes.shape[1] - 1)
            codes[row, at] = ord("X" if curves[index].letter in dead else curves[index].letter)
            raster.owner[row, at] = index
        free[row] = first + len(meeting)


def _ends(
    curves: list[ChartCurve], window: ChartWindow, raster: Raster, *, ascii_only: bool
) -> dict[tuple[int, int], list[int]]:
    """The row and column where curves end, and which ones end there: the cell that their last dot is in."""
    height, width = raster.codes.shape
    dots = 1 if ascii_only else DOTS_IN_A_CELL
    found: dict[tuple[int, int], list[int]] = {}
    for index, curve in enumerate(curves):
        if np.isfinite(curve.y).any():
            share = min(max((window.top - _newest(curve)) / (window.top - window.bottom), 0.0), 1.0)
            row = int(np.rint(share * (height * dots - 1))) // dots
            column = _column(int(curve.x[np.isfinite(curve.y)][-1]), window, width)
            found.setdefault((row, column), []).append(index)
    return found


def _newest(curve: ChartCurve) -> float:
    """The last value that there is."""
    return float(curve.y[np.isfinite(curve.y)][-1])


def _segments(raster: Raster, styles: list[Style], blank: Style) -> list[list[Segment]]:
    """Each row as runs of one style. An empty cell shows no colour and so goes on with its left neighbour's."""
    height, width = raster.owner.shape
    last = np.where(raster.codes == ord(" "), 0, np.arange(width))
    owner = raster.owner[np.arange(height)[:, None], np.maximum.accumulate(last, axis=1)]
    ends: list[list[int]] = [[] for _ in owner]
    for row, column in np.argwhere(owner[:, 1:] != owner[:, :-1]).tolist():
        ends[row].append(column + 1)
    rows = []
    for text, owners, cuts in zip(raster.rows, owner, ends, strict=True):
        starts = [0, *cuts]
        runs = zip(starts, [*cuts, width], owners[starts].tolist(), strict=True)
        rows.append([Segment(text[a:b], styles[k] if k >= 0 else blank) for a, b, k in runs])
    return rows
