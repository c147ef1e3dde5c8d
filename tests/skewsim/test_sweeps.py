"""Sweeps: what a file asks for, that a member's curve is its own, and that a kill at any moment changes nothing."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewsim.cli.main import main
from skewsim.errors import FileFormatError, UserError
from skewsim.runs.outcome import judge
from skewsim.settings import Scenario
from skewsim.sweeps.adaptive import members_of, refined
from skewsim.sweeps.chunk import Chunk, Columns, train_chunk
from skewsim.sweeps.figures import BORDER, map_figures, message
from skewsim.sweeps.folder import open_sweep, read_curves
from skewsim.sweeps.layout import PROBABILITY, means_of, panels, spread, text_map
from skewsim.sweeps.map import SweepMap, crossing, interval, load_map, make_map
from skewsim.sweeps.plan import Axis, Sweep, SweepSettings, load_sweep, make_sweep, member_key
from skewsim.sweeps.processes import in_processes, in_this_process
from skewsim.sweeps.runner import Compute, chunks_of, local, run_sweep

ROOT = Path(__file__).parents[2]
TINY = """
name = "tiny"
steps = 3
seeds = 2
[set]
policy = "random"
task = {response_length = 4, pool_size = 4}
"trainer.num_prompts" = 2
"trainer.num_generations" = 2
[[axis]]
path = "engine.temperature"
values = [0.7, 1.0]
[[axis]]
path = "trainer.learning_rate"
log_grid = {low = 1e-4, high = 1e-2, count = 3}
"""
SMALL = Scenario().with_values(
    {"steps": 3, "policy": "random", "task.response_length": 4, "trainer.num_prompts": 2, "trainer.num_generations": 2}
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def equal(a: Columns, b: Columns) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n], equal_nan=n not in ("member",)) for n in a)


def of_member(found: Columns, key: str) -> dict[str, Any]:
    rows = [n for n, member in enumerate(found["member"]) if member == key]
    return {name: np.asarray(values)[rows] for name, values in found.items() if name != "member"}


def rows_of(folder: Path) -> Any:
    """All rows of a folder's parts in order of member and step."""
    tables = [pyarrow.parquet.read_table(path) for path in sorted((folder / "parts").glob("*.parquet"))]
    return pyarrow.concat_tables(tables, promote_options="default").sort_by(
        [("member", "ascending"), ("step", "ascending")]
    )


def run(file: Path, folder: Path, *, resume: bool = False, workers: int = 1) -> None:
    for _ in run_sweep(load_sweep(file), folder, local(workers), resume=resume):
        pass


# ------------------------------------------------------------------------------------------------------ the file


ends = st.tuples(st.floats(1e-6, 1e6), st.floats(1.001, 1e3))


@given(ends, st.integers(2, 40), st.sampled_from(["grid", "log_grid", "random"]), st.booleans(), st.integers(0, 9))
def test_an_axis_has_ascending_values_within_its_bounds_and_the_same_from_the_same_seed(
    ends: tuple[float, float], count: int, kind: str, log: bool, seed: int
) -> None:
    low, high = ends[0], ends[0] * ends[1]
    shape = {"low": low, "high": high, "count": count} | ({"log": log} if kind == "random" else {})
    axis = Axis.model_validate({"path": "skew.scale", kind: shape})
    numbers = [point.number for point in axis.points(seed)]
    assert numbers == sorted(numbers)  # type: ignore[type-var]
    assert all(low <= x <= high for x in numbers if x is not None)
    assert numbers == [point.number for point in axis.points(seed)]
    if kind != "random":
        assert numbers[0] == pytest.approx(low, rel=1e-9)
        assert numbers[-1] == pytest.approx(high, rel=1e-9)
    else:
        assert numbers != [point.number for point in axis.points(seed + 1)]


@given(st.floats(1e-6, 1e3), st.integers(3, 20))
def test_a_logarithmic_grid_has_equal_ratios(low: float, count: int) -> None:
    axis = Axis.model_validate({"path": "skew.scale", "log_grid": {"low": low, "high": low * 100, "count": count}})
    numbers = np.array([point.number for point in axis.points(0)], dtype=float)
    np.testing.assert_allclose(numbers[1:] / numbers[:-1], 100 ** (1 / (count - 1)), rtol=1e-6)


def test_a_grid_over_whole_numbers_has_whole_numbers_each_once() -> None:
    axis = Axis.model_validate({"path": "engine.lag", "log_grid": {"low": 1, "high": 8, "count": 9}})
    assert [point.values["engine.lag"] for point in axis.points(0)] == [1, 2, 3, 4, 5, 6, 8]


