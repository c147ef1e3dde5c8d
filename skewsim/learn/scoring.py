"""The trainer's side of a rollout: logprobs of its tokens, with gradient, and its rewards and advantages.

A prompt is computed once for all its responses: its rows are put before the responses' rows, row-wise layers process
all rows as one long batch, and only the attention depends on which response belongs to which prompt. The numbers equal
those of G separate sequences (tested against transformers), with about half the work at 14 prompt and 12 response
tokens.

Axes: E member, B prompts, G responses per prompt, N = B*G, P prompt, T response, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from skewsim.learn.objectives import compute_advantages
from skewsim.model.dropout import Dropout
from skewsim.model.experts import Routes
from skewsim.model.policy import Attend, Policy, Weights, cast_weights
from skewsim.task import Task

if TYPE_CHECKING:
    from skewsim.engine.rollouts import Rollouts
    from skewsim.settings import Scenario
    from skewsim.task import Scores


@dataclass(frozen=True)
class Scored:
    """The trainer's log-probabilities at the sampled tokens, in nats."""

    logprobs: Tensor
    """(E, N, T)."""
    distribution: Tensor
    """Log-probabilities (E, N, T, V) of all tokens."""
    routed_experts: Tensor | None = None
    """(E, N, P+T-1, L, k) the experts that each layer's router would choose for each token of prompt and response but
    the last; None if the policy is no mixture of experts, or if the second turn is rendered anew."""

    def detached(self) -> Scored:
        """The same numbers without their graph."""
        return replace(self, logprobs=self.logprobs.detach(), distribution=self.distribution.detach())

    def followed_by(self, rest: Scored) -> Scored:
        """The scores of these sequences and of those after them."""
        mine, theirs = self.routed_experts, rest.routed_experts
        return Scored(
            torch.cat([self.logprobs, rest.logprobs], dim=1),
            torch.cat([self.distribution, rest.distribution], dim=1),
            None if mine is None or theirs is None else torch.cat([mine, theirs], dim=1),
        )

    @property
    def entropy(self) -> Tensor:
        """(E, N, T)."""
        each: Tensor = torch.special.entr(self.distribution.detach().exp())
        return each.sum(-1)

    @property
    def square_mass(self) -> Tensor:
        """(E, N, T) sum of the squared probabilities."""
        return self.distribution.detach().double().exp().square().sum(-1)


@dataclass(frozen=True)
class Graded:
    """A rollout's rewards and advantages."""

    rewards: Tensor
    """(E, N) exact or partial rewards, as `task.reward` says."""
    advantages: Tensor
    """(E, N)."""
    group_ids: Tensor
    """(N,) equal for responses to the same prompt."""


def grade(scores: Scores, mask: Tensor, scenario: Scenario) -> Graded:
    """Rewards and advantages of scored responses, by a scenario's task and trainer; mask (E, N, T): sampled tokens."""
    rewards = scores.exact if scenario.task.reward == "exact" else scores.partial
    group_ids = torch.arange(rewards.shape[1], device=rewards.device) // scenario.trainer.num_generations
    advantages = compute_advantages(rewards, group_ids, scenario.trainer, lengths=mask.sum(-1))
    return Graded(rewards, advantages, group_ids)


@dataclass(frozen=True)
class Pass:
    """What the trainer's forward pass does otherwise than read each response after its prompt and its own past."""

    dropout: Dropout | None = None
    rendered: tuple[int, int, int] | None = None
    """(k, s, e): the second turn, from the e-th response token on, is scored after the conversation rendered anew,
    which lacks the first k of the first turn's s tokens; None: after the tokens as they are."""
    pack_size: int = 1
    """Sequences in a row; 1: not packed."""
    leaking: bool = False
    """Whether a sequence sees those before it in its row."""

    @classmethod
    def of(cls, scenario: Scenario, dropout: Dropout | None = None) -> Pass:
        """As a scenario's trainer does it."""
        trainer, task = scenario.trainer, Task(scenario.task)
        drops = trainer.chat_template == "drop_thinking" and task.turns > 1
        return cls(
            dropout=dropout,
            rendered=(task.thinking, *task.environment_at) if drops else None,
            pack_size=1 if trainer.packing == "none" else trainer.pack_size,
            leaking=trainer.packing == "leaking",
        )


EXACT = Pass()


