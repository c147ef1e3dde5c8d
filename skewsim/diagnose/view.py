"""A log's skew as the rules about places look at it: its contrasts, its loud sequences, what a place accounts for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skewsim.diagnose import marks, where
from skewsim.diagnose.causes import Cause, found
from skewsim.diagnose.rows import Bools, Floats, Ints, Rows
from skewsim.diagnose.where import Contrast, Sizes

LEAST_Z = 2.5
LEAST_RATIO = 1.5
LEAST_SHIFT = 0.2
LEAST_EXPLAINED = 0.15
LEAST_ROUGH = 16
"""Uncertain tokens without which nothing is said of a place."""
LEAST_RMS = 0.015
"""nats; less than this is a float16's rounding wherever it stands."""
LARGEST_ROUNDING = 0.12  # rms, nats: bfloat16 (`normal.MOST`)
SEPARATE = 4.5
"""Distance of two groups' levels over the spread inside them; one cloud cut in two has 2.7, an even spread 3.5."""
LEAST_GAP = 0.12
"""Least empty space between two groups, of the distance of their levels."""
OF_TOKENS = ("engine's probability", "token", "exact value")
"""Columns that say what a token is, not where it stands."""


@dataclass(frozen=True)
class Named:
    """A cause with the rows that it accounts for."""

    cause: Cause
    inside: Bools


class View:
    """A log's skew with its contrasts, computed once."""

    def __init__(self, rows: Rows, skew: Floats, total: float, contrasts: list[Contrast] | None = None) -> None:
        self.rows, self.skew, self.total = rows, skew, total
        self.sizes = Sizes.of(rows, skew)
        contrasts = where.scan(rows, skew) if contrasts is None else contrasts
        self.strong = {each.place.column: each for each in contrasts if strong(each) and self._seen(each.inside)}
        self.strongest = max(
            (each.gain for column, each in self.strong.items() if column not in OF_TOKENS), default=0.0
        )
        self.groups, self.early, self.levels = self._split()

    def _split(self) -> tuple[Bools | None, bool, Floats]:
        """(sequences that stand apart, whether their beginnings show it best, each sequence's level)."""
        best: tuple[float, Bools, bool] | None = None
        order = np.arange(len(self.skew)) - first_rows(self.sizes.sequence)
        whole = levels_of(self.sizes, np.ones(len(order), dtype=bool))
        for most in (8, 16, 32):
            levels = levels_of(self.sizes, order < most)
            loud, separation = split(levels)
            if loud is not None and (best is None or separation > best[0]):
                best = (separation, loud, True)
        loud, separation = split(whole)
        if loud is not None and (best is None or separation > 0.8 * best[0]):
            best = (separation, loud, False)
        return (None, False, whole) if best is None else (best[1], best[2], whole)

    def _seen(self, inside: Bools) -> bool:
        """Whether both sides have uncertain tokens: of a nearly certain one both sides say 0, whatever is wrong."""
        rough = self.sizes.rough
        return min(int((rough & inside).sum()), int((rough & ~inside).sum())) >= LEAST_ROUGH

    @cached_property
    def varies(self) -> bool:
        """Whether the trainer gives one token in one context several values, and the engine does not."""
        again = marks.repeats(self.rows)
        return again.enough and again.trainer_varies

    def share(self, inside: Bools) -> float:
        """Share of the whole log's square that these rows have above the level of the others."""
        square = self.skew**2
        level = float(square[~inside].mean()) if (~inside).any() else 0.0
        return float((square[inside] - level).sum()) / self.total if self.total > 0 else 0.0

    def named(self, cause: str, inside: Bools, evidence: str) -> Named:
        share = min(max(self.share(inside), 0.0), 1.0)
        return Named(found(cause, share, evidence), inside)

    def leads(self, column: str, part: float = 0.6) -> Contrast | None:
        """The column's contrast if it says nearly as much as the strongest does."""
        each = self.strong.get(column)
        return each if each is not None and each.gain >= part * self.strongest else None

    def rms(self, inside: Bools) -> float:
        return float(np.sqrt((self.skew[inside] ** 2).mean())) if inside.any() else 0.0

    def in_sequences(self, chosen: Bools) -> Bools:
        """The rows of these sequences."""
        return chosen[self.sizes.sequence]

    def decay(self, inside: Bools) -> Bools | None:
        """Rows at the beginning of these sequences in which the skew is larger than later in them; None if it stays."""
        early = where.best_cut(self.rows.position[inside], self.sizes, inside)
        if early is None:
            return None
        chosen = np.zeros(len(self.skew), dtype=bool)
        chosen[np.flatnonzero(inside)[early]] = True
        rest = inside & ~chosen
        uncertain, later = chosen & self.sizes.rough, rest & self.sizes.rough
        if later.sum() < LEAST_ROUGH or self.rms(uncertain) < 1.5 * self.rms(later):
            return None
        number, count = self.sizes.sequence, self.sizes.count
        n, m = (np.bincount(number, weights=side, minlength=count) for side in (uncertain, later))
        both = (n >= 3) & (m >= 3)
        gap = (levels_of(self.sizes, chosen) - levels_of(self.sizes, rest))[both]
        if len(gap) == 0 or gap.mean() < np.log(1.5) or self.rms(chosen) < 2 * self.rms(rest):
            return None
        if not inside.all():
            base = float(self.sizes.level[~inside].mean())
            late, first = (float(self.sizes.level[part].mean()) - base for part in (rest, chosen))
            if late > 0.5 * first and self.rms(chosen) < 4 * self.rms(rest):
                return None  # it falls, but not to what the other sequences have
        sure = gap.mean() > 3 * gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 3 else bool((gap > np.log(1.5)).all())
        return chosen if sure else None


