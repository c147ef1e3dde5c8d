"""The interface between a trainer and a rollout engine: what the engine takes and what it returns.

Axes: E member, B prompts, G responses per prompt, N = B*G (prompt-major), P prompt, T response, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from skewsim.model.policy import Policy
from skewsim.settings import Scenario

FINISH_STOP, FINISH_LENGTH, FINISH_ABORT = range(3)


@dataclass(frozen=True)
class Rollouts:
    """What an engine returns. Logprobs in nats; tokens past the end are 0 and masked."""

    prompt_ids: Tensor
    """(E, N) index of each sequence's prompt in the task's pool."""
    prompts: Tensor
    """(E, N, P)."""
    tokens: Tensor
    """(E, N, T)."""
    mask: Tensor
    """(E, N, T) float, 1 where a token was sampled; 0 where the environment wrote it, and past the end."""
    engine_logprobs: Tensor
    """(E, N, T) the log-probabilities that the engine reports."""
    weight_versions: Tensor
    """(E, N, T) version of the weights that sampled the token, as the engine counts it."""
    finish_reasons: Tensor
    """(E, N) FINISH_STOP, FINISH_LENGTH or FINISH_ABORT."""
    sampler_logprobs: Tensor | None = None
    """(E, N, T) true log-probability under the distribution sampled from; None where only the engine knows."""
    kept_mass: Tensor | None = None
    """(E, N, T) probability that top-p, top-k and min-p leave; None if nothing was cut off."""
    support: Tensor | None = None
    """(E, N, T, V) bool, the tokens that top-p, top-k and min-p leave; None if nothing was cut off."""
    replicas: Tensor | None = None
    """(E, N) the copy of the engine that answered; None where there is one only."""
    routed_experts: Tensor | None = None
    """(E, N, P+T-1, L, k) the experts that each token of prompt and response but the last went to, as the engine
    returns them; None if it does not, or has none."""
    true_routes: Tensor | None = None
    """The same as they were; None where only the engine knows."""
    given: Tensor | None = None
    """(E, N, T) bool, the tokens that the environment wrote between two turns; None if the task has one turn."""


@dataclass(frozen=True)
class WeightUpdate:
    """New weights of all members, flat (E, D) as `Policy.flat`, and their version."""

    flat: Tensor
    version: int


@dataclass(frozen=True)
class RolloutRequest:
    """A request for one rollout: for each member B prompts, with G responses each."""

    step: int
    seeds: tuple[int, ...]
    prompt_ids: Tensor
    """(E, B)."""
    prompts: Tensor
    """(E, B, P)."""
    num_generations: int
    max_tokens: int
    update: WeightUpdate | None = None
    update_at: int = 0
    """Token boundary at which the update arrives: 0 is before the first token; at or past the end, after the last."""


class RolloutEngine(Protocol):
    """Anything that can make rollouts: the simulated engine, a vLLM process, a server."""

    def start(self, scenario: Scenario, policy: Policy, *, version: int) -> None:
        """Begin with these weights. Called again after a toggle; the engine then keeps its weights and caches."""

    def generate(self, request: RolloutRequest) -> Rollouts:
        """Sample the responses; the update, if there is one, takes effect in between."""

    def state(self) -> dict[str, Tensor]:
        """Everything that the next rollout depends on, for a checkpoint."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint; after start()."""

    def close(self) -> None:
        """Free processes, memory and connections."""
