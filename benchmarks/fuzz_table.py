"""The fuzz of tests/fuzz as a table: for each kind of input how many were tried, and what went wrong.

    python benchmarks/fuzz_table.py [--inputs 2000] [--minutes 60] [--kinds logs,npz] [--seed 0] [--write FILE]

Inputs are shared out over the kinds as in the daily tests (`COUNTS` of tests/fuzz/inputs.py), and tried in rounds over
all kinds until there are enough of them, or the minutes are over. Each chunk of inputs runs in a fork of this process,
so that a crash, a hang of more than 10 seconds or more than 2 GiB of memory is seen and ends nothing else. With
--write, the table is put between the two marks in that file (docs/robustness.md) after every round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import skewsim.learn.trainer  # noqa: F401 (each fork has it)
from tests.fuzz.inputs import COUNTS, KINDS
from tests.fuzz.judge import COLUMNS, judge

BEGIN, END = "<!-- fuzz table: begin -->", "<!-- fuzz table: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    end = time.monotonic() + 60 * asked.minutes
    table: dict[str, Counter[str]] = {kind: Counter() for kind in asked.kinds.split(",")}
    rounds = math.ceil(asked.inputs / sum(COUNTS[kind] for kind in table))
    for number in range(rounds):
        for kind, found in table.items():
            count = COUNTS[kind]
            found += tried(kind, number * count, (number + 1) * count, asked.seed)
        print(f"round {number + 1} of {rounds}: {dict(sum(table.values(), Counter()))}", file=sys.stderr, flush=True)
        if asked.write:
            put(lines(table), asked.write)
        if time.monotonic() > end:
            break
    print("\n".join(lines(table)))
    sys.exit(any(count for found in table.values() for name, count in found.items() if name != "tried"))


def put(text: list[str], path: Path) -> None:
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text("\n".join([before + BEGIN, *text, END + rest.partition(END)[2]]))


def tried(kind: str, start: int, stop: int, seed: int) -> Counter[str]:
    """What came of inputs of a kind; what went wrong is told on stderr."""
    found: Counter[str] = Counter()
    while start < stop:
        rows, status = forked(kind, start, stop, seed)
        for row in rows:
            found["tried"] += 1
            for what in row["wrong"]:
                found[what] += 1
                print(f"{kind} {row['number']}: {what}: {row['said']}", file=sys.stderr, flush=True)
        start += len(rows)
        if start < stop and status != 0:  # the process died of the input after those that it told of
            print(f"{kind} {start}: the process ended with {status}", file=sys.stderr, flush=True)
            found.update(["tried", "hangs" if status == HUNG else "crashes"])
            start += 1
    return found


def forked(kind: str, start: int, stop: int, seed: int) -> tuple[list[dict[str, Any]], int]:
    """What a fork of this process says of each input, and its exit code."""
    read, write = os.pipe()
    number = os.fork()
    if not number:
        os.close(read)
        os.dup2(write, 1)
        try:
            judge(kind, start, stop, seed)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with open(read) as said:
        rows = [json.loads(line) for line in said if line.startswith('{"')]
    return rows, os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


HUNG = 75
"""Exit code of a fork that ended itself because an input took too long and could not be interrupted."""


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
