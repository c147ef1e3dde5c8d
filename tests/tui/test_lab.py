"""The laboratory's state, without Textual: what the verbs do to scenarios, tracks and marks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from skewsim.records import StepRecord
from skewsim.scenarios import find_scenario
from skewsim.settings import Scenario, changes
from skewsim.share import from_share, to_share
from tui.controls import FIXES, explore_controls
from tui.driver import Driver, TrackSpec, Training
from tui.lab import REFERENCE, TWIN, V1, YOURS, Lab, _marks, opening, reference_for
from tui.playback import Track
from tui.series import Series

from .scripted import scripted, steps_of

CONTROLS = {control.id: control for control in explore_controls()}


@pytest.fixture
def lab() -> Iterator[Lab]:
    driver = Driver(scripted, speed=float("inf"))
    driver.playing = False
    driver.start()
    lab = Lab(driver)
    lab.reset()
    yield lab
    assert driver.stop(120)


def advance(lab: Lab, steps: int) -> None:
    target = lab.step + steps
    for _ in range(steps):
        lab.driver.step()
    end = time.monotonic() + 120
    while any(t.series.step < target for t in lab.tracks.values()):
        lab.tick()
        assert time.monotonic() < end
        time.sleep(0.002)


def test_yours_opens_as_initial_v1_and_differs_from_the_reference_in_the_four_fixes_only() -> None:
    yours = opening()
    for fix in FIXES:
        assert not fix.is_on(yours)
        yours = fix.moved(yours, 1)
    assert yours.with_values({"name": "x"}) == reference_for(yours).with_values({"name": "x"})


def test_a_toggle_is_marked_with_its_letter_at_the_step_where_it_took_effect(lab: Lab) -> None:
    advance(lab, 10)
    lab.move(CONTROLS["processed"], 1)
    assert lab.marks == []
    assert lab.heard == "processed on: from step 10"
    advance(lab, 5)
    assert [(mark.step, mark.letter) for mark in lab.marks] == [(10, "P")]
    y, v = (lab.tracks[name].series.mean("reward/mean") for name in (YOURS, V1))
    assert np.array_equal(y[:10], v[:10])
    assert (y[10:] > v[10:]).all()


def test_one_verb_switches_all_four_fixes_on_and_back_off_and_is_one_step_of_undo(lab: Lab) -> None:
    before = lab.yours
    lab.move(FIXES[1], 1)
    lab.move_fixes()
    assert all(fix.is_on(lab.yours) for fix in FIXES)
    assert lab.yours.engine == reference_for(lab.yours).engine
    lab.move_fixes()
    assert not any(fix.is_on(lab.yours) for fix in FIXES)
    lab.undo()
    lab.undo()
    assert [fix.is_on(lab.yours) for fix in FIXES] == [False, True, False, False]
    lab.undo()
    assert lab.yours == before


def test_two_toggles_between_two_steps_are_both_marked_there(lab: Lab) -> None:
    advance(lab, 3)
    lab.move(CONTROLS["processed"], 1)
    lab.move(CONTROLS["fp32_head"], 1)
    advance(lab, 1)
    assert [(mark.step, mark.letter) for mark in lab.marks] == [(3, "P"), (3, "H")]


def test_undo_gives_back_the_settings_before_each_toggle_in_turn(lab: Lab) -> None:
    states = [lab.yours]
    for name in ("processed", "lag", "objective", "noise"):
        lab.move(CONTROLS[name], -1 if name == "lag" else 1)
        states.append(lab.yours)
    for state in reversed(states[:-1]):
        assert lab.undo()
        assert lab.yours == state
    assert not lab.undo()


def test_the_twin_stays_one_setting_apart_through_every_toggle(lab: Lab) -> None:
    lab.toggle_twin(CONTROLS["lag"])
    advance(lab, 3)
    lab.move(CONTROLS["processed"], 1)
    advance(lab, 3)
    twin = lab._twin_of(CONTROLS["lag"])
    assert twin.engine.lag != lab.yours.engine.lag
    assert twin.with_values({"engine.lag": lab.yours.engine.lag, "name": YOURS}) == lab.yours
    assert lab.tracks[TWIN].series.last[0].metrics["lag/mean"] == twin.engine.lag


def test_a_band_runs_five_seeds_of_every_curve(lab: Lab) -> None:
    lab.toggle_band()
    advance(lab, 2)
    assert all(track.series.values("reward/mean").shape == (5, 2) for track in lab.tracks.values())
    lab.new_seed()
    assert lab.seeds == (5, 6, 7, 8, 9)


def test_a_diverged_curve_says_so_and_the_others_go_on(lab: Lab) -> None:
    lab.load(lab.yours.with_values({"seed": 664}))
    lab.toggle_band()
    advance(lab, 40)
    note = lab.tracks[YOURS].note
    assert note is not None
    assert "diverged at step 30" in note
    assert lab.tracks[YOURS].series.step == 39


def rest(lab: Lab) -> None:
    """Play until the steps are done."""
    lab.driver.play(True)
    end = time.monotonic() + 120
    while not lab.driver.resting or any((t.series.step + 1) % 5 for t in lab.tracks.values()):
        lab.tick()
        assert time.monotonic() < end
    lab.tick()


def test_a_run_pauses_where_its_steps_are_done_says_so_and_a_toggle_goes_on_with_nothing_erased(lab: Lab) -> None:
    lab.load(lab.yours.with_values({"steps": 5}))
    assert lab.heard == "from step 0"
    rest(lab)
    assert lab.heard == "steps done: space goes on"
    assert not lab.over
    lab.move(CONTROLS["processed"], 1)
    assert lab.heard == "processed on: from step 5"
    rest(lab)
    assert lab.heard == "steps done: space goes on"
    assert [len(track.series) for track in lab.tracks.values()] == [10, 10, 10]
    assert [(mark.step, mark.letter) for mark in lab.marks] == [(5, "P")]


def test_a_toggle_of_a_curve_that_has_diverged_begins_another_and_says_so(lab: Lab) -> None:
    lab.load(lab.yours.with_values({"seed": 666}))
    advance(lab, 31)
    for _ in range(2):
        lab.driver.step()
    end = time.monotonic() + 120
    while not lab.tracks[YOURS].ended:
        lab.tick()
        assert time.monotonic() < end
    lab.move(CONTROLS["processed"], 1)
    assert lab.heard == "processed on: from step 0"


def test_the_share_string_of_yours_brings_the_whole_state_back(lab: Lab) -> None:
    for name in ("processed", "temperature", "noise", "objective", "correction"):
        lab.move(CONTROLS[name], 1)
    lab.new_seed()
    assert from_share(to_share(lab.yours)) == lab.yours


def test_hiding_goes_through_the_curves_and_never_hides_yours(lab: Lab) -> None:
    lab.hide_next()
    lab.hide_next()
    assert [track.name for track in lab.visible()] == [YOURS]
    lab.hide_next()
    assert {track.name for track in lab.visible()} == {REFERENCE, V1, YOURS}


def test_another_objective_starts_at_its_own_opening_point_while_only_fixes_were_switched(lab: Lab) -> None:
    lab.new_seed()
    lab.move(FIXES[2], 1)
    for objective in ("gspo", "ppo", "reinforce", "grpo"):
        advance(lab, 3)
        lab.next_objective()
        began = opening(objective).with_values({"seed": lab.yours.seed})
        assert lab.yours == FIXES[2].moved(began, 1)
        assert lab.heard.endswith("from step 0")
        advance(lab, 1)
        assert {track.scenario.trainer.objective for track in lab.tracks.values()} == {objective}, "all three curves"
    lab.undo()
    assert lab.yours.trainer == opening("reinforce").trainer


@pytest.mark.parametrize("name", ["lag", "learning_rate", "temperature", "correction"])
def test_after_a_change_by_hand_another_objective_comes_alone(lab: Lab, name: str) -> None:
    lab.move(CONTROLS[name], 1 if name != "lag" else -1)
    before = lab.yours
    lab.next_objective()
    assert lab.yours == before.with_values({"trainer.objective": "gspo"})


def test_a_scenario_that_was_opened_keeps_its_settings_under_another_objective(lab: Lab) -> None:
    lab.load(find_scenario("initial_v1"))
    before = lab.yours
    lab.next_objective()
    assert lab.yours == before.with_values({"trainer.objective": "gspo"})


def test_the_reference_follows_what_is_not_the_engines_making() -> None:
    yours = opening().with_values(
        {"trainer.objective": "gspo", "engine.temperature": 1.0, "skew.noise": "normal", "skew.scale": 0.1}
    )
    reference = reference_for(yours)
    assert (reference.trainer.objective, reference.engine.temperature) == ("gspo", 1.0)
    assert not reference.skew.active
    assert isinstance(reference, Scenario)


def test_playing_backward_waits_for_the_last_seek_and_loses_no_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a seek takes longer than a frame; a new one for each frame would never arrive anywhere."""
    sought: list[int] = []
    monkeypatch.setattr(lab.driver, "seek", sought.append)
    advance(lab, 40)
    lab.driver.set_speed(10)
    for _ in range(5):
        lab.rewind(0.1)
    assert sought == [39]
    lab._sought, arrived = None, lab.step + 1
    lab.rewind(0.1)
    assert sought == [39, arrived - 5]


