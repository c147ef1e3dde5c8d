"""Figures of named runs: a panel for each metric, a curve for each run, with the seeds as a band.

A curve is the mean over the seeds, and its band goes from the lowest seed to the highest. Both are smoothed by a
centred running mean over a twentieth of the steps. Curves can be told apart without colour: besides a colour from a
palette for the colour-blind (Okabe and Ito, https://jfly.uni-koeln.de/color/), each has its own dash pattern and a
letter at its end. The curve of a member that diverged ends at that step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from skewsim.files import atomic_writer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from skewsim.records import StepRecord

COLOURS = ("#000000", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#009E73", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (7, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 3)))
PANELS = {
    "reward/mean": "reward",
    "update/clip_rate": "clip rate",
    "skew/kl_k3": "k3 between trainer and engine, nats",
    "policy/entropy": "entropy, nats",
    "lag/mean": "lag, weight versions",
}
_LOGARITHMIC = frozenset({"skew/kl_k3"})
_DECADES = 1e-6
"""Values below this share of the largest are not shown in a logarithmic panel: they are rounding errors."""
_LETTER_HEIGHT = 0.055
"""Least distance between two letters at the curves' ends, as a share of the panel's height."""


@dataclass(frozen=True)
class Curve:
    """One metric of one run over its seeds; each array has shape (steps,), with NaN where there is no number."""

    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def curve(records: Iterable[StepRecord], key: str, *, smooth: bool = True) -> Curve:
    """The curve of ``key`` over the seeds in ``records``."""
    by_seed: dict[int, dict[int, float]] = {}
    for row in records:
        value = row.metrics.get(key)
        by_seed.setdefault(row.seed, {})[row.step] = math.nan if value is None else value
    steps = sorted({step for seed in by_seed.values() for step in seed})
    if not steps:
        return Curve(np.zeros(0, np.int64), *(np.zeros(0) for _ in range(3)))
    width = max(1, len(steps) // 20) if smooth else 1
    rows = [_running_mean(np.array([seed.get(step, math.nan) for step in steps]), width) for seed in by_seed.values()]
    table = np.ma.masked_invalid(np.array(rows, dtype=float).reshape(len(rows), len(steps)))
    mean, low, high = (getattr(table, name)(axis=0) for name in ("mean", "min", "max"))
    return Curve(
        np.array(steps), *(np.ma.filled(np.ma.asarray(line, dtype=float), math.nan) for line in (mean, low, high))
    )


@dataclass(frozen=True)
class Picture:
    """A finished figure: a notebook displays it, `save` writes it to a file."""

    figure: Figure

    def save(self, path: Path | str) -> Path:
        """Write it in the format that the file's suffix names (png, svg, pdf); returns the path."""
        path = Path(path)
        with atomic_writer(path) as file:
            self.figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=120)
        return path

    def svg(self) -> str:
        """It as an SVG element to put into a page: its text as outlines, without a date, the same at every call."""
        from matplotlib import rc_context

        file, nothing = BytesIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with rc_context({"svg.fonttype": "path", "svg.hashsalt": "skewsim"}):
            self.figure.savefig(file, format="svg", metadata=nothing)
        text = file.getvalue().decode()
        return text[text.index("<svg") :]

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.figure.savefig(file, format="png", dpi=80)
        return file.getvalue()


def curves_figure(
    runs: Mapping[str, Sequence[StepRecord]],
    *,
    title: str = "",
    predicted: Mapping[str, Sequence[StepRecord]] | None = None,
) -> Picture:
    """Every run's curves in one figure, a panel for each metric of ``PANELS`` and one for the legend.

    A prediction of the runs is drawn behind them: pale, wide lines of the same colours, without a band.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    for axis, (key, label) in zip(axes, PANELS.items(), strict=False):
        for index, records in enumerate((predicted or {}).values()):
            line = curve(records, key)
            axis.plot(line.steps, line.mean, color=_style(index)["color"], linewidth=4.5, alpha=0.3)
        _panel(axis, {name: curve(records, key) for name, records in runs.items()}, label, key in _LOGARITHMIC)
    _legend(axes[len(PANELS)], list(runs), predicted=predicted is not None)
    figure.suptitle(safe(title), fontsize=13)
    return Picture(figure)


def _panel(axis: Axes, curves: Mapping[str, Curve], label: str, logarithmic: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    for index, line in enumerate(curves.values()):
        style = _style(index)
        axis.plot(line.steps, line.mean, **style)
        axis.fill_between(line.steps, line.low, line.high, color=style["color"], alpha=0.13, linewidth=0)
    if logarithmic:
        axis.set_yscale("log", nonpositive="mask")
        top = max((float(np.nanmax(line.high, initial=0)) for line in curves.values()), default=0)
        axis.set_ylim(bottom=max(axis.get_ylim()[0], top * _DECADES) or None)
    axis.set_title(label, loc="left", fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    _letters(axis, list(curves.values()))


def _letters(axis: Axes, curves: Sequence[Curve]) -> None:
    """A letter at the right end of each curve, moved apart where curves end together."""
    ends = []
    axis.autoscale_view()
    to_axis = axis.transData + axis.transAxes.inverted()
    for index, line in enumerate(curves):
        known = np.flatnonzero(np.isfinite(line.mean))
        if len(known):
            x, y = line.steps[known[-1]], line.mean[known[-1]]
            if axis.get_yscale() == "linear" or y > 0:
                ends.append((float(to_axis.transform((x, y))[1]), index))
    for (_, index), height in zip(sorted(ends), spread(sorted(end for end, _ in ends), _LETTER_HEIGHT), strict=True):
        axis.text(
            1.01, height, letter(index), color=_style(index)["color"], transform=axis.transAxes, va="center", fontsize=9
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights until neighbours are at least ``gap`` apart, with the least sum of squared moves."""
    if not heights:
        return []
    steps = gap * np.arange(len(heights))
    return list(isotonic_regression(np.asarray(heights) - steps).x + steps)


def letter(index: int) -> str:
    """A, B, C, ...: the short name of a curve."""
    return chr(ord("A") + index % 26)


def _legend(axis: Axes, names: Sequence[str], *, predicted: bool = False) -> None:
    axis.set_axis_off()
    for index, name in enumerate(names):
        height = 0.95 - index * min(0.13, 0.9 / len(names))
        axis.plot([0.0, 0.22], [height, height], transform=axis.transAxes, **_style(index))
        axis.text(0.26, height, f"{letter(index)}  {safe(name)}", transform=axis.transAxes, va="center", fontsize=10)
    note = "line: mean over seeds; band: lowest to highest seed"
    if predicted:
        note += "\npale: the simulator's prediction"
    axis.text(0.0, 0.02, note, transform=axis.transAxes, fontsize=8, va="bottom")


def safe(text: str) -> str:
    """Text from outside for matplotlib, which takes what is between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.7}


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Centred running mean of odd width; at the ends, over the part of the window that exists. NaN stays NaN."""
    half = width // 2
    known = np.isfinite(values)
    kernel = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")[: len(values)]
    count = np.convolve(known.astype(float), kernel, mode="same")[: len(values)]
    return np.where(known, total / np.maximum(count, 1.0), math.nan)