def score_rollouts(
    policy: Policy,
    rollouts: Rollouts,
    scenario: Scenario,
    *,
    dropout: Dropout | None = None,
    replayed: Tensor | None = None,
) -> Scored:
    """Score a rollout's tokens under a policy, in the trainer's precision and at its temperature.

    Differentiable with respect to ``policy.flat``. `replayed` (E, N, P+T-1, L, k): experts to use instead of those that
    the routers choose.
    """
    trainer = scenario.trainer
    views = policy.config.views(policy.flat)
    weights = cast_weights(
        policy.config,
        views,
        dtype=trainer.dtype,
        head_dtype=trainer.head_dtype,
        router_dtype=trainer.moe_router_dtype,
    )
    return score(
        weights,
        rollouts,
        group=trainer.num_generations,
        temperature=trainer.temperature or scenario.engine.temperature,
        sampling_mask=trainer.correction.keep_sampling_mask,
        how=Pass.of(scenario, dropout),
        replayed=replayed,
    )


def old_routes(rollouts: Rollouts, scenario: Scenario) -> Tensor | None:
    """The experts that the pass before the update replays, which computes old logprobs; None: its own."""
    trainer = scenario.trainer
    return rollouts.routed_experts if trainer.router_replay == "R3" and trainer.replay_old_logprobs else None


def score(
    weights: Weights,
    rollouts: Rollouts,
    *,
    group: int,
    temperature: float,
    sampling_mask: bool = False,
    how: Pass = EXACT,
    replayed: Tensor | None = None,
) -> Scored:
    """Score the responses under these weights at a temperature.

    replayed (E, N, P+T-1, L, k): experts to use instead of those that the routers choose.

    sampling_mask: compute the softmax only over the tokens that the engine's top-p/top-k left (DeepSeek-V3.2's
    keep-sampling-mask). It changes nothing if the rollouts have no such support.
    """
    live = rollouts.mask > 0  # elsewhere the token may lie outside the support
    present = live if rollouts.given is None else live | rollouts.given
    routes = Routes(replayed)
    logits = _logits(weights, rollouts.prompts, rollouts.tokens, present, group, how, routes)
    logits = logits / temperature
    if sampling_mask and rollouts.support is not None:
        logits = logits.masked_fill(~rollouts.support, -math.inf)
    logprobs = logits.log_softmax(-1)
    picked = logprobs.gather(-1, rollouts.tokens.unsqueeze(-1)).squeeze(-1)
    return Scored(torch.where(live, picked, 0.0), logprobs, routes.chosen if routes.layers else None)


def _logits(
    weights: Weights, prompts: Tensor, tokens: Tensor, present: Tensor, group: int, how: Pass, routes: Routes | None
) -> Tensor:
    """float32 logits (E, N, T, V) before each response token; `present` (E, N, T): tokens that exist."""
    if how.rendered is not None:
        thinking, start, end = how.rendered
        alike = replace(how, rendered=None)
        first = _logits(weights, prompts, tokens[:, :, :start], present[:, :, :start], group, alike, None)
        history = torch.cat([prompts, tokens[:, :, thinking:end]], dim=2)  # no two answers have the same, so group is 1
        second = _logits(weights, history, tokens[:, :, end:], present[:, :, end:], 1, alike, None)
        return torch.cat([first, torch.zeros_like(first[:, :, :1]).expand(-1, -1, end - start, -1), second], dim=2)
    if how.pack_size > 1:
        return packed_logits(weights, prompts, tokens, present, how, routes)
    return response_logits(weights, prompts, tokens, group=group, dropout=how.dropout, routes=routes)


