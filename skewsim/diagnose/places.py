"""Causes that show in where the skew lives: sequences, turns, places in a pack, positions, steps, tokens seen before.

A contrast of `where` says that a place differs; a rule here says which fault leaves that place. What lies inside is
then taken out, and the rest is judged as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from skewsim.diagnose import where
from skewsim.diagnose.causes import Cause, found
from skewsim.diagnose.rows import Bools, Floats, Ints, Rows
from skewsim.diagnose.where import Contrast, Sizes

LEAST_Z = 2.5
LEAST_RATIO = 1.5
LEAST_SHIFT = 0.2
LEAST_EXPLAINED = 0.15
LARGEST_ROUNDING = 0.12  # rms, nats: bfloat16 (`normal.MOST`)
EARLIEST = 8
"""First position at which an onset is one; before that a response only gets going."""
LEAST_NAMED = 0.1
"""Least share of the whole log's square that a cause is named for."""
LEAST_RMS = 0.015
"""nats; less than this is a float16's rounding wherever it stands."""
SEPARATE = 4.5
"""Distance of two groups' levels over the spread inside them; one cloud cut in two has 2.7, an even spread 3.5."""
LEAST_GAP = 0.12
"""Least empty space between two groups, of the distance of their levels."""
OF_TOKENS = ("engine's probability", "token", "exact value")
"""Columns that say what a token is, not where it stands."""
GROUPS = ("replica", "rank", "sequence modulo", "sequence", "prompt", "pack_index")


@dataclass(frozen=True)
class Named:
    """A cause with the rows that it accounts for."""

    cause: Cause
    inside: Bools


def name(rows: Rows, skew: Floats, total: float, contrasts: list[Contrast] | None = None) -> Named | None:
    """The fault that the strongest place points to; None if there is none or no fault goes with it."""
    view = View(rows, skew, total, contrasts)
    for rule in (grows_with_step, from_a_turn, seen_before, in_groups, along_the_sequence):
        named = rule(view)
        if named is not None:
            return named
    return None


class View:
    """A log's skew with its contrasts, computed once."""

    def __init__(self, rows: Rows, skew: Floats, total: float, contrasts: list[Contrast] | None = None) -> None:
        self.rows, self.skew, self.total = rows, skew, total
        self.sizes = Sizes.of(rows, skew)
        contrasts = where.scan(rows, skew) if contrasts is None else contrasts
        self.strong = {each.place.column: each for each in contrasts if strong(each)}
        self.strongest = max(
            (each.gain for column, each in self.strong.items() if column not in OF_TOKENS), default=0.0
        )
        self.groups, self.early, self.levels = self._split()

    def _split(self) -> tuple[Bools | None, bool, Floats]:
        """(sequences that stand apart, whether their beginnings show it best, each sequence's level)."""
        best: tuple[float, Bools, bool] | None = None
        order = np.arange(len(self.skew)) - _first_rows(self.sizes.sequence)
        whole = _levels(self.sizes, np.ones(len(order), dtype=bool))
        for most in (8, 16, 32):
            levels = _levels(self.sizes, order < most)
            loud, separation = split(levels)
            if loud is not None and (best is None or separation > best[0]):
                best = (separation, loud, True)
        loud, separation = split(whole)
        if loud is not None and (best is None or separation > 0.8 * best[0]):
            best = (separation, loud, False)
        return (None, False, whole) if best is None else (best[1], best[2], whole)

    def share(self, inside: Bools) -> float:
        """Share of the whole log's square that these rows have above the level of the others."""
        square = self.skew**2
        level = float(square[~inside].mean()) if (~inside).any() else 0.0
        return float((square[inside] - level).sum()) / self.total if self.total > 0 else 0.0

    def named(self, cause: str, inside: Bools, evidence: str) -> Named:
        share = min(max(self.share(inside), 0.0), 1.0)
        return Named(found(cause, share, evidence), inside)

    def leads(self, column: str, part: float = 0.6) -> Contrast | None:
        """The column's contrast if it says nearly as much as the strongest does."""
        each = self.strong.get(column)
        return each if each is not None and each.gain >= part * self.strongest else None

    def rms(self, inside: Bools) -> float:
        return float(np.sqrt((self.skew[inside] ** 2).mean())) if inside.any() else 0.0

    def in_sequences(self, chosen: Bools) -> Bools:
        """The rows of these sequences."""
        return chosen[self.sizes.sequence]

    def decay(self, inside: Bools) -> Bools | None:
        """Rows at the beginning of these sequences in which the skew is larger than later in them; None if it stays."""
        early = where.best_cut(self.rows.position[inside], self.sizes, inside)
        if early is None:
            return None
        chosen = np.zeros(len(self.skew), dtype=bool)
        chosen[np.flatnonzero(inside)[early]] = True
        rest = inside & ~chosen
        number, count = self.sizes.sequence, self.sizes.count
        n, m = (np.bincount(number, weights=side, minlength=count) for side in (chosen, rest))
        both = (n > 0) & (m > 0)
        gap = (_levels(self.sizes, chosen) - _levels(self.sizes, rest))[both]
        if len(gap) == 0 or gap.mean() < np.log(1.5) or self.rms(chosen) < 2 * self.rms(rest):
            return None
        if not inside.all():
            base = float(self.sizes.level[~inside].mean())
            late, first = (float(self.sizes.level[part].mean()) - base for part in (rest, chosen))
            if late > 0.5 * first and self.rms(chosen) < 4 * self.rms(rest):
                return None  # it falls, but not to what the other sequences have
        sure = gap.mean() > 3 * gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 3 else bool((gap > np.log(1.5)).all())
        return chosen if sure else None


