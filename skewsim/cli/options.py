"""What several commands share: types of options, folders for results, and what happens when one is interrupted."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from skewsim.errors import Terminated

if TYPE_CHECKING:
    from skewsim.skew.profile import SkewProfile

Flag = Annotated[bool, Parameter(negative="")]
"""An option without a value."""
Repeated = Annotated[list[str] | None, Parameter(negative="")]
"""An option that may be given more than once."""
Assignments = Annotated[list[str] | None, Parameter(name="--set", negative="")]
"""``--set path=value``, which may be given more than once."""
METRIC_COLUMNS = ["metric", "value", "elsewhere called"]


def metric_rows(found: SkewProfile) -> list[list[str]]:
    """Every metric of a profile with its interval and its names in other frameworks."""
    from skewsim.skew.metric_table import METRICS, SKEW_KEYS

    names = {key: METRICS[SKEW_KEYS[key]].aliases if key in SKEW_KEYS else {} for key in found.metrics}
    words = {key: "; ".join(f"{who} {name}" for who, name in aliases.items()) for key, aliases in names.items()}
    return [[key, str(estimate), words[key]] for key, estimate in found.metrics.items()]


def fresh_folder(name: str) -> Path:
    """``runs/NAME``, or the first of ``runs/NAME-2``, ``runs/NAME-3``, ... that does not exist yet."""
    root = Path("runs")
    return next(path for n in count(1) if not (path := root / (name if n == 1 else f"{name}-{n}")).exists())


@contextmanager
def resumable(out: Path | None) -> Iterator[None]:
    """If Ctrl+C ends the block, the interrupt's message says how to resume the command."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        what = str(interrupt) or "interrupted"
        again = [word for word in sys.argv[1:] if word != "--resume"]
        how = f"to go on: skewsim {shlex.join(again)} --resume" if out else "with --out DIR it can be resumed"
        interrupt.args = (f"{what}; {how}",)
        raise


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl+C does, so that it says so, its folder's status is set and
    processes that it started are ended; exit code 143 or 129. A signal that is ignored (nohup) stays so, and one that
    comes while another is being handled is no second."""

    def end(number: int, frame: object) -> None:
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            return
        interrupt = Terminated("hung up" if number == signal.SIGHUP else "terminated")
        interrupt.number = number
        raise interrupt

    first = threading.current_thread() is threading.main_thread()
    known = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)} if first else {}
    heeded = {n: before for n, before in known.items() if before == signal.SIG_DFL}
    for number in heeded:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, before in heeded.items():
            signal.signal(number, before)
