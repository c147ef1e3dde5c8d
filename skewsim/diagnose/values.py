"""Values that are no log-probabilities, counted before anything is averaged.

A log-probability is finite, not above 0, and as good as never the same to the last digit for tokens that the other side
finds different. What breaks this was put there by a program: 0.0 for an end token or a tool's answer, -9999, 1.0, NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skewsim.diagnose.rows import Bools, Floats, Ints, Rows

ABOVE_ZERO = 1e-5
"""Rounding of a log-softmax may leave a probability this little above 1."""
SENTINEL = -99.9
"""No sampled token is this improbable; -100, -9999 and -1e9 are what programs fill in."""
FEWEST = 3
SURE = 0.02  # nats below 0 from which on the other side says that a probability is not 1


@dataclass(frozen=True)
class Oddity:
    """One kind of value that is no log-probability, on one side."""

    kind: str
    """missing, infinite, positive, sentinel, zero or repeated."""
    side: str
    value: float
    rows: Bools
    place: str
    """Where they stand, in words."""

    @property
    def tokens(self) -> int:
        return int(self.rows.sum())

    def __str__(self) -> str:
        value = {"missing": "no number (null or NaN)", "positive": f"above 0 (as {self.value:g})"}.get(
            self.kind, f"exactly {self.value:g}"
        )
        are = "value is" if self.tokens == 1 else "values are"
        return f"{self.tokens} {self.side} {are} {value}: {self.place}"


@dataclass(frozen=True)
class Values:
    """What was found in a log; `bad` are the rows that nothing may be measured on."""

    oddities: tuple[Oddity, ...]
    bad: Bools

    @property
    def nonfinite(self) -> int:
        return sum(odd.tokens for odd in self.oddities if odd.kind in ("missing", "infinite"))


def inspect(rows: Rows) -> Values:
    """Count what is no log-probability in both columns. A column that is missing altogether is none of it."""
    found: list[Oddity] = []
    bad = np.zeros(len(rows), dtype=bool)
    for side, here, there in (("engine", rows.engine, rows.trainer), ("trainer", rows.trainer, rows.engine)):
        for kind, value, inside in _oddities(rows, here, there, bad):
            found.append(Oddity(kind, side, value, inside, _place(rows, inside)))
            bad |= inside
    return Values(tuple(found), bad)


def _oddities(rows: Rows, here: Floats, there: Floats, bad: Bools) -> list[tuple[str, float, Bools]]:
    found: list[tuple[str, float, Bools]] = []
    if not np.isfinite(here).any():
        return found
    missing = np.isnan(here) & _partly_known(rows, here)
    infinite, positive = np.isinf(here), np.isfinite(here) & (here > ABOVE_ZERO)
    sentinel = _sentinels(here)
    for kind, inside in (("missing", missing), ("infinite", infinite), ("positive", positive), ("sentinel", sentinel)):
        if inside.any():
            found.append((kind, float(here[inside][0]), inside))
    usual = np.isfinite(here) & np.isfinite(there) & ~bad & ~(missing | infinite | positive | sentinel)
    zero = _zeros(rows, here, there, usual)
    if zero is not None:
        found.append(("zero", 0.0, zero))
        usual &= ~zero
    starts = np.diff(rows.sequence, prepend=-1) != 0
    group = int(np.unique(rows.prompt[starts], return_counts=True)[1].max(initial=1))
    fewest = max(10, int(1.5 * group) if rows.prompt.max(initial=-1) >= 0 else 10)  # responses to a prompt begin alike
    found += [("repeated", value, inside) for value, inside in _repeats(here, there, usual, fewest)]
    return found


def _sentinels(here: Floats) -> Bools:
    """Values that nothing computes: absurdly low, or low and the same again and again."""
    low = np.isfinite(here) & (here <= SENTINEL)
    values, index, counts = np.unique(here[low], return_inverse=True, return_counts=True)
    filled = (counts >= FEWEST) | (values <= 10 * SENTINEL)
    found = np.zeros(len(here), dtype=bool)
    found[np.flatnonzero(low)[filled[index]]] = True
    return found


def _partly_known(rows: Rows, here: Floats) -> Bools:
    """Rows of sequences that have some number: a sequence without any was not scored, which is no fault of its
    values.
    """
    known = np.bincount(rows.sequence, weights=np.isfinite(here)) > 0
    return known[rows.sequence]


def _zeros(rows: Rows, here: Floats, there: Floats, usual: Bools) -> Bools | None:
    """Exact zeros that the other side does not bear out, with the zeros beside them and at the same end."""
    zero = usual & (here == 0)
    wrong = zero & (there < -SURE)
    if wrong.sum() < FEWEST or zero.sum() > 0.9 * usual.sum():
        return None
    if _truncated(rows, there[wrong], zero, usual) or _as_values_beside(here, there, zero, wrong, usual):
        return None
    last = np.append(np.diff(rows.sequence) != 0, True)
    if wrong[last].sum() <= 0.5 * wrong.sum() and _as_its_neighbours(rows, wrong, zero, usual):
        return None
    runs = _runs(zero, rows.sequence)
    touched = np.zeros(int(runs.max(initial=0)) + 1, dtype=bool)
    touched[runs[wrong]] = True
    last = np.append(np.diff(rows.sequence) != 0, True)
    inside: Bools = zero & touched[runs]
    if wrong[last].sum() > 0.5 * wrong.sum():
        inside |= zero & last
    return inside


def _as_values_beside(here: Floats, there: Floats, zero: Bools, wrong: Bools, usual: Bools) -> bool:
    """Whether values just below 0 are contradicted as often: then the sides differ, and 0 is a value rounded to it."""
    beside = usual & (here < 0) & (here > -SURE)
    contradicted = beside & (there < here - SURE)
    often = float(contradicted.sum()) / max(int(beside.sum()), 1)
    return int(contradicted.sum()) >= FEWEST and often > 0.3 * float(wrong.sum()) / int(zero.sum())


def _as_its_neighbours(rows: Rows, wrong: Bools, zero: Bools, usual: Bools) -> bool:
    """Whether the other tokens of these sequences are off too: then the sides differ there, and 0 is a probability."""
    touched = np.bincount(rows.sequence, weights=wrong) > 0
    others = touched[rows.sequence] & usual & ~zero
    if not others.any():
        return False
    usual_size = float(np.quantile(np.abs(rows.skew[others]), 0.75))
    return bool(float(np.median(np.abs(rows.skew[wrong]))) < 2 * usual_size or usual_size > 0.5)


def _truncated(rows: Rows, there: Floats, zero: Bools, usual: Bools) -> bool:
    """Zeros of a renormalised top-p, which keeps one token of probability p or more and reports it as certain."""
    top_p = rows.setting("top_p")
    if top_p is not None and top_p >= 1 and rows.setting("top_k") in (None, 0.0, -1.0):
        return False
    if top_p is not None and top_p < 1:
        return bool(np.quantile(there, 0.1) > np.log(top_p) - 0.5)
    return bool((there >= np.log(0.5) - 0.3).all()) and float(zero[usual].mean()) > 0.05


def _runs(mask: Bools, sequence: Ints) -> Ints:
    """Number of the run each row is in: equal mask and sequence, side by side."""
    changed = (np.diff(mask.astype(np.int64), prepend=0) != 0) | (np.diff(sequence, prepend=-1) != 0)
    found: Ints = np.cumsum(changed)
    return found


def _repeats(here: Floats, there: Floats, usual: Bools, fewest: int) -> list[tuple[float, Bools]]:
    """One value again and again where the other side's differ."""
    if usual.sum() < 50:
        return []
    values, index, counts = np.unique(here[usual], return_inverse=True, return_counts=True)
    often = np.flatnonzero((counts >= fewest) & (values < -0.01))
    found = []
    for number in often[np.argsort(-counts[often])][:50]:
        near = (np.abs(values - values[number]) < 0.1 * abs(values[number])) & (np.arange(len(values)) != number)
        if counts[number] < 4 * counts[near].max(initial=1):
            continue  # a log with few digits repeats its neighbours as often
        inside = np.zeros(len(here), dtype=bool)
        inside[np.flatnonzero(usual)[index == number]] = True
        if np.median(np.abs(there[inside] - values[number])) > 0.2:
            found.append((float(values[number]), inside))
    return found


