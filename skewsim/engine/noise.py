"""Injected skew: noise on the engine's log-probabilities, invented or drawn from a measured profile.

Invented noise is added to the logits: ``q = softmax(log p + eta)`` with eta normal or Student-t (Bailey 1994: with U, W
uniform, ``sqrt(df (U^(-2/df) - 1)) cos(2 pi W)`` is Student-t), independent per position and entry, plus a part that is
the same for a whole sequence. To first order the skew of token a is ``d(a) = -(eta_a - sum_v p_v eta_v)``, so

    Var d(a) = (1 - p_a)^2 x_a + sum_{v != a} p_v^2 x_v,        x_v = Var eta_v.        (law)

A profile holds the measured distribution of d by probability. With target "reported", d is drawn from it directly. With
target "sampled" the noisy numbers must still be a distribution, so the law is inverted: at each position the x_v are
fitted by maximum likelihood, with each token weighted by its probability, so that Var d is the measured one
(multiplicative updates for a non-negative Gaussian variance model: Fevotte, Bertin, Durrieu 2009).

Axes: E member, N sequences, V vocabulary. Every member draws from its own generator (on the generator's device), and
always the same number of values, so its noise depends neither on the other members nor on what was sampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skewsim.settings import SkewSettings
from skewsim.skew.profile import SkewProfile, load_profile

CALIBRATION_STEPS = 4
WIDEST = 5.0  # normal scores; one draw in two million lies outside +-5
GRID = 801
SMALLEST_VARIANCE = 1e-18  # far below float32's resolution of a log-probability
LARGEST_EXPONENT = 20.0
LARGEST_SCALE = 3.0  # bound of one logit's noise, in units of the profile's largest rms; real engines stay below it


class NoiseModel:
    """The injected skew of one scenario. Raises UserError if its profile cannot be read."""

    def __init__(self, settings: SkewSettings, vocab_size: int, profile: SkewProfile | None = None) -> None:
        self.settings = settings
        self.vocab_size = vocab_size
        self.sampled = settings.target == "sampled"
        """Whether the engine samples from the disturbed distribution (else only its report is wrong)."""
        self._quantiles: ProfileQuantiles | None = None
        self._correlation = 0.0
        if settings.noise == "profile":
            profile = profile or load_profile(settings.profile or "")
            self._quantiles = ProfileQuantiles(profile, before_sampling=self.sampled)
            self._correlation = min(max(profile.fit.sequence_correlation.value or 0.0, 0.0), 1.0)

    def start_rollout(
        self, generators: Sequence[torch.Generator], num_sequences: int, *, device: torch.device | str = "cpu"
    ) -> Tensor | None:
        """Standard normal draws (E, N, V) that each sequence keeps for the whole rollout; None if it needs none."""
        if self.settings.sequence_scale == 0 and self._correlation == 0:
            return None
        return _normal(generators, num_sequences, self.vocab_size, device=device)

    def disturb(
        self,
        logprobs: Tensor,
        generators: Sequence[torch.Generator],
        step: int,
        sequence_noise: Tensor | None = None,
    ) -> Tensor:
        """The engine's log-probabilities (E, N, V) of one position, from those without noise, at training step `step`.

        With target "sampled" the result is normalised, and the engine samples from it and reports it. With target
        "reported" the engine samples from the log-probabilities without noise and reports the result, whose
        probabilities need not sum to 1. Entries of -inf stay -inf.
        """
        settings = self.settings
        growth = max(1.0 + settings.drift * step, 0.0)
        if settings.noise == "none":
            eta = torch.zeros_like(logprobs)
        elif self._quantiles is not None:
            eta = self._from_profile(self._quantiles, logprobs, generators, sequence_noise) * growth
        else:
            eta = self._invented(logprobs, generators) * growth
        if settings.sequence_scale and sequence_noise is not None:
            eta = eta + (growth * settings.sequence_scale) * sequence_noise.to(logprobs.dtype)
        disturbed = logprobs + eta
        if self._quantiles is None or self.sampled:
            disturbed = disturbed.log_softmax(-1)
        return disturbed + growth * settings.bias if settings.bias else disturbed

    def _invented(self, logprobs: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        sequences, vocab = logprobs.shape[-2:]
        if self.settings.noise == "normal":
            return _normal(generators, sequences, vocab, device=logprobs.device) * self.settings.scale
        df = self.settings.df
        draws = [torch.rand(2, sequences, vocab, generator=g, device=g.device) for g in generators]
        radius, angle = torch.stack(draws, dim=1).to(logprobs.device)
        student = torch.sqrt(df * ((1 - radius) ** (-2 / df) - 1)) * torch.cos(2 * math.pi * angle)
        return student * (self.settings.scale * math.sqrt((df - 2) / df))

    def _from_profile(
        self,
        quantiles: ProfileQuantiles,
        logprobs: Tensor,
        generators: Sequence[torch.Generator],
        sequence_noise: Tensor | None,
    ) -> Tensor:
        own = _normal(generators, logprobs.shape[1], logprobs.shape[2], device=logprobs.device)
        latent = own
        if self._correlation and sequence_noise is not None:
            # A reported number may be off by the same amount at every token. Adding a constant to all logits of a
            # distribution that is sampled from changes nothing, so there the shared noise has a value per entry.
            shared = sequence_noise if self.sampled else sequence_noise[..., :1]
            latent = math.sqrt(self._correlation) * shared + math.sqrt(1 - self._correlation) * own
        quantiles.to(logprobs.device)
        probabilities = logprobs.float().exp()
        bins = quantiles.bins(probabilities)
        shape = quantiles.standardised(bins, latent)
        if self.sampled:
            scale = logit_scale(probabilities, quantiles.rms[bins], largest=LARGEST_SCALE * quantiles.largest)
            return -self.settings.multiplier * scale * shape
        return -self.settings.multiplier * (quantiles.mean[bins] + quantiles.std[bins] * shape)


class ProfileQuantiles:
    """The inverse distribution functions of a profile's bins, as tensors, standardised to mean 0 and variance 1.

    A profile's tokens were sampled by the engine. So, compared with the trainer's distribution, it has tokens of skew d
    ``exp(-d)`` times too often. Before noise is added to a distribution that is then sampled from, each bin is
    therefore reweighted by ``exp(d)``; the sampling brings the factor ``exp(-d)`` back.
    """

    def __init__(self, profile: SkewProfile, *, before_sampling: bool) -> None:
        bins = [item for item in profile.by_probability if item.tokens > 0]
        levels = np.array(profile.quantile_levels)
        tables = [_Moments.of(levels, np.array(item.quantiles)) for item in bins]
        if before_sampling:
            tables = [_Moments.of(levels, table.weighted_back(levels)) for table in tables]
        means = [table.mean if before_sampling else item.mean for table, item in zip(tables, bins, strict=True)]
        self.mean = torch.tensor(means, dtype=torch.float32)
        self.std = torch.tensor([table.std for table in tables], dtype=torch.float32)
        if not before_sampling:  # use the profile's own mean and std, not those of the interpolated quantiles
            rms = torch.tensor([item.rms.value or 0.0 for item in bins])
            self.std = (rms**2 - self.mean**2).clamp(min=0).sqrt()
        self.rms = torch.hypot(self.mean, self.std)
        self.largest = float(self.rms.max())
        self.edges = torch.tensor([item.low for item in bins[1:]], dtype=torch.float32)
        from scipy.special import ndtr  # imported here, so that a run without a profile does not load scipy

        normal = ndtr(np.linspace(-WIDEST, WIDEST, GRID))  # a regular grid, so that a draw needs no search
        shapes = [np.interp(normal, levels, table.standardised()) for table in tables]
        self._table = torch.tensor(np.stack(shapes), dtype=torch.float32)

    def to(self, device: torch.device) -> None:
        """Move the tables to a device."""
        if self.edges.device != device:
            for name in ("edges", "mean", "rms", "std", "_table"):
                setattr(self, name, getattr(self, name).to(device))

    def bins(self, probabilities: Tensor) -> Tensor:
        """The index of each probability's bin: the last bin whose lower edge is not above it."""
        return torch.bucketize(probabilities, self.edges, right=True)

    def standardised(self, bins: Tensor, latent: Tensor) -> Tensor:
        """Turn standard normal draws into draws with the shape of each one's bin, mean 0 and variance 1."""
        place = (latent.clamp(-WIDEST, WIDEST) + WIDEST) * ((GRID - 1) / (2 * WIDEST))
        left = place.long().clamp(max=GRID - 2)
        index = bins * GRID + left
        return torch.lerp(self._table.take(index), self._table.take(index + 1), place - left)


