"""The runs that ship with the app: they are those of the present scenarios, and the app needs no torch to play them."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from skewsim.errors import FileFormatError, UserError
from skewsim.learn.trainer import train
from skewsim.settings import Scenario, with_changes
from skewsim.share import to_share
from tui.controls import FIXES, explore_controls
from tui.driver import Driver
from tui.lab import YOURS, Lab, opening
from tui.lesson import Player, lesson_names, load_lesson
from tui.plot import Plot
from tui.recordings import SHIPPED, RecordedRun, load, same_run, save, shipped
from tui.screens.ladder import LadderScreen
from tui.screens.runs import RunsScreen
from tui.shows import Show, Toggles, lesson_shows, opening_show, shows
from tui.views import REWARD, VIEWS

from .conftest import Stage, StageMaker, check_golden
from .stagecraft import on_stage
from .test_lessons import play

HERE = Path(__file__).parent
SHOWS = shows()


def path_of(run: RecordedRun) -> Toggles:
    return tuple((each.start, each.scenario) for each in run.path[1:])


def about(value: float | None, **tolerance: float) -> object:
    """A number within a tolerance, or None."""
    return None if value is None else pytest.approx(value, **tolerance)


def share(scenario: Scenario) -> str:
    return to_share(same_run(scenario))


@pytest.mark.parametrize("show", SHOWS, ids=lambda show: show.title)
def test_every_show_is_recorded_with_the_present_settings_and_toggles(show: Show) -> None:
    for scenario in show.scenarios:
        run = shipped().run(scenario)
        assert share(run.scenario) == share(scenario)
        assert run.end >= show.steps
        charts = {REWARD.key, *(view.key for view in VIEWS)}
        routing = {key for key in charts if key.startswith("routing/")}
        assert set(run.metrics) == charts - (set() if scenario.policy == "base_moe" else routing)
    yours = shipped().run(show.scenarios[-1])
    found = [[(at, share(settings)) for at, settings in path_of(run)] for run in yours.family()]
    for toggles in show.toggles:
        assert [(at, share(settings)) for at, settings in toggles] in found


@pytest.mark.parametrize("name", lesson_names())
def test_what_a_lesson_shows_is_recorded(name: str) -> None:
    lesson = load_lesson(name)
    watched = {card.watch for card in lesson.step if card.watch}
    recorded = [set(shipped().run(show.scenarios[-1]).metrics) for show in lesson_shows(lesson)]
    assert watched <= set.union(*recorded)


def test_nothing_is_recorded_that_nobody_shows() -> None:
    wanted = {same_run(scenario) for show in SHOWS for scenario in show.scenarios}
    assert set(shipped().roots) == wanted


def test_a_fresh_run_agrees_with_the_recording_within_what_processors_differ_by() -> None:
    """On another processor a token may differ, and then all numbers: so only the first steps, and not bit for bit."""
    for scenario in opening_show().scenarios[:2]:
        fresh = [records[0] for records in islice(train(scenario), 4)]
        for record, recorded in zip(fresh, shipped().run(scenario).records(scenario.name, 4), strict=True):
            assert recorded.sources == record.sources
            for key, value in recorded.metrics.items():
                assert value == about(record.metrics[key], rel=0.05, abs=0.05), (key, record.step)


def test_a_toggle_is_recorded_as_the_trainer_says_it() -> None:
    yours = opening()
    for run in shipped().run(yours).family():
        records = list(run.records(YOURS))
        assert [r.step for r in records] == list(range(run.end))
        now = yours
        for record in records:
            now = with_changes(now, record.events)
            assert same_run(now) == same_run(run.at(record.step))


def test_all_recordings_together_are_small() -> None:
    assert SHIPPED.stat().st_size < 1_500_000


def made(scenario: Scenario, values: list[float], start: int = 0, parent: RecordedRun | None = None) -> RecordedRun:
    run = RecordedRun(scenario, {"reward/mean": list(values)}, {"engine": "computed"}, start, parent)
    if parent is not None:
        parent.children.append(run)
    return run


def test_recordings_survive_a_file_and_the_same_runs_are_the_same_bytes(tmp_path: Path) -> None:
    root = made(opening(), [0.5, 0.25, 0.125])
    child = made(FIXES[0].moved(opening(), 1), [1.0, 0.75], 1, root)
    for name in ("a", "b"):
        save([root, child], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = list(load(tmp_path / "a").run(opening()).family())
    assert [list(run.records("x")) for run in read] == [list(run.records("x")) for run in (root, child)]
    assert [r.metrics["reward/mean"] for r in read[1].records("x")] == [0.5, 1.0, 0.75]
    assert [bool(r.events) for r in read[1].records("x")] == [False, True, False]


@pytest.mark.parametrize(
    "data",
    [b"", b"text", gzip.compress(b"[]\n"), gzip.compress(b'{"format": "other"}\n')],
    ids=["empty", "text", "a list", "another format"],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "runs").write_bytes(data)
    with pytest.raises(FileFormatError) as caught:
        load(tmp_path / "runs")
    assert "\n" not in str(caught.value)


def test_a_toggle_leads_to_the_run_that_has_most_in_common_and_then_to_the_nearest() -> None:
    first, second, third, fourth = FIXES
    yours = opening()
    one = first.moved(yours, 1)
    both = second.moved(one, 1)
    root = made(yours, [0.0] * 9)
    early, late = made(one, [0.0] * 7, 2, root), made(one, [0.0] * 3, 6, root)
    at_once, after = made(both, [0.0] * 7, 2, root), made(both, [0.0] * 2, 7, late)
    assert root.toggled(one, 3) is early
    assert root.toggled(one, 5) is late
    assert late.toggled(both, 2) is after, "however near the other is"
    assert root.toggled(both, 8) is at_once
    assert after.toggled(yours, 8) is root
    assert root.toggled(third.moved(yours, 1), 3) is None
    assert fourth.is_on(yours) is False


@pytest.fixture
def lab() -> Iterator[Lab]:
    driver = Driver(shipped().train, speed=float("inf"))
    driver.start()
    lab = Lab(driver, archive=shipped())
    lab.reset()
    yield lab
    assert driver.stop(5)


def until(lab: Lab, step: int) -> None:
    end = time.monotonic() + 20
    while lab.position != step or lab.step + 1 != step:
        lab.tick()
        assert time.monotonic() < end, (lab.step, lab.position)


def test_recorded_curves_go_forward_and_backward_and_a_key_finds_its_recorded_toggle(lab: Lab) -> None:
    lab.driver.play(False)
    lab.seek(30)
    until(lab, 30)
    lab.move_fixes()
    assert lab.heard == "all four on: from step 20"
    assert all(fix.is_on(lab.yours) for fix in FIXES)
    until(lab, 21)
    assert [mark.letter for mark in lab.marks] == ["A"]
    lab.seek(12)
    until(lab, 12)
    assert not lab.marks
    assert not FIXES[0].is_on(lab.shown)
    lab.move(FIXES[0], 1)
    until(lab, 21)
    assert [mark.letter for mark in lab.marks] == ["P"]
    lab.move(FIXES[1], 1)
    until(lab, 51)
    assert [(mark.step, mark.letter) for mark in lab.marks] == [(20, "P"), (50, "D")]
    lab.undo()
    until(lab, 21)
    lab.undo()
    lab.undo()
    assert lab.heard == "nothing to undo"
    assert lab.yours == opening()


def test_a_toggle_of_a_recording_that_has_come_to_its_end_is_played(lab: Lab) -> None:
    lab.driver.play(True)
    while not lab.over:
        lab.tick()
    lab.move(FIXES[0], 1)
    assert lab.driver.playing


def test_what_is_not_recorded_is_said_in_a_line_and_changes_nothing(lab: Lab) -> None:
    for verb in (lab.new_seed, lab.toggle_band, lambda: lab.toggle_twin(FIXES[0])):
        assert not verb()
        assert lab.heard == "recorded: live runs: pip install 'skewsim[sim]'"
    lab.move(explore_controls()[4], 1)
    assert lab.heard == "temperature 0.8: not recorded"
    with pytest.raises(
        UserError, match=r"no run of these settings is recorded; live runs: pip install 'skewsim\[sim\]'"
    ):
        lab.load(opening().with_values({"engine.lag": 3}))
    assert lab.yours == opening()


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("name", lesson_names())
def test_every_lesson_is_played_to_its_end_on_recorded_runs(lab: Lab, name: str, right: bool) -> None:
    player = Player(load_lesson(name))
    play(player, lab, right=right)
    assert player.right == (player.asked if right else 0)
    assert len(lesson_shows(load_lesson(name))) >= 1


@on_stage
async def test_without_torch_the_first_screen_says_what_to_install(stage: StageMaker) -> None:
    for size in ((80, 24), (120, 40)):
        async with stage(size=size, archive=shipped()) as s:
            await arrive(s, 40)
            check_golden(f"recorded-{size[0]}x{size[1]}", s.text())
            await s.press("t")
            assert "live runs: pip install 'skewsim[sim]'" in s.text()


async def arrive(s: Stage, steps: int) -> None:
    s.lab.seek(steps)
    await arrived(s, steps)


@on_stage
async def test_keys_and_clicks_move_through_what_is_recorded(stage: StageMaker) -> None:
    async with stage(size=(120, 40), archive=shipped()) as s:
        await arrive(s, 40)
        for key, step in (("comma", 39), ("left_square_bracket", 29), ("right_square_bracket", 39)):
            await s.press(key)
            await arrived(s, step)
        plot = s.app.explore.query_one("#plot-reward", Plot)
        await s.pilot.click(plot, offset=(plot.size.width - 1, 3))
        await arrived(s, 39)
        await s.pilot.click(plot, offset=(7, 3))
        await arrived(s, 1)
        s.lab.driver.play(True)
        await s.press("backspace")
        assert "backward" in s.text()
    async with stage(steps=5) as s:
        await s.press("comma", "left_square_bracket", "backspace")
        await s.pilot.click(s.app.explore.query_one("#plot-reward", Plot), offset=(9, 2))
        assert s.lab.position == 5, "live curves are not kept, so there is no way back"


async def arrived(s: Stage, steps: int) -> None:
    async with asyncio.timeout(20):
        while s.lab.step + 1 != steps:
            s.app.tick()
            await asyncio.sleep(0.01)
    await s.settle()


@on_stage
async def test_the_ladder_goes_back_too(stage: StageMaker) -> None:
    async with stage(size=(120, 40), steps=1) as s:
        await s.press("g")
        screen = s.app.screen
        assert isinstance(screen, LadderScreen)
        async with asyncio.timeout(20):
            while screen.playback.step < 50:
                s.app.tick()
                await asyncio.sleep(0.01)
            await s.press("comma")
            wanted = screen.playback.position
            while screen.playback.step + 1 != wanted:
                s.app.tick()
                await asyncio.sleep(0.01)
        await s.settle()
        assert f"step {wanted} of 100" in s.text()


@on_stage
async def test_recordings_can_be_watched_beside_live_runs_and_toggled_as_recorded(
    stage: StageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where nobody has run anything: the newest run comes first in the list
    async with stage(steps=2) as s:
        await s.press("r")
        screen = s.app.screen
        assert isinstance(screen, RunsScreen)
        assert "recorded: the opening" in s.text()
        await s.press("enter")
        s.lab.driver.play(False)
        live = s.lab.yours
        assert s.lab.replaying == "the opening"
        await arrive(s, 30)
        await s.press("5")
        assert "all four on: from step 20" in s.text()
        await s.press("0", "space")
        assert s.lab.replaying is None
        assert s.lab.yours == live


def test_the_app_opens_plays_and_quits_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "without_torch.py")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["opened", "forward", "back", "toggled", "ladder", "lesson", "quit", "0"]


@pytest.mark.slow
def test_what_is_recorded_of_a_toggle_is_what_a_trainer_toggled_at_that_step_computes() -> None:
    """However many runs go on from the same step."""
    path = HERE.parents[1] / "benchmarks" / "tui_recordings.py"
    spec = importlib.util.spec_from_file_location("tui_recordings", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    yours = opening()
    toggled = [fix.moved(yours, 1) for fix in FIXES[:2]]
    runs = list(benchmark.grow(yours, 4, [((2, each),) for each in toggled]))
    assert [run.start for run in runs] == [0, 2, 2]
    for run, settings in zip(runs[1:], toggled, strict=True):
        training = train(yours)
        fresh = [training.send(settings)[0] if step == 2 else next(training)[0] for step in range(4)]
        for recorded, record in zip(run.records(YOURS), fresh, strict=True):
            assert (recorded.events, recorded.sources) == (record.events, record.sources)
            for key, value in recorded.metrics.items():
                assert value == about(record.metrics[key], rel=1e-4, abs=1e-9), (key, record.step)
