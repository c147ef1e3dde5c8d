"""CPU time of a redraw of the live chart, from new data to bytes written, in a real pseudo-terminal.

    python benchmarks/tui_chart.py

The chart has 8 curves of 500 points on 200 x 50 cells and is redrawn ten times a second with new data. The cost is the
CPU time of all threads of the process, minus that of the same number of seconds without redraws. `build` is the part
done by skewsim's own code, from arrays to styled lines. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np
from textual.app import App, ComposeResult

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tui.terminal import in_terminal
from tui.chart import ChartCurve
from tui.plot import Picture, Plot
from tui.views import REWARD, Look

_REDRAWS, _INTERVAL = 100, 0.1


def curves(shift: int) -> list[ChartCurve]:
    """Eight curves of 500 points, different for every frame."""
    x = np.arange(500.0)
    return [ChartCurve("abcdefgh"[i], x, 0.5 + 0.4 * np.sin((x + shift) / 30 + i), (0, 6, 2)[i % 3]) for i in range(8)]


class Stage(App[None]):
    """An app with only the chart, which measures itself and writes the results to a file."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self._out = out

    def compose(self) -> ComposeResult:
        yield Plot(REWARD, look=Look())

    def on_mount(self) -> None:
        self.run_worker(self.measure())

    async def measure(self) -> None:
        await asyncio.sleep(1)
        idle = await self._spent(draw=False)
        busy = await self._spent(draw=True)
        plot = self.query_one(Plot)
        began = time.process_time()
        for shift in range(_REDRAWS):
            plot.show(Picture(REWARD, curves(shift)), Look())
            plot.render_line(0)
        build = time.process_time() - began
        found = {
            "size": list(plot.size),
            "redraw_cpu_ms": round(1000 * (busy - idle) / _REDRAWS, 2),
            "build_cpu_ms": round(1000 * build / _REDRAWS, 2),
        }
        self._out.write_text(json.dumps(found))
        self.exit()

    async def _spent(self, *, draw: bool) -> float:
        """CPU seconds of a number of frames, with or without redraws."""
        began = time.process_time()
        for shift in range(_REDRAWS):
            if draw:
                self.query_one(Plot).show(Picture(REWARD, curves(shift)), Look())
            await asyncio.sleep(_INTERVAL)
        return time.process_time() - began


def main() -> None:
    if len(sys.argv) > 1:
        Stage(Path(sys.argv[1])).run()
    else:
        print(json.dumps(in_terminal(Path(__file__), size=(200, 50))))


if __name__ == "__main__":
    main()
