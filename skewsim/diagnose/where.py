"""Where the skew lives: contrasts of its size and bias over every column that a log has or that can be derived.

The tokens of a sequence are not independent, so the unit of every error is the sequence; and many columns are looked
at, so a significance counts only as far as it survives that many looks (Šidák). Sizes are compared as d / h with
``h = sqrt((1 - p)^2 + ...)``, the logit-noise law, so that a place is not found for having the improbable tokens;
what is reported of a place (rms, bias, share of the square) is of d itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from skewsim.diagnose.causes import Place
from skewsim.diagnose.columns import EDGES, LAW, Column, columns
from skewsim.diagnose.rows import Bools, Floats, Ints, Rows

MOST_CUTS = 2000
LEAST_TOKENS = 8
LEAST_GAIN = 0.004
"""Nats a token by which two levels must describe the skew better than one."""
LAW_GAIN = 0.05
"""The same for probability: the law holds roughly only, and nearly certain tokens carry the rounding of the log."""
LEAST_Z = 2.5
SHOWN = 6
LEAST_SHOWN = 0.01
"""Share of the mean square below which a place, however sure, is none to look at."""
SAME = 1e-5
"""rms up to which two programs' numbers are the same: float32 and the digits of a log."""
CERTAIN = 1e-4  # below this 1 - p is rounding of the log


@dataclass(frozen=True)
class Contrast:
    """A place with what rules need of it."""

    place: Place
    inside: Bools
    gain: float
    """Nats a token by which two levels describe the skew better than one."""
    ratio: float
    """Size of d / h inside over outside."""
    shift: float
    """Difference of the mean of d / h, in units of its size outside."""
    z_size: float
    z_shift: float
    by_means: float = 0.0
    """Share of the mean square of d that the difference of the two means makes."""


@dataclass(frozen=True)
class Sizes:
    """The skew as the scan sees it."""

    skew: Floats
    scaled: Floats
    """d / h, its rare extremes held back."""
    level: Floats
    """Logarithm of its size: what a token says of a scale without shouting."""
    rough: Bools
    """Where a token is not nearly certain: there the rounding of the log does not show."""
    sequence: Ints
    """0, 1, ... without gaps."""
    count: int

    def sums(self, index: Ints, size: int) -> Floats:
        """(4, size): rows, their d / h, its square and their level, summed over each number of `index`."""
        parts = (None, self.scaled, self.scaled**2, self.level)
        found: Floats = np.stack([np.bincount(index, weights=p, minlength=size).astype(np.float64) for p in parts])
        return found

    @classmethod
    def of(cls, rows: Rows, skew: Floats) -> Sizes:
        likely = np.exp(np.clip(np.minimum(rows.engine, rows.trainer), -50.0, 0.0))
        scaled = skew / (np.sqrt(1.5) * (1 - likely) + CERTAIN)
        typical = float(np.abs(scaled).mean()) if len(scaled) else 0.0
        scaled = np.clip(scaled, -8 * typical, 8 * typical)
        sequence = np.cumsum(np.diff(rows.sequence, prepend=-1) != 0) - 1
        level = np.log(np.abs(scaled) + 0.1 * typical + 1e-12)
        return cls(skew, scaled, level, likely < 0.98, sequence, int(sequence.max(initial=-1)) + 1)


def scan(rows: Rows, skew: Floats | None = None) -> list[Contrast]:
    """The best contrast of each column that survives the number of looks, by how much it describes."""
    skew = rows.skew if skew is None else skew
    sizes = Sizes.of(rows, skew)
    if len(skew) < 50 or not float((skew**2).mean()) > SAME**2:
        return []
    best: dict[str, tuple[float, Column, Bools, str]] = {}
    looks = 0
    by_sequence = sizes.sums(sizes.sequence, sizes.count)
    for column in columns(rows):
        found, tried = _best_group(column, sizes, by_sequence)
        looks += tried
        if column.name == LAW and found is not None and found[0] < LAW_GAIN:
            continue
        if found is not None and found[0] > LEAST_GAIN and found[0] > 1.02 * best.get(column.name, (0.0,))[0]:
            best[column.name] = (found[0], column, found[1], found[2])
    tested = []
    for gain, column, members, text in best.values():
        inside = members[sizes.sequence] if column.per_sequence else members
        tested.append(_contrast(sizes, rows, gain, column, inside, text, looks=looks))
    kept = [each for each in tested if each is not None and each.place.z >= LEAST_Z]
    return _ordered(kept)


def _ordered(contrasts: list[Contrast]) -> list[Contrast]:
    """By gain; of two that say the same the one that the log itself names comes first."""
    rank = {name: order for order, name in enumerate(_PLAIN)}

    def key(each: Contrast) -> tuple[bool, float, int]:
        return (each.place.column == LAW, -each.gain, rank.get(each.place.column, len(rank)))

    ordered = sorted(contrasts, key=key)
    if ordered:
        top = ordered[0].gain
        near = [each for each in ordered if each.gain > 0.97 * top and (each.place.column != LAW or each is ordered[0])]
        first = min(near, key=lambda each: rank.get(each.place.column, len(rank)))
        ordered.remove(first)
        ordered.insert(0, first)
    return ordered