def strong(each: Contrast) -> bool:
    """Whether a place is sure, large and not of rounding's size."""
    place = each.place
    clear = place.explained > 0.5 and place.z > 4
    differs = each.ratio >= (1.35 if clear else LEAST_RATIO) or abs(each.shift) >= LEAST_SHIFT
    return bool(
        place.z >= LEAST_Z
        and differs
        and max(place.rms_inside, place.rms_outside) >= LEAST_RMS
        and (place.explained >= LEAST_EXPLAINED or abs(each.shift) >= LEAST_SHIFT)
    )


def first_rows_of(sequence: Ints) -> Ints:
    """The first row of each sequence."""
    return np.flatnonzero(np.diff(sequence, prepend=-1) != 0).astype(np.int64)


def first_rows(sequence: Ints) -> Ints:
    """For each row the first row of its sequence."""
    starts = first_rows_of(sequence)
    return np.repeat(starts, np.diff(np.append(starts, len(sequence))))


def levels_of(sizes: Sizes, chosen: Bools) -> Floats:
    """Each sequence's level over these rows; over the uncertain tokens of them where there are some."""
    rough = chosen & sizes.rough
    enough = np.bincount(sizes.sequence, weights=rough, minlength=sizes.count) >= 3
    chosen = np.where(enough[sizes.sequence], rough, chosen)
    count = np.bincount(sizes.sequence, weights=chosen, minlength=sizes.count)
    return np.bincount(sizes.sequence, weights=sizes.level * chosen, minlength=sizes.count) / np.maximum(count, 1)


def split(levels: Floats) -> tuple[Bools | None, float]:
    """(the upper of two groups that stand apart, their distance over the spread inside them); None for one cloud."""
    n = len(levels)
    if n < 8:
        return None, 0.0
    order = np.argsort(levels)
    values = levels[order]
    size = np.arange(1, n)
    low = np.cumsum(values)[:-1] / size
    high = (values.sum() - np.cumsum(values)[:-1]) / (n - size)
    between = size * (n - size) * (high - low) ** 2
    at = int(np.argmax(between)) + 1
    if min(at, n - at) < 2:
        return None, 0.0
    inner = np.sqrt((values[:at].var() * at + values[at:].var() * (n - at)) / n)
    distance = float(values[at:].mean() - values[:at].mean())
    separation = distance / max(float(inner), 1e-6)
    between_them = float(values[at] - values[at - 1])
    if separation < SEPARATE or distance < np.log(1.6) or between_them < LEAST_GAP * distance:
        return None, separation
    loud = np.zeros(n, dtype=bool)
    loud[order[at:]] = True
    return loud, separation


def truth_of(view: View, inside: Bools) -> str:
    ratio = float(np.exp(np.clip(view.skew[inside], -20, 20)).mean())
    return f"mean mismatch ratio {ratio:.3f}, {'truthful' if truthful(view, inside) else 'not truthful'}"


def truthful(view: View, inside: Bools) -> bool:
    """Bias and square as of a truthful engine: E d is about -E d^2 / 2, and never above 0."""
    skew = view.skew[inside]
    return bool(float(skew.mean()) < 0.1 * np.sqrt((skew**2).mean()))


def other_context(view: View, loud: Bools, beginning: Bools) -> Named | None:
    """None if the beginning is off by no more than rounding: another prompt moves its first tokens by far more."""
    if view.rms(beginning) < LEAST_RMS:
        return None
    far = int(view.rows.position[beginning].max()) + 1
    return view.named(
        "different_context",
        beginning,
        f"in {int(loud.sum())} of {len(loud)} sequences the skew is largest at the beginning and fades (rms {view.rms(beginning):.3g} up "
        f"to token {far}, {view.rms(~beginning):.3g} elsewhere): trainer and engine read another prompt before these responses, "
        "from token 0 on",
    )
