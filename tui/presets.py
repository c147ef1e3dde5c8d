"""Classroom presets: named sets of hidden controls, a speed, a first pause and the settings that yours starts with."""

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
    """The ids of what to hide, checked; hiding a fix's key hides its switch too. Raises UserError for an unknown id."""
    known = {c.id for c in explore_controls()} | {a.id for a in ACTIONS} - {"quit", "help"}
    for name in sorted(names):
        if name not in known:
            raise UserError(f"hide={name}: no such control or action; allowed: {', '.join(sorted(known))}")
    return frozenset(names | {a.argument for a in ACTIONS if a.id in names and a.argument})
