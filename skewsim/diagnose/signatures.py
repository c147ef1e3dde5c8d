"""What the numbers alone can tell, without a model: each cause leaves a mark of its own on (trainer, engine).

With x the engine's and y the trainer's logprob, d = y - x, and r, q the two distributions:

- A truthful engine samples from r and reports it, so E exp(d) = 1 and E d = -KL(r, q) < 0 (about -E d^2 / 2).
- Raw logprobs: the tokens come from the trainer's q and the report is another distribution, so E exp(-d) = 1 and
  E d = +KL > 0.
- A temperature: in one context x_a - x_b = k (y_a - y_b) with k = T_trainer / T_engine, whatever the normaliser.
- A truncation that the trainer does not renormalise: d = log(kept mass) <= 0, the same for every token of a
  context, and E exp(d) = mean kept mass < 1, which no truthful skew on a shared support can give.
- Noise on the logits: E d^2 = sigma_z^2 ((1 - p)^2 + sum of the others' p^2), whatever the token.
- A head computed in bfloat16: differences of logits within a context lie on bfloat16's grid.
- Staleness follows the weight versions, a stale prefix the prompts that were seen before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from skewsim.diagnose.rows import Bools, Floats, Ints, Mean, Rows, mean, sequence_means, within

SHIFTS = (1, -1, 2, -2)
GRID = 2.0**-7  # bfloat16's spacing of logits in [1, 2); coarser ones are multiples of it
GRID_TOLERANCE = 2e-5  # float32 rounding of a log-softmax
CERTAIN = 0.99
MOST_SPREAD = 12.0  # of a law that real models keep within 1.3, tiny ones with tied logits hardly
SHORTEST = 6  # tokens of a sequence whose alignment can be judged


# ------------------------------------------------------------------------------------- alignment and outliers


@dataclass(frozen=True)
class Alignment:
    """Rows with each misaligned sequence's engine values put back to their tokens (those shifted out are dropped)."""

    rows: Rows
    sequences: int
    shift: int
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
    if votes.count(common) < max(2, 0.7 * len(votes)):
        return None
    for start, end in zip(starts, ends, strict=True):
        best = _best_shift(rows.trainer[start:end], rows.engine[start:end], shifts=(common,), sure=int(start) in found)
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


# ------------------------------------------------------------------------------------------ truth of the report


@dataclass(frozen=True)
class Truth:
    """Moments that tell a truthful engine from a wrong report."""

    bias: Mean
    ratio: Mean
    """mean exp(d) - 1: zero if the engine samples from what it reports."""
    inverse: Mean
    """mean exp(-d) - 1: zero if the tokens come from the trainer's distribution."""
    square: float

    @property
    def lean(self) -> float:
        """2 E d / E d^2: about -1 for a truthful engine, +1 for raw logprobs, beyond -1.5 for lost mass."""
        return 2 * self.bias.value / self.square if self.square > 0 else 0.0


def truth(rows: Rows) -> Truth:
    skew = np.clip(rows.skew, -20, 20)
    return Truth(
        mean(skew, rows.sequence),
        mean(np.expm1(skew), rows.sequence),
        mean(np.expm1(-skew), rows.sequence),
        float((skew**2).mean()),
    )


@dataclass(frozen=True)
class Slope:
    """x = k y + c(context), fitted within contexts."""

    k: Mean
    back: float
    """The slope the other way round, trainer on engine: 1 / k for a temperature, less where the two hardly go
    together.
    """
    explained: float
    """Share of the skew's variance within contexts that k != 1 explains."""
    tokens: int
    rest: float
    """rms of what is left."""


def context_slope(rows: Rows) -> Slope | None:
    """Least squares within repeated contexts; None with too few pairs of different tokens."""
    shared, y = within(rows.trainer, rows.context)
    _, x = within(rows.engine, rows.context)
    if (np.abs(y) > 1e-3).sum() < 20:
        return None
    k = float((x * y).sum() / (y * y).sum())
    rest = x - k * y
    total = float(((y - x) ** 2).sum())
    group = rows.context[shared]
    _, index = np.unique(group, return_inverse=True)
    score = np.bincount(index, weights=rest * y)
    error = float(np.sqrt((score**2).sum()) / (y * y).sum())
    share = 1 - float((rest**2).sum()) / total if total > 0 else 0.0
    back = float((x * y).sum() / max(float((x * x).sum()), 1e-30))
    return Slope(Mean(k, max(error, 1e-9)), back, share, int(shared.sum()), float(np.sqrt((rest**2).mean())))


