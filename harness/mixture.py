"""The oracle for weight updates in mid-sequence: what a trainer gets that replays exactly what the engine did.

An engine that takes new weights while a request is under way, and keeps its keys and values, computes every later token
with the new weights over keys and values of the old ones. That is neither the old policy nor the new one, so scoring under
either leaves skew: lag against the old, stale keys and values against the new. A trainer that replays the mixture (a cache
filled under the old weights, continued under the new) reaches the numeric floor, and only from the right token on: scanning
the boundary finds where each request was swapped. If the engine makes the keys and values again, plain old-then-new does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Keys and values of the old weights went on being used."""
    rms: float
    """nats, of trainer minus engine over the sequence, replayed so."""
    runner_up: float
    """The same at the next best place: how sure this one is."""


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
    """(T,) logprobs of each sequence's tokens: before its boundary the old weights', from it on the new ones'.

    `kept`: the new weights read keys and values that the old ones made; else they are made again.
    """
    precision = {"dtype": dtype, "head_dtype": head_dtype}
    before = _logprobs(old.logits(records, **precision), records, temperature)
    if kept:
        # the token before the boundary is the first that the new weights read
        cut = [_prompt(r) + min(b, len(r.tokens)) - 1 for r, b in zip(records, at, strict=True)]
        mixed = new.logits(records, older=old, old_tokens=cut, **precision)
        after = _logprobs(mixed, records, temperature)
    else:
        after = _logprobs(new.logits(records, **precision), records, temperature)
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
    """Scan every boundary of every sequence, with old keys and values kept and made again; the best one of each.

    Costs T + 1 forward passes over the log. Whole sequences only (no mask).
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
    """From the first token on, or never, kept and made again are the same."""
    distinct = {key: value for key, value in errors.items() if not (key[0] == length and not key[1])}
    at, kept = min(distinct, key=distinct.__getitem__)
    rms = distinct.pop((at, kept))
    return Swap(at, kept, rms, min(distinct.values()))


def _prompt(record: SequenceRecord) -> int:
    return 0 if record.prompt_tokens is None else len(record.prompt_tokens)


def _logprobs(logits: npt.NDArray[np.float32], records: Sequence[SequenceRecord], temperature: float) -> list[Floats]:
    scaled = logits.astype(np.float64) / temperature
    tokens = np.concatenate([r.tokens for r in records])
    top = scaled.max(axis=1)
    picked = np.take_along_axis(scaled, tokens[:, None], axis=1)[:, 0]
    flat = picked - top - np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return np.split(flat, np.cumsum([len(r.tokens) for r in records])[:-1])


def _rms(found: Sequence[Floats], records: Sequence[SequenceRecord]) -> Floats:
    gaps = [values - record.engine_logprobs for values, record in zip(found, records, strict=True)]
    return np.array([np.sqrt(np.mean(gap**2)) for gap in gaps])
