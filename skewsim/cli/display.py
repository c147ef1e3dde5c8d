"""What a command shows while it works and when it is done.

The records of a run are shown in one of four ways. On stderr: a progress bar if it is a terminal, else ten plain lines
over the whole run. On stdout: every number in a sentence of plain text (``--plain``, for a screen reader), or JSON
lines (``--json``, for programs). rich uses no colour if NO_COLOR is set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from skewsim.errors import printable
from skewsim.files import finite
from skewsim.records import seeds_in_words

if TYPE_CHECKING:
    from skewsim.records import StepRecord
    from skewsim.runs.ladder import LadderResult
    from skewsim.runs.prediction import Distance

Style = Literal["shown", "plain", "json"]
PLAIN_LINES = 10
"""How many progress lines a whole run prints where stderr is not a terminal."""
_COLUMNS = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
_HEADLINE = {
    "reward/mean": "reward",
    "update/clip_rate": "clip rate",
    "skew/kl_k3": "k3",
    "skew/logprob_diff_mean": "mean abs skew",
    "policy/entropy": "entropy",
    "lag/mean": "lag",
}


@dataclass
class Display:
    """Shows the records of each step when it is done."""

    style: Style
    total: int
    bar: Progress | None

    def show(self, records: Sequence[StepRecord]) -> None:
        """Show one step's records, one for each member still training."""
        if not records:
            return
        if self.style == "json":
            for record in records:
                print_json(record.to_json())
        elif self.style == "plain":
            for record in records:
                print(sentence(record), flush=True)
        self._progress(records)

    def _progress(self, records: Sequence[StepRecord]) -> None:
        step = records[0].step
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=step + 1, description=printable(headline(records)))
        elif self.style == "shown" and _is_milestone(step, self.total):
            print(f"step {step + 1} of {self.total}: {headline(records)}", file=sys.stderr, flush=True)


@contextmanager
def display(total: int, *, style: Style) -> Iterator[Display]:
    """A display of ``total`` steps; the bar, if there is one, is removed at the end."""
    console = Console(stderr=True)
    if style != "shown" or not console.is_terminal:
        yield Display(style, total, None)
        return
    with Progress(*_COLUMNS, console=console, transient=True) as bar:
        bar.add_task("", total=total)
        yield Display(style, total, bar)


@contextmanager
def counter(total: int) -> Iterator[Callable[[int, int, str], None]]:
    """A progress callback ``(done, total, what)``: a bar on a terminal, elsewhere a line for each new ``what``."""
    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def tell(done: int, total: int, what: str) -> None:
            if what not in seen:
                seen.add(what)
                say(what)

        yield tell
        return
    with Progress(*_COLUMNS, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=printable(what))


def headline(records: Sequence[StepRecord]) -> str:
    """The members' mean reward, clip rate and k3 in a few words; for several scenarios, the first two's rewards."""
    names = list(dict.fromkeys(record.scenario for record in records))
    diverged = [f"{r.scenario} seed {r.seed} diverged: {r.diverged}" for r in records if r.diverged]
    if len(names) > 1:
        words = [f"{name} {_mean(records, 'reward/mean', name)}" for name in names[:2]]
        return ", ".join(["reward " + words[0], *words[1:], *diverged])
    keys = ("reward/mean", "update/clip_rate", "skew/kl_k3")
    return ", ".join([*(f"{_HEADLINE[key]} {_mean(records, key, names[0])}" for key in keys), *diverged])


def _mean(records: Sequence[StepRecord], key: str, name: str) -> str:
    values = [v for r in records if r.scenario == name and (v := r.metrics.get(key)) is not None]
    return f"{sum(values) / len(values):.3g}" if values else "-"


def sentence(record: StepRecord) -> str:
    """Every number of a record as plain words, on one printable line."""
    numbers = (f"{key} {'-' if value is None else f'{value:.6g}'}" for key, value in record.metrics.items())
    tail = [
        *(f"event {event}" for event in record.events),
        *([f"diverged: {record.diverged}"] if record.diverged else []),
    ]
    return printable(
        ", ".join([f"step {record.step}", f"scenario {record.scenario}", f"seed {record.seed}", *numbers, *tail])
    )


