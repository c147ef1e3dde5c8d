"""The commands of sweeps: run one, and show its map."""

from __future__ import annotations

import time
from pathlib import Path

from cyclopts import App
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from skewsim.cli.display import print_json, say, show_lines
from skewsim.cli.options import Flag, fresh_folder, resumable, terminable
from skewsim.cli.simulate import at_least_one, find_policy
from skewsim.errors import UserError

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
    path = out or fresh_folder(f"sweep-{chosen.settings.name}")
    with terminable(), resumable(out), _Shown() as shown:
        for progress in run(chosen, path, local(count), resume=resume):
            shown.show(progress.done, progress.total, progress.members)
    say(f"sweep folder: {path}\nto see it: skewsim sweep show {path}")


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
    json: Flag = False,
    plain: Flag = False,
) -> None:
    """Show a sweep's map: the share of members that collapsed, final rewards, and how early a number warned.

    Parameters
    ----------
    folder
        The sweep's folder; it may still be running.
    json
        One JSON object: every cell with its numbers.
    plain
        Plain text without tables.
    """
    from skewsim.sweeps.map import load_map

    found = load_map(folder)
    if json:
        print_json(found.to_json())
        return
    show_lines(found.to_json())
