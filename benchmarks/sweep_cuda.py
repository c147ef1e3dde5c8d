"""The ensemble on a GPU, all in one run: its numbers against the CPU's, its speed, and a whole sweep there.

    python benchmarks/sweep_cuda.py [--device cuda] [--steps N]

For each scenario, 8 members are trained on both devices from the same seeds. The first rollout is compared token by
token, then the records. The random numbers are the CPU's on both, so that tokens differ only where rounding moves a
cumulative probability across a draw; from there on the two runs part, as any two processors' do. Within its bounds a
scenario "agrees"; else the exit code is 1. Without a GPU it says so in one line, exit code 2. ``--device cpu`` compares
the CPU with itself: a rehearsal of everything but the GPU.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from skewsim.learn.trainer import Trainer
from skewsim.scenarios import find_scenario
from skewsim.settings import Scenario
from skewsim.sweeps.chunk import LARGEST, LARGEST_ON_GPU
from skewsim.sweeps.map import load_map
from skewsim.sweeps.plan import SweepSettings, make_sweep
from skewsim.sweeps.processes import in_this_process
from skewsim.sweeps.runner import run_sweep

SCENARIOS: dict[str, dict[str, Any]] = {
    "v0_reference": {},
    "initial_v1": {},
    "GSPO, lag 3": {"trainer.objective": "gspo", "engine.lag": 3},
    "top-p .9": {"engine.top_p": 0.9},
    "noise of a normal law": {"skew.noise": "normal", "skew.scale": 0.05},
    "mixture of experts": {"policy": "base_moe"},
    "KL penalty": {"trainer.beta": 0.1},
}
TOKENS, LOGPROBS, RELATIVE = 0.995, 2e-4, 0.02
"""Bounds: share of the first rollout's tokens that are equal; their logprobs' largest difference in nats, where a
sequence is equal up to there; relative difference of the first step's entropy and gradient norm."""


def main() -> int:
    parser = argparse.ArgumentParser(description="The ensemble on a GPU against the CPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device is here: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    agree = [compared(name, values, given.device, given.steps) for name, values in SCENARIOS.items()]
    speeds(given.device)
    whole_sweep(given.device)
    print("all agree" if all(agree) else "NOT all agree")
    return 0 if all(agree) else 1


def scenario_of(name: str, values: dict[str, Any], device: str) -> Scenario:
    base = find_scenario(name if not values and " " not in name else "v0_reference")
    return base.with_values({**values, "device": device})


def compared(name: str, values: dict[str, Any], device: str, steps: int) -> bool:
    """Train on both devices and print how far they are apart."""
    here, there = (Trainer(scenario_of(name, values, d), seeds=range(8)) for d in ("cpu", device))
    first = here.step(), there.step()
    ours, theirs = (trainer.looking().__self__ for trainer in (here, there))  # the step just done, all members
    equal = (ours.rollouts.tokens == theirs.rollouts.tokens.cpu()) & (ours.rollouts.mask > 0)
    share = float(equal.sum() / ours.rollouts.mask.sum())
    same_so_far = equal.cumprod(-1).bool()
    apart = 0.0
    for a, b in (
        (ours.scored.logprobs, theirs.scored.logprobs),
        (ours.rollouts.engine_logprobs, theirs.rollouts.engine_logprobs),
    ):
        apart = max(apart, float((a - b.cpu()).abs()[same_so_far].max()))
    relative = max(
        abs(a.metrics[key] - b.metrics[key]) / max(abs(a.metrics[key]), 1e-9)
        for a, b in zip(*first, strict=True)
        for key in ("policy/entropy", "optim/grad_norm")
    )
    for _ in range(steps - 1):
        last = here.step(), there.step()
    reward = [statistics.fmean(row.metrics["reward/mean"] for row in rows) for rows in last]
    found = share >= TOKENS and apart <= LOGPROBS and relative <= RELATIVE and all(map(math.isfinite, reward))
    print(
        f"{name}: {share:.2%} of tokens equal, logprobs at most {apart:.1e} apart, entropy and gradient norm "
        f"{relative:.1e}; reward after {steps} steps {reward[0]:.3f} and {reward[1]:.3f}: "
        + ("agrees" if found else "DIFFERS"),
        flush=True,
    )
    return found


def speeds(device: str) -> None:
    """A member's step by the size of the stack, by wall time, on both devices."""
    largest = LARGEST_ON_GPU if device != "cpu" else LARGEST
    for size in (n for n in (1, 4, LARGEST, 64, LARGEST_ON_GPU) if n <= largest):
        each = " and ".join(
            f"{seconds_of(size, d) / size * 1e3:.2f} ms on {d}"
            for d in dict.fromkeys(("cpu", device))
            if d != "cpu" or size <= LARGEST
        )
        print(f"a member's step in a stack of {size}: {each}", flush=True)


def seconds_of(size: int, device: str) -> float:
    trainer = Trainer(find_scenario("v0_reference").with_values({"device": device}), seeds=range(size))
    times = []
    for _ in range(6):
        began = time.perf_counter()
        trainer.step()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def whole_sweep(device: str) -> None:
    """A sweep with every member there, stopped half way and resumed."""
    axis = {"path": "trainer.learning_rate", "values": [1e-4, 1e-2]}
    data = {"scenario": "v0_reference", "axis": [axis], "seeds": 24, "steps": 3, "set": {"device": device}}
    sweep = make_sweep(SweepSettings.model_validate(data))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep"
        running = run_sweep(sweep, path, in_this_process)
        for _ in range(2):
            next(running)
        running.close()
        for _ in run_sweep(sweep, path, in_this_process, resume=True):
            pass
        found = load_map(path)
    print(f"a sweep on {device}, stopped after its first chunk and resumed: {found.done} of {found.planned} members")


if __name__ == "__main__":
    sys.exit(main())
