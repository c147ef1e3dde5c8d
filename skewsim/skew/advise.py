"""What every framework's default threshold does to perfectly healthy data, and the setting that does the least harm.

Healthy data is described in `skewsim.skew.healthy`, the thresholds in `skewsim.skew.rules`. Four figures say what a
rule
does to it: the share of tokens or sequences that it touches; the mean weight, which is 1 for exact weights and says how
much of the gradient is left; the bias, E |w - exact|, the most by which that shifts the expected gradient as a share of
it; and the effective sample size (E w)^2 / E w^2. A rule's harm is its bias, or the share lost to variance (1 - ESS),
whichever is more.

A suggestion is the bounds of least harm between the default and those that healthy data does not reach: for a rejection
the latter, for a weight that multiplies up over a sequence something between, because the wider its cap the fewer
sequences make up the gradient. Where even that costs more than `BEARABLE`, no bound helps, and the advice is to weigh
tokens or to look at means instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from skewsim.catalogue import SEQUENCE_EXPONENT
from skewsim.errors import UserError
from skewsim.html import bar, heading, table
from skewsim.skew.drawn import Draw, Drawn, mixture_draw, profile_draw, table_draw
from skewsim.skew.effect import Effect, Healthy
from skewsim.skew.healthy import ClosedForm
from skewsim.skew.mixture import LARGEST_SIGMA
from skewsim.skew.rules import RULES, Rule
from skewsim.skew.tokens import TokenTable

if TYPE_CHECKING:
    from skewsim.skew.profile import SkewProfile

Bounds = tuple[float | None, float | None]
BEARABLE = 0.5
"""Harm above which bounds are not worth suggesting."""
AS_IT_IS = "as it is"
"""The advice where the default does the least harm."""
MARGIN = 1.02
"""By how much a suggestion goes beyond the quantile it is made from."""
STEPS = 24
"""How many bounds between the default and the quantile are tried for a weight."""


@dataclass(frozen=True)
class AdviseRow:
    """What one rule does to healthy data."""

    source: Rule
    fired: float
    """Share of tokens (token rules) or sequences (the others) that the default touches."""
    effect: Effect
    """Mean weight, bias and effective sample size under the default."""
    bounds: Bounds | None = None
    """The suggested bounds; None: the default may stay, or no bounds help."""
    promised: float = 0.0
    """Share that the suggestion touches at most."""
    instead: str | None = None
    """What to set in place of this rule, where no bounds help."""

    @property
    def framework(self) -> str:
        return self.source.framework

    @property
    def rule(self) -> str:
        return self.source.rule

    @property
    def ess(self) -> float:
        """Effective sample size of the weights it leaves, as a fraction."""
        return self.effect.ess

    @property
    def mean_weight(self) -> float:
        """E w; of a rejection, the share kept."""
        return self.effect.mean

    @property
    def bias(self) -> float:
        """E |w - exact|, at most 1."""
        return min(self.effect.bias, 1.0)

    @property
    def default(self) -> str:
        return self.source.text(self.source.low, self.source.high)

    @property
    def healthy(self) -> str | None:
        """The setting of least harm, in the framework's own words."""
        return None if self.bounds is None else self.source.text(*self.bounds)

    @property
    def advice(self) -> str:
        """What to do, in words."""
        if self.instead:
            return f"none helps; use {self.instead}"
        return self.healthy or AS_IT_IS

    def to_json(self) -> dict[str, Any]:
        better = self.healthy or self.instead
        setting = self.default if better is None else f"{self.default} (better: {better})"
        keeps = self.source.action in ("reject", "mask")
        share = {"kept": 1 - self.fired} if keeps else {"clipped": self.fired}
        effect = {"ess": self.ess, "mean_weight": self.mean_weight, "bias": self.bias}
        suggested = {"suggested": self.healthy, "suggested_touches": self.promised if self.bounds else None}
        return {
            "framework": self.framework,
            "rule": self.rule,
            "setting": setting,
            "default": self.default,
            "example": self.source.example,
            "per": self.source.per,
            **share,
            **effect,
            **suggested,
            "advice": self.advice,
        }


@dataclass(frozen=True)
class AdviseReport:
    """The table for one noise level and one length."""

    sigma: float
    length: int
    rows: tuple[AdviseRow, ...]
    source: str
    """"closed form", or the profile's or log's name."""
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        rows = [row.to_json() for row in self.rows]
        return {"sigma": self.sigma, "length": self.length, "source": self.source, "rows": rows}

    def _repr_html_(self) -> str:
        columns = ("framework", "rule", "touches", "", "mean weight", "ess", "default", "better")
        rows = [
            (r.framework, r.rule, f"{r.fired:.1%}", bar(r.fired), r.mean_weight, r.ess, r.default, r.advice)
            for r in self.rows
        ]
        said = f"Healthy data, rms skew {self.sigma:.3g} nats, {self.length} tokens ({self.source})"
        return heading(said) + table(columns, rows)


