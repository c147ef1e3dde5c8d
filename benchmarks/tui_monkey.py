"""Random keys, clicks, drags and resizes against the app with the real simulator, in a pseudo-terminal.

    python benchmarks/tui_monkey.py [--keys 2000] [--seed 0]

The exit code is 0 if the app did not crash, quit cleanly and left well-formed run folders.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tui.monkey import bother
from tests.tui.terminal import TUI, Terminal
from tui.folders import find_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, left, code, plays = random.Random(options.seed), options.keys, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        while left > 0 and not code:  # after a click on Quit the app is opened again
            plays += 1
            with Terminal((*TUI, "--out", str(home / "out"), "--hide", "measure"), home=home) as t:
                t.wait_for("computed: engine")
                left -= bother(t, rng, keys=left)
                code = t.end(seconds=60)
                if code:
                    print(t.output.decode(errors="replace")[-60000:], file=sys.stderr)
        runs = find_runs(home / "out")
        steps = 0
        for run in runs:
            rows = [json.loads(line) for line in (run / "steps.jsonl").read_bytes().split(b"\n")[:-1]]
            numbers = [row["step"] for row in rows]
            assert numbers == sorted(numbers), run
            steps += len(rows)
    print(
        json.dumps(
            {
                "keys": options.keys,
                "seed": options.seed,
                "exit_code": code,
                "plays": plays,
                "runs": len(runs),
                "records": steps,
            }
        )
    )
    sys.exit(code)


if __name__ == "__main__":
    main()
