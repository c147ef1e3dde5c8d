"""Curves as text: a numpy rasteriser onto braille dots or ASCII letters, free of Textual.

A terminal cell holds 2 x 4 braille dots (Unicode block U+2800), so a chart of W x H cells has 2W x 4H pixels. Every
curve is interpolated at each dot column and filled vertically up to half way to its neighbours, so that a steep curve
stays connected. Dots of several curves are OR-ed: a later curve never erases an earlier one, it only owns the cell's
colour. Meaning is never in colour alone: a curve also has a dash pattern and a letter, and the ASCII raster draws
nothing but letters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint8)
_BLANK = 0x2800
DOTS_IN_A_CELL = 4
"""Rows of braille dots in one row of the terminal."""
_LEAST_SPAN = 5e-3


@dataclass(frozen=True)
class ChartCurve:
    """One line: x ascending (N,), y (N,) with NaN where missing; low/high bound a band of seeds around it."""

    letter: str
    x: Array
    y: Array
    dash: int = 0
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True)
class Raster:
    """A chart's cells (height, width): code points, and the index of the curve that owns each (-1: none)."""

    codes: NDArray[np.uint32]
    owner: NDArray[np.int16]

    @property
    def rows(self) -> list[str]:
        """The characters, row by row."""
        return [row.tobytes().decode("utf-32-le") for row in self.codes]


@dataclass(frozen=True)
class ChartWindow:
    """The window of data that a chart shows."""

    left: float
    right: float
    bottom: float
    top: float


def limits(
    curves: list[ChartCurve], *, floor: float | None = None, ceiling: float | None = None, log: bool = False
) -> ChartWindow:
    """The window that shows all curves with a little air, or from `floor` to `ceiling` where these are given.

    On a logarithmic axis step 0 counts only if there is nothing else: before the first update the skew may be a
    thousandth of what it is from then on. A window is at least 0.5 % of its values high, so that
    a constant is drawn flat and not as the noise of its last digit.
    """
    xs = [c.x for c in curves if len(c.x)]
    left, right = (min(float(x[0]) for x in xs), max(float(x[-1]) for x in xs)) if xs else (0.0, 1.0)
    values = _finite(curves, after=0 if log else -1)
    values = values if values.size else _finite(curves)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    pad = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    bottom = low - pad if floor is None else min(floor, low)
    top = high + pad if ceiling is None else max(ceiling, high)
    least = max(max(abs(low), abs(high)) * _LEAST_SPAN, 1e-9)
    return ChartWindow(left, max(right, left + 1.0), min(bottom, top - least), top)


def _finite(curves: list[ChartCurve], *, after: int = -1) -> Array:
    """All finite values of curves and their bands, of the steps after one."""
    parts = [a[np.isfinite(a) & (c.x > after)] for c in curves for a in (c.y, c.low, c.high) if a is not None]
    return np.concatenate(parts) if parts else np.empty(0)


def rasterise(
    curves: list[ChartCurve], width: int, height: int, window: ChartWindow, *, ascii_only: bool = False
) -> Raster:
    """Draw curves on a grid of width x height cells."""
    if ascii_only:
        return _letters(curves, width, height, window)
    bits = np.zeros((height, width), np.uint8)
    owner = np.full((height, width), -1, np.int16)
    for index, curve in enumerate(curves):
        band = _band_dots(curve, width * 2, height * DOTS_IN_A_CELL, window)
        line = _line_dots(curve, width * 2, height * DOTS_IN_A_CELL, window)
        for dots in (band, line):
            if dots is not None:
                cells = _cells(dots)
                bits |= cells
                owner[cells > 0] = index
    return Raster(np.where(bits == 0, ord(" "), bits + np.uint32(_BLANK)).astype("<u4"), owner)


