"""Recorded runs that ship with the app: what it plays where torch is not installed, and what anybody can watch.

The file is JSON lines, gzipped. The first line says what it is. Every other line is a run: its settings as a share
string, and each metric as a list over its steps. A run that was toggled is a run of its own: it names the run that it
goes on from (`parent`, by its number) and the first step with the new settings (`start`), and has only the numbers from
there on. benchmarks/tui_recordings.py makes the file from real runs.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from skewsim.errors import FileFormatError, UserError
from skewsim.files import atomic_writer
from skewsim.records import StepRecord
from skewsim.settings import Scenario, changes
from skewsim.share import from_share, to_share
from tui.driver import Training

LIVE = "live runs: pip install 'skewsim[sim]'"
"""What to do where torch is not installed."""
FORMAT, SCHEMA_VERSION = "skewsim recorded runs", 1


def same_run(scenario: Scenario) -> Scenario:
    """The settings that a run's numbers depend on: all but its name and its length."""
    return scenario.with_values({"name": "custom", "steps": 1})


@dataclass(eq=False)
class RecordedRun:
    """One run of one seed. Called like `skewsim.learn.trainer.train`, it yields its records."""

    scenario: Scenario
    """The settings from `start` on."""
    metrics: dict[str, list[float | None]]
    """Each metric's value at each step from `start` on."""
    sources: dict[str, str]
    start: int = 0
    parent: RecordedRun | None = None
    """The run that this one goes on from."""
    children: list[RecordedRun] = field(default_factory=list)

    def __call__(self, scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        for record in self.records(scenario.name):
            yield [record]

    @property
    def end(self) -> int:
        """The number of steps."""
        return self.start + len(next(iter(self.metrics.values())))

    @property
    def root(self) -> RecordedRun:
        """The run without any toggle."""
        return self if self.parent is None else self.parent.root

    @property
    def path(self) -> tuple[RecordedRun, ...]:
        """The runs that this one goes on from, the first one first, and itself."""
        return (self,) if self.parent is None else (*self.parent.path, self)

    def at(self, step: int) -> Scenario:
        """The settings at a step."""
        return self.scenario if step >= self.start or self.parent is None else self.parent.at(step)

    def records(self, name: str, stop: int | None = None) -> Iterator[StepRecord]:
        """Every step's record, up to `stop`; the step of a toggle says what was changed."""
        if self.parent is not None:
            yield from self.parent.records(name, self.start)
        for step in range(self.start, self.end if stop is None else stop):
            metrics = {key: column[step - self.start] for key, column in self.metrics.items()}
            toggled = self.parent is not None and step == self.start
            events = changes(self.parent.scenario, self.scenario) if self.parent is not None and toggled else []
            yield StepRecord(step, name, self.scenario.seed, metrics, events, sources=self.sources)

    def family(self) -> Iterator[RecordedRun]:
        """This run and all that go on from it."""
        yield self
        for child in self.children:
            yield from child.family()

    def toggled(self, wanted: Scenario, step: int) -> RecordedRun | None:
        """The recorded run that was toggled to the wanted settings, if there is one.

        Of several, the one with most toggles in common with this one; of those, the one toggled nearest to `step`.
        """
        wanted, mine = same_run(wanted), [same_run(run.scenario) for run in self.path]

        def distance(run: RecordedRun) -> tuple[int, int]:
            theirs = [same_run(each.scenario) for each in run.path]
            common = sum(1 for a, b in zip(mine, theirs, strict=False) if a == b)
            return len(mine) + len(theirs) - 2 * common, abs(run.start - step)

        found = [run for run in self.root.family() if same_run(run.scenario) == wanted]
        return min(found, key=distance, default=None)


class Archive:
    """Recorded runs by their settings."""

    def __init__(self, runs: Iterable[RecordedRun]) -> None:
        self.roots = {same_run(run.scenario): run for run in runs if run.parent is None}

    def run(self, scenario: Scenario) -> RecordedRun:
        """The recorded run of these settings, from step 0. Raises UserError where there is none."""
        found = self.roots.get(same_run(scenario))
        if found is None:
            raise UserError(f"no run of these settings is recorded; {LIVE}")
        return found

    def train(self, scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        """Like `skewsim.learn.trainer.train`, for what is recorded. Raises UserError at the first step otherwise."""
        yield from self.run(scenario)(scenario, seeds)


def load(path: Path) -> Archive:
    """Recorded runs from a file. Raises FileFormatError."""
    try:
        head, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        if (found := json.loads(head)) != {"format": FORMAT, "schema_version": SCHEMA_VERSION}:
            raise FileFormatError(f"{path}: not recorded runs that this version can read: {found}")
        runs: list[RecordedRun] = []
        for line in lines:
            runs.append(_run(json.loads(line), runs))
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise FileFormatError(f"{path}: cannot be read: {error}") from None
    return Archive(runs)


def _run(data: dict[str, Any], before: list[RecordedRun]) -> RecordedRun:
    parent = None if data["parent"] is None else before[data["parent"]]
    run = RecordedRun(from_share(data["settings"]), data["metrics"], data["sources"], data["start"], parent)
    if parent is not None:
        parent.children.append(run)
    return run


def save(runs: list[RecordedRun], path: Path) -> None:
    """Write runs to a file, each after the one that it goes on from; the same runs give the same bytes."""
    lines: list[dict[str, Any]] = [{"format": FORMAT, "schema_version": SCHEMA_VERSION}]
    for run in runs:
        parent = None if run.parent is None else runs.index(run.parent)
        own = {"start": run.start, "sources": run.sources, "metrics": run.metrics}
        lines.append({"settings": to_share(run.scenario), "parent": parent, **own})
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    with atomic_writer(path) as file:
        file.write(gzip.compress(text.encode(), 9, mtime=0))


SHIPPED = Path(str(resources.files("skewsim"))) / "data" / "recordings" / "runs.jsonl.gz"


@cache
def shipped() -> Archive:
    """The runs that come with the program."""
    return load(SHIPPED)
