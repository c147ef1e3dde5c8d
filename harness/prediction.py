"""What to set on the simulated engine so that it stands for a real one: its habits, and the noise measured on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skewsim.engine.choice import StandIn
from skewsim.settings import EngineSettings
from skewsim.skew.profile import load_profile, shipped_profiles


def make_stand_in(
    values: Mapping[str, Any], settings: EngineSettings, *, measured_as: str | None, profile: str | None
) -> StandIn:
    """How to simulate an engine that has these habits (`values`) under these settings.

    `profile` is a name or a path, ``none`` for no noise, or None for the one that ships and was measured at this
    precision on the engine named `measured_as`. A profile's noise stands for the precision of the model's body, which
    is then computed in float32; the head's precision is computed all the same, since the ladder switches it.
    """
    name = profile
    if profile is None and measured_as and settings.dtype != "float32":
        shipped = f"{measured_as}-{settings.dtype}-fp32-head"
        name = shipped if shipped in shipped_profiles() else None
    if name in (None, "none"):
        return StandIn(dict(values), None, f"{settings.dtype} computed, no noise injected")
    found = load_profile(str(name))
    return StandIn({**values, "engine.dtype": "float32"}, name, f"noise {found.kind}: {found.name}")
