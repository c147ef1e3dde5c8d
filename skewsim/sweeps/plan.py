"""A sweep as a file: a scenario, axes over its settings, seeds, and when a member stops.

An axis is a list of values, a grid, a logarithmic grid, values drawn at random, or cases: named sets of settings that
change together. The cells are all combinations of the axes' values; an adaptive sweep has more where its border is
(`adaptive.py`). A member is one cell with one seed; members with equal settings have equal keys and are computed once.
Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import tomli_w
from pydantic import AfterValidator, Field, ValidationError, model_validator

from skewsim import share
from skewsim.border import load_toml_data
from skewsim.errors import FileFormatError, UserError, shown
from skewsim.scenarios import find_scenario
from skewsim.settings import Scenario, Settings, one_line
from skewsim.skew.metric_table import METRICS

SCHEMA_VERSION = 1
MOST_CELLS = 4096
MOST_SEEDS = 1024
MOST_MEMBERS = 65_536
MOST_AXES = 4
MOST_VALUES = 256
MOST_HALVINGS = 12
DRAWN = 2
"""Axes that a map draws, the first ones; it has a panel for each combination of the others."""
_NAME = r"^[A-Za-z0-9_.+-]+$"
_LABEL = r"^[^\x00-\x1f\x7f]+$"

Scalar = bool | int | float | str
Values = dict[str, Any]
Finite = Annotated[float, Field(ge=-1e12, le=1e12)]
Label = Annotated[str, Field(min_length=1, max_length=64, pattern=_LABEL)]
Rule = Literal["collapsed", "settled"]
FIGURES = ("collapse", "reward", "steps", "lead")
"""The figures of every map; each metric of ``show`` has one more, by its name."""


def _metric(name: str) -> str:
    if name not in METRICS or name.startswith("time/"):
        raise ValueError("is no metric of a step; docs/science.md has them all")
    return name


Metric = Annotated[str, AfterValidator(_metric)]


class Range(Settings):
    """``count`` values from ``low`` to ``high``, both included."""

    low: Finite
    high: Finite
    count: int = Field(ge=2, le=MOST_VALUES)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        return self


class Draws(Range):
    """``count`` values drawn between ``low`` and ``high``: uniformly, or uniformly in their logarithm."""

    count: int = Field(ge=1, le=MOST_VALUES)
    log: bool = False


class Axis(Settings):
    """One axis: a setting's path with its values, or cases that set several settings at once."""

    path: str | None = Field(None, max_length=128)
    name: Label | None = None
    """What figures and tables call the axis; by default the last part of its path."""
    values: list[Scalar] | None = Field(None, min_length=1, max_length=MOST_VALUES)
    grid: Range | None = None
    log_grid: Range | None = None
    random: Draws | None = None
    cases: dict[Label, Values] | None = Field(None, min_length=1, max_length=MOST_VALUES)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in ("values", "grid", "log_grid", "random", "cases") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError("needs exactly one of values, grid, log_grid, random, cases")
        if (self.path is None) != (given == ["cases"]):
            raise ValueError("path goes with values, grid, log_grid and random; cases name their own settings")
        logs = [each for each in (self.log_grid, self.random) if each is not None]
        if any(each.low <= 0 for each in logs if getattr(each, "log", True)):
            raise ValueError("a logarithmic axis needs low above 0")
        return self

    @property
    def title(self) -> str:
        """What the axis is called."""
        return self.name or (self.path or "case").rpartition(".")[2]

    @property
    def logarithmic(self) -> bool:
        """Whether its values belong on a logarithmic scale."""
        return self.log_grid is not None or (self.random is not None and self.random.log)

    def points(self, seed: int) -> list[Point]:
        """The axis's values in order; ``seed`` decides those drawn at random."""
        if self.cases is not None:
            return [Point(label, None, flat(values)) for label, values in self.cases.items()]
        assert self.path is not None
        path, found = self.path, self._numbers(seed)
        if is_whole(path):
            found = [round(x) if isinstance(x, float) and math.isfinite(x) else x for x in found]
        unique = list(dict.fromkeys(found))
        return [Point(label_of(x), number_of(x), {path: null_of(path, x)}) for x in unique]

    def _numbers(self, seed: int) -> list[Any]:
        if self.grid is not None:
            return _between(self.grid, np.linspace(self.grid.low, self.grid.high, self.grid.count))
        if self.log_grid is not None:
            spread = np.geomspace(self.log_grid.low, self.log_grid.high, self.log_grid.count)
            return _between(self.log_grid, spread)
        if self.random is not None:
            stream = np.random.default_rng(np.random.SeedSequence((seed, zlib.crc32(str(self.path).encode()))))
            low, high = self.random.low, self.random.high
            if self.random.log:
                return _between(
                    self.random, np.sort(np.exp(stream.uniform(np.log(low), np.log(high), self.random.count)))
                )
            return _between(self.random, np.sort(stream.uniform(low, high, self.random.count)))
        return list(self.values or ())

    def between(self, low: Point, high: Point) -> Point | None:
        """The value half way between two of the axis's numbers (in their logarithms on a logarithmic axis); None if
        there is none between them."""
        a, b = low.number, high.number
        assert self.path is not None
        assert a is not None
        assert b is not None
        middle = math.sqrt(a * b) if self.logarithmic else (a + b) / 2
        value = round(middle) if is_whole(self.path) else float(f"{middle:.12g}")
        return Point(label_of(value), float(value), {self.path: value}, added=True) if a < value < b else None


