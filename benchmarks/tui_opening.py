"""The runs of the first screen: the reference, initial V1, and initial V1 with all fixes (key 5) from some step on.

    python benchmarks/tui_opening.py [STEPS] [--objective NAME]     # 80 steps, three seeds: about three minutes
    python benchmarks/tui_opening.py 200 --objective reinforce --beta 0 --seeds 5

Prints each seed's reward over the last sixteen steps, then the mean over the seeds for every ten steps.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from skewsim.learn.trainer import train
from skewsim.settings import Scenario
from tui.controls import FIXES
from tui.lab import OPENING, initial_v1_for, opening, reference_for
from tui.series import Series


def rewards(
    scenario: Scenario, seeds: tuple[int, ...], steps: int, toggled: Scenario | None = None, at: int = -1
) -> np.ndarray:
    """Rewards (seeds, steps) of a run whose settings change once."""
    series, training = Series(seeds), train(scenario, seeds=seeds)
    for step in range(steps):
        series.append(training.send(toggled) if step == at else next(training))
    return series.values("reward/mean")


def line(name: str, found: np.ndarray) -> str:
    last = found[:, -16:].mean(axis=1)
    tens = found.mean(axis=0)[: found.shape[1] // 10 * 10].reshape(-1, 10).mean(axis=1)
    return f"{name:<20} {' '.join(f'{v:.2f}' for v in last)}   | {' '.join(f'{v:.2f}' for v in tens)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int, nargs="?", default=80)
    parser.add_argument("--objective", default=OPENING)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--beta", type=float, help="another KL penalty than the opening's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, seeds = arguments.steps, tuple(range(arguments.seeds))
    yours = opening(arguments.objective).with_values({"steps": steps})
    if arguments.beta is not None:
        yours = yours.with_values({"trainer.beta": arguments.beta})
    print(line("reference", rewards(reference_for(yours), seeds, steps)), flush=True)
    print(line("initial V1", rewards(initial_v1_for(yours), seeds, steps)), flush=True)
    mended = yours
    for fix in FIXES:
        mended = fix.moved(mended, 1)
    for at in (20, 50):
        print(line(f"all four at {at}", rewards(yours, seeds, steps, mended, at)), flush=True)
    for names in ((0,), (1,), (2,), (1, 2)):
        mended = yours
        for number in names:
            mended = FIXES[number].moved(mended, 1)
        print(line(f"{'+'.join(FIXES[n].label for n in names)}"[:20], rewards(mended, seeds, steps)), flush=True)


if __name__ == "__main__":
    main()
