"""Fits a SkewProfile to a token table: noise per logit, noise shared by a sequence, skew by probability, and the fit.

Independent noise of variance ``sigma_z^2`` on each logit gives, to first order (softmax's Jacobian),

    Var d = sigma_z^2 h,        h = (1 - p_a)^2 + sum_{v != a} p_v^2.

A table has p_a, and the second term only if it has `square_mass`. Without it the second term is assumed to be 0 (the
rest of the probability is spread over many tokens). As the term is at most (1 - p_a)^2, the true sigma_z lies between
the estimate and the estimate over sqrt 2.

The noise shared by a sequence is the between-sequence component of a one-way random-effects analysis of variance
(Searle, Casella, McCulloch 1992): in nats, of d minus its bin's mean; as a correlation, of d over its bin's rms.
Intervals are percentiles over resampled sequences (over at most 2000 random groups of them), because the tokens of a
sequence are not independent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from skewsim.errors import UserError
from skewsim.skew.metrics import resampled_skew_metrics, skew_metrics
from skewsim.skew.profile import Estimate, Fit, Kind, ProfileBin, Provenance, SkewProfile
from skewsim.skew.tokens import TokenTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PUBLISHED_EDGES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
FINE_EDGES = (
    *(0.0, 0.001, 0.002, 0.004, 0.007, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    *(0.85, 0.9, 0.925, 0.95, 0.965, 0.975, 0.983, 0.988, 0.992, 0.995, 0.997, 0.998, 0.999, 0.9995, 0.9998, 0.9999),
    *(0.99999, 1.0),
)
SMALLEST_BIN = 30  # tokens; a smaller bin is joined with its neighbour
_TAIL_LEVELS = (0.0, 0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01)
LEVELS = (*_TAIL_LEVELS, *(i / 50 for i in range(1, 50)), *(1 - level for level in reversed(_TAIL_LEVELS)))
LARGEST_GROUPS = 2000
CERTAIN = 0.99  # probability above which d is too small to tell a tail from rounding
MOST_DF = 1000.0  # largest df fitted; in practice a normal distribution
TAIL_BINS = 400
MOST_EXACT = 10_000  # tokens; with more, the p-value's exact distribution takes too long


@dataclass(frozen=True)
class Rows:
    """The usable rows of a table: skew, probability, law factor, sequence index and resampling group."""

    d: Floats
    p: Floats
    h: Floats
    sequence: Ints
    group: Ints
    groups: int
    left_out: int
    rest_known: bool


def fit_profile(
    table: TokenTable,
    *,
    name: str,
    provenance: Mapping[str, Any],
    bootstrap: int = 200,
    seed: int = 0,
    kind: Kind = "measured",
) -> SkewProfile:
    """Fit the profile of a table, with intervals from `bootstrap` resamplings of its sequences.

    `provenance` overrides entries of the table's meta. Raises UserError for fewer than two usable sequences.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,100}", name):
        raise UserError(f"profile name {name!r}: allowed are 1 to 100 letters, digits and _ . + -")
    rng = np.random.default_rng(seed)
    rows = _rows(table, rng)
    weights = np.ones((1, rows.groups))
    if bootstrap:
        even = np.full(rows.groups, 1 / rows.groups)
        weights = np.concatenate([weights, rng.multinomial(rows.groups, even, size=bootstrap)])
    fine = merged_edges(rows.p)
    bins = _bins(rows, weights, edges=fine, with_quantiles=True)
    coarse = _bins(rows, weights, edges=np.array(PUBLISHED_EDGES), with_quantiles=False)
    return SkewProfile(
        name=name,
        kind=kind,
        provenance=Provenance.from_table(table, provenance, tokens=len(rows.d), sequences=int(rows.sequence.max()) + 1),
        fit=_fit(rows, weights, bins=bins, edges=fine),
        metrics=_metrics(table, rows, weights),
        table=coarse,
        quantile_levels=[round(level, 6) for level in LEVELS],
        by_probability=bins,
    )