class Adaptive(Settings):
    """More seeds in the cells whose share of collapsed members is neither near 0 nor near 1, and more cells between
    those with less and those with more than one half."""

    low: float = Field(0.1, ge=0, le=1)
    high: float = Field(0.9, ge=0, le=1)
    most_seeds: int = Field(32, ge=1, le=MOST_SEEDS)
    cells: int = Field(0, ge=0, le=MOST_HALVINGS)
    """How often an interval that the border is in is halved."""


class SweepSettings(Settings):
    """A sweep file."""

    schema_version: int = SCHEMA_VERSION
    name: str = Field("sweep", min_length=1, max_length=64, pattern=_NAME)
    title: str = Field("", max_length=200)
    scenario: str = Field("v0_reference", min_length=1, max_length=8192)
    """A name, a TOML file (looked for beside the sweep file), or a share string."""
    set: Values = Field(default_factory=dict)
    """Settings of every member, by path or as tables."""
    steps: int | None = Field(None, ge=1, le=1_000_000)
    seeds: int = Field(8, ge=1, le=MOST_SEEDS)
    seed: int = Field(0, ge=0, lt=2**31 - MOST_SEEDS)
    """The first seed, which also draws the random axes."""
    stop: tuple[Rule, ...] = ("collapsed",)
    """When a member is not trained to the end."""
    adaptive: Adaptive | None = None
    show: list[Metric] = Field(default_factory=list, max_length=8)
    """Metrics of which the map has a figure too: each cell's mean over the second half of the steps."""
    messages: dict[str, str] = Field(default_factory=dict)
    """Figure (collapse, reward, steps, lead or a metric of ``show``) -> the sentence that stands over it."""
    axis: list[Axis] = Field(min_length=1, max_length=MOST_AXES)

    @model_validator(mode="after")
    def _messages_have_figures(self) -> Self:
        for name in self.messages:
            if name not in (*FIGURES, *self.show):
                allowed = ", ".join((*FIGURES, *self.show))
                raise ValueError(f"messages: {shown(name, 40)} is no figure of this sweep; allowed: {allowed}")
        return self


@dataclass(frozen=True)
class Point:
    """One value of an axis: what it is called, the number that it is (None if it is none), and what it sets."""

    label: str
    number: float | None
    values: Values
    added: bool = False
    """Whether it is not the file's: an adaptive sweep put it between two values."""


@dataclass(frozen=True)
class Cell:
    """One combination of the axes' values: a place on each axis, and the scenario there."""

    place: tuple[int, ...]
    points: tuple[Point, ...]
    scenario: Scenario

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(point.label for point in self.points)


