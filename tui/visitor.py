"""One visitor's process of `skewsim serve`: the app without the owner's files, and with runs of a bounded size.

The server starts it in a temporary folder, with a few harmless environment variables, and ends it by closing its
standard input; so it also ends when the server is killed. What would read or write files, or start processes, is
hidden from a visitor. A setting that names a path may only name what ships with skewsim.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skewsim.settings import Scenario

HIDDEN = ("measure", "screenshot", "export", "runs", "restore", "open")
"""Actions that read or write files or start processes."""
POLICIES = ("base", "random")
MOST_STEPS, MOST_SEQUENCES, MOST_UPDATES, LARGEST_POOL = 1000, 256, 64, 100_000
_MEMORY, _FILE = 4 << 30, 64 << 20
"""Bytes of data that a process may hold in memory, and of a file that it may write."""


def check_visit(scenario: Scenario) -> None:
    """UserError for a scenario that a visitor may not run: one that names a path or another device, or is too large."""
    from skewsim.errors import UserError, shown
    from skewsim.skew.profile import shipped_profiles

    trainer, named = scenario.trainer, scenario.skew.profile
    for path, value, allowed in (
        ("policy", scenario.policy, POLICIES),
        ("skew.profile", named or "none", ("none", *shipped_profiles())),
        ("device", scenario.device, ("cpu",)),
    ):
        if value not in allowed:
            raise UserError(f"{path}={shown(value, 40)}: a visitor is allowed {', '.join(allowed)}")
    for path, size, most in (
        ("steps", scenario.steps, MOST_STEPS),
        ("trainer.num_prompts x num_generations", trainer.num_prompts * trainer.num_generations, MOST_SEQUENCES),
        ("trainer.num_iterations x num_minibatches", trainer.num_iterations * trainer.num_minibatches, MOST_UPDATES),
        ("task.pool_size", scenario.task.pool_size, LARGEST_POOL),
    ):
        if size > most:
            raise UserError(f"{path}={size}: a visitor is allowed at most {most}")


def main() -> None:
    """Run the app until it ends or the server goes away. `sys.argv` names a lesson and a preset, which may be empty."""
    folder = Path.cwd()
    threading.Thread(target=_leave_with_the_server, args=(folder,), daemon=True).start()
    for what, limit in ((resource.RLIMIT_DATA, _MEMORY), (resource.RLIMIT_FSIZE, _FILE), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (limit, limit))
    lesson, preset = sys.argv[1:]
    code = 1
    try:
        from tui.launch import open_app

        code = open_app(lesson=lesson, preset=preset, hide=HIDDEN, visiting=True)
    except Exception as error:  # the server says this line on its console
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    _leave(folder, code)


def _leave_with_the_server(folder: Path) -> None:
    poll = select.poll()
    poll.register(0, 0)  # no events asked for: poll still reports when the other end is closed
    poll.poll()
    _leave(folder, 0)


def _leave(folder: Path, code: int) -> None:
    """End this process at once. Its trainer ends with it, because its standard input is closed."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)