def strong(each: Contrast) -> bool:
    """Whether a place is sure, large and not of rounding's size."""
    place = each.place
    clear = place.explained > 0.5 and place.z > 4
    differs = each.ratio >= (1.35 if clear else LEAST_RATIO) or abs(each.shift) >= LEAST_SHIFT
    return bool(
        place.z >= LEAST_Z
        and differs
        and max(place.rms_inside, place.rms_outside) >= LEAST_RMS
        and (place.explained >= LEAST_EXPLAINED or abs(each.shift) >= LEAST_SHIFT)
    )


def _first_rows_of(sequence: Ints) -> Ints:
    """The first row of each sequence."""
    return np.flatnonzero(np.diff(sequence, prepend=-1) != 0).astype(np.int64)


def _first_rows(sequence: Ints) -> Ints:
    """For each row the first row of its sequence."""
    starts = _first_rows_of(sequence)
    return np.repeat(starts, np.diff(np.append(starts, len(sequence))))


def _levels(sizes: Sizes, chosen: Bools) -> Floats:
    """Each sequence's level over these rows; over the uncertain tokens of them where there are some."""
    rough = chosen & sizes.rough
    enough = np.bincount(sizes.sequence, weights=rough, minlength=sizes.count) >= 3
    chosen = np.where(enough[sizes.sequence], rough, chosen)
    count = np.bincount(sizes.sequence, weights=chosen, minlength=sizes.count)
    return np.bincount(sizes.sequence, weights=sizes.level * chosen, minlength=sizes.count) / np.maximum(count, 1)


def split(levels: Floats) -> tuple[Bools | None, float]:
    """(the upper of two groups that stand apart, their distance over the spread inside them); None for one cloud."""
    n = len(levels)
    if n < 8:
        return None, 0.0
    order = np.argsort(levels)
    values = levels[order]
    size = np.arange(1, n)
    low = np.cumsum(values)[:-1] / size
    high = (values.sum() - np.cumsum(values)[:-1]) / (n - size)
    between = size * (n - size) * (high - low) ** 2
    at = int(np.argmax(between)) + 1
    if min(at, n - at) < 2:
        return None, 0.0
    inner = np.sqrt((values[:at].var() * at + values[at:].var() * (n - at)) / n)
    distance = float(values[at:].mean() - values[:at].mean())
    separation = distance / max(float(inner), 1e-6)
    between_them = float(values[at] - values[at - 1])
    if separation < SEPARATE or distance < np.log(1.6) or between_them < LEAST_GAP * distance:
        return None, separation
    loud = np.zeros(n, dtype=bool)
    loud[order[at:]] = True
    return loud, separation


# -------------------------------------------------------------------------------------------------------- rules


def grows_with_step(view: View) -> Named | None:
    """The later the step (or the version that the log claims), the further engine and trainer are apart."""
    for column in ("step", "version"):
        each = view.leads(column)
        values = view.rows.places.get("step") if column == "step" else view.rows.version
        if each is None or values is None or not each.place.value.startswith("from"):
            continue
        steps, index = np.unique(values, return_inverse=True)
        level = np.bincount(index, weights=view.sizes.level) / np.bincount(index)
        if len(steps) < 2 or _rank_correlation(level) < 0.7:
            continue
        first, last = (view.rms(index == at) for at in (0, len(steps) - 1))
        lag = ""
        if column == "step" and (view.rows.version >= 0).all():
            lag = f"; the versions that the log claims are {int(np.median(view.rows.places['step'] - view.rows.version))} steps behind throughout"
        return view.named(
            "weights_not_delivered",
            index > 0,
            f"rms {first:.3g} at {column} {steps[0]}, {last:.3g} at {column} {steps[-1]} (z {each.place.z:.1f}): it grows with every "
            f"{column} although the log claims new weights{lag}; the engine still samples from the weights of the beginning",
        )
    return None