@dataclass(frozen=True)
class Member:
    """One curve: a scenario with one seed."""

    scenario: Scenario
    seed: int
    key: str


@dataclass(frozen=True)
class Sweep:
    """A sweep file that was read whole: every cell's scenario is valid."""

    settings: SweepSettings
    base: Scenario
    axes: tuple[tuple[Point, ...], ...]
    cells: tuple[Cell, ...]

    @property
    def titles(self) -> tuple[str, ...]:
        return tuple(axis.title for axis in self.settings.axis)

    @cached_property
    def stop(self) -> tuple[Rule, ...]:
        return tuple(sorted(set(self.settings.stop)))

    @property
    def most_seeds(self) -> int:
        """The most seeds that a cell may get."""
        adaptive = self.settings.adaptive
        return max(self.settings.seeds, adaptive.most_seeds if adaptive else 0)

    def with_cells(self, added: Sequence[Cell]) -> Sweep:
        """The same sweep with more cells, whose places follow from their points; its axes have their values too."""
        axes = tuple(_merged(axis, [cell.points[n] for cell in added]) for n, axis in enumerate(self.axes))
        places = [{point.label if point.number is None else point.number: n for n, point in enumerate(a)} for a in axes]
        cells = {}
        for cell in (*self.cells, *added):
            keys = (point.label if point.number is None else point.number for point in cell.points)
            place = tuple(index[key] for index, key in zip(places, keys, strict=True))
            cells[place] = replace(cell, place=place)
        return replace(self, axes=axes, cells=tuple(cells[place] for place in sorted(cells)))

    def seeds(self, count: int | None = None) -> range:
        """The first ``count`` seeds of a cell; by default those that each cell has."""
        return range(self.settings.seed, self.settings.seed + (self.settings.seeds if count is None else count))

    def member(self, cell: Cell, seed: int) -> Member:
        return Member(cell.scenario, seed, member_key(cell.scenario, seed, self.stop))

    def members(self, cell: Cell, count: int | None = None) -> list[Member]:
        return [self.member(cell, seed) for seed in self.seeds(count)]

    def to_toml(self) -> str:
        """The sweep as TOML that needs no other file: its scenario is a share string."""
        settings = self.settings.model_copy(update={"scenario": share.to_share(self.base)})
        data = settings.model_dump(exclude_none=True, exclude_defaults=True, exclude={"set", "steps"})
        return tomli_w.dumps(data | {"schema_version": SCHEMA_VERSION})


def load_sweep(path: Path | str) -> Sweep:
    """The sweep of a TOML file. Raises UserError with one line that names the file and what is wrong."""
    path = Path(path)
    data = load_toml_data(path)
    version = data.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise FileFormatError(f"{path}: schema_version={version!r} is not known; this program reads {SCHEMA_VERSION}")
    try:
        return make_sweep(SweepSettings.model_validate(data), path.parent)
    except ValidationError as error:
        raise FileFormatError(f"{path}: {one_line(error)}") from None
    except UserError as error:
        raise FileFormatError(f"{path}: {error}") from None


def make_sweep(settings: SweepSettings, folder: Path = Path()) -> Sweep:
    """Every cell of a sweep. Raises UserError: too many cells or members, or a cell whose settings are wrong."""
    base = _base(settings.scenario, folder).with_values(_nulled(flat(settings.set)))
    if settings.steps is not None:
        base = base.with_values({"steps": settings.steps})
    for axis in settings.axis:
        if axis.path in ("seed", "name", "schema_version", "device"):
            raise UserError(f"axis {shown(axis.path, 80)}: allowed are settings other than seed, name and device")
    axes = tuple(tuple(axis.points(settings.seed)) for axis in settings.axis)
    _check_size(settings, axes)
    return Sweep(settings, base, axes, tuple(_cells(base, axes)))


def with_policy(sweep: Sweep, find: Callable[[str], str]) -> Sweep:
    """The same sweep with the policy that its scenario names looked up: an installed model's name becomes a folder."""
    found = find(sweep.base.policy)
    if found == sweep.base.policy:
        return sweep
    settings = sweep.settings.model_copy(update={"scenario": share.to_share(sweep.base), "set": {"policy": found}})
    return make_sweep(settings)


