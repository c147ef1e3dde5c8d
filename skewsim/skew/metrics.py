"""Every metric of the skew, computed from the logprobs of trainer and engine.

The skew of a token is ``d = trainer - engine`` in nats, its ratio ``rho = exp(d)``. Means are over sampled tokens (mask
1), or over the sequences that have at least one. A token of which either logprob is not finite is left out
(``count_nonfinite`` counts them); a metric with nothing to measure is NaN, never 0. Sequence exponents are clipped to
+-20, as in verl. Effective sample sizes are computed from the raw ratios; verl's are computed from truncated ratios and
are therefore larger.

The terms of each metric are defined once (`token_terms`, `sequence_terms`), for torch and numpy, and averaged in two
ways: over a rollout (`skew_metrics`, `batched_skew_metrics`), and over resampled sequences for the intervals of a
profile (`resampled_skew_metrics`). Without torch everything here works on numpy arrays.

`METRICS` is in `skewsim.skew.metric_table`, and here as well, for those who look for it where it was.

The functions ``expected_*`` give what independent Gaussian noise on each logit causes to first order, from
``d(a) = eta_a - sum_v p_v eta_v``. Skew that deviates from them is not such noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

from skewsim.catalogue import SEQUENCE_EXPONENT
from skewsim.skew.metric_table import METRICS as METRICS
from skewsim.skew.metric_table import SKEW_KEYS as SKEW_KEYS
from skewsim.skew.metric_table import Metric as Metric

TOKENS = (-2, -1)
SEQUENCES = (-1,)

Array: TypeAlias = "Tensor | NDArray[Any]"
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ProbabilityBin:
    """Skew of the tokens whose probability lies in [low, high)."""

    low: float
    high: float
    tokens: int
    abs_mean: float
    rms: float
    bias: float


# The terms that are averaged, for torch and numpy


def token_terms(d: Any) -> dict[str, Any]:
    """The quantities that metrics average over tokens, by the metric's name; ``d`` is the skew, of any shape."""
    xp = _namespace(d)
    return {
        "logprob_diff_mean": abs(d),
        "bias": d,
        "kl_k3": xp.expm1(d) - d,
        "mult_prob_error": xp.exp(abs(d)),
        "ratio_mean": xp.exp(d),
        "chi2_token": xp.expm1(2 * d),
    }


def sequence_terms(total: Any, tokens: Any) -> dict[str, Any]:
    """The quantities that metrics average over sequences, from each one's summed skew and number of tokens."""
    xp = _namespace(total)
    return {"chi2_seq": xp.expm1(2 * sequence_log_ratio(total)), "ppl_ratio": xp.exp(-total / tokens)}


def sequence_log_ratio(total: Any) -> Any:
    """A sequence's log-ratio: its summed skew, clipped to +-`SEQUENCE_EXPONENT`."""
    return total.clip(-SEQUENCE_EXPONENT, SEQUENCE_EXPONENT)


# The metrics of a rollout


def skew_metrics(trainer_logprobs: Array, engine_logprobs: Array, mask: Array) -> dict[str, float]:
    """Every skew metric of ``(N, T)`` logprobs (torch or numpy), computed in float64; keys as in ``SKEW_KEYS``.

    Where torch is installed it also computes the sums of numpy arrays, so that tensors and arrays give the same
    numbers. Without torch the numbers are the same up to rounding.
    """
    trainer, engine, sampled = (_common(x) for x in (trainer_logprobs, engine_logprobs, mask))
    return {name: float(value) for name, value in batched_skew_metrics(trainer, engine, sampled).items()}


def ragged_skew_metrics(trainer_logprobs: Floats, engine_logprobs: Floats, sequence: Ints) -> dict[str, float]:
    """`skew_metrics` of rows in any order: finite logprobs (rows,) and the index of each one's sequence, from 0.

    What is averaged over tokens needs no sequences; what is averaged over sequences needs their sums alone.
    """
    if not len(sequence):
        return dict.fromkeys(SKEW_KEYS, float("nan"))
    found = skew_metrics(trainer_logprobs[None], engine_logprobs[None], np.ones((1, len(sequence))))
    total, length = np.bincount(sequence, weights=trainer_logprobs - engine_logprobs), np.bincount(sequence)
    every = np.ones(len(total), dtype=bool)
    with _silent():
        terms = {name: _mean(term, every, SEQUENCES) for name, term in sequence_terms(total, length).items()}
        terms["ess_seq"] = _effective_share(sequence_log_ratio(total), every, SEQUENCES)
    return found | {name: float(value) for name, value in terms.items()}