def _rank_correlation(level: Floats) -> float:
    if len(level) < 3:
        return 1.0 if level[-1] > level[0] else -1.0
    rank = np.argsort(np.argsort(level))
    return float(np.corrcoef(rank, np.arange(len(level)))[0, 1])


def from_a_turn(view: View) -> Named | None:
    """Clean until a turn, off from there on, or where a turn begins: the two sides saw different earlier turns."""
    turn = view.rows.places.get("turn")
    if turn is None:
        return None
    each, begin = view.leads("turn", part=0.9), view.leads("position in its turn", part=0.9)
    if each is not None and int(turn[each.inside].min()) > int(turn.min()):
        return _other_history(view, each, each.inside, int(turn[each.inside].min()))
    if begin is None or not (begin.place.value.startswith("below") or begin.place.value == "0"):
        return None
    level = [view.rms(begin.inside & (turn == number)) for number in range(int(turn.max()) + 1)]
    first = next((number for number, size in enumerate(level) if size > 0.5 * max(level)), 0)
    if first == 0:
        return None
    return _other_history(view, begin, begin.inside & (turn >= first), first)


def _other_history(view: View, each: Contrast, inside: Bools, first: int) -> Named:
    return view.named(
        "different_context",
        inside,
        f"rms {view.rms(inside):.3g} from turn {first + 1} on ({each.place.column} {each.place.value}), {view.rms(~inside):.3g} elsewhere "
        f"(z {each.place.z:.1f}): trainer and engine read a different history from turn {first + 1} on (a template that drops earlier "
        "thinking, a tool's answer written otherwise)",
    )


def in_groups(view: View) -> Named | None:
    """Some sequences are off and the others are not: which ones, and whether only their beginnings are, tells why."""
    packs = _packs(view)
    if packs is not None:
        return packs
    group = max((view.strong[n] for n in GROUPS if n in view.strong), key=lambda each: each.gain, default=None)
    pack = view.strong.get("pack_index")
    if pack is not None and pack.place.value in ("from 1 on", "not 0") and pack.gain >= 0.15 * view.strongest:
        beginning = view.decay(pack.inside)
        return _packed(view, f"pack_index {pack.place.value}", pack.inside if beginning is None else beginning)
    onset = view.leads("position", part=0.8)
    if onset is not None and onset.place.value.startswith("from") and (group is None or group.gain < onset.gain):
        return None  # long sequences have more of what comes late, and so stand apart
    if group is not None and (group.gain >= 0.6 * view.strongest or view.groups is not None or _parts(view, group)):
        loud = _sequences_of(view, group.inside)
        same = view.groups is None or _agree(loud, view.groups)
        if same:
            return _group_of(view, group, loud)
    if view.groups is not None:
        return _regular_group(view, view.groups) or _loose_group(view, view.groups)
    return None


def _packs(view: View) -> Named | None:
    """Beginnings that are off but for the first of every so many sequences: exact, so a few sequences are enough."""
    early = view.strong.get("position")
    if early is not None and not early.place.value.startswith("below"):
        return None
    order = np.arange(len(view.skew)) - _first_rows(view.sizes.sequence)
    beginning = early.inside if early is not None else order < 8
    level, number = _levels(view.sizes, beginning), np.arange(view.sizes.count)
    rank = np.argsort(np.argsort(level))
    best: tuple[float, str, Bools] | None = None
    for which, first, looks in _first_in_pack(view, number):
        n, m = int(first.sum()), int((~first).sum())
        if min(n, m) < 2:
            continue
        above = 1 - (rank[first].sum() - n * (n - 1) / 2) / (n * m)  # share of pairs in which the first is the quieter
        surprise = float(special.gammaln(n + m + 1) - special.gammaln(n + 1) - special.gammaln(m + 1))
        apart = float(level[~first].mean() - level[first].mean())
        sure = above >= 0.95 and surprise > np.log(200 * looks) and apart > np.log(2)
        if sure and (best is None or apart > 1.1 * best[0]):
            best = (apart, which, ~first)
    if best is None:
        return None
    inside = view.decay(view.in_sequences(best[2]))
    if inside is None or view.rms(inside) < LEAST_RMS:
        return None
    return _packed(view, best[1], inside)


