"""How long `skewsim check` takes on a long log, and how much memory: `python benchmarks/check_speed.py [TOKENS ...]`.

Builds logs of 100 thousand, a million and four million tokens as verl's fields have them (JSON lines and parquet, 500
tokens a response, 8 responses a prompt, 256 a step, bfloat16's skew), and a file of metrics of 10,000 steps; runs the
command on each in a process of its own; prints wall seconds, processor seconds and peak memory of each, as Markdown.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

TOKENS = (100_000, 1_000_000, 4_000_000)
LENGTH, GROUP, BATCH, VOCABULARY, SIGMA = 500, 8, 256, 30_000, 0.06
STEPS = 10_000


def rows(tokens: int) -> Iterator[dict[str, Any]]:
    """Sequences of a log as verl names its fields."""
    rng, done, number = np.random.default_rng(0), 0, 0
    while done < tokens:
        count = int(rng.integers(LENGTH // 2, LENGTH * 3 // 2))
        engine = -rng.exponential(0.4, count)
        trainer = np.minimum(engine + rng.normal(0, SIGMA, count) * (1 - np.exp(engine)), 0.0)
        yield {
            "prompts": [1, 2, number // GROUP],
            "responses": rng.integers(0, VOCABULARY, count).tolist(),
            "rollout_log_probs": engine.round(6).tolist(),
            "old_log_probs": trainer.round(6).tolist(),
            "response_mask": [1] * count,
            "uid": f"p{number // GROUP}",
            "step": number // BATCH,
        }
        done, number = done + count, number + 1


def write_json(path: Path, tokens: int) -> Path:
    with open(path, "w") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows(tokens))
    return path


def write_parquet(path: Path, tokens: int) -> Path:
    """A row group for every batch, as a trainer that appends step by step writes it."""
    writer, batch = None, []
    for row in rows(tokens):
        batch.append(row)
        if len(batch) == BATCH:
            table = pyarrow.Table.from_pylist(batch)
            writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            batch = []
    table = pyarrow.Table.from_pylist(batch or [next(rows(1))])
    writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
    writer.write_table(table)
    writer.close()
    return path


def write_metrics(path: Path) -> Path:
    rng = np.random.default_rng(1)
    with open(path, "w") as handle:
        for step in range(STEPS):
            k3 = float(1e-3 * np.exp(rng.normal(0, 0.1)))
            names = {"rollout_corr/k3_kl": k3, "rollout_corr/kl": k3 * 1.01, "response_length/mean": 1200.0}
            handle.write(json.dumps({"step": step, "data": names}) + "\n")
    return path


def run(path: Path) -> tuple[float, float, float, str]:
    """(wall seconds, processor seconds, peak memory in MB, status) of a check in a process of its own."""
    started = time.perf_counter()
    said = path.with_suffix(".out")
    with open(said, "wb") as out:
        words = [sys.executable, "-m", "skewsim", "check", str(path), "--json"]
        actions = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1)]
        process = os.posix_spawn(sys.executable, words, environment(path.parent), file_actions=actions)
        _, _, usage = os.wait4(process, 0)
    wall, busy = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    return wall, busy, usage.ru_maxrss / 1024, json.loads(said.read_text())["status"]


def environment(folder: Path) -> dict[str, str]:
    """This process's, with compiled modules kept as those of an installed package are."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}


def main() -> None:
    sizes = tuple(map(int, sys.argv[1:])) or TOKENS
    print(
        "| what | tokens | file, MB | wall seconds | processor seconds | peak MB | status |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(write_json(folder / "first.jsonl", 1000))
        for tokens in sizes:
            for write, suffix in ((write_json, "jsonl"), (write_parquet, "parquet")):
                path = write(folder / f"{tokens}.{suffix}", tokens)
                report(f"verl, {suffix}", f"{tokens:,}", path)
                path.unlink()
        report(f"metrics of {STEPS:,} steps", "", write_metrics(folder / "metrics.jsonl"))


def report(what: str, tokens: str, path: Path) -> None:
    wall, busy, memory, status = run(path)
    size = path.stat().st_size / 1e6
    print(f"| {what} | {tokens} | {size:.0f} | {wall:.1f} | {busy:.1f} | {memory:.0f} | {status} |", flush=True)


if __name__ == "__main__":
    main()
