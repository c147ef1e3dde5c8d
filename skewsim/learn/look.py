"""The tokens of one training step: what trainer and engine say of every token that one member sampled.

    trainer = skewsim.Trainer(skewsim.find_scenario("initial_v1"))
    for _ in range(20):
        trainer.step()
    look = trainer.look()
    print(skewsim.diagnose(look.sequences))

`Trainer.look` gives the step just done, scored under the weights at its beginning, as its record is. `look_at` scores
any rollout under any weights. A `Look` holds only numpy arrays and needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skewsim.settings import Scenario
from skewsim.skew.sequences import SETTINGS, SequenceLog, SequenceRecord
from skewsim.skew.tokens import TokenTable

if TYPE_CHECKING:
    from torch import Tensor

    from skewsim.engine.rollouts import Rollouts
    from skewsim.learn.scoring import Graded, Scored
    from skewsim.model.policy import Policy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Look:
    """One member's rollout: N sequences, P prompt tokens, up to T response tokens; logprobs in nats."""

    step: int
    scenario: Scenario
    prompt_ids: Ints
    """(N,) index of the prompt in the task's pool."""
    prompts: Ints
    """(N, P) the prompt's tokens."""
    tokens: Ints
    """(N, T) the response's tokens; in every (N, T) array, values where ``mask`` is False have no meaning."""
    mask: NDArray[np.bool_]
    """(N, T) where a token was sampled."""
    engine_logprobs: Floats
    """(N, T) as the engine reported them."""
    trainer_logprobs: Floats
    """(N, T) by the trainer's weights, in its precision and at its temperature, before it learned from the rollout."""
    square_mass: Floats
    """(N, T) sum over the vocabulary of the trainer's squared probabilities."""
    weight_versions: Ints
    """(N, T) version of the weights that sampled the token."""
    rewards: Floats
    """(N,) exact or partial reward, as `task.reward` says."""
    advantages: Floats
    """(N,)."""
    reference_logprobs: Floats | None = None
    """(N, T) under the policy that training started from; None where ``trainer.beta`` is 0."""
    sampler_logprobs: Floats | None = None
    """(N, T) under the distribution that was really sampled from; None where only the engine knows it."""
    kept_mass: Floats | None = None
    """(N, T) probability that top-p, top-k and min-p left; None if nothing was cut off."""
    given: NDArray[np.bool_] | None = None
    """(N, T) where the environment wrote the token, which ``mask`` leaves out; None in tasks of one turn."""
    routes_differ: Ints | None = None
    """(N, T) in how many layers the trainer's routers chose other experts than the engine returned for the row that
    predicts the token; None where it returns none."""
    replicas: Ints | None = None
    """(N,) the copy of the engine that answered; None where there is one only."""

    @property
    def skew(self) -> Floats:
        """(N, T) trainer minus engine, 0 where no token was sampled."""
        return np.where(self.mask, self.trainer_logprobs - self.engine_logprobs, 0.0)

    @property
    def old_logprobs(self) -> Floats:
        """(N, T) the denominator of the update ratio: the engine's (bypass) or the trainer's own (recompute)."""
        bypass = self.scenario.trainer.old_logprobs == "rollout"
        return self.engine_logprobs if bypass else self.trainer_logprobs

    @property
    def ratios(self) -> Floats:
        """(N, T) the update ratio trainer / old in the first minibatch, before any update; 1 under recompute."""
        return np.where(self.mask, np.exp(self.trainer_logprobs - self.old_logprobs), 1.0)

    @property
    def pack_index(self) -> Ints | None:
        """(N,) place of each sequence in the trainer's packed row; None if rows are not packed."""
        trainer = self.scenario.trainer
        return None if trainer.packing == "none" else np.arange(len(self.tokens)) % trainer.pack_size

    @property
    def places(self) -> dict[str, Ints]:
        """Columns (N, T) that say where a token was: its replica, turn and place in a pack, where there are several."""
        found: dict[str, Ints] = {}
        if self.replicas is not None:
            found["replica"] = np.broadcast_to(self.replicas[:, None], self.tokens.shape)
        if self.given is not None:
            found["turn"] = (self.given.cumsum(1) > 0).astype(np.int64)
        if self.routes_differ is not None:
            found["routes_differ"] = self.routes_differ
        if self.pack_index is not None:
            found["pack_index"] = np.broadcast_to(self.pack_index[:, None], self.tokens.shape)
        return found

    @property
    def sequences(self) -> SequenceLog:
        """The rollout as whole sequences with their prompts, for `skewsim.diagnose` and for a file."""
        engine = self.scenario.engine
        settings = {name: float(getattr(engine, name)) for name in SETTINGS}
        there = self.mask if self.given is None else self.mask | self.given
        places = self.places
        return SequenceLog(
            tuple(
                SequenceRecord(
                    tokens=self.tokens[i][live],
                    engine_logprobs=self.engine_logprobs[i][live],
                    trainer_logprobs=self.trainer_logprobs[i][live],
                    weight_versions=self.weight_versions[i][live],
                    mask=None if self.given is None else self.mask[i][live],
                    prompt_tokens=self.prompts[i],
                    settings=settings,
                    places={name: values[i][live] for name, values in places.items()},
                )
                for i, live in enumerate(there)
            )
        )

    @property
    def table(self) -> TokenTable:
        """A table with a row for every sampled token, for `skewsim.fit_profile`, `skewsim.gate` and for a file."""
        engine, trainer = self.scenario.engine, self.scenario.trainer
        meta = {
            "dtype": engine.dtype,
            "head_dtype": engine.head_dtype,
            "trainer_dtype": trainer.dtype,
            "trainer_head_dtype": trainer.head_dtype,
            **{name: getattr(engine, name) for name in SETTINGS},
        }
        return TokenTable.from_rollouts(
            tokens=self.tokens,
            mask=self.mask,
            engine_logprobs=self.engine_logprobs,
            trainer_logprobs=self.trainer_logprobs,
            weight_versions=self.weight_versions,
            sampler_logprobs=self.sampler_logprobs,
            kept_mass=self.kept_mass,
            prompt_ids=self.prompt_ids,
            square_mass=self.square_mass,
            places=self.places,
            meta=meta,
        )


