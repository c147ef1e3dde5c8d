"""Common random numbers: every draw is a function of (seed, step, purpose) and of nothing else.

No generator keeps state from one step to the next. So two members with the same seed draw the same prompts, uniforms
and noise whatever their settings are, a member's curve does not depend on the other members, and a run can be resumed
without a generator's state on disk.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a random draw is used for; each purpose has its own stream of numbers."""

    PROMPTS = 0
    SAMPLING = 1
    NOISE = 2
    POLICY = 3
    PRETRAIN = 4
    PLACEHOLDERS = 5
    DROPOUT = 6


def generator(seed: int, *, step: int, purpose: Purpose) -> torch.Generator:
    """A new CPU generator for one member's seed, step and purpose."""
    (state,) = np.random.SeedSequence((seed, step, int(purpose))).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
