"""The ladder at each objective's own point: every rung, each fault alone, and how soon a fix that comes late is felt.

    python benchmarks/ladder_points.py [OBJECTIVE ...] [--seeds 8] [--steps 50] [--wide-clip] [--out runs/ladder-points]

Trains the rungs of `skewsim ladder` at the settings of `skewsim.scenarios.POINTS`, eight seeds at a time, and continues
initial V1 and each fault alone from the middle of the run with the fixes on. What is done is kept in --out, so that an
interrupted run goes on and more seeds can be added. Writes the tables into docs/ladder.md. With --wide-clip the ratio
may be anywhere from 1/8 to 8.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # set before torch is imported

import argparse
import json
import sys
from copy import deepcopy
from pathlib import Path
from textwrap import fill

import numpy as np
from numpy.typing import NDArray

from skewsim.learn.trainer import Trainer
from skewsim.runs.recording import write_json
from skewsim.scenarios import ALONE, LADDER, POINTS, ladder_scenarios
from skewsim.settings import Scenario
from skewsim.share import to_share

PAGE = Path(__file__).parent.parent / "docs" / "ladder.md"
KEYS = {"reward": "reward/mean", "entropy": "policy/entropy", "clip": "update/clip_rate", "k3": "skew/kl_k3"}
_WIDE = {"trainer.epsilon": 0.875, "trainer.epsilon_high": 7.0}
WIDE_CLIP = {"grpo": {"engine.temperature": 0.6, **_WIDE}}
"""Objective -> what --wide-clip sets; the others have the clip alone."""
CHUNK = 8
"""Seeds that are trained together."""
SMOOTH = 5
NEAR = 0.9
"""A mended run is back when its reward, over `SMOOTH` steps, is at least this share of the reference's."""
Runs = dict[str, NDArray[np.float64]]
"""Metric -> (seeds, steps)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objectives", nargs="*", default=list(POINTS))
    parser.add_argument("--seeds", type=int, default=CHUNK)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--wide-clip", action="store_true", help="let the ratio be anywhere from 1/8 to 8")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder-points"))
    options = parser.parse_args()
    where = " wide clip" if options.wide_clip else ""
    out = options.out / where.strip()
    out.mkdir(parents=True, exist_ok=True)
    for objective in options.objectives:
        values = WIDE_CLIP.get(objective, _WIDE) if options.wide_clip else {}
        text = section(objective, values, options.seeds, options.steps, out)
        print(text, flush=True)
        put(objective + where, text)


def section(objective: str, values: dict[str, float], seeds: int, steps: int, out: Path) -> str:
    """One objective's table as Markdown, at its point with further `values`."""
    rungs = ladder_scenarios(objective=objective, steps=steps, values=values, names=(*LADDER, *ALONE))
    reference, last = rungs[0], rungs[len(LADDER) - 1]
    assert last == reference.with_values({"name": last.name}), "all four fixes are the reference's settings"
    assert rungs[-1] == rungs[-6].with_values({"name": rungs[-1].name}), "without fix 4 alone is the rung below it"
    del rungs[-1], rungs[len(LADDER) - 1]
    found = {rung.name: collect(rung, reference, seeds, out) for rung in rungs}
    found[ALONE[-1]] = found[LADDER[-2]]
    point = ", ".join(f"`{path}={value}`" for path, value in (POINTS[objective] | values).items())
    lines = [
        fill(f"{objective.upper()}, {seeds} seeds, {steps} steps; settings of all rungs: {point}.", 120),
        "",
        "| rung | reward, first eighth | last eighth, mean (lowest to highest seed) | cost against the reference | entropy "
        "| clip rate | k3 | mended half way: back after |",
        "|---|---|---|---|---|---|---|---|",
        *(row(name, plain, mended, found["v0_reference"][0]) for name, (plain, mended) in found.items()),
    ]
    return "\n".join(lines)


def collect(rung: Scenario, reference: Scenario, seeds: int, out: Path) -> tuple[Runs, Runs | None]:
    """A rung's runs over all seeds, and those that are mended half way; trained unless they are kept already."""
    chunks = [list(range(first, min(first + CHUNK, seeds))) for first in range(0, seeds, CHUNK)]
    parts = [kept(rung, reference, chunk, out) for chunk in chunks]
    plain, mended = ([part[n] for part in parts] for n in (0, 1))
    return joined(plain), joined([m for m in mended if m is not None]) if all(mended) else None


