"""The clip bounds that a trainer's settings put on the update ratio. Needs no torch, so that screens can show them."""

from __future__ import annotations

import math

from skewsim.catalogue import find_form, form_key
from skewsim.settings import TrainerSettings


def form(settings: TrainerSettings) -> str:
    """The key of the objective, in the form that is set, in `skewsim.catalogue.OBJECTIVES`."""
    return form_key(settings)


def has_update_ratio(settings: TrainerSettings) -> bool:
    """Whether the loss uses the update ratio; REINFORCE, for one, uses the logprob itself."""
    return find_form(settings).ratio != "none"


def epsilons(settings: TrainerSettings) -> tuple[float | None, float | None]:
    """The epsilon and epsilon_high in use; if both defaults are equal, epsilon_high defaults to epsilon (as in TRL)."""
    chosen = find_form(settings)
    if chosen.clip == "none":
        return None, None
    low = chosen.epsilon if settings.epsilon is None else settings.epsilon
    high = settings.epsilon_high
    if high is None:
        high = low if chosen.epsilon_high == chosen.epsilon else chosen.epsilon_high
    return low, high


def clip_bounds(settings: TrainerSettings) -> tuple[float, float]:
    """The smallest and the largest ratio that is not clipped; 0 and infinity where no ratio is bounded."""
    low, high = epsilons(settings)
    clip = find_form(settings).clip
    if clip == "cap":
        return 0.0, math.inf if high is None else high
    if clip == "divergence":
        return 0.0, math.inf
    if clip == "log":
        return 0.0 if low is None else math.exp(-low), math.inf if high is None else math.exp(high)
    return 0.0 if low is None else 1 - low, math.inf if high is None else 1 + high
