"""The noise level that a person has at hand, in whatever words: a figure, another framework's metric, a profile, a
log.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skewsim.errors import UserError
from skewsim.skew.curves import find_name
from skewsim.skew.gate import metric_names
from skewsim.skew.metric_table import METRICS
from skewsim.skew.mixture import sigma_of
from skewsim.skew.tokens import TokenTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from skewsim.skew.profile import SkewProfile

LARGEST = 2.0
"""Nats; no level is larger."""
WAYS = ("--sigma", "--mean-abs", "--k3", "--metric", "--profile", "--log")


@dataclass(frozen=True)
class NoiseLevel:
    """What `advise` is given."""

    noise: float | SkewProfile | TokenTable
    length: int


def noise_of(
    length: int | None,
    *,
    sigma: float | None = None,
    mean_abs: float | None = None,
    k3: float | None = None,
    metric: str | None = None,
    profile: str | None = None,
    log: TokenTable | None = None,
) -> NoiseLevel:
    """The noise level given in exactly one of the ways. UserError: none or several, or a value it cannot be."""
    given: Mapping[str, object] = dict(zip(WAYS, (sigma, mean_abs, k3, metric, profile, log), strict=True))
    ways = [name for name, value in given.items() if value is not None]
    if len(ways) != 1:
        found = " and ".join(ways) or "none"
        raise UserError(f"advise needs one of --sigma or --profile, {', '.join(WAYS[1:4])}, --log; given: {found}")
    if log is not None:
        return NoiseLevel(log, length or mean_length(log))
    if length is None:
        raise UserError("advise needs --length, in response tokens (a --log has its own)")
    if profile is not None:
        from skewsim.skew.profile import load_profile  # imported here: it loads pydantic

        return NoiseLevel(load_profile(profile), length)
    if sigma is not None:
        return NoiseLevel(sigma, length)
    if mean_abs is not None:
        return NoiseLevel(sigma_of("logprob_diff_mean", mean_abs), length)
    if k3 is not None:
        return NoiseLevel(sigma_of("kl_k3", k3), length)
    return NoiseLevel(sigma_by_name(metric or ""), length)


def sigma_by_name(text: str) -> float:
    """The noise level from ``NAME=VALUE``, the name being ours or any framework's."""
    name, separator, value = text.partition("=")
    logged = name.strip()
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not separator or not math.isfinite(number):
        raise UserError(f"--metric {text!r} is not NAME=VALUE; an example: --metric mismatch_kl/all/mean=0.002")
    short = {key.partition("/")[2]: key for key in METRICS if key.partition("/")[0] in ("skew", "ratio")}
    if logged in short or logged in METRICS or logged == "rms":
        return sigma_of(logged.rpartition("/")[2], number)
    row = find_name(logged)
    if row is not None:
        return sigma_of(row.key.rpartition("/")[2], float(row.values(np.array([number]))[0]))
    if logged in metric_names():
        return sigma_of(metric_names()[logged], number)
    raise UserError(
        f"--metric {logged}: no name that is known; allowed: rms, {', '.join(short)}, or a framework's name"
    )


TELLING = ("kl_k3", "logprob_diff_mean", "mult_prob_error", "logprob_diff_std", "chi2_token", "ess", "kl_k1")
"""The metrics that tell a noise level, the most telling first."""
LEAST_SIGMA = 1e-5
FINE = 12
"""Values of a metric between which its noise level is interpolated."""


def levels_of(metric: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The noise level at which healthy data has each of these values of a metric (one of `TELLING`, or rms).

    NaN where healthy data has no such value, as a k3 below 0; `LARGEST` where it is beyond all levels.
    """
    found = np.asarray(values, dtype=np.float64).copy()
    if metric == "rms" or not np.isfinite(found).any():
        return found
    zero = 1.0 if metric in ("mult_prob_error", "ess") else 0.0
    distance = (zero - found) if metric == "ess" else found - zero
    known = np.isfinite(distance) & (distance > 0)
    levels = np.where(distance == 0, LEAST_SIGMA, np.nan)
    if known.any():
        least, most = float(distance[known].min()), float(distance[known].max())
        grid = np.unique([least, most]) if least == most else np.geomspace(least, most, min(FINE, int(known.sum()) + 1))
        table = [_level(metric, zero - each if metric == "ess" else zero + each) for each in grid]
        levels[known] = np.exp(np.interp(np.log(distance[known]), np.log(grid), np.log(table)))
    return np.asarray(levels)


def _level(metric: str, value: float) -> float:
    """`sigma_of`, and the ends of its range beyond it."""
    try:
        return sigma_of(metric, value)
    except UserError:
        return LEAST_SIGMA if abs(value - (metric in ("mult_prob_error", "ess"))) < LEAST_SIGMA else LARGEST


def mean_length(table: TokenTable) -> int:
    """The mean number of sampled tokens of its sequences."""
    return max(1, round(len(table) / max(len(np.unique(table.sequence)), 1)))
