"""From logits to a token and to the logprob that the engine reports for it.

The steps have vLLM's order: penalties, temperature, min-p, top-k, top-p. *Processed* logprobs are those of the
distribution that is sampled from; *raw* ones (V1's default) are those of the model's logits before these steps.
Injected noise changes either both what is sampled and what is reported (a truthful engine with a different policy), or
only what is reported (a wrong number, which no importance weight can correct).

A token is drawn by inverting the cumulative distribution with one uniform number, so members with common random numbers
draw the same tokens until their distributions differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skewsim.engine.noise import NoiseModel
from skewsim.engine.penalties import Penalties
from skewsim.seeding import Purpose, generator
from skewsim.settings import EngineSettings, SkewSettings

if TYPE_CHECKING:
    from skewsim.engine.rollouts import RolloutRequest


@dataclass(frozen=True)
class Sample:
    """One token for each sequence, all (E, N) but support (E, N, V)."""

    tokens: Tensor
    reported: Tensor
    """The logprob that the engine reports."""
    sampled: Tensor
    """The log-probability under the distribution sampled from."""
    kept_mass: Tensor | None
    support: Tensor | None


@dataclass(frozen=True)
class Processed:
    """The distribution that is sampled from: logprobs (E, N, V), and what top-p, top-k and min-p left of it."""

    logprobs: Tensor
    kept_mass: Tensor | None
    support: Tensor | None


def process(logits: Tensor, settings: EngineSettings) -> Processed:
    """Apply temperature, min-p, top-k and top-p, in this order (vLLM's), to logits (..., V)."""
    scaled = logits if settings.temperature == 1 else logits / settings.temperature
    if not settings.truncates:
        return Processed(scaled.log_softmax(-1), None, None)
    support = torch.ones_like(scaled, dtype=torch.bool)
    if settings.min_p > 0:
        probs = scaled.softmax(-1)
        support = probs >= settings.min_p * probs.amax(-1, keepdim=True)
    kept = scaled.masked_fill(~support, -math.inf)
    if 0 < settings.top_k < logits.shape[-1]:
        support = support & (kept >= kept.topk(settings.top_k).values[..., -1:])
        kept = scaled.masked_fill(~support, -math.inf)
    if settings.top_p < 1:
        support = support & _nucleus(kept, settings.top_p)
        kept = scaled.masked_fill(~support, -math.inf)
    mass = scaled.softmax(-1).masked_fill(~support, 0.0).sum(-1)
    return Processed(kept.log_softmax(-1), mass, support)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Mask of the smallest set of likeliest tokens with a total probability of at least top_p; never empty."""
    probs, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probs.cumsum(-1) - probs  # total probability of the likelier tokens
    chosen = before < top_p
    return torch.zeros_like(chosen).scatter(-1, order, chosen)


def soft_capped(logits: Tensor, cap: float) -> Tensor:
    """Logits bent to stay within -cap and cap (Gemma 2, arXiv 2408.00118, section 2)."""
    return cap * torch.tanh(logits / cap)


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (E, N) by inverting the cumulative distribution of logprobs (E, N, V) at uniforms (E, N) in [0, 1)."""
    cumulative = logprobs.exp().cumsum(-1)
    target = uniforms.unsqueeze(-1) * cumulative[..., -1:]
    return (cumulative <= target).sum(-1).clamp_max(logprobs.shape[-1] - 1)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one rollout."""

    step: int
    uniforms: Tensor
    """(E, N, T)."""
    generators: list[torch.Generator]
    """Each member's generator of noise."""
    shared: Tensor | None
    """(E, N, V) the part of the noise that all tokens of a sequence share; None if there is none."""
    penalties: Penalties | None
    """What was said so far, for the penalties; None if there are none."""


class Sampler:
    """Sampling with the engine's settings and the injected skew."""

    def __init__(self, engine: EngineSettings, skew: SkewSettings, noise: NoiseModel | None) -> None:
        self._engine, self._skew, self._noise = engine, skew, noise
        # a profile was measured on logprobs at the engine's temperature; invented noise is added to the model's logits
        self._noise_temperature = engine.temperature if skew.noise == "profile" else 1.0

    def begin(self, request: RolloutRequest, prompts: Tensor, vocab_size: int) -> Draws:
        """The random numbers of one rollout with prompts (E, N, P), each member's from its own streams."""
        sequences, device = prompts.shape[1], prompts.device
        streams = [generator(s, step=request.step, purpose=Purpose.SAMPLING) for s in request.seeds]
        uniforms = torch.stack([torch.rand(sequences, request.max_tokens, generator=g) for g in streams])
        noise = [generator(s, step=request.step, purpose=Purpose.NOISE) for s in request.seeds]
        shared = self._noise.start_rollout(noise, sequences, device=device) if self._noise else None
        penalties = Penalties(prompts, vocab_size, self._engine) if self._engine.penalizes else None
        return Draws(request.step, uniforms.to(device), noise, shared, penalties)

    def sample(self, logits: Tensor, t: int, draws: Draws, given: Tensor | None = None) -> Sample:
        """Sample the t-th token of every sequence from logits (E, N, V); or take it as `given` (E, N)."""
        if self._engine.logits_soft_cap is not None:
            logits = soft_capped(logits, self._engine.logits_soft_cap)
        if self._noise and self._skew.target == "sampled":
            clean = (logits / self._noise_temperature).log_softmax(-1)
            logits = self._disturb(clean, draws) * self._noise_temperature
        penalties = draws.penalties
        policy = process(logits if penalties is None else penalties.apply(logits), self._engine)
        tokens = draw(policy.logprobs, draws.uniforms[:, :, t]) if given is None else given
        if penalties is not None:
            (penalties.write if given is None else penalties.read)(tokens)
        sampled = _pick(policy.logprobs, tokens)
        raw = self._engine.logprobs_mode == "raw_logprobs"
        told = logits.log_softmax(-1) if raw else policy.logprobs
        if self._noise and self._skew.target == "reported":
            told = self._disturb(told, draws)
        return Sample(tokens, _pick(told, tokens), sampled, policy.kept_mass, policy.support)

    def _disturb(self, logprobs: Tensor, draws: Draws) -> Tensor:
        assert self._noise is not None
        return self._noise.disturb(logprobs, draws.generators, draws.step, draws.shared)


def _pick(logprobs: Tensor, tokens: Tensor) -> Tensor:
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
