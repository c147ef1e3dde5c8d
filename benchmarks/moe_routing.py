"""Routing's part of the skew of a mixture of experts, what replay takes away, and GRPO with and without: Markdown.

    python benchmarks/moe_routing.py [--seeds 5] [--steps 30] [--prompts 64]

--prompts 0 leaves out the first table.

First table: one rollout per seed of the shipped mixture under an engine that computes in less than float32, scored by a
float32 trainer four ways on the same tokens: by its own routes; replaying the engine's (R3); and, as the floor, both
sides with the trainer's routes, so that only rounding is left. Routing's part is own minus floor.
Second table: training by GRPO over all seeds under common random numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skewsim.engine.rollouts import RolloutRequest
from skewsim.engine.simulated import SimEngine
from skewsim.learn.base_policy import starting_policy
from skewsim.learn.routing import decisions_differ, routing_metrics
from skewsim.learn.scoring import score
from skewsim.records import StepRecord
from skewsim.runs.ensemble import Ensemble
from skewsim.settings import Scenario
from skewsim.task import Task

ALONE: dict[str, Any] = {"policy": "base_moe", "engine.lag": 0, "engine.update_at_token": None}
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "router float16": {"engine.moe_router_dtype": "float16"},
    "router bfloat16": {"engine.moe_router_dtype": "bfloat16"},
    "float16": {"engine.dtype": "float16"},
    "bfloat16": {"engine.dtype": "bfloat16"},
    "bfloat16, router float32": {"engine.dtype": "bfloat16", "engine.moe_router_dtype": "float32"},
    "bfloat16, weights fp8": {"engine.dtype": "bfloat16", "engine.quantization": "fp8"},
}
R3: dict[str, Any] = {"engine.enable_return_routed_experts": True, "trainer.router_replay": "R3"}
BF16: dict[str, Any] = {"engine.dtype": "bfloat16"}
RUNS: dict[str, dict[str, Any]] = {
    "float32 engine": {},
    "bfloat16 engine": BF16,
    "the same, R2": BF16 | {"trainer.router_replay": "R2"},
    "the same, R3": BF16 | R3,
    "R3, routes shifted": BF16 | R3 | {"engine.routed_experts_fault": "shifted"},
}


def rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def k3(skew: Tensor) -> float:
    """Mean of exp(d) - d - 1."""
    wide = skew.double()
    return float((wide.exp() - wide - 1).mean())


def measured(scenario: Scenario, *, seeds: tuple[int, ...], prompts: int) -> dict[str, float]:
    """The first table's numbers of one precision, over all seeds' rollouts."""
    task, engine, start = Task(scenario.task), SimEngine(), starting_policy(scenario)
    policy, settings = start.stacked(len(seeds)), scenario.engine
    engine.start(scenario, policy, version=0)
    ids = task.sample_prompts(seeds, step=0, num_prompts=prompts)
    made = engine.generate(RolloutRequest(0, seeds, ids, task.pool[ids], 8, task.max_tokens))
    exact, rough = policy.weights(dtype="float32", head_dtype="float32"), engine.served
    with torch.no_grad():
        how = {"group": 8, "temperature": settings.temperature}
        own = score(exact, made, **how)
        replayed = score(exact, made, **how, replayed=made.true_routes)
        floor = score(rough, made, **how, replayed=own.routed_experts)
    assert own.routed_experts is not None
    assert made.true_routes is not None
    differ = decisions_differ(own.routed_experts, made.true_routes, task.max_tokens)
    skew, least = own.logprobs - made.engine_logprobs, own.logprobs - floor.logprobs
    after = replayed.logprobs - made.engine_logprobs
    part = rms(skew) ** 2 - rms(least) ** 2
    found = {key: float(value.nanmean()) for key, value in routing_metrics(differ, skew, made.mask).items()}
    return found | {
        "rms": rms(skew),
        "k3": k3(skew),
        "r3": rms(after),
        "k3_r3": k3(after),
        "floor": rms(least),
        "taken": (rms(skew) ** 2 - rms(after) ** 2) / part if part > 1e-10 else float("nan"),
    }


def first_table(seeds: tuple[int, ...], prompts: int) -> Iterator[str]:
    yield "| engine | decisions differ | tokens differ | rms where they differ | elsewhere | their share of the square | rms | with R3 | rounding alone | k3 | with R3 | of routing's part R3 takes |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for name, values in PRECISIONS.items():
        m = measured(Scenario().with_values(ALONE | values | {"task.pool_size": 4096}), seeds=seeds, prompts=prompts)
        cells = [f"{m[f'routing/{key}']:.2%}" for key in ("decisions_differ", "tokens_differ")]
        cells += [f"{m[f'routing/{key}']:.2g}" for key in ("rms_differ", "rms_same")]
        cells += [f"{m['routing/skew_share']:.0%}", *(f"{m[key]:.2g}" for key in ("rms", "r3", "floor", "k3", "k3_r3"))]
        cells.append(f"{m['taken']:.0%}")
        yield f"| {name} | " + " | ".join(cells).replace("nan%", "").replace("nan", "") + " |"


def second_table(seeds: tuple[int, ...], steps: int) -> Iterator[str]:
    yield "| run | reward at the end | its spread over seeds | k3 | tokens differ | spread of the update ratio | clip rate | gradient norm |"
    yield "|---|---|---|---|---|---|---|---|"
    scenarios = [
        Scenario().with_values(ALONE | {"steps": steps, "name": f"run{number}"} | values)
        for number, values in enumerate(RUNS.values())
    ]
    ensemble = Ensemble(scenarios, seeds=seeds)
    records: list[StepRecord] = []
    while ensemble.alive:
        records += ensemble.step()
    for number, name in enumerate(RUNS):
        mine = [r for r in records if r.scenario == f"run{number}"]
        late = [r for r in mine if r.step >= steps - max(steps // 10, 1)]
        by_seed = [np.mean([r.metrics["reward/mean"] for r in late if r.seed == seed]) for seed in seeds]
        keys = ("skew/kl_k3", "routing/tokens_differ", "update/ratio_std", "update/clip_rate", "optim/grad_norm")
        means = [np.mean([r.metrics[key] or 0.0 for r in mine]) for key in keys]
        cells = [
            f"{np.mean(by_seed):.3f}",
            f"{np.std(by_seed, ddof=1):.3f}" if len(seeds) > 1 else "",
            f"{means[0]:.2g}",
        ]
        yield f"| {name} | " + " | ".join([*cells, f"{means[1]:.2%}", *(f"{x:.3g}" for x in means[2:])]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("seeds", 5), ("steps", 30), ("prompts", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    seeds = tuple(range(given.seeds))
    if given.prompts:
        print("\n".join(first_table(seeds, given.prompts)), flush=True)
        print()
    print("\n".join(second_table(seeds, given.steps)), flush=True)


if __name__ == "__main__":
    main()
