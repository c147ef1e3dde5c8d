"""Common random numbers: every draw is a function of (seed, step, purpose) and of nothing else.

No generator carries state from one step to the next, so two members with one seed draw the same prompts,
uniforms and noise whatever their settings, a member's curve does not depend on who rides along, and a run
resumes in the middle without a generator's state on disk.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a draw is for; each purpose has a stream of its own."""

    PROMPTS = 0
    SAMPLING = 1
    NOISE = 2
    POLICY = 3
    PRETRAIN = 4


def generator(seed: int, *, step: int, purpose: Purpose) -> torch.Generator:
    """A fresh CPU generator for one member, step and purpose."""
    (state,) = np.random.SeedSequence((seed, step, int(purpose))).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
