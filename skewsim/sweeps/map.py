"""The map of a sweep: for each cell, how many members collapsed, how they ended, and which number warned how early.

A share of collapsed members has a 90 % interval by Jeffreys: quantiles of Beta(collapsed + 1/2, others + 1/2). The
border is where the share is one half: between neighbouring cells along an axis of numbers it is interpolated (on a
logarithmic axis in logarithms), and its uncertainty is that of the shares, drawn from their Beta distributions.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skewsim.runs.outcome import WARNINGS, HealthyBand, Outcome
from skewsim.share import to_share
from skewsim.sweeps.adaptive import outcome_of, passes_one_half, refined
from skewsim.sweeps.folder import Curves, open_sweep, read_curves, read_status
from skewsim.sweeps.plan import Cell, Point, Sweep, is_numeric

DRAWS = 200
_NEEDED = ("reward/mean", *WARNINGS)


@dataclass(frozen=True)
class CellResult:
    """What the members of one cell came to. A number is None where no member has it."""

    place: tuple[int, ...]
    labels: tuple[str, ...]
    members: int
    collapsed: int
    probability: float | None
    interval: tuple[float, float] | None
    first_reward: float | None
    final_reward: float | None
    final_reward_error: float | None
    """The standard error of that mean; None with fewer than two members."""
    final_reward_band: tuple[float, float] | None
    means: dict[str, float | None]
    """Metric that the sweep shows -> its mean over the second half of each member's steps, meaned over members."""
    steps_to_collapse: float | None
    """The median over the members that collapsed."""
    lead: dict[str, float | None]
    """Metric -> the median of ``leads``."""
    leads: dict[str, list[int]]
    """Metric -> the lead of each collapsed member that it warned of before the collapse."""
    warned: dict[str, int]
    """Metric -> how many of the collapsed members it warned of before the reward fell."""
    false_alarms: dict[str, int]
    """Metric -> how many of the other members it warned of."""
    share: str
    """The share string of the cell's scenario."""


@dataclass(frozen=True)
class Crossing:
    """Where, along an axis of numbers, one half of the members collapse, with its 90 % interval."""

    place: tuple[int, ...]
    """The place on the other axes; -1 on the axis that is crossed."""
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Warnings:
    """How well one number warned, over all members of a sweep."""

    lead: float | None
    """The median over the collapsed members that it warned of."""
    warned: int
    """Collapsed members of which it warned no later than the reward fell."""
    collapsed: int
    false_alarms: int
    """Members of which it warned and that did not collapse."""
    others: int
    """Members that did not collapse."""