def kept(rung: Scenario, reference: Scenario, seeds: list[int], out: Path) -> tuple[Runs, Runs | None]:
    """The runs in the folder, if they are of these settings; else they are trained and kept there."""
    path = out / f"{rung.trainer.objective}-{rung.name}-{seeds[0]}-{len(seeds)}.json"
    shares = [to_share(rung), to_share(reference)]
    data = json.loads(path.read_text()) if path.is_file() else {}
    if data.get("shares") != shares:
        print(f"{path.stem} ...", file=sys.stderr, flush=True)
        hurt = rung.name in ("initial_v1", "plus_inflight", *ALONE)
        plain, mended = train(rung, seeds, reference if hurt else None)
        data = {"shares": shares, "plain": plain, "mended": mended}
        write_json(path, data)
    return arrays(data["plain"]), arrays(data["mended"]) if data["mended"] else None


def train(rung: Scenario, seeds: list[int], fixed: Scenario | None) -> tuple[dict, dict | None]:  # type: ignore[type-arg]
    """A run's metrics by seed and step; and those of a copy that has `fixed`'s settings from the middle on."""
    trainer, half = Trainer(rung, seeds=seeds), rung.steps // 2
    first = steps_of(trainer, half)
    state = deepcopy(trainer.state()) if fixed is not None else None
    rest = steps_of(trainer, rung.steps - half)
    mended = None
    if fixed is not None:
        copy = Trainer(rung, seeds=seeds, state=state)
        copy.toggle(fixed.with_values({"name": rung.name}))
        mended = appended(first, steps_of(copy, rung.steps - half))
    return appended(first, rest), mended


def steps_of(trainer: Trainer, count: int) -> list[dict[int, dict[str, float | None]]]:
    """Each step's metrics by seed."""
    return [
        {r.seed: {name: r.metrics[key] for name, key in KEYS.items()} for r in trainer.step()} for _ in range(count)
    ]


def appended(*parts: list[dict[int, dict[str, float | None]]]) -> dict[str, list[list[float | None]]]:
    """Metric -> a list for each seed; None where a member has diverged."""
    steps = [step for part in parts for step in part]
    return {name: [[step.get(seed, {}).get(name) for step in steps] for seed in steps[0]] for name in KEYS}


def arrays(data: dict[str, list[list[float | None]]]) -> Runs:
    return {name: np.array(values, dtype=float) for name, values in data.items()}


def joined(parts: list[Runs]) -> Runs:
    return {name: np.concatenate([part[name] for part in parts]) for name in KEYS}


def row(name: str, plain: Runs, mended: Runs | None, reference: Runs) -> str:
    """A rung: its cost is the mean over the seeds of its distance to the same seed's reference, with two standard
    errors."""
    eighth = plain["reward"].shape[1] // 8
    first, last = plain["reward"][:, :eighth].mean(), plain["reward"][:, -eighth:].mean(1)
    cost = reference["reward"][:, -eighth:].mean(1) - last
    spread = 2 * cost.std(ddof=1) / len(cost) ** 0.5 if len(cost) > 1 else float("nan")
    half = slice(plain["reward"].shape[1] // 2, None)
    cells = [
        f"`{name}`",
        f"{first:.2f}",
        f"{last.mean():.2f} ({last.min():.2f} to {last.max():.2f})",
        "-" if plain is reference else f"{cost.mean():.3f} ± {spread:.3f}",
        f"{np.nanmean(plain['entropy'][:, -eighth:]):.2f}",
        *(beside(plain[key][:, half], reference[key][:, half], itself=plain is reference) for key in ("clip", "k3")),
        "-" if mended is None else back(mended, reference),
    ]
    return f"| {' | '.join(cells)} |"


def beside(values: NDArray[np.float64], reference: NDArray[np.float64], *, itself: bool) -> str:
    """A mean over the second half of the steps, and how many times the reference's it is (unless that is 0)."""
    value, theirs = np.nanmean(values), np.nanmean(reference)
    return f"{value:.3g}" if itself or theirs == 0 else f"{value:.3g} (x{value / theirs:.1f})"


def back(mended: Runs, reference: Runs) -> str:
    """After how many steps with the fixes the reward, meaned over seeds and `SMOOTH` steps, is near the reference's."""
    half = mended["reward"].shape[1] // 2
    curves = [runs["reward"].mean(0)[half:] for runs in (mended, reference)]
    ours, theirs = (np.convolve(curve, np.full(SMOOTH, 1 / SMOOTH), "valid") for curve in curves)
    near = np.flatnonzero(ours >= NEAR * theirs)
    end = f"{mended['reward'][:, -(half // 4) :].mean():.2f} at the end"
    return f"{near[0] + SMOOTH} steps; {end}" if len(near) else f"not within {len(curves[0])} steps; {end}"


def put(name: str, text: str) -> None:
    """Put a table between its two marks on the page."""
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    page = PAGE.read_text()
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
