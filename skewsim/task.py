"""The tasks that the policy learns: prompts from a finite pool, and an exact rule that scores responses.

`reverse`: the prompt is ``BOS d_1 .. d_n SEP``; the answer is the digits backwards. Each digit may be written by any of
four synonym tokens, so that a correct policy can keep up to ``log 4`` nats of entropy per token.
`reverse_until_zero`: the same, but the answer stops before the first zero (read backwards) and ends with EOS, so that
answers vary in length.
`two_turns`: `reverse`; then the environment writes ``BOS e_1 .. e_n SEP``, which no loss is computed on; then the
answer is those digits backwards. The first half of the first answer counts as thinking, which a chat template may drop
from the history (`trainer.chat_template`).

Axes: E member, N sequence, P prompt token, T response token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from skewsim.seeding import Purpose, generator
from skewsim.settings import TaskSettings

PAD, BOS, EOS, SEP = range(4)
DIGIT = 4  # prompt tokens of the ten digits: DIGIT + d
ANSWER = 14  # answer tokens: ANSWER + SYNONYMS * d + s
SYNONYMS = 4
VOCAB = 64


@dataclass(frozen=True)
class Scores:
    """Rewards of a rollout, both (E, N) float32 in [0, 1]."""

    exact: Tensor
    partial: Tensor


class Task:
    """A task with its pool of prompts; equal settings give an equal task."""

    vocab_size = VOCAB

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings
        self.variable = settings.name == "reverse_until_zero"
        self.digits_per_prompt = settings.response_length
        self.prompt_length = settings.response_length + 2
        self.turns = 2 if settings.name == "two_turns" else 1
        self.environment_at = (self.digits_per_prompt, self.digits_per_prompt + (self.turns - 1) * self.prompt_length)
        """First response token that the environment writes, and the one after its last; equal in tasks of one turn."""
        self.max_tokens = self.environment_at[1] + (self.turns - 1) * self.digits_per_prompt + int(self.variable)
        self.thinking = self.digits_per_prompt // 2
        """How many tokens of the first of two turns count as thinking."""
        self.eos_id = EOS if self.variable else None

    @cached_property
    def digits(self) -> Tensor:
        """The pool's digits, (pool_size, n) int64."""
        rng = np.random.default_rng((self.settings.pool_seed, self.digits_per_prompt))
        return torch.from_numpy(rng.integers(0, 10, (self.settings.pool_size, self.digits_per_prompt)))

    @cached_property
    def later_digits(self) -> Tensor:
        """The digits that the environment asks for in the second turn, (pool_size, n) int64."""
        rng = np.random.default_rng((self.settings.pool_seed, self.digits_per_prompt, 2))
        return torch.from_numpy(rng.integers(0, 10, (self.settings.pool_size, self.digits_per_prompt)))

    @cached_property
    def environment(self) -> Tensor:
        """What the environment writes between two turns, (pool_size, n + 2) int64."""
        return prompts_of(self.later_digits)

    @cached_property
    def pool(self) -> Tensor:
        """The pool's prompts, (pool_size, P) int64."""
        return prompts_of(self.digits)

    @cached_property
    def answers(self) -> Tensor:
        """The right digit at each response position, (pool_size, T) int64; 10 stands for EOS, -1 for past the end, and
        for tokens that the environment writes."""
        first = answers_of(self.digits, variable=self.variable)
        if self.turns == 1:
            return first
        return torch.cat([first, torch.full_like(self.environment, -1), self.later_digits.flip(-1)], -1)

    def sample_prompts(self, seeds: tuple[int, ...], *, step: int, num_prompts: int) -> Tensor:
        """Indices into the pool, (E, B), drawn with replacement from each member's own stream."""
        draws = [
            torch.randint(
                self.settings.pool_size, (num_prompts,), generator=generator(s, step=step, purpose=Purpose.PROMPTS)
            )
            for s in seeds
        ]
        return torch.stack(draws)

    def score(self, prompt_ids: Tensor, tokens: Tensor, mask: Tensor) -> Scores:
        """Check responses: prompt_ids (E, N), tokens and mask (E, N, T)."""
        want = self.answers.to(tokens.device)[prompt_ids]
        right = (written(tokens) == want) & (mask > 0)
        due = want >= 0
        partial = (right & due).sum(-1) / due.sum(-1)
        exact = (right == due).all(-1) & ((mask > 0) == due).all(-1)
        return Scores(exact=exact.float(), partial=partial.float())


def prompts_of(digits: Tensor) -> Tensor:
    """``BOS d_1 .. d_n SEP`` for digits (..., n)."""
    edge = digits.new_full((*digits.shape[:-1], 1), BOS)
    return torch.cat([edge, digits + DIGIT, torch.full_like(edge, SEP)], -1)


def answers_of(digits: Tensor, *, variable: bool) -> Tensor:
    """The right digit at each response position, for digits (..., n); 10 stands for EOS, -1 for past the end."""
    backwards = digits.flip(-1)
    if not variable:
        return backwards
    padded = torch.cat([backwards, torch.zeros_like(backwards[..., :1])], -1)
    zeros_so_far = (padded == 0).cumsum(-1)
    at_end = (padded == 0) & (zeros_so_far == 1)
    return torch.where(zeros_so_far == 0, padded, torch.where(at_end, 10, -1))


def spelled(answers: Tensor, synonyms: Tensor) -> Tensor:
    """The answer tokens that write these digits (10 stands for EOS, -1 for padding) with the given synonyms."""
    return torch.where(answers == 10, EOS, torch.where(answers < 0, PAD, ANSWER + SYNONYMS * answers + synonyms))


def written(tokens: Tensor) -> Tensor:
    """The digit that each token writes: 0..9, 10 for EOS, 11 for anything else."""
    is_answer = (tokens >= ANSWER) & (tokens < ANSWER + 10 * SYNONYMS)
    digit = torch.div(tokens - ANSWER, SYNONYMS, rounding_mode="floor")
    return torch.where(is_answer, digit, torch.where(tokens == EOS, 10, 11))
