"""Checks the lessons' claims about the curves against fresh runs.

    python benchmarks/tui_lessons.py [--seeds 5] [--lesson NAME]

A claim says that, over the last tenth of a run, a metric under the left settings exceeds that under the right ones by
at least a stated margin. It holds if this is true of the mean over the seeds, and is called clear if it is true of
every seed. Prints a line for each claim; exit code 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from skewsim.learn.trainer import train
from skewsim.records import last_tenth
from skewsim.settings import Scenario
from tui.lesson import lesson_names, load_lesson


def finals(values: Mapping[str, Any], metric: str, *, steps: int, seeds: tuple[int, ...]) -> np.ndarray:
    """Each seed's mean of a metric over the last tenth of its steps."""
    scenario = Scenario(steps=steps).with_values(dict(values))
    rows: dict[int, list[float]] = {seed: [] for seed in seeds}
    for record in last_tenth((row for step in train(scenario, seeds=seeds) for row in step), steps):
        value = record.metrics[metric]
        if value is not None:
            rows[record.seed].append(value)
    return np.array([np.mean(rows[seed]) for seed in seeds])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lesson", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = tuple(range(options.seeds))
    failed = 0
    for name in [load_lesson(options.lesson).name] if options.lesson else lesson_names():
        for claim in load_lesson(name).claim:
            left, right = (finals(v, claim.metric, steps=claim.steps, seeds=seeds) for v in (claim.left, claim.right))
            gaps = left - right
            holds = bool(gaps.mean() > claim.by)
            failed += not holds
            figures = {
                "lesson": name,
                "claim": claim.says,
                "holds": holds,
                "clear": bool((gaps > 0).all()),
                "left": round(float(left.mean()), 5),
                "right": round(float(right.mean()), 5),
                "by": claim.by,
            }
            print(json.dumps(figures), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
