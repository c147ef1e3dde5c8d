"""The trainer's side: logprobs of given tokens, with gradient.

A prompt is computed once for its whole group: its rows are put before the responses' rows, row-wise layers see
one long batch, and only the attention knows which response belongs to which prompt. Same numbers as G separate
sequences (tested against transformers), about half the work at 14 prompt and 12 response tokens.

Axes: E member, B prompts, G responses per prompt, N = B*G, P prompt, T response, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skewsim.policy import Weights

if TYPE_CHECKING:
    from skewsim.engine import Rollouts


@dataclass(frozen=True)
class Scored:
    """What the trainer says of the sampled tokens, both (E, N, T), in nats."""

    logprobs: Tensor
    entropy: Tensor


def score(
    weights: Weights, rollouts: Rollouts, *, group: int, temperature: float, sampling_mask: bool = False
) -> Scored:
    """Logprobs of the responses and entropies of the policy at a temperature.

    sampling_mask: the softmax runs over the engine's top-p/top-k support only (DeepSeek-V3.2's
    keep-sampling-mask); without a support it changes nothing.
    """
    logits = response_logits(weights, rollouts.prompts, rollouts.tokens, group=group) / temperature
    if sampling_mask and rollouts.support is not None:
        logits = logits.masked_fill(~rollouts.support, -math.inf)
    logprobs = logits.log_softmax(-1)
    picked = logprobs.gather(-1, rollouts.tokens.unsqueeze(-1)).squeeze(-1)
    live = rollouts.mask > 0  # a masked token may lie outside the support
    with torch.no_grad():
        entropy = torch.special.entr(logprobs.exp()).sum(-1)
    return Scored(torch.where(live, picked, 0.0), entropy)


def response_logits(weights: Weights, prompts: Tensor, tokens: Tensor, *, group: int) -> Tensor:
    """float32 logits (E, N, T, V) before each response token; prompts (E, N, P) are equal within a group."""
    members, sequences, length = prompts.shape
    shape = _Shape(members, sequences // group, group, length, tokens.shape[2] - 1)
    rows = torch.cat([prompts[:, ::group].flatten(1), tokens[:, :, :-1].flatten(1)], dim=1)
    hidden = weights.hidden(rows, shape.positions(tokens.device), shape.attend)
    # the prompt's last row predicts the first token of each response of its group
    first = hidden[:, : shape.prompt_rows].view(members, shape.B, length, -1)[:, :, -1]
    logits = weights.logits(torch.cat([first, hidden[:, shape.prompt_rows :]], dim=1))
    first, rest = logits.split([shape.B, sequences * shape.Q], dim=1)
    first = first.repeat_interleave(group, dim=1).unsqueeze(2)
    return torch.cat([first, rest.view(members, sequences, shape.Q, -1)], dim=2)


@dataclass(frozen=True)
class _Shape:
    """Rows: B*P of prompts, then B*G*Q of responses (all tokens but the last)."""

    E: int
    B: int
    G: int
    P: int
    Q: int

    @property
    def prompt_rows(self) -> int:
        return self.B * self.P

    def positions(self, device: torch.device) -> Tensor:
        prompt, response = torch.arange(self.P, device=device), torch.arange(self.P, self.P + self.Q, device=device)
        return torch.cat([prompt.repeat(self.B), response.repeat(self.B * self.G)])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, d = q.shape[2:]
        if k.shape[2] != heads:
            k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
        q = q / math.sqrt(d)
        qp, kp, vp = (self._prompt(x) for x in (q, k, v))
        qr, kr, vr = (self._response(x) for x in (q, k, v))
        causal = _future(self.P, q.device)
        prompt = (qp @ kp.transpose(-1, -2)).masked_fill(causal, -math.inf).softmax(-1) @ vp
        # responses see their whole prompt and their own past
        past = qr.flatten(3, 4) @ kp.transpose(-1, -2)  # (E, B, h, G*Q, P)
        own = (qr @ kr.transpose(-1, -2)).masked_fill(_future(self.Q, q.device), -math.inf)
        weights = torch.cat([past.unflatten(3, (self.G, self.Q)), own], -1).softmax(-1)
        to_past, to_own = weights.split([self.P, self.Q], -1)
        response = (to_past.flatten(3, 4) @ vp).unflatten(3, (self.G, self.Q)) + to_own @ vr
        prompt = prompt.transpose(2, 3).reshape(self.E, self.prompt_rows, heads, d)
        response = response.permute(0, 1, 3, 4, 2, 5).reshape(self.E, -1, heads, d)
        return torch.cat([prompt, response], dim=1).to(v.dtype)

    def _prompt(self, x: Tensor) -> Tensor:
        """Float (E, B, h, P, d)."""
        return x[:, : self.prompt_rows].reshape(self.E, self.B, self.P, *x.shape[2:]).transpose(2, 3).float()

    def _response(self, x: Tensor) -> Tensor:
        """Float (E, B, h, G, Q, d)."""
        x = x[:, self.prompt_rows :].reshape(self.E, self.B, self.G, self.Q, *x.shape[2:])
        return x.permute(0, 1, 4, 2, 3, 5).float()


def _future(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
