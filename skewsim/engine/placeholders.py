"""Log-probabilities that are filled in instead of reported.

eos      the end token was appended after the engine had stopped, and has no log-probability of its own (SkyRL pull
         request 2148): the last token of every response that ended
missing  answers without a log-probability for some tokens (NeMo-RL pull request 4218): a share of all tokens at random

Axes: E member, N sequences, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from skewsim.seeding import Purpose, generator
from skewsim.settings import EngineSettings


def filled_in(logprobs: Tensor, mask: Tensor, ended: Tensor, settings: EngineSettings, draws: Tensor | None) -> Tensor:
    """Reported logprobs (E, N, T) with placeholders; `ended` (E, N), `draws` (E, N, T) uniform, see `draw_missing`."""
    if settings.placeholder_logprobs == "none":
        return logprobs
    chosen = mask > 0
    if draws is None:
        last = mask.flip(2).cumsum(2).flip(2) == 1  # as many tokens are left as at the last one
        chosen = chosen & last & ended.unsqueeze(2)
    else:
        chosen = chosen & (draws < settings.placeholder_share)
    return torch.where(chosen, settings.placeholder_value, logprobs)


def draw_missing(seeds: Sequence[int], step: int, like: Tensor, settings: EngineSettings) -> Tensor | None:
    """Uniform draws that say which tokens are missing; None where that is not drawn."""
    if settings.placeholder_logprobs != "missing":
        return None
    streams = [generator(seed, step=step, purpose=Purpose.PLACEHOLDERS) for seed in seeds]
    return torch.stack([torch.rand(like.shape[1:], generator=stream) for stream in streams]).to(like.device)
