"""Every screen as plain text, at three sizes, without colour and in ASCII; a few as pictures.

Driven by scripted records; SKEWSIM_UPDATE_GOLDENS=1 stores what is seen. A screen in ASCII or without colour is not
stored a second time: it must look the same. Daily at 80x24 in colour; the rest among the slow tests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tui.screens.map import MapScreen
from tui.screens.runs import RunsScreen
from tui.shell import Options

from .conftest import Stage, StageMaker, check_golden, check_picture
from .profiles import make_profile
from .snapshots import snapshot
from .stagecraft import on_stage
from .sweeps import make_sweep_folder

SIZES = [(80, 24), *(pytest.param(size, marks=pytest.mark.slow) for size in ((120, 40), (200, 50)))]
Scene = Callable[[Stage], Awaitable[None]]


async def explore(s: Stage) -> None:
    await s.press("1")
    await s.advance(40)


async def twin(s: Stage) -> None:
    s.lab.toggle_twin(s.app.explore.controls()[0])
    s.lab.heard = ""
    await s.advance(40)


async def band(s: Stage) -> None:
    s.lab.toggle_band()
    await s.advance(40)


async def diverged(s: Stage) -> None:
    s.lab.load(s.lab.yours.with_values({"seed": 666}))
    await s.advance(31)


async def page(s: Stage, key: str) -> None:
    await s.press(key)
    s.app.lens.latest = snapshot()
    await s.settle()


async def tokens(s: Stage) -> None:
    await page(s, "t")


async def formula(s: Stage) -> None:
    await page(s, "f")


async def advise(s: Stage) -> None:
    await page(s, "a")


async def diagnose(s: Stage) -> None:
    s.app.lens.latest = snapshot(sequences=64, noise=0.0)
    await s.press("d")
    async with asyncio.timeout(120):
        while "Verdict" not in s.text():
            await asyncio.sleep(0.05)
            await s.settle()


def profiles(s: Stage) -> None:
    out = s.app.options.out
    assert out is not None
    for name in ("one", "two"):
        make_profile(out / f"{name}.json")
    s.app.profiles = tuple(str(out / f"{name}.json") for name in ("one", "two"))


async def profile(s: Stage) -> None:
    profiles(s)
    await s.press("p")


async def compare(s: Stage) -> None:
    profiles(s)
    await s.press("p", "c", "right")
    s.lab.heard = ""
    await s.settle()


async def ladder(s: Stage) -> None:
    await s.press("g")
    async with asyncio.timeout(120):
        while "step 100 of 100" not in s.text():
            await asyncio.sleep(0.05)
            s.app.tick()
            await s.settle()


async def runs(s: Stage) -> None:
    out = s.app.options.out
    assert out is not None
    for number, status in ((1, "finished"), (2, "interrupted")):
        folder = out / f"run-{number:03}"
        folder.mkdir(parents=True)
        (folder / "steps.jsonl").write_text("")
        (folder / "summary.json").write_text(json.dumps({"status": status}))
    s.app.push_screen(RunsScreen(s.lab, out))
    await s.settle()


async def map_(s: Stage) -> None:
    assert s.app.options.out is not None
    make_sweep_folder(s.app.options.out / "sweep-made-up")
    s.app.push_screen(MapScreen(s.app.options.out / "sweep-made-up"))
    await s.settle()
    await s.press("n", "right", "right", "right", "up")


async def lessons(s: Stage) -> None:
    await s.press("l")


async def lesson_ask(s: Stage) -> None:
    s.lab.driver.play = lambda playing: None  # type: ignore[method-assign]  # only so many steps as are asked for
    s.app.start_lesson("1-what")
    await s.advance(10)
    await s.press("enter")


async def lesson_reveal(s: Stage) -> None:
    await lesson_ask(s)
    await s.press("enter")


async def settings(s: Stage) -> None:
    await s.press("x", "down", "right")


async def help_(s: Stage) -> None:
    s.app.explore.query_one("#control-fp32_head").focus()
    await s.press("f1")


async def palette(s: Stage) -> None:
    await s.press("colon", *"step")


async def prompt(s: Stage) -> None:
    await s.press("i", *"skewl", "enter")


SCENES: dict[str, Scene] = {
    "explore": explore,
    "twin": twin,
    "band": band,
    "diverged": diverged,
    "tokens": tokens,
    "formula": formula,
    "profile": profile,
    "profile-compare": compare,
    "diagnose": diagnose,
    "advise": advise,
    "ladder": ladder,
    "runs": runs,
    "map": map_,
    "lessons": lessons,
    "lesson-ask": lesson_ask,
    "lesson-reveal": lesson_reveal,
    "settings": settings,
    "help": help_,
    "palette": palette,
    "prompt": prompt,
}
FRESH = {"lesson-ask", "lesson-reveal"}
"""Scenes that begin at step 0."""


def options(folder: Path) -> Options:
    """A folder whose name is the same on every machine: it is on the screen."""
    return Options(out=folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    return Path("out")


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("name", SCENES)
@on_stage
async def test_a_screen_looks_as_stored(stage: StageMaker, folder: Path, name: str, size: tuple[int, int]) -> None:
    async with stage(size=size, steps=0 if name in FRESH else 40, options=options(folder)) as s:
        await SCENES[name](s)
        check_golden(f"{name}-{size[0]}x{size[1]}", s.text())
        await s.leave()


@pytest.mark.parametrize("size", [(50, 14), (59, 40), (120, 17)], ids=lambda s: f"{s[0]}x{s[1]}")
@on_stage
async def test_a_terminal_that_is_too_small_looks_as_stored(stage: StageMaker, size: tuple[int, int]) -> None:
    async with stage(size=size) as s:
        check_golden(f"too-small-{size[0]}x{size[1]}", s.text())


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
@on_stage
async def test_in_ascii_a_screen_uses_no_other_character(
    stage: StageMaker, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tui.app.ascii_wanted", lambda: True)
    async with stage(size=(80, 24), steps=0 if name in FRESH else 40, options=options(folder)) as s:
        await SCENES[name](s)
        assert s.text().isascii(), sorted({c for c in s.text() if ord(c) > 127})
        check_golden(f"{name}-ascii-80x24", s.text())
        await s.leave()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
@on_stage
async def test_without_colour_a_screen_says_the_same_and_has_none(
    stage: StageMaker, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with stage(size=(80, 24), steps=0 if name in FRESH else 40, options=options(folder)) as s:
        await SCENES[name](s)
        check_golden(f"{name}-80x24", s.text())
        for strip in s.app.screen._compositor.render_strips():
            for segment in strip:
                colour = segment.style.color if segment.style else None
                assert colour is None or colour.triplet is None or len(set(colour.triplet)) == 1, segment
        await s.leave()


PICTURES = [
    ("explore", (120, 40), "textual-dark"),
    *(
        pytest.param(*each, marks=pytest.mark.slow)
        for each in (
            ("explore", (120, 40), "textual-light"),
            ("tokens", (120, 40), "textual-dark"),
            ("ladder", (120, 40), "textual-light"),
            ("lesson-reveal", (80, 24), "textual-dark"),
        )
    ),
]


@pytest.mark.parametrize(("name", "size", "theme"), PICTURES, ids=lambda v: str(v).replace(" ", ""))
@on_stage
async def test_a_picture_looks_as_stored(
    stage: StageMaker, folder: Path, name: str, size: tuple[int, int], theme: str
) -> None:
    async with stage(size=size, steps=0 if name in FRESH else 40, options=options(folder)) as s:
        s.app.theme = theme
        await s.pilot.pause()
        await SCENES[name](s)
        check_picture(f"{name}-{theme.removeprefix('textual-')}", s.app.export_screenshot(title="skewsim"))
        await s.leave()
