"""The commands of sweeps: run one, and show its map."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from skewsim.cli.display import number, print_json, print_table, say, show_lines
from skewsim.cli.options import Flag, fresh_folder, resumable, terminable
from skewsim.cli.simulate import at_least_one, choose_style, find_policy
from skewsim.errors import UserError

if TYPE_CHECKING:
    from skewsim.sweeps.map import SweepMap
    from skewsim.sweeps.runner import Compute

sweep = App(help="Train a grid of settings and seeds, and show where training collapses.")
MOST_WORKERS = 1024


@sweep.command(name="run")
def run_sweep(
    file: Path,
    /,
    *,
    out: Path | None = None,
    resume: Flag = False,
    workers: int | None = None,
    ray: Flag = False,
) -> None:
    """Train every cell of a sweep file with every seed; curves are written as they come.

    Parameters
    ----------
    file
        The sweep, as TOML: a scenario, axes over its settings, seeds (see docs/sweeps.md).
    out
        The sweep's folder; without one, runs/sweep-NAME.
    resume
        Go on with the sweep in --out; what is there is not computed again. The file may have more values and seeds now.
    workers
        Processes that compute, one thread each; by default one for each core.
    ray
        Compute on Ray: on a cluster of this machine, or on the one that RAY_ADDRESS names.
    """
    from skewsim.sweeps.plan import load_sweep, with_policy
    from skewsim.sweeps.processes import cores
    from skewsim.sweeps.runner import check_start, local
    from skewsim.sweeps.runner import run_sweep as run

    at_least_one("--workers", 1 if workers is None else workers, most=MOST_WORKERS)
    if resume and out is None:
        raise UserError("--resume needs --out: the sweep's folder to go on with")
    chosen = with_policy(load_sweep(file), find_policy)
    count = workers or cores()
    check_start(chosen, count)
    cluster, compute = _on_ray(count) if ray else (nullcontext(), local(count))
    with cluster, terminable(), resumable(out), _Shown() as shown:
        path = out or fresh_folder(f"sweep-{chosen.settings.name}")
        for progress in run(chosen, path, compute, resume=resume):
            shown.show(progress.done, progress.total, progress.members)
    say(f"sweep folder: {path}\nto see it: skewsim sweep show {path}")


def _on_ray(workers: int) -> tuple[AbstractContextManager[None], Compute]:
    """Ray for as long as the sweep runs, so that a cluster that is not there is named before anything is written."""
    import ray  # noqa: F401 (the same holds where it is not installed)

    from skewsim.sweeps.cluster import connected, on_ray

    return connected(workers), lambda chunks: on_ray(chunks, workers)


class _Shown:
    """The progress on stderr: a bar with the time left on a terminal, else about twenty lines."""

    LINES = 20

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=console, transient=True) if console.is_terminal else None
        self._began, self._said = time.monotonic(), -1

    def __enter__(self) -> _Shown:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int, total: int, members: int) -> None:
        """``done`` and ``total`` are members times steps; ``members`` have their curves."""
        words = f"{members} members done"
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, description=words)
        elif (part := done * self.LINES // max(1, total)) > self._said:
            self._said = part
            left = (time.monotonic() - self._began) * (total - done) / done if done else None
            say(f"{words}, {done / max(1, total):.0%}" + ("" if left is None else f", {in_words(left)} left"))


def in_words(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@sweep.command(name="show")
def show_sweep(
    folder: Path,
    /,
    *,
    figures: Flag = False,
    json: Flag = False,
    plain: Flag = False,
) -> None:
    """Show a sweep's map: the share of members that collapsed, final rewards, and how early a number warned.

    Parameters
    ----------
    folder
        The sweep's folder; it may still be running.
    figures
        Also write the heat maps as PNG and SVG into FOLDER/figures.
    json
        One JSON object: every cell with its numbers, and the border.
    plain
        A sentence for each cell instead of heat maps.
    """
    from skewsim.sweeps.map import load_map

    style = choose_style(json=json, plain=plain)
    found = load_map(folder)
    if style == "json":
        print_json(found.to_json())
    elif style == "plain":
        _print_cells(found)
    else:
        _print_maps(found)
    if figures:
        from skewsim.sweeps.figures import save_figures

        say("figures: " + ", ".join(map(str, save_figures(found, folder / "figures"))))


def _print_maps(found: SweepMap) -> None:
    from skewsim.runs.outcome import WARNINGS
    from skewsim.sweeps.layout import PROBABILITY, REWARD, STEPS, means_of, progress_words, text_map

    show_lines(f"{found.title}: {progress_words(found)}")
    collapsed = any(cell.collapsed for cell in found.cells)
    for shown in (PROBABILITY, REWARD, *((STEPS,) if collapsed else ()), *means_of(found)):
        show_lines("", *text_map(found, shown))
    if rows := _border_rows(found):
        show_lines("")
        print_table("The border: where half of the members collapse", ["along", "at", "low", "high", "where"], rows)
    if collapsed:
        show_lines("")
        columns = ["number", "steps before\nthe fall", "warned of\nthe collapsed", "false alarms\namong the others"]
        print_table("Which number warns first", columns, _warning_rows(found, WARNINGS))


def _warning_rows(found: SweepMap, names: Mapping[str, str]) -> list[list[str]]:
    """Numbers in the order of their leads, the longest first."""
    every = sorted(found.warnings().items(), key=lambda item: -(item[1].lead if item[1].lead is not None else -1e9))
    return [
        [names[key], number(w.lead), f"{w.warned} of {w.collapsed}", f"{w.false_alarms} of {w.others}"]
        for key, w in every
    ]


def _print_cells(found: SweepMap) -> None:
    from skewsim.runs.outcome import WARNINGS

    names = found.sweep.titles
    rows = [
        [
            ", ".join(f"{name} {label}" for name, label in zip(names, cell.labels, strict=True)),
            f"{cell.collapsed} of {cell.members}",
            number(cell.final_reward),
            number(cell.steps_to_collapse),
            *(number(cell.lead[key]) for key in WARNINGS),
        ]
        for cell in found.cells
    ]
    columns = ["cell", "collapsed", "final reward", "steps to collapse", *(f"lead of {n}" for n in WARNINGS.values())]
    print_table(found.title, columns, rows, plain=True)
    for along, at, low, high, where in _border_rows(found):
        show_lines(f"border along {along}: {at}, between {low} and {high} with 90 %" + (f", {where}" if where else ""))


def _border_rows(found: SweepMap) -> list[list[str]]:
    from skewsim.sweeps.plan import is_numeric

    rows = []
    for n, title in enumerate(found.sweep.titles):
        for border in found.crossings(n) if is_numeric(found.sweep.axes[n]) else ():
            where = [
                f"{name} {axis[place].label}"
                for name, axis, place in zip(found.sweep.titles, found.sweep.axes, border.place, strict=True)
                if place >= 0
            ]
            rows.append([title, *map(number, (border.at, border.low, border.high)), ", ".join(where)])
    return rows