def _place(rows: Rows, inside: Bools) -> str:
    """Where in the sequences these rows stand, in words."""
    last, first = np.append(np.diff(rows.sequence) != 0, True), np.diff(rows.sequence, prepend=-1) != 0
    count, sequences = int(inside.sum()), len(np.unique(rows.sequence[inside]))
    of = f"in {sequences} of {rows.sequences} sequences"
    if (inside & last).sum() > 0.8 * count:
        return f"the last token, {of}"
    if (inside & first).sum() > 0.8 * count:
        return f"the first token, {of}"
    runs = np.unique(_runs(inside, rows.sequence)[inside], return_counts=True)[1]
    if count / len(runs) >= 3:
        whole = np.bincount(rows.sequence[inside], minlength=1)[np.unique(rows.sequence[inside])]
        if (whole >= 0.95 * np.bincount(rows.sequence)[np.unique(rows.sequence[inside])]).mean() > 0.8:
            return f"whole sequences, {sequences} of {rows.sequences}"
        positions = rows.position[inside]
        return (
            f"{len(runs)} runs of {np.median(runs):.0f} tokens, between tokens {positions.min()} and {positions.max()}, {of}: "
            "as of tokens that were not sampled (a tool's answer, padding) where the loss mask is missing"
        )
    return f"scattered, {of}"
