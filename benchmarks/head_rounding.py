"""How large the base policies' logits are, and what a bfloat16 lm_head alone does to their log-probabilities.

    python benchmarks/head_rounding.py

Prints a table beside SmolLM2-135M's figures. The hidden states are those of right answers to the task's first prompts.
"""

from __future__ import annotations

import torch

from skewsim.learn.base_policy import starting_policy
from skewsim.learn.offset import answer_states
from skewsim.settings import Scenario
from skewsim.task import Task

OFFSETS = (0, 4, 8, 12, 16, 24)
SMOLLM2 = "| SmolLM2-135M | - | 7 | - | 24 | - | 0.04 |"


def row(task: str, offset: float) -> str:
    """One policy: its logits, the share of sampled tokens with a logit in [16, 32), and the rms of the rounding."""
    scenario = Scenario().with_values({"task.name": task, "logit_offset": offset})
    policy = starting_policy(scenario)
    states = answer_states(policy, Task(scenario.task))
    head = policy.config.views(policy.flat)["lm_head"][0]
    logits = states.double() @ head.double().T
    rounded = (states.bfloat16() @ head.bfloat16().T).double()
    exact = logits.log_softmax(-1)
    chance = exact.exp()
    error = rounded.log_softmax(-1) - exact
    inside = (chance * ((logits >= 16) & (logits < 32))).sum(-1).mean()
    rms = (chance * error.square()).sum(-1).mean().sqrt()
    likely = (chance * logits).sum(-1).mean()
    return f"| {task} | {offset} | {logits.mean():.1f} | {likely:.1f} | {logits.max():.1f} | {inside:.2f} | {rms:.4f} |"


def main() -> None:
    torch.set_num_threads(1)
    print(
        "| policy | logit_offset | logits' mean | of sampled tokens | largest | sampled in [16, 32) | rms of the rounding |"
    )
    print("|---|---|---|---|---|---|---|")
    for task in ("reverse", "reverse_until_zero"):
        for offset in OFFSETS:
            print(row(task, offset))
    print(SMOLLM2)


if __name__ == "__main__":
    main()
