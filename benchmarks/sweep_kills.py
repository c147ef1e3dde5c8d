"""Kills a sweep again and again at random moments, resumes it, and compares it with an undisturbed one.

    python benchmarks/sweep_kills.py [KILLS] [WORKERS] [SEED]

Prints, for every kill, when it came and how many parts were there, and at the end whether all rows of all members equal
the undisturbed sweep's, and whether any process of a killed sweep was still alive 10 seconds later. A killed sweep that
had finished begins anew in another folder.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SWEEP = """
name = "kills"
steps = 12
seeds = 3
[set]
policy = "random"
task = {response_length = 4, pool_size = 4}
"trainer.num_prompts" = 2
"trainer.num_generations" = 2
[[axis]]
path = "engine.temperature"
values = [0.6, 0.7, 0.8, 0.9, 1.0]
[[axis]]
path = "trainer.learning_rate"
log_grid = {low = 1e-4, high = 1e-2, count = 4}
[adaptive]
most_seeds = 6
"""


def main(kills: int, workers: int, seed: int) -> int:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sweep.toml").write_text(SWEEP)
        began = time.monotonic()
        _finish(folder, "undisturbed", workers)
        took = time.monotonic() - began
        expected = _rows(folder / "undisturbed")
        print(f"undisturbed: {took:.1f} s, {expected.num_rows} rows")
        done, left, equal, rounds = 0, 0, True, 0
        while done < kills:
            out = f"out-{rounds}"
            rounds += 1
            while done < kills:
                wait = dice.uniform(0, took / 2)
                parts, survivors, finished = _kill(folder, out, workers, wait)
                if finished:
                    break
                done, left = done + 1, left + survivors
                print(f"kill {done}: after {wait:.1f} s, {parts} parts there, {survivors} processes left over")
            _finish(folder, out, workers)
            same = _rows(folder / out).equals(expected)
            equal &= same
            print(f"resumed to the end: {'equal' if same else 'DIFFERENT'}")
    print(
        f"{done} kills of {rounds} sweeps with {workers} workers: {'all equal' if equal else 'NOT equal'}, {left} left over"
    )
    return 0 if equal and not left else 1


def _command(out: str, workers: int) -> list[str]:
    words = ["sweep", "run", "sweep.toml", "--out", out, "--resume", "--workers", str(workers)]
    return [sys.executable, "-m", "skewsim", *words]


def _finish(folder: Path, out: str, workers: int) -> None:
    subprocess.run(_command(out, workers), cwd=folder, check=True, stderr=subprocess.DEVNULL)


def _kill(folder: Path, out: str, workers: int, wait: float) -> tuple[int, int, bool]:
    """Parts that were there, processes that were left over, and whether the sweep had finished before."""
    child = subprocess.Popen(_command(out, workers), cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        child.wait(wait)
        return 0, 0, True
    except subprocess.TimeoutExpired:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    parts = len(list((folder / out).glob("parts/*.parquet")))
    return parts, _left(child.pid), False


def _left(group: int) -> int:
    """1 if anything of a process group is alive after 10 seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return 0
        time.sleep(0.1)
    return 1


def _rows(folder: Path) -> Any:
    tables = [pq.read_table(path) for path in sorted((folder / "parts").glob("*.parquet"))]
    return pa.concat_tables(tables, promote_options="default").sort_by([("member", "ascending"), ("step", "ascending")])


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(given + [20, 1, 0][len(given) :])))
