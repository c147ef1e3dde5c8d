"""What somebody has: what was read, and what it holds, ready to be judged by `skewsim.check.check`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from skewsim.check.moments import Moments
from skewsim.check.sample import MOST_TOKENS, Sample, sample_of
from skewsim.skew.curves import MetricCurves
from skewsim.skew.sequences import SequenceLog, SequenceRecord, build_table
from skewsim.skew.tokens import TokenTable

if TYPE_CHECKING:
    from skewsim.skew.profile import SkewProfile

CHUNK = 50_000
"""Tokens that are counted at once."""


@dataclass(frozen=True)
class Read:
    """One thing that was read."""

    path: str
    kind: str
    """token log, token table, metrics, profile, text."""
    framework: str | None
    words: str
    """How much it holds, or why nothing could be taken from it."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Tokens:
    """A token log: what was counted over all of it, and the sequences to diagnose."""

    source: TokenTable | SequenceLog
    moments: Moments
    sampled: bool
    """Whether `source` is a sample."""
    unmasked: int = 0
    """Tokens that were left out because the log has no loss mask, and exact zeros gave them away."""
    notes: tuple[str, ...] = ()
    """What was noticed while it was read."""

    @cached_property
    def table(self) -> TokenTable:
        """What is diagnosed, as a table."""
        return self.source if isinstance(self.source, TokenTable) else self.source.table()

    @property
    def rms_of_sample(self) -> float:
        """The same rms as that of `moments`, of what is diagnosed."""
        counted = Moments()
        counted.add(self.table)
        return counted.rms

    @property
    def said(self) -> str:
        """How much of the log is diagnosed; empty: all of it."""
        if not self.sampled:
            return ""
        table = self.table
        return (
            f"causes and places are of a sample: {len(table):,} of {self.moments.tokens:,} tokens, "
            f"{len(np.unique(table.sequence)):,} of {self.moments.sequences:,} sequences; sizes, odd values and trend of all tokens"
        )


@dataclass(frozen=True)
class Evidence:
    """All that was read."""

    read: tuple[Read, ...]
    tokens: Tokens | None = None
    curves: tuple[MetricCurves, ...] = ()
    profiles: tuple[SkewProfile, ...] = ()

    @property
    def framework(self) -> str | None:
        """The framework that wrote it, where the files tell."""
        return next((read.framework for read in self.read if read.framework not in (None, "skewsim")), None)


def of_records(records: Iterable[SequenceRecord], meta: dict[str, Any], *, most: int = MOST_TOKENS) -> Tokens:
    """Read sequences one by one: all are counted, and a sample of at most so many tokens is kept."""
    moments, sample = Moments(), Sample(most)
    for numbers, chunk in _chunks(records):
        moments.add(build_table(chunk, numbers=numbers))
        for record in chunk:
            sample.add(record)
    return Tokens(sample.log(meta), moments, sample.left_out)


def of_table(table: TokenTable) -> Tokens:
    """The same of a table, which is in memory as a whole."""
    moments = Moments()
    moments.add(table)
    kept = sample_of(table)
    return Tokens(kept, moments, len(kept) < len(table))


def _chunks(records: Iterable[SequenceRecord]) -> Iterator[tuple[range, list[SequenceRecord]]]:
    """(numbers, sequences) of some `CHUNK` tokens."""
    first, chunk, tokens = 0, list[SequenceRecord](), 0
    for record in records:
        chunk.append(record)
        tokens += len(record.tokens)
        if tokens >= CHUNK:
            yield range(first, first + len(chunk)), chunk
            first, chunk, tokens = first + len(chunk), [], 0
    if chunk:
        yield range(first, first + len(chunk)), chunk
