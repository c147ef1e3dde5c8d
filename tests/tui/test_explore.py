"""Explore, driven by scripted records: what each size shows, and what each key does."""

from __future__ import annotations

import asyncio
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.style import Style
from textual import events
from textual.geometry import Offset
from textual.widgets import OptionList, Static

from skewsim.errors import SkewsimError
from skewsim.records import StepRecord
from skewsim.settings import Scenario
from skewsim.share import to_share
from tui.controls import FIXES, explore_controls
from tui.driver import Driver, TrackSpec, Training
from tui.files import last_state, remember
from tui.lab import YOURS, Lab, opening
from tui.panel import ControlWidget, TextLine
from tui.playback import Track
from tui.plot import Plot, picture
from tui.presets import check_hidden
from tui.screens.too_small import TooSmall
from tui.series import Series
from tui.shell import Options
from tui.views import REWARD, VIEWS

from .conftest import Stage, StageMaker
from .scripted import scripted
from .stagecraft import on_stage


def headline(s: object) -> str:
    return s.app.explore.query_one("#headline", TextLine).plain  # type: ignore[attr-defined,no-any-return]


@on_stage
async def test_each_number_key_switches_its_fix_and_says_so_at_once(stage: StageMaker) -> None:
    async with stage(steps=3) as s:
        for i, fix in enumerate(FIXES, 1):
            await s.press(str(i))
            assert fix.is_on(s.lab.yours)
            assert f"{fix.label} on: from step 3" in headline(s)
        await s.advance(1)
        assert [m.letter for m in s.lab.marks] == ["P", "D", "I", "H"]


@on_stage
async def test_one_key_is_the_whole_cure(stage: StageMaker) -> None:
    async with stage(steps=5) as s:
        await s.press("5")
        assert all(fix.is_on(s.lab.yours) for fix in FIXES)
        assert "all four on: from step 5" in s.text()
        await s.advance(1)
        assert s.lab.marks[-1].letter == "A"


@on_stage
async def test_the_focused_knob_turns_with_arrows_wheel_and_click(stage: StageMaker) -> None:
    async with stage(size=(120, 40), steps=2) as s:
        knob = s.app.explore.query_one("#control-temperature", ControlWidget)
        knob.focus()
        await s.press("right")
        assert s.lab.yours.engine.temperature == 0.8
        await s.press("shift+left")
        assert s.lab.yours.engine.temperature == 0.5
        assert "vLLM SamplingParams.temperature" in s.text()
        switch = s.app.explore.query_one("#control-processed", ControlWidget)
        await s.pilot.click(switch)
        assert FIXES[0].is_on(s.lab.yours)
        await s.pilot.click(knob, offset=(knob.size.width - 1, 0))
        assert s.lab.yours.engine.temperature == 0.6


@on_stage
async def test_play_step_speed_reset_seed_and_undo(stage: StageMaker) -> None:
    async with stage(steps=5) as s:
        await s.press("minus")
        assert "50/s" in headline(s)
        await s.press("1", "u")
        assert not FIXES[0].is_on(s.lab.yours)
        await s.press("n", "space")
        assert s.lab.yours.seed == 1
        assert not s.lab.driver.playing
        await s.press("0", "space")
        assert s.lab.tracks[YOURS].series.seeds == (1,)


@on_stage
async def test_the_twin_shows_the_difference_below(stage: StageMaker) -> None:
    async with stage(size=(120, 40)) as s:
        await s.press("1", "c")
        s.lab.driver.play(False)  # not by its key: a quick machine may be through the run before it
        s.lab.heard = ""
        s.lab.reset()
        await s.advance(30)
        assert "yours minus twin: reward, for processed" in s.text()


@pytest.mark.parametrize(
    "size", [(120, 30), *(pytest.param(size, marks=pytest.mark.slow) for size in ((144, 31), (120, 40)))]
)
@on_stage
async def test_every_chart_has_rows_enough_to_read(stage: StageMaker, size: tuple[int, int]) -> None:
    async with stage(size=size, steps=3) as s:
        heights = {plot.region.height - 2 for plot in s.app.explore.query(Plot) if plot.display}
        assert min(heights) >= (8 if size[1] < 36 else 6)


def last_with_numbers(s: Stage) -> str:
    """The title of the last metric that yours has."""
    return next(view.title for view in reversed(VIEWS) if view.key in s.lab.tracks[YOURS].series)


