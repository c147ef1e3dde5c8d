"""The fuzz of tests/fuzz as a table: for each kind of input how many were tried, and what went wrong.

    python benchmarks/fuzz_table.py [--inputs 2000] [--kinds logs,npz] [--seed 0] [--write docs/robustness.md]

Inputs are shared out over the kinds as in the daily tests (`COUNTS` of tests/fuzz/inputs.py). Each chunk of inputs runs
in a process of its own, so that a crash, a hang of more than 10 seconds or more than 2 GiB of memory is seen and ends
nothing else. With --write, the table is put between the two marks in that file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.fuzz.inputs import COUNTS, KINDS
from tests.fuzz.judge import COLUMNS

CHUNK = 100
BEGIN, END = "<!-- fuzz table: begin -->", "<!-- fuzz table: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    table = {}
    for kind in kinds:
        share = COUNTS[kind] / sum(COUNTS[each] for each in kinds)
        table[kind] = tried(kind, math.ceil(asked.inputs * share), asked.seed)
        print(f"{kind}: {dict(table[kind])}", file=sys.stderr, flush=True)
    text = "\n".join(lines(table))
    print(text)
    if asked.write:
        before, _, rest = asked.write.read_text().partition(BEGIN)
        asked.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    sys.exit(any(count for found in table.values() for name, count in found.items() if name != "tried"))


def tried(kind: str, count: int, seed: int) -> Counter[str]:
    """What came of the first `count` inputs of a kind; what went wrong is told on stderr."""
    found: Counter[str] = Counter()
    start = 0
    while start < count:
        stop = min(start + CHUNK, count)
        words = [sys.executable, "-m", "tests.fuzz.judge", kind, str(start), str(stop), str(seed)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
        for row in rows:
            found["tried"] += 1
            for what in row["wrong"]:
                found[what] += 1
                print(f"{kind} {row['number']}: {what}: {row['said']}", file=sys.stderr, flush=True)
        start += len(rows)
        if start < stop and done.returncode != 0:  # the process died of the input after those that it told of
            print(f"{kind} {start}: the process ended with {done.returncode}", file=sys.stderr, flush=True)
            found.update(["tried", "hangs" if done.returncode == HUNG else "crashes"])
            start += 1
    return found


HUNG = 75
"""Exit code of a chunk's process that ended itself because an input took too long and could not be interrupted."""


def lines(table: dict[str, Counter[str]]) -> list[str]:
    """The table in Markdown."""
    total = sum(table.values(), Counter())
    rows = [(kind.replace("_", " "), found) for kind, found in table.items()] + [("all", total)]
    return [
        "| what comes in | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
        *(f"| {name} | " + " | ".join(f"{found[column]:,}" for column in COLUMNS) + " |" for name, found in rows),
    ]


if __name__ == "__main__":
    main()
