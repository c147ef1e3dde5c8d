"""What to set on the simulated engine so that it stands for a real one: its habits, and the noise measured on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.engines import find_spec
from skewsim.settings import EngineSettings
from skewsim.skew.profile import load_profile, shipped_profiles

SERVER_BLOCK = 16
"""vLLM's own default; a server does not always tell."""


@dataclass(frozen=True)
class SimulatedAs:
    """Settings of the simulation, its profile (None: no noise), and both in words."""

    values: dict[str, Any]
    profile: str | None
    said: str


def simulated_as(engine: str, settings: EngineSettings, *, profile: str | None = None) -> SimulatedAs:
    """How to simulate that engine under these settings.

    Its prefix cache keeps whole blocks; what it turns off by itself is off. `profile`: a name or path, ``none``, or None
    for the shipped one that was measured on this engine at this precision. The profile's noise then stands for the
    body's precision, which is not computed on top of it; the head's is, since the ladder switches it.
    """
    spec = None if "://" in engine else find_spec(engine)
    values: dict[str, Any] = {"engine.block_size": spec.block_size if spec else SERVER_BLOCK}
    if spec:
        values |= {f"engine.{name}": False for name in spec.forced_off}
    name = profile
    if profile is None and spec and settings.dtype != "float32":
        shipped = f"{spec.name}-{settings.dtype}-fp32-head"
        name = shipped if shipped in shipped_profiles() else None
    if name in (None, "none"):
        return SimulatedAs(values, None, f"{settings.dtype} computed, no noise injected")
    found = load_profile(str(name))
    return SimulatedAs(values | {"engine.dtype": "float32"}, name, f"noise {found.kind}: {found.name}")
