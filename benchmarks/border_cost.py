"""What two source trees take for the same three things: `skewsim --help`, an import, and training with checkpoints.

    python benchmarks/border_cost.py BEFORE [AFTER] [--repeats 7] [--steps 60] [--write docs/robustness.md]

BEFORE and AFTER are checkouts (`git worktree add PLACE COMMIT`); AFTER is this one by default. The two take turns, so
that other work on the machine slows both. A row has the least time of each and the ratio of the two, and the median
ratio of two turns that follow each other. With --write, the table is put between the two marks in that file.

- `skewsim --help`: processor seconds of a new process, ten in each turn.
- import: processor seconds of a new process that turns a million tokens of verl's JSON lines into a token table.
- step: a step of `v0_reference` in a run folder with its checkpoint, two processes that take turns step by step:
  processor seconds; seconds by the clock; and by the clock where `os.fsync` does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from import_speed import FORMATS, LENGTH, sequence

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 1_000_000
BEGIN, END = "<!-- cost table: begin -->", "<!-- cost table: end -->"
STEPS = """
import json, os, sys, time
from pathlib import Path
from skewsim.learn.trainer import Trainer
from skewsim.runs.recording import RunFolder, record
from skewsim.scenarios import SCENARIOS

if sys.argv[2] == "unsynced":
    os.fsync = lambda number: None
scenario = SCENARIOS["v0_reference"].scenario("v0_reference")
trainer = Trainer(scenario, seeds=(0,))
steps = record(trainer, RunFolder(Path(sys.argv[1]), scenario, seeds=(0,)), steps=scenario.steps)
for _ in sys.stdin:
    began = time.process_time(), time.perf_counter()
    next(steps)
    print(json.dumps([time.process_time() - began[0], time.perf_counter() - began[1]]), flush=True)
"""
"""A program that does a step with its checkpoint for every line that it is sent, and says what it took."""
Pair = tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    trees = (asked.before.resolve(), asked.after.resolve())
    lines = ["| | before, s | after, s | ratio | median ratio of turns |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as place:
        for name, pairs in measured(trees, Path(place), asked.repeats, asked.steps):
            lines.append(row(name, pairs))
            print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines)
    print(text)
    if asked.write:
        before, _, rest = asked.write.read_text().partition(BEGIN)
        asked.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


def measured(trees: tuple[Path, Path], folder: Path, repeats: int, steps: int) -> Iterator[tuple[str, list[Pair]]]:
    """The name of each measurement, and its pairs of seconds: before, after."""
    log = written_log(folder)
    yield (
        "`skewsim --help`",
        turns(lambda tree: min(seconds(tree, folder, ["--help"]) for _ in range(10)), trees, repeats),
    )
    yield "import of a million tokens", turns(lambda tree: importing(tree, folder, log), trees, repeats)
    taken = stepping(trees, folder, steps, "synced")
    yield "a training step with its checkpoint", [(before[0], after[0]) for before, after in taken]
    yield "the same by the clock", [(before[1], after[1]) for before, after in taken]
    taken = stepping(trees, folder, steps, "unsynced")
    yield "by the clock, without fsync", [(before[1], after[1]) for before, after in taken]


def turns(job: Callable[[Path], float], trees: tuple[Path, Path], repeats: int) -> list[Pair]:
    return [(job(trees[0]), job(trees[1])) for _ in range(repeats)]


def row(name: str, pairs: list[Pair]) -> str:
    before, after = (min(column) for column in zip(*pairs, strict=True))
    middle = statistics.median(second / first for first, second in pairs)
    return f"| {name} | {before:.4f} | {after:.4f} | {after / before:.2f} | {middle:.2f} |"


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


def stepping(trees: tuple[Path, Path], folder: Path, steps: int, how: str) -> list[tuple[Pair, Pair]]:
    """Processor seconds and seconds by the clock of each step, in both trees."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as out,
        stepper(trees[0], f"{out}/before", how) as before,
        stepper(trees[1], f"{out}/after", how) as after,
    ):
        return [(before(), after()) for _ in range(steps + 2)][2:]


@contextmanager
def stepper(tree: Path, run: str, how: str) -> Iterator[Callable[[], Pair]]:
    """A process that trains in a tree, one step for each call."""
    words = [sys.executable, "-c", STEPS, run, how]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=environment(tree), cwd=Path(run).parent, stdin=pipe, stdout=pipe, text=True) as it:
        assert it.stdin is not None
        assert it.stdout is not None
        sender, answers = it.stdin, it.stdout

        def step() -> Pair:
            sender.write("\n")
            sender.flush()
            processor, clock = json.loads(answers.readline())
            return processor, clock

        yield step
        it.kill()


def environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def seconds(tree: Path, folder: Path, words: list[str]) -> float:
    """Processor seconds of a command run from a source tree."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "skewsim", *words]
    done = subprocess.run(command, env=environment(tree), cwd=folder, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