def test_the_cells_are_all_combinations_and_cases_set_several_settings(tmp_path: Path) -> None:
    raw = {"engine": {"logprobs_mode": "raw_logprobs", "lag": 0}}
    axes = [{"path": "engine.temperature", "values": [0.7, 1]}, {"name": "fault", "cases": {"none": {}, "raw": raw}}]
    sweep = make_sweep(SweepSettings.model_validate({"axis": axes}))
    assert [cell.labels for cell in sweep.cells] == [("0.7", "none"), ("0.7", "raw"), ("1", "none"), ("1", "raw")]
    assert (sweep.cells[1].scenario.engine.logprobs_mode, sweep.cells[1].scenario.engine.lag) == ("raw_logprobs", 0)
    assert sweep.titles == ("temperature", "fault")


def test_a_setting_that_is_off_is_none_in_a_file() -> None:
    axes = [{"path": "engine.update_at_token", "values": ["none", 3]}]
    sweep = make_sweep(SweepSettings.model_validate({"axis": axes}))
    assert [cell.scenario.engine.update_at_token for cell in sweep.cells] == [None, 3]


def test_a_folders_copy_of_a_sweep_is_the_same_sweep_and_needs_no_other_file(file: Path) -> None:
    sweep = load_sweep(file)
    copy = file.with_name("copy.toml")
    copy.write_text(sweep.to_toml())
    again = load_sweep(copy)
    assert [c.scenario.model_dump(exclude={"name"}) for c in again.cells] == [
        c.scenario.model_dump(exclude={"name"}) for c in sweep.cells
    ]
    assert again.to_toml() == sweep.to_toml()


def test_a_scenario_file_is_looked_for_beside_the_sweep_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[engine]\nlag = 5\n")
    (tmp_path / "sweep.toml").write_text('scenario = "mine.toml"\n[[axis]]\npath = "steps"\nvalues = [3]\n')
    assert load_sweep(tmp_path / "sweep.toml").base.engine.lag == 5


