"""The base policies that training starts from, and how `skewsim pretrain` makes them.

A base policy is trained by teacher forcing on right answers (each digit as a random synonym) of eight lengths up to L,
until it solves half of the held-out prompts of length L: it then earns rewards and still has something to learn. One is
shipped for each task and L in 12, 32, 64, and a mixture of experts for L = 12; a scenario starts from the shortest that
covers its length. Two layers cannot
learn `reverse` with 64 digits: a third of the positions are right and no whole answer is, so train such a scenario with
task.reward="partial".

The result depends only on the seed, on one machine with one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from skewsim.errors import UserError
from skewsim.learn.offset import offset_logits
from skewsim.learn.scoring import response_logits
from skewsim.model.experts import Routes
from skewsim.model.policy import Policy, PolicyConfig, cast_weights, folder_config
from skewsim.seeding import Purpose, generator
from skewsim.settings import Scenario, TaskSettings
from skewsim.task import ANSWER, EOS, SYNONYMS, VOCAB, Task, answers_of, prompts_of, spelled

SHIPPED_LENGTHS = (12, 32, 64)
SHIPPED_MOE = (12,)
"""Lengths for which a mixture of experts is shipped."""
SOLVED = 0.5
TEMPERATURE = 0.8
BATCH = 48
HARD = 32
"""Most digits for which a policy of this size learns to solve half of the prompts; beyond, few answers are right."""
BALANCE = 0.01
"""Factor of a mixture's load-balancing loss, without which some experts are never chosen."""
CHECK_EVERY = 20
HELD_OUT = 256


def starting_policy(scenario: Scenario) -> Policy:
    """The one-member policy that a scenario starts from.

    Raises UserError if it is missing or does not fit the task, or if the scenario's device is not there.
    """
    check_device(scenario.device)
    policy = _chosen_policy(scenario)
    return offset_logits(policy, Task(scenario.task), scenario.logit_offset) if scenario.logit_offset else policy


def starting_config(scenario: Scenario) -> PolicyConfig:
    """The shape of the policy that a scenario starts from; its weights are not read. Raises UserError."""
    if scenario.policy == "random":
        return PolicyConfig()
    return folder_config(_folder(scenario))


def _folder(scenario: Scenario) -> Path:
    shipped = SHIPPED.get(scenario.policy)
    return Path(scenario.policy) if shipped is None else shipped(scenario.task)


def _chosen_policy(scenario: Scenario) -> Policy:
    if scenario.policy == "random":
        stream = generator(0, step=0, purpose=Purpose.POLICY)
        return Policy.random(PolicyConfig(), generator=stream)
    policy = Policy.load(_folder(scenario))
    if policy.config.vocab_size < VOCAB:
        raise UserError(f"policy={scenario.policy!r}: vocab_size={policy.config.vocab_size}; the tasks need {VOCAB}")
    return policy


def check_device(name: str) -> None:
    """UserError unless this machine has the device (cpu, cuda or cuda:N)."""
    kind, _, number = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" and torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= count:
        there = f"{count} CUDA devices" if count else "no CUDA device"
        raise UserError(f"device={name}: torch {torch.__version__} finds {there} here; allowed: cpu")


def shipped_folder(task: TaskSettings) -> Path:
    """The Hugging Face folder of the base policy shipped for a task and length.

    Two turns are answered by a policy for `reverse`: the one for 12 digits while both turns together are as short as
    those, else the one for 64, which has seen positions as late as a second turn's.
    """
    length = next(n for n in SHIPPED_LENGTHS if n >= task.response_length)
    name = task.name
    if name == "two_turns":
        name, length = "reverse", SHIPPED_LENGTHS[0] if 2 * task.response_length <= SHIPPED_LENGTHS[0] else 64
    return Path(str(resources.files("skewsim") / "data" / "policies" / f"{name}-{length}"))


