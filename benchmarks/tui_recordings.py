"""Records the runs that ship with the terminal UI, from real runs of its own scenarios.

    python benchmarks/tui_recordings.py [--out FILE] [--keep]

Every show of `tui.shows` is run: its curves from step 0, and each of its toggles from the state of the run before that
toggle. The file has the metrics that the charts and the ladder's table show, to five significant digits, or more where
a metric changes little over a whole run. On one processor the file is always the same, byte for byte; other processors
round a little differently. With --keep, runs that ship already with the same settings and toggles are taken over.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch

from skewsim.learn.trainer import Trainer, TrainState
from skewsim.records import StepRecord
from skewsim.settings import Scenario
from tui.recordings import SHIPPED, RecordedRun, load, same_run, save
from tui.shows import Show, Toggles, shows
from tui.views import REWARD, VIEWS

KEYS = (REWARD.key, *(view.key for view in VIEWS))
DIGITS = 5


def plan(shows: Iterable[Show]) -> dict[Scenario, tuple[int, tuple[Toggles, ...]]]:
    """The scenarios to run, each once with its number of steps and its toggles, even if several shows have it.

    The user's run comes before the runs that it is compared with. If the two are equal, the user's is recorded.
    """
    found: dict[Scenario, tuple[int, tuple[Toggles, ...]]] = {}
    names: dict[Scenario, Scenario] = {}
    for show in shows:
        for scenario in reversed(show.scenarios):
            scenario = names.setdefault(same_run(scenario), scenario)
            steps, toggles = found.get(scenario, (0, ()))
            own = show.toggles if same_run(scenario) == same_run(show.scenarios[-1]) else ()
            found[scenario] = max(steps, show.steps), tuple(dict.fromkeys((*toggles, *own)))
    return found


def grow(
    scenario: Scenario,
    steps: int,
    toggles: Iterable[Toggles],
    *,
    start: int = 0,
    parent: RecordedRun | None = None,
    state: TrainState | None = None,
) -> Iterator[RecordedRun]:
    """A run of this many steps, then the runs that continue it after a toggle. AssertionError if one diverges."""
    following: dict[tuple[int, Scenario], list[Toggles]] = {}
    for first, *rest in sorted(filter(None, toggles), key=lambda each: each[0][0]):
        following.setdefault(first, []).append(tuple(rest))
    trainer = Trainer(scenario if parent is None else parent.scenario, state=state)
    if parent is not None:
        trainer.toggle(scenario)
    records, states = list[StepRecord](), dict[int, TrainState]()
    for step in range(start, steps):
        if step in {at for at, _ in following}:
            states[step] = trainer.state()
        records += trainer.step()
    assert not any(record.diverged for record in records), f"{scenario}: {records[-1].diverged}"
    metrics = {key: rounded(records, key) for key in KEYS if key in records[0].metrics}  # routing is a mixture's only
    run = RecordedRun(scenario, metrics, records[0].sources, start, parent)
    yield run
    for (at, toggled), rest in following.items():
        before = deepcopy(states[at])  # a trainer goes on in the tensors that it is given
        yield from grow(toggled, steps, rest, start=at, parent=run, state=before)


def holds(run: RecordedRun, steps: int, toggles: Iterable[Toggles]) -> bool:
    """Whether a run that was recorded before has what is planned: each chart's metric, its steps, and its toggles."""
    there = {(each.start, same_run(each.scenario)) for each in run.family() if each.parent is not None}
    charts = all(key in run.metrics for key in KEYS if not key.startswith("routing/"))
    return charts and run.end == steps and {(at, same_run(each)) for row in toggles for at, each in row} == there


def rounded(records: Sequence[StepRecord], key: str) -> list[float | None]:
    """A metric over all steps, with as many digits as a chart can show."""
    values = [record.metrics[key] for record in records]
    finite = [value for value in values if value is not None]
    moves = max(finite, default=0.0) - min(finite, default=0.0)
    return [None if value is None else round(value, _decimals(value, moves)) for value in values]


def _decimals(value: float, moves: float) -> int:
    sizes = [abs(size) for size in (value, moves) if size]
    return DIGITS - 1 - min((math.floor(math.log10(size)) for size in sizes), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[RecordedRun] = []
    planned = plan(shows())
    shipped = load(SHIPPED).roots if options.keep else {}
    for number, (scenario, (steps, toggles)) in enumerate(planned.items(), 1):
        old = shipped.get(same_run(scenario))
        runs += old.family() if old and holds(old, steps, toggles) else grow(scenario, steps, toggles)
        print(f"{number} of {len(planned)}: {scenario.name}, {len(runs)} runs", file=sys.stderr, flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save(runs, options.out)
    print(f"{options.out}: {len(runs)} runs, {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
