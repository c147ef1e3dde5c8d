"""Advantages from rewards: subtract a baseline and, in some objectives, divide by a standard deviation.

A group is the responses to one prompt; if no two sequences share a prompt, the whole batch is one group. The standard
deviation is unbiased with 1e-4 added, as in TRL. In a group of equal rewards every advantage is exactly 0, without
rounding error, so that DAPO can recognise such a group. All reductions are over the last axis, which holds the rewards
of one member.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STD_OFFSET = 1e-4  # TRL's, added to every standard deviation of rewards

WHITEN_OFFSET = 1e-8  # verl's, added to the variance over tokens


@dataclass(frozen=True)
class Groups:
    """Sequences in K groups of any size: ``members`` (K, largest) are their positions, valid where ``present``."""

    members: Tensor
    present: Tensor
    group_of: Tensor  # (N,) each sequence's row in ``members``

    @classmethod
    def of(cls, group_ids: Tensor) -> Groups:
        """Groups of equal ids; if no two sequences have the same id, the whole batch is one group."""
        unique, group_of, counts = torch.unique(group_ids, return_inverse=True, return_counts=True)
        if len(unique) == len(group_ids):
            group_of, counts = torch.zeros_like(group_of), counts.sum(0, keepdim=True)
        place = torch.arange(int(counts.max()), device=counts.device)
        present = place < counts.unsqueeze(-1)
        members = torch.zeros_like(present, dtype=torch.int64)
        members[present] = torch.argsort(group_of, stable=True)
        return cls(members, present, group_of)

    @classmethod
    def whole(cls, group_ids: Tensor) -> Groups:
        """The batch as one group."""
        return cls.of(torch.zeros_like(group_ids))

    def sum(self, values: Tensor) -> Tensor:
        """(..., N) -> (..., N): the sum over each sequence's group."""
        return torch.where(self.present, values[..., self.members], 0.0).sum(-1)[..., self.group_of]

    def center(self, values: Tensor) -> Tensor:
        """Values minus their group's mean; exactly 0 in a group of equal values, without rounding error."""
        first = values[..., self.members[:, 0]][..., self.group_of]
        differs = self.sum((values != first).to(values.dtype)) > 0
        return torch.where(differs, values - self.sum(values) / self.size(values), 0.0)

    def size(self, values: Tensor) -> Tensor:
        """(N,) the size of each sequence's group."""
        return self.present.sum(-1)[self.group_of].to(values.dtype)

    def std(self, values: Tensor) -> Tensor:
        """(..., N) unbiased standard deviation of each sequence's group (as in TRL), 0 in a group of one."""
        variance = self.sum(self.center(values).square()) / (self.size(values) - 1).clamp(min=1)
        return variance.sqrt()


def batch_centered(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """REINFORCE's baseline: the batch's mean reward."""
    return Groups.whole(group_ids).center(rewards)


def batch_normalised(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """PPO without a critic: the batch's mean subtracted, then divided by the batch's standard deviation."""
    return _normalised(rewards, Groups.whole(group_ids))


def group_centered(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Dr.GRPO, DPPO: the group's mean subtracted, with no division by a standard deviation."""
    return Groups.of(group_ids).center(rewards)


def group_normalised(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """GRPO: ``(R - mean) / (std + 1e-4)`` of the group."""
    return _normalised(rewards, Groups.of(group_ids))


def leave_one_out(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """RLOO: the mean of the others is the baseline, ``R_i - mean_{j!=i} R_j = (R_i - mean) G / (G - 1)``."""
    groups = Groups.of(group_ids)
    size = groups.size(rewards)
    return groups.center(rewards) * size / (size - 1).clamp(min=1)


def globally_normalised(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """REINFORCE++: the group's mean subtracted, then mean and standard deviation of the batch normalised."""
    return _normalised(group_centered(rewards, group_ids), Groups.whole(group_ids))


def whitened_over_tokens(values: Tensor, lengths: Tensor) -> Tensor:
    """(..., N) -> (..., N): mean 0 and unbiased variance 1 over tokens, of which sequence i has ``lengths[..., i]``.

    As verl's `masked_whiten`, where every token of a sequence has the sequence's value.
    """
    tokens = lengths.sum(-1, keepdim=True).clamp(min=1)
    centered = values - (values * lengths).sum(-1, keepdim=True) / tokens
    variance = (centered.square() * lengths).sum(-1, keepdim=True) / (tokens - 1).clamp(min=1)
    return centered * (variance + WHITEN_OFFSET).rsqrt()


def _normalised(rewards: Tensor, groups: Groups) -> Tensor:
    return groups.center(rewards) / (groups.std(rewards) + STD_OFFSET)


def without_spread(advantages: Tensor, group_ids: Tensor) -> Tensor:
    """(..., N) bool: the sequences of groups whose advantages are all exactly 0, which DAPO leaves out."""
    return Groups.of(group_ids).sum((advantages != 0).to(advantages.dtype)) == 0
