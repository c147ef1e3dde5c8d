"""Marks that no place shows: the wrong entry of a dictionary, one side that does not repeat itself, heavy tails, a
bend.

Like `signatures`, each is a figure of the two columns; `judge` decides what it means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skewsim.diagnose.rows import Bools, Floats, Rows, small_ids, within
from skewsim.diagnose.where import Sizes

MOST_ALONG = 0.25
"""Correlation of the two columns at improbable tokens: lost mass or a temperature keeps some, another token's value
none.
"""
LEAST_Z_TOKEN = 3.0
LEAST_ALIKE = 0.1
APART = 0.1  # nats from which on two values are not the same one with noise


@dataclass(frozen=True)
class WrongEntry:
    """One side reports the most likely token's value."""

    side: str
    rows: Bools
    """Where that was not the sampled token."""
    equal: float
    """Median distance where the sampled token was the most likely one."""
    apart: float
    """Share of the improbable tokens at which the report is above the other side's."""


def wrong_entry(rows: Rows) -> WrongEntry | None:
    """Equal where a token has most of the mass; above elsewhere, by a value that is another token's: the two sum to
    1 at most.
    """
    for side, here, there in (("engine", rows.engine, rows.trainer), ("trainer", rows.trainer, rows.engine)):
        gap, p, report = here - there, np.exp(np.minimum(there, 0)), np.exp(np.minimum(here, 0))
        likely, unlikely = p > 0.6, p < 0.35
        if unlikely.sum() < 20 or likely.sum() < 20:
            continue
        above = gap > APART
        equal = float(np.median(np.abs(gap[likely])))
        apart = float((gap[unlikely] > APART).mean())
        impossible = float((report + p > 1.03)[above & unlikely].mean()) if (above & unlikely).any() else 1.0
        below = float((gap < -2 * APART).mean())
        goes_along = agreement(here[above & unlikely], there[above & unlikely])
        if apart > 0.6 and impossible < 0.04 and below < 0.02 and equal < 0.05 and goes_along < MOST_ALONG:
            return WrongEntry(side, above, equal, apart)
    return None


@dataclass(frozen=True)
class Repeats:
    """The same token in the same context, asked for more than once."""

    rows: int
    engine: float
    """rms by which one side's values differ from each other, nats."""
    trainer: float
    skew: float
    """rms of the skew there."""

    @property
    def enough(self) -> bool:
        return self.rows >= 12 and self.skew > 1e-3

    @property
    def trainer_varies(self) -> bool:
        return self.trainer > 0.4 * self.skew and self.engine < 0.4 * self.trainer

    @property
    def the_same(self) -> bool:
        """Both sides repeat themselves: the skew is no chance."""
        return max(self.engine, self.trainer) < 0.25 * self.skew


def repeats(rows: Rows) -> Repeats:
    known = rows.context >= 0
    token = small_ids(rows.token)
    key = np.where(known, rows.context * (int(token.max(initial=0)) + 1) + token, -1)
    shared, engine = within(rows.engine, key)
    _, trainer = within(rows.trainer, key)
    return Repeats(int(shared.sum()), _spread(engine), _spread(trainer), _rms(rows.skew[shared]))


def _spread(deviations: Floats) -> float:
    return float(np.sqrt(2) * _rms(deviations))


def tail(rows: Rows, skew: Floats) -> tuple[float, float]:
    """(rms of d / h over what its median says it should be, what the median says): 1 for a normal law, above 2 for a
    few tokens among quiet ones.
    """
    sizes = Sizes.of(rows, skew)
    rough = np.exp(np.minimum(rows.engine, rows.trainer)) < 0.9
    if rough.sum() < 50:
        return 1.0, 0.0
    scaled = sizes.skew[rough] / (np.sqrt(1.5) * (1 - np.exp(np.minimum(rows.engine, rows.trainer)[rough])))
    median = float(np.median(np.abs(scaled)))
    return _rms(scaled) / max(1.4826 * median, 1e-12), 1.4826 * median


@dataclass(frozen=True)
class ByToken:
    """How much alike the skews of one token's occurrences are: other weights favour some tokens, chance none."""

    z: float
    alike: float
    """Correlation of two occurrences of one token: .1 and more where weights differ, less where chance decides."""

    @property
    def unrelated(self) -> bool:
        return abs(self.z) < LEAST_Z_TOKEN or self.alike < LEAST_ALIKE


def by_token(rows: Rows, skew: Floats) -> ByToken:
    """`ByToken` of the uncertain tokens, with what their probability explains taken off."""
    scaled = Sizes.of(rows, skew).scaled
    uncertain = np.exp(np.minimum(rows.engine, rows.trainer)) < 0.9
    token, values = rows.token[uncertain], scaled[uncertain]
    if len(values) < 50:
        return ByToken(0.0, 0.0)
    _, index, count = np.unique(token, return_inverse=True, return_counts=True)
    order = np.argsort((rows.engine + rows.trainer)[uncertain], kind="stable")
    for part in np.array_split(order, max(4, min(20, len(order) // 50))):  # what the probability alone explains
        values[part] = (values[part] - values[part].mean()) / max(float(values[part].std()), 1e-12)
    total, square = np.bincount(index, weights=values), np.bincount(index, weights=values**2)
    pairs = total**2 - square  # sum over pairs of different occurrences; 0 on average if they are unrelated
    several = count > 1
    variance = 2 * (count[several] * (count[several] - 1)) * float((values**2).mean()) ** 2
    together = float(pairs[several].sum())
    number = float((count * (count - 1.0)).sum())
    return ByToken(together / np.sqrt(max(float(variance.sum()), 1e-30)), together / max(number, 1.0))


def agreement(engine: Floats, trainer: Floats) -> float:
    """Correlation of the two columns: a temperature only stretches them."""
    if len(engine) < 8 or min(float(engine.std()), float(trainer.std())) < 1e-9:
        return 0.0
    return float(np.corrcoef(engine, trainer)[0, 1])


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean())) if len(values) else 0.0
