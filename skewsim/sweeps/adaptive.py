"""What an adaptive sweep adds: seeds where the share that collapsed is uncertain, and cells where it passes one half.

Along the first and the second axis, if they are ascending numbers, an interval between two neighbouring cells of the
file whose shares lie on both sides of one half is halved, and so is the half that the border is in, as often as
`Adaptive.cells` says. What is added follows from the curves that are there and from nothing else, so that a sweep that
was killed and resumed adds the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from skewsim.errors import UserError
from skewsim.runs.outcome import Outcome, judge
from skewsim.sweeps.folder import Curves
from skewsim.sweeps.plan import DRAWN, Cell, Member, Sweep, is_numeric, make_cell


def members_of(sweep: Sweep, curves: Mapping[str, Curves]) -> list[Member]:
    """The members of a sweep as far as the curves tell: each cell's first seeds, and what is added to them."""
    return [member for cell in refined(sweep, curves).cells for member in _members(sweep, cell, curves)]


def refined(sweep: Sweep, curves: Mapping[str, Curves]) -> Sweep:
    """The sweep with the cells that its border asks for, as far as the curves tell."""
    rounds = sweep.settings.adaptive.cells if sweep.settings.adaptive else 0
    if not rounds:
        return sweep
    shares = {cell.place: _share(sweep, cell, curves) for cell in sweep.cells}
    cells = {cell.place: cell for cell in sweep.cells}
    added = []
    for axis in (n for n, points in enumerate(sweep.axes[:DRAWN]) if is_numeric(points)):
        for place, cell in cells.items():
            beyond = (*place[:axis], place[axis] + 1, *place[axis + 1 :])
            if beyond in cells:
                ends, sides = (cell, cells[beyond]), (shares[place], shares[beyond])
                added += list(_halvings(sweep, axis, ends, sides, rounds, curves))
    return sweep.with_cells(added)


def _halvings(
    sweep: Sweep,
    axis: int,
    ends: tuple[Cell, Cell],
    shares: tuple[float | None, float | None],
    rounds: int,
    curves: Mapping[str, Curves],
) -> Iterator[Cell]:
    """Cells between two neighbours along an axis, each half way between those on both sides of the border."""
    (low, high), (below, above) = ends, shares
    for _ in range(rounds):
        if below is None or above is None or not passes_one_half(below, above):
            return
        cell = _half_way(sweep, axis, low, high)
        if cell is None:
            return
        yield cell
        share = _share(sweep, cell, curves)
        if share is None:
            return
        if passes_one_half(below, share):
            high, above = cell, share
        else:
            low, below = cell, share


def _half_way(sweep: Sweep, axis: int, low: Cell, high: Cell) -> Cell | None:
    """The cell between two along an axis; None if there is no value between them, or none that is allowed there."""
    point = sweep.settings.axis[axis].between(low.points[axis], high.points[axis])
    if point is None:
        return None
    try:
        return make_cell(sweep.base, (*low.points[:axis], point, *low.points[axis + 1 :]))
    except UserError:  # such as a number of minibatches that does not divide the prompts
        return None


def passes_one_half(a: float, b: float) -> bool:
    """Whether one half lies between two shares."""
    return min(a, b) < 0.5 <= max(a, b)


def _share(sweep: Sweep, cell: Cell, curves: Mapping[str, Curves]) -> float | None:
    """The share of a cell's members that collapsed; None until all that it asks for are there."""
    members = _members(sweep, cell, curves)
    if any(member.key not in curves for member in members):
        return None
    return _collapsed(_outcomes(members, curves))


def _members(sweep: Sweep, cell: Cell, curves: Mapping[str, Curves]) -> list[Member]:
    count = sweep.settings.seeds
    while True:
        members = sweep.members(cell, count)
        if count >= sweep.most_seeds or any(member.key not in curves for member in members):
            return members
        if not wants_more_seeds(sweep, _outcomes(members, curves)):
            return members
        count = min(sweep.most_seeds, count + sweep.settings.seeds)


def wants_more_seeds(sweep: Sweep, outcomes: Sequence[Outcome]) -> bool:
    """Whether an adaptive sweep gives a cell more seeds than those with these outcomes."""
    adaptive = sweep.settings.adaptive
    if adaptive is None or not outcomes or len(outcomes) >= sweep.most_seeds:
        return False
    return adaptive.low <= _collapsed(outcomes) <= adaptive.high


def _collapsed(outcomes: Sequence[Outcome]) -> float:
    return sum(o.collapsed is not None for o in outcomes) / len(outcomes)


def _outcomes(members: Sequence[Member], curves: Mapping[str, Curves]) -> list[Outcome]:
    return [outcome_of(member, curves[member.key]) for member in members]


def outcome_of(member: Member, curve: Curves) -> Outcome:
    """How a member ended."""
    return judge(curve["reward/mean"], steps=member.scenario.steps, diverged=bool(curve["diverged"].any()))
