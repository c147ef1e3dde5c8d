"""A diagnosis's view of the data: tokens in order, their contexts, and means with errors that know of sequences.

Tokens of one sequence are not independent, so every standard error is that of a ratio of sums over sequences.
Two tokens have the same *context* if the prompt and all tokens before them are equal: the same distribution was
asked twice. Within a context every normaliser cancels, which tells a temperature from a truncation from noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from skewsim.skew.sequences import SETTINGS, SequenceLog
from skewsim.skew.tokens import PLACES, TokenTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Rows:
    """Sorted by sequence, then position. Unknown: NaN, or -1."""

    engine: Floats
    trainer: Floats
    sequence: Ints
    """0, 1, ... in the order in which they were logged; of a sample, their numbers in the whole log."""
    position: Ints
    token: Ints
    version: Ints
    prompt: Ints
    context: Ints
    settings: dict[str, Floats]
    """temperature, top_p, top_k, min_p of each row."""
    meta: dict[str, Any]
    index: Ints
    """Number of the row before any selection."""
    kept_mass: Floats | None = None
    square_mass: Floats | None = None
    places: dict[str, Ints] = field(default_factory=dict)
    """What the log says of where a token comes from: any of `tokens.PLACES`, -1 where unknown."""
    seen: dict[str, Ints] = field(default_factory=dict)
    """1 where the token occurred before: "in the context" (prompt included) or "in the output"."""

    @classmethod
    def from_table(
        cls, table: TokenTable, settings: dict[str, Floats] | None = None, seen: dict[str, Ints] | None = None
    ) -> Rows:
        """`settings` and `seen` are per row in the table's order; otherwise the table's meta speaks for all rows, and
        its own tokens for what was seen.
        """
        sequence = table.sequence if "sampled_from" in table.meta else _in_order(table.sequence)
        order = np.lexsort((table.position, sequence))
        prompt = np.full(len(table), -1) if table.prompt is None else table.prompt
        given = settings or {name: np.full(len(table), _number(table.meta.get(name))) for name in SETTINGS}
        return cls(
            engine=table.engine_logprob[order],
            trainer=table.trainer_logprob[order],
            sequence=sequence[order],
            position=table.position[order],
            token=table.token[order],
            version=table.weight_version[order],
            prompt=prompt[order],
            context=_contexts(sequence[order], table.position[order], table.token[order], prompt[order]),
            settings={name: values[order] for name, values in given.items()},
            meta=dict(table.meta),
            index=np.arange(len(table)),
            kept_mass=None if table.kept_mass is None else table.kept_mass[order],
            square_mass=None if table.square_mass is None else table.square_mass[order],
            places=_places(table, sequence[order], order),
            seen={
                name: values[order]
                for name, values in (
                    seen or {"in the output": _seen(table.sequence, table.position, table.token)}
                ).items()
            },
        )

    @classmethod
    def from_log(cls, log: SequenceLog) -> Rows:
        counts = [int(record.sampled.sum()) for record in log.records]
        settings = {
            name: np.repeat([_number(record.settings.get(name)) for record in log.records], counts).astype(float)
            for name in SETTINGS
        }
        return cls.from_table(log.table(), settings, _seen_in(log))

    def __len__(self) -> int:
        return len(self.engine)

    @property
    def skew(self) -> Floats:
        with np.errstate(invalid="ignore"):
            return self.trainer - self.engine

    @property
    def probability(self) -> Floats:
        return np.exp(np.minimum(self.trainer, 0.0))

    @property
    def of(self) -> int | None:
        """How many sequences the log has that these are a sample of; None if they are all of it."""
        return self.meta.get("sampled_from")

    @property
    def sequences(self) -> int:
        return len(np.unique(self.sequence))

    def select(self, mask: Bools) -> Rows:
        changed: dict[str, Any] = {name: getattr(self, name)[mask] for name in _COLUMNS}
        for name in ("kept_mass", "square_mass"):
            column = getattr(self, name)
            changed[name] = None if column is None else column[mask]
        for name in ("places", "seen"):
            changed[name] = {key: values[mask] for key, values in getattr(self, name).items()}
        return replace(self, **changed, settings={name: values[mask] for name, values in self.settings.items()})

    def usable(self) -> Rows:
        """Rows with two finite log-probabilities."""
        return self.select(np.isfinite(self.skew))

    def setting(self, name: str) -> float | None:
        """The value on which all rows agree; None if it is unknown or mixed."""
        values = self.settings[name]
        if len(values) == 0 or not np.isfinite(values).all() or np.ptp(values) > 1e-12:
            return None
        return float(values[0])


_COLUMNS = ("engine", "trainer", "sequence", "position", "token", "version", "prompt", "context", "index")


@dataclass(frozen=True)
class Mean:
    """A mean over tokens with its error over sequences."""

    value: float
    error: float

    @property
    def z(self) -> float:
        return self.value / self.error if self.error > 0 else (0.0 if self.value == 0 else np.inf * np.sign(self.value))

    def __str__(self) -> str:
        return f"{self.value:+.3g} ± {self.error:.1g}"


def mean(values: Floats, sequence: Ints) -> Mean:
    """Mean over tokens; the error is the ratio estimator's over sequences."""
    if len(values) == 0:
        return Mean(np.nan, np.nan)
    _, index = np.unique(sequence, return_inverse=True)
    value = float(values.mean())
    residual = np.bincount(index, weights=values - value)
    count = len(residual)
    scale = np.sqrt(count / (count - 1)) if count > 1 else np.inf
    return Mean(value, float(np.sqrt((residual**2).sum()) / len(values) * scale))


