"""Whether a worker that says it lives is doing anything: what its processes ran, waited for a core, or read.

A worker that computes, on however busy a machine, either runs or stands in the queue for a core; one that loads reads,
or waits for its disk. One that does neither for seconds waits for something that will not come: a lock, a pipe, a peer.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from pathlib import Path

_PROC = Path("/proc")
_POLLING = 0.1
"""Share of a core below which a thread only polls: gloo's loops take 1 % each, for ever, and there are many."""
_BUSY = 0.05
"""Least share of one core that the other threads of a worker which gets on run or queue for."""
_READ = 1 << 16
_EVERY_S = 0.5


class Idleness:
    """Looks at every process of a session. Where the system does not say (no Linux), nothing ever counts as idle."""

    def __init__(self, session: int) -> None:
        self._session = session
        self._counts: dict[Path, float] = {}
        self._others: set[str] = set()
        self._seen: deque[tuple[float, float, float]] = deque()

    def lasts(self, seconds: float) -> bool:
        """Whether the session has been idle for so long; to be asked several times a second."""
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
            self._others.clear()  # a number may be given again
        began, ran_before, read_before = self._seen[0]
        return now - began >= seconds and ran - ran_before < _BUSY * (now - began) and read - read_before < _READ

    def _look(self) -> dict[Path, float]:
        """Seconds run or queued by each thread and bytes read by each process; none where unknown, or one waits for a disk.

        `/proc/PID/task/TID/schedstat` begins with the nanoseconds on a core and in the queue for one (Linux).
        """
        found: dict[Path, float] = {}
        for number in os.listdir(_PROC) if _PROC.is_dir() else ():
            if number in self._others or not number.isdecimal():
                continue
            process = _PROC / number
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
                state, *fields = (process / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) != self._session:
                    self._others.add(number)
                    continue
                if state == "D":
                    return {}
                for stat in process.glob("task/*/schedstat"):
                    with contextlib.suppress(OSError):
                        running, queued, _ = stat.read_text().split()
                        found[stat] = (int(running) + int(queued)) / 1e9
                found[process / "io"] = float((process / "io").read_text().split()[1])
        told = any(seconds for path, seconds in found.items() if path.name == "schedstat")
        return found if told else {}
