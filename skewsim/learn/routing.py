"""How often trainer and engine send a token to different experts, and how much of the skew those tokens carry.

A decision is one token in one layer; it differs if the two sets of experts do. A token's own decisions are those of the
row that predicts it: the token before it. Decisions further back act on it too, through keys and values.

Axes: E member, N sequences, S input tokens of prompt and response, T response tokens, L layers, k experts of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def decisions_differ(trainer: Tensor, engine: Tensor, tokens: int) -> Tensor:
    """(..., T, L) bool for each response token, from the experts (..., S, L, k) of both sides."""
    differ = (trainer.sort(-1).values != engine.sort(-1).values).any(-1)
    return differ[..., differ.shape[-2] - tokens :, :]


def routing_metrics(differ: Tensor, skew: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Metrics (E,) from `decisions_differ` (E, N, T, L), skew and mask (E, N, T); NaN where there is no such token."""
    live = mask > 0
    other = differ.any(-1) & live
    tokens = live.sum((1, 2)).clamp_min(1)
    square = skew.double().square() * live
    moved = (square * other).sum((1, 2))
    total = square.sum((1, 2))
    return {
        "routing/decisions_differ": (differ & live.unsqueeze(-1)).sum((1, 2, 3)) / (tokens * differ.shape[-1]),
        "routing/tokens_differ": other.sum((1, 2)) / tokens,
        "routing/rms_differ": (moved / other.sum((1, 2))).sqrt(),
        "routing/rms_same": ((total - moved) / (tokens - other.sum((1, 2)))).clamp_min(0).sqrt(),
        "routing/skew_share": torch.where(total > 0, moved / total, torch.nan),
    }
