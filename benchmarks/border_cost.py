"""What two source trees take for the same three things: `skewsim --help`, an import, and training with checkpoints.

    python benchmarks/border_cost.py BEFORE [AFTER] [--repeats 5]

BEFORE and AFTER are checkouts (`git worktree add PLACE COMMIT`); AFTER is this one by default. The two take turns, each
time in a new process; processor seconds are compared by their minimum, with the ratio of the two.

help      `skewsim --help`
import    a million tokens of verl's JSON lines into a token table
step      20 steps of `v0_reference` in a run folder, with a checkpoint after each, above a run of 2 steps
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from import_speed import FORMATS, LENGTH, sequence

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    trees = {"before": asked.before.resolve(), "after": asked.after.resolve()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        log = written_log(folder)
        jobs = {
            "help": lambda tree: min(seconds(tree, folder, ["--help"]) for _ in range(10)),
            "import": lambda tree: importing(tree, folder, log),
            "step": lambda tree: (training(tree, folder, 22) - training(tree, folder, 2)) / 20,
        }
        for name, job in jobs.items():
            least = dict.fromkeys(trees, float("inf"))
            for _ in range(asked.repeats):
                for which, tree in trees.items():
                    least[which] = min(least[which], job(tree))
            ratio = least["after"] / least["before"]
            print(
                f"{name}: {least['before']:.4f} s before, {least['after']:.4f} s after, ratio {ratio:.3f}", flush=True
            )


def written_log(folder: Path) -> Path:
    """A log of a million tokens in the first format of `import_speed`."""
    suffix, row = next(iter(FORMATS.values()))
    path = folder / f"log.{suffix}"
    with path.open("w") as file:
        for _ in range(TOKENS // LENGTH):
            file.write(json.dumps(row(sequence())) + "\n")
    return path


def importing(tree: Path, folder: Path, log: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        return seconds(tree, folder, ["import", str(log), "--out", f"{out}/table.npz"])


def training(tree: Path, folder: Path, steps: int) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = ["run", "v0_reference", "--steps", str(steps), "--out", f"{out}/run", "--json"]
        return seconds(tree, folder, words)


def seconds(tree: Path, folder: Path, words: list[str]) -> float:
    """Processor seconds of a command run from a source tree."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "skewsim", *words], env=environment, cwd=folder, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
