"""What a configuration file says, whatever its syntax: settings by name, each with its value and its line.

A value that the file leaves to a variable of the shell or to code is `Unknown`: nothing is concluded from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from skewsim.errors import shown

Syntax = Literal["yaml", "toml", "shell", "python"]
MOST_SETTINGS = 50_000
"""Settings of a file; more is no configuration."""


@dataclass(frozen=True)
class Unknown:
    """A value that is not written in the file."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Setting:
    """One setting as the file has it."""

    name: str
    value: Any
    """A number, string, truth value, None, or a flat list of them; or `Unknown`."""
    line: int | None = None
    """Counted from 1; None: the file does not say it, the framework's default holds."""
    file: str = ""
    conditional: bool = False
    """Whether it stands where it holds only under a condition: between if and fi."""

    @property
    def given(self) -> bool:
        return self.line is not None

    @property
    def known(self) -> bool:
        return not isinstance(self.value, Unknown)

    @property
    def number(self) -> float | None:
        """The value as a finite number; None if it is none."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return None
        try:
            found = float(value)
        except (ValueError, OverflowError):
            return None
        return found if math.isfinite(found) else None

    @property
    def flag(self) -> bool | None:
        """The value as yes or no; None if it is neither."""
        if isinstance(self.value, bool):
            return self.value
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(self.text.lower())

    @property
    def words(self) -> str:
        """The value as far as it is written: of `$DIR/name` at least the name."""
        return shown(self.value, 200).rstrip("/") if isinstance(self.value, Unknown | str) else ""

    @property
    def text(self) -> str:
        """The value as a word; empty if there is none."""
        if self.value is None or not self.known:
            return ""
        word = shown(self.value, 200)
        return "" if word.lower() in ("null", "none") else word


@dataclass
class Settings:
    """All settings of one or more files; of two of the same name the later one holds, unless it is conditional."""

    syntax: Syntax
    found: dict[str, Setting] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, setting: Setting) -> None:
        before = self.found.get(setting.name)
        if before is None or not setting.conditional or before.conditional:
            self.found[setting.name] = setting

    def under(self, settings: Iterable[Setting]) -> None:
        """Adds what is not there yet: a file that this one is based on."""
        for setting in settings:
            self.found.setdefault(setting.name, setting)

    def first(self, names: Iterable[str]) -> Setting | None:
        """The first of these names that is there."""
        return next((self.found[name] for name in names if name in self.found), None)

    def __iter__(self) -> Iterator[Setting]:
        return iter(self.found.values())