def sequence_means(values: Floats, sequence: Ints) -> tuple[Ints, Floats]:
    """(sequence ids, mean of each)."""
    ids, index = np.unique(sequence, return_inverse=True)
    return ids, np.bincount(index, weights=values) / np.bincount(index)


def within(values: Floats, group: Ints) -> tuple[Bools, Floats]:
    """(rows in a group of at least two, their deviation from the group's mean)."""
    _, index, counts = np.unique(group, return_inverse=True, return_counts=True)
    centre = np.bincount(index, weights=values) / counts
    shared = (counts[index] > 1) & (group >= 0)
    return shared, (values - centre[index])[shared]


def _in_order(sequence: Ints) -> Ints:
    """Ids of sequences as 0, 1, ... in the order in which they come."""
    _, first, index = np.unique(sequence, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    found: Ints = rank[index]
    return found


def small_ids(token: Ints) -> Ints:
    """The tokens themselves; numbers of their own where an id is too large to be multiplied by a count of rows."""
    if token.max(initial=0) < 2**31:
        return token
    index: Ints = np.unique(token, return_inverse=True)[1].astype(np.int64)
    return index


def _contexts(sequence: Ints, position: Ints, token: Ints, prompt: Ints) -> Ints:
    """Ids of equal (prompt, tokens so far); -1 where unknown or seen once only. Position by position, repeated ones
    only.
    """
    context = np.full(len(sequence), -1, dtype=np.int64)
    starts = np.flatnonzero(np.diff(sequence, prepend=-1))
    ends = np.append(starts[1:], len(sequence))
    known = (position[starts] == 0) & (prompt[starts] >= 0) if len(starts) else np.zeros(0, dtype=bool)
    rows, ends = starts[known], ends[known]
    key, token = prompt[rows], small_ids(token)
    width = int(token.max(initial=0)) + 2
    issued = 0
    while len(rows):
        _, index, counts = np.unique(key, return_inverse=True, return_counts=True)
        repeated = counts[index] > 1
        rows, ends, index = rows[repeated], ends[repeated], index[repeated]
        context[rows] = index + issued
        issued += len(counts)
        key = index * width + token[rows] + 1
        follows = rows + 1 < ends
        follows[follows] = position[rows[follows] + 1] == position[rows[follows]] + 1
        rows, ends, key = rows[follows] + 1, ends[follows], key[follows]
    return context


def _places(table: TokenTable, sequence: Ints, order: Ints) -> dict[str, Ints]:
    """The table's columns; where it has no turns, a gap in the positions (masked tokens) begins the next."""
    found = {name: getattr(table, name)[order] for name in PLACES if getattr(table, name) is not None}
    starts = np.diff(sequence, prepend=-1) != 0
    gaps = (np.diff(table.position[order], prepend=-1) > 1) & ~starts
    if "turn" not in found and gaps.any():
        count = np.cumsum(gaps)
        found["turn"] = count - count[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    return found


def _seen(sequence: Ints, position: Ints, token: Ints) -> Ints:
    """1 for each row whose token stands at an earlier position of its sequence too."""
    order = np.lexsort((position, token, sequence))
    again = (np.diff(sequence[order], prepend=-1) == 0) & (np.diff(token[order], prepend=-1) == 0)
    found = np.zeros(len(token), dtype=np.int64)
    found[order[again]] = 1
    return found


def _seen_in(log: SequenceLog) -> dict[str, Ints]:
    """The same for the sampled tokens of whole sequences, tokens that a tool wrote included; and with the prompts."""
    found = {}
    for name, prompts in (("in the context", True), ("in the output", False)):
        if prompts and any(record.prompt_tokens is None for record in log.records):
            continue
        starts = [
            len(record.prompt_tokens) if prompts and record.prompt_tokens is not None else 0 for record in log.records
        ]
        lengths = np.array(
            [start + len(record.tokens) for start, record in zip(starts, log.records, strict=True)], dtype=np.int64
        )
        tokens = [part for r in log.records for part in ((r.prompt_tokens, r.tokens) if prompts else (r.tokens,))]
        sampled = [
            part for s, r in zip(starts, log.records, strict=True) for part in (np.zeros(s, dtype=bool), r.sampled)
        ]
        if not tokens:
            continue
        kept = np.concatenate(sampled)
        number = np.repeat(np.arange(len(lengths)), lengths)
        found[name] = _seen(number, np.arange(len(number)), np.concatenate(tokens))[kept]  # type: ignore[arg-type]
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan
