"""Chunks computed by processes of this machine, one thread each.

A process that dies (killed for its memory, say) is replaced and its chunk is tried again, a few times. When the process
that drives them ends, however it ends, so do they.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from skewsim.errors import SkewsimError
from skewsim.sweeps.chunk import Chunk, Columns, train_chunk

TRIES = 3
"""How often a chunk is begun before the sweep gives up on it."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_this_process(chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Columns]]:
    """Every chunk with its curves, one after another."""
    for chunk in chunks:
        yield chunk, train_chunk(chunk)


def in_processes(chunks: Sequence[Chunk], workers: int) -> Iterator[tuple[Chunk, Columns]]:
    """Every chunk with its curves, in the order in which they are done."""
    waiting = deque((chunk, 1) for chunk in chunks)
    crew = [_Worker() for _ in range(min(workers, len(chunks)))]
    try:
        while waiting or any(worker.task for worker in crew):
            for worker in crew:
                if worker.task is None and waiting:
                    worker.begin(*waiting.popleft())
            busy = {worker.pipe: worker for worker in crew if worker.task}
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                assert worker.task is not None
                chunk, tries = worker.task
                found = worker.answer()
                if found is not None:
                    yield chunk, found
                    continue
                crew[crew.index(worker)] = _Worker()
                if tries >= TRIES:
                    raise SkewsimError(f"the process that computes {len(chunk.seeds)} members died {TRIES} times")
                waiting.appendleft((chunk, tries + 1))
    finally:
        for worker in crew:
            worker.close()


class _Worker:
    """A process that computes chunks, and the one that it is at."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.task: tuple[Chunk, int] | None = None
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def begin(self, chunk: Chunk, tries: int) -> None:
        self.task = (chunk, tries)
        with suppress(OSError):  # it has died; `answer` says so
            self.pipe.send(chunk)

    def answer(self) -> Columns | None:
        """The curves of its chunk; None if the process died. Raises what went wrong there."""
        self.task = None
        try:
            found = self.pipe.recv()
        except (EOFError, OSError):
            self.close()
            return None
        if isinstance(found, BaseException):
            raise found
        return dict(found)

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _work(pipe: Connection) -> None:
    """A process's life: chunks in, curves out, until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's to heed
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    while True:
        try:
            chunk = pipe.recv()
        except EOFError:
            return
        pipe.send(_attempt(chunk))


def _attempt(chunk: Chunk) -> Columns | BaseException:
    try:
        return train_chunk(chunk)
    except SkewsimError as error:
        return error
    except Exception:  # whatever it is, the driver has to hear of it: this process's own words reach nobody
        return RuntimeError(f"in a process of the sweep: {traceback.format_exc()}")


def _end_with_the_driver() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
