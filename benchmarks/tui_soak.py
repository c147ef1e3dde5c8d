"""Whether the terminal UI's memory stays constant while it runs.

    python benchmarks/tui_soak.py [--minutes 60] [--size 120x40]

The real program trains in a pseudo-terminal at full speed and records to a run folder: a run without end, with a fix
toggled every twenty seconds, a page opened and left every minute, and a new seed in every quarter of the time. The
first tenth of the time is for warming up; `grown_mb` is the median of the last tenth minus the median of the second
tenth. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skewsim.share import to_toml
from tests.tui.terminal import TUI, Terminal, resident_mb
from tui.lab import opening

_PAGES = "tfpdag"


def soak(minutes: float, size: tuple[int, int]) -> dict[str, object]:
    sizes: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "endless.toml").write_text(to_toml(opening().with_values({"steps": 1_000_000})))
        with Terminal((*TUI, "endless.toml", "--out", "kept"), home=home, size=size) as t:
            t.wait_for("computed: engine")
            t.type("++++++")
            began = time.monotonic()
            rounds = round(minutes * 3)
            for i in range(rounds):
                t.type("1234"[i % 4])
                if i % 3 == 0:
                    t.type(_PAGES[i // 3 % len(_PAGES)])
                    t.pump(5)
                    t.type("\x1b")
                if i % max(rounds // 4, 2) == 1:
                    t.type("n")
                t.pump(began + 20 * (i + 1) - time.monotonic())
                t.output = b""
                sizes.append(resident_mb(t.pid))
            t.type("q")
            code = t.end()
        runs = sorted((home / "kept").glob("run-*"))
        steps = sum(sum(1 for _ in (run / "steps.jsonl").open()) for run in runs)
        recorded = sum(file.stat().st_size for run in runs for file in run.iterdir())
    tenth = max(len(sizes) // 10, 1)
    early, late = statistics.median(sizes[tenth : 2 * tenth]), statistics.median(sizes[-tenth:])
    return {
        "minutes": minutes,
        "exit_code": code,
        "steps_recorded": steps,
        "run_folders": len(runs),
        "recorded_mb": round(recorded / 2**20, 1),
        "resident_mb": [round(mb) for mb in sizes[:: max(len(sizes) // 12, 1)]],
        "most_mb": round(max(sizes)),
        "grown_mb": round(late - early, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--size", default="120x40")
    options = parser.parse_args()
    width, height = (int(n) for n in options.size.split("x"))
    print(json.dumps(soak(options.minutes, (width, height)), indent=1))


if __name__ == "__main__":
    main()
