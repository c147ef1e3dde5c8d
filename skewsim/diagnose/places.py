"""Causes that show in where the skew lives: sequences, turns, places in a pack, positions, steps, tokens seen before.

A contrast of `where` says that a place differs; a rule here (or in `groups`, of whole sequences) says which fault
leaves that place. What lies inside is then taken out, and the rest is judged as before.
"""

from __future__ import annotations

import numpy as np

from skewsim.diagnose import where
from skewsim.diagnose.causes import found
from skewsim.diagnose.groups import in_groups
from skewsim.diagnose.rows import Bools, Floats, Rows
from skewsim.diagnose.view import (
    LARGEST_ROUNDING,
    LEAST_RATIO,
    LEAST_SHIFT,
    LEAST_Z,
    Named,
    View,
    other_context,
    truthful,
)
from skewsim.diagnose.where import Contrast

EARLIEST = 8
"""First position at which an onset is one; before that a response only gets going."""
LEAST_Z_ALONG = 4.0
"""A part of all sequences, up to three times as far off as the rest: a few heavy tokens make that look like z 3."""
SHIFTED = 0.5
"""A difference at equal probability, in units of the skew's size, that no difference of probability makes."""
LEAST_NAMED = 0.1
"""Least share of the whole log's square that a cause is named for."""


def name(rows: Rows, skew: Floats, total: float, contrasts: list[Contrast] | None = None) -> Named | None:
    """The fault that the strongest place points to; None if there is none or no fault goes with it."""
    view = View(rows, skew, total, contrasts)
    for rule in (grows_with_step, from_a_turn, seen_before, in_groups, along_the_sequence):
        named = rule(view)
        if named is not None:
            return named
    return None


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
        f"rms {view.rms(inside):.3g} from turn {first + 1} on (turn {first} in a count from 0), {view.rms(~inside):.3g} elsewhere "
        f"(z {each.place.z:.1f}): trainer and engine read a different history from turn {first + 1} on (a template that drops earlier "
        "thinking, a tool's answer written otherwise)",
    )


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
    if abs(_shift_at_equal_probability(view, again)) < min(0.5 * abs(best.shift), SHIFTED):
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
    if not each.place.value.startswith("below") or not _beyond_rounding(each):
        return None
    if not _fades(view, each):
        return _until_an_update(view, each, evidence)
    return other_context(view, np.ones(view.sizes.count, dtype=bool), each.inside)


def _until_an_update(view: View, each: Contrast, evidence: str) -> Named | None:
    """Off up to a token as much as at the first one, and not after it: new weights came in mid-generation."""
    at = int(view.rows.position[~each.inside].min())
    if at < EARLIEST or each.place.rms_inside < 3 * each.place.rms_outside or not truthful(view, each.inside):
        return None
    return view.named(
        "stale_weights",
        each.inside,
        f"{evidence}, in all sequences alike and as much at token {at - 1} as at the first: older weights up to there, and the "
        "trainer's from there on, as of an update in mid-generation that made keys and values again; versions would show it",
    )


def _beyond_chance(view: View, each: Contrast) -> bool:
    """Rounding differs a little along a sequence by itself, and tokens after an update in mid-sequence differ too."""
    same = np.diff(view.rows.sequence) == 0
    at, place = int(view.rows.position[each.inside].min()), each.place
    if (np.diff(view.rows.version)[same] != 0).any() or at < EARLIEST:
        return False
    if at >= 3 * EARLIEST and place.z > 6 and place.explained > 0.6 and place.rms_inside > 1.8 * place.rms_outside:
        return True
    return _beyond_rounding(each)


def _beyond_rounding(each: Contrast) -> bool:
    place = each.place
    return place.rms_inside > 3 * place.rms_outside or (
        place.z > LEAST_Z_ALONG
        and place.rms_inside > LARGEST_ROUNDING
        and place.rms_inside > LEAST_RATIO * place.rms_outside
    )


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
