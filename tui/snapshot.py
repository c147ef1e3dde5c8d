"""One step's sequences, token by token, for the screens that look closer.

`watched` is the simulator's training loop with an engine that, when somebody looks, keeps a rollout and what the
trainer's weights of that moment say of it: one forward pass more on the steps that are looked at, none on the others.
Everything is recomputed with the public functions of the simulator, so nothing here can disagree with it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skewsim.settings import Scenario, TrainerSettings
from tui.driver import Training

if TYPE_CHECKING:
    from skewsim.engine import RolloutRequest, Rollouts
    from skewsim.trainer import Trainer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Snapshot:
    """One member's rollout; (N, P) prompts, (N, T) the rest, (N,) rewards and advantages."""

    step: int
    scenario: Scenario
    prompts: Ints
    tokens: Ints
    mask: NDArray[np.bool_]
    engine_logprobs: Floats
    trainer_logprobs: Floats
    versions: Ints
    rewards: Floats
    advantages: Floats

    @property
    def skew(self) -> Floats:
        """Trainer minus engine, 0 where no token was sampled."""
        return np.where(self.mask, self.trainer_logprobs - self.engine_logprobs, 0.0)

    @property
    def old_logprobs(self) -> Floats:
        """The denominator of the update ratio: the engine's (bypass) or the trainer's own (recompute)."""
        bypass = self.scenario.trainer.old_logprobs == "rollout"
        return self.engine_logprobs if bypass else self.trainer_logprobs

    @property
    def ratios(self) -> Floats:
        """Ratio of the first minibatch, before any update: the trainer's over old; 1 under recompute."""
        return np.where(self.mask, np.exp(self.trainer_logprobs - self.old_logprobs), 1.0)


class Watch:
    """The wish to see the next step, and the last one seen. Set by the screen, read by the thread."""

    def __init__(self) -> None:
        self.wanted = False
        self.latest: Snapshot | None = None


@cache
def _freeze_imports() -> None:
    """What is imported stays: no collection has to walk torch's objects, a tenth of a second each time.

    Once only: whatever is frozen is never collected, a trainer of an earlier run neither.
    """
    gc.freeze()


def watched(watch: Watch, recorder: Callable[[Trainer, Scenario], Training] | None = None) -> Any:
    """What the driver calls to train: the track named yours is watched (and recorded); the others only train."""

    def train(scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        import torch

        from skewsim.trainer import Trainer

        torch.set_num_threads(1)
        _freeze_imports()
        if scenario.name != "yours":
            return loop(Trainer(scenario, seeds=seeds))
        trainer = _watched_trainer(scenario, seeds, watch)
        return loop(trainer) if recorder is None else recorder(trainer, scenario)

    return train


def loop(trainer: Trainer) -> Training:
    """`skewsim.trainer.train` over a trainer that is already there."""
    while trainer.alive and trainer.step_number < trainer.scenario.steps:
        toggled = yield trainer.step()
        if toggled is not None:
            trainer.toggle(toggled)


def _watched_trainer(scenario: Scenario, seeds: tuple[int, ...], watch: Watch) -> Trainer:
    from skewsim.engine import SimEngine
    from skewsim.trainer import Trainer

    class WatchedEngine(SimEngine):
        trainer: Trainer | None = None

        def generate(self, request: RolloutRequest) -> Rollouts:
            rollouts = super().generate(request)
            if watch.wanted and self.trainer is not None:
                watch.latest = take(self.trainer, rollouts, request.step)
            return rollouts

    engine = WatchedEngine()
    trainer = Trainer(scenario, engine, seeds=seeds)
    engine.trainer = trainer
    return trainer


def take(trainer: Trainer, rollouts: Rollouts, step: int) -> Snapshot:
    """A snapshot of the ensemble's first member, under the trainer's weights of now."""
    import torch

    from skewsim.objectives import compute_advantages
    from skewsim.scoring import score

    scenario, settings = trainer.scenario, trainer.scenario.trainer
    with torch.no_grad():
        scored = score(
            trainer.policy.weights(dtype=settings.dtype, head_dtype=settings.head_dtype),
            rollouts,
            group=settings.num_generations,
            temperature=settings.temperature or scenario.engine.temperature,
            sampling_mask=settings.correction.keep_sampling_mask,
        )
        scores = trainer.task.score(rollouts.prompt_ids, rollouts.tokens, rollouts.mask)
        reward = scores.exact if scenario.task.reward == "exact" else scores.partial
        groups = torch.arange(rollouts.tokens.shape[1], device=reward.device) // settings.num_generations
        advantages = compute_advantages(reward, groups, settings)

    def first(tensor: Any, dtype: Any = np.float64) -> Any:
        return tensor[0].detach().cpu().numpy().astype(dtype)

    return Snapshot(
        step=step,
        scenario=scenario,
        prompts=first(rollouts.prompts, np.int64),
        tokens=first(rollouts.tokens, np.int64),
        mask=first(rollouts.mask) > 0,
        engine_logprobs=first(rollouts.engine_logprobs),
        trainer_logprobs=first(scored.logprobs),
        versions=first(rollouts.weight_versions, np.int64),
        rewards=first(reward),
        advantages=first(advantages),
    )


def clip_bounds(settings: TrainerSettings) -> tuple[float, float]:
    """The bounds that the objective's clip puts on the ratio; infinite where it has none."""
    from skewsim.objectives import find_objective

    objective = find_objective(settings)
    low = objective.low if settings.epsilon is None else settings.epsilon
    high = settings.epsilon_high
    if high is None:
        high = low if objective.high == objective.low else objective.high
    return (0.0 if low is None else 1 - low, float("inf") if high is None else _top(high, capped=objective.low is None))


def _top(high: float, *, capped: bool) -> float:
    """CISPO's bound is the cap itself, the others' the distance from 1."""
    return high if capped else 1 + high
