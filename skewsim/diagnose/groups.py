"""Causes by which sequences are off: one engine of several, sequences packed into a row, prompts, a wrong prompt."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from skewsim.diagnose import columns
from skewsim.diagnose.causes import in_words
from skewsim.diagnose.rows import Bools, Ints
from skewsim.diagnose.view import (
    LARGEST_ROUNDING,
    LEAST_EXPLAINED,
    LEAST_RATIO,
    LEAST_RMS,
    Named,
    View,
    first_rows,
    first_rows_of,
    levels_of,
    other_context,
    truth_of,
    truthful,
)
from skewsim.diagnose.where import Contrast

LARGEST_QUIET = 0.15
"""rms, nats: what the other prompts may have where a few are off."""
MOST_PROMPTS = 0.75
MOST_STALE = 0.7
"""Largest share of the sequences that can be the group that is off: a few that are quieter than the rest are none."""
GROUPS = ("replica", "rank", "sequence modulo", "sequence", "prompt", "pack_index")


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
    order = np.arange(len(view.skew)) - first_rows(view.sizes.sequence)
    beginning = early.inside if early is not None else order < 8
    level, (number, _) = levels_of(view.sizes, beginning), columns.numbers(view.rows)
    rank = np.argsort(np.argsort(level))
    from scipy import special  # imported here, so that a command that needs none of it starts without scipy

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
        yield "pack_index from 1 on", pack[first_rows_of(view.sizes.sequence)] == 0, 1
        return
    for modulo in columns.MODULO:
        yield in_words("sequence modulo", f"not 0 mod {modulo}"), number % modulo == 0, len(columns.MODULO)


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
    number, _ = columns.numbers(view.rows)
    for modulo in columns.MODULO:
        if len(loud) < 2 * modulo:
            break
        for side, quiet_one in ((loud, False), (~loud, True)):
            remainder = np.unique(number[side] % modulo)
            if len(remainder) == 1 and side.sum() == (number % modulo == remainder[0]).sum():
                beginning = view.decay(view.in_sequences(loud))
                packed = quiet_one and remainder[0] == 0
                if packed and beginning is not None:
                    return _packed(view, in_words("sequence modulo", f"not 0 mod {modulo}"), beginning)
                if not quiet_one and beginning is None and len(loud) >= 3 * modulo:
                    return _stale(view, loud, in_words("sequence modulo", f"{remainder[0]} mod {modulo}"))
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
        return _packed(view, in_words(column, value), beginning)
    if column == "sequence modulo" and value.startswith("not ") and loud.mean() > 0.5:
        return _packed(view, in_words(column, value), inside)
    if beginning is not None and view.rms(beginning) > 1.5 * view.rms(inside & ~beginning):
        return other_context(view, loud, beginning)
    prompts = _whole_prompts(view, loud)
    if prompts > 1 and column not in ("replica", "rank", "sequence modulo"):
        if not _contiguous(view, loud):
            return _by_prompt(view, inside, prompts, loud)
        if prompts == 2:
            return None  # two prompts side by side by chance, or an engine's share: nothing here tells
    one = view.strong.get("prompt")
    if (
        column == "prompt"
        or (one is not None and column == "sequence" and one.gain > 0.97 * each.gain)
        or loud.sum() < 2
    ):
        return None  # one prompt or sequence that is off: no fault goes with it
    return _stale(view, loud, f"{in_words(column, value)}, z {each.place.z:.1f}")


def _stale(view: View, loud: Bools, which: str) -> Named:
    inside = view.in_sequences(loud)
    return view.named(
        "stale_replica",
        inside,
        f"{int(loud.sum())} of {len(loud)} sequences ({which}): rms {view.rms(inside):.3g} in them, {view.rms(~inside):.3g} in the others, "
        f"from the first token to the last; {truth_of(view, inside)}: one engine of several serves other weights",
    )


def _loose_group(view: View, loud: Bools) -> Named | None:
    """Two groups of sequences that no column tells apart."""
    inside = view.in_sequences(loud)
    beginning = view.decay(inside)
    early = view.strong.get("position")
    if beginning is not None and (early is None or view.share(beginning) > 0.5 * early.place.explained):
        stands_out = view.rms(beginning) > 2.5 * view.rms(~beginning)
        return other_context(view, loud, beginning) if stands_out else None
    if loud.mean() > MOST_STALE or (view.rms(inside) < LARGEST_ROUNDING and view.rms(inside) < 5 * view.rms(~inside)):
        return None  # a few quiet sequences are no group, nor are two sizes that rounding has
    if view.rms(inside) < max(LEAST_RMS, 1.5 * view.rms(~inside)) or view.share(inside) < LEAST_EXPLAINED:
        return None
    prompts = _whole_prompts(view, loud)
    if prompts > 1 and not _contiguous(view, loud):
        return _by_prompt(view, inside, prompts, loud)
    if prompts in (1, 2) or not truthful(view, inside) or _short_ones(view, early, inside):
        return None
    return view.named(
        "stale_replica",
        inside,
        f"the sequences fall in two groups: rms {view.rms(inside):.3g} in {int(loud.sum())}, {view.rms(~inside):.3g} in the other "
        f"{int((~loud).sum())}, from the first token to the last; {truth_of(view, inside)}: as of an engine among several that serves "
        "other weights; a column `replica` would show which",
    )


def _short_ones(view: View, early: Contrast | None, inside: Bools) -> bool:
    """Whether the group stands apart only because all beginnings are off, of which short sequences have more."""
    if early is None or not early.place.value.startswith("below"):
        return False
    return view.rms(early.inside & inside) < LEAST_RATIO * view.rms(early.inside & ~inside)


def _packed(view: View, which: str, inside: Bools) -> Named:
    return view.named(
        "packed_rows",
        inside,
        f"{which}: rms {view.rms(inside):.3g} in {int(inside.sum())} tokens, {view.rms(~inside):.3g} elsewhere: what stands before a sequence in its packed row leaks into its beginning; the trainer's side",
    )


def _by_prompt(view: View, inside: Bools, prompts: int, loud: Bools) -> Named | None:
    if view.rms(inside) < LARGEST_ROUNDING or view.rms(~inside) > LARGEST_QUIET or loud.mean() > MOST_PROMPTS:
        return None  # prompts differ a little in any dtype, and by their factor where everything is off
    if view.varies:
        return None  # routing and states say the same of the same tokens
    return view.named(
        "moe_routing",
        inside,
        f"{int(loud.sum())} of {len(loud)} sequences, those of {prompts} prompts: rms {view.rms(inside):.3g} in them, "
        f"{view.rms(~inside):.3g} in the others; {truth_of(view, inside)}: what decides by the prompt, as routing to experts or a hybrid "
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


def _contiguous(view: View, loud: Bools) -> bool:
    """One even part of the log, as a replica's share is; one sequence more or less may be on the wrong side."""
    parts = max(round(len(loud) / max(int(loud.sum()), 1)), 1)
    number, count = columns.numbers(view.rows)
    number = number * parts // count
    return parts > 1 and any((loud != (number == part)).sum() <= (parts < 8) for part in range(parts))
