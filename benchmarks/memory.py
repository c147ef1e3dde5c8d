"""Resident memory of an ensemble of 16 seeds of a scenario after a few steps, each scenario in a fresh process.

    python benchmarks/memory.py [SCENARIO ...]      (default: v0_reference initial_v1)

Prints the peak resident set size (`ru_maxrss`) after the steps, and how much of it importing torch alone takes.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")

import resource
import subprocess
import sys

MEMBERS, STEPS = 16, 12  # more steps than initial_v1's lag of 8, so that all published weights are held
UNIT = 1 if sys.platform == "darwin" else 1024


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT / 1e6


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        return one(sys.argv[2])
    for name in sys.argv[1:] or ("v0_reference", "initial_v1"):
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


def one(name: str) -> None:
    from skewsim.learn.trainer import Trainer
    from skewsim.scenarios import find_scenario

    imported = peak_mb()
    trainer = Trainer(find_scenario(name), seeds=range(MEMBERS))
    for _ in range(STEPS):
        trainer.step()
    print(f"{name}: {peak_mb():.0f} MB at most for {MEMBERS} members, {imported:.0f} MB of it imports")


if __name__ == "__main__":
    main()
