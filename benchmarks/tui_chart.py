"""What the live chart costs: CPU per redraw, data in to styled strips out, and how late a key is served.

    python benchmarks/tui_chart.py

The chart: 8 curves of 500 points on 200 x 50 cells. Keys: Explore in a headless app with the real simulator
training in its thread; a callback is asked for every 20 ms, and the time by which it comes late is noted. Training
speed: steps a second of the same tracks with the screen drawing and with nobody looking. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time

import numpy as np
from textual.app import App, ComposeResult

from tui.app import SkewsimApp
from tui.chart import Curve
from tui.driver import Driver, TrackSpec
from tui.lab import Lab, initial_v1_for, opening, reference_for
from tui.plot import Picture, Plot
from tui.snapshot import Watch, watched
from tui.views import REWARD, Look


def redraw_ms(rounds: int = 60) -> float:
    """CPU milliseconds for one redraw of the chart, at the median."""
    x = np.arange(500.0)
    curves = [Curve("abcdefgh"[i], x, 0.5 + 0.4 * np.sin(x / 30 + i), (0, 6, 2)[i % 3]) for i in range(8)]
    costs: list[float] = []

    class Stage(App[None]):
        def compose(self) -> ComposeResult:
            yield Plot(REWARD, look=Look())

    async def play() -> None:
        app = Stage()
        async with app.run_test(size=(200, 50)) as pilot:
            plot = app.query_one(Plot)
            for _ in range(rounds):
                began = time.process_time()
                plot.show(Picture(REWARD, curves), Look())
                for y in range(plot.size.height):
                    plot.render_line(y)
                costs.append(time.process_time() - began)
            await pilot.pause()

    asyncio.run(play())
    return 1000 * float(np.median(costs))


def headless_rate(steps: int) -> float:
    """Steps a second of the three tracks of Explore with nobody looking."""
    yours = opening()
    driver = Driver(watched(Watch()), speed=float("inf"))
    driver.restart(
        [
            TrackSpec("reference", reference_for(yours), (0,)),
            TrackSpec("v", initial_v1_for(yours), (0,)),
            TrackSpec("yours", yours, (0,)),
        ]
    )
    driver.start()
    seen, began, first = 0, 0.0, 6
    while seen < 3 * (steps + first):
        seen += len(driver.drain())
        if not began and seen >= 3 * first:
            began = time.perf_counter()
        time.sleep(0.01)
    rate = steps / (time.perf_counter() - began)
    driver.stop(5)
    return rate


def watched_rate(steps: int) -> tuple[float, list[float]]:
    """The same with Explore drawing at 10 Hz, and how late the event loop was, in seconds."""
    late: list[float] = []
    rate = 0.0

    async def play() -> None:
        nonlocal rate
        lens = Watch()
        lab = Lab(Driver(watched(lens), speed=float("inf")))
        app = SkewsimApp(lab, lens=lens)
        async with app.run_test(size=(200, 50)):
            while lab.step < 5:
                await asyncio.sleep(0.02)
            began, start = time.perf_counter(), lab.step
            while lab.step < start + steps:
                due = time.perf_counter() + 0.02
                await asyncio.sleep(0.02)
                late.append(time.perf_counter() - due)
            rate = (lab.step - start) / (time.perf_counter() - began)
        lab.driver.stop(5)

    asyncio.run(play())
    return rate, late


def main() -> None:
    cost = redraw_ms()
    alone = headless_rate(60)
    together, late = watched_rate(60)
    print(
        json.dumps(
            {
                "redraw_cpu_ms": round(cost, 2),
                "key_late_ms_median": round(1000 * float(np.median(late)), 2),
                "key_late_ms_p95": round(1000 * float(np.quantile(late, 0.95)), 2),
                "steps_per_s_headless": round(alone, 2),
                "steps_per_s_with_screen": round(together, 2),
                "slowed_by": round(1 - together / alone, 3),
                "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
