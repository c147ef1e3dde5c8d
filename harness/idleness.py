"""Whether a worker process is at work: how long its threads ran or queued for a processor core, and what they read.

A worker that computes either runs or queues for a core, on however busy a machine; one that loads a model reads, or
waits for a disk. One that does none of this for seconds waits for something that will not come: a lock, a pipe, another
process.

On a virtual machine whose host gives a core to others, a thread runs for seconds and no time is counted. It is told
from one that waits by its state.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_POLLING = 0.1
"""Share of a core below which a thread is taken to poll, not to work: gloo has many that take 1 % each for ever."""
_BUSY = 0.05
"""Share of one core above which the threads that do not poll are together taken to be at work."""
_READ = 1 << 16
"""Bytes read that count as work."""
_EVERY_S = 0.5
"""Seconds between two looks."""
_GLANCES, _GLANCE_S = 3, 0.05
"""Looks at the states of threads, and seconds between two: in all of them a thread that works is running, and hardly
ever one that polls."""


class Idleness:
    """Watches all processes of a process session. On systems other than Linux, which do not tell, none is ever idle."""

    def __init__(self, session: int) -> None:
        self._session = session
        self._counts: dict[Path, float] = {}
        self._others: set[str] = set()
        self._seen: deque[tuple[float, float, float]] = deque()

    def restart(self) -> None:
        """Watch from now on; what was seen before no longer counts."""
        self._seen.clear()

    def lasts(self, seconds: float) -> bool:
        """Whether the session has been idle for so many seconds; call it several times a second."""
        now = time.monotonic()
        if self._seen and now - self._seen[-1][0] < _EVERY_S:
            return False
        counts = self._look()
        if not counts:
            self._seen.clear()
            return False
        passed = now - self._seen[-1][0] if self._seen else math.inf
        ran, read = self._seen[-1][1:] if self._seen else (0.0, 0.0)
        for path, count in counts.items():
            more = count - self._counts.get(path, 0.0)
            if path.name == "io":
                read += more
            elif more >= _POLLING * passed:
                ran += more
        self._counts = counts
        self._seen.append((now, ran, read))
        while len(self._seen) > 1 and now - self._seen[1][0] >= seconds:
            self._seen.popleft()
            self._others.clear()  # a process number may be used again
        began, ran_before, read_before = self._seen[0]
        if now - began < seconds or ran - ran_before >= _BUSY * (now - began) or read - read_before >= _READ:
            return False
        if any(not self._running() for _ in range(_GLANCES)):
            return True
        self._seen.clear()
        return False

    def _running(self) -> bool:
        """Whether some thread runs or could run, a moment from now."""
        time.sleep(_GLANCE_S)
        for process, _ in self._processes():
            with contextlib.suppress(OSError):  # the process has ended meanwhile
                if any(_stat(stat)[:1] == ["R"] for stat in process.glob("task/*/stat")):
                    return True
        return False

    def _look(self) -> dict[Path, float]:
        """Seconds that each thread ran or queued, and bytes that each process read.

        Empty if a process waits for a disk, or if the system does not tell.

        `/proc/PID/task/TID/schedstat` begins with the nanoseconds on a core and in the queue for one (Linux).
        """
        found: dict[Path, float] = {}
        for process, state in self._processes():
            if state == "D":
                return {}
            with contextlib.suppress(OSError, ValueError, IndexError):  # the process has ended meanwhile
                for stat in process.glob("task/*/schedstat"):
                    with contextlib.suppress(OSError):
                        running, queued, _ = stat.read_text().split()
                        found[stat] = (int(running) + int(queued)) / 1e9
                found[process / "io"] = float((process / "io").read_text().split()[1])
        told = any(seconds for path, seconds in found.items() if path.name == "schedstat")
        return found if told else {}

    def _processes(self) -> Iterator[tuple[Path, str]]:
        """The session's processes, each with its state."""
        for number in os.listdir(_PROC) if _PROC.is_dir() else ():
            if number in self._others or not number.isdecimal():
                continue
            fields = _stat(_PROC / number / "stat")
            if fields[3:4] == [str(self._session)]:
                yield _PROC / number, fields[0]
            elif fields:
                self._others.add(number)


def _stat(path: Path) -> list[str]:
    """What a process or thread tells of itself from its state on (proc_pid_stat(5)); nothing if it has ended."""
    try:
        return path.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
