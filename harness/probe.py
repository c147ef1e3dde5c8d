"""A ten-second check of whether an installed engine works: a tiny random Llama is sampled from, scored and updated.

The reference is the simulator's own forward pass on the same weights, in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from harness.choices import LocalChoice
from harness.session import EngineSession
from harness.vllm_engine import VllmEngine
from skewsim.engine.rollouts import RolloutRequest, Rollouts, WeightUpdate
from skewsim.errors import SkewsimError
from skewsim.learn.look import look_at
from skewsim.model.policy import Policy, PolicyConfig
from skewsim.settings import Scenario
from skewsim.task import Task

NUMERIC_FLOOR = 1e-4
"""Mean absolute difference in nats above which two sides disagree in float32; engines that work are at 1e-6."""
GROUP = 2


@dataclass(frozen=True)
class Found:
    """One thing that was tried."""

    what: str
    works: bool
    facts: dict[str, Any]
    """What it told of the engine on the way."""


@dataclass(frozen=True)
class EngineCheck:
    """What a check found."""

    name: str
    works: dict[str, bool]
    """Each thing that was tried, and whether it works."""
    info: dict[str, Any]
    """What the engine said of itself: versions, and the defaults that it chose."""
    seconds: float
    settings: dict[str, Any]
    """What this version has of the settings that not every version has: name -> bool, or the values there are."""
    problem: str | None = None
    """The error that ended the check, if one did."""

    @property
    def ok(self) -> bool:
        return self.problem is None and all(self.works.values())


def check_engine(engine: LocalChoice, *, progress: Callable[[str], None] | None = None) -> EngineCheck:
    """Start the engine, try what skewsim needs of it and say what works. Raises EngineNotInstalled."""
    engine.require()
    started = time.monotonic()
    works: dict[str, bool] = {}
    info: dict[str, Any] = {}
    problem = None
    try:
        for found in _probe(engine):
            works[found.what] = found.works
            info |= found.facts
            if progress:
                progress(f"{found.what}: {'works' if found.works else 'does not work'}")
    except SkewsimError as error:
        problem = str(error)
    return EngineCheck(engine.name, works, info, round(time.monotonic() - started, 1), engine.spec.settings(), problem)


def _probe(choice: LocalChoice) -> Iterator[Found]:
    """Start, generate, read back, score, update in flight."""
    mode = "processed_logprobs" if "processed_logprobs" in choice.spec.logprobs_modes else "raw_logprobs"
    values = {"engine.temperature": 1.0, "engine.logprobs_mode": mode, "trainer.num_generations": GROUP}
    scenario = Scenario().with_values(values)
    task = Task(scenario.task)
    before, after = (Policy.random(PolicyConfig(), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    engine = VllmEngine(choice)
    try:
        engine.start(scenario, before, version=0)
        yield Found("start", True, engine.info)
        rollouts = engine.generate(_request(task, step=0))
        skew = _mean_skew(rollouts, before, scenario)
        yield Found("logprobs agree with the trainer in float32", skew < NUMERIC_FLOOR, {"probe_mean_abs_skew": skew})
        prefill = _prefill_gap(engine, rollouts)
        yield Found(
            "given tokens score the same on the prefill path", prefill < NUMERIC_FLOOR, {"probe_prefill": prefill}
        )
        rollouts = engine.generate(_request(task, step=1, update=WeightUpdate(after.flat, 1)))
        versions = rollouts.weight_versions[0, 0].tolist()
        yield Found("weight update in mid-generation", versions == [0] * 6 + [1] * (task.max_tokens - 6), {})
        skew = _mean_skew(engine.generate(_request(task, step=2)), after, scenario)
        yield Found("the new weights are the trainer's", skew < NUMERIC_FLOOR, {})
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
    """Mean absolute difference between what sampling reported, at temperature 1, and `prompt_logprobs`; nats."""
    assert isinstance(engine.session, EngineSession)
    whole = torch.cat([rollouts.prompts[0], rollouts.tokens[0]], dim=1).tolist()
    scored = torch.tensor([row[-rollouts.tokens.shape[-1] :] for row in engine.session.score(whole)])
    return float((scored - rollouts.engine_logprobs[0]).abs().mean())


def _mean_skew(rollouts: Rollouts, policy: Policy, scenario: Scenario) -> float:
    return float(abs(look_at(policy, rollouts, scenario).table.skew).mean())
