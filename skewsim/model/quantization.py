"""Rounds the weights of the engine's body to int8 or fp8, per output channel, as weight-only quantisation does.

int8: symmetric, scale ``max|w| / 127`` of each row; fp8: e4m3 with scale ``max|w| / 448``. The engine then computes
with the rounded weights in its own dtype. Embeddings, norms and lm_head are not rounded (compressed-tensors leaves them
out by default too).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from skewsim.model.policy import Weights

BODY = ("qkv", "o", "gate_up", "down")


def quantize(weights: Weights, kind: Literal["int8", "fp8"]) -> Weights:
    """The same weights with every matrix of the body rounded."""
    rounded = {n: _rounded(w, kind) if n.rpartition(".")[2] in BODY else w for n, w in weights.tensors.items()}
    return replace(weights, tensors=rounded)


def _rounded(weight: Tensor, kind: Literal["int8", "fp8"]) -> Tensor:
    wide = weight.float()
    largest = wide.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    if kind == "int8":
        scale = largest / 127
        return ((wide / scale).round() * scale).to(weight.dtype)
    scale = largest / 448
    return ((wide / scale).to(torch.float8_e4m3fn).float() * scale).to(weight.dtype)
