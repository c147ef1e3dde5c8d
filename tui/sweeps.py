"""Sweeps' folders as maps: which there are, and a cell's curves in place of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from skewsim.errors import UserError
from skewsim.records import StepRecord
from tui.driver import Records, TrackSpec
from tui.folders import Reader

if TYPE_CHECKING:
    from skewsim.sweeps.folder import Curves
    from skewsim.sweeps.map import CellResult, SweepMap

_PLAN = "sweep.toml"


def find_sweeps(root: Path, *, depth: int = 3) -> list[Path]:
    """Sweeps' folders below a folder, the newest first."""
    found = [path.parent for level in range(1, depth) for path in root.glob("*/" * level + _PLAN)]
    found = [path for path in found if (path / "parts").is_dir()]
    return sorted(found, key=lambda path: -(path / _PLAN).stat().st_mtime)[:50]


def is_sweep(path: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (path / _PLAN).is_file()


def sweep_line(path: Path) -> str:
    """A sweep's folder in a line."""
    from skewsim.sweeps.folder import read_status

    try:
        return f"sweep: {path}  ({read_status(path).get('status', 'no status')})"
    except UserError:
        return f"sweep: {path}  (no status)"


def cell_tracks(folder: Path, found: SweepMap, cell: CellResult, name: str) -> list[TrackSpec]:
    """A cell's members as one curve with a band over its seeds. Raises UserError where none is there yet."""
    from skewsim.sweeps.folder import read_curves

    sweep = found.sweep
    own = next(each for each in sweep.cells if each.place == cell.place)
    curves = read_curves(folder)
    members = {m.seed: curves[m.key] for m in sweep.members(own, sweep.most_seeds) if m.key in curves}
    if not members:
        raise UserError("no member of this cell is there yet")
    scenario = own.scenario.with_values({"name": name})
    steps: list[Records] = [
        [_record(name, seed, curve, step) for seed, curve in members.items() if step < len(curve["diverged"])]
        for step in range(max(len(curve["diverged"]) for curve in members.values()))
    ]
    return [TrackSpec(name, scenario, tuple(members), taped=True, train=Reader(steps))]


def _record(name: str, seed: int, curve: Curves, step: int) -> StepRecord:
    metrics = {key: _known(float(values[step])) for key, values in curve.items() if key != "diverged"}
    return StepRecord(step, name, seed, metrics, diverged="diverged" if curve["diverged"][step] else None)


def _known(value: float) -> float | None:
    return value if value == value else None
