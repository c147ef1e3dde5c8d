"""Time and memory of `skewsim import` for a log, compared with only reading the same file.

    python benchmarks/import_speed.py [TOKENS]

There is one log for each format, with sequences of 500 tokens. "parsing alone" is `json.loads` of every line, or
pyarrow's reading of every column, in the same process. Peak memory is that of a fresh process that imports the log,
minus that of one that imports the same modules and a log of one sequence.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from harness.logs import import_rollouts

LENGTH, PROMPT = 500, 20
RNG = np.random.default_rng(0)


def sequence() -> dict[str, Any]:
    engine = np.log(RNG.uniform(0.01, 1, LENGTH))
    return {
        "prompt": RNG.integers(0, 50_000, PROMPT).tolist(),
        "response": RNG.integers(0, 50_000, LENGTH).tolist(),
        "engine": engine.tolist(),
        "trainer": (engine + RNG.normal(0, 0.02, LENGTH)).tolist(),
    }


def _sequences(s: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_token_ids": s["prompt"],
        "token_ids": s["response"],
        "engine_logprobs": s["engine"],
        "trainer_logprobs": s["trainer"],
    }


def _trl(s: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_ids": s["prompt"],
        "completion_ids": s["response"],
        "sampling_per_token_logps": s["engine"],
        "old_per_token_logps": s["trainer"],
    }


def _verl(s: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompts": s["prompt"],
        "responses": s["response"],
        "response_mask": [1] * LENGTH,
        "rollout_log_probs": s["engine"],
        "old_log_probs": s["trainer"],
    }


def _pipelinerl(s: dict[str, Any]) -> dict[str, Any]:
    labels = [-100] * PROMPT + s["response"]
    return {"input_ids": s["prompt"] + s["response"], "labels": labels, "logprobs": s["engine"], "group_id": 0}


def _prime_rl(s: dict[str, Any]) -> dict[str, Any]:
    answer = {"token_ids": s["response"], "mask": [True] * LENGTH, "logprobs": s["engine"], "parent": 0}
    return {"nodes": [{"token_ids": s["prompt"], "mask": [False] * PROMPT, "logprobs": [0.0] * PROMPT}, answer]}


def _nemo_rl(s: dict[str, Any]) -> dict[str, Any]:
    zeros = [0.0] * PROMPT
    return {
        "token_ids": s["prompt"] + s["response"],
        "token_loss_mask": [0] * PROMPT + [1] * LENGTH,
        "generation_logprobs": zeros + s["engine"],
        "prev_logprobs": zeros + s["trainer"],
    }


FORMATS: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "sequences": ("jsonl", _sequences),
    "verl": ("jsonl", _verl),
    "trl": ("parquet", _trl),
    "pipelinerl": ("jsonl", _pipelinerl),
    "prime-rl": ("jsonl", _prime_rl),
    "nemo-rl": ("jsonl", _nemo_rl),
    "table": ("jsonl", lambda s: {}),
    "table, parquet": ("parquet", lambda s: {}),
}


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, row) in FORMATS.items():
            paths = [Path(folder) / f"{size}-{name.partition(',')[0]}.{suffix}" for size in (1, tokens // LENGTH)]
            for path, count in zip(paths, (1, tokens // LENGTH), strict=True):
                rows = long_rows(count) if name.startswith("table") else (row(sequence()) for _ in range(count))
                write(path, rows)
            plain, began = parsing(paths[1]), time.process_time()
            found = len(import_rollouts(paths[1]))
            seconds = time.process_time() - began
            memory = peak(paths[1]) - peak(paths[0])
            print(
                f"{name}: {found} tokens, {paths[1].stat().st_size / 1e6:.0f} MB {suffix}, {seconds:.2f} s of processor, "
                f"{seconds / plain:.2f} times parsing alone, {memory:.0f} MB above a log of one sequence",
                flush=True,
            )
            for path in paths:
                path.unlink()


def long_rows(sequences: int) -> Iterator[dict[str, Any]]:
    for number in range(sequences):
        s = sequence()
        for position in range(LENGTH):
            values = {"engine_logprob": s["engine"][position], "trainer_logprob": s["trainer"][position]}
            yield {"sequence": number, "position": position, "token": s["response"][position], **values}


def write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return
    with open(path, "w") as lines:
        for row in rows:
            lines.write(json.dumps(row) + "\n")


def parsing(path: Path) -> float:
    """Processor seconds for only reading the file."""
    began = time.process_time()
    if path.suffix == ".parquet":
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            del batch
    else:
        with open(path) as lines:
            for line in lines:
                json.loads(line)
    return time.process_time() - began


def peak(path: Path) -> float:
    """Peak resident MB of a fresh process that imports the log."""
    done = subprocess.run([sys.executable, __file__, "--peak", str(path)], capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        import_rollouts(Path(sys.argv[2]))
        # not ru_maxrss: it survives fork and exec, and would be this script's own
        print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)  # type: ignore[index]
    else:
        main()
