"""A number among its like: the published runs just below and above it, and their range, in one sentence.

Its like are the published runs of role `usual`, of the same dtype and kind of model where those are given. A run that
published another metric is compared if that metric tells the rms (`CONVERSIONS`) and so does the number's; its figure
is then marked with ``~``. Other metrics are compared with the same metric alone.

The conversions hold for small truthful noise. ``sigma`` is the rms; a KL divergence of either estimator is sigma^2/2,
chi2 is sigma^2, the effective share exp(-sigma^2). The mean size is sigma / `SPREAD`, which is no property of a
Gaussian (that would be 1.25): noise falls on improbable tokens, and `SPREAD` is what Qwen3-1.7B showed in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from skewsim.errors import UserError
from skewsim.skew import curves
from skewsim.skew.published import PublishedRun, check_kind, own_metric, published_runs

SPREAD = 0.0449 / 0.0139
"""rms over mean size of the skew of Qwen3-1.7B, bfloat16 on both sides (`qwen3-1.7b-bf16` in the data)."""


@dataclass(frozen=True)
class Conversion:
    """A metric that tells the rms of small noise."""

    formula: str
    """The metric in terms of the rms, sigma."""
    to_rms: Callable[[float], float]
    from_rms: Callable[[float], float]


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else math.nan


def _rms_of_mult(value: float) -> float:
    """The root of 1 + sigma / SPREAD + sigma^2 / 2 = value."""
    return _root(1 / SPREAD**2 + 2 * (value - 1)) - 1 / SPREAD


CONVERSIONS: dict[str, Conversion] = {
    "rms": Conversion("sigma", lambda x: x, lambda s: s),
    "kl_k3": Conversion("sigma^2 / 2", lambda x: _root(2 * x), lambda s: s**2 / 2),
    "kl_k1": Conversion("sigma^2 / 2", lambda x: _root(2 * x), lambda s: s**2 / 2),
    "chi2_token": Conversion("sigma^2", _root, lambda s: s**2),
    "ess": Conversion(
        "exp(-sigma^2)", lambda x: _root(-math.log(x)) if x > 0 else math.nan, lambda s: math.exp(-(s**2))
    ),
    "logprob_diff_std": Conversion(
        f"{_root(1 - SPREAD**-2):.3f} sigma",
        lambda x: x / _root(1 - SPREAD**-2),
        lambda s: s * _root(1 - SPREAD**-2),
    ),
    "logprob_diff_mean": Conversion(f"sigma / {SPREAD:.2f}", lambda x: x * SPREAD, lambda s: s / SPREAD),
    "mult_prob_error": Conversion(
        f"1 + sigma / {SPREAD:.2f} + sigma^2 / 2", _rms_of_mult, lambda s: 1 + s / SPREAD + s**2 / 2
    ),
}
"""The metrics that are comparable with each other, the surest first."""


@dataclass(frozen=True)
class Neighbour:
    """A published run beside a number."""

    run: PublishedRun
    value: float
    """In the number's own metric."""
    converted_from: str | None = None
    """The metric that was published, if it is another one."""

    def __str__(self) -> str:
        return f"{self.run.name} ({'~' if self.converted_from else ''}{self.value:.3g})"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.run.id,
            "name": self.run.name,
            "value": self.value,
            "converted_from": self.converted_from,
            "source": self.run.source.title,
            "url": self.run.source.url,
        }


@dataclass(frozen=True)
class Placing:
    """A number among its like: ``below.value <= value <= above.value``, and neither is None if the number is inside."""

    metric: str
    value: float
    rms: float | None
    """The rms that the number stands for, nats; None if its metric does not tell one."""
    like: str
    """What it was compared with, in words; empty if with all."""
    runs: int
    low: float | None
    high: float | None
    below: Neighbour | None
    above: Neighbour | None

    @property
    def sentence(self) -> str:
        """The same in one sentence."""
        return f"{self.metric} {self.value:.3g}: {self._where()}"

    def __str__(self) -> str:
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "value": self.value,
            "rms": self.rms,
            "like": self.like,
            "runs": self.runs,
            "low": self.low,
            "high": self.high,
            "below": None if self.below is None else self.below.to_json(),
            "above": None if self.above is None else self.above.to_json(),
            "sentence": self.sentence,
        }

    def _where(self) -> str:
        like = f" {self.like}" if self.like else ""
        if self.low is None or self.high is None:
            return f"nothing is published{like} to compare it with"
        many = f"{self.runs} published runs{like} ({self.low:.3g} to {self.high:.3g})"
        if self.below is not None and self.above is not None:
            if self.below.value < self.above.value:
                return f"between {self.below} and {self.above}, among {many}"
            return f"as {self.below}, " + (f"among {many}" if self.runs > 1 else f"the only published run{like}")
        side, nearest = ("below", self.above) if self.below is None else ("above", self.below)
        if self.runs == 1:
            return f"{side} {nearest}, the only published run{like}"
        return f"{side} all {many}; the nearest is {nearest}"


def place(metric: str, value: float, *, dtype: str | None = None, model_kind: str | None = None) -> Placing:
    """Where a number stands among what is published.

    `metric` is ours (`rms`, `kl_k3`, `skew/kl_k3`, ...) or any framework's name; `dtype` (float32, float16, bfloat16,
    fp8) and `model_kind` (dense, moe) narrow its like down. UserError: a name that is not known, or no number.
    """
    check_kind(dtype, model_kind)
    key, convert = own_metric(metric)
    if not math.isfinite(value):
        raise UserError(f"{metric}={value} is not a number that can be compared")
    number = float(curves.CONVERSIONS[convert](np.array([value], dtype=np.float64))[0])
    near = sorted(filter(None, (neighbour(run, key) for run in _like(dtype, model_kind))), key=lambda n: n.value)
    values = [each.value for each in near]
    return Placing(
        metric=key,
        value=number,
        rms=rms_of(key, number),
        like=_words(dtype, model_kind),
        runs=len(near),
        low=min(values, default=None),
        high=max(values, default=None),
        below=max((each for each in near if each.value <= number), key=lambda n: n.value, default=None),
        above=min((each for each in near if each.value >= number), key=lambda n: n.value, default=None),
    )


def neighbour(run: PublishedRun, metric: str) -> Neighbour | None:
    """The run's figure of a metric, or the same from the surest other metric that it published; None if neither."""
    if metric in run.values:
        return Neighbour(run, run.values[metric])
    if metric not in CONVERSIONS:
        return None
    for other in CONVERSIONS:
        rms = rms_of(other, run.values[other]) if other in run.values else None
        if rms is not None:
            return Neighbour(run, CONVERSIONS[metric].from_rms(rms), other)
    return None


def rms_of(metric: str, value: float) -> float | None:
    """The rms of small truthful noise whose metric has this value; None if the metric or the value does not tell."""
    found = CONVERSIONS[metric].to_rms(value) if metric in CONVERSIONS else math.nan
    return found if found >= 0 else None


def _like(dtype: str | None, model_kind: str | None) -> list[PublishedRun]:
    return [
        run
        for run in published_runs()
        if run.role == "usual" and dtype in (None, run.dtype) and model_kind in (None, run.kind)
    ]


def _words(dtype: str | None, model_kind: str | None) -> str:
    kind = {None: "", "dense": " for dense models", "moe": " for mixtures of experts"}[model_kind]
    return f"{f'in {dtype}' if dtype else ''}{kind}".strip()
