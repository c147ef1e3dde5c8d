"""Starts a worker process, sends it commands and ends it. One that dies, hangs or sends nonsense is an `EngineError`.

The worker runs in a process session of its own, so that it can be killed together with whatever it started. It is
killed on every way out: close, error, garbage collection, interpreter exit. (If this process is killed itself, the
worker sees its stdin close and ends.) Rows are yielded as they arrive, so those that came before a failure are kept.

Three time limits apply. `Limits.silence_s`: the worker sends a message every second, so a frozen process is noticed
when none comes. `Limits.idle_s`: a worker that sends these messages and neither computes nor reads waits for something
that will not come. `Limits.progress_s`: the messages count what the worker has done, so an endless loop is noticed.

A worker is judged only once all that it said is read, and only time in which we listened counts: while the caller is
busy with a row, the worker may be done and wait for us.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from harness.idleness import Idleness
from skewsim.errors import EngineError, UserError, shown

EVENTS = ("hello", "alive", "row", "done", "error")
TURN_S = 0.2
"""Seconds to wait for a line before the worker is judged."""
STOPPED_S = 1.0
"""A turn that took so many seconds longer than it should: this process was stopped, and nobody listened."""


@dataclass(frozen=True)
class Limits:
    """Seconds after which a worker is given up."""

    init_s: float = 300.0
    """For its start: imports and loading the model."""
    start_silence_s: float = 8.0
    """Without a message while it starts, after its first one. Imports and loading held the messages up for at most
    1.4 s on the CPU engines, on a loaded machine; `EngineSession` allows more on CUDA, where that was not measured."""
    silence_s: float = 8.0
    """Without a message, once it is ready."""
    idle_s: float = 6.0
    """With a command to carry out, sending messages, and not at work: see `harness.idleness`."""
    progress_s: float = field(default_factory=lambda: read_seconds("SKEWSIM_ENGINE_TIMEOUT", default=120.0))
    """At work, without finishing a step or sending a row; SKEWSIM_ENGINE_TIMEOUT sets it."""


class WorkerClient:
    """One worker process, which carries out one command at a time."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._ready = False
        self._next_id = 0
        self._doing = "start"
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(env) if env is not None else None,
                start_new_session=True,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise EngineError(f"engine worker cannot be started: {command[0]}: {error.strerror}") from None
        self._kill = weakref.finalize(self, _kill, self._process)  # also runs at interpreter exit
        self._inbox: queue.Queue[str | None] = queue.Queue()
        self._last_words: deque[str] = deque(maxlen=40)
        assert self._process.stdout
        assert self._process.stderr
        self._threads = [
            _start(_pump, self._process.stdout, self._inbox.put, self._inbox.put),
            _start(_pump, self._process.stderr, self._last_words.append),
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._kill.alive and self._process.poll() is None

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        stream = self.stream(command, **arguments)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                result: dict[str, Any] = end.value
                return result

    def stream(self, command: str, **arguments: Any) -> Generator[dict[str, Any], None, dict[str, Any]]:
        """Send a command, yield its rows as they come, return its result. Raises EngineError."""
        self._doing = command
        self._next_id += 1
        rows = 0
        try:
            self._send({"id": self._next_id, "command": command, **arguments})
            for message in self._messages():
                if message["event"] == "row":
                    rows += 1
                    yield message["row"]
                elif message["event"] == "done":
                    self._ready = True
                    return message.get("result") or {}
                elif message["event"] == "error":
                    raise EngineError(f"engine worker refused {command}: {shown(message.get('message'), 800)}")
        except (EngineError, GeneratorExit):  # GeneratorExit: the caller stopped listening while rows still come
            self.close()
            raise
        raise self._failure("stopped")

    def close(self) -> None:
        """End the worker and all it started; calling it twice does no harm."""
        self._kill()
        for thread in self._threads:
            thread.join(timeout=2)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError, ValueError):
                if stream:
                    stream.close()

    def _send(self, message: dict[str, Any]) -> None:
        if not self._kill.alive:
            raise EngineError(f"engine worker is closed; {self._doing} needs a new one")
        assert self._process.stdin
        _start(_feed, self._process.stdin, json.dumps(message) + "\n")

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Checked messages of the command under way. Raises EngineError for whatever else happens."""
        watch = _Watch(self._process.pid, self._limits, ready=self._ready)
        while True:
            line = self._line()
            watch.listen()
            if line is not None:
                message = self._parse(line)
                watch.hear(message)
                if message["event"] not in ("alive", "hello") and message.get("id") == self._next_id:
                    yield message
                    watch.restart()
            if self._inbox.empty() and (what := watch.verdict()):
                raise self._failure(what)

    def _line(self) -> str | None:
        """The worker's next line; None if there was none for a turn. Raises EngineError if it has ended."""
        try:
            line = self._inbox.get(timeout=TURN_S)
        except queue.Empty:
            if self._process.poll() is not None and self._inbox.empty():
                raise self._death() from None  # it has ended, though a child of its own still holds the pipe open
            return None
        if line is None:
            raise self._death()
        return line

    def _parse(self, line: str) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        valid = isinstance(message, dict) and message.get("event") in EVENTS
        if valid and message["event"] == "alive":
            valid = isinstance(message.get("progress"), int)
        if valid and message["event"] == "row":
            valid = isinstance(message.get("row"), dict)
        if not valid:
            raise self._failure(f"answered what is no message: {line.strip()[:80]!r}")
        assert isinstance(message, dict)
        return message

    def _death(self) -> EngineError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        code = self._process.poll()
        if code is None:
            return self._failure("closed its output")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return self._failure(how)

    def _failure(self, what: str) -> EngineError:
        self._threads[1].join(timeout=0.5)
        words = [line.strip() for line in self._last_words if line.strip()]
        said = f"; its last words: {shown(' | '.join(words[-3:]), 400)}" if words else ""
        return EngineError(f"engine worker {what} during {self._doing}{said}")


