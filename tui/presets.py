"""Classroom presets: a name for what is hidden, how fast it runs, where it pauses first and where yours starts."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from skewsim.errors import UserError
from tui.actions import ACTIONS
from tui.controls import explore_controls


class Preset(BaseModel):
    """One entry of presets.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    hide: list[str] = []
    speed: float = 10
    pause_at: int | None = None
    view: str | None = None
    """The metric below the reward."""
    set: dict[str, Any] = {}


def presets() -> dict[str, Preset]:
    """Every preset by its name."""
    text = (resources.files("tui") / "presets.toml").read_text(encoding="utf-8")
    return {name: Preset.model_validate(entry) for name, entry in tomllib.loads(text).items()}


def find_preset(name: str) -> Preset:
    """A preset. Raises UserError with the names there are."""
    known = presets()
    if name not in known:
        raise UserError(f"preset {name!r} is not known; allowed: {', '.join(known)}")
    return known[name]


def check_hidden(names: set[str]) -> frozenset[str]:
    """Ids of controls and actions that may be hidden; with a fix's key goes its switch. Raises UserError for one that does not exist."""
    known = {c.id for c in explore_controls()} | {a.id for a in ACTIONS} - {"quit", "help"}
    for name in sorted(names):
        if name not in known:
            raise UserError(f"hide={name}: no such control or action; allowed: {', '.join(sorted(known))}")
    return frozenset(names | {a.argument for a in ACTIONS if a.id in names and a.argument})