def look_at(policy: Policy, rollouts: Rollouts, scenario: Scenario, *, step: int = 0, member: int = 0) -> Look:
    """Score a member's rollout under these weights and compute its rewards and advantages by ``scenario``.

    ``scenario.trainer.num_generations`` must be the rollout's number of responses to each prompt. Needs torch.
    """
    import torch

    from skewsim.learn.scoring import grade, old_routes, score_rollouts
    from skewsim.model.dropout import Dropout
    from skewsim.task import Task

    with torch.no_grad():
        dropout = Dropout.of(scenario.trainer.dropout, range(len(policy.flat)), step)
        replayed = old_routes(rollouts, scenario)
        scored = score_rollouts(policy, rollouts, scenario, dropout=dropout, replayed=replayed)
        scores = Task(scenario.task).score(rollouts.prompt_ids, rollouts.tokens, rollouts.mask)
        return take(rollouts, scored, grade(scores, rollouts.mask, scenario), scenario, step=step, member=member)


def take(
    rollouts: Rollouts,
    scored: Scored,
    graded: Graded,
    scenario: Scenario,
    *,
    step: int,
    member: int = 0,
    reference_logprobs: Tensor | None = None,
) -> Look:
    """One member's part of a rollout that already has its scores, rewards and advantages."""

    def floats(tensor: Tensor) -> Any:
        return tensor[member].detach().cpu().double().numpy()

    def ints(tensor: Tensor) -> Any:
        return tensor[member].cpu().long().numpy()

    def known(tensor: Tensor | None) -> Any:
        return None if tensor is None else floats(tensor)

    differ = None
    if rollouts.routed_experts is not None and scored.routed_experts is not None:
        from skewsim.learn.routing import decisions_differ

        differ = decisions_differ(scored.routed_experts, rollouts.routed_experts, rollouts.mask.shape[2])
    return Look(
        step=step,
        scenario=scenario,
        prompt_ids=ints(rollouts.prompt_ids),
        prompts=ints(rollouts.prompts),
        tokens=ints(rollouts.tokens),
        mask=floats(rollouts.mask) > 0,
        engine_logprobs=floats(rollouts.engine_logprobs),
        trainer_logprobs=floats(scored.logprobs),
        square_mass=floats(scored.square_mass),
        weight_versions=ints(rollouts.weight_versions),
        rewards=floats(graded.rewards),
        advantages=floats(graded.advantages),
        reference_logprobs=known(reference_logprobs),
        sampler_logprobs=known(rollouts.sampler_logprobs),
        kept_mass=known(rollouts.kept_mass),
        given=None if rollouts.given is None else ints(rollouts.given) > 0,
        replicas=None if rollouts.replicas is None else ints(rollouts.replicas),
        routes_differ=None if differ is None else ints(differ.sum(-1)),
    )
