"""What a process of the command needs before and after its work: three open streams, and one interrupt at a time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

_TOGETHER = 2.0
"""Seconds after an interrupt in which further ones count as the same: a command ends in order, and once."""


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
    """Ctrl+C raises KeyboardInterrupt, and what is pressed in the two seconds after it does nothing."""
    last = -_TOGETHER

    def heed(number: int, frame: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= _TOGETHER:
            raise KeyboardInterrupt

    first = threading.current_thread() is threading.main_thread()
    if first and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, heed)


def ignore_interrupts() -> None:
    """From here on the process only ends."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
