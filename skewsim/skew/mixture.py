"""One token of healthy data: a mixture of normals over bins of its probability, and the metrics of that mixture.

Noise on the logits falls on improbable tokens, so the skew of all tokens together is no Gaussian but a mixture: most
tokens hardly differ, a few differ much. `SHARES` and `SCALES` are that mixture as measured on 771,300 tokens of
Qwen3-1.7B, bfloat16 vLLM against bfloat16 transformers, in five bins of the token's probability (AknA13/train-infer-
mismatch, docs/RESULTS_MEASURE_Qwen3-1p7B.md). Within a bin the scales still differ; two of them, equally frequent, are
what the measured rms and the measured mean together ask for. At another noise level every scale moves alike. In a
component of scale s the skew is N(-s^2/2, s^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from skewsim.errors import UserError
from skewsim.skew.effect import Of
from skewsim.skew.published import MEAN_ABS_BY_PROBABILITY, find_run

Array = npt.NDArray[np.float64]
TOKENS_BY_PROBABILITY = (2099, 13645, 61666, 116287, 577603)
"""How many of the 771,300 tokens have a probability below .01, .1, .5, .9 and above; as `MEAN_ABS_BY_PROBABILITY`."""
LARGEST_SIGMA = 2.0
LARGEST_EXPONENT = 200.0


def _mixture() -> tuple[Array, Array]:
    """Shares (2K,) and scales (2K,) relative to an rms of one."""
    share = np.array(TOKENS_BY_PROBABILITY) / sum(TOKENS_BY_PROBABILITY)
    scale = np.array(MEAN_ABS_BY_PROBABILITY) * math.sqrt(math.pi / 2)  # a Gaussian's, from its mean size
    rms = find_run("qwen3-1.7b-bf16").values["rms"]
    excess = rms**2 / float((share * scale**2).sum())  # what one scale a bin leaves unexplained
    spread = math.sqrt(max(excess - 1, 0.0))
    both = np.concatenate([scale * (1 - spread), scale * (1 + spread)])
    return np.tile(share / 2, 2), both / rms


SHARES, SCALES = _mixture()


def d_interval(of: Of, bound: float) -> tuple[float, float]:
    """The skews at which a token's number is at most ``bound``: (-inf, bound] for d itself."""
    if of == "d":
        return -math.inf, bound
    if of == "mult":
        return -math.log(bound), math.log(bound)
    if of == "k2":
        return -math.sqrt(2 * bound), math.sqrt(2 * bound)
    return _k3_root(bound, upper=False), _k3_root(bound, upper=True)


def _k3_root(bound: float, *, upper: bool) -> float:
    """The root of exp(d) - 1 - d = bound on one side of 0."""
    from scipy import optimize  # imported here, so that a command that needs none of it starts without scipy

    far = math.log1p(bound)
    edge = min(math.sqrt(2 * bound), far + math.log1p(far) + 2) * (1 + 1e-9) if upper else -1 - bound
    return float(optimize.brentq(lambda d: _k3(d) - bound, 0.0, edge))


def _k3(d: float) -> float:
    """exp(d) - 1 - d, by its series where the terms would cancel."""
    return d**2 / 2 * (1 + d / 3 * (1 + d / 4)) if abs(d) < 1e-4 else math.expm1(d) - d


def token_number(of: Of, d: Array) -> Array:
    """A token's number, from its skew."""
    if of == "d":
        return d
    if of == "k2":
        return np.asarray(d**2 / 2)
    d = np.clip(d, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    return np.asarray(np.exp(np.abs(d)) if of == "mult" else np.expm1(d) - d)


_NODES = np.linspace(-9, 9, 3601)
_NODE_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


def expected(sigma: float, value: Callable[[Array], Array]) -> float:
    """The mean of ``value(d)`` over the tokens of the mixture."""
    scale = SCALES[:, None] * sigma
    return float(SHARES @ (value(_NODES * scale - scale**2 / 2) @ _NODE_WEIGHTS))


def sigma_of(metric: str, value: float) -> float:
    """The noise level at which a metric (a key of `skew_metrics`, or rms) of healthy data has this value.

    UserError where the metric says nothing of the noise level, or no level up to 2 nats gives the value.
    """
    if metric == "rms":
        return value
    law = _LAWS.get(metric)
    if law is None:
        raise UserError(f"metric {metric} does not tell the noise level; allowed: rms, {', '.join(_LAWS)}")
    least, most = (law(s) for s in (1e-6, LARGEST_SIGMA))
    if not min(least, most) < value < max(least, most):
        raise UserError(
            f"{metric}={value:g}: healthy data has between {min(least, most):.3g} and {max(least, most):.3g}"
        )
    from scipy import optimize  # imported here, so that a command that needs none of it starts without scipy

    return float(optimize.brentq(lambda s: law(s) - value, 1e-6, LARGEST_SIGMA, xtol=1e-12))


_LAWS: dict[str, Callable[[float], float]] = {
    "logprob_diff_mean": lambda s: expected(s, np.abs),
    "logprob_diff_std": lambda s: math.sqrt(expected(s, np.square) - expected(s, np.abs) ** 2),
    "kl_k1": lambda s: expected(s, np.negative),
    "kl_k3": lambda s: expected(s, lambda d: token_number("k3", d)),
    "mult_prob_error": lambda s: expected(s, lambda d: token_number("mult", d)),
    "chi2_token": lambda s: float(SHARES @ np.expm1((SCALES * s) ** 2)),
    "ess": lambda s: 1 / float(SHARES @ np.exp((SCALES * s) ** 2)),
}
"""Metric -> its value in healthy data of rms sigma; each of them rises, or falls, throughout."""
