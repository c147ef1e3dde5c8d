"""A monkey at the keyboard: random keys, clicks and resizes, then a clean way out."""

from __future__ import annotations

import contextlib
import random

from .terminal import Terminal

_LETTERS = "1234 .+-0ncbuvVhwx,tfpagrlmkyiz?:se<>[]ABC"
_SPECIAL = (
    "\t",
    "\r",
    "\x1b[A",
    "\x1b[B",
    "\x1b[C",
    "\x1b[D",
    "\x1b[1;2C",
    "\x1b[1;2D",
    "\x1bOP",
    "\x7f",
    "\x1b[5~",
    "\x1b[6~",
)
_SIZES = ((80, 24), (120, 40), (200, 50), (60, 18), (40, 10), (100, 30))


def bother(terminal: Terminal, rng: random.Random, *, keys: int, pause: float = 0.01) -> None:
    """So many random events; at the end everything is closed and q is pressed."""
    for i in range(keys):
        kind = rng.random()
        if kind < 0.7:
            terminal.type(rng.choice(_LETTERS))
        elif kind < 0.93:
            terminal.type(rng.choice(_SPECIAL))
        elif kind < 0.97:
            x, y = rng.randint(1, 120), rng.randint(1, 40)
            terminal.type(f"\x1b[<0;{x};{y}M\x1b[<0;{x};{y}m")
        else:
            terminal.resize(*rng.choice(_SIZES))
        terminal.pump(pause)
        if i % 50 == 49:
            _close(terminal)
    terminal.resize(120, 40)
    with contextlib.suppress(OSError):  # it has ended
        for _ in range(5):  # a screen with a line to type into takes the first q for a letter
            _close(terminal)
            terminal.type("q")
            terminal.pump(2)


def _close(terminal: Terminal) -> None:
    """Escape from whatever is open; apart from other keys, so that it is not taken for the start of a sequence."""
    for _ in range(4):
        terminal.pump(0.15)
        terminal.type("\x1b")
    terminal.pump(0.3)
