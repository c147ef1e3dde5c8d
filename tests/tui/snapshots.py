"""A made-up rollout for the screens that look closer."""

from __future__ import annotations

import numpy as np

from skewsim.settings import Scenario
from tui.snapshot import Snapshot
from tui.worker import loss_source, work_out


def snapshot(
    scenario: Scenario | None = None, *, sequences: int = 24, tokens: int = 12, noise: float = 0.08
) -> Snapshot:
    """Sequences with a skew that falls on improbable tokens."""
    scenario = scenario or Scenario()
    rng = np.random.default_rng(0)
    trainer = np.log(rng.uniform(0.02, 0.98, (sequences, tokens)))
    skew = rng.normal(0, noise, (sequences, tokens)) * (1 - np.exp(trainer)) * 2
    mask = np.ones((sequences, tokens), bool)
    mask[3, 8:] = False
    rewards = (rng.uniform(size=sequences) > 0.4).astype(float)
    seen = Snapshot(
        step=41,
        scenario=scenario,
        loss=loss_source(scenario),
        prompt_ids=np.arange(sequences) // 8,
        prompts=np.zeros((sequences, 14), np.int64),
        tokens=rng.integers(14, 54, (sequences, tokens)),
        mask=mask,
        engine_logprobs=trainer - skew,
        trainer_logprobs=trainer,
        weight_versions=np.full((sequences, tokens), 40),
        square_mass=np.exp(2 * trainer),
        rewards=rewards,
        advantages=(rewards - rewards.mean()) / rewards.std(),
    )
    return work_out(seen)
