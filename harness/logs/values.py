"""What is no log-probability: counted before anything is averaged, and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from skewsim.skew.sequences import SequenceRecord

SENTINELS = (-9999.0, -1e9, -100.0, 1.0)
"""Values for a missing logprob: vLLM's floor, masked logits, ignored labels, and open-instruct's own value."""
LOW = -99.0
"""Between this and 0 there is nothing to count."""
SURE = -0.1
"""Nats. A run of exact zeros is a tool's answer if the trainer's mean there is below this."""


@dataclass
class ValueCounts:
    """How many sampled tokens have a value that is no log-probability, by column; and of those that zeros gave away."""

    tokens: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {"engine": Counter(), "trainer": Counter()})
    left_out: int = 0
    longest_run: int = 0
    """Tokens in the longest run of exact zeros of the engine, in sequences without a mask."""
    masked: bool = True

    def add(self, record: SequenceRecord) -> None:
        sampled = record.sampled
        self.tokens += int(sampled.sum())
        self.counts["engine"] += count_values(record.engine_logprobs[sampled])
        if record.trainer_logprobs is not None:
            self.counts["trainer"] += count_values(record.trainer_logprobs[sampled])

    def to_json(self) -> dict[str, Any]:
        """For a table's `meta`: only what there is."""
        return {name: dict(found) for name, found in self.counts.items() if found}

    def lines(self) -> list[str]:
        """One sentence for the values, one for a mask that is missing."""
        said = [
            f"{who}: {', '.join(f'{n} {what}' for what, n in sorted(c.items()))}" for who, c in self.counts.items() if c
        ]
        lines = [f"values of {self.tokens} sampled tokens: {'; '.join(said)}"] if said else []
        if self.left_out:
            lines.append(
                f"no loss mask, and the engine's logprob is exactly 0 in runs of up to {self.longest_run} tokens which the "
                f"trainer finds improbable: {self.left_out} tokens count as not sampled (a tool's answer) and are left out"
            )
        elif self.longest_run > 1 and not self.masked:
            lines.append(
                f"no loss mask, and the engine's logprob is exactly 0 in runs of up to {self.longest_run} tokens: "
                "if a tool wrote them, log a mask; nothing here tells"
            )
        return lines


def count_values(logprobs: np.ndarray) -> Counter[str]:
    """How many are not finite, above 0, exactly 0, or a sentinel."""
    if len(logprobs) and logprobs.max() < 0 and logprobs.min() > LOW:  # false where one is NaN
        return Counter()
    with np.errstate(invalid="ignore"):
        found = {
            "NaN or null": np.isnan(logprobs),
            "infinite": np.isinf(logprobs),
            "above 0": (logprobs > 0) & np.isfinite(logprobs),
            "exactly 0": logprobs == 0,
        }
        found |= {f"exactly {value:g}": logprobs == value for value in SENTINELS}
    return Counter({name: int(where.sum()) for name, where in found.items() if where.any()})


def without_tools(record: SequenceRecord, counts: ValueCounts) -> SequenceRecord:
    """The record with a mask where it has none and zeros give away what was not sampled; else as it is."""
    if record.mask is not None:
        return record
    counts.masked = False
    sampled = np.ones(len(record.tokens), dtype=bool)
    for start, stop in _runs(record.engine_logprobs == 0):
        counts.longest_run = max(counts.longest_run, stop - start)
        if record.trainer_logprobs is not None and record.trainer_logprobs[start:stop].mean() < SURE:
            sampled[start:stop] = False
    if sampled.all():
        return record
    counts.left_out += int((~sampled).sum())
    return replace(record, mask=sampled)


def _runs(where: np.ndarray) -> Iterator[tuple[int, int]]:
    """Begin and end of every run of two or more."""
    edges = np.flatnonzero(np.diff(where.astype(np.int8), prepend=0, append=0))
    for start, stop in edges.reshape(-1, 2):
        if stop - start > 1:
            yield int(start), int(stop)