def _rows(table: TokenTable, rng: np.random.Generator) -> Rows:
    skew = table.skew
    usable = np.isfinite(skew)
    if len(np.unique(table.sequence[usable])) < 2:
        raise UserError(
            f"token table: {int(usable.sum())} of {len(table)} rows have both log-probabilities; "
            "a profile needs at least 2 sequences of them"
        )
    p = np.exp(np.minimum(table.trainer_logprob[usable], 0.0))
    rest = np.zeros_like(p)
    known = table.square_mass is not None and bool(np.isfinite(table.square_mass[usable]).all())
    if known and table.square_mass is not None:
        rest = np.clip(table.square_mass[usable] - p**2, 0.0, (1 - p) ** 2)
    _, sequence = np.unique(table.sequence[usable], return_inverse=True)
    count = int(sequence.max()) + 1
    groups = min(count, LARGEST_GROUPS)
    group = (rng.permutation(count) % groups)[sequence]
    h = np.maximum((1 - p) ** 2 + rest, 1e-16)
    return Rows(skew[usable], p, h, sequence, group, groups, int((~usable).sum()), known)


def _sums(rows: Rows, *values: Floats, where: Ints | None = None, size: int = 1) -> Floats:
    """Sums of each value per resampling group (and per bin `where`): shape (groups, len(values) * size)."""
    index = rows.group * size + (0 if where is None else where)
    sums = [
        np.bincount(index, weights=value, minlength=rows.groups * size).reshape(rows.groups, size) for value in values
    ]
    return np.concatenate(sums, axis=1)


def estimate(replicates: Floats) -> Estimate:
    """An Estimate of the first entry, with the 95 % percentile interval of the others; None for what is not finite."""
    value, others = replicates[0], replicates[1:][np.isfinite(replicates[1:])]
    if not np.isfinite(value):
        return Estimate(value=None)
    if len(others) == 0:
        return Estimate(value=float(value))
    low, high = np.percentile(others, [2.5, 97.5])
    return Estimate(value=float(value), low=float(low), high=float(high))


def merged_edges(p: Floats) -> Floats:
    """`FINE_EDGES` without those that would leave a bin of fewer than `SMALLEST_BIN` tokens."""
    counts, edges = np.histogram(p, FINE_EDGES)[0], [0.0]
    pending = 0
    for count, high in zip(counts, FINE_EDGES[1:], strict=True):
        pending += int(count)
        if pending >= SMALLEST_BIN:
            edges.append(high)
            pending = 0
    if len(edges) > 1:
        edges.pop()
    return np.array([*edges, 1.0])


def bin_index(p: Floats, edges: Floats) -> Ints:
    """The index of the bin ``[low, high)`` of each probability; the last bin includes 1."""
    return np.searchsorted(edges[1:-1], p, side="right").astype(np.int64)


