"""Runs the app where importing torch fails, as if it were not installed, and prints a word for all that works."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any


class NoTorch:
    """A finder that knows no torch."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoTorch())  # type: ignore[arg-type]

from tui.launch import _process, build  # noqa: E402


async def main() -> int:
    assert _process() is None
    app = build("", None)
    lab = app.lab

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)

    async with app.run_test(size=(80, 24)) as pilot:
        print("opened")
        await wait(lambda: lab.step > 5)
        print("forward")
        await pilot.press("space", "comma")
        before = lab.position
        await pilot.press("comma")
        await wait(lambda: lab.step + 1 == before - 1 == lab.position)
        print("back")
        await pilot.press("5")
        await wait(lambda: [mark.letter for mark in lab.marks] == ["A"])
        print("toggled")
        await pilot.press("g")
        ladder: Any = app.screen
        await wait(lambda: ladder.playback.step > 3)
        await pilot.press("comma")
        await wait(lambda: not ladder.playback.driver.playing)
        assert not any(track.failed for track in ladder.playback.tracks.values())
        print("ladder")
        await pilot.press("escape", "l", "enter")
        await wait(lambda: app.player is not None and not lab.driver.playing)
        await pilot.press("enter", "down", "enter")
        await wait(lambda: lab.step > 3)
        assert lab.yours.trainer.num_prompts == 8, "the lesson's own settings, not the opening's"
        print("lesson")
        await pilot.press("escape", "q")
    print("quit")
    return app.return_code or 0


code = asyncio.run(main())
assert not [name for name in sys.modules if name.partition(".")[0] == "torch"]
print(code)
