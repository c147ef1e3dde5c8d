"""The training thread: lock step, toggles between two steps, and an end that does not wait."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from skewsim.errors import UserError
from skewsim.records import StepRecord
from skewsim.settings import Scenario
from tui.driver import TAPE, Driver, TrackSpec, TrackUpdate, Train, Training

from .scripted import scripted

SCENARIO = Scenario(steps=50)
Make = Callable[..., Driver]


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def collect(driver: Driver, count: int) -> list[TrackUpdate]:
    found: list[TrackUpdate] = []

    def enough() -> bool:
        found.extend(driver.drain())
        return len(found) >= count

    wait(enough)
    return found


@pytest.fixture
def make() -> Iterator[Make]:
    drivers = []

    def build(
        train: Train = scripted, *, playing: bool = False, goes_on: bool = True, most: float = math.inf
    ) -> Driver:
        driver = Driver(train, speed=float("inf"), goes_on=goes_on, most=most)
        driver.playing = playing
        drivers.append(driver)
        driver.start()
        return driver

    yield build
    assert all(driver.stop(120) for driver in drivers)


def test_a_step_moves_every_track_by_one(make: Make) -> None:
    driver = make()
    driver.restart([TrackSpec("a", SCENARIO, (0,)), TrackSpec("b", SCENARIO, (0, 1))])
    driver.step()
    driver.step()
    updates = collect(driver, 4)
    assert [(u.track, u.records[0].step, len(u.records)) for u in updates] == [
        ("a", 0, 1),
        ("b", 0, 2),
        ("a", 1, 1),
        ("b", 1, 2),
    ]


def test_a_toggle_takes_effect_at_the_next_step_and_is_numbered(make: Make) -> None:
    driver = make()
    driver.restart([TrackSpec("yours", SCENARIO, (0,))])
    driver.step()
    collect(driver, 1)
    number = driver.toggle("yours", SCENARIO.with_values({"engine.lag": 8}))
    driver.step()
    (update,) = collect(driver, 1)
    assert update.toggled == number
    assert update.records[0].events
    assert update.records[0].metrics["lag/mean"] == 8


def test_a_toggle_before_the_first_step_starts_with_it(make: Make) -> None:
    driver = make()
    driver.restart([TrackSpec("yours", SCENARIO, (0,))])
    driver.toggle("yours", SCENARIO.with_values({"engine.lag": 8}))
    driver.step()
    assert collect(driver, 1)[0].records[0].metrics["lag/mean"] == 8


def test_a_restart_replays_a_taped_track_and_computes_the_others_anew(make: Make) -> None:
    calls: list[str] = []

    def counted(scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        calls.append(scenario.name)
        return scripted(scenario, seeds)

    driver = make(counted)
    specs = [
        TrackSpec("reference", SCENARIO.with_values({"name": "reference"}), (0,), taped=True),
        TrackSpec("yours", SCENARIO.with_values({"name": "yours"}), (0,)),
    ]
    for _ in range(2):
        epoch = driver.restart(specs)
        for _ in range(3):
            driver.step()
        updates = collect(driver, 6)
        assert {u.epoch for u in updates} == {epoch}
        assert [u.records[0].step for u in updates if u.track == "reference"] == [0, 1, 2]
    assert calls == ["reference", "yours", "yours"]


def test_what_a_tape_keeps_is_bounded_and_a_longer_run_starts_again_by_computing(make: Make) -> None:
    driver = make(playing=True, goes_on=False)
    spec = TrackSpec("reference", Scenario(name="reference", steps=TAPE + 50), (0,), taped=True)
    driver.restart([spec])
    assert collect(driver, TAPE + 51)[-1].ended
    (track,) = driver._tracks.values()
    assert track._tape == []
    driver.restart([spec])
    driver.step()
    assert collect(driver, 1)[0].records[0].step == 0


def test_a_taped_track_can_be_taken_back_to_a_step(make: Make) -> None:
    driver = make()
    driver.restart([TrackSpec("run", SCENARIO, (0,), taped=True)])
    for _ in range(10):
        driver.step()
    collect(driver, 10)
    driver.seek(4)
    assert [u.records[0].step for u in collect(driver, 4)] == [0, 1, 2, 3]
    driver.step()
    assert collect(driver, 1)[0].records[0].step == 4


def test_one_track_that_fails_says_why_and_the_others_go_on(make: Make) -> None:
    def failing(scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        yield [StepRecord(0, "scripted", 0, {})]
        if scenario.name == "bad":
            raise UserError("engine.lag=99: too much")
        yield [StepRecord(1, "scripted", 0, {})]

    driver = make(failing)
    driver.restart([TrackSpec("bad", SCENARIO.with_values({"name": "bad"}), (0,)), TrackSpec("good", SCENARIO, (0,))])
    driver.step()
    driver.step()
    updates = collect(driver, 4)
    assert [u.failed for u in updates if u.failed] == ["engine.lag=99: too much"]
    assert [u.records[0].step for u in updates if u.track == "good"] == [0, 1]


def test_training_rests_where_the_scenarios_steps_are_done_and_goes_on_when_it_is_played(make: Make) -> None:
    driver = make(playing=True)
    driver.restart([TrackSpec(name, Scenario(steps=3), (0,)) for name in ("a", "b")])
    for steps in ([0, 1, 2], [3, 4, 5]):
        updates = collect(driver, 6)
        assert [u.records[0].step for u in updates if u.track == "b"] == steps
        wait(lambda: driver.resting)
        assert not driver.playing
        assert not driver.drain()
        driver.play(True)


def test_a_visitors_run_ends_at_the_most_steps_however_often_it_is_played_on(make: Make) -> None:
    driver = make(playing=True, most=5)
    driver.restart([TrackSpec("a", Scenario(steps=3), (0,))])
    assert len(collect(driver, 3)) == 3
    wait(lambda: driver.resting)
    driver.play(True)
    updates = collect(driver, 3)
    assert [len(update.records) for update in updates] == [1, 1, 0]
    assert updates[-1].ended
    driver.play(True)
    driver.step()
    assert not driver.drain()
    driver.go_back("a", 2, SCENARIO)
    driver.play(True)
    again = collect(driver, 3)
    assert [update.records[0].step for update in again] == [0, 1, 2], "from the checkpoint before step 2"


def test_a_track_that_goes_back_goes_on_alone_until_it_has_come_to_the_others(make: Make) -> None:
    driver = make()
    driver.restart([TrackSpec("a", SCENARIO, (0,)), TrackSpec("b", SCENARIO, (0,))])
    for _ in range(9):
        driver.step()
    collect(driver, 18)
    driver.go_back("a", 7, SCENARIO)
    for _ in range(5):
        driver.step()
    steps = [(update.track, update.records[0].step) for update in collect(driver, 6)]
    assert steps == [("a", 5), ("a", 6), ("a", 7), ("a", 8), ("a", 9), ("b", 9)]


def test_curves_that_begin_during_the_last_step_of_others_are_not_paused_with_those(make: Make) -> None:
    begun = False

    def train(scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        nonlocal begun
        for records in scripted(scenario, seeds):
            if records[0].step == scenario.steps - 1 and not begun:
                begun = True
                driver.restart([TrackSpec("next", Scenario(steps=40), (0,))])
                driver.play(True)
            yield records

    driver = make(train)
    driver.restart([TrackSpec("a", Scenario(steps=3), (0,))])
    driver.play(True)
    assert {update.track for update in collect(driver, 40)} == {"next"}


def test_playing_ends_by_itself_at_the_last_step_where_it_does_not_go_on(make: Make) -> None:
    driver = make(playing=True, goes_on=False)
    driver.restart([TrackSpec("a", Scenario(steps=3), (0,))])
    updates = collect(driver, 4)
    assert updates[-1].ended
    wait(lambda: not driver.playing)


def test_stopping_does_not_wait_for_a_step_under_way() -> None:
    entered, release = threading.Event(), threading.Event()

    def stuck(scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        entered.set()
        release.wait()
        yield [StepRecord(0, "scripted", 0, {})]

    driver = Driver(stuck)
    driver.start()
    driver.restart([TrackSpec("a", SCENARIO, (0,))])
    assert entered.wait(10)
    assert driver.stop(0.1) is False, "while the step goes on"
    release.set()
    assert driver.stop(120)


def test_what_is_shown_side_by_side_is_of_one_step(make: Make) -> None:
    driver = make(playing=True)
    driver.restart([TrackSpec(name, SCENARIO, (0,)) for name in "abc"])
    seen: dict[str, int] = {}
    end = time.monotonic() + 120
    while seen.get("a", 0) < SCENARIO.steps - 1:
        assert time.monotonic() < end
        for update in driver.drain():
            if update.records:
                seen[update.track] = update.records[0].step
        assert len(set(seen.values())) <= 1


def test_a_first_step_is_shown_as_soon_as_it_is_there(make: Make) -> None:
    gate = threading.Event()

    def slow(scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        gate.wait(10)
        yield from scripted(scenario, seeds)

    driver = make()
    driver.restart([TrackSpec("a", SCENARIO, (0,)), TrackSpec("b", SCENARIO, (0,), train=slow)])
    driver.step()
    assert [u.track for u in collect(driver, 1)] == ["a"]
    gate.set()
    assert [u.track for u in collect(driver, 1)] == ["b"]
