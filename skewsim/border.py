"""Where small files and JSON lines come in: a scenario, a profile, a keymap, the last session's settings; a log.

A regular file is read, not a device or a pipe that never ends, and of a bounded size. What TOML and JSON say is bounded
in its depth, so that nothing that walks through it runs out of stack. Whatever is wrong is a FileFormatError of one
line.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from skewsim.errors import FileFormatError, shown

LARGEST = 1 << 24
"""Bytes of a file that is read at once; the profiles that ship take 40,000."""
LONGEST_TOML, LONGEST_TOML_LINE = 1 << 17, 4096
"""Characters of a TOML file and of one of its lines: tomllib takes time as the square of a dotted key's length."""
DEEPEST = 32
"""Levels of tables and lists within each other."""


def read_small(path: Path | str, *, what: str = "", limit: int = LARGEST) -> bytes:
    """The content of a regular file of at most `limit` bytes. FileFormatError begins with `what` and the path."""
    with open_regular(path, what=what) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size > limit:
            raise FileFormatError(f"{f'{what} {path}'.strip()}: has {size} bytes; allowed are {limit}")
        return handle.read(limit)


def open_regular(path: Path | str, *, what: str = "") -> BinaryIO:
    """A regular file to read: no folder, device or pipe. FileFormatError begins with `what` and the path."""
    name = f"{what} {path}".strip()
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer does not wait
        if stat.S_ISREG(os.fstat(number).st_mode):
            return open(number, "rb")
        os.close(number)
        raise FileFormatError(f"{name}: is no regular file")
    except OSError as error:
        raise FileFormatError(f"{name}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:  # a zero byte in its name
        raise FileFormatError(f"{name!r}: no name of a file") from None


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """What TOML text says. FileFormatError begins with `what` the text is."""
    if len(text) > LONGEST_TOML or max(map(len, text.splitlines()), default=0) > LONGEST_TOML_LINE:
        allowed = f"{LONGEST_TOML} characters, and {LONGEST_TOML_LINE} on a line"
        raise FileFormatError(f"{what} is too long for a TOML file of skewsim; allowed are {allowed}")
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a ValueError, too
        raise FileFormatError(f"{what} is not a TOML file: {shown(error, 200)}") from None
    _check_depth(data, what)
    return data


def load_toml_data(path: Path | str) -> dict[str, Any]:
    """What a TOML file says."""
    try:
        text = read_small(path, limit=4 * LONGEST_TOML).decode()
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is not a TOML file: it is not UTF-8 text") from None
    return parse_toml(text, str(path))


def parse_json(content: bytes | str, what: str) -> Any:
    """What JSON says. FileFormatError begins with `what`."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise FileFormatError(f"{what}: truncated or no JSON") from None
    _check_depth(data, what)
    return data


LONGEST_LINE = 1 << 28
"""Bytes of a line of JSON, or of a file that is one JSON value."""
MOST_MEMORY = 3 << 29
"""Bytes that what a line says may take once it is parsed."""


def read_lines(path: Path | str, *, what: str) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, each with the words by which a mistake in it is told."""
    with open_regular(path, what=what) as handle:
        for number in itertools.count(1):
            if not (line := handle.readline(LONGEST_LINE)):
                return
            name = f"{what} {path}, line {number}"
            if len(line) == LONGEST_LINE:
                raise FileFormatError(f"{name}: longer than {LONGEST_LINE >> 20} MiB")
            if line.strip():
                yield name, decoded(line, name)


def decoded(line: bytes, what: str) -> str:
    """A line of JSON as text, of which no value takes up more memory than `MOST_MEMORY`."""
    if len(line) > MOST_MEMORY >> 6 and _memory(line) > MOST_MEMORY:
        raise FileFormatError(f"{what}: what it says takes more than {MOST_MEMORY >> 20} MiB of memory")
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileFormatError(f"{what}: not UTF-8") from None


def _memory(line: bytes) -> int:
    """Bytes that parsed JSON takes at most, about: of lists and tables, and of the numbers and words in them."""
    return 80 * (line.count(b"[") + line.count(b"{")) + 32 * (line.count(b",") + line.count(b":"))


CUT = " (the file ends in the middle of this line: `sed '$d' FILE` prints it without)"
"""How to go on with a log whose writer was stopped."""


def parse_line(text: str, what: str) -> Any:
    """What a line of JSON says. FileFormatError begins with `what`."""
    try:
        return json.loads(text)
    except ValueError:
        cut = CUT if text.startswith("{") and not text.endswith("\n") and not what.endswith("line 1") else ""
        raise FileFormatError(f"{what}: truncated or no JSON{cut}") from None
    except RecursionError:
        raise FileFormatError(f"{what}: nested too deeply") from None


def _check_depth(data: Any, what: str) -> None:
    """FileFormatError if the data is deeper than `DEEPEST`."""
    level = [data]
    for _ in range(DEEPEST):
        nested = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for values in nested for each in values]
    if level:
        raise FileFormatError(f"{what}: nested more than {DEEPEST} deep")