def response_logits(
    weights: Weights,
    prompts: Tensor,
    tokens: Tensor,
    *,
    group: int,
    dropout: Dropout | None = None,
    routes: Routes | None = None,
) -> Tensor:
    """float32 logits (E, N, T, V) before each response token; prompts (E, N, P) are equal within a group.

    `routes` holds experts by sequence and input token, (E, N, P+T-1, ...).
    """
    routes = routes or Routes()
    if dropout is not None or routes.replayed is not None:
        group = 1  # a prompt's masks are drawn for each response, and its experts given, as where none is shared
    members, sequences, length = prompts.shape
    family = _Family(sequences // group, group, length, tokens.shape[2] - 1)
    positions, seen = _layout(family, tokens.device)
    responses = tokens[:, :, :-1].reshape(members, family.B, -1)
    rows = torch.cat([prompts[:, ::group], responses], dim=2).flatten(1)
    by_row = Routes(None if routes.replayed is None else routes.replayed.flatten(1, 2))
    hidden = weights.hidden(rows, positions, _attend(family.rows, seen, dropout), dropout, by_row)
    routes.layers, routes.probs = [family.by_sequence(x) for x in by_row.layers], by_row.probs
    # the prompt's last row predicts the first token of every response to it
    read = hidden.view(members, family.B, family.rows, -1)[:, :, length - 1 :]
    logits = weights.logits(read.reshape(members, -1, read.shape[-1])).view(*read.shape[:3], -1)
    first, rest = logits.split([1, responses.shape[2]], dim=2)
    first = first.unsqueeze(3).expand(-1, -1, group, -1, -1)
    return torch.cat([first, rest.unflatten(2, (group, -1))], dim=3).flatten(1, 2)


def packed_logits(
    weights: Weights, prompts: Tensor, tokens: Tensor, present: Tensor, how: Pass, routes: Routes | None = None
) -> Tensor:
    """float32 logits (E, N, T, V), with `pack_size` neighbouring sequences in each row, the last row perhaps shorter.

    `present` (E, N, T): tokens that exist; what pads a response is seen by nobody. Positions start again with each
    sequence, as `position_ids` do in a packed batch. A leaking row is one causal attention over all of it, as where the
    attention kernel takes no boundaries (Hugging Face's warning on padding-free batches without flash attention).
    """
    members, sequences, length = prompts.shape
    size, own = how.pack_size, length + tokens.shape[2] - 1
    rows = -(-sequences // size)
    inputs = torch.cat([prompts, tokens[:, :, :-1]], dim=2)
    there = torch.cat([torch.ones_like(prompts, dtype=torch.bool), present[:, :, :-1]], dim=2)
    padding = (0, 0, 0, rows * size - sequences)
    inputs, there = (torch.nn.functional.pad(x, padding).view(members * rows, -1) for x in (inputs, there))
    alone = _layout(_Family(1, 1, length, own - length), tokens.device)
    seen = torch.block_diag(*[alone[1]] * size).bool()
    if how.leaking:
        place = torch.arange(size, device=tokens.device).repeat_interleave(own)
        seen = seen | (place < place.unsqueeze(1))
    itself = torch.eye(size * own, dtype=torch.bool, device=tokens.device)  # so that a row of padding sees something
    seen = ((seen & there.unsqueeze(1)) | itself).unsqueeze(1)
    positions = alone[0].repeat(rows * size)
    attend = _attend(size * own, seen, how.dropout)
    routes = routes or Routes()
    by_row = Routes()
    if routes.replayed is not None:
        given = torch.nn.functional.pad(routes.replayed, (0, 0, 0, 0, *padding))
        by_row.replayed = given.flatten(1, 2)
    hidden = weights.hidden(inputs.view(members, -1), positions, attend, how.dropout, by_row)
    routes.layers = [x.view(members, rows * size, own, -1)[:, :sequences] for x in by_row.layers]
    read = hidden.view(members, rows * size, own, -1)[:, :sequences, length - 1 :]
    return weights.logits(read.reshape(members, -1, read.shape[-1])).view(*read.shape[:3], -1)


@dataclass(frozen=True)
class _Family:
    """The rows of B prompts, each followed by its G responses: P rows, then G times Q (a response without its end)."""

    B: int
    G: int
    P: int
    Q: int

    @property
    def rows(self) -> int:
        return self.P + self.G * self.Q

    def by_sequence(self, x: Tensor) -> Tensor:
        """What each row has (E, B * rows, k), as (E, B * G, P + Q, k): a prompt's for each of its responses."""
        prompts, responses = x.view(len(x), self.B, self.rows, -1).split([self.P, self.G * self.Q], dim=2)
        prompts = prompts.unsqueeze(2).expand(-1, -1, self.G, -1, -1)
        return torch.cat([prompts, responses.unflatten(2, (self.G, self.Q))], dim=3).flatten(1, 2)


def _attend(rows: int, seen: Tensor, dropout: Dropout | None) -> Attend:
    """Attention among every `rows` neighbouring rows, of which each sees those that `seen` (.., rows, rows) says."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped, dtype = k.shape[2] < q.shape[2], v.dtype
        q, k, v = (x.reshape(-1, rows, *x.shape[2:]).transpose(1, 2).float() for x in (q, k, v))
        if dropout is None:
            out = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)
        else:
            out = _attention_with(dropout, q, k, v, seen)
        return out.transpose(1, 2).to(dtype)

    return attend


def _attention_with(dropout: Dropout, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention with dropout on its probabilities; q (.., h, L, d), k and v (.., kv, L, d)."""
    times = q.shape[-3] // k.shape[-3]
    k, v = (x.repeat_interleave(times, dim=-3) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return dropout(scores.masked_fill(~seen, -math.inf).softmax(-1)) @ v


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # kept, and so used by a training step too
def _layout(family: _Family, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions (B * rows,), and which rows of a family see which (rows, rows): their prompt and their own past."""
    place = torch.arange(family.rows, device=device)
    response = torch.where(place < family.P, -1, (place - family.P) // family.Q)
    seen = (response == -1) | (response == response.unsqueeze(1))
    seen &= place <= place.unsqueeze(1)
    return (seen.sum(1) - 1).repeat(family.B), seen