AXIS = '\n[[axis]]\npath = "engine.temperature"\nvalues = [1.0]\n'
MISTAKES = {
    "no axis": ("steps = 3", "axis"),
    "an unknown key": ("stpes = 3" + AXIS, "unknown setting stpes"),
    "an unknown scenario": ('scenario = "nosuch"' + AXIS, "nosuch"),
    "an unknown setting": ('[[axis]]\npath = "engine.speed"\nvalues = [1]', "engine.speed"),
    "a value that is not allowed": ('[[axis]]\npath = "engine.lag"\nvalues = [1, -1]', "engine.lag=-1"),
    "two kinds of values": ('[[axis]]\npath = "engine.lag"\nvalues = [1]\ngrid = {low=1, high=2, count=2}', "exactly one"),
    "an axis without a path": ("[[axis]]\nvalues = [1]", "path goes with"),
    "a grid the wrong way round": ('[[axis]]\npath = "engine.lag"\ngrid = {low=2, high=1, count=2}', "must be below"),
    "a logarithm of 0": ('[[axis]]\npath = "skew.scale"\nlog_grid = {low=0, high=1, count=2}', "above 0"),
    "too many values": ('[[axis]]\npath = "skew.scale"\ngrid = {low=0, high=1, count=999}', "count=999"),
    "too many cells": (('[[axis]]\npath = "skew.%s"\ngrid = {low=0, high=1, count=99}\n' * 2) % ("scale", "drift"), "9801 cells"),
    "an axis over seeds": ('[[axis]]\npath = "seed"\nvalues = [1, 2]', "axis seed"),
    "cells that contradict": ('[[axis]]\npath = "trainer.num_minibatches"\nvalues = [3]', "must divide"),
    "a number that is none": ('[[axis]]\npath = "skew.scale"\ngrid = {low=nan, high=1, count=2}', "low"),
    "an unknown rule": ('stop = ["bored"]' + AXIS, "stop"),
    "a later version": ("schema_version = 99" + AXIS, "schema_version=99"),
    "no TOML": ("[[axis", "not a TOML file"),
    "tables within tables": ("[set]\na" + ".b" * 200 + " = 1" + AXIS, "nested more than 32 deep"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_sweep_file_is_one_line_and_nothing_is_written(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, says = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    Path("sweep.toml").write_text(text)
    assert main(["sweep", "run", "sweep.toml", "--out", "new"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


def test_a_folder_in_use_or_of_another_kind_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").touch()
    for resume, says in ((False, "is not empty"), (True, "is of no sweep")):
        with pytest.raises(UserError, match=says):
            run(file, tmp_path / "used", resume=resume)
    with pytest.raises(FileFormatError, match="is no sweep's folder"):
        open_sweep(tmp_path / "used")


# -------------------------------------------------------------------------------------------------- the same curves


@pytest.fixture(scope="module")
def together() -> Columns:
    return train_chunk(Chunk(SMALL, (0, 1, 2, 3, 4), ()))


@pytest.mark.parametrize("seeds", [(3,), (2, 3), (3, 9, 10, 11), tuple(range(16))])
def test_a_members_curve_is_the_same_alone_and_packed_bit_for_bit(together: Columns, seeds: tuple[int, ...]) -> None:
    key = Chunk(SMALL, (3,), ()).keys[0]
    ours, theirs = of_member(train_chunk(Chunk(SMALL, seeds, ())), key), of_member(together, key)
    assert equal(ours, theirs)


@pytest.mark.slow
def test_a_members_curve_is_the_same_in_another_process_bit_for_bit(together: Columns) -> None:
    chunks = [Chunk(SMALL, (3,), ()), Chunk(SMALL, (2, 4), ())]
    for chunk, found in in_processes(chunks, 2):
        for key in chunk.keys:
            assert equal(of_member(found, key), of_member(together, key))


@pytest.mark.parametrize("values", [{}, {"engine.enable_prefix_caching": True, "engine.lag": 2}, {"trainer.beta": 0.1}])
def test_a_member_whose_companions_have_stopped_goes_on_as_it_would_have(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Companions are taken out of the stack; here all but one are said to have ended after the second step."""
    import skewsim.sweeps.chunk as module

    scenario = SMALL.with_values({"steps": 6, **values})
    chunk = Chunk(scenario, (0, 1, 2, 3, 4), ())
    undisturbed = train_chunk(chunk)
    monkeypatch.setattr(module, "_ended", lambda record, watch, stop: record.seed != 3 and record.step >= 1)
    found = train_chunk(chunk)
    assert equal(of_member(found, chunk.keys[3]), of_member(undisturbed, chunk.keys[3]))
    assert len(of_member(found, chunk.keys[0])["step"]) == 2


def test_members_with_equal_settings_are_computed_once() -> None:
    axes = [{"path": "engine.temperature", "values": [0.8, 1.0]}, {"name": "x", "cases": {"a": {}, "b": {"engine.temperature": 0.8}}}]  # fmt: skip
    sweep = make_sweep(SweepSettings.model_validate({"axis": axes, "seeds": 3}))
    members = members_of(sweep, {})
    assert (len(members), len({member.key for member in members})) == (12, 6)
    assert sorted(len(chunk.seeds) for chunk in chunks_of(members, {}, sweep)) == [3, 3]


# ------------------------------------------------------------------------------------------------------- run, resume


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.toml").write_text(TINY)
    run(folder / "tiny.toml", folder / "out")
    return folder / "out"


def test_every_member_and_step_is_there_once(undisturbed: Path) -> None:
    rows, sweep = rows_of(undisturbed), open_sweep(undisturbed)
    keys = {member.key for cell in sweep.cells for member in sweep.members(cell)}
    assert len(keys) == 12
    assert sorted(zip(rows["member"].to_pylist(), rows["step"].to_pylist(), strict=True)) == sorted(
        (key, step) for key in keys for step in range(3)
    )


def test_a_chunk_that_was_lost_is_computed_again_and_the_others_are_not(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(undisturbed, tmp_path / "out")
    lost = sorted((tmp_path / "out/parts").iterdir())[2]
    lost.unlink()
    computed: list[Chunk] = []

    def compute(chunks: Any) -> Any:
        computed.extend(chunks)
        return in_this_process(chunks)

    for _ in run_sweep(open_sweep(undisturbed), tmp_path / "out", compute, resume=True):
        pass
    assert len(computed) == 1
    assert rows_of(tmp_path / "out") == rows_of(undisturbed)


def test_a_resumed_sweep_may_have_more_seeds_and_values(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "out")
    text = TINY.replace("seeds = 2", "seeds = 3").replace("[0.7, 1.0]", "[0.7, 0.9, 1.0]")
    (tmp_path / "more.toml").write_text(text)
    run(tmp_path / "more.toml", tmp_path / "out", resume=True)
    found = load_map(tmp_path / "out")
    assert {cell.members for cell in found.cells} == {3}
    before = read_curves(undisturbed)
    after = read_curves(tmp_path / "out")
    assert all(equal(before[key], after[key]) for key in before)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [(1,), (1, 2, 3)], ids=["once", "thrice"])
def test_a_sweep_killed_as_soon_as_so_many_parts_are_there_equals_the_undisturbed_one(
    undisturbed: Path, tmp_path: Path, kills: tuple[int, ...]
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    command = [sys.executable, "-m", "skewsim.cli", "sweep", "run", "tiny.toml", "--out", "out", "--workers", "1"]
    parts, environment = tmp_path / "out/parts", os.environ | {"PYTHONPATH": str(ROOT)}
    for wanted in kills:
        child = subprocess.Popen([*command, "--resume"], cwd=tmp_path, env=environment)
        until = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < until and len(list(parts.glob("*.parquet"))) < wanted:
            time.sleep(0.01)
        child.kill()
        child.wait()
    run(tmp_path / "tiny.toml", tmp_path / "out", resume=True)
    assert rows_of(tmp_path / "out") == rows_of(undisturbed)


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_its_chunk_computed(together: Columns) -> None:
    chunks = [Chunk(SMALL, (n, n + 1), ()) for n in range(0, 4, 2)]
    found = {}
    import skewsim.sweeps.processes as module

    began: list[Any] = []
    begin = module._Worker.begin

    def begin_and_die(worker: Any, chunk: Chunk, tries: int) -> None:
        begin(worker, chunk, tries)
        if not began:
            os.kill(worker.pid, signal.SIGKILL)
        began.append(tries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Worker, "begin", begin_and_die)
        for chunk, columns in in_processes(chunks, 1):
            found |= {key: of_member(columns, key) for key in chunk.keys}
    assert began == [1, 2, 1]
    assert all(equal(found[key], of_member(together, key)) for key in found)
    assert len(found) == 4


def test_a_mistake_in_a_process_of_a_sweep_is_the_same_users_error() -> None:
    chunk = Chunk(SMALL.with_values({"policy": "nosuch"}), (0,), ())
    with pytest.raises(UserError, match="nosuch"):
        list(in_processes([chunk], 1))


def test_a_damaged_part_is_named(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "out")
    part = sorted((tmp_path / "out/parts").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match=part.name):
        load_map(tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------ the map


def made_up(sweep: Sweep, collapsed: dict[tuple[int, ...], int], seeds: int) -> dict[str, dict[str, np.ndarray]]:
    """Curves in which so many of a cell's members collapse."""
    curves = {}
    for cell in sweep.cells:
        for n, member in enumerate(sweep.members(cell, seeds)):
            reward = [0.8] * 20 + [0.0 if n < collapsed.get(cell.place, 0) else 0.8] * 20
            curves[member.key] = {"reward/mean": np.array(reward), "diverged": np.zeros(40)}
    return curves


def line(values: list[float], **more: Any) -> Sweep:
    data = {"axis": [{"path": "skew.drift", "values": values}], "steps": 40, "seeds": 4} | more
    return make_sweep(SweepSettings.model_validate(data))


def test_a_cells_probability_is_the_share_of_its_members_that_collapsed() -> None:
    sweep = line([0.1, 0.2, 0.3])
    found = make_map(sweep, made_up(sweep, {(1,): 1, (2,): 4}, 4))
    assert [cell.probability for cell in found.cells] == [0, 0.25, 1]
    assert found.cells[2].steps_to_collapse == 24
    assert found.cells[0].final_reward == pytest.approx(0.8)


def test_the_border_is_interpolated_and_lies_within_its_interval() -> None:
    sweep = line([0.1, 0.2, 0.3], seeds=8)
    (border,) = make_map(sweep, made_up(sweep, {(1,): 2, (2,): 8}, 8)).crossings(0)
    assert border.at == pytest.approx(0.2 + 0.1 * (0.5 - 0.25) / 0.75)
    assert border.low < border.at < border.high


def test_no_border_where_nothing_or_everything_collapses() -> None:
    sweep = line([0.1, 0.2])
    assert make_map(sweep, made_up(sweep, {}, 4)).crossings(0) == []
    assert make_map(sweep, made_up(sweep, {(0,): 4, (1,): 4}, 4)).crossings(0) == []


@given(st.integers(0, 30), st.integers(1, 30))
def test_an_interval_holds_its_share_and_is_narrower_with_more_members(collapsed: int, members: int) -> None:
    collapsed = min(collapsed, members)
    low, high = interval(collapsed, members)
    assert 0 <= low <= collapsed / members <= high <= 1
    more = interval(4 * collapsed, 4 * members)
    assert more[1] - more[0] < high - low


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_a_crossing_lies_between_two_cells_on_both_sides_of_one_half(shares: list[float]) -> None:
    at = crossing(list(range(len(shares))), np.array(shares))
    sides = {share < 0.5 for share in shares}
    assert (at is None) == (len(sides) == 1)
    if at is not None:
        low, high = shares[math.floor(at)], shares[math.ceil(at)]
        assert min(low, high) <= 0.5 <= max(low, high)


def test_an_adaptive_sweep_adds_seeds_where_some_collapse_and_others_do_not() -> None:
    sweep = line([0.1, 0.2, 0.3], adaptive={"most_seeds": 12})
    counts = {(1,): 2, (2,): 4}
    curves = made_up(sweep, counts, 4)
    wanted = members_of(sweep, curves)
    assert [sum(m.scenario == cell.scenario for m in wanted) for cell in sweep.cells] == [4, 8, 4]
    curves = made_up(sweep, counts | {(2,): 12}, 12)
    assert [sum(m.scenario == cell.scenario for m in members_of(sweep, curves)) for cell in sweep.cells] == [4, 12, 4]


def known_outcomes(border: Callable[[Scenario], float]) -> Compute:
    """Chunks whose members collapse where skew.drift is above a border; every other seed's a hundredth higher."""

    def compute(chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Columns]]:
        for chunk in chunks:
            at = border(chunk.scenario)
            fallen = [chunk.scenario.skew.drift > at * (1 + (seed % 2) / 100) for seed in chunk.seeds]
            reward = [[0.8] * 20 + [0.0 if ends else 0.8] * 20 for ends in fallen]
            rows = sorted(zip(chunk.keys, reward, strict=True))
            yield (
                chunk,
                {
                    "member": [key for key, values in rows for _ in values],
                    "step": np.tile(np.arange(40), len(rows)),
                    "diverged": np.zeros(40 * len(rows), dtype=np.int64),
                    "reward/mean": np.array([x for _, values in rows for x in values]),
                },
            )

    return compute


def finish(sweep: Sweep, folder: Path, compute: Compute, *, kills: int = 0) -> SweepMap:
    """The map of a sweep whose process ends after each of its first chunks, and is started again."""
    for _ in range(kills):
        list(itertools.islice(run_sweep(sweep, folder, compute, resume=True), 2))
    for _ in run_sweep(sweep, folder, compute, resume=True):
        pass
    return load_map(folder)


@pytest.mark.parametrize(("kind", "border"), [("grid", 0.37), ("log_grid", 0.023), ("log_grid", 0.5)])
@pytest.mark.parametrize("rounds", [1, 4])
def test_the_border_is_found_within_the_last_interval(kind: str, border: float, rounds: int, tmp_path: Path) -> None:
    low, high, count = 0.01, 0.81, 5
    axis = {"path": "skew.drift", kind: {"low": low, "high": high, "count": count}}
    data = {"axis": [axis], "steps": 40, "seeds": 2, "adaptive": {"most_seeds": 2, "cells": rounds}}
    sweep = make_sweep(SweepSettings.model_validate(data))
    found = finish(sweep, tmp_path, known_outcomes(lambda scenario: border))
    (crossed,) = (c.at for c in found.crossings(0))
    log = kind == "log_grid"
    width = (math.log(high / low) if log else high - low) / (count - 1) / 2**rounds
    assert abs(math.log(crossed / border) if log else crossed - border) <= width + math.log(1.01)
    assert len(found.cells) == count + rounds
    assert [cell.place for cell in found.cells] == [(n,) for n in range(count + rounds)]
    assert found.done == found.planned == 2 * (count + rounds)


PLANE = {
    "axis": [
        {"path": "skew.drift", "grid": {"low": 0.1, "high": 0.9, "count": 3}},
        {"path": "engine.lag", "grid": {"low": 0, "high": 9, "count": 4}},
        {"path": "engine.temperature", "values": [0.7, 1.0]},
    ],
    "steps": 40,
    "seeds": 2,
    "adaptive": {"most_seeds": 4, "cells": 2},
}


def slanting(scenario: Scenario) -> float:
    return 0.1 + 0.09 * scenario.engine.lag * scenario.engine.temperature


@pytest.mark.slow
def test_each_line_of_a_plane_is_refined_where_its_own_border_is_and_the_map_says_so(tmp_path: Path) -> None:
    sweep = make_sweep(SweepSettings.model_validate(PLANE))
    found = finish(sweep, tmp_path, known_outcomes(slanting))
    drift, lag, temperature = found.sweep.axes
    assert len(temperature) == 2
    assert {point.number for point in lag if point.added} == {4, 5, 7, 8}, "whole numbers alone"
    for crossed in found.crossings(0):
        assert not lag[crossed.place[1]].added
        scenario = sweep.base.with_values(lag[crossed.place[1]].values | temperature[crossed.place[2]].values)
        assert crossed.at == pytest.approx(slanting(scenario), abs=0.4 / 4 + 0.01)
    asked = {cell.place for cell in found.cells}
    assert len(asked) < math.prod(map(len, found.sweep.axes))
    grid = found.grid("probability")
    assert {place for place, value in np.ndenumerate(grid) if not math.isnan(value)} == asked
    for panel in panels(found, PROBABILITY):
        drawn = spread(found, panel)
        assert not np.isnan(drawn).any()
        assert np.array_equal(drawn[panel.cells], panel.values[panel.cells])
    picture = map_figures(found)["collapse"].save(tmp_path / "figure.svg").read_text()
    assert "nearest" in picture
    assert all(point.label in picture for point in drift)


def test_an_adaptive_sweep_killed_after_every_chunk_adds_the_same_cells_and_has_the_same_curves(tmp_path: Path) -> None:
    sweep = make_sweep(SweepSettings.model_validate(PLANE))
    whole = finish(sweep, tmp_path / "whole", known_outcomes(slanting))
    killed = finish(sweep, tmp_path / "killed", known_outcomes(slanting), kills=4)
    assert killed.cells == whole.cells
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")


def test_what_is_added_ends_where_settings_do_not_allow_a_value_and_its_number_is_bounded() -> None:
    data = {"axis": [{"path": "trainer.num_minibatches", "values": [1, 2, 4, 8]}], "steps": 40, "seeds": 4}
    sweep = make_sweep(SweepSettings.model_validate(data | {"adaptive": {"cells": 3}}))
    curves = made_up(sweep, {(2,): 4, (3,): 4}, 4)
    assert refined(sweep, curves) == sweep, "neither is there a whole number between 1 and 2, nor does 3 divide"
    wide = {"path": "skew.scale", "grid": {"low": 0, "high": 1, "count": 50}}
    plane = {"axis": [wide, wide | {"path": "skew.drift"}], "adaptive": {"cells": 3}}
    with pytest.raises(UserError, match=r"adaptive.cells=3: 2500 cells and up to 14700 between them; allowed are 4096"):
        make_sweep(SweepSettings.model_validate(plane))


def test_which_number_warns_first_is_counted_over_all_cells() -> None:
    sweep = line([0.1, 0.2], seeds=6)
    curves = made_up(sweep, {(1,): 6}, 6)
    for n, member in enumerate(sweep.members(sweep.cells[0])):
        curves[member.key]["skew/kl_k3"] = np.full(40, 9.0 if n == 5 else 1.0 + max(n, 1) / 10)
    for n, member in enumerate(sweep.members(sweep.cells[1])):
        curves[member.key]["skew/kl_k3"] = np.array([1.2] * 10 + [99.0 if n else 1.2] * 30)
    found = make_map(sweep, curves)
    warned = found.warnings()["skew/kl_k3"]
    assert (warned.warned, warned.collapsed, warned.false_alarms, warned.others) == (5, 6, 1, 6)
    fell = judge(curves[sweep.members(sweep.cells[1])[0].key]["reward/mean"], steps=40).fell
    assert fell is not None
    assert warned.lead == fell - 10
    assert found.cells[1].leads["skew/kl_k3"] == [fell - 10] * 5


# ------------------------------------------------------------------------------------------------------------- shown


def test_a_map_in_text_has_every_cells_number_and_a_shade_that_grows_with_it() -> None:
    data = {
        "axis": [{"path": "skew.drift", "values": [0.1, 0.2, 0.3]}, {"path": "engine.lag", "values": [0, 1]}],
        "steps": 40,
        "seeds": 4,
    }
    sweep = make_sweep(SweepSettings.model_validate(data))
    found = make_map(sweep, made_up(sweep, {(1, 1): 2, (2, 1): 4}, 4))
    lines = text_map(found, PROBABILITY)
    assert lines[2:] == [
        "lag (down), drift (across)",
        "      0.1    0.2    0.3",
        "1  0.00   0.50 ▒ 1.00 █",
        "0  0.00   0.00   0.00",
    ]


def test_a_metric_that_the_sweep_shows_is_meaned_over_the_second_half_of_the_steps_and_then_over_members() -> None:
    data = {
        "axis": [{"path": "engine.lag", "values": [0, 1]}],
        "steps": 4,
        "seeds": 2,
        "show": ["update/clip_rate", "correction/kept"],
        "messages": {"update/clip_rate": "Lag fills the clip"},
    }
    sweep = make_sweep(SweepSettings.model_validate(data))
    curves = made_up(sweep, {}, 2)
    for cell, values in zip(sweep.cells, ([[9, 9, 1, 3], [9, 9, 4, math.nan]], [[9, 9, 0, 0], [9]]), strict=True):
        for member, own in zip(sweep.members(cell), values, strict=True):
            curves[member.key]["update/clip_rate"] = np.array(own, dtype=float)
    found = make_map(sweep, curves)
    assert [cell.means["update/clip_rate"] for cell in found.cells] == [3.0, 4.5]
    assert found.cells[0].means["correction/kept"] is None, "a metric that no member has"
    assert text_map(found, means_of(found)[0])[-1].split() == ["3.00", "4.50", "█"]
    assert {"update/clip_rate", "correction/kept"} < map_figures(found).keys()
    assert message(found, "update/clip_rate") == "Lag fills the clip"
    assert message(found, "collapse").endswith("?")


def test_a_metric_that_further_axes_do_not_change_has_one_panel_without_a_title() -> None:
    axes = [{"path": f"engine.{name}", "values": [0, 1]} for name in ("lag", "top_k")]
    data = {"axis": [*axes, {"path": "task.pool_size", "values": [8, 16]}], "steps": 40, "seeds": 1}
    sweep = make_sweep(SweepSettings.model_validate(data | {"show": ["ratio/ess", "ratio/ess_seq"]}))
    curves = made_up(sweep, {}, 1)
    for cell in sweep.cells:
        own = curves[sweep.member(cell, 0).key]
        own["ratio/ess"], own["ratio/ess_seq"] = np.full(40, cell.place[0]), np.full(40, cell.place[2])
    figures = map_figures(make_map(sweep, curves))
    titles = {name: [axis.get_title(loc="left") for axis in figures[name].figure.axes] for name in figures}
    assert titles["ratio/ess"] == ["", ""], "a panel and its colour bar"
    assert titles["ratio/ess_seq"] == ["pool_size: 8", "pool_size: 16", ""]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"show": ["update/nonsense"]}, "show.0='update/nonsense': is no metric"),
        ({"show": ["time/step_s"]}, "is no metric of a step"),
        ({"messages": {"nonsense": "x"}}, "messages: nonsense is no figure of this sweep"),
    ],
)
def test_a_figure_that_there_is_not_is_refused_in_one_line(wrong: dict[str, Any], word: str, tmp_path: Path) -> None:
    import tomli_w

    file = tmp_path / "sweep.toml"
    file.write_text(tomli_w.dumps({"axis": [{"path": "engine.lag", "values": [0, 1]}], **wrong}))
    with pytest.raises(FileFormatError, match=r"figure|metric") as caught:
        load_sweep(file)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_show_prints_maps_or_sentences_or_one_json_object_and_writes_figures_when_asked(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(undisturbed, folder)
    assert main(["sweep", "show", str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [axis["values"] for axis in data["axes"]] == [["0.7", "1"], ["0.0001", "0.001", "0.01"]]
    assert [cell["members"] for cell in data["cells"]] == [2] * 6
    assert main(["sweep", "show", str(folder), "--plain"]) == 0
    assert capsys.readouterr().out.count("collapsed 0 of 2") == 6
    assert not (folder / "figures").exists()
    assert main(["sweep", "show", str(folder), "--figures"]) == 0
    assert "12 of 12 members, 2 seeds a cell, 3 steps; finished\n" in capsys.readouterr().out
    names = sorted(path.name for path in (folder / "figures").iterdir())
    assert names == sorted(f"{n}.{kind}" for n in ("collapse", "reward", "steps", "lead") for kind in ("png", "svg"))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_figures_are_drawn_with_a_border_with_gaps_and_with_labels_from_outside(axes: int, tmp_path: Path) -> None:
    values = [
        {"path": "skew.drift", "values": [0.1, 0.2, 0.3]},
        {"name": "<b>$x^{$ & \\frac", "cases": {"$\\nosuch{$": {}, "</svg><script>": {"engine.lag": 2}}},
        {"path": "engine.temperature", "values": [0.7, 1.0]},
    ]
    data = {"axis": values[:axes], "steps": 40, "seeds": 4, "title": "$\\nosuch{$ </svg><script>"}
    sweep = make_sweep(SweepSettings.model_validate(data))
    curves = made_up(sweep, {cell.place: 2 * cell.place[0] for cell in sweep.cells}, 4)
    curves.popitem()
    picture = map_figures(make_map(sweep, curves))["collapse"]
    assert "<script>" not in picture.save(tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize("collapsed", [0, 1])
def test_a_border_is_drawn_where_there_is_one_and_nothing_of_it_where_nothing_collapses(
    collapsed: int, tmp_path: Path
) -> None:
    axes = [{"path": path, "values": [0.1, 0.2, 0.3]} for path in ("skew.drift", "engine.temperature")]
    sweep = make_sweep(SweepSettings.model_validate({"axis": axes, "steps": 40, "seeds": 2}))
    curves = made_up(sweep, {cell.place: 2 * collapsed * (cell.place[0] == 2) for cell in sweep.cells}, 2)
    drawn = map_figures(make_map(sweep, curves))["collapse"].save(tmp_path / "figure.svg").read_text()
    assert (BORDER.lower() in drawn.lower()) == bool(collapsed)


# --------------------------------------------------------------------------------------------------------------- Ray


@pytest.mark.slow
def test_a_sweep_on_ray_of_whose_two_workers_one_is_killed_equals_that_of_a_single_process() -> None:
    pytest.importorskip("ray")
    import psutil

    from skewsim.sweeps.cluster import on_ray

    scenario = SMALL.with_values({"steps": 60})
    chunks = [Chunk(scenario, (n, n + 1), ()) for n in range(0, 12, 2)]
    expected = dict(in_this_process(chunks))
    killed: list[int] = []
    found: dict[Chunk, Columns] = {}
    for chunk, columns in on_ray(chunks, 2):
        assert chunk not in found, "nothing comes twice"
        found[chunk] = columns
        while len(found) == 2 and not killed:
            for process in psutil.Process().children(recursive=True):
                if not killed and process.name().startswith("ray::train_chun"):
                    process.kill()
                    killed.append(process.pid)
    assert len(killed) == 1
    assert found.keys() == expected.keys()
    assert all(equal(found[chunk], expected[chunk]) for chunk in chunks)


def test_a_cluster_that_does_not_answer_is_one_line_and_nothing_is_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself is not asked: it would wait for minutes."""
    ray = ModuleType("ray")
    ray.is_initialized = lambda: False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unheard.getsockname()[1]}")
        assert main(["sweep", "run", str(file), "--out", str(tmp_path / "new"), "--ray"]) != 0
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "cannot be reached" in err
    assert not (tmp_path / "new").exists()


def test_ray_that_is_not_installed_is_named_before_anything_is_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import builtins

    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ModuleNotFoundError("no", name="ray")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["sweep", "run", str(file), "--out", str(tmp_path / "new"), "--ray"]) == 2
    assert "pip install 'skewsim[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_new_setting_at_its_default_leaves_the_keys_of_curves_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the keys are made of names no setting at its default."""
    seen: list[str] = []
    monkeypatch.setattr(json, "dumps", lambda data, **_: seen.append(repr(data)) or repr(data))
    member_key(Scenario().with_values({"engine.lag": 3}), 0, ("collapsed",))
    assert "'engine': {'lag': 3}" in seen[0]
    assert "temperature" not in seen[0]


def test_curves_of_no_member_are_said(undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(undisturbed, tmp_path / "out")
    text = (tmp_path / "out/sweep.toml").read_text()
    (tmp_path / "out/sweep.toml").write_text(text.replace("0.7", "0.6"))
    assert main(["sweep", "show", str(tmp_path / "out")]) == 0
    assert "6 of 12 members" in (out := capsys.readouterr().out)
    assert "6 curves in the folder belong to no member" in " ".join(out.split())
