"""How fast the terminal UI starts and quits, in a pseudo-terminal: first frame, first curve, end.

    python benchmarks/tui_start.py [--runs 5]

Each run is a fresh process. First frame: the charts' titles have been written. First curve: the first braille dots have
been written, with the real simulator. Quit: from the key to the process's end. Prints JSON with medians.
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

from tests.tui.terminal import TUI, Terminal


def measure() -> dict[str, float]:
    """One start, in seconds."""
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        with Terminal(TUI, home=Path(home), size=(120, 40)) as t:
            t.wait_for("KL (k3)")
            frame = time.perf_counter() - began
            while not any(0x2801 <= ord(c) <= 0x28FF for c in t.output.decode(errors="replace")):
                t.pump(0.02)
            curve = time.perf_counter() - began
            t.pump(2)
            began = time.perf_counter()
            t.type("q")
            assert t.end() == 0
            return {"first_frame_s": frame, "first_curve_s": curve, "quit_s": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = [measure() for _ in range(parser.parse_args().runs)]
    medians = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
    print(json.dumps({"median": medians, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