def curve_slope(rows: Rows, *, given: Floats) -> tuple[float, float]:
    """(share of d's variance that a smooth function of `given` explains, slope k of the improbable tail)."""
    skew = rows.skew
    order = np.argsort(given)
    bins = np.array_split(order, max(4, min(40, len(order) // 50)))
    fitted = np.empty(len(skew))
    for part in bins:
        fitted[part] = skew[part].mean()
    share = 1 - float(((skew - fitted) ** 2).sum() / max(float((skew**2).sum()), 1e-30))
    tail = given < np.quantile(given, 0.3)
    centred = rows.trainer[tail] - rows.trainer[tail].mean()
    spread = float((centred**2).sum())
    k = float((centred * (rows.engine[tail] - rows.engine[tail].mean())).sum()) / spread if spread > 0 else 1.0
    return share, k


@dataclass(frozen=True)
class LostMass:
    """Signs of a truncation the trainer does not know of."""

    one_sided: float
    """1 - 2 * (square of the positive part) / (square): 1 if d is never positive, 0 if symmetric."""
    constant: float | None
    """Share of d's square that one number for each context explains; None without repeated contexts."""
    mass: Mean
    """Mean ratio - 1: minus the lost mass."""


def lost_mass(rows: Rows) -> LostMass:
    skew = rows.skew
    total = float((skew**2).sum())
    positive = float((np.maximum(skew, 0) ** 2).sum())
    shared, inner = within(skew, rows.context)
    constant = None
    if shared.sum() >= 30 and float((skew[shared] ** 2).sum()) > 0:
        constant = 1 - float((inner**2).sum()) / float((skew[shared] ** 2).sum())
    return LostMass(
        1 - 2 * positive / max(total, 1e-30), constant, mean(np.expm1(np.clip(skew, -20, 20)), rows.sequence)
    )


# ------------------------------------------------------------------------------------------- staleness, prefixes


@dataclass(frozen=True)
class Contrast:
    """Mean square skew of a group of rows against the rest."""

    group: Bools
    high: float
    low: float
    z: float

    @property
    def clear(self) -> bool:
        """Sure, at least twice as large inside, and above 1e-3 nats there."""
        return self.z > 4 and self.high > 4 * self.low and self.high > 1e-6

    @property
    def explained(self) -> float:
        """Share of all squares above the level of the quiet rows."""
        share = float(self.group.mean())
        total = share * self.high + (1 - share) * self.low
        return share * max(self.high - self.low, 0.0) / total if total > 0 else 0.0


def contrast(skew: Floats, sequence: Ints, group: Bools) -> Contrast | None:
    """Is the skew larger in the group? None if one side has fewer than 20 rows."""
    if group.sum() < 20 or (~group).sum() < 20:
        return None
    square = skew**2
    inside, outside = float(square[group].mean()), float(square[~group].mean())
    _, high = sequence_means(square[group], sequence[group])
    _, low = sequence_means(square[~group], sequence[~group])
    if min(len(high), len(low)) < 3:
        return None
    # on logarithms: mean squares have tails in which a plain difference drowns
    high, low = np.log(high + 1e-12), np.log(low + 1e-12)
    error = float(np.sqrt(high.var(ddof=1) / len(high) + low.var(ddof=1) / len(low)))
    return Contrast(group, inside, outside, float(high.mean() - low.mean()) / max(error, 1e-6))


def by_version(rows: Rows, skew: Floats) -> Contrast | None:
    """Rows sampled by older weights than the newest in the log (or than the trainer's, where meta has it)."""
    newest = rows.meta.get("trainer_version")
    known = rows.version >= 0
    if not known.any():
        return None
    last = int(newest) if isinstance(newest, int) else int(rows.version[known].max())
    return contrast(skew[known], rows.sequence[known], rows.version[known] < last)


def by_prompt(rows: Rows, skew: Floats) -> Contrast | None:
    """Rows of prompts seen before: under an earlier weight version, after other prompts, or simply more than once."""
    groups = [group for group in _repeated(rows) if not _goes_with_step(rows, skew, group)]
    found = [contrast(skew, rows.sequence, group) for group in groups]
    usable = [each for each in found if each is not None and each.high > each.low]
    return max(usable, key=lambda each: each.explained * min(each.z, 10), default=None)


def _goes_with_step(rows: Rows, skew: Floats, group: Bools) -> bool:
    """Whether new prompts, too, are off from the second step on (weight version, where no step is logged): then prompts
    seen before are off because they are of later steps, and no cache is needed for it.
    """
    step = rows.places.get("step", rows.version)
    if (step < 0).any():
        return False
    later = contrast(skew[~group], rows.sequence[~group], step[~group] > step.min())
    return later is not None and later.clear


def _repeated(rows: Rows) -> list[Bools]:
    """Candidate definitions of 'this prompt was in the cache already', as masks over rows."""
    ids, first = np.unique(rows.sequence, return_index=True)
    prompt, version = rows.prompt[first], rows.version[first]
    if len(ids) == 0 or (prompt < 0).any():
        return []
    block = np.cumsum(np.diff(prompt, prepend=prompt[0]) != 0)
    later, changed, twice = (np.zeros(len(ids), dtype=bool) for _ in range(3))
    for each in np.unique(prompt):
        member = np.flatnonzero(prompt == each)
        later[member] = block[member] != block[member[0]]
        changed[member] = version[member] > version[member].min()
        twice[member] = len(member) > 1
    masks = [later, twice] if (version < 0).any() else [later, twice, changed]
    return [mask[np.searchsorted(ids, rows.sequence)] for mask in masks]


# ------------------------------------------------------------------------------------------------------ precision


@dataclass(frozen=True)
class Noise:
    """The logit-noise law fitted to a skew."""

    sigma_z: float
    spread: float
    """Largest over smallest sigma_z of the probability bins: 1 if the law holds."""
    bias: Mean
    square: float
    shared: float
    """Share of the square that sequences have in common."""

    @property
    def lawful(self) -> bool:
        unbiased = abs(self.bias.value) <= 4 * self.bias.error + self.square
        return self.spread < MOST_SPREAD and unbiased and self.shared < 0.35


def noise_law(rows: Rows, skew: Floats) -> Noise:
    """Bins below `CERTAIN`, where d is more than rounding; the others' squares from the table, or half their most."""
    p = rows.probability
    rest = (1 - p) ** 2 / 2
    if rows.square_mass is not None and np.isfinite(rows.square_mass).all():
        rest = np.clip(rows.square_mass - p**2, 0.0, (1 - p) ** 2)
    law = np.maximum((1 - p) ** 2 + rest, 1e-12)
    sigma = float(np.sqrt((skew**2).sum() / law.sum()))
    edges = np.quantile(p[p < CERTAIN], np.linspace(0, 1, 7)) if (p < CERTAIN).sum() >= 120 else np.array([0, CERTAIN])
    sigmas = []
    for low, high in pairwise(edges):
        inside = (p >= low) & (p < high)
        if inside.sum() >= 15 and high > low:
            sigmas.append(float(np.sqrt((skew[inside] ** 2).sum() / law[inside].sum())))
    spread = max(sigmas) / max(min(sigmas), 1e-12) if sigmas else 1.0
    _, level = sequence_means(skew, rows.sequence)
    _, count = np.unique(rows.sequence, return_counts=True)
    square = float((skew**2).mean())
    between = float((count * level**2).sum()) / max(float((skew**2).sum()), 1e-30) - len(count) / max(len(skew), 1)
    return Noise(sigma, spread, mean(skew, rows.sequence), square, between)


@dataclass(frozen=True)
class Lattice:
    """How many differences of logits within a context lie on bfloat16's grid."""

    share: float
    pairs: int
    spacing: float
    """The coarsest grid that most of them lie on."""

    @property
    def coarse(self) -> bool:
        return self.pairs >= 12 and self.share > 0.5


def lattice(logprobs: Floats, rows: Rows, temperature: float) -> Lattice:
    """Differences to the first token of each context, times the temperature: differences of logits."""
    known = rows.context >= 0
    order = np.argsort(rows.context[known], kind="stable")
    context, token, value = (column[known][order] for column in (rows.context, rows.token, logprobs))
    first = np.flatnonzero(np.diff(context, prepend=-1))
    anchor = np.repeat(first, np.diff(np.append(first, len(context))))
    other = token != token[anchor] if len(token) else np.zeros(0, dtype=bool)
    steps = np.zeros(0)
    if other.any():
        pairs = np.unique(np.stack([context[other], token[other]]), axis=1, return_index=True)[1]
        steps = ((value - value[anchor])[other] * temperature)[pairs]
    on = _on_grid(steps, GRID)
    spacing = GRID
    while len(steps) and spacing < 1 and _on_grid(steps, 2 * spacing).mean() > 0.5:
        spacing *= 2
    return Lattice(float(on.mean()) if len(steps) else 0.0, len(steps), spacing)


def _on_grid(steps: Floats, spacing: float) -> Bools:
    return np.abs(steps / spacing - np.rint(steps / spacing)) * spacing < GRID_TOLERANCE


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean())) if len(values) else 0.0
