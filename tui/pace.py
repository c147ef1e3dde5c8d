"""How often the screen draws by itself: as often as it is asked to, within a share of one core.

The screen and the training thread take turns at the interpreter, so what drawing costs is what training loses. A key
draws at once all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.08


class Pace:
    """`due` says whether what the calling thread has spent since the last time is within its share."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, spent: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock, self._spent = clock, spent
        self._last, self._before = clock(), spent()

    def due(self) -> bool:
        """True if it is time to draw, which begins the next period."""
        now, spent = self._clock(), self._spent()
        if spent - self._before > SHARE * (now - self._last):
            return False
        self._last, self._before = now, spent
        return True