def _cells(dots: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The braille bits of each cell of 4 x 2 dots."""
    ones = dots.view(np.uint8)
    cells = np.zeros((len(ones) // 4, ones.shape[1] // 2), np.uint8)
    for (i, j), bit in np.ndenumerate(_BITS):
        cells |= ones[i::4, j::2] * bit
    return cells


def _rows(y: Array, curve: ChartCurve, columns: int, rows: int, window: ChartWindow) -> Array | None:
    """The (float) dot row of a curve at each dot column, NaN outside its data; None when nothing is finite."""
    finite = np.isfinite(y)
    if not finite.any():
        return None
    at = np.linspace(window.left, window.right, columns)
    value = np.interp(at, curve.x[finite], y[finite], left=np.nan, right=np.nan)
    return np.asarray((window.top - value) * ((rows - 1) / (window.top - window.bottom)), dtype=np.float64)


def _line_dots(curve: ChartCurve, columns: int, rows: int, window: ChartWindow) -> NDArray[np.bool_] | None:
    r = _rows(curve.y, curve, columns, rows, window)
    if r is None:
        return None
    between = (r[1:] + r[:-1]) / 2
    top, low = r.copy(), r.copy()
    for ends in (slice(1, None), slice(None, -1)):
        np.fmin(top[ends], between, out=top[ends])  # NaN, beyond a curve's end, does not count
        np.fmax(low[ends], between, out=low[ends])
    empty = ~np.isfinite(r)
    if curve.dash:
        empty |= (np.arange(columns) // curve.dash) % 2 == 1
    top[empty], low[empty] = rows, -1
    grid = np.arange(rows, dtype=np.int16)[:, None]
    return np.asarray((grid >= _whole(top, rows)) & (grid <= _whole(low, rows)), dtype=np.bool_)


def _whole(r: Array, rows: int) -> NDArray[np.int16]:
    """Rows of dots as whole numbers; what lies outside the chart stays outside."""
    return np.rint(np.clip(r, -1, rows)).astype(np.int16)


def _band_dots(curve: ChartCurve, columns: int, rows: int, window: ChartWindow) -> NDArray[np.bool_] | None:
    """A sparse dither between low and high: one dot in eight, so that lines stay readable on top of it."""
    if curve.low is None or curve.high is None:
        return None
    top, low = (_rows(a, curve, columns, rows, window) for a in (curve.high, curve.low))
    if top is None or low is None:
        return None
    grid, across = np.arange(rows)[:, None], np.arange(columns)[None, :]
    dither = (across % 4 == 0) & ((grid + across // 2) % 4 == 0)
    return np.asarray((grid >= np.rint(top)) & (grid <= np.rint(low)) & dither, dtype=np.bool_)  # NaN: False


def _letters(curves: list[ChartCurve], width: int, height: int, window: ChartWindow) -> Raster:
    cells = np.full((height, width), ord(" "), "<u4")
    owner = np.full((height, width), -1, np.int16)
    columns = np.arange(width)
    for index, curve in enumerate(curves):
        r = _rows(curve.y, curve, width, height, window)
        if r is None:
            continue
        seen = np.isfinite(r)
        row = np.clip(np.rint(r[seen]).astype(int), 0, height - 1)
        cells[row, columns[seen]] = ord(curve.letter)
        owner[row, columns[seen]] = index
    return Raster(cells, owner)


SPARK = "▁▂▃▄▅▆▇█"


def bars(counts: Array, height: int, *, ascii_only: bool = False) -> list[str]:
    """A histogram as text: one column a bin, eighths of a cell high (ASCII: whole cells of '#')."""
    peak = float(counts.max()) if counts.size else 0.0
    eighths = np.rint(counts / peak * height * 8).astype(int) if peak > 0 else np.zeros(len(counts), int)
    eighths[(counts > 0) & (eighths == 0)] = 1
    lines = []
    for row in range(height - 1, -1, -1):
        fill = np.clip(eighths - row * 8, 0, 8)
        glyphs = "#" if ascii_only else None
        lines.append("".join(" " if f == 0 else glyphs or SPARK[f - 1] for f in fill.tolist()))
    return lines