@on_stage
async def test_charts_without_a_number_are_passed_over_and_come_last(stage: StageMaker) -> None:
    async with stage(size=(200, 50), steps=5) as s:
        await s.press(*["v"] * len(VIEWS))
        series = s.lab.tracks[YOURS].series
        below = [plot.view.key in series for plot in s.app.explore.query(Plot) if plot.view is not REWARD]
        assert {view.key in series for view in VIEWS} == {True, False}
        assert below == sorted(below, reverse=True)
        for _ in VIEWS:
            await s.press("v")
            assert next(plot for plot in s.app.explore.query("#plot-0").results(Plot)).view.key in series


@on_stage
async def test_with_a_twin_the_one_chart_below_still_shows_every_metric(stage: StageMaker) -> None:
    async with stage(steps=5) as s:
        await s.press("c")
        assert "yours minus twin: reward" in s.text()
        await s.press("v")
        assert "KL (k3)" in s.text()
        await s.press("V", "V")
        assert last_with_numbers(s) in s.text()
        await s.press("v", "c", "space")
        assert "KL (k3)" in s.text()


@on_stage
async def test_the_metric_below_is_chosen_by_a_key(stage: StageMaker) -> None:
    async with stage(steps=5) as s:
        assert "KL (k3)" in s.text()
        await s.press("v")
        assert "lag  r 1" in s.text()
        await s.press("V", "V")
        assert last_with_numbers(s) in s.text()


@on_stage
async def test_f1_explains_what_is_focused_and_lists_the_keys(stage: StageMaker) -> None:
    async with stage(steps=5) as s:
        s.app.explore.query_one("#control-fp32_head", ControlWidget).focus()
        await s.press("f1")
        assert "Fix 4, precision" in s.text()
        await s.press("f1")
        assert s.app.screen is s.app.explore


@on_stage
async def test_the_settings_screen_changes_any_setting_and_refuses_a_wrong_value(stage: StageMaker) -> None:
    async with stage(size=(120, 40), steps=2) as s:
        await s.press("x", "right")
        assert s.lab.yours.engine.dtype == "bfloat16"
        await s.press("enter", *["backspace"] * 8, *"int4", "enter")
        assert "engine.dtype='int4'" in s.text()
        await s.press("escape", "escape")
        assert s.app.screen is s.app.explore


@on_stage
async def test_a_terminal_that_is_too_small_says_which_size_is_needed(stage: StageMaker) -> None:
    async with stage(size=(50, 14)) as s:
        assert "60 x 18" in s.text()
        await s.pilot.resize_terminal(80, 24)
        await s.settle()
        assert not isinstance(s.app.screen, TooSmall)
        assert "reward" in s.text()


@on_stage
async def test_a_share_string_typed_in_is_taken_over_and_a_broken_one_is_refused(stage: StageMaker) -> None:
    async with stage(steps=2) as s:
        wanted = s.lab.yours.with_values({"engine.lag": 4, "seed": 9})
        await s.press("i", *"skew1-xx", "enter")
        assert "cut off or mistyped" in s.text()
        s.app.screen.query_one("Input").value = to_share(wanted)  # type: ignore[attr-defined]
        await s.press("enter")
        assert s.lab.yours == wanted


@on_stage
async def test_export_and_picture_write_whole_files(stage: StageMaker, tmp_path: Path) -> None:
    async with stage(steps=5, options=Options(out=tmp_path / "out")) as s:
        await s.press("e", "s")
        (table,), (picture,) = list((tmp_path / "out").glob("*.csv")), list((tmp_path / "out").glob("*.svg"))
        lines = table.read_text().splitlines()
        assert lines[0] == f"# {to_share(s.lab.yours)}"
        assert len(lines) == 2 + 3 * 5
        assert picture.read_text().startswith("<svg")
        assert 'local("FiraCode-Regular")' in picture.read_text()
        assert "url(" not in picture.read_text().replace("url(#", ""), "a picture asks no server for a font"


@on_stage
async def test_hidden_controls_are_not_on_the_screen_and_their_keys_do_nothing(stage: StageMaker) -> None:
    options = Options(hidden=frozenset({"fp32_head", "noise", "seed"}))
    async with stage(steps=2, options=options) as s:
        await s.press("4", "n")
        assert not FIXES[3].is_on(s.lab.yours)
        assert s.lab.yours.seed == 0
        assert "fp32 head" not in s.text()
        assert "Seed" not in s.text()


def test_hiding_a_fixs_key_hides_its_switch_too() -> None:
    assert check_hidden({"fix_fp32_head"}) == {"fix_fp32_head", "fp32_head"}
    assert check_hidden({"lag"}) == {"lag"}


