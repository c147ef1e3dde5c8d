"""A program in a real pseudo-terminal: type keys, resize, wait for text, look at how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

from skewsim.scenarios import find_scenario
from skewsim.share import to_share

TUI = (sys.executable, "-m", "skewsim.cli", "tui")
SMALL_RUN = to_share(find_scenario("initial_v1").with_values({"trainer.num_prompts": 2, "trainer.num_generations": 4}))
"""What a test opens that needs a run, but not what is in it: its steps are computed in no time."""


class Terminal:
    """`with Terminal(command, home=...) as t:` runs it; `t.output` is its output so far, `t.closed` if it has ended."""

    def __init__(self, command: tuple[str, ...], *, home: Path, size: tuple[int, int] = (80, 24)) -> None:
        self.output = b""
        self.closed = False
        environment = {
            **{k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TEXTUAL_DRIVER")},
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "PYTHONUTF8": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
        }
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(home)
            # what a shell starts in its background ignores the interrupt, and children inherit that
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(command[0], list(command), environment)
        self.resize(*size)
        self._status: int | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def pump(self, seconds: float) -> None:
        """Read what the program writes for this many seconds, or until it ends."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self._read(left):
            pass

    def wait_for(self, text: str, *, seconds: float = 240) -> None:
        """Until the text has been written since the last wait. Raises AssertionError with the end of the output."""
        wanted, end = text.encode(), time.monotonic() + seconds
        while wanted not in self.output:
            more = self._read(0.2)
            assert time.monotonic() < end, f"{text!r} was not written; the end is {self.output[-1500:]!r}"
            assert more or wanted in self.output, f"ended without {text!r}: {self.output[-1500:]!r}"
        self.output = self.output[self.output.index(wanted) + len(wanted) :]

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux: the other side has closed
            data = b""
        self.output += data
        self.closed = not data
        return not self.closed

    def end(self, *, seconds: float = 240) -> int:
        """Wait for the program to end; its exit code."""
        self.pump_to_end(seconds)
        _, status = os.waitpid(self.pid, 0)
        self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def pump_to_end(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._read(0.2):
            assert time.monotonic() < end, "the program does not end"

    def kill(self) -> None:
        """End the program with SIGKILL, as if the machine had failed."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._status = -signal.SIGKILL


def in_terminal(script: Path, *arguments: str, size: tuple[int, int], seconds: float = 600) -> Any:
    """Run a script in a pseudo-terminal; what it wrote as JSON into the file that is its last argument."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        with Terminal((sys.executable, str(script), *arguments, str(out)), home=Path(folder), size=size) as t:
            code = t.end(seconds=seconds)
            assert code == 0, t.output[-3000:].decode(errors="replace")
        return json.loads(out.read_text())


def children_of(pid: int) -> list[int]:
    """The processes that a process has started (Linux)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_mb(pid: int) -> float:
    """Resident size of a process and of all that it has started (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20 + sum(map(resident_mb, children_of(pid)))
