"""The metrics of a rollout under the trainer's weights, and how those of several optimiser steps become one.

Axes: E member, N sequences, T response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skewsim.engine.rollouts import FINISH_ABORT, Rollouts
from skewsim.learn.routing import decisions_differ, routing_metrics
from skewsim.learn.scoring import Scored
from skewsim.skew import metrics
from skewsim.task import Scores


def rollout_metrics(rollouts: Rollouts, rewards: Scores, scored: Scored, *, version: int) -> dict[str, Tensor]:
    """Metrics (E,) of a rollout under the trainer's weights before it learns from the rollout."""
    mask = rollouts.mask
    tokens = mask.sum((1, 2)).clamp_min(1)
    lag = (version - rollouts.weight_versions) * mask
    found = {"reward/mean": rewards.exact.mean(1), "reward/partial": rewards.partial.mean(1)}
    for name, value in metrics.batched_skew_metrics(scored.logprobs, rollouts.engine_logprobs, mask).items():
        found[metrics.SKEW_KEYS[name]] = value
    found["skew/kl_k3_lag0"] = _fresh_k3(scored.logprobs - rollouts.engine_logprobs, (mask > 0) & (lag == 0))
    known = rollouts.true_routes if rollouts.true_routes is not None else rollouts.routed_experts
    if scored.routed_experts is not None and known is not None:
        differ = decisions_differ(scored.routed_experts, known, mask.shape[2])
        found |= routing_metrics(differ, scored.logprobs - rollouts.engine_logprobs, mask)
    return found | {
        "policy/entropy": (scored.entropy * mask).sum((1, 2)) / tokens,
        "lag/mean": lag.sum((1, 2)) / tokens,
        "lag/max": lag.amax((1, 2)),
        "response/length": mask.sum(2).mean(1),
        "response/aborted": (rollouts.finish_reasons == FINISH_ABORT).float().mean(1),
    }


def _fresh_k3(skew: Tensor, fresh: Tensor) -> Tensor:
    """k3 (E,) of the tokens without lag, from the skew (E, N, T); NaN for a member that has none."""
    d = skew.double()
    counted = fresh & d.isfinite()
    terms = torch.where(counted, torch.expm1(d) - d, 0.0)
    return terms.sum((1, 2)) / counted.sum((1, 2))  # 0 / 0 is NaN


def merge(values: Tensor, key: str) -> Tensor:
    """Merge a metric of the optimiser steps (steps, E) into (E,): the minimum, maximum or mean, by key; skips NaN."""
    if key.endswith("_min"):
        return torch.where(values.isnan(), torch.inf, values).amin(0)
    if key.endswith("_max"):
        return torch.where(values.isnan(), -torch.inf, values).amax(0)
    return values.nanmean(0)