def _first_in_pack(view: View, number: Ints) -> Iterator[tuple[str, Bools, int]]:
    """(name, sequences that would be the first of their pack, how many such guesses there are)."""
    pack = view.rows.places.get("pack_index")
    if pack is not None:
        yield "pack_index from 1 on", pack[_first_rows_of(view.sizes.sequence)] == 0, 1
        return
    for modulo in where.MODULO:
        yield f"sequence modulo not 0 mod {modulo}", number % modulo == 0, len(where.MODULO)


def _parts(view: View, group: Contrast) -> bool:
    """Whether the group parts the beginnings of sequences that are off from those that are not."""
    early = view.strong.get("position")
    if early is None or not early.place.value.startswith("below"):
        return False
    return view.rms(early.inside & group.inside) > 2.5 * view.rms(early.inside & ~group.inside)


def _regular_group(view: View, loud: Bools) -> Named | None:
    """Groups that are exactly a remainder of the sequence's number, or all but one: too few sequences for a z, but
    no chance.
    """
    number = np.arange(len(loud))
    for modulo in where.MODULO:
        if len(loud) < 3 * modulo:
            break
        for side, quiet_one in ((loud, False), (~loud, True)):
            remainder = np.unique(number[side] % modulo)
            if len(remainder) == 1 and side.sum() == (number % modulo == remainder[0]).sum():
                beginning = view.decay(view.in_sequences(loud))
                packed = quiet_one and remainder[0] == 0
                if packed and beginning is not None:
                    return _packed(view, f"sequence modulo not 0 mod {modulo}", beginning)
                if not quiet_one and beginning is None:
                    return _stale(view, loud, f"sequence modulo {remainder[0]} mod {modulo}")
    return None


def _sequences_of(view: View, inside: Bools) -> Bools:
    return np.bincount(view.sizes.sequence, weights=inside, minlength=view.sizes.count) > 0


def _agree(one: Bools, other: Bools) -> bool:
    both, either = float((one & other).sum()), float((one | other).sum())
    return both >= 0.75 * either


def _group_of(view: View, each: Contrast, loud: Bools) -> Named | None:
    """A group that a column names."""
    column, value = each.place.column, each.place.value
    inside = view.in_sequences(loud)
    beginning = view.decay(inside)
    quiet_one = value.startswith("not ") or (column == "sequence modulo" and value == "1 mod 2")
    if column == "sequence modulo" and quiet_one and beginning is not None:
        return _packed(view, f"{column} {value}", beginning)
    if column == "sequence modulo" and value.startswith("not ") and loud.mean() > 0.5:
        return _packed(view, f"{column} {value}", inside)
    if beginning is not None and view.rms(beginning) > 1.5 * view.rms(inside & ~beginning):
        return _other_context(view, loud, beginning)
    prompts = _whole_prompts(view, loud)
    if prompts > 1 and column not in ("replica", "rank", "sequence modulo") and not _contiguous(loud):
        return _by_prompt(view, inside, prompts, loud)
    one = view.strong.get("prompt")
    if (
        column == "prompt"
        or (one is not None and column == "sequence" and one.gain > 0.97 * each.gain)
        or loud.sum() < 2
    ):
        return None  # one prompt or sequence that is off: no fault goes with it
    return _stale(view, loud, f"{column} {value}, z {each.place.z:.1f}")


def _stale(view: View, loud: Bools, which: str) -> Named:
    inside = view.in_sequences(loud)
    return view.named(
        "stale_replica",
        inside,
        f"{int(loud.sum())} of {len(loud)} sequences ({which}): rms {view.rms(inside):.3g} in them, {view.rms(~inside):.3g} in the others, "
        f"from the first token to the last; {_truth(view, inside)}: one engine of several serves other weights",
    )


