"""A gate for CI: does a token table stay within limits on its metrics?

Limits are written ``kl_k3=1e-3`` and name a metric of `skewsim.skew.metrics`, with or without its record
group (``skew/kl_k3``), or by another framework's name for it (``token_mult_prob_error``, ``rollout_corr/k3_kl``).
``abs_bias`` is the bias without its sign. ``nonfinite`` and ``placeholder`` count the tokens whose values are no number
or no log-probability (above 0, -9999, a zero that the other side does not bear out); both are 0 unless a limit allows
more, and such tokens are in no other metric. A metric that cannot be computed has not passed. Exit codes: 0 within
all limits, 1 outside one, 2 the user's mistake (a `UserError`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skewsim.errors import UserError
from skewsim.skew.curves import find_name
from skewsim.skew.metric_table import METRICS, SKEW_KEYS
from skewsim.skew.metrics import ragged_skew_metrics
from skewsim.skew.tokens import TokenTable

Side = Literal["max", "min"]
ABOVE_ZERO = 1e-5
"""Rounding of a log-softmax may leave a probability this little above 1."""


@dataclass(frozen=True)
class Check:
    """One limit and what was found."""

    metric: str
    side: Side
    limit: float
    value: float

    @property
    def passed(self) -> bool:
        """NaN passes neither side."""
        return self.value <= self.limit if self.side == "max" else self.value >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.side == "max" else ">="
        return f"{'pass' if self.passed else 'FAIL'}  {self.metric} = {self.value:.4g}  (needs {sign} {self.limit:g})"


@dataclass(frozen=True)
class GateReport:
    """All limits together."""

    checks: tuple[Check, ...]
    tokens: int
    left_out: int
    """Rows that no metric is measured on."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def exit_code(self) -> int:
        return 0 if self.passed else 1

    def to_json(self) -> dict[str, Any]:
        checks = [
            {
                "metric": check.metric,
                "side": check.side,
                "limit": check.limit,
                "value": check.value if math.isfinite(check.value) else None,
                "passed": check.passed,
            }
            for check in self.checks
        ]
        return {"passed": self.passed, "tokens": self.tokens, "left_out": self.left_out, "checks": checks}


COUNTS = ("nonfinite", "placeholder")
"""Tokens that may not be there: a limit on one replaces the default of 0."""


def gate(
    table: TokenTable,
    *,
    maximum: Sequence[str] = (),
    minimum: Sequence[str] = (),
    placeholder: npt.NDArray[np.bool_] | None = None,
) -> GateReport:
    """Check a table against limits like ``"kl_k3=1e-3"``.

    `placeholder` are the rows whose values are finite and no log-probabilities (`skewsim.diagnose.count_values`);
    without it those above 0 alone. UserError: no limit, an unknown metric, an empty table.
    """
    limits = [(*_parse(text), "max") for text in maximum] + [(*_parse(text), "min") for text in minimum]
    if not limits:
        raise UserError(
            "gate: no limit given; allowed: --max METRIC=VALUE, as in --max kl_k3=1e-3, --min METRIC=VALUE, as in --min ess=0.9"
        )
    finite = np.isfinite(table.skew)
    if not finite.any():
        raise UserError(f"gate: none of the table's {len(table)} rows has two finite log-probabilities")
    filled = (
        np.maximum(table.engine_logprob, table.trainer_logprob) > ABOVE_ZERO if placeholder is None else placeholder
    )
    filled = filled & finite
    usable = finite & ~filled
    found = table_metrics(table.select(usable)) if usable.any() else dict.fromkeys(SKEW_KEYS, math.nan)
    found["abs_bias"] = abs(found["bias"])
    found |= {"nonfinite": float((~finite).sum()), "placeholder": float(filled.sum())}
    named = {name for name, _, _ in limits}
    limits += [(name, 0.0, "max") for name in COUNTS if name not in named]
    checks = tuple(Check(name, "max" if side == "max" else "min", limit, found[name]) for name, limit, side in limits)
    return GateReport(checks, int(usable.sum()), int((~usable).sum()))


def table_metrics(table: TokenTable) -> dict[str, float]:
    """The skew metrics of a table's rows; those without two finite values are left out.

    Memory is that of the rows, however their sequences differ in length.
    """
    kept = np.isfinite(table.skew)
    _, sequence = np.unique(table.sequence[kept], return_inverse=True)
    return ragged_skew_metrics(table.trainer_logprob[kept], table.engine_logprob[kept], sequence)


def metric_names() -> dict[str, str]:
    """Every name a limit may use -> the key of `skew_metrics`."""
    names = {name: name for name in ("abs_bias", *COUNTS)}
    for key, metric in METRICS.items():
        group, _, short = key.partition("/")
        if group in ("skew", "ratio"):
            aliases = [alias.split(" (")[0] for alias in metric.aliases.values()]
            names |= dict.fromkeys((key, short, *aliases), short)
    return names


def _logged_name(name: str, known: set[str]) -> str | None:
    """The metric that a framework logs under this name, where the number needs no conversion."""
    row = find_name(name)
    key = None if row is None or row.convert else row.key.partition("/")[2]
    return key if key in known else None


def _parse(text: str) -> tuple[str, float]:
    name, separator, value = text.partition("=")
    names = metric_names()
    key = names.get(name.strip()) or _logged_name(name.strip(), set(names.values()))
    if not separator or key is None:
        allowed = ", ".join(sorted(set(names.values())))
        raise UserError(f"gate: limit {text!r} is not METRIC=VALUE with a known metric; allowed: {allowed}")
    try:
        limit = float(value)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UserError(f"gate: limit {text!r}: {value!r} is no number")
    return key, limit
