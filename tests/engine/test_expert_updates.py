"""New weights of experts reach a real engine: its log-probabilities become those of the new weights.

CPU builds pack the experts of a mixture, and pad those whose size is no multiple of 32: both kinds are tried. Oracles:
the simulator's forward pass in float32, and an engine that was started with the new weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import torch
from torch import Tensor

from harness.engines import choose
from harness.vllm_engine import VllmEngine
from skewsim.engine.rollouts import RolloutRequest, Rollouts, WeightUpdate
from skewsim.learn.scoring import score
from skewsim.model.policy import MoEConfig, Policy
from skewsim.settings import Scenario
from skewsim.task import Task

pytestmark = pytest.mark.engine

GROUP, SWAP_AT, FLOOR = 4, 6, 1e-5
CHANGE = 0.3
"""The new weights' distance from the old ones, in standard deviations of the old."""


def policies(expert_size: int) -> tuple[Policy, Policy]:
    config = MoEConfig(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=expert_size)
    old = Policy.random(config, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(old.flat.shape, generator=torch.Generator().manual_seed(2))
    return old, Policy(config, old.flat + CHANGE * old.flat.std() * noise)


def scenario_of(dtype: str, *, clear_cache: bool = False) -> Scenario:
    return Scenario().with_values(
        {"engine.dtype": dtype, "engine.head_dtype": dtype, "engine.clear_cache": clear_cache}
    )


def asked(scenario: Scenario, step: int, new: Tensor | None = None) -> RolloutRequest:
    task = Task(scenario.task)
    ids = task.sample_prompts((0,), step=step, num_prompts=8)
    update = None if new is None else WeightUpdate(new, 1)
    at = 0 if new is None else SWAP_AT
    return RolloutRequest(step, (0,), ids, task.pool[ids], GROUP, task.max_tokens, update=update, update_at=at)


@contextmanager
def started(name: str, scenario: Scenario, policy: Policy) -> Iterator[VllmEngine]:
    with closing(VllmEngine(choose(name))) as engine:
        engine.start(scenario, policy, version=0)
        yield engine


def skew(rollouts: Rollouts, policy: Policy) -> Tensor:
    """Of sampled tokens (N, T), by the simulator's float32 forward pass; NaN where there is none."""
    weights = policy.weights(dtype="float32", head_dtype="float32")
    trainer = score(weights, rollouts, group=GROUP, temperature=0.8).logprobs
    return torch.where(rollouts.mask > 0, trainer - rollouts.engine_logprobs, torch.nan)[0]


def rms(skew: Tensor) -> float:
    return float(skew[~skew.isnan()].square().mean().sqrt())


@pytest.mark.parametrize("expert_size", [16, 32])
def test_float32_is_the_new_weights_from_the_update_on(engine_name: str, expert_size: int) -> None:
    old, new = policies(expert_size)
    with started(engine_name, scenario_of("float32"), old) as engine:
        for clear_cache, (before, after) in ((False, (old, new)), (True, (new, old))):
            scenario = scenario_of("float32", clear_cache=clear_cache)
            engine.start(scenario, before, version=0)
            swapped = engine.generate(asked(scenario, 0, after.flat))
            assert rms(skew(swapped, before)[:, :SWAP_AT]) < FLOOR
            assert (rms(skew(swapped, after)[:, SWAP_AT:]) < FLOOR) is clear_cache, "kept keys are the old weights'"
            assert rms(skew(engine.generate(asked(scenario, 1)), after)) < FLOOR


@pytest.mark.parametrize("expert_size", [16, 32])
def test_in_bfloat16_it_answers_as_one_that_was_started_with_the_new_weights(
    engine_name: str, expert_size: int
) -> None:
    (old, new), scenario = policies(expert_size), scenario_of("bfloat16", clear_cache=True)
    with started(engine_name, scenario, old) as engine:
        engine.generate(asked(scenario, 0, new.flat))
        updated = engine.generate(asked(scenario, 1))
    with started(engine_name, scenario, new) as engine:
        fresh = engine.generate(asked(scenario, 1))
    assert torch.equal(updated.tokens, fresh.tokens)
    assert torch.equal(updated.engine_logprobs, fresh.engine_logprobs)
