"""Random keys, clicks, drags, wheel turns and resizes, and a clean end."""

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


def bother(terminal: Terminal, rng: random.Random, *, keys: int, pause: float = 0.01) -> int:
    """Send random events, then close everything and press q. Returns how many were sent: a click may quit earlier."""
    done = 0
    with contextlib.suppress(OSError):  # it has ended
        while done < keys and not terminal.closed:
            kind = rng.random()
            if kind < 0.55:
                terminal.type(rng.choice(_LETTERS))
            elif kind < 0.75:
                terminal.type(rng.choice(_SPECIAL))
            elif kind < 0.95:
                terminal.type(_mouse(rng))
            else:
                terminal.resize(*rng.choice(_SIZES))
            terminal.pump(pause)
            done += 1
            if done % 50 == 0:
                _close(terminal)
        terminal.resize(120, 40)
        for _ in range(5):  # a screen with a line to type into takes the first q for a letter
            if not terminal.closed:
                _close(terminal)
                terminal.type("q")
                terminal.pump(2)
    return done


def _mouse(rng: random.Random) -> str:
    """A click, a drag, a move or a turn of the wheel, as a terminal reports it (SGR)."""
    x, y = rng.randint(1, 120), rng.randint(1, 40)
    press, release = f"\x1b[<0;{x};{y}M", "\x1b[<0;{};{}m"
    match rng.randrange(8):
        case 0:
            return f"{press}\x1b[<32;{x + 3};{y + 1}M{release.format(x + 9, y + 2)}"
        case 1:
            return f"\x1b[<35;{x};{y}M"
        case 2:
            return f"\x1b[<{rng.choice((64, 65))};{x};{y}M"
        case _:
            return press + release.format(x, y)


def _close(terminal: Terminal) -> None:
    """Escape from whatever is open; apart from other keys, so that it is not taken for the start of a sequence."""
    for _ in range(4):
        terminal.pump(0.15)
        terminal.type("\x1b")
    terminal.pump(0.3)
