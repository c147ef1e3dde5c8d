"""A mixture of experts: a router that sends each token to a few of many MLPs, as in transformers' Qwen3-MoE.

The router multiplies a hidden state by one row for each expert, takes the softmax in float32 and keeps the k largest
probabilities, which are divided by their sum (`norm_topk_prob`). A token's output is the sum of its k experts' outputs,
each times its probability. Which experts are the k largest is a comparison: where two are close, a rounding error turns
it round, and the token takes another path. So an engine and a trainer of equal weights may disagree far more about such
a token than rounding alone explains.

Replaying routes (R2, R3; arXiv 2510.11370) gives a pass the experts to use; their probabilities are still computed by
the pass itself, so that the router gets a gradient.

Axes: E member, R rows (tokens), L layers, X experts, k experts of a token, H width, I an expert's intermediate width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from skewsim.model.layers import swiglu


@dataclass
class Routes:
    """What a forward pass chooses in each layer, and what it has to use instead."""

    replayed: Tensor | None = None
    """(E, R, L, k) experts to use; None: those that the router chooses."""
    layers: list[Tensor] = field(default_factory=list)
    """For each layer the experts (E, R, k) that its router would choose, the most probable one first."""
    probs: list[Tensor] = field(default_factory=list)
    """For each layer the router's probabilities (E, R, X)."""

    def use(self, probs: Tensor, k: int) -> Tensor:
        """The experts (E, R, k) that the next layer uses, given its router's probabilities (E, R, X)."""
        chosen = probs.detach().topk(k, dim=-1).indices
        self.layers.append(chosen)
        self.probs.append(probs)
        return chosen if self.replayed is None else self.replayed[:, :, len(self.layers) - 1]

    @property
    def chosen(self) -> Tensor:
        """(E, R, L, k)."""
        return torch.stack(self.layers, dim=-2)

    @property
    def balance_loss(self) -> Tensor:
        """(E,) the load-balancing loss of the Switch Transformer (arXiv 2101.03961), mean over layers; at least k if
        probabilities and choices go together, and k where all experts have equally many tokens."""
        losses = []
        for chosen, probs in zip(self.layers, self.probs, strict=True):
            tokens = torch.zeros_like(probs).scatter_(-1, chosen.flatten(1, -2), 1.0).mean(1)
            losses.append(probs.shape[-1] * (tokens * probs.mean(1)).sum(-1))
        return torch.stack(losses).mean(0)


def shares(logits: Tensor, k: int, *, normalize: bool, routes: Routes) -> Tensor:
    """How much of each expert's output a token takes: (E, R, X) in the logits' dtype, 0 but for k experts.

    An expert that is named twice, as routes that were filled with zeros do, counts twice.
    """
    probs = logits.float().softmax(-1)
    used = routes.use(probs, k)
    kept = probs.gather(-1, used)
    if normalize:
        kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter_add(-1, used, kept).to(logits.dtype)


def mixed(x: Tensor, gate_up: Tensor, down: Tensor, share: Tensor) -> Tensor:
    """The experts' outputs for x (E, R, H), each times its share (E, R, X) and added up.

    gate_up (E, X 2 I, H) and down (E, X H, I): the experts one below the other. All experts compute all rows, which at
    this size is faster than sorting rows by expert; a share of 0 leaves no trace.
    """
    members, rows, width = x.shape
    experts = share.shape[-1]
    inner = swiglu(torch.bmm(x, gate_up.transpose(1, 2)).view(members, rows, experts, -1))
    outer = torch.einsum("erxi,exhi->erxh", inner, down.view(members, experts, width, -1))
    return (outer * share.unsqueeze(-1)).sum(2).to(x.dtype)