@on_stage
async def test_the_last_state_is_taken_up_on_request(stage: StageMaker) -> None:
    async with stage(steps=2) as s:
        await s.press("z")
        assert "no session has ended here yet" in headline(s)
        wanted = s.lab.yours.with_values({"engine.lag": 4})
        remember(wanted)
        assert last_state() == wanted
        await s.press("z")
        assert s.lab.yours == wanted


@on_stage
async def test_a_diverged_curve_is_shown_as_such(stage: StageMaker) -> None:
    async with stage(size=(120, 40)) as s:
        s.lab.load(s.lab.yours.with_values({"seed": 666}))
        for _ in range(31):
            s.lab.driver.step()
        while s.lab.step < 30:
            s.lab.tick()
            await s.pilot.pause(0.01)
        await s.settle()
        assert "diverged at step 30: loss is not finite" in s.text()


@on_stage
async def test_the_palette_lists_what_is_valid_here_and_does_it(stage: StageMaker) -> None:
    async with stage(steps=2) as s:
        await s.press("colon", *"dark")
        assert "Theme" in s.text()
        assert "All curves from step 0" not in s.text()
        await s.press("enter")
        await s.settle()
        assert not s.app.current_theme.dark
        await s.press("colon")
        assert "Step back" not in s.text(), "only a replay can go back"
        await s.press("escape")
        assert s.app.screen is s.app.explore


@on_stage
async def test_a_click_on_an_option_that_is_gone_by_now_does_nothing(stage: StageMaker) -> None:
    async with stage(steps=2) as s:
        await s.press("colon", *"dark")
        options = s.app.screen.query_one(OptionList)
        seen_before_the_typing = Style.from_meta({"option": options.option_count + 3})
        options.post_message(events.Click(options, 1, 1, 0, 0, 1, False, False, False, style=seen_before_the_typing))
        await s.settle()
        assert "Theme" in s.text()


