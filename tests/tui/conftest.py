"""A stage for the app: scripted training, exact steps, and the screen as plain text."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from skewsim.settings import Scenario
from tui.app import SkewsimApp
from tui.driver import Driver
from tui.lab import Lab, opening
from tui.recordings import Archive
from tui.shell import Options

from .scripted import scripted

GOLDENS = Path(__file__).parent / "goldens"


class Stage:
    """A running app whose training moves only when told to."""

    def __init__(self, app: SkewsimApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot, self.lab = app, pilot, app.lab

    async def advance(self, steps: int) -> None:
        """Train exactly this many steps of every curve."""
        target = self.lab.step + steps
        for _ in range(steps):
            self.lab.driver.step()
        async with asyncio.timeout(120):
            while any(t.series.step < target and not (t.note or t.ended) for t in self.lab.tracks.values()):
                await asyncio.sleep(0.005)
                self.lab.tick()
        await self.settle()

    async def until(self, there: Callable[[], bool]) -> None:
        """Take in what the driver computes until something is so."""
        async with asyncio.timeout(120):
            while not there():
                await asyncio.sleep(0.005)
                self.lab.tick()
        await self.settle()

    async def leave(self) -> None:
        """Close all that is open and go back to Explore."""
        async with asyncio.timeout(120):
            while self.app.screen is not self.app.explore:
                await self.press("escape")

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.settle()

    async def settle(self) -> None:
        self.app.redraw()
        await self.pilot.pause()

    def text(self) -> str:
        """The screen as plain text, as a reader sees it."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


StageMaker = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageMaker:
    """`async with stage(size=(80, 24)) as s:` a paused app with scripted curves; nothing of the user's is touched."""
    for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    monkeypatch.setattr("tui.app.ascii_wanted", lambda: False)

    @asynccontextmanager
    async def make(
        *,
        size: tuple[int, int] = (80, 24),
        yours: Scenario | None = None,
        steps: int = 0,
        options: Options | None = None,
        archive: Archive | None = None,
    ) -> AsyncIterator[Stage]:
        driver = Driver(scripted if archive is None else archive.train, speed=float("inf"))
        driver.playing = False
        app = SkewsimApp(Lab(driver, yours=yours or opening(), archive=archive), options)
        try:
            async with app.run_test(size=size) as pilot:
                staged = Stage(app, pilot)
                await pilot.pause()
                if steps:
                    await staged.advance(steps)
                yield staged
        finally:
            assert driver.stop(120)

    return make


def check_picture(name: str, svg: str) -> None:
    """Compare a picture with the stored one; SKEWSIM_UPDATE_GOLDENS=1 stores it instead."""
    _check(GOLDENS / f"{name}.svg", svg)


def check_golden(name: str, text: str) -> None:
    """Compare with the stored screen, without line numbers of code; SKEWSIM_UPDATE_GOLDENS=1 stores it instead."""
    _check(GOLDENS / f"{name}.txt", re.sub(r"\.py:\d+", ".py:N", text))


def _check(path: Path, text: str) -> None:
    if os.environ.get("SKEWSIM_UPDATE_GOLDENS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.stem} looks different; see {path}"
