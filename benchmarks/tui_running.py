"""The running terminal UI: how late it answers a key, how much it slows the trainer, how much memory it takes.

    python benchmarks/tui_running.py [--rounds 3] [--size 200x50]

Everything runs in real pseudo-terminals. Keys: while the real program trains at full speed, switch 1 is pressed at
random moments, and the time is measured until the terminal has received the answer. Slowdown: the three curves of
Explore are trained in turn by the real program at full speed and by a plain loop in one process; medians over the
rounds. Memory: resident size of the real program with its training process, after a minute. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tui.terminal import TUI, Terminal, in_terminal, resident_mb

_WARM, _SECONDS = 20, 15.0


def key_latencies(size: tuple[int, int], presses: int = 60) -> tuple[list[float], float]:
    """Seconds from a key to its answer on the terminal, and the program's resident size in MB at the end."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as home, Terminal(TUI, home=Path(home), size=size) as t:
        t.wait_for("computed: engine")
        t.type("++++++")
        t.pump(5)
        late = []
        for i in range(presses):
            t.pump(rng.uniform(0.3, 0.8))
            began = time.perf_counter()
            t.type("1")
            t.wait_for(f"processed {'off' if i % 2 else 'on'}: from step")
            late.append(time.perf_counter() - began)
        t.pump(10)
        size_mb = resident_mb(t.pid)
        t.type("q")
        t.end()
    return late, size_mb


def headless() -> float:
    """Steps per second of the same three curves without the app, in one process."""
    import torch

    from skewsim.learn.trainer import train
    from tui.lab import initial_v1_for, opening, reference_for

    torch.set_num_threads(1)
    yours = opening()
    runs = [train(scenario) for scenario in (reference_for(yours), initial_v1_for(yours), yours)]

    def step() -> None:
        for run in runs:
            next(run)

    for _ in range(_WARM):
        step()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() < began + _SECONDS:
        step()
        steps += 1
    return steps / (time.perf_counter() - began)


def watched_run(out: Path) -> None:
    """Run the app at full speed in a terminal; it writes its steps per second and its share of a core to a file."""
    from tui.launch import build
    from tui.process import TrainingProcess

    process = TrainingProcess()
    app = build("", process)
    app.lab.driver.set_speed(float("inf"))

    async def measure() -> None:
        while app.lab.step < _WARM:
            await asyncio.sleep(0.05)
        began, first, cpu = time.perf_counter(), app.lab.step, time.thread_time()
        await asyncio.sleep(_SECONDS)
        seconds = time.perf_counter() - began
        found = {
            "rate": (app.lab.step - first) / seconds,
            "drawing_share_of_a_core": (time.thread_time() - cpu) / seconds,
        }
        out.write_text(json.dumps(found))
        app.exit()

    app.call_later(lambda: app.run_worker(measure()))
    app.run()
    app.lab.driver.stop(5)
    process.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="200x50")
    parser.add_argument("--part", choices=["all", "keys", "slowdown"], default="all")
    parser.add_argument("--watched", action="store_true", help="used by the script itself")
    parser.add_argument("--headless", action="store_true", help="used by the script itself")
    parser.add_argument("out", nargs="?", type=Path)
    options = parser.parse_args()
    if options.watched:
        watched_run(options.out)
        return
    if options.headless:
        options.out.write_text(json.dumps({"rate": headless()}))
        return
    width, height = (int(n) for n in options.size.split("x"))
    found: dict[str, object] = {"size": options.size}
    if options.part != "slowdown":
        late, size_mb = key_latencies((width, height))
        found |= {
            "key_ms_median": round(1000 * statistics.median(late), 1),
            "key_ms_p95": round(1000 * float(np.quantile(late, 0.95)), 1),
            "resident_mb": round(size_mb),
        }
    if options.part != "keys":
        alone, together = [], []
        for _ in range(options.rounds):
            alone.append(in_terminal(Path(__file__), "--headless", size=(width, height)))
            together.append(in_terminal(Path(__file__), "--watched", size=(width, height)))
        a, b = (statistics.median(run["rate"] for run in runs) for runs in (alone, together))
        found |= {
            "steps_per_s_headless": [round(run["rate"], 2) for run in alone],
            "steps_per_s_with_screen": [round(run["rate"], 2) for run in together],
            "slowed_by": round(1 - b / a, 3),
            "drawing_share_of_a_core": round(statistics.median(run["drawing_share_of_a_core"] for run in together), 3),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
