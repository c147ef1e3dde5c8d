"""What a rule looks at, and what it makes of healthy data, whether that is a formula or drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Of = Literal["d", "k2", "k3", "mult"]
"""A token's number: its skew d = log rho; k2 = d^2/2; k3 = exp(d) - 1 - d; mult = exp(|d|)."""
Fold = Literal["token", "mean", "sum", "max", "min", "any"]
"""Over what it is taken: each token; a sequence's mean, sum, greatest or least; any: no token may leave the bounds."""
Action = Literal["truncate", "mask", "reject", "clip"]
"""truncate: the weight is clamped. mask: the weight is zero outside. reject, clip: the token or sequence is lost."""


@dataclass(frozen=True)
class Effect:
    """What a rule makes of healthy data: moments of the weights it leaves."""

    mean: float
    """E w; 1 for exact weights."""
    square: float
    """E w^2."""
    bias: float
    """E |w - exact|: how far the expected gradient can be off, as a share of it. Exact is rho, or 1 for a rejection."""

    @property
    def ess(self) -> float:
        """(E w)^2 / E w^2: the share of the data that counts."""
        return min(self.mean**2 / self.square, 1.0) if self.square > 0 else 0.0

    @property
    def harm(self) -> float:
        """The share of the data lost to bias or to variance, whichever is more."""
        return max(min(self.bias, 1.0), 1 - self.ess)


class Healthy(Protocol):
    """Healthy data of one noise level and length. Bounds are in the number's own units; those of d are logarithms."""

    @property
    def rms(self) -> float: ...
    @property
    def length(self) -> int: ...
    def inside(self, fold: Fold, of: Of, low: float, high: float) -> float: ...
    def quantile(self, fold: Fold, of: Of, level: float) -> float: ...
    def effect(self, fold: Fold, of: Of, low: float, high: float, action: Action) -> Effect: ...
