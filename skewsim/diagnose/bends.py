"""A bend of one side's logits against the other's, told from a temperature in equal contexts.

In one context every normaliser cancels, so a temperature is a line x = k y + const with one k everywhere. A softcap, or
another processor of logits, is a curve: steep where logits are small, flat where they are large. The curve shows as a
square term in equal contexts, or in tokens of other contexts, whose slope is then another one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skewsim.diagnose import signatures as sign
from skewsim.diagnose.findings import PLACED, Findings
from skewsim.diagnose.rows import Rows, within

LEAST_CURVE = 0.97
"""Least share of the skew in equal contexts that line and square term explain; other weights leave more."""
LEAST_SQUARE = 0.5
"""Least share of what the line leaves that the square term explains; noise leaves it a few hundredths."""
LEAST_CONTEXTS = 2.5
"""Contexts that carry the skew, as 1 / sum(share^2): a slope and a bend fit what one or two contexts have by chance."""
LEAST_LINE = 0.95
"""Least share of the line alone where only tokens of other contexts show the bend."""
LEAST_ALIKE = 0.4
"""Of a temperature's k - 1 the tokens of other contexts show at least this share, whatever their normalisers do."""
LEAST_REST = 2e-3
"""rms, nats, that the line must leave: below, it is a line to the digits of a log."""


@dataclass(frozen=True)
class Curve:
    """x = k y + c y^2 + const(context), fitted within contexts."""

    k: float
    line: float
    """Share of the skew's square within contexts that k alone explains."""
    square: float
    """Share of what k leaves that c explains."""
    rest: float
    """rms of what k leaves, nats."""
    tokens: int

    @property
    def both(self) -> float:
        return 1 - (1 - self.line) * (1 - self.square)


def context_curve(rows: Rows) -> Curve | None:
    """Least squares within repeated contexts; None with too few pairs of different tokens, or contexts with skew."""
    shared, y = within(rows.trainer, rows.context)
    _, x = within(rows.engine, rows.context)
    _, bent = within(rows.trainer**2, rows.context)
    if (np.abs(y) > 1e-3).sum() < 40:
        return None
    square = np.bincount(np.unique(rows.context[shared], return_inverse=True)[1], weights=(y - x) ** 2)
    if square.sum() ** 2 < LEAST_CONTEXTS * (square**2).sum():
        return None
    k = float((x * y).sum() / (y * y).sum())
    rest = x - k * y
    bent = bent - y * float((bent * y).sum() / (y * y).sum())
    left = float((rest**2).sum())
    taken = float((bent * rest).sum()) ** 2 / max(float((bent**2).sum()) * left, 1e-30)
    return Curve(k, 1 - left / max(float(((y - x) ** 2).sum()), 1e-30), taken, float(np.sqrt(left / len(y))), len(y))


def name_bend(findings: Findings) -> None:
    """A processor of logits on one side, where equal contexts show its curve; it moves every token, so nothing is left
    to measure on.
    """
    rows = findings.rows
    curve = context_curve(rows)
    if curve is None or curve.rest < LEAST_REST or findings.has(*PLACED) or sign.truth(rows).bias.z > 4:
        return
    alone = rows.select(rows.context < 0)
    share, elsewhere = (0.0, 1.0)
    if len(alone) >= 50:
        share, elsewhere = sign.curve_slope(alone, given=(alone.engine + alone.trainer) / 2)
    how = _how(curve, elsewhere if share > LEAST_SQUARE else None)
    if how is None:
        return
    tested = float((rows.skew[rows.context >= 0] ** 2).sum()) / max(float((rows.skew**2).sum()), 1e-30)
    findings.add(
        "one_sided_processor",
        (curve.both * tested + max(share, 0.0) * (1 - tested))
        * float((rows.skew**2).sum())
        / max(findings.total, 1e-30),
        f"within {curve.tokens} tokens of equal context one side is a curve of the other, which no temperature is: {how}; as of a softcap "
        "or a processor of logits on one side",
    )
    findings.rest = np.zeros(len(findings.rest))


def _how(curve: Curve, elsewhere: float | None) -> str | None:
    """The words for the bend; None if there is none."""
    if curve.both > LEAST_CURVE and curve.square > LEAST_SQUARE:
        return f"a slope of {curve.k:.3g} and a bend explain {curve.both:.1%} of the skew there, the slope alone {curve.line:.1%}"
    away = abs(curve.k - 1)
    if elsewhere is not None and curve.line > LEAST_LINE and abs(elsewhere - 1) < LEAST_ALIKE * away:
        return f"the slope is {curve.k:.3g} there and {elsewhere:.3g} elsewhere"
    return None
