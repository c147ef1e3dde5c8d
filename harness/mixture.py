"""The oracle for weight updates in mid-sequence: the logprobs of a trainer that repeats exactly what the engine did.

An engine that takes new weights while a request is under way, and keeps its keys and values, computes every later token
with the new weights over keys and values that the old ones made. That is neither the old policy nor the new one, so
scoring with either leaves skew: lag against the old weights, stale keys and values against the new ones. A trainer that
fills a cache with the old weights and goes on with the new ones comes down to rounding error, but only if it changes
over at the right token: trying every token finds where each request's weights were swapped. If the engine computes the
keys and values again, scoring first with the old weights and then with the new ones does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skewsim.diagnose.models import ModelScorer
from skewsim.skew.sequences import SequenceRecord

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Swap:
    """Where one sequence passed from the old weights to the new."""

    at: int
    """The first token under the new weights; its length: none is."""
    kept: bool
    """Whether the keys and values that the old weights made went on being used."""
    rms: float
    """Rms skew of the sequence in nats, if it is scored with this swap."""
    runner_up: float
    """The same for the second best swap; the larger the gap, the surer the best one is."""


def mixture_logprobs(
    old: ModelScorer,
    new: ModelScorer,
    records: Sequence[SequenceRecord],
    at: Sequence[int],
    *,
    kept: bool = True,
    dtype: str = "float32",
    head_dtype: str = "float32",
    temperature: float = 1.0,
) -> list[Floats]:
    """(T,) logprobs of each sequence's tokens: the old weights' before its token number `at`, then the new ones'.

    `kept`: the new weights read the keys and values that the old ones made; else these are computed again.
    """
    before = _logprobs(old.logits(records, dtype=dtype, head_dtype=head_dtype), records, temperature)
    if kept:
        # to predict token number `at`, the new weights read the token before it
        cut = [_prompt(r) + min(b, len(r.tokens)) - 1 for r, b in zip(records, at, strict=True)]
        mixed = new.logits(records, dtype=dtype, head_dtype=head_dtype, older=old, old_tokens=cut)
        after = _logprobs(mixed, records, temperature)
    else:
        after = _logprobs(new.logits(records, dtype=dtype, head_dtype=head_dtype), records, temperature)
    return [np.concatenate([x[:b], y[b:]]) for x, y, b in zip(before, after, at, strict=True)]


def find_swaps(
    old: ModelScorer,
    new: ModelScorer,
    records: Sequence[SequenceRecord],
    *,
    dtype: str = "float32",
    head_dtype: str = "float32",
    temperature: float = 1.0,
) -> list[Swap]:
    """The swap of each sequence under which its engine logprobs fit best, of all tokens and with `kept` true and false.

    Scores the whole log 2 (T + 1) times with each of the two models. Whole sequences only (no mask).
    """
    lengths = np.array([len(r.tokens) for r in records])
    errors = {
        (at, kept): _rms(
            mixture_logprobs(
                *(old, new, records, np.minimum(at, lengths).tolist()),
                kept=kept,
                dtype=dtype,
                head_dtype=head_dtype,
                temperature=temperature,
            ),
            records,
        )
        for at in range(int(lengths.max()) + 1)
        for kept in (True, False)
    }
    return [
        _best({key: float(values[i]) for key, values in errors.items() if key[0] <= n}, n)
        for i, n in enumerate(lengths)
    ]


def _best(errors: dict[tuple[int, bool], float], length: int) -> Swap:
    """The best swap and the second best. A swap after the last token is the same with `kept` true and false."""
    distinct = {key: value for key, value in errors.items() if not (key[0] == length and not key[1])}
    at, kept = min(distinct, key=distinct.__getitem__)
    rms = distinct.pop((at, kept))
    return Swap(at, kept, rms, min(distinct.values()))


def _prompt(record: SequenceRecord) -> int:
    return 0 if record.prompt_tokens is None else len(record.prompt_tokens)


def _logprobs(
    logits: npt.NDArray[np.floating[Any]], records: Sequence[SequenceRecord], temperature: float
) -> list[Floats]:
    scaled = logits.astype(np.float64) / temperature
    tokens = np.concatenate([r.tokens for r in records])
    top = scaled.max(axis=1)
    picked = np.take_along_axis(scaled, tokens[:, None], axis=1)[:, 0]
    flat = picked - top - np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return np.split(flat, np.cumsum([len(r.tokens) for r in records])[:-1])


def _rms(found: Sequence[Floats], records: Sequence[SequenceRecord]) -> Floats:
    gaps = [values - record.engine_logprobs for values, record in zip(found, records, strict=True)]
    return np.array([np.sqrt(np.mean(gap**2)) for gap in gaps])
