"""Rollout engines: the interface that all of them share (`rollouts`), and the simulated one (`simulated`)."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """``from skewsim.engine import SimEngine``, as in version 0.1, when this was one module."""
    for home in map(import_module, ("skewsim.engine.rollouts", "skewsim.engine.simulated")):
        if hasattr(home, name) and not name.startswith("_"):
            return getattr(home, name)
    raise AttributeError(f"module skewsim.engine has no {name}")
