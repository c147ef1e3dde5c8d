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

from dataclasses import dataclass

import numpy as np

from skewsim.diagnose.rows import Bools, Floats, Ints, Mean, Rows, mean, sequence_means, within

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


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean())) if len(values) else 0.0
