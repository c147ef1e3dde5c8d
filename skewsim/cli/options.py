"""What several commands share: types of options, folders for results, and what happens when one is interrupted."""

from __future__ import annotations

import shlex
import signal
import sys
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
        if out is None:
            raise type(interrupt)(f"{what}; with --out DIR it can be resumed") from None
        again = [word for word in sys.argv[1:] if word != "--resume"]
        raise type(interrupt)(f"{what}; to go on: skewsim {shlex.join(again)} --resume") from None


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl+C does, so that processes it started are ended too; exit code 143."""

    def end(signal_number: int, frame: object) -> None:
        raise Terminated("terminated")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
