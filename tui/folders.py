"""Run folders as curves: which there are, and their records in place of training."""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import cast

from skewsim.errors import FileFormatError, UserError
from skewsim.records import StepRecord
from skewsim.settings import Scenario
from skewsim.share import load_toml
from tui.driver import Records, TrackSpec, Training
from tui.lab import REFERENCE, V1, YOURS, initial_v1_for, reference_for

_SCENARIO, _STEPS = "scenario.toml", "steps.jsonl"


def find_runs(root: Path, *, depth: int = 3) -> list[Path]:
    """Run folders below a folder, the newest first, without those that others are compared with."""
    found = [path.parent for level in range(depth) for path in root.glob("*/" * level + _STEPS)]
    found = [path for path in found if not _is_compared(path)]
    return sorted(found, key=lambda path: -(path / _STEPS).stat().st_mtime)[:50]


def _is_compared(path: Path) -> bool:
    """Whether the app kept it only to be shown beside a run of yours."""
    name = re.fullmatch(rf"({REFERENCE}|{V1})-\d{{3,}}", path.name)
    return name is not None and next(path.parent.glob("run-*"), None) is not None


def open_run(path: Path) -> list[TrackSpec]:
    """A run folder as tracks whose training is reading records, with the reference and initial V1 of the same
    settings and seeds if they were kept beside it. Raises FileFormatError.
    """
    own = _read(path)
    if [spec.name for spec in own] != [YOURS]:
        return own
    beside = (_beside(path, make(own[0].scenario), own[0].seeds) for make in (reference_for, initial_v1_for))
    return [*(spec for spec in beside if spec is not None), *own]


def _beside(path: Path, scenario: Scenario, seeds: tuple[int, ...]) -> TrackSpec | None:
    """The longest run that was kept of exactly this scenario and these seeds, if there is any."""
    found = []
    for folder in path.parent.glob(f"{scenario.name}-*"):
        with suppress(UserError):
            if load_toml(folder / _SCENARIO) == scenario:
                found += [spec for spec in _read(folder) if spec.seeds == seeds]
    return max(found, key=lambda spec: len(cast(Reader, spec.train)), default=None)


def _read(path: Path) -> list[TrackSpec]:
    from skewsim.runs.recording import read_records

    by_name: dict[str, dict[int, list[StepRecord]]] = defaultdict(lambda: defaultdict(list))
    seeds: dict[str, set[int]] = defaultdict(set)
    for record in read_records(path):
        by_name[record.scenario][record.step].append(record)
        seeds[record.scenario].add(record.seed)
    if not by_name:
        raise FileFormatError(f"{path}: no step has been recorded yet")
    scenario = load_toml(path / _SCENARIO) if (path / _SCENARIO).is_file() else Scenario()
    specs = []
    for name, steps in by_name.items():
        named = scenario.with_values({"name": name})
        ordered: list[Records] = [steps[step] for step in sorted(steps)]
        specs.append(TrackSpec(name, named, tuple(sorted(seeds[name])), taped=True, train=Reader(ordered)))
    return specs


class Reader:
    """Records in place of training."""

    def __init__(self, steps: list[Records]) -> None:
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __call__(self, scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        return self._read()

    def _read(self) -> Training:
        yield from self._steps


def summary_line(path: Path) -> str:
    """A folder, and in a few words what its run was."""
    from skewsim.runs.recording import run_status

    try:
        return f"{path}  ({run_status(path)})"
    except FileFormatError:
        return f"{path}  (no summary)"