def shipped_mixture(task: TaskSettings) -> Path:
    """The Hugging Face folder of the mixture of experts shipped for a task and length. Raises UserError if none is."""
    if task.name == "two_turns" or task.response_length > SHIPPED_MOE[-1]:
        raise UserError(
            f"policy='base_moe': none is shipped for task.name={task.name} with "
            f"task.response_length={task.response_length}; allowed: reverse and reverse_until_zero, at most {SHIPPED_MOE[-1]}"
        )
    return Path(str(resources.files("skewsim") / "data" / "policies" / f"{task.name}-moe-{SHIPPED_MOE[-1]}"))


SHIPPED = {"base": shipped_folder, "base_moe": shipped_mixture}
"""Values of `policy` that stand for a shipped policy -> its folder for a task."""


def model_folder(model: Path | str) -> Path:
    """A model's folder, where ``base`` and ``base_moe`` stand for what is shipped for the first task."""
    shipped = SHIPPED.get(str(model))
    return Path(model) if shipped is None else shipped(TaskSettings())


@dataclass(frozen=True)
class PretrainProgress:
    """The state of pretraining; `solved` is the share of held-out prompts answered right at temperature 0.8."""

    step: int
    loss: float
    solved: float
    policy: Policy


def pretrain(
    task: TaskSettings, *, seed: int = 0, max_steps: int = 1600, config: PolicyConfig | None = None
) -> Iterator[PretrainProgress]:
    """Train a base policy for answers of up to `task.response_length` tokens; the last item's policy is the result.

    config: its shape; None: the dense policy's.
    """
    stream = generator(seed, step=0, purpose=Purpose.PRETRAIN)
    variable = task.name == "reverse_until_zero"
    longest = task.response_length
    shortest = 1 if longest <= HARD else 5  # two layers do not learn short and very long answers at once
    lengths = sorted({max(4, longest * eighth // 8) for eighth in range(shortest, 9)})
    policy = Policy.random(config or PolicyConfig(), generator=stream)
    flat = policy.flat.requires_grad_()
    optimizer = torch.optim.AdamW([flat], lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    held_out = torch.randint(10, (1, HELD_OUT, longest), generator=stream)
    for step in range(1, max_steps + 1):
        length = lengths[int(torch.randint(len(lengths), (1,), generator=stream))]
        digits = torch.randint(10, (1, BATCH, length), generator=stream)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, step / 50)
        loss = _loss(policy, digits, variable=variable, stream=stream)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0:
            share = solved(policy, held_out, variable=variable)
            yield PretrainProgress(step, float(loss.detach()), share, Policy(policy.config, flat.detach().clone()))
            if share >= SOLVED:
                return


def _loss(policy: Policy, digits: Tensor, *, variable: bool, stream: torch.Generator) -> Tensor:
    """Mean negative logprob of right answers, with each digit written as a random synonym; and a mixture's balance."""
    answers = answers_of(digits, variable=variable)
    synonyms = torch.randint(SYNONYMS, answers.shape, generator=stream)
    tokens = spelled(answers, synonyms)
    routes = Routes()
    logprobs = _logits(policy, digits, tokens, routes).log_softmax(-1)
    due = answers >= 0
    loss = -logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)[due].mean()
    return loss + BALANCE * routes.balance_loss.sum() if routes.layers else loss


def solved(policy: Policy, digits: Tensor, *, variable: bool) -> float:
    """Expected share of prompts (1, N, n) answered exactly right at temperature 0.8; any synonym is right."""
    answers = answers_of(digits, variable=variable)
    with torch.no_grad():
        logits = _logits(policy, digits, spelled(answers, torch.zeros_like(answers)))
    probs = (logits / TEMPERATURE).softmax(-1)
    by_digit = probs[..., ANSWER : ANSWER + 10 * SYNONYMS].unflatten(-1, (10, SYNONYMS)).sum(-1)
    right = torch.cat([by_digit, probs[..., EOS : EOS + 1]], -1).gather(-1, answers.clamp_min(0).unsqueeze(-1))
    return float(torch.where(answers >= 0, right.squeeze(-1), 1.0).prod(-1).mean())


def _logits(policy: Policy, digits: Tensor, tokens: Tensor, routes: Routes | None = None) -> Tensor:
    weights = cast_weights(policy.config, policy.config.views(policy.flat), dtype="float32", head_dtype="float32")
    return response_logits(weights, prompts_of(digits), tokens, group=1, routes=routes)