def test_a_replay_shows_the_settings_that_were_recorded_and_can_change_none(lab: Lab) -> None:
    live = lab.yours
    recorded = opening().with_values({"name": YOURS, "steps": 40})
    events = changes(recorded, FIXES[2].moved(recorded, 1))

    def reading(scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        for records in steps_of(scenario, 30):
            yield [replace(r, events=events if r.step == 10 else []) for r in records]

    lab.replay("replay of run-001", [TrackSpec(YOURS, recorded, (0,), taped=True, train=reading)])
    advance(lab, 10)
    assert not FIXES[2].is_on(lab.shown)
    advance(lab, 5)
    assert FIXES[2].is_on(lab.shown)
    assert [(mark.step, mark.letter) for mark in lab.marks] == [(10, "I")], "one letter, though lag moves with it"
    for verb in (lab.move_fixes, lab.undo, lab.new_seed, lab.toggle_band, lambda: lab.move(FIXES[0], 1)):
        lab.heard = ""
        verb()
        assert lab.heard == "recorded: 0 is live again"
        assert lab.replaying
    assert lab.yours == live
    lab.seek(5)
    end = time.monotonic() + 120
    while lab.step != 4:
        lab.tick()
        assert time.monotonic() < end
    assert not FIXES[2].is_on(lab.shown), "backward too"


def test_all_four_fixes_recorded_at_once_are_one_letter() -> None:
    before = opening()
    after = before
    for fix in FIXES:
        after = fix.moved(after, 1)

    def letters(after: Scenario) -> list[str]:
        return [mark.letter for mark in _marks(7, before, after, changes(before, after))]

    assert letters(after) == ["A"]
    assert letters(CONTROLS["noise"].moved(before, 2)) == ["n", "s"]
    assert letters(before.with_values({"trainer.delta": 3.0})) == ["*"]


def test_a_recorded_event_that_this_version_cannot_read_is_quoted_and_harmless(lab: Lab) -> None:
    strange = ["engine.not_a_setting: 1 -> 2"]

    def reading(scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        for records in steps_of(scenario, 10):
            yield [replace(r, events=strange if r.step == 3 else []) for r in records]

    lab.replay("replay of run-001", [TrackSpec(YOURS, opening(), (0,), taped=True, train=reading)])
    advance(lab, 6)
    assert [(mark.step, mark.letter, mark.text) for mark in lab.marks] == [(3, "*", strange[0])]
    assert lab.shown == opening()


def test_undo_says_what_is_as_before(lab: Lab) -> None:
    lab.move(CONTROLS["processed"], 1)
    lab.undo()
    assert lab.heard == "undo: processed off: from step 0"
    lab.move_fixes()
    lab.undo()
    assert lab.heard == "undo: all four fixes: from step 0"
    lab.set_yours(lab.yours.with_values({"trainer.beta": 0.1}), text="beta")
    lab.undo()
    assert lab.heard == "undo: trainer.beta: 0.1 -> 0.0: from step 0"


def test_the_first_run_pauses_once_where_it_was_told_to_unless_somebody_has_toggled(lab: Lab) -> None:
    lab.pause_at = 5
    advance(lab, 4)
    assert lab.heard == ""
    advance(lab, 2)
    assert (lab.heard, lab.pause_at) == ("predict, switch, then space", None)
    lab.pause_at = 10
    lab.move(CONTROLS["processed"], 1)
    assert lab.pause_at is None
    lab.pause_at = 10
    lab.load(lab.yours)
    assert lab.pause_at is None, "a lesson has its own pace"


def test_a_run_whose_reward_is_gone_is_stuck_and_one_that_never_had_any_is_not() -> None:
    for rewards, stuck in (([0.4] * 5 + [0.0] * 12, True), ([0.0] * 20, False), ([0.4] * 20, False)):
        lab = Lab(Driver(scripted))
        lab.tracks = {YOURS: Track(YOURS, "y", 0, lab.yours, Series((0,)))}
        for step, reward in enumerate(rewards):
            record = StepRecord(step=step, scenario=YOURS, seed=0, metrics={"reward/mean": reward})
            lab.tracks[YOURS].series.append([record])
        assert lab.stuck == stuck