class _Watch:
    """Says when a worker is to be given up: silent, idle or without progress for too long while we listened."""

    def __init__(self, process: int, limits: Limits, *, ready: bool) -> None:
        self._limits, self._ready = limits, ready
        self._silence = limits.silence_s if ready else limits.init_s  # before its first message
        self._patience = limits.progress_s if ready else limits.init_s
        self._idleness, self._progress = Idleness(process), -1
        self._listened = self._heard = self._moved = time.monotonic()

    def listen(self) -> None:
        """Call this after every turn: a turn that took far too long is one in which nobody listened."""
        if time.monotonic() - self._listened > TURN_S + STOPPED_S:
            self.restart()
        self._listened = time.monotonic()

    def restart(self) -> None:
        """Count from now on."""
        self._listened = self._heard = self._moved = time.monotonic()
        self._idleness.restart()

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take note of a message, and of the progress that it shows."""
        self._heard = time.monotonic()
        if not self._ready:
            self._silence = self._limits.start_silence_s
        if message["event"] in ("row", "done", "error") or message.get("progress", self._progress) != self._progress:
            self._moved = self._heard
        self._progress = message.get("progress", self._progress)

    def verdict(self) -> str | None:
        """Why the worker is given up, in words; None if it is not. Call it once all that it said was heard."""
        now, idle_s = time.monotonic(), self._limits.idle_s
        if self._idleness.lasts(idle_s):
            return f"is alive and has done nothing for {idle_s:g} s"
        if now - self._heard > self._silence:
            return f"gave no sign of life for {self._silence:g} s"
        if now - self._moved > self._patience:
            return f"made no progress for {self._patience:g} s"
        return None


def read_seconds(variable: str, *, default: float) -> float:
    """The seconds that an environment variable sets. Raises UserError."""
    text = os.environ.get(variable)
    try:
        seconds = default if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise UserError(f"{variable}={text!r}: allowed are seconds above 0")
    return seconds


def _start(target: Any, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _feed(stream: IO[str], text: str) -> None:
    """Write to a pipe that may be full, while others judge who does not read it; one that has ended shows elsewhere."""
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()


def _pump(stream: IO[str], put: Any, end: Any = None) -> None:
    """Hand each line of a pipe to `put`, so that the worker never waits for room in it; then None to `end`."""
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            put(line)
    if end:
        end(None)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