_PLAIN = (
    "exact value", "routes_differ", "replica", "rank", "pack_index", "step", "version", "turn", "position in its turn", "sequence modulo", "prompt",
    "seen before in the context", "seen before in the output", "position", "from the end", "sequence", "length", "token",
)  # fmt: skip


def places(contrasts: list[Contrast], most: int = SHOWN) -> tuple[Place, ...]:
    """The strongest places that account for something, by their size or by their bias."""
    found = (replace(each.place, explained=max(each.place.explained, each.by_means)) for each in contrasts)
    return tuple(place for place in found if place.explained >= LEAST_SHOWN)[:most]


def _best_group(
    column: Column, sizes: Sizes, by_sequence: Floats | None = None
) -> tuple[tuple[float, Bools, str] | None, int]:
    """(gain, rows or sequences inside, its name) of the best value or cut of a column, and how many were tried."""
    known = column.values >= 0
    if known.sum() < 2 or (not known.all() and column.name != "exact value"):
        return None, 0
    values, index = _numbered(column.values)
    if len(values) < 2:
        return None, 0
    if column.per_sequence and by_sequence is not None:
        parts = [np.bincount(index, weights=part, minlength=len(values)).astype(np.float64) for part in by_sequence]
        sums: Floats = np.stack(parts)
    else:
        sums = sizes.sums(index, len(values))
    candidates: list[tuple[npt.NDArray[Any], str, Floats]] = []
    if column.ordered and len(values) > 2:
        cuts = np.arange(1, len(values), max(1, len(values) // MOST_CUTS))
        candidates.append((cuts, "cut", np.cumsum(sums, axis=1)[:, cuts - 1]))
    singles = np.arange(len(values))
    if len(values) > column.singles:
        often = np.argsort(-sums[0], kind="stable")
        singles = (np.arange(len(values)) if column.ordered else often)[: column.singles]
    singles = singles[values[singles] >= 0]
    if len(singles):
        candidates.append((singles, "one", sums[:, singles]))
    best: tuple[float, Bools, str] | None = None
    tried = 0
    for which, how, inner in candidates:
        tried += len(which)
        gains = _gain(inner[0], inner[1], inner[2], sums.sum(axis=1))
        at = int(np.argmax(gains))
        if best is None or gains[at] > 1.001 * best[0]:
            mean_in, mean_out = (
                inner[3, at] / inner[0, at],
                (sums[3].sum() - inner[3, at]) / max(sums[0].sum() - inner[0, at], 1),
            )
            louder = bool(mean_in >= mean_out)
            several = len(values) > 2 or column.name in ("exact value", "token")
            if how == "one" and not louder and several and column.name not in ("sequence modulo", "pack_index"):
                continue  # all but one word, prompt or part is no place
            number = int(which[at])
            inside = index < number if how == "cut" else index == number
            best = (float(gains[at]), inside if louder else ~inside, _named(column, values, number, how, louder=louder))
    return best, tried


def _numbered(values: Ints) -> tuple[Ints, Ints]:
    """(different values in order, each element's number among them); without sorting where the values are small."""
    low, high = int(values.min()), int(values.max())
    if low < -1 or high > 4 * len(values) + 1000:
        found, index = np.unique(values, return_inverse=True)
        return found, index.astype(np.int64)
    there = np.bincount(values + 1, minlength=high + 2) > 0
    number = np.cumsum(there) - 1
    return np.flatnonzero(there) - 1, number[values + 1]


def best_cut(values: Ints, sizes: Sizes, rows: Bools) -> Bools | None:
    """Of these rows those below the cut of an ordered column that describes them best; None if that says nothing."""
    column = Column("", values, True, singles=0)
    part = Sizes(
        sizes.skew[rows], sizes.scaled[rows], sizes.level[rows], sizes.rough[rows], sizes.sequence[rows], sizes.count
    )
    best, _ = _best_group(column, part)
    if best is None or best[0] < LEAST_GAIN or not best[2].startswith("below"):
        return None
    return best[1]


def _gain(n: Floats, s: Floats, q: Floats, total: Floats) -> Floats:
    """Gaussian log-likelihood gained by giving these rows and the others a mean and a scale each, nats a token."""
    total_n, total_s, total_q = (float(value) for value in total[:3])
    floor = 1e-4 * total_q / total_n + 1e-24
    one = total_n * np.log(max(total_q / total_n - (total_s / total_n) ** 2, 0) + floor)
    m, t, r = total_n - n, total_s - s, total_q - q
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = n * np.log(np.maximum(q / n - (s / n) ** 2, 0) + floor)
        outside = m * np.log(np.maximum(r / m - (t / m) ** 2, 0) + floor)
        gain = (one - inside - outside) / (2 * total_n)
    return np.where((n >= LEAST_TOKENS) & (m >= LEAST_TOKENS), gain, 0.0)


def _named(column: Column, values: Ints, number: int, how: str, *, louder: bool) -> str:
    """Words for the louder side of a split."""
    value = int(values[number])
    if column.name.startswith("seen before"):
        return "yes" if (value == 1) == louder else "no"
    if column.name == LAW:
        edges = np.concatenate([[0.0], EDGES, [1.0]])
        low, high = float(edges[value]), float(edges[value + 1])
        single = f"{low:g} to {high:g}" if louder else f"not {low:g} to {high:g}"
        return (f"below {low:g}" if louder else f"above {low:g}") if how == "cut" else single
    if how == "cut":
        return f"below {value}" if louder else f"from {value} on"
    return _worded(column.text, f"{value}" if louder else f"not {value}")


def _worded(pattern: str, text: str) -> str:
    return "not " + pattern.format(text[4:]) if text.startswith("not ") else pattern.format(text)


def _contrast(
    sizes: Sizes, rows: Rows, gain: float, column: Column, inside: Bools, text: str, *, looks: int
) -> Contrast | None:
    z_size = _clustered(sizes.level, inside, sizes, per_sequence=column.per_sequence)
    z_shift = _clustered(sizes.scaled, inside, sizes, per_sequence=column.per_sequence)
    square = sizes.skew**2
    high, low, share = float(square[inside].mean()), float(square[~inside].mean()), float(inside.mean())
    strongest = max(abs(z_size), abs(z_shift))
    size_in, size_out = (float(np.abs(sizes.scaled[side]).mean()) for side in (inside, ~inside))
    shift = float(sizes.scaled[inside].mean() - sizes.scaled[~inside].mean()) / max(size_out, 1e-12)
    text = _value(rows, text) if column.name == "exact value" else text
    place = Place(
        column.name,
        text,
        int(inside.sum()),
        len(np.unique(sizes.sequence[inside])),
        float(np.sqrt(high)),
        float(np.sqrt(low)),
        float(sizes.skew[inside].mean()),
        share * max(high - low, 0.0) / float(square.mean()),
        round(survived(strongest, 2 * looks), 2),
    )
    apart = float(sizes.skew[inside].mean() - sizes.skew[~inside].mean())
    by_means = share * (1 - share) * apart**2 / float(square.mean())
    return Contrast(place, inside, gain, size_in / max(size_out, 1e-12), shift, z_size, z_shift, by_means)


def _value(rows: Rows, text: str) -> str:
    values = np.unique(rows.engine)
    return f"{values[int(text)]:g}" if text.isdigit() else text


def _clustered(values: Floats, inside: Bools, sizes: Sizes, *, per_sequence: bool) -> float:
    """z of the difference of two means, with the sequence as the unit.

    Few sequences inside say little of their own spread, so a group of whole sequences takes the larger of its own
    error and of the one that the spread of all sequences gives.
    """
    number, count = sizes.sequence, sizes.count
    mean_in, mean_out = float(values[inside].mean()), float(values[~inside].mean())
    centred = np.where(inside, (values - mean_in) / inside.sum(), -(values - mean_out) / (~inside).sum())
    each = np.bincount(number, weights=centred, minlength=count)
    error = float(np.sqrt((each**2).sum() * count / max(count - 1, 1)))
    if per_sequence:
        means = np.bincount(number, weights=values, minlength=count) / np.maximum(
            np.bincount(number, minlength=count), 1
        )
        group = np.bincount(number, weights=inside, minlength=count) > 0
        n, m = int(group.sum()), int((~group).sum())
        if min(n, m) == 0 or count < 4:
            return 0.0
        spread = np.sqrt((means[group].var() * n + means[~group].var() * m) / max(count - 2, 1))
        error = max(error, float(spread) * float(np.sqrt(1 / n + 1 / m)))
        return _normal(float(means[group].mean() - means[~group].mean()) / max(error, 1e-12), count - 2)
    return _normal((mean_in - mean_out) / max(error, 1e-12), count - 1)


def _normal(t: float, freedom: int) -> float:
    """The z whose tail is that of Student's t."""
    if freedom > 200:
        return t
    from scipy import special  # imported here, so that a command that needs none of it starts without scipy

    tail = float(special.stdtr(max(freedom, 1), -abs(t)))
    return float(np.sign(t) * -special.ndtri(max(tail, 1e-300)))


def survived(z: float, looks: int) -> float:
    """The z that is left of the largest of this many (Šidák)."""
    from scipy import special  # imported here, so that a command that needs none of it starts without scipy

    log_tail = float(special.log_ndtr(-abs(z))) + np.log(2.0)
    if log_tail + np.log(looks) < -20:
        log_tail += np.log(looks)
        return float(-special.ndtri_exp(log_tail - np.log(2.0)))
    tail = -np.expm1(looks * np.log1p(-min(np.exp(log_tail), 1 - 1e-12)))
    return max(float(-special.ndtri(min(tail, 1.0) / 2)), 0.0)
