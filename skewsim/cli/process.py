"""What a process of the command needs before and after its work: three open streams, and one interrupt at a time."""

from __future__ import annotations

import os
import signal
import sys
import threading

_interrupted = False


def open_streams() -> None:
    """Where the shell has closed stdin, stdout or stderr, the null device is put in its place.

    Otherwise the next file that is opened would get its number, and be taken for the stream.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def discard_output() -> None:
    """Send what is still buffered for stdout to the null device: nobody takes it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def heed_interrupts() -> None:
    """Ctrl+C raises KeyboardInterrupt, but not while an earlier one is being handled: a command ends in order, once."""

    def heed(number: int, frame: object) -> None:
        global _interrupted
        _interrupted = True
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            raise KeyboardInterrupt

    first = threading.current_thread() is threading.main_thread()
    if first and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, heed)


def was_interrupted() -> bool:
    """Whether Ctrl+C was pressed. A library that is being imported may turn its exception into another one."""
    return _interrupted


def ignore_interrupts() -> None:
    """From here on the process only ends."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
