"""A sample of whole sequences of a bounded number of tokens, from a log of any length that is read once.

Sequences of one prompt are kept or left out together, because what they share tells most. A group's hash decides, so
that the sample depends on nothing but the log; when there are too many tokens, the groups with the largest hashes go.
A prompt with very many responses counts as several groups.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from skewsim.skew.sequences import SequenceLog, SequenceRecord
from skewsim.skew.tokens import TokenTable

MOST_TOKENS = 400_000
"""Tokens of a sample, at most; at least half as many where the log has more."""
GROUP = 16
"""Responses of one prompt that stay together."""


@dataclass
class Sample:
    """The sequences kept so far, with their numbers in the log."""

    most: int = MOST_TOKENS
    kept: list[tuple[int, int, SequenceRecord]] = field(default_factory=list)
    """(hash of its group, its number in the log, the sequence)."""
    tokens: int = 0
    limit: int = 1 << 32
    """Groups whose hash is not below this are left out."""
    seen: Counter[int] = field(default_factory=Counter)
    count: int = 0

    def add(self, record: SequenceRecord) -> None:
        number, self.count = self.count, self.count + 1
        mixed = self._hash(record.key, number)
        sampled = int(record.sampled.sum())
        if mixed < self.limit and sampled:
            self.kept.append((mixed, number, record))
            self.tokens += sampled
            if self.tokens > self.most:
                self._thin()

    def _hash(self, key: Hashable, number: int) -> int:
        if key is None:
            return zlib.crc32(f"{number // GROUP}".encode())
        first = zlib.crc32(key if isinstance(key, bytes) else repr(key).encode())
        self.seen[first] += 1
        return zlib.crc32(f"{first} {(self.seen[first] - 1) // GROUP}".encode())

    def _thin(self) -> None:
        """Leave out the groups with the largest hashes, until half of the tokens are left; one group stays."""
        ordered = sorted(self.kept, key=lambda entry: entry[0])
        total, limit = 0, self.limit
        for place, (mixed, group) in enumerate(groupby(ordered, key=lambda entry: entry[0])):
            total += sum(int(record.sampled.sum()) for _, _, record in group)
            if place and total > self.most // 2:
                limit = mixed
                break
        self.limit = limit
        self.kept = [entry for entry in self.kept if entry[0] < limit]
        self.tokens = sum(int(record.sampled.sum()) for _, _, record in self.kept)

    @property
    def left_out(self) -> bool:
        """Whether this is less than the whole log."""
        return self.limit < 1 << 32

    def log(self, meta: dict[str, Any]) -> SequenceLog:
        """The sample as a log that knows how many sequences the whole one has; the whole one if nothing is left out."""
        records = tuple(record for _, _, record in self.kept)
        if not self.left_out:
            return SequenceLog(records, meta)
        numbers = tuple(number for _, number, _ in self.kept)
        return SequenceLog(records, meta | {"sampled_from": self.count}, numbers)


def sample_of(table: TokenTable, most: int = MOST_TOKENS) -> TokenTable:
    """The same of a table, whose sequences are numbered in their order."""
    if len(table) <= most:
        return table
    _, first, index = np.unique(table.sequence, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first, kind="stable"), kind="stable")
    prompt = -np.ones(len(first)) if table.prompt is None else table.prompt[first]
    key = np.where(prompt >= 0, prompt, order // GROUP).astype(np.int64)
    hashes = np.array([zlib.crc32(f"{number}".encode()) for number in key])
    tokens = np.bincount(index)
    by_hash = np.argsort(hashes, kind="stable")
    fits = np.cumsum(tokens[by_hash]) <= most
    fits[0] = True
    chosen = np.zeros(len(first), dtype=bool)
    chosen[by_hash[fits]] = True
    columns = {**table.columns(), "sequence": order[index]}
    whole = TokenTable(**columns, meta={**table.meta, "sampled_from": len(first)})
    return whole.select(chosen[index])
