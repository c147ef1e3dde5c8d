"""The columns by which the skew is looked at: what a log says of its tokens, and what can be derived from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skewsim.diagnose.rows import Floats, Ints, Rows

MOST_VALUES = 64
"""Values of an unordered column that are looked at one by one: the most frequent."""
MODULO = range(2, 17)
LAW = "engine's probability"
"""Every noise follows it, so it comes last."""


@dataclass(frozen=True)
class Column:
    """Whole numbers for every row, or for every sequence; -1 is unknown."""

    name: str
    values: Ints
    ordered: bool
    text: str = "{}"
    per_sequence: bool = False
    singles: int = MOST_VALUES


def columns(rows: Rows) -> Iterator[Column]:
    """What the log says of its tokens, and what can be derived from it."""
    starts = np.flatnonzero(np.diff(rows.sequence, prepend=-1) != 0)
    lengths = np.diff(np.append(starts, len(rows)))
    number, count = numbers(rows)
    same = np.diff(rows.sequence) == 0
    for name, values in rows.places.items():
        whole = not (np.diff(values)[same] != 0).any()
        ordered = name in ("step", "turn", "pack_index", "routes_differ")
        yield Column(name, values[starts] if whole else values, ordered, per_sequence=whole)
    yield Column("position", rows.position, True, singles=32)
    if "turn" in rows.places:
        yield Column("position in its turn", in_turn(rows), True, singles=16)
    yield Column("from the end", np.repeat(starts + lengths, lengths) - np.arange(len(rows)) - 1, True, singles=16)
    yield Column("version", rows.version, True)
    yield Column("prompt", rows.prompt[starts], False, per_sequence=True)
    yield Column("sequence", number, True, per_sequence=True)
    for blocks in MODULO:
        if len(starts) >= 3 * blocks > 6:
            block = number * blocks // count
            yield Column("sequence", block, False, "block {} of " + str(blocks), per_sequence=True)
    for modulo in MODULO:
        if len(starts) >= 2 * modulo:
            yield Column("sequence modulo", number % modulo, False, "{} mod " + str(modulo), per_sequence=True)
    yield Column("length", lengths, True, per_sequence=True, singles=0)
    yield Column("token", rows.token, False, singles=256)
    for name, values in rows.seen.items():
        yield Column(f"seen before {name}", values, False)
    yield Column(LAW, _decile(rows.engine), True, "{}")
    yield Column("exact value", _repeated(rows.engine), False)


def numbers(rows: Rows) -> tuple[Ints, int]:
    """(each sequence's number, how many there are in the log): those of the whole log, where this is a sample of it."""
    starts = np.flatnonzero(np.diff(rows.sequence, prepend=-1) != 0)
    return (np.arange(len(starts)), len(starts)) if rows.of is None else (rows.sequence[starts], rows.of)


def in_turn(rows: Rows) -> Ints:
    """Tokens since the turn began."""
    turn = rows.places["turn"]
    begins = (np.diff(rows.sequence, prepend=-1) != 0) | (np.diff(turn, prepend=-1) != 0)
    starts = np.flatnonzero(begins)
    first = np.repeat(rows.position[starts], np.diff(np.append(starts, len(rows))))
    return rows.position - first


EDGES = np.array([0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])


def _decile(engine: Floats) -> Ints:
    return np.searchsorted(EDGES, np.exp(np.minimum(engine, 0.0))).astype(np.int64)


def _repeated(values: Floats) -> Ints:
    """Number of the value where it occurs at least ten times, else -1."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.where(counts[index] >= 10, index, -1).astype(np.int64)
