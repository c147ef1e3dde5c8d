"""The trainer in a process of its own: it starts while the screen is being drawn, and never takes turns with it.

A driver's thread asks for one step after the other and waits; nothing is computed ahead, so a toggle still takes effect
at the next step. The process ends when its standard input does, in the middle of a step if need be, so it hardly
outlives the app, whatever the app dies of. When it dies itself, each run says why, and the next run starts another.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from skewsim.errors import SkewsimError

if TYPE_CHECKING:  # the process is started before anything large is imported here
    from skewsim.settings import Scenario
    from tui.driver import Training
    from tui.snapshot import Snapshot

_START = "import gc, os; gc.disable(); out = os.dup(1); os.dup2(2, 1); from tui.worker import main; main(out)"
COMMAND = (sys.executable, "-P", "-c", _START)
"""Imports make objects to keep: to look through them again and again would be a tenth of the start. Whatever prints does
not speak for the worker, and nothing is imported from the folder that somebody happens to be in."""


class Watch:
    """The wish to see the next step, and the last one seen. Set by the screen, read by the driver's thread."""

    def __init__(self) -> None:
        self.wanted = False
        self.latest: Snapshot | None = None


class TrainingProcess:
    """`train` is what drivers call. The run named yours is watched and, with `out`, kept as out/run-001 and so on."""

    def __init__(self, out: Path | None = None, *, command: tuple[str, ...] = COMMAND) -> None:
        self.watch = Watch()
        self._out, self._command = out, command
        self._child: _Child | None = None
        self._numbers = itertools.count()
        self._starting = threading.Lock()

    def start(self) -> _Child:
        """The process that runs, or a new one. Raises SkewsimError."""
        with self._starting:
            if self._child is not None and not self._child.alive:
                self._child.stop(0)
                self._child = None
            self._child = self._child or _Child(self._command)
            return self._child

    def stop(self) -> None:
        """End the process. The step under way is lost, but where steps are kept it has a moment to get into its file."""
        with self._starting:
            if self._child is not None:
                self._child.stop(0.8 if self._out is not None else 0)

    def train(self, scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        """Like `skewsim.trainer.train`."""
        from skewsim.records import StepRecord
        from tui.lab import YOURS
        from tui.snapshot import Snapshot

        child, number = self.start(), next(self._numbers)
        watched = scenario.name == YOURS
        out = str(self._out) if watched and self._out is not None else None
        if watched:
            self.watch.latest = None  # it was of an earlier run
        child.ask(run=number, scenario=_plain(scenario), seeds=seeds, out=out)
        toggled: Scenario | None = None
        try:
            while True:
                look = watched and self.watch.wanted
                answer = child.ask(run=number, toggle=toggled and _plain(toggled), look=look)
                if "ended" in answer:
                    return
                if "seen" in answer:
                    self.watch.latest = Snapshot.from_json(answer["seen"])
                toggled = yield [StepRecord.from_json(record) for record in answer["records"]]
        finally:
            if child.alive:
                with suppress(SkewsimError):
                    child.ask(run=number)


class _Child:
    """One process: a line for each question, a line for each answer."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._turn, self._ending = threading.Lock(), ""
        words: IO[bytes] | None = None
        try:
            words = self._words = tempfile.TemporaryFile()  # noqa: SIM115 (read when the process has ended)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                start_new_session=True,  # a signal from the keyboard is for the app
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            if words is not None:
                words.close()
            raise SkewsimError(f"trainer did not start: {error.strerror}") from None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, **request: Any) -> dict[str, Any]:
        """A request's answer. Raises SkewsimError with the reason, of the run or of the process's end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._turn:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except (OSError, ValueError):  # it has ended, or has been stopped
                line = b""
            try:
                answer: dict[str, Any] = json.loads(line)
            except ValueError:  # no line: it has ended, or is ending in good order; else not an answer
                if line:
                    self._process.kill()
                raise SkewsimError(self._end()) from None
        if "failed" in answer:
            raise SkewsimError(answer["failed"])
        return answer

    def stop(self, timeout: float) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
        with self._turn:
            self._end()

    def _end(self) -> str:
        """How the process ended; nothing of it stays open."""
        if not self._ending:
            code = self._process.wait()
            self._words.seek(0)
            words = self._words.read()[-2000:].decode(errors="replace").strip().splitlines()
            names = {int(each): each.name for each in signal.Signals}
            how = f"by {names.get(-code, f'signal {-code}')}" if code < 0 else f"with exit code {code}"
            self._ending = f"trainer ended {how}{': ' + words[-1] if words and code > 0 else ''}"
            for file in (self._process.stdin, self._process.stdout, self._words):
                with suppress(OSError):
                    file.close()  # type: ignore[union-attr]
        return self._ending


def _plain(scenario: Scenario) -> dict[str, Any]:
    return scenario.model_dump(mode="json")
