"""Near ties of a mixture of experts: which tokens rounding can send to other experts, as the model itself computes it.

The model scores the tokens twice, in float32 and in a rounded dtype. Tokens that it sends to other experts in the
second pass are those that an engine of that dtype is likely to send elsewhere too, though not exactly these: no two
programs round alike. Which tokens can be sent elsewhere at all is told by each layer's gap between the last expert that
is chosen and the first that is not, beside what rounding does to such gaps.

Axes: N sampled tokens, L layers, X experts, k experts of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from skewsim.diagnose.rows import Floats, Ints
from skewsim.skew.sequences import SequenceRecord

MEDIAN = 0.6745
"""Median size of a normal variable of standard deviation 1."""


@dataclass(frozen=True)
class Choices:
    """What a model's routers make of the tokens in one pass."""

    logits: Floats
    """(N, L, X); a constant may be added to a router's."""
    chosen: Ints
    """(N, L, k) the experts that are used."""


@dataclass(frozen=True)
class Ties:
    """What a rounded dtype does to the choices of a model's routers."""

    gaps: Floats
    """(N, L) router logit of the last expert chosen above that of the first one not chosen, in float32."""
    changes: Floats
    """(N, L) the same two experts' gap in the rounded dtype minus that in float32."""
    flips: Ints
    """(N,) in how many layers other experts are chosen in the rounded dtype."""

    @classmethod
    def of(cls, exact: Choices, rounded: Choices) -> Self | None:
        """None where all experts are chosen, or others than those of the largest logits: there are no such ties."""
        inside = np.zeros(exact.logits.shape, dtype=bool)
        np.put_along_axis(inside, exact.chosen, True, axis=-1)
        if inside.all():
            return None
        last = np.where(inside, exact.logits, np.inf).argmin(-1, keepdims=True)
        first = np.where(inside, -np.inf, exact.logits).argmax(-1, keepdims=True)
        gaps, after = (_at(each.logits, last) - _at(each.logits, first) for each in (exact, rounded))
        if (gaps < 0).any():
            return None
        differ = (np.sort(exact.chosen, -1) != np.sort(rounded.chosen, -1)).any(-1)
        return cls(gaps, after - gaps, differ.sum(-1))

    @classmethod
    def joined(cls, parts: Sequence[Self | None], order: Ints) -> Self | None:
        """The parts as one, where `order` (N,) says the number of each of their tokens; None if a part is."""
        there = [part for part in parts if part is not None]
        if not there or len(there) < len(parts):
            return None
        columns = (np.concatenate([getattr(part, each.name) for part in there]) for each in fields(cls))
        return cls(*(column[np.argsort(order)] for column in columns))

    @property
    def distance(self) -> Floats:
        """(N,) how far a token is from its nearest tie: its smallest gap in units of what rounding does to the gaps of
        that layer, as their median over tokens tells; 0 where other experts are chosen."""
        spread = np.median(np.abs(self.changes), axis=0) / MEDIAN
        nearest: Floats = (self.gaps / np.maximum(spread, 1e-30)).min(-1)
        return np.where(self.flips > 0, 0.0, nearest)

    def select(self, index: Ints) -> Ties:
        return Ties(self.gaps[index], self.changes[index], self.flips[index])


def tokens_of(records: Sequence[SequenceRecord], batches: Sequence[Sequence[int]]) -> Ints:
    """(N,) of the sampled tokens of batches of records the numbers that they have in all records' order."""
    ends = np.cumsum([0, *(int(record.sampled.sum()) for record in records)])
    return np.concatenate([np.arange(ends[index], ends[index + 1]) for batch in batches for index in batch])


def _at(values: Floats, index: Ints) -> Floats:
    found: Floats = np.take_along_axis(values, index, axis=-1)[..., 0]
    return found