@overload
def batched_skew_metrics(trainer_logprobs: Tensor, engine_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]: ...
@overload
def batched_skew_metrics(
    trainer_logprobs: NDArray[Any], engine_logprobs: NDArray[Any], mask: NDArray[Any]
) -> dict[str, Any]: ...
def batched_skew_metrics(trainer_logprobs: Any, engine_logprobs: Any, mask: Any) -> dict[str, Any]:
    """`skew_metrics` with leading axes: ``(..., N, T)`` to float64 ``(...)``; tensors give tensors, arrays arrays."""
    xp = _namespace(trainer_logprobs)
    trainer, engine = _float64(trainer_logprobs), _float64(engine_logprobs)
    with _silent():
        valid = (mask > 0) & xp.isfinite(trainer) & xp.isfinite(engine)
        d = xp.where(valid, trainer - engine, 0.0)
        sequences = valid.any(-1)
        total, length = d.sum(-1), valid.sum(-1).clip(1)
        terms = token_terms(d)
        size, size_mean = terms["logprob_diff_mean"], _mean(terms["logprob_diff_mean"], valid, TOKENS)
        found = {name: _mean(term, valid, TOKENS) for name, term in terms.items()}
        found |= {name: _mean(term, sequences, SEQUENCES) for name, term in sequence_terms(total, length).items()}
        found |= {
            "logprob_diff_std": xp.sqrt(_mean(xp.square(size - size_mean[..., None, None]), valid, TOKENS)),
            "logprob_diff_max": xp.where(sequences.any(-1), xp.amax(size, axis=TOKENS), xp.nan),
            "kl_k1": _mean(-d, valid, TOKENS),
            "ess": _effective_share(d, valid, TOKENS),
            "ess_seq": _effective_share(sequence_log_ratio(total), sequences, SEQUENCES),
            "pearson": _correlation(xp.exp(trainer), xp.exp(engine), valid),
        }
    return {name: found[name] for name in SKEW_KEYS}


def resampled_skew_metrics(
    trainer_logprobs: Floats, engine_logprobs: Floats, *, sequence: Ints, group: Ints, weights: Floats
) -> dict[str, Floats]:
    """The metrics of resampled sequences. Each replicate has every group of sequences ``weights`` times.

    ``weights`` is (replicates, groups). The logprobs are finite and, like ``sequence`` (the sequence's index from 0)
    and ``group``, of shape (rows,). Each metric is (replicates,). Everything is computed from sums per group, standard
    deviations too, so that a replicate needs a product of small matrices and not another pass over the tokens.
    """
    d, groups = trainer_logprobs - engine_logprobs, weights.shape[1]
    total, length = np.bincount(sequence, weights=d), np.bincount(sequence)
    group_of = np.zeros(len(total), dtype=np.int64)
    group_of[sequence] = group
    x, y = (np.exp(values) - np.exp(values).mean() for values in (trainer_logprobs, engine_logprobs))
    with _silent():
        terms, share, size = token_terms(d), np.exp(d - d.max()), np.abs(d)
        columns = [np.ones_like(d), size, size**2, d, *(terms[name] for name in _SUMMED), share, share**2]
        sums = weights @ _sums(group, groups, *columns, x, y, x * x, y * y, x * y)
        n, a, a2, bias, k3, mult, ratio, chi2, w, w2, sx, sy, xx, yy, xy = sums.T
        by_sequence, exponent = sequence_terms(total, length), sequence_log_ratio(total)
        share = np.exp(exponent - exponent.max())
        columns = [np.ones_like(total), by_sequence["chi2_seq"], share, share**2, by_sequence["ppl_ratio"]]
        k, chi2_seq, u, u2, ppl = (weights @ _sums(group_of, groups, *columns)).T
        largest = np.zeros(groups)
        np.maximum.at(largest, group, size)
        spread_x, spread_y = np.maximum(xx - sx**2 / n, 0), np.maximum(yy - sy**2 / n, 0)
        return {
            "logprob_diff_mean": a / n,
            "logprob_diff_std": np.sqrt(np.maximum(a2 / n - (a / n) ** 2, 0)),
            "logprob_diff_max": np.where(weights > 0, largest, 0).max(axis=1, initial=0),
            "bias": bias / n,
            "kl_k1": -bias / n,
            "kl_k3": k3 / n,
            "mult_prob_error": mult / n,
            "ratio_mean": ratio / n,
            "chi2_token": chi2 / n,
            "chi2_seq": chi2_seq / k,
            "ess": w**2 / (n * w2),
            "ess_seq": u**2 / (k * u2),
            "ppl_ratio": ppl / k,
            "pearson": (xy - sx * sy / n) / np.sqrt(spread_x * spread_y),
        }


_SUMMED = ("kl_k3", "mult_prob_error", "ratio_mean", "chi2_token")


def count_nonfinite(trainer_logprobs: Array, engine_logprobs: Array, mask: Array) -> int:
    """Number of sampled tokens that the metrics leave out because either logprob is NaN or infinite."""
    trainer, engine, sampled = (_common(x) for x in (trainer_logprobs, engine_logprobs, mask))
    xp = _namespace(trainer)
    return int(((sampled > 0) & ~(xp.isfinite(trainer) & xp.isfinite(engine))).sum())


PROBABILITY_EDGES = (0.0, 0.01, 0.1, 0.5, 0.9, float("inf"))