@on_stage
async def test_a_click_where_a_widget_is_just_leaving_does_nothing(
    stage: StageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(steps=2) as s:
        leaving = Static("a key of the footer of before")
        monkeypatch.setattr(s.app.screen, "get_widget_and_offset_at", lambda x, y: (leaving, Offset(0, 0)))
        s.app.screen._forward_event(events.MouseDown(None, 1, 1, 0, 0, 1, False, False, False, 1, 1))
        await s.settle()
        assert s.app.is_running


@on_stage
async def test_a_hidden_key_is_neither_in_the_hint_nor_in_the_help(stage: StageMaker) -> None:
    hidden = check_hidden({c.id for c in explore_controls()} - {"processed"})
    async with stage(steps=2, options=Options(hidden=hidden)) as s:
        assert "1 fix  d diagnose t tokens f formula g ladder a advise p profile l lessons\n" in s.text()
    async with stage(size=(120, 200), steps=2, options=Options(hidden=check_hidden({"fp32_head"}))) as s:
        assert (
            "1 2 3 fixes  d diagnose t tokens f formula g ladder a advise p profile l lessons  , j go back and replay  o objective"
            in s.text()
        )
        await s.press("f1")
        assert "Switch fix 3" in s.text()
        assert "Switch fix 4" not in s.text()
        assert "Switch all four" not in s.text()


@on_stage
async def test_a_run_that_has_lost_its_reward_says_what_brings_it_back(stage: StageMaker) -> None:
    lost = opening().with_values({"skew.noise": "normal", "skew.scale": 2.0})
    async with stage(steps=3, yours=lost) as s:
        assert "1-5 fixes" in s.text()
        await s.advance(80)
        assert "y has no reward left" in s.text()
        assert "0 starts again" in s.text()


@on_stage
async def test_the_share_string_is_shown_whole(stage: StageMaker) -> None:
    async with stage(steps=1) as s:
        await s.press("y")
        shown = "".join(line.split("│")[1].strip() for line in s.text().splitlines() if line.count("│") == 2)
        assert to_share(s.lab.yours) in shown
        await s.press("y")
        assert s.app.screen is s.app.explore


@on_stage
async def test_a_toggle_at_the_newest_step_has_its_letter_and_no_two_ticks_read_the_same(stage: StageMaker) -> None:
    async with stage(size=(200, 50), steps=40) as s:
        await s.press("1")
        await s.advance(1)
        for plot in s.app.explore.query(Plot):
            lines = [strip.text for strip in plot._build(plot.size.width, plot.size.height)]
            ticks = [line[:6].strip() for line in lines[1:-1] if line[:6].strip()]
            assert len(set(ticks)) == len(ticks)
            assert lines[-1].endswith("P")


@on_stage
async def test_what_a_replay_refuses_does_not_set_it_going(stage: StageMaker) -> None:
    async with stage() as s:
        s.lab.replay("replay of run-1", [TrackSpec("yours", Scenario(steps=30), (0,), taped=True, train=scripted)])
        await s.advance(3)
        for key in ("n", "b", "c", "1", "5", "u"):
            await s.press(key)
            assert "recorded: 0 is live again" in headline(s)
            assert not s.lab.driver.playing


@pytest.mark.parametrize(
    ("objective", "said", "steps"),
    [
        ("grpo", "the engine now has the newest weights: y needs some 20 to 60 steps to come back", 30),
        ("reinforce", "y falls first: the engine now has the newest weights. Give it some 100 steps", 60),
    ],
)
@on_stage
async def test_a_mended_update_in_flight_says_how_long_the_reward_takes(
    stage: StageMaker, objective: str, said: str, steps: int
) -> None:
    async with stage(steps=5, yours=opening(objective)) as s:
        await s.press("2")
        await s.advance(1)
        assert "newest weights" not in s.text()
        await s.press("3")
        await s.advance(1)
        assert said in s.text()
        await s.advance(steps)
        assert "newest weights" not in s.text()


@on_stage
async def test_one_key_goes_through_the_objectives_that_have_an_opening_point(stage: StageMaker) -> None:
    async with stage(size=(120, 40), steps=3) as s:
        assert "o objective" in s.text()
        for objective in ("gspo", "ppo", "reinforce", "grpo"):
            await s.press("o")
            assert s.lab.yours == opening(objective)
            assert f"loss {objective}: from step 0" in s.text()


@on_stage
async def test_a_trainer_that_died_says_so_and_what_starts_another(stage: StageMaker) -> None:
    def dying(scenario: Scenario, seeds: tuple[int, ...]) -> Training:
        yield from islice(scripted(scenario, seeds), 2)
        raise SkewsimError("trainer ended by SIGKILL")

    async with stage() as s:
        s.lab.driver.train = dying
        s.lab.reset()
        for _ in range(3):
            s.lab.driver.step()
        async with asyncio.timeout(120):
            while not s.lab.tracks[YOURS].failed:
                s.lab.tick()
                await asyncio.sleep(0.01)
        await s.settle()
        assert "trainer ended by SIGKILL: 0 starts another" in s.text()


@given(st.floats(1e-7, 1e3), st.floats(1e-7, 1e3), st.integers(20, 80))
def test_a_number_over_a_chart_is_whole_or_not_there(first: float, second: float, width: int) -> None:
    """A number cut off at the edge reads as another one."""
    lab = Lab(Driver(scripted))
    for name, letter, value in (("yours", "y", first), ("reference", "r", second)):
        lab.tracks[name] = track = Track(name, letter, 0, lab.yours, Series((0,)))
        track.series.append([StepRecord(step=0, scenario=name, seed=0, metrics={"skew/kl_k3": value})])
    titles = picture(lab, VIEWS[0]).titles
    title = next((title for title in titles if len(title) <= width), titles[-1])
    numbers = title.removeprefix(VIEWS[0].title).split()
    assert len(numbers) in (0, 4)
    for letter, text in zip(numbers[::2], numbers[1::2], strict=True):
        assert float(text) == pytest.approx({"y": first, "r": second}[letter], rel=0.5)


@on_stage
async def test_every_page_has_its_key_on_the_first_screen_at_80_columns(stage: StageMaker) -> None:
    async with stage(steps=2) as s:
        said = s.text()
        for key, page in zip(
            "dtfgapl", ["diagnose", "tokens", "formula", "ladder", "advise", "profile", "lessons"], strict=True
        ):
            assert f" {key} {page}" in said
        assert "1-5 fixes" in said


@on_stage
async def test_a_dialog_without_a_field_to_type_in_is_closed_by_the_key_that_leaves(stage: StageMaker) -> None:
    async with stage(steps=2) as s:
        for key in ("f1", "l", "r", "x", "y"):
            await s.press(key)
            assert s.app.screen is not s.app.explore, key
            await s.press("q")
            assert s.app.screen is s.app.explore, key
            assert s.app.is_running


@on_stage
async def test_at_80_by_24_a_lessons_question_leaves_the_chart_more_than_five_rows(stage: StageMaker) -> None:
    async with stage(steps=5) as s:
        s.app.start_lesson("1-what-skew-is")
        await s.settle()
        await s.press("enter")
        assert s.app.player is not None
        assert s.app.player.phase == "ask"
        for chart in (s.app.explore.query_one("#plot-reward"), s.app.explore.query_one("#plot-0")):
            assert chart.size.height - 2 > 5