def number(value: float | None) -> str:
    """A number for people; a dash where there is none."""
    return "-" if value is None else f"{value:.3g}"


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout; a number that is not finite is null."""
    print(json.dumps(finite(data), allow_nan=False), flush=True)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    plain: bool = False,
    prose: Collection[str] = (),
) -> None:
    """Print a table on stdout; with ``plain``, a sentence for each row.

    The first column holds names. The last column and those named in ``prose`` hold text that may be wrapped; the others
    hold numbers, aligned right and not wrapped.
    """
    if plain:
        print(f"{printable(title)}.")
        for row in rows:
            cells = zip(columns, row, strict=True)
            print(", ".join(f"{' '.join(name.split())} {printable(cell)}" for name, cell in cells))
        return
    table = Table(title=printable(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        words = column in (*prose, columns[-1])
        left = words or column == columns[0]
        table.add_column(column, justify="left" if left else "right", no_wrap=not words, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table, markup=False)


def say(text: str) -> None:
    """A sentence for the person at the terminal, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def show_lines(*lines: object) -> None:
    """Lines on stdout, of text that may come from outside."""
    print(printable("\n".join(map(str, lines))))


def print_summary(name: str, members: Iterable[Mapping[str, Any]], *, plain: bool) -> None:
    """Print how each member of a run ended: the headline metrics' means over the last tenth of its steps."""
    rows = [
        [
            str(member["seed"]),
            str(member["steps"]),
            *(number(member["last_tenth"].get(key)) for key in _HEADLINE),
            f"diverged: {member['diverged']}" if member["diverged"] else "finished",
        ]
        for member in members
    ]
    title = f"{name}: means over the last tenth of the steps"
    print_table(
        title, ["seed", "steps", *(name.replace(" ", "\n", 1) for name in _HEADLINE.values()), "end"], rows, plain=plain
    )


def print_ladder(result: LadderResult, *, plain: bool, simulated: bool = False) -> None:
    """Print a ladder's rungs: means over seeds and the last tenth of the steps, and the verdict against the first."""
    columns = ["rung", "reward", "entropy", "clip\nrate", "k3", "mean abs\nskew", "lag", "reference\nband"]
    rows = [
        [
            rung.name,
            *map(number, (rung.reward_final, rung.entropy_final, rung.clip_rate)),
            *map(number, (rung.kl_k3, rung.logprob_diff_mean, rung.lag)),
            rung.verdict if index else "reference",
        ]
        for index, rung in enumerate(result.rungs)
    ]
    title = (
        f"{result.objective.upper()}, {seeds_in_words(result.seeds)}, {result.steps} steps; means over the last tenth"
    )
    if simulated:
        title = f"Simulated: {title}"
    print_table(title, columns, rows, plain=plain)
    if result.seeds == 1:
        print("one seed has no band: nothing is said to be inside or outside; --seeds 5 gives one")
    else:
        band = " to ".join(map(number, result.rungs[0].reward_band or (None,)))
        print(f"reference band of the reward, over the seeds: {band}")


def print_distances(found: Mapping[str, Mapping[str, Distance]], *, plain: bool) -> None:
    """Print how far the simulated curves lie from the real engine's, divided by the seeds' band."""
    keys = list(next(iter(found.values())))
    rows = [[rung, *(number(row[key].ratio) for key in keys)] for rung, row in found.items()]
    columns = ["rung", *(_HEADLINE.get(key, key).replace(" ", "\n", 1) for key in keys)]
    print_table("Distance of the simulated curves from the real ones, over the seeds' band", columns, rows, plain=plain)


def _is_milestone(step: int, total: int) -> bool:
    return (step + 1) * PLAIN_LINES // total > step * PLAIN_LINES // total
