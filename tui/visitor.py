"""One visitor's process of `skewsim serve`: the app without the owner's files, and with runs of a bounded size.

The server starts it in a temporary folder, with a few harmless environment variables, and ends it by closing its
standard input; so it also ends when the server is killed. `tui.limits` says what a visitor may do.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import sys
import threading
from pathlib import Path

_MEMORY, _FILE = 4 << 30, 64 << 20
"""Bytes of data that a process may hold in memory, and of a file that it may write."""


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
        from tui.limits import HIDDEN

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
