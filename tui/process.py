"""The app's side of the training process.

The trainer runs in a process of its own, so that drawing and training do not share one interpreter. It is started while
the first screen is being drawn. A driver's thread asks it for one step at a time and waits for the answer; no step is
computed ahead, so a toggle takes effect at the next step. When the app ends, however it ends, the process's standard
input closes and the process ends too, in the middle of a step if necessary. When the process dies, each of its runs
fails with the reason, and the next run starts a new process.
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
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from skewsim.errors import SkewsimError

if TYPE_CHECKING:  # the process is started before anything large is imported here
    from skewsim.diagnose.causes import Diagnosis
    from skewsim.settings import Scenario
    from tui.driver import Training
    from tui.snapshot import Snapshot

COMMAND = (sys.executable, "-P", "-c", "from tui.start import main; main()")
"""-P keeps Python from importing modules that lie in the current folder."""


def environment() -> dict[str, str]:
    """Environment variables for a child process, so that it imports from the same folders as this one."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class Watch:
    """Whether a screen wants to see tokens (`wanted`), and the last step whose tokens were seen (`latest`).

    Screens set `wanted`; the driver's thread reads it and sets `latest`.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.latest: Snapshot | None = None

    def glance(self) -> None:
        """See the tokens of the step just done, if there is one that has not been seen. Raises SkewsimError."""

    def diagnose(self) -> tuple[int, Diagnosis]:
        """The step last seen, and the causes of its skew that its logprobs alone show. Raises SkewsimError."""
        from skewsim.diagnose import diagnose

        seen = self.latest
        if seen is None:
            raise SkewsimError("no step has been looked at yet")
        return seen.step, diagnose(seen.sequences)


class _WatchedRun(Watch):
    """The same for a run in the training process, which can also score a step again under other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.ask: Callable[..., dict[str, Any]] | None = None

    def glance(self) -> None:
        from tui.snapshot import Snapshot

        ask = self.ask
        answer = ask(glance=True) if ask is not None else {}
        if "seen" in answer and ask is self.ask:
            self.latest = Snapshot.from_json(answer["seen"])

    def diagnose(self) -> tuple[int, Diagnosis]:
        """Score the step again under present and earlier weights, if the run goes on. Raises SkewsimError."""
        from skewsim.diagnose.causes import Diagnosis

        ask = self.ask
        if ask is None:
            return super().diagnose()
        answer = ask(diagnose=True)
        return answer["step"], Diagnosis.from_plain(answer["diagnosis"])


class TrainingProcess:
    """The training process; `train` is what drivers call.

    The run named yours is watched: its tokens can be seen. With `out`, yours and the two curves that it is compared
    with are written to run folders: out/run-001, out/reference-001, out/initial_v1-001 and so on.
    """

    def __init__(self, out: Path | None = None, *, command: tuple[str, ...] = COMMAND) -> None:
        self.watch = _WatchedRun()
        self._out, self._command = out, command
        self._child: _Child | None = None
        self._numbers = itertools.count()
        self._starting, self._stopped = threading.Lock(), False

    def start(self) -> _Child:
        """The process that runs, or a new one. Raises SkewsimError."""
        with self._starting:
            if self._stopped:
                raise SkewsimError("the trainer has been stopped")
            if self._child is not None and not self._child.alive:
                self._child.stop(0)
                self._child = None
            self._child = self._child or _Child(self._command)
            return self._child

    def stop(self) -> None:
        """End the process without waiting for the step under way; with `out`, wait a moment for its files."""
        with self._starting:
            self._stopped = True
            if self._child is not None:
                self._child.stop(0.8 if self._out is not None else 0)

    def train(self, scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        """Like `skewsim.learn.trainer.train`, but the end of the scenario's steps is no end: it goes on.

        A run that is watched can be sent `Back`. Once every member has diverged there are no records, and nothing but
        going back makes any.
        """
        from skewsim.records import StepRecord
        from tui.driver import Back
        from tui.lab import KEPT, YOURS
        from tui.snapshot import Snapshot

        child, number = self.start(), next(self._numbers)
        watched = scenario.name == YOURS
        out = str(self._out) if scenario.name in KEPT and self._out is not None else None
        ask = partial(child.ask, run=number)
        if watched:
            self.watch.latest, self.watch.ask = None, ask  # forget the run before
        ask(scenario=_plain(scenario), seeds=seeds, out=out, watched=watched)
        order: Scenario | Back | None = None
        try:
            while True:
                look = watched and self.watch.wanted
                back = order.step if isinstance(order, Back) else None
                toggled = order.scenario if isinstance(order, Back) else order
                answer = ask(toggle=toggled and _plain(toggled), back=back, look=look)
                if "ended" in answer and watched:
                    with suppress(SkewsimError):
                        self.watch.glance()  # the last step can still be looked at
                if "seen" in answer:
                    self.watch.latest = Snapshot.from_json(answer["seen"])
                order = yield [StepRecord.from_json(record) for record in answer.get("records", ())]
        finally:
            if self.watch.ask is ask:
                self.watch.ask = None
            if child.alive:
                with suppress(SkewsimError):
                    ask()


class _Child:
    """One process. A request is a line of JSON, and so is its answer."""

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
                env=environment(),
            )
        except OSError as error:
            if words is not None:
                words.close()
            raise SkewsimError(f"trainer did not start: {error.strerror}") from None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, **request: Any) -> dict[str, Any]:
        """A request's answer. Raises SkewsimError with the reason why the run failed or the process ended."""
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
                answer.items()
            except (ValueError, AttributeError):
                if line:  # something that is no answer; no line at all means that the process is ending by itself
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
        """Wait for the process to end and close its files; says how it ended."""
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