@dataclass(frozen=True)
class _Moments:
    """A piecewise linear inverse distribution function with its exact mean and standard deviation."""

    quantiles: npt.NDArray[np.float64]
    mean: float
    std: float

    @classmethod
    def of(cls, levels: npt.NDArray[np.float64], quantiles: npt.NDArray[np.float64]) -> _Moments:
        width, left, right = np.diff(levels), quantiles[:-1], quantiles[1:]
        mean = float(width @ (left + right) / 2)
        variance = float(width @ (left**2 + left * right + right**2) / 3) - mean**2
        return cls(quantiles, mean, math.sqrt(max(variance, 0.0)))

    def standardised(self) -> npt.NDArray[np.float64]:
        return (self.quantiles - self.mean) / max(self.std, 1e-15)

    def weighted_back(self, levels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Quantiles at the same levels after each value d is weighted by ``exp(d)``."""
        middle = np.clip((self.quantiles[:-1] + self.quantiles[1:]) / 2, -LARGEST_EXPONENT, LARGEST_EXPONENT)
        cumulative = np.concatenate([[0.0], np.cumsum(np.diff(levels) * np.exp(middle))])
        return np.interp(levels, cumulative / cumulative[-1], self.quantiles)


def logit_scale(probabilities: Tensor, target: Tensor, *, largest: float) -> Tensor:
    """Standard deviations (..., V) of logit noise under which d has standard deviation `target` at each token.

    Inverts the law of the module's docstring at every position: minimises ``sum_a p_a (s_a^2 / Var_a + log Var_a)``
    over ``0 <= x_v <= largest^2``. The tokens of one position are tied to each other, so that no x may meet all
    targets; the fit is then closest at the likeliest tokens.
    """
    p = probabilities.double()
    squares, distance = p**2, (1 - p) ** 2
    wanted = target.double() ** 2 + SMALLEST_VARIANCE
    most = (largest**2) + SMALLEST_VARIANCE
    x = torch.minimum(wanted / (distance + SMALLEST_VARIANCE), wanted.new_tensor(most))
    for _ in range(CALIBRATION_STEPS):
        spread = squares * x
        variance = distance * x + (spread.sum(-1, keepdim=True) - spread).clamp(min=0) + SMALLEST_VARIANCE
        push = p / variance
        pull = push * (wanted / variance)
        up = squares * (pull.sum(-1, keepdim=True) - pull) + distance * pull
        down = squares * (push.sum(-1, keepdim=True) - push) + distance * push
        x = (x * up / (down + SMALLEST_VARIANCE)).clamp(SMALLEST_VARIANCE, most)
    return x.sqrt().to(target.dtype)


def _normal(generators: Sequence[torch.Generator], *shape: int, device: torch.device | str) -> Tensor:
    draws = [torch.randn(*shape, generator=g, device=g.device) for g in generators]
    return torch.stack(draws).to(device)
