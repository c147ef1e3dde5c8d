"""Logits as large as a real model's, of a policy that stays as it is.

A softmax does not change when all logits of a token move together. So one vector that is added to every row of lm_head
leaves the policy alone and moves its logits, into a range in which bfloat16 rounds as it does in a real model: between
16 and 32 its numbers are an eighth apart. The vector is computed from the policy: it is the one whose product with the
final hidden states of the task's right answers is closest to the same number everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skewsim.engine.kv_cache import KVCache
from skewsim.model.policy import Policy
from skewsim.task import SYNONYMS, Task, spelled

PROMPTS = 64
"""How many prompts of the pool, from its first on, the vector is fitted to."""


def offset_logits(policy: Policy, task: Task, offset: float) -> Policy:
    """A policy of one member with the same probabilities, and logits that are larger by about ``offset``."""
    flat = policy.flat.detach().clone()
    lm_head = policy.config.views(flat)["lm_head"]
    lm_head += offset * shared_direction(policy, task).to(lm_head)
    return Policy(policy.config, flat)


def shared_direction(policy: Policy, task: Task) -> Tensor:
    """(H,) float64, the shortest vector for which the squared distance of ``hidden @ vector`` from one is least."""
    hidden = answer_states(policy, task).double()
    ones = hidden.new_ones(len(hidden), 1)
    found: Tensor = torch.linalg.lstsq(hidden, ones, driver="gelsd").solution
    return found.squeeze(1)


def answer_states(policy: Policy, task: Task) -> Tensor:
    """(R, H) final hidden states of a one-member policy before each token of the right answers to `PROMPTS` prompts."""
    due = task.answers[:PROMPTS]
    synonyms = torch.arange(due.shape[1]) % SYNONYMS
    answers = spelled(due, synonyms)
    if task.turns > 1:
        start, end = task.environment_at
        answers[:, start:end] = task.environment[:PROMPTS]
    tokens = torch.cat([task.pool[:PROMPTS], answers[:, :-1]], 1).unsqueeze(0)
    weights = policy.weights(dtype="float32", head_dtype="float32")
    cache = KVCache.empty(weights, 1, tokens.shape[1], room=tokens.shape[2])
    with torch.no_grad():
        states = cache.extend_all(weights, tokens)[0, :, task.prompt_length - 1 :]
    return states[due >= 0]
