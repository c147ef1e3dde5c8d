"""What Textual leaves open between a terminal and the app: bytes that are no text, and text that is a command to it."""

from __future__ import annotations

import codecs
from functools import partial
from importlib import import_module
from typing import Any

from rich import control
from textual import content

_DRIVERS = ("linux_driver", "linux_inline_driver", "web_driver")
_ESCAPE, _DELETE, _UNKNOWN = "\u241b", "\u2421", "\ufffd"
_ACTED_ON = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)} | {
    0x1B: _ESCAPE,
    0x7F: _DELETE,
    **dict.fromkeys([*range(0x80, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], _UNKNOWN),
}
"""Characters that a terminal acts on, and what is shown instead: pictures of control characters (Unicode U+2400)."""


def make_safe() -> None:
    """Show control characters as pictures, and leave bytes from the terminal out that are no UTF-8.

    Rich (15) and Textual (8.2.8) take only five control characters out of a text, by a table, and Textual's drivers
    end the app at the first wrong byte.
    """
    for table in (vars(control)["_CONTROL_STRIP_TRANSLATE"], vars(content)["_CONTROL_STRIP_TRANSLATE"]):
        table.update(_ACTED_ON)
    for name in _DRIVERS:
        try:
            driver: Any = import_module(f"textual.drivers.{name}")
        except ImportError:  # of another operating system
            continue
        driver.getincrementaldecoder = _forgiving


def _forgiving(encoding: str) -> Any:
    return partial(codecs.getincrementaldecoder(encoding), errors="ignore")
