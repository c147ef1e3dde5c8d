"""Every lesson is played to its end by a scripted learner, with right and with wrong answers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from skewsim.errors import FileFormatError, UserError
from skewsim.settings import Scenario
from skewsim.skew.metrics import METRICS
from tui.controls import explore_controls
from tui.driver import Driver
from tui.lab import Lab
from tui.lesson import CardCheck, Player, lesson_names, load_lesson, parse_lesson
from tui.lesson_panel import LessonPanel, card
from tui.plot import Plot
from tui.views import VIEWS

from .conftest import StageMaker
from .scripted import scripted
from .stagecraft import on_stage

CONTROLS = {control.id: control for control in explore_controls()}
NAMES = lesson_names()


@pytest.fixture
def lab() -> Iterator[Lab]:
    driver = Driver(scripted, speed=float("inf"))
    driver.start()
    lab = Lab(driver)
    lab.reset()
    yield lab
    assert driver.stop(120)


def perform(check: CardCheck, lab: Lab) -> str:
    """Do what a card asks for; the screen that the learner is on afterwards."""
    if check.steps is not None:
        end = time.monotonic() + 120
        while lab.step < check.steps:
            lab.tick()
            assert time.monotonic() < end
    if check.control is not None:
        control = CONTROLS[check.control]
        for _ in range(20):
            if control.text(lab.yours) == check.value:
                break
            lab.move(control, 1)
    return check.screen or "explore"


def play(player: Player, lab: Lab, *, right: bool) -> None:
    player.begin(lab)
    for _ in range(100):
        step = player.step
        if player.phase == "over":
            return
        if player.phase == "ask" and step.ask is not None:
            assert not player.proceed(lab), "a prediction comes before what it predicts"
            assert not lab.driver.playing, "the curves wait for it"
            answer = step.ask.answer if right else (step.ask.answer + 1) % len(step.ask.options)
            assert player.answer(answer, lab) is right
        elif player.phase == "do" and step.check is not None:
            assert not player.proceed(lab), "the lesson waits until the thing is done"
            assert player.observe(lab, perform(step.check, lab))
        else:
            assert player.proceed(lab)
    raise AssertionError("the lesson does not end")


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("name", NAMES)
def test_every_lesson_ends_whether_the_predictions_are_right_or_wrong(lab: Lab, name: str, right: bool) -> None:
    player = Player(load_lesson(name))
    play(player, lab, right=right)
    assert player.asked >= 1
    assert player.right == (player.asked if right else 0)


def test_a_card_before_a_question_may_hold_the_curves_and_leaving_lets_them_go(lab: Lab) -> None:
    player = Player(load_lesson("1-what"))
    player.begin(lab)
    assert not lab.driver.playing, "the next card asks what these curves will do"
    player.proceed(lab)
    player.leave(lab)
    assert lab.driver.playing


def test_lessons_are_in_the_order_of_their_numbers() -> None:
    assert [int(name.partition("-")[0]) for name in NAMES] == list(range(1, len(NAMES) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_lesson_predicts_does_and_ends_with_a_setting_to_type(name: str) -> None:
    lesson = load_lesson(name)
    assert any(step.ask for step in lesson.step)
    assert any(step.check for step in lesson.step)
    assert lesson.step[-1].type
    assert lesson.claim
    metrics = {"reward/mean", *(view.key for view in VIEWS)}
    scenario = Scenario()
    for step in lesson.step:
        assert step.highlight is None or step.highlight in CONTROLS
        assert step.watch is None or step.watch in metrics
        scenario = scenario.with_values(step.set)
    for claim in lesson.claim:
        assert claim.metric in METRICS
        assert Scenario().with_values(claim.left) != Scenario().with_values(claim.right)


def test_there_are_at_least_seven_lessons() -> None:
    assert len(NAMES) >= 7


def test_a_lesson_is_found_by_a_part_of_its_name_and_an_unknown_one_is_a_line() -> None:
    assert load_lesson("head").name == "5-head-dtype"
    with pytest.raises(UserError, match="allowed: 1-what-skew-is"):
        load_lesson("flying")
    with pytest.raises(UserError, match=r"may be any of: 1-what-skew-is, .*7-is-my"):
        load_lesson("s")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("title = 3", "title=3"),
        ('title = "x"\n[[step]]\nsay = "a"\ndo = "b"\n', "do and check go together"),
        ("title = ", "lesson bad"),
        ('title = "x"\nstep = []\n', "step"),
    ],
)
def test_a_lesson_with_a_mistake_is_one_line(text: str, what: str) -> None:
    with pytest.raises(FileFormatError, match=what) as caught:
        parse_lesson(text, "bad")
    assert "\n" not in str(caught.value)


@on_stage
async def test_a_lesson_on_the_screen_asks_waits_and_goes_on(stage: StageMaker) -> None:
    async with stage() as s:
        s.lab.driver.set_speed(0.001)
        s.app.start_lesson("1-what")
        s.lab.driver.play(False)
        await s.settle()
        await s.press("enter")
        assert "v falls behind r, though both learn" in s.text()
        await s.press("down", "enter")
        assert "Right." in s.text()
        await s.press("enter")
        assert "Do: let it run to step 30" in s.text()
        await s.press("enter")
        assert "Do: let it run to step 30" in s.text()
        await s.advance(31)
        s.app.tick()
        await s.press("enter")
        assert "press 1: processed on" in s.text()
        await s.press("1")
        s.app.tick()
        await s.settle()
        assert s.app.player is not None
        assert s.app.player.phase == "done"
        assert "1 of 1 predictions right" in s.app.score
        await s.press("escape")
        assert s.app.player is None


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
@pytest.mark.parametrize("size", [(80, 24), pytest.param((120, 40), marks=pytest.mark.slow)])
@on_stage
async def test_the_metric_to_watch_has_eight_rows_on_every_card_and_no_card_is_cut(
    stage: StageMaker, name: str, size: tuple[int, int]
) -> None:
    async with stage(size=size, steps=3) as s:
        s.lab.driver.set_speed(0.001)
        s.app.start_lesson(name)
        player = s.app.player
        assert player is not None
        for at in range(len(player.lesson.step)):
            player.at = at
            player.phase = "ask" if player.step.ask else "do" if player.step.check else "say"
            s.app.lesson_changed()
            await s.settle()
            shown = {plot.view.key for plot in s.app.explore.query(Plot) if plot.region.height >= 8 + 2}
            assert {"reward/mean", player.watched or "reward/mean"} <= shown, s.text()
            panel = s.app.explore.query_one(LessonPanel)
            lines = card(player, 0, s.app.look).wrap(s.app.console, panel.content_size.width)
            assert len(lines) == panel.content_size.height


@on_stage
async def test_look_here_and_focused_have_marks_of_their_own(stage: StageMaker) -> None:
    async with stage() as s:
        s.app.start_lesson("raw")
        assert s.app.player is not None
        s.app.player.at = 1
        s.app.lesson_changed()
        await s.settle()
        assert "◆temperature" in s.text()
        s.app.explore.query_one("#control-temperature").focus()
        await s.settle()
        assert "▶temperature" in s.text()


@on_stage
async def test_after_a_change_of_size_one_chart_is_marked(stage: StageMaker) -> None:
    async with stage(size=(200, 50), steps=3) as s:
        s.app.start_lesson("in-flight")
        assert s.app.player is not None
        s.app.player.at = 2
        s.app.lesson_changed()
        await s.settle()
        for size in ((80, 24), (200, 50), (120, 40)):
            s.app.explore.first_view = 1 if size == (80, 24) else 0
            await s.pilot.resize_terminal(*size)
            await s.settle()
            marked = [plot.view.key for plot in s.app.explore.query(Plot) if plot.display and plot._highlighted]
            assert marked in (["lag/mean"], []), "none where the chart is not on the screen"


def test_a_lesson_whose_key_is_hidden_is_refused() -> None:
    lesson = load_lesson("in-flight")
    lesson.check_visible(frozenset({"noise"}))
    with pytest.raises(UserError, match="lesson 4-in-flight-update needs what is hidden: inflight"):
        lesson.check_visible(frozenset({"inflight"}))


@on_stage
async def test_the_knob_that_a_card_asks_for_is_at_hand_and_escape_leaves_from_there(stage: StageMaker) -> None:
    async with stage() as s:
        s.lab.driver.set_speed(0.001)
        s.app.start_lesson("raw")
        player = s.app.player
        assert player is not None
        player.at, player.phase = 2, "do"
        s.app.lesson_changed()
        await s.settle()
        await s.press("right", "right", "right")
        assert s.lab.yours.engine.temperature == 1.0
        s.app.tick()
        await s.settle()
        assert player.phase == "done"
        await s.press("enter")
        assert player.at == 3, "enter goes on and turns nothing"
        await s.press("escape")
        assert s.app.player is None


@on_stage
async def test_a_lesson_that_starts_the_run_anew_says_nothing_of_the_one_before(stage: StageMaker) -> None:
    async with stage(steps=9) as s:
        await s.press("1")
        assert "processed on: from step 9" in s.text()
        s.app.start_lesson("raw")
        await s.settle()
        assert "from step 9" not in s.text()
