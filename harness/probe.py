"""A ten-second look at whether an installed engine works: a tiny random Llama, sampled, scored, updated.

Yields (what was tried, whether it works, facts found on the way). The reference is the simulator's own forward pass on
the same weights, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from harness.engines import EngineSpec
from harness.session import EngineSession
from harness.vllm_engine import VllmEngine
from skewsim.engine.rollouts import RolloutRequest, Rollouts, WeightUpdate
from skewsim.learn.look import look_at
from skewsim.model.policy import Policy, PolicyConfig
from skewsim.settings import Scenario
from skewsim.task import Task

NUMERIC_FLOOR = 1e-4  # nats, mean; float32 engines are at 1e-6
GROUP = 2

Found = tuple[str, bool, dict[str, Any]]


def probe(spec: EngineSpec, *, root: Path | str | None = None) -> Iterator[Found]:
    """Start, generate, read back, score, update in flight."""
    mode = "processed_logprobs" if "processed_logprobs" in spec.logprobs_modes else "raw_logprobs"
    values = {"engine.temperature": 1.0, "engine.logprobs_mode": mode, "trainer.num_generations": GROUP}
    scenario = Scenario().with_values(values)
    task = Task(scenario.task)
    before, after = (Policy.random(PolicyConfig(), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    engine = VllmEngine(spec, root=root)
    try:
        engine.start(scenario, before, version=0)
        yield "start", True, engine.info
        rollouts = engine.generate(_request(task, step=0))
        skew = _mean_skew(rollouts, before, scenario)
        yield "logprobs agree with the trainer in float32", skew < NUMERIC_FLOOR, {"probe_mean_abs_skew": skew}
        prefill = _prefill_gap(engine, rollouts)
        yield "given tokens score the same on the prefill path", prefill < NUMERIC_FLOOR, {"probe_prefill": prefill}
        rollouts = engine.generate(_request(task, step=1, update=WeightUpdate(after.flat, 1)))
        versions = rollouts.weight_versions[0, 0].tolist()
        yield "weight update in mid-generation", versions == [0] * 6 + [1] * (task.max_tokens - 6), {}
        skew = _mean_skew(engine.generate(_request(task, step=2)), after, scenario)
        yield "the new weights are the trainer's", skew < NUMERIC_FLOOR, {}
    finally:
        engine.close()


def _request(task: Task, *, step: int, update: WeightUpdate | None = None) -> RolloutRequest:
    ids = task.sample_prompts((0,), step=step, num_prompts=8)
    return RolloutRequest(
        step=step,
        seeds=(0,),
        prompt_ids=ids,
        prompts=task.pool[ids],
        num_generations=GROUP,
        max_tokens=task.max_tokens,
        update=update,
        update_at=6 if update else 0,
    )


def _prefill_gap(engine: VllmEngine, rollouts: Rollouts) -> float:
    """Mean absolute difference between what sampling reported (at temperature 1) and `prompt_logprobs`."""
    assert isinstance(engine.session, EngineSession)
    whole = torch.cat([rollouts.prompts[0], rollouts.tokens[0]], dim=1).tolist()
    scored = torch.tensor([row[-rollouts.tokens.shape[-1] :] for row in engine.session.score(whole)])
    return float((scored - rollouts.engine_logprobs[0]).abs().mean())


def _mean_skew(rollouts: Rollouts, policy: Policy, scenario: Scenario) -> float:
    return float(abs(look_at(policy, rollouts, scenario).table.skew).mean())
