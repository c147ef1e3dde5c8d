"""The memory that a training step takes, estimated before any of it is allocated.

The estimate counts what is sure to be held at once: the weights of all members with their optimiser's moments, older
versions and gradients, what the backward pass of a minibatch keeps, and the logprobs of the whole vocabulary at every
token. Which of these there are follows from the code of a step; how many times each is held (8 times the hidden size, 5
times the intermediate one, 5 times the logprobs, and so on) was chosen such that the estimate stays just below the rise
of the peak resident memory over steps of eight shapes: it is 0.65 to 1.0 of those, so that what fits is not refused.
`tests/skewsim/test_machine.py` compares it with a measured peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skewsim.errors import UserError
from skewsim.learn.base_policy import starting_config
from skewsim.machine import free_memory, size
from skewsim.model.policy import PolicyConfig
from skewsim.settings import Scenario
from skewsim.task import Task

FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class StepSize:
    """What decides how much memory a step takes."""

    config: PolicyConfig
    members: int
    num_prompts: int
    num_generations: int
    num_minibatches: int
    lag: int
    prompt_tokens: int
    tokens: int
    """Of a response."""

    @classmethod
    def of(cls, scenario: Scenario, config: PolicyConfig, task: Task, *, members: int) -> StepSize:
        trainer = scenario.trainer
        return cls(
            config,
            members,
            trainer.num_prompts,
            trainer.num_generations,
            trainer.num_minibatches,
            scenario.engine.lag,
            task.pool.shape[1],
            task.max_tokens,
        )

    @classmethod
    def before(cls, scenario: Scenario, *, members: int) -> StepSize:
        """The same before anything is loaded. Raises UserError for a policy that is not there."""
        return cls.of(scenario, starting_config(scenario), Task(scenario.task), members=members)

    @property
    def bytes(self) -> int:
        return FLOAT * self.members * (self._weights + self._pass + self._logprobs) + self._mask

    @property
    def state(self) -> int:
        """Bytes of what is kept from step to step, and of a checkpoint: weights, two moments, the engine's weights, and
        a version for each step of lag beside the newest."""
        return FLOAT * self.members * self.config.num_parameters() * (5 + self.lag)

    @property
    def _weights(self) -> int:
        """Numbers of a member's weights: its own, two moments, the engine's, two of gradients, and every version."""
        return self.config.num_parameters() * (7 + self.lag)

    @property
    def _rows(self) -> int:
        """Rows of a prompt and all responses to it."""
        return self.prompt_tokens + self.num_generations * (self.tokens - 1)

    @property
    def _pass(self) -> int:
        """Numbers that a layer's backward pass needs of every row, of all layers."""
        c = self.config
        qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
        row = 8 * c.hidden_size + 2 * qkv + c.mlp_numbers
        return c.num_hidden_layers * row * self._rows * math.ceil(self.num_prompts / self.num_minibatches)

    @property
    def _logprobs(self) -> int:
        return 5 * self.num_prompts * self.num_generations * self.tokens * self.config.vocab_size

    @property
    def _mask(self) -> int:
        """Bytes of the mask by which each row sees others, as a truth and as a number."""
        return self._rows**2 * (1 + FLOAT)


SETTINGS = {
    "seeds": ("members", 1),
    "trainer.num_prompts": ("num_prompts", 8),
    "trainer.num_generations": ("num_generations", 8),
    "engine.lag": ("lag", 8),
}
"""Setting -> the field of a step that it decides, and a usual value."""


def together(steps: Sequence[StepSize]) -> int:
    """Bytes of trainers of which one is at a step at a time, and all keep their states."""
    return sum(step.state for step in steps) + max(step.bytes - step.state for step in steps)


def check_memory(steps: Sequence[StepSize], free: int | None) -> None:
    """UserError that names the setting which is furthest above its usual value, and what fits, if a step of trainers
    that are there at once is too large for `free` bytes."""
    need = together(steps)
    if free is None or need <= free:
        return
    step = max(steps, key=lambda each: each.bytes)
    path = max(SETTINGS, key=lambda name: getattr(step, SETTINGS[name][0]) / SETTINGS[name][1])
    field = SETTINGS[path][0]
    value = getattr(step, field)
    change: Any = replace  # its argument has the name of a field
    fits = most(value, lambda n: together([change(each, **{field: n}) for each in steps]) <= free)
    raise UserError(
        f"{path}={value}: a step takes about {size(need)} of memory, and {size(free)} are free; allowed: "
        + (f"with the other settings at most {fits}" if fits else "a smaller policy, or smaller settings")
    )


def most(value: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `value` that fits, if every smaller one does; 0 if not even 1 does."""
    low, high = 0, value
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def free_on(device: str) -> int | None:
    """Bytes that are free on the device."""
    if device == "cpu":
        return free_memory()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])