def _base(text: str, folder: Path) -> Scenario:
    if share.is_share(text):
        return share.from_share(text)
    if text.endswith(".toml") or "/" in text:
        return share.load_toml(folder / text)
    return find_scenario(text)


def _check_size(settings: SweepSettings, axes: Sequence[Sequence[Point]]) -> None:
    cells = math.prod(map(len, axes))
    if cells > MOST_CELLS:
        raise UserError(f"the axes make {cells} cells; allowed are {MOST_CELLS}")
    rounds = settings.adaptive.cells if settings.adaptive else 0
    more = sum(rounds * cells // len(axis) * (len(axis) - 1) for axis in axes[:DRAWN] if is_numeric(axis))
    if cells + more > MOST_CELLS:
        raise UserError(
            f"adaptive.cells={rounds}: {cells} cells and up to {more} between them; allowed are {MOST_CELLS}"
        )
    cells += more
    if cells * settings.seeds > MOST_MEMBERS:
        raise UserError(
            f"{cells} cells of {settings.seeds} seeds are {cells * settings.seeds} members; allowed are {MOST_MEMBERS}"
        )


def _cells(base: Scenario, axes: tuple[tuple[Point, ...], ...]) -> Iterator[Cell]:
    for place in itertools.product(*(range(len(axis)) for axis in axes)):
        points = tuple(axis[index] for axis, index in zip(axes, place, strict=True))
        yield replace(make_cell(base, points), place=place)


def make_cell(base: Scenario, points: tuple[Point, ...]) -> Cell:
    """The cell with these values, without a place as yet. Raises UserError where they are not allowed together."""
    values: Values = {}
    for point in points:
        values |= _nulled(point.values)
    try:
        return Cell((), points, base.with_values(values))
    except UserError as error:
        where = ", ".join(f"{path}={value}" for path, value in values.items())
        raise UserError(f"cell {shown(where, 120)}: {error}") from None


def is_numeric(points: Sequence[Point]) -> bool:
    """Whether an axis has numbers, ascending, so that there is something between two of them."""
    values = [point.number for point in points]
    known = [value for value in values if value is not None]
    return len(known) == len(values) > 1 and all(a < b for a, b in itertools.pairwise(known))


def _merged(axis: tuple[Point, ...], added: Sequence[Point]) -> tuple[Point, ...]:
    """An axis with the values that were put between its own."""
    new = {point.number: point for point in added if point.added}
    return (*axis,) if not new else tuple(sorted((*axis, *new.values()), key=lambda point: point.number or 0.0))


def member_key(scenario: Scenario, seed: int, stop: tuple[Rule, ...]) -> str:
    """16 hexadecimal digits that name a member's curve: equal for equal settings, seed and rules to stop by.

    Settings at their defaults are left out, so that a new setting in a later version leaves the keys as they were.
    """
    data = scenario.model_dump(exclude={"name", "seed"}, exclude_defaults=True)
    data |= {"schema_version": scenario.schema_version, "seed": seed, "stop": list(stop)}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def flat(data: Values, prefix: str = "") -> Values:
    """Tables within tables as dotted paths."""
    found: Values = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _nulled(values: Values) -> Values:
    return {path: null_of(path, value) for path, value in values.items()}


def null_of(path: str, value: Any) -> Any:
    """None for "none" where the setting at the path may be off; any other value as it is."""
    return None if value == "none" and share.is_optional(path) else value


def label_of(value: Any) -> str:
    """A value as short text."""
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else shown(str(value).lower() if isinstance(value, bool) else value, 40)
    )


def number_of(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def is_whole(path: str) -> bool:
    """Whether the setting at a dotted path takes whole numbers alone."""
    kinds = share.kinds_of(path)
    return int in kinds and float not in kinds


def _between(bounds: Range, values: np.ndarray) -> list[float]:
    """Values rounded to 12 digits (0.3, not 0.30000000000000004), none of them outside of the bounds."""
    return [min(max(float(f"{x:.12g}"), bounds.low), bounds.high) for x in values]
