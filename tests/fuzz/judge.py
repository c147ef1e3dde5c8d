"""Runs inputs of the fuzz in this process and judges how each command ended.

    python -m tests.fuzz.judge KIND START STOP SEED

prints a line of JSON for each input; `benchmarks/fuzz_table.py` reads them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COLUMNS = (
    "tried",
    "tracebacks",
    "misread",
    "hangs",
    "memory",
    "more than one line",
    "control characters",
    "files left",
    "crashes",
)
SECONDS, BYTES, HUNG = 10, 2 << 30, 75


class Hang(BaseException):
    """An input took longer than `SECONDS`."""


def rng_of(kind: str, number: int, seed: int) -> random.Random:
    return random.Random(f"{seed} {kind} {number}")


def listing(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content; of one that a command may make larger than a mistake does, its size."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def wrong(status: int, out: str, err: str, *, left: bool) -> list[str]:
    """What is wrong with the way in which a command ended; empty if nothing is."""
    found = []
    if status not in (0, 1, 2) or "Traceback" in err:
        found.append("tracebacks")
    if status == 2 and (err.count("\n") != 1 or out):
        found.append("more than one line")
    if "\x1b" in err + out:
        found.append("control characters")
    if status == 2 and left:
        found.append("files left")
    return found


def run(
    kind: str, number: int, seed: int, folder: Path, main: Callable[[list[str]], int], *, seconds: float = SECONDS
) -> dict[str, Any]:
    """One input, made in an empty folder and given to the command; what came of it."""
    from tests.fuzz.inputs import KINDS
    from tests.fuzz.oracle import misread

    words = KINDS[kind](rng_of(kind, number, seed), folder)
    before, held = listing(folder), most_held()
    out, err = io.StringIO(), io.StringIO()
    status, hung = 0, False
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with time_limit(seconds):
                status = main(words)
        except Hang:
            hung = True
    found = wrong(status, out.getvalue(), err.getvalue(), left=listing(folder) != before) + ["hangs"] * hung
    if most_held() > max(BYTES, held):  # what other tests of this process held before is not this input's
        found.append("memory")
    wrongly = "" if hung else misread(kind, words, folder, status, out.getvalue())
    found += ["misread"] * bool(wrongly)
    told = f"{wrongly} exit code {status}: {err.getvalue()[-300:]!r} of skewsim {' '.join(words)[:200]!r}"
    said = told.strip() if found else ""
    return {"number": number, "status": status, "wrong": found, "said": said}


def most_held() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises Hang in the block after so many seconds of processor time, or six times as many in all, since a busy
    machine is no hang; ends the process if even that does not stop it."""

    def stop(number: int, frame: Any) -> None:
        raise Hang

    last = threading.Timer(8 * seconds, os._exit, [HUNG])
    last.daemon = True
    last.start()
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 6 * seconds)}
    before = {number: signal.signal(number, stop) for number in timers}
    for which, limit in timers.values():
        signal.setitimer(which, limit)
    try:
        yield
    finally:
        for which, _ in timers.values():
            signal.setitimer(which, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        last.cancel()


def judge(kind: str, start: int, stop: int, seed: int) -> None:
    """Run inputs from number `start` to before `stop`, and print a line of JSON for each."""
    from skewsim.cli.main import main

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME", "SKEWSIM_ENGINES"):
            os.environ[variable] = str(Path(place) / variable)
        for number in range(start, stop):
            folder = Path(place) / str(number)
            folder.mkdir()
            os.chdir(folder)
            found = run(kind, number, seed, folder, main)
            print(json.dumps(found), file=sys.__stdout__, flush=True)
            if "memory" in found["wrong"]:  # the most that this process ever held: a new one tells of the next input
                break
        os.chdir("/")


if __name__ == "__main__":
    import skewsim.learn.trainer  # noqa: F401 (what takes seconds to import is no hang of the first input)

    judge(sys.argv[1], *map(int, sys.argv[2:5]))