def _loose_group(view: View, loud: Bools) -> Named | None:
    """Two groups of sequences that no column tells apart."""
    inside = view.in_sequences(loud)
    beginning = view.decay(inside)
    early = view.strong.get("position")
    if beginning is not None and (early is None or view.share(beginning) > 0.5 * early.place.explained):
        return _other_context(view, loud, beginning)
    if view.rms(inside) < max(LEAST_RMS, 1.5 * view.rms(~inside)) or view.share(inside) < LEAST_EXPLAINED:
        return None
    prompts = _whole_prompts(view, loud)
    if prompts > 1 and not _contiguous(loud):
        return _by_prompt(view, inside, prompts, loud)
    if prompts == 1 or not _truthful(view, inside):
        return None
    return view.named(
        "stale_replica",
        inside,
        f"the sequences fall in two groups: rms {view.rms(inside):.3g} in {int(loud.sum())}, {view.rms(~inside):.3g} in the other "
        f"{int((~loud).sum())}, from the first token to the last; {_truth(view, inside)}: as of an engine among several that serves "
        "other weights; a column `replica` would show which",
    )


def _packed(view: View, which: str, inside: Bools) -> Named:
    return view.named(
        "packed_rows",
        inside,
        f"{which}: rms {view.rms(inside):.3g} in {int(inside.sum())} tokens, {view.rms(~inside):.3g} elsewhere: what stands before a sequence in its packed row leaks into its beginning; the trainer's side",
    )


def _other_context(view: View, loud: Bools, beginning: Bools) -> Named:
    far = int(view.rows.position[beginning].max()) + 1
    return view.named(
        "different_context",
        beginning,
        f"in {int(loud.sum())} of {len(loud)} sequences the skew is largest at the beginning and fades (rms {view.rms(beginning):.3g} up "
        f"to token {far}, {view.rms(~beginning):.3g} elsewhere): trainer and engine read another prompt before these responses, "
        "from token 0 on",
    )


def _by_prompt(view: View, inside: Bools, prompts: int, loud: Bools) -> Named | None:
    if view.rms(inside) < LARGEST_ROUNDING:
        return None  # prompts differ a little in any dtype
    return view.named(
        "moe_routing",
        inside,
        f"{int(loud.sum())} of {len(loud)} sequences, those of {prompts} prompts: rms {view.rms(inside):.3g} in them, "
        f"{view.rms(~inside):.3g} in the others; {_truth(view, inside)}: what decides by the prompt, as routing to experts or a hybrid "
        "attention's state does",
    )


def _whole_prompts(view: View, loud: Bools) -> int:
    """Number of prompts whose sequences are all in the group, if the group is made of such prompts; else 0."""
    _, first = np.unique(view.sizes.sequence, return_index=True)
    prompt = view.rows.prompt[first]
    if (prompt < 0).any():
        return 0
    _, index, count = np.unique(prompt, return_inverse=True, return_counts=True)
    share = np.bincount(index, weights=loud) / count
    several = count > 1
    members = several[index]
    if members.mean() < 0.8:
        return 0
    within, whole = (share * (1 - share))[index][members].mean(), loud[members].mean() * (1 - loud[members].mean())
    return int((several & (share > 0.5)).sum()) if within < 0.4 * whole else 0


def _contiguous(loud: Bools) -> bool:
    """One run of sequences that is an even part of the log, as a replica's share is."""
    starts = np.flatnonzero(np.diff(loud.astype(int), prepend=0) > 0)
    size = int(loud.sum())
    return len(starts) == 1 and len(loud) % size == 0 and int(starts[0]) % size == 0


def seen_before(view: View) -> Named | None:
    """Tokens that were there before are off one way, the others the other way: one side applies a penalty."""
    best = max(
        (each for n, each in view.strong.items() if n.startswith("seen before") and abs(each.z_shift) >= LEAST_Z),
        key=lambda each: each.gain,
        default=None,
    )
    if best is None or best.gain < 0.3 * view.strongest:
        return None
    again = best.inside if best.place.value == "yes" else ~best.inside
    inside, outside = float(view.skew[again].mean()), float(view.skew[~again].mean())
    if (inside * outside > 0 and abs(outside) > 0.5 * abs(inside)) or abs(best.shift) < LEAST_SHIFT:
        return None
    if abs(_shift_at_equal_probability(view, again)) < 0.5 * abs(best.shift):
        return None  # repeated tokens are likelier ones, and it is the probability that decides
    side = "engine" if inside > 0 else "trainer"
    scope = best.place.column.removeprefix("seen before ")
    evidence = (
        f"bias {inside:+.3g} on tokens seen before {scope}, {outside:+.3g} on the others (z {abs(best.z_shift):.1f}): the {side} makes "
        "repeated tokens less likely and the other side does not (a repetition, presence or frequency penalty)"
    )
    return Named(found("one_sided_processor", _by_cells(view, again), evidence), best.inside)


