"""Sequences whose values stand at a neighbour's place, and the few that are broken: taken out before any mean."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from skewsim.diagnose.rows import Floats, Ints, Rows, sequence_means

SHIFTS = (1, -1, 2, -2)
SHORTEST = 6  # tokens of a sequence whose alignment can be judged
EXACT = 5  # times closer than in place: two sides that computed the same, up to rounding, at another place
LEAST_EXACT = 3  # sequences


@dataclass(frozen=True)
class Alignment:
    """Rows with each misaligned sequence's engine values put back to their tokens (those shifted out are dropped)."""

    rows: Rows
    sequences: int
    shift: int
    """Places between the two sides' values of one token; 0: others in every sequence."""
    explained: float
    rms_before: float
    rms_after: float


def align(rows: Rows) -> Alignment | None:
    """Find sequences whose engine values sit at the neighbour's place, from some token on; None if there are none."""
    skew = rows.skew
    total = float((skew**2).sum())
    if total == 0:
        return None
    starts = np.flatnonzero(np.diff(rows.sequence, prepend=-1))
    ends = np.append(starts[1:], len(rows))
    engine, keep = rows.engine.copy(), np.ones(len(rows), dtype=bool)
    shifts: list[int] = []
    before = after = 0.0
    found = {}
    for start, end in zip(starts, ends, strict=True):
        best = _best_shift(rows.trainer[start:end], rows.engine[start:end], shifts=SHIFTS)
        if best is not None:
            found[int(start)] = best
    votes = [shift for shift, _ in found.values()]
    common = max(set(votes), key=votes.count, default=0)
    agreed = votes.count(common) >= max(2, 0.7 * len(votes))
    if not agreed:
        found = _exact(rows, found, dict(zip(starts.tolist(), ends.tolist(), strict=True)))
        common = 0
    if not agreed and len(found) < LEAST_EXACT:
        return None
    for start, end in zip(starts, ends, strict=True):
        best = found.get(int(start))
        if agreed:
            sure = int(start) in found
            best = _best_shift(rows.trainer[start:end], rows.engine[start:end], shifts=(common,), sure=sure)
        if best is None:
            continue
        shift, at = best
        moved, source = rows.engine[start:end].copy(), np.arange(end - start) + shift
        valid = (source >= at) & (source < end - start)
        moved[valid] = rows.engine[start:end][source[valid]]
        inside = valid | (np.arange(end - start) < at - 1)  # the break itself is only known to a token
        inside[at : at + 2] &= at == 0
        engine[start:end] = moved
        keep[start:end] = inside
        shifts.append(shift)
        before += float((skew[start:end] ** 2).sum())
        after += float(((rows.trainer[start:end] - moved)[inside] ** 2).sum())
    if before < 0.05 * total:
        return None
    mended = replace(rows, engine=np.where(keep, engine, 0.0)).select(keep)
    count = sum(int(end - start) for start, end in zip(starts, ends, strict=True))
    return Alignment(
        mended, len(shifts), common, (before - after) / total, float(np.sqrt(total / count)), _rms(mended.skew)
    )


def _exact(rows: Rows, found: dict[int, tuple[int, int]], ends: dict[int, int]) -> dict[int, tuple[int, int]]:
    """Those shifts that leave next to nothing: a text that was tokenised again is off by another number of places in
    every sequence, and what agrees by chance does not agree so well."""
    kept = {}
    for start, (shift, at) in found.items():
        trainer, engine = rows.trainer[start : ends[start]], rows.engine[start : ends[start]]
        source = np.arange(at, len(trainer)) + shift
        valid = (source >= at) & (source < len(trainer))
        left = np.median(np.abs(trainer[at:][valid] - engine[source[valid]]))
        if np.median(np.abs(trainer[at:] - engine[at:])) > EXACT * left:
            kept[start] = (shift, at)
    return kept


def _best_shift(
    trainer: Floats, engine: Floats, *, shifts: tuple[int, ...], sure: bool = True
) -> tuple[int, int] | None:
    """(shift, first row it applies to) if moving the engine's values explains nearly all of a large skew.

    Not `sure`: a sequence that did not stand out by itself, looked at again once a shift is known to occur.
    """
    length = len(trainer)
    if length < SHORTEST:
        return None
    plain = (trainer - engine) ** 2
    best: tuple[float, int, int] | None = None
    for shift in shifts:
        source = np.arange(length) + shift
        valid = (source >= 0) & (source < length)
        moved = np.zeros(length)
        moved[valid] = (trainer[valid] - engine[source[valid]]) ** 2
        # rows before `at` stay, the others move: cost of each `at` by cumulative sums
        stay = np.concatenate([[0.0], np.cumsum(plain)])
        move = np.concatenate([np.cumsum((moved * valid)[::-1])[::-1], [0.0]])
        rows = np.arange(length + 1) + np.concatenate([np.cumsum(valid[::-1])[::-1], [0]])
        cost = (stay + move) / np.maximum(rows, 1) * length
        at = int(np.argmin(cost[: length - SHORTEST + 2]))
        if length - at >= SHORTEST - 1 and (best is None or cost[at] < best[0]):
            best = (float(cost[at]), shift, at)
    if best is None or plain.sum() < 0.02 * length or best[0] > (0.25 if sure else 0.5) * plain.sum():
        return None
    tail = slice(best[2], None)
    spread = float(np.var(trainer[tail])) * (length - best[2])
    _, shift, at = best
    source = np.arange(at, length) + shift
    valid = (source >= at) & (source < length)
    left = np.abs(trainer[at:][valid] - engine[source[valid]])
    # a shift mends most tokens, not one: and near-constant sequences match at any shift, so the trainer's must vary
    most = float(np.median(np.sqrt(plain[at:]))) > 1.8 * float(np.median(left))
    return (shift, at) if most and (spread > 3 * best[0] or not sure) else None


@dataclass(frozen=True)
class Outliers:
    """A handful of sequences that carry the skew."""

    sequences: Ints
    explained: float
    rms_inside: float
    rms_outside: float


def find_outliers(rows: Rows) -> Outliers | None:
    """At most a tenth of the sequences, far outside the spread of the others, with a skew that no noise has."""
    ids, size = sequence_means(
        np.abs(rows.skew), rows.sequence
    )  # not squares: one improbable token is no broken sequence
    if len(ids) < 10:
        return None
    level = np.log(np.maximum(size, 1e-6))
    centre = float(np.median(level))
    spread = 1.4826 * float(np.median(np.abs(level - centre)))
    far = (level > centre + max(4 * spread, np.log(4))) & (size > 0.3)
    if not far.any() or far.sum() > max(1, len(ids) // 10):
        return None
    inside = np.isin(rows.sequence, ids[far])
    most_are_off = float(np.median(np.abs(rows.skew[inside]))) > 0.2
    if not most_are_off or related(rows.engine[inside], rows.trainer[inside]):
        return None  # other weights or another context: the two still go together, or only some tokens are off
    total = float((rows.skew**2).sum())
    share = float((rows.skew[inside] ** 2).sum()) / total
    if share < 0.3:
        return None
    return Outliers(ids[far], share, _rms(rows.skew[inside]), _rms(rows.skew[~inside]))


def related(engine: Floats, trainer: Floats) -> bool:
    """Whether the two columns go together beyond chance; those of a broken sequence do not."""
    if len(engine) < 8 or min(float(np.std(engine)), float(np.std(trainer))) < 1e-9:
        return False
    return bool(np.corrcoef(engine, trainer)[0, 1] > max(0.35, 3.5 / np.sqrt(len(engine))))


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean())) if len(values) else 0.0
