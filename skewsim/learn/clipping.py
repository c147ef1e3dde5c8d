"""The clip bounds that a trainer's settings put on the update ratio. Needs no torch: screens say it without a trainer."""

from __future__ import annotations

import math

from skewsim.catalogue import find_form, form_key
from skewsim.settings import TrainerSettings


def form(settings: TrainerSettings) -> str:
    """The objective by the name of its form, a key of `skewsim.catalogue.OBJECTIVES`."""
    return form_key(settings)


def has_update_ratio(settings: TrainerSettings) -> bool:
    """Whether the loss has an update ratio; where it has none, it scores the logprob itself."""
    return find_form(settings).ratio != "none"


def epsilons(settings: TrainerSettings) -> tuple[float | None, float | None]:
    """Epsilon and epsilon_high in force; where both defaults are equal, the upper follows the lower (as in TRL)."""
    chosen = find_form(settings)
    if chosen.clip == "none":
        return None, None
    low = chosen.epsilon if settings.epsilon is None else settings.epsilon
    high = settings.epsilon_high
    if high is None:
        high = low if chosen.epsilon_high == chosen.epsilon else chosen.epsilon_high
    return low, high


def clip_bounds(settings: TrainerSettings) -> tuple[float, float]:
    """The least and the greatest ratio that the clip leaves alone; 0 and infinity where no ratio is bounded."""
    low, high = epsilons(settings)
    clip = find_form(settings).clip
    if clip == "cap":
        return 0.0, math.inf if high is None else high
    if clip == "divergence":
        return 0.0, math.inf
    if clip == "log":
        return 0.0 if low is None else math.exp(-low), math.inf if high is None else math.exp(high)
    return 0.0 if low is None else 1 - low, math.inf if high is None else 1 + high