def advise(
    noise: float | SkewProfile | TokenTable,
    length: int,
    *,
    tolerance: float = 1e-3,
    draws: int = 4_000_000,
    seed: int = 0,
) -> AdviseReport:
    """What every default does to healthy data of this noise level and length.

    `noise` is sigma, the rms skew per token in nats, or a profile, or a log's tokens; `length` is response tokens;
    `tolerance` is the share of tokens or sequences on which a rejection may fire and still counts as not firing.
    UserError on values outside (0, 2], [1, 1e6], (0, 0.5).
    """
    if not 1 <= length <= 1_000_000:
        raise UserError(f"length={length}: allowed are 1 to 1000000 tokens")
    if not 0 < tolerance < 0.5:
        raise UserError(f"tolerance={tolerance}: allowed is more than 0 and less than 0.5")
    if isinstance(noise, int | float):
        if not 0 < noise <= LARGEST_SIGMA:
            raise UserError(f"sigma={noise}: allowed is more than 0 and at most {LARGEST_SIGMA:g} nats")
        return _report(ClosedForm(float(noise), length), "closed form", tolerance)
    sequences = int(min(20_000, max(1000, draws // length)))
    if isinstance(noise, TokenTable):
        name = str(noise.meta.get("source", "log"))
        return _report(Drawn.of(table_draw(noise), sequences, length, seed), name, tolerance)
    return _report(Drawn.of(profile_draw(noise), sequences, length, seed), noise.name, tolerance)


def simulate(
    sigma: float,
    length: int,
    *,
    sequences: int = 4000,
    tolerance: float = 1e-3,
    seed: int = 0,
    draw: Draw | None = None,
) -> AdviseReport:
    """The same table by drawing skew and applying every rule: the check of the closed forms."""
    return _report(Drawn.of(draw or mixture_draw(sigma), sequences, length, seed), "simulated", tolerance)


def _report(data: Healthy, source: str, tolerance: float) -> AdviseReport:
    return AdviseReport(data.rms, data.length, tuple(judge(rule, data, tolerance) for rule in RULES), source, tolerance)


# ----------------------------------------------------------------------------------------------- one rule


def fires(rule: Rule, data: Healthy, bounds: Bounds) -> float:
    """The share of tokens or sequences that the rule touches with these bounds."""
    return min(max(1 - data.inside(rule.fold, rule.of, *rule.bounds(*bounds)), 0.0), 1.0)


def effect(rule: Rule, data: Healthy, bounds: Bounds) -> Effect:
    """What the rule makes of the data with these bounds."""
    return data.effect(rule.fold, rule.of, *rule.bounds(*bounds), rule.action)


def judge(rule: Rule, data: Healthy, tolerance: float) -> AdviseRow:
    """A rule's row: what its default does, and what does less harm."""
    default: Bounds = (rule.low, rule.high)
    row = AdviseRow(rule, fires(rule, data, default), effect(rule, data, default))
    wide = not_reached(rule, data, tolerance)
    tried = {bounds: effect(rule, data, bounds) for bounds in _between(rule, default, wide)}
    best = min(tried, key=lambda bounds: tried[bounds].harm)
    if rule.instead and (tried[best].harm > BEARABLE or _beyond_reach(rule, best)):
        return AdviseRow(rule, row.fired, row.effect, instead=rule.instead)
    if row.effect.harm - tried[best].harm <= tolerance:
        return row
    promised = fires(rule, data, best)
    return AdviseRow(rule, row.fired, row.effect, best, max(promised, tolerance))


def _beyond_reach(rule: Rule, bounds: Bounds) -> bool:
    """Whether a bound on a sum would have to be one that no sum within the frameworks' exponent can reach."""
    low, high = rule.bounds(*bounds)
    return rule.of == "d" and rule.action == "reject" and max(-low, high) > SEQUENCE_EXPONENT


def not_reached(rule: Rule, data: Healthy, tolerance: float) -> Bounds:
    """Bounds outside which healthy data falls with at most the tolerance, rounded outward by a little."""
    sides = (rule.low is not None) + (rule.high is not None)
    if sides == 0:
        return None, None

    def at(level: float) -> float:
        return data.quantile(rule.fold, rule.of, level)

    if rule.of != "d":
        beyond = 1 + (at(1 - tolerance) - 1) * MARGIN if rule.of == "mult" else at(1 - tolerance) * MARGIN
        return None, max(beyond, rule.high or 0.0)
    low = high = None
    if rule.low is not None:
        level = tolerance if rule.fold == "min" else tolerance / sides
        ratio = math.exp(max(_lower(rule, data, level), -100.0))
        low = min(ratio / MARGIN if ratio < 0.5 else 1 - (1 - ratio) * MARGIN, rule.low)
    if rule.high is not None:
        ratio = math.exp(min(at(1 - tolerance / sides), 100.0))
        high = max(ratio * MARGIN if ratio > 2 else 1 + (ratio - 1) * MARGIN, rule.high)
    return low, high


def _lower(rule: Rule, data: Healthy, level: float) -> float:
    """The quantile below which a share of ``level`` lies; of any: of the sequences' least tokens."""
    return data.quantile("min" if rule.fold == "any" else rule.fold, rule.of, level)


def _between(rule: Rule, default: Bounds, wide: Bounds) -> list[Bounds]:
    """The default, and the bounds to try: for a weight of sequences also some on the way to those that are not
    reached.
    """
    steps = STEPS if rule.fold == "sum" and rule.action in ("truncate", "mask") else 1
    return [default, *(_mix(default, wide, float(part)) for part in np.linspace(0, 1, steps + 1)[1:])]


def _mix(default: Bounds, wide: Bounds, part: float) -> Bounds:
    """Bounds a part of the way from one to the other, geometrically."""

    def mix(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else b if part == 1 else a ** (1 - part) * b**part

    return mix(default[0], wide[0]), mix(default[1], wide[1])