def _shift_at_equal_probability(view: View, again: Bools) -> float:
    """The difference of d / h between tokens seen before and others of like probability, in units of its size."""
    scaled, order = view.sizes.scaled, np.argsort(view.rows.engine, kind="stable")
    differences, weights = [], []
    for part in np.array_split(order, 20):
        one, other = scaled[part][again[part]], scaled[part][~again[part]]
        if min(len(one), len(other)) >= 5:
            differences.append(float(one.mean() - other.mean()))
            weights.append(min(len(one), len(other)))
    if not weights:
        return 0.0
    return float(np.average(differences, weights=weights)) / max(float(np.abs(scaled).mean()), 1e-12)


def _by_cells(view: View, again: Bools) -> float:
    """Share of the square that the mean at a probability explains, for tokens seen before and for the others."""
    order = np.argsort(np.minimum(view.rows.engine, view.rows.trainer), kind="stable")
    cell = np.empty(len(order), dtype=np.int64)
    cell[order] = np.arange(len(order)) * 20 // len(order)
    cell = 2 * cell + again
    count = np.maximum(np.bincount(cell, minlength=40), 1)
    explained = float((np.bincount(cell, weights=view.skew, minlength=40) ** 2 / count).sum())
    return min(explained / max(view.total, 1e-30), 1.0)


def along_the_sequence(view: View) -> Named | None:
    """By position in every sequence: an onset or growth, or a beginning that fades."""
    each, end = view.leads("position", part=0.8), view.strong.get("from the end")
    if each is None or (end is not None and end.gain > 1.1 * each.gain):
        return None
    at = int(view.rows.position[each.inside].min())
    evidence = f"rms {each.place.rms_inside:.3g} at positions {each.place.value}, {each.place.rms_outside:.3g} elsewhere (z {each.place.z:.1f})"
    if each.place.value.startswith("from"):
        if not _beyond_chance(view, each):
            return None
        how = _onset(view, at)
        return view.named("position_dependent", each.inside, f"{evidence}, in all sequences alike: {how}")
    if not each.place.value.startswith("below") or not _fades(view, each):
        return None
    return _other_context(view, np.ones(view.sizes.count, dtype=bool), each.inside)


def _beyond_chance(view: View, each: Contrast) -> bool:
    """Rounding differs a little along a sequence by itself, and tokens after an update in mid-sequence differ too."""
    same = np.diff(view.rows.sequence) == 0
    at, place = int(view.rows.position[each.inside].min()), each.place
    if (np.diff(view.rows.version)[same] != 0).any() or at < EARLIEST:
        return False
    if at >= 3 * EARLIEST and place.z > 6 and place.explained > 0.6 and place.rms_inside > 1.8 * place.rms_outside:
        return True
    return each.place.rms_inside > 3 * each.place.rms_outside or each.place.rms_inside > LARGEST_ROUNDING


def _onset(view: View, at: int) -> str:
    """Growth or an onset, by the level on both sides of the cut."""
    place = view.rows.position
    width = max(at // 3, 4)
    near = view.rms((place >= at) & (place < at + width)), view.rms((place < at) & (place >= at - width))
    before = view.rms(place < at // 2)
    if near[0] > 2 * near[1]:
        same = "the same to the last digit" if before < where.SAME else f"rms {before:.2g}"
        return f"an onset at token {at} ({same} before; a block, page or split of the cache, a context-parallel part)"
    return f"it grows along the sequence, {before:.2g} in the first {at // 2} tokens (positions, a state's error, keys and values)"


def _fades(view: View, each: Contrast) -> bool:
    """Whether the skew falls inside the cut: a forgotten context does, a part of the sequence that is off does not."""
    place = view.rows.position
    end = int(place[each.inside].max()) + 1
    parts = (place < end / 3, place >= 2 * end / 3)
    if not all((part & each.inside).any() for part in parts):
        return False
    first, last = (float(view.sizes.level[part & each.inside].mean()) for part in parts)
    return first > last + float(np.log(1.5))


def _truth(view: View, inside: Bools) -> str:
    ratio = float(np.exp(np.clip(view.skew[inside], -20, 20)).mean())
    return f"mean ratio {ratio:.3f}, {'truthful' if _truthful(view, inside) else 'not truthful'}"


def _truthful(view: View, inside: Bools) -> bool:
    """Bias and square as of a truthful engine: E d is about -E d^2 / 2, and never above 0."""
    skew = view.skew[inside]
    return bool(float(skew.mean()) < 0.1 * np.sqrt((skew**2).mean()))
