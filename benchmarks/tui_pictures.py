"""Makes the documentation's pictures of the terminal UI, with the real simulator.

    python benchmarks/tui_pictures.py [--out docs/images]

They show initial V1 with all four fixes switched on at step 20, and then the other screens, as SVG files.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from skewsim.files import atomic_writer
from tui.app import SkewsimApp
from tui.driver import Driver
from tui.files import without_web_fonts
from tui.lab import Lab
from tui.process import TrainingProcess


async def play(out: Path) -> None:
    process = TrainingProcess()
    lab = Lab(Driver(process.train, speed=float("inf")))
    app = SkewsimApp(lab, lens=process.watch)

    async def until(step: int) -> None:
        lab.driver.play(True)
        while lab.step < step:
            await asyncio.sleep(0.05)
        lab.driver.play(False)

    async def picture(name: str) -> None:
        await asyncio.sleep(1)
        app.redraw()
        await pilot.pause(1)
        with atomic_writer(out / f"tui-{name}.svg") as file:
            file.write(without_web_fonts(app.export_screenshot(title="skewsim")).encode())

    async with app.run_test(size=(120, 40)) as pilot:
        await until(20)
        app.explore.action_do("fix_all")
        await until(100)
        lab.heard = ""
        await picture("explore")
        app.action_do("theme")
        await picture("explore-light")
        app.action_do("theme")
        for name in ("profile", "advise", "tokens"):
            app.action_do(name)
            if name == "tokens":
                await until(lab.step + 2)
            await picture(name)
    lab.driver.stop(5)
    process.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    asyncio.run(play(parser.parse_args().out))


if __name__ == "__main__":
    main()