def by_probability(logprobs: Array, d: Array, mask: Array | None = None) -> list[ProbabilityBin]:
    """Skew by the token's probability ``exp(logprobs)``, in the published bins; a bin without tokens has NaN."""
    lp, skew = _float64(_common(logprobs)), _float64(_common(d))
    xp = _namespace(lp)
    valid = xp.isfinite(lp) & xp.isfinite(skew)
    if mask is not None:
        valid = valid & (_common(mask) > 0)
    probability, skew = xp.exp(lp[valid]), skew[valid]
    table = []
    for low, high in pairwise(PROBABILITY_EDGES):
        inside = skew[(probability >= low) & (probability < high)]
        every = xp.ones_like(inside, dtype=bool)
        with _silent():
            abs_mean, square, bias = (_mean(x, every, SEQUENCES) for x in (abs(inside), xp.square(inside), inside))
        table.append(
            ProbabilityBin(
                low=low,
                high=min(high, 1.0),
                tokens=len(inside),
                abs_mean=float(abs_mean),
                rms=float(xp.sqrt(square)),
                bias=float(bias),
            )
        )
    return table


def _namespace(values: Any) -> Any:
    """The module whose functions work on ``values``: torch for a tensor, numpy for anything else."""
    if isinstance(values, np.ndarray | np.generic):
        return np
    import torch

    return torch


def _common(values: Array) -> Any:
    """The values as the metrics use them: a tensor where torch is installed, else an array."""
    if hasattr(values, "detach"):
        return values.detach()
    try:
        import torch
    except ModuleNotFoundError:
        return np.asarray(values)
    return torch.as_tensor(np.ascontiguousarray(values))


def _float64(values: Any) -> Any:
    return values.astype(np.float64) if isinstance(values, np.ndarray) else values.detach().double()


def _silent() -> np.errstate:
    """Switches numpy's warnings of 0/0 and overflow off: a metric with nothing to measure is NaN, as in torch."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def _sums(group: Ints, groups: int, *values: Floats) -> Floats:
    """Sums of each value per group: (groups, len(values))."""
    return np.stack([np.bincount(group, weights=value, minlength=groups) for value in values], axis=1)


def _mean(values: Any, counted: Any, axes: tuple[int, ...]) -> Any:
    """Mean of the counted values; NaN if there are none."""
    return _namespace(values).where(counted, values, 0.0).sum(axes) / counted.sum(axes)


def _effective_share(log_weights: Any, counted: Any, axes: tuple[int, ...]) -> Any:
    """``1 / mean((w / mean w)^2)``; the weights are scaled so that the largest is 1, so that nothing overflows."""
    xp = _namespace(log_weights)
    log_weights = xp.where(counted, log_weights, -xp.inf)
    weights = xp.exp(log_weights - xp.amax(log_weights, axis=axes, keepdims=True))
    weights = xp.where(counted, weights, 0.0)
    return xp.square(weights.sum(axes)) / (counted.sum(axes) * xp.square(weights).sum(axes))


def _correlation(x: Any, y: Any, counted: Any) -> Any:
    """Pearson's correlation over tokens; NaN where either side is constant."""
    xp = _namespace(x)
    x = xp.where(counted, x - _mean(x, counted, TOKENS)[..., None, None], 0.0)
    y = xp.where(counted, y - _mean(y, counted, TOKENS)[..., None, None], 0.0)
    return (x * y).sum(TOKENS) / xp.sqrt(xp.square(x).sum(TOKENS) * xp.square(y).sum(TOKENS))


# Laws of independent Gaussian noise on the logits


def expected_skew_variance(probabilities: Array, token: int, sigma_z: float) -> float:
    """``Var d = sigma_z^2 ((1 - p_a)^2 + sum_{v != a} p_v^2)`` for the sampled token a; largest for improbable ones."""
    p = _float64(_common(probabilities))
    return float(sigma_z**2 * ((1 - p[token]) ** 2 + (p**2).sum() - p[token] ** 2))


def expected_kl(sigma_d: float) -> float:
    """``sigma_d^2 / 2``: k1 and k3 of Gaussian skew with spread sigma_d."""
    return sigma_d**2 / 2


def expected_ess_seq(sigma_d: float, tokens: float) -> float:
    """``exp(-T sigma_d^2)``: effective sample size of sequences of T tokens, as a share of their number."""
    return float(np.exp(-tokens * sigma_d**2))


def expected_kept(sigma_d: float, tokens: float, low: float, high: float) -> float:
    """Share of sequences whose geometric mean ratio lies inside [low, high].

    The ratio's log has mean ``-sigma_d^2 / 2`` and standard deviation ``sigma_d / sqrt(T)``.
    """
    from scipy.special import ndtr  # imported here, so that the trainer starts without scipy

    spread, mean = sigma_d / np.sqrt(tokens), -(sigma_d**2) / 2
    return float(ndtr((np.log(high) - mean) / spread) - ndtr((np.log(low) - mean) / spread))