def _bins(rows: Rows, weights: Floats, *, edges: Floats, with_quantiles: bool) -> list[ProfileBin]:
    where, size = bin_index(rows.p, edges), len(edges) - 1
    sums = _sums(rows, np.ones_like(rows.d), rows.d, np.abs(rows.d), rows.d**2, where=where, size=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        count, total, absolute, square = np.split(weights @ sums, 4, axis=1)
        mean, mean_abs, rms = total / count, absolute / count, np.sqrt(square / count)
    bins = []
    for index, (low, high) in enumerate(pairwise(edges)):
        inside = rows.d[where == index]
        filled = len(inside) > 0
        bins.append(
            ProfileBin(
                low=float(low),
                high=float(high),
                tokens=len(inside),
                mean=float(mean[0, index]) if filled else 0.0,
                mean_abs=estimate(mean_abs[:, index]),
                rms=estimate(rms[:, index]),
                quantiles=[float(f"{q:.7g}") for q in np.quantile(inside, LEVELS)] if filled and with_quantiles else [],
            )
        )
    return bins


def _fit(rows: Rows, weights: Floats, *, bins: list[ProfileBin], edges: Floats) -> Fit:
    count, total, square, law = (weights @ _sums(rows, np.ones_like(rows.d), rows.d, rows.d**2, rows.h)).T
    sigma_z = np.sqrt(square / law)
    df, distance, pvalue = _tail(rows, weights, sigma=float(sigma_z[0]))
    where = bin_index(rows.p, edges)
    centred = rows.d - np.array([item.mean for item in bins])[where]
    scale = np.array([item.rms.value or 0.0 for item in bins])[where]
    standardised = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
    return Fit(
        sigma_z=estimate(sigma_z),
        sigma_z_floor=float(sigma_z[0]) / (1.0 if rows.rest_known else 2**0.5),
        rest="measured" if rows.rest_known else "assumed spread thin",
        df=df,
        sequence_std=estimate(np.sqrt(np.maximum(_shared(rows, weights, centred)[0], 0.0))),
        sequence_correlation=estimate(np.clip(_correlation(rows, weights, standardised), 0.0, 1.0)),
        bias=estimate(total / count),
        rms=estimate(np.sqrt(square / count)),
        left_out=rows.left_out,
        ks_distance=distance,
        ks_pvalue=pvalue,
        law_error=_law_error(rows, bins, where=where, sigma=float(sigma_z[0])),
    )


def _shared(rows: Rows, weights: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Between- and within-sequence variance components of each replicate (one-way random effects, unbalanced)."""
    length = np.bincount(rows.sequence).astype(np.float64)
    total = np.bincount(rows.sequence, weights=values)
    square = np.bincount(rows.sequence, weights=values**2)
    group = np.zeros(len(length), dtype=np.int64)
    group[rows.sequence] = rows.group
    columns = (np.ones_like(length), length, length**2, total, total**2 / length, square)
    sums = np.stack([np.bincount(group, weights=column, minlength=rows.groups) for column in columns], axis=1)
    k, n, n2, s, a, q = (weights @ sums).T
    with np.errstate(invalid="ignore", divide="ignore"):
        within = (q - a) / (n - k)
        between = ((a - s**2 / n) / (k - 1) - within) / ((n - n2 / n) / (k - 1))
    return between, within


def _correlation(rows: Rows, weights: Floats, values: Floats) -> Floats:
    between, within = _shared(rows, weights, values)
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Floats = np.maximum(between, 0.0) / (np.maximum(between, 0.0) + within)
    return share


def _tail(rows: Rows, weights: Floats, *, sigma: float) -> tuple[Estimate, float | None, float | None]:
    """Student-t degrees of freedom of ``d / sqrt(h)`` by maximum likelihood, and the Kolmogorov-Smirnov fit."""
    usable = rows.p <= CERTAIN
    if sigma == 0 or usable.sum() < SMALLEST_BIN:
        return Estimate(value=None), None, None
    residual = np.where(usable, rows.d / np.sqrt(rows.h), 0.0)
    size = np.abs(residual)
    edges = np.unique(np.quantile(size[usable], np.linspace(0, 1, TAIL_BINS + 1)[1:-1]))
    where = np.searchsorted(edges, size, side="right").astype(np.int64)
    sums = _sums(rows, usable.astype(np.float64), np.where(usable, size, 0.0), where=where, size=len(edges) + 1)
    counts, totals = np.split(sums, 2, axis=1)
    centre = totals.sum(0) / np.maximum(counts.sum(0), 1)
    df, scale = student_fit(centre, weights[0] @ counts)
    others = student_refits(centre, weights[1:] @ counts, df=df, scale=scale)
    method = "exact" if usable.sum() < MOST_EXACT else "asymp"
    test = stats.kstest(residual[usable], stats.t(df, scale=scale).cdf, method=method)
    return estimate(np.concatenate([[df], others])), float(test.statistic), float(test.pvalue)


_LOG_DF, _LOG_SCALE = (np.log(1.01), np.log(MOST_DF)), (-4.0, 2.0)


def student_fit(size: Floats, count: Floats) -> tuple[float, float]:
    """Maximum-likelihood df and scale of a Student-t centred at 0, from absolute values ``size`` and their counts."""
    start = max(float(np.sqrt((count * size**2).sum() / count.sum())), 1e-12)
    share, ratio = count / count.sum(), (size / start) ** 2

    def loss(parameters: Floats) -> float:
        df, scale = np.exp(parameters)
        constant = special.gammaln((df + 1) / 2) - special.gammaln(df / 2) - np.log(df) / 2 - np.log(scale)
        return float((df + 1) / 2 * (share @ np.log1p(ratio / (df * scale**2))) - constant)

    first = np.array([np.log(6.0), -0.3])
    best = optimize.minimize(loss, first, method="Nelder-Mead", bounds=[_LOG_DF, _LOG_SCALE])
    df, scale = np.exp(best.x)
    return float(df), float(start * scale)


def student_refits(size: Floats, counts: Floats, *, df: float, scale: float) -> Floats:
    """The df of the same fit for many resamplings at once; ``counts`` (replicates, sizes), returns (replicates,).

    Uses Newton's method on the logarithms of df and scale, starting at the fit of the table itself.
    """
    share = counts / counts.sum(axis=1, keepdims=True)
    a, b = np.full(len(counts), np.log(df)), np.zeros(len(counts))
    for _ in range(60):
        nu = np.exp(a)
        q = (size / scale) ** 2 * np.exp(-a - 2 * b)[:, None]
        u = q / (1 + q)
        s, u, v = ((share * part).sum(axis=1) for part in (np.log1p(q), u, u * (1 - u)))
        psi = special.psi((nu + 1) / 2) - special.psi(nu / 2)
        psi1 = special.polygamma(1, (nu + 1) / 2) - special.polygamma(1, nu / 2)
        slope_a, slope_b = (nu * (s - psi) - (nu + 1) * u + 1) / 2, 1 - (nu + 1) * u
        aa = nu / 2 * (s - psi) - nu * u + (nu + 1) / 2 * v - nu**2 / 4 * psi1
        ab, bb = (nu + 1) * v - nu * u, 2 * (nu + 1) * v
        convex = aa * bb - ab**2 > 1e-12
        step_a = np.where(convex, (bb * slope_a - ab * slope_b) / np.where(convex, aa * bb - ab**2, 1), slope_a)
        before, a = a, np.clip(a - np.clip(step_a, -0.5, 0.5), *_LOG_DF)
        step_b = np.clip((slope_b + ab * (a - before)) / bb, -0.5, 0.5)  # given the step that df took
        b = b - step_b
        if max(np.abs(a - before).max(initial=0), np.abs(step_b).max(initial=0)) < 1e-6:
            break
    found: Floats = np.exp(a)
    return found


def _law_error(rows: Rows, bins: list[ProfileBin], *, where: Ints, sigma: float) -> float | None:
    """Largest relative deviation of a bin's rms from the logit-noise law, over the bins below `CERTAIN`."""
    law = np.bincount(where, weights=rows.h, minlength=len(bins))
    errors = [
        abs((item.rms.value or 0.0) / (sigma * np.sqrt(total / item.tokens)) - 1)
        for item, total in zip(bins, law, strict=True)
        if item.tokens >= SMALLEST_BIN and item.low < CERTAIN and sigma > 0
    ]
    return float(max(errors)) if errors else None


def _metrics(table: TokenTable, rows: Rows, weights: Floats) -> dict[str, Estimate]:
    """Every metric of `skewsim.skew.metrics`, with its interval."""
    usable = np.isfinite(table.skew)
    order = np.argsort(rows.sequence, kind="stable")
    sequence = rows.sequence[order]
    length = np.bincount(sequence)
    column = np.arange(len(order)) - np.repeat(np.cumsum(length) - length, length)
    trainer, engine, mask = np.zeros((3, len(length), int(length.max())))
    trainer[sequence, column] = table.trainer_logprob[usable][order]
    engine[sequence, column] = table.engine_logprob[usable][order]
    mask[sequence, column] = 1.0
    values = skew_metrics(trainer, engine, mask)
    others = resampled_skew_metrics(
        table.trainer_logprob[usable],
        table.engine_logprob[usable],
        sequence=rows.sequence,
        group=rows.group,
        weights=weights[1:],
    )
    return {key: estimate(np.concatenate([[value], others[key]])) for key, value in values.items()}
