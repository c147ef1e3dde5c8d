"""Where the objectives clip: their default epsilons, and the bounds that a trainer's settings put on the ratio.

Needs no torch, so that a screen can say it without the trainer. The objectives themselves, and where their defaults are
from, are in `skewsim.learn.objectives`.
"""

from __future__ import annotations

import math

from skewsim.settings import TrainerSettings

EPSILONS: dict[str, tuple[float | None, float]] = {
    "reinforce_pp": (0.2, 0.2),
    "ppo": (0.2, 0.2),
    "grpo": (0.2, 0.2),
    "dr_grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "gspo/paper": (3e-4, 4e-4),
    "gspo/pipelinerl": (2e-2, 2e-2),
    "cispo": (None, 5.0),
    "dppo": (0.2, 0.2),
}
"""Objective -> default epsilon and epsilon_high. CISPO's is the cap itself, DPPO's are on probabilities."""


def form(settings: TrainerSettings) -> str:
    """The objective by the name of its form: GSPO has two, and RLOO with an epsilon is TRL's clipped one."""
    if settings.objective == "gspo":
        return f"gspo/{settings.gspo_form}"
    if settings.objective == "rloo" and settings.epsilon is not None:
        return "rloo/clipped"
    return settings.objective


def has_update_ratio(settings: TrainerSettings) -> bool:
    """REINFORCE and (unless clipped, as TRL has it) RLOO score the logprob itself; the others have a ratio."""
    return form(settings) not in ("reinforce", "rloo")


def epsilons(settings: TrainerSettings) -> tuple[float | None, float | None]:
    """Epsilon and epsilon_high in force; where both defaults are equal, the upper follows the lower (as in TRL)."""
    if not has_update_ratio(settings):
        return None, None
    default_low, default_high = EPSILONS.get(form(settings), (None, None))
    low = default_low if settings.epsilon is None else settings.epsilon
    high = settings.epsilon_high
    if high is None:
        high = low if default_high == default_low else default_high
    return low, high


def clip_bounds(settings: TrainerSettings) -> tuple[float, float]:
    """The least and the greatest ratio that the clip leaves alone; 0 and infinity where there is no clip."""
    low, high = epsilons(settings)
    if settings.objective == "cispo":
        return 0.0, math.inf if high is None else high
    return 0.0 if low is None else 1 - low, math.inf if high is None else 1 + high