@dataclass(frozen=True)
class SweepMap:
    """A sweep and the results of its cells."""

    sweep: Sweep
    """With the cells that an adaptive sweep has added."""
    cells: tuple[CellResult, ...]
    planned: int
    """Members that the sweep asks for, the further seeds of an adaptive one left out."""
    done: int
    status: str
    strangers: int = 0
    """Curves in the folder that belong to no member of the sweep: another file's, or another version's."""

    @property
    def title(self) -> str:
        return self.sweep.settings.title or self.sweep.settings.name

    def grid(self, what: str, key: str | None = None) -> NDArray[np.float64]:
        """A number of every cell as an array with one axis for each of the sweep's; NaN where there is none.

        An adaptive sweep's added values have cells only where the border was looked for."""
        found = np.full(tuple(map(len, self.sweep.axes)), math.nan)
        for cell in self.cells:
            value = getattr(cell, what)
            value = value[key] if key is not None else value
            found[cell.place] = math.nan if value is None else value
        return found

    def crossings(self, axis: int) -> list[Crossing]:
        """The border along an axis of numbers, for every place of the file on the others where there is one."""
        points = self.sweep.axes[axis]
        log = self.sweep.settings.axis[axis].logarithmic
        scale = positions(points, log=log)
        shares, drawn = self.grid("probability"), self.drawn()
        lines = [[0] if n == axis else _own(points) for n, points in enumerate(self.sweep.axes)]
        found = []
        for place in itertools.product(*lines):
            row = tuple(slice(None) if n == axis else i for n, i in enumerate(place))
            at = crossing(scale, shares[row])
            others = [x for x in (crossing(scale, each[row]) for each in drawn) if x is not None]
            if at is not None and len(others) >= DRAWS // 10:
                low, high = np.quantile(others, [0.05, 0.95])
                where = tuple(-1 if n == axis else i for n, i in enumerate(place))
                found.append(Crossing(where, *((math.exp(x) if log else float(x)) for x in (at, low, high))))
        return found

    def drawn(self, count: int = DRAWS) -> list[NDArray[np.float64]]:
        """Shares of collapsed members as other seeds might give them; the same at every call."""
        stream = np.random.default_rng(0)
        collapsed, members = self.grid("collapsed"), self.grid("members")
        return [_posterior(stream, collapsed, members) for _ in range(count)]

    def warnings(self) -> dict[str, Warnings]:
        """Metric -> how well it warned."""
        collapsed = sum(cell.collapsed for cell in self.cells)
        others = sum(cell.members for cell in self.cells) - collapsed
        return {
            key: Warnings(
                _median([lead for cell in self.cells for lead in cell.leads[key]]),
                sum(cell.warned[key] for cell in self.cells),
                collapsed,
                sum(cell.false_alarms[key] for cell in self.cells),
                others,
            )
            for key in WARNINGS
        }

    def to_json(self) -> dict[str, Any]:
        """The map as plain data."""
        axes = [
            {"name": title, "values": [point.label for point in points]}
            for title, points in zip(self.sweep.titles, self.sweep.axes, strict=True)
        ]
        borders = {
            title: [asdict(c) for c in self.crossings(n)]
            for n, title in enumerate(self.sweep.titles)
            if is_numeric(self.sweep.axes[n])
        }
        return {
            "name": self.sweep.settings.name,
            "status": self.status,
            "members": {"planned": self.planned, "done": self.done, "strangers": self.strangers},
            "axes": axes,
            "cells": [asdict(cell) for cell in self.cells],
            "border": borders,
            "warnings": {key: asdict(found) for key, found in self.warnings().items()},
        }


def load_map(folder: Path | str) -> SweepMap:
    """The map of a sweep's folder, also of one that is not finished."""
    folder = Path(folder)
    sweep = open_sweep(folder)
    curves = read_curves(folder, (*_NEEDED, *sweep.settings.show))
    return make_map(sweep, curves, status=str(read_status(folder).get("status", "new")))


def make_map(sweep: Sweep, curves: Mapping[str, Curves], *, status: str = "") -> SweepMap:
    """The map from the curves that are there, by member's key."""
    sweep = refined(sweep, curves)
    outcomes = {
        member.key: outcome_of(member, found)
        for cell in sweep.cells
        for member in sweep.members(cell, sweep.most_seeds)
        if (found := curves.get(member.key)) is not None
    }
    warnings = _warnings_of(sweep, curves, outcomes)
    results, done = [], 0
    for cell in sweep.cells:
        keys = [member.key for member in sweep.members(cell, sweep.most_seeds)]
        there = [key for key in keys if key in curves]
        done += sum(key in curves for key in keys[: sweep.settings.seeds])
        first = [float(curves[key]["reward/mean"][0]) for key in there]
        means = {
            name: _mean([curves[key][name] for key in there if name in curves[key]]) for name in sweep.settings.show
        }
        results.append(_result(cell, [outcomes[key] for key in there], [warnings[key] for key in there], first, means))
    return SweepMap(
        sweep, tuple(results), len(sweep.cells) * sweep.settings.seeds, done, status, len(curves.keys() - outcomes)
    )


Alarms = dict[str, int | None]
"""Metric -> the step at which it warned."""


def _warnings_of(sweep: Sweep, curves: Mapping[str, Curves], outcomes: Mapping[str, Outcome]) -> dict[str, Alarms]:
    """Member's key -> when each number warned of it, beside the healthy runs of the same objective."""
    groups: dict[str, dict[str, None]] = {}
    for cell in sweep.cells:
        group = groups.setdefault(cell.scenario.trainer.objective, {})
        group |= dict.fromkeys(m.key for m in sweep.members(cell, sweep.most_seeds) if m.key in outcomes)
    found: dict[str, Alarms] = {key: {} for key in outcomes}
    for keys in groups.values():
        for metric in WARNINGS:
            there = [key for key in keys if metric in curves[key]]
            band = HealthyBand([curves[key][metric] for key in there if outcomes[key].collapsed is None])
            for key in there:
                end = outcomes[key].collapsed
                found[key][metric] = band.warning(curves[key][metric][:end], healthy=end is None)
    return found


def interval(collapsed: int, members: int) -> tuple[float, float]:
    """Jeffreys' 90 % interval of a share."""
    from scipy.stats import beta

    low, high = beta.ppf([0.05, 0.95], collapsed + 0.5, members - collapsed + 0.5)
    return (0.0 if collapsed == 0 else float(low)), (1.0 if collapsed == members else float(high))


def crossing(scale: Sequence[float], shares: NDArray[np.float64]) -> float | None:
    """Where a row of shares first passes one half, by linear interpolation between those that are known; None if it
    does not."""
    known = np.flatnonzero(np.isfinite(shares)).tolist()
    for first, second in itertools.pairwise(known):
        (a, b), (low, high) = (scale[first], scale[second]), (shares[first], shares[second])
        if passes_one_half(low, high):
            return float(a + (b - a) * (0.5 - low) / (high - low))
    return None


def positions(points: Sequence[Point], *, log: bool) -> list[float]:
    """Where an axis's numbers lie on its scale."""
    values = [0.0 if point.number is None else point.number for point in points]
    return [math.log(value) for value in values] if log else values


def _own(points: Sequence[Point]) -> list[int]:
    """The places of an axis that are the file's."""
    return [n for n, point in enumerate(points) if not point.added]


def _posterior(
    stream: np.random.Generator, collapsed: NDArray[np.float64], members: NDArray[np.float64]
) -> NDArray[np.float64]:
    known = members > 0
    found = np.full(members.shape, math.nan)
    found[known] = stream.beta(collapsed[known] + 0.5, members[known] - collapsed[known] + 0.5)
    return found


def _result(
    cell: Cell,
    outcomes: Sequence[Outcome],
    alarms: Sequence[Alarms],
    first: Sequence[float],
    means: dict[str, float | None],
) -> CellResult:
    count = len(outcomes)
    fallen = [o for o in outcomes if o.collapsed is not None]
    rewards = [o.final_reward for o in outcomes]
    both = list(zip(outcomes, alarms, strict=True))
    leads = {
        key: [o.fell - at for o, warned in both if o.fell is not None and (at := warned.get(key)) is not None]
        for key in WARNINGS
    }
    false = {key: sum(o.collapsed is None and w.get(key) is not None for o, w in both) for key in WARNINGS}
    return CellResult(
        place=cell.place,
        labels=cell.labels,
        members=count,
        collapsed=len(fallen),
        probability=len(fallen) / count if count else None,
        interval=interval(len(fallen), count) if count else None,
        first_reward=statistics.fmean(first) if first else None,
        final_reward=statistics.fmean(rewards) if rewards else None,
        final_reward_error=statistics.stdev(rewards) / count**0.5 if count > 1 else None,
        final_reward_band=(min(rewards), max(rewards)) if rewards else None,
        means=means,
        steps_to_collapse=_median([o.collapsed for o in fallen if o.collapsed is not None]),
        lead={key: _median(values) for key, values in leads.items()},
        leads=leads,
        warned={key: sum(value >= 0 for value in values) for key, values in leads.items()},
        false_alarms=false,
        share=to_share(cell.scenario),
    )


def _mean(curves: Sequence[NDArray[np.float64]]) -> float | None:
    """The mean over members of each one's mean over the second half of its steps; None where there is no number."""
    halves = [curve[len(curve) // 2 :] for curve in curves]
    known = [float(np.nanmean(half)) for half in halves if np.isfinite(half).any()]
    return statistics.fmean(known) if known else None


def _median(values: Sequence[int]) -> float | None:
    return float(statistics.median(values)) if values else None
