"""prime-rl: what its trainer exports for every token, and the traces of its rollouts.

- `token_exports/step_N/rank_R.jsonl` (`trainer.enable_token_export = true`): a sequence a line with `loss_mask`,
  `inference_logprobs` (engine), `trainer_logprobs`; both numbers (src/prime_rl/trainer/rl/token_export.py).
- `rollouts/step_N/<kind>/<subset>/traces.jsonl`: an episode a line, `traces[].nodes` of `token_ids`, `mask`,
  `logprobs`; `run.work.policy` is the span of weight versions (src/prime_rl/monitors/file.py; verifiers/v1/graph.py).
- Older: `train_rollouts.jsonl` with `nodes` or `trajectory[].tokens` on top; flat training samples.
"""

from __future__ import annotations

import re
import reprlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness.log_files import read_rows
from harness.logs.rows import (
    Context,
    Format,
    Row,
    field_of,
    fields,
    flags,
    is_whole,
    numbers,
    places,
    same_length,
    settings,
    spread,
    whole,
    whole_sequence,
)
from skewsim.errors import FileFormatError
from skewsim.skew.sequences import SequenceRecord

EXPORT = "prime-rl's token export has both numbers: trainer.enable_token_export = true, then import token_exports/"


def read_export(row: Row, context: Context) -> Iterator[SequenceRecord]:
    mask = flags(row["loss_mask"], "loss_mask")
    if _given_text(row):
        context.notes.say("a sequence that no engine sampled (cross entropy only) is left out")
        return
    yield whole_sequence(
        whole(row["token_ids"], "token_ids"),
        numbers(row["inference_logprobs"], "inference_logprobs"),
        mask,
        trainer=numbers(row["trainer_logprobs"], "trainer_logprobs"),
        settings=settings(row),
        places=places(row),
    )


def _given_text(row: Row) -> bool:
    """Whether no token of a sequence belongs to a component of the loss that was sampled; null is the default, 1."""
    rl, reference = (row.get(name) or [None] for name in ("rl_weights", "ref_kl_weights"))
    return rl[0] is not None and not any(rl) and not any(reference)


def join_exports(files: list[Path]) -> Iterator[tuple[Path, Any]]:
    """The rows of all ranks and steps; FileFormatError where a step lacks a rank that the others have."""
    ranks: dict[Path, dict[int, Path]] = defaultdict(dict)
    for file in files:
        if name := re.fullmatch(r"rank_(\d{1,4})\.jsonl", file.name):
            ranks[file.parent][int(name[1])] = file
    expected = _expected({rank for step in ranks.values() for rank in step})
    for folder, step in sorted(ranks.items()):
        if missing := sorted(expected - set(step)):
            raise FileFormatError(
                f"prime-rl log {folder}: rank_{missing[0]}.jsonl is missing; give a single file to import a part"
            )
    for file in files:
        for row in read_rows(file):
            yield file, row


def _expected(seen: set[int]) -> set[int]:
    """All ranks that export: with context parallelism only every n-th does, beginning with 0."""
    others = sorted(seen | {0})
    stride = min(np.diff(others), default=1)
    return set(range(0, others[-1] + 1, int(stride)))


def read_episode(row: Row, context: Context) -> Iterator[SequenceRecord]:
    work = (row.get("run") or {}).get("work") or {}
    policy = work.get("policy") or {}
    span = (policy.get("start"), policy.get("end"))
    version = span[0] if span[0] == span[1] and is_whole(span[0]) else None
    if version is None and all(map(is_whole, span)):
        context.notes.say(
            f"weight versions {span[0]} to {span[1]} within an episode: which token has which is not logged"
        )
    group = (row.get("group") or {}).get("id")
    for trace in field_of(row, "traces", list):
        for record in _branches(field_of(trace, "nodes", list)):
            count = len(record.tokens)
            yield SequenceRecord(
                record.tokens,
                record.engine_logprobs,
                weight_versions=None if version is None else np.full(count, version),
                mask=record.mask,
                prompt_tokens=record.prompt_tokens,
                prompt_key=group,
                places=places(work),
            )


def join_episodes(files: list[Path]) -> Iterator[tuple[Path, Any]]:
    """The rows of what was trained on: `all` holds the `effective` episodes again, and `eval` no training."""
    for wanted, other in (("train", "eval"), ("effective", "all")):
        if any(wanted in file.parts for file in files):
            files = [file for file in files if other not in file.parts[-3:]]
    for file in files:
        for row in read_rows(file):
            yield file, row


def read_trace(row: Row, context: Context) -> Iterator[SequenceRecord]:
    if row.get("nodes") is not None:
        yield from _branches(field_of(row, "nodes", list))
        return
    steps = [step.get("tokens") for step in row["trajectory"]] if row.get("trajectory") is not None else [row]
    for step in steps:
        if step:
            yield SequenceRecord(
                tokens=step["completion_ids"],
                engine_logprobs=step["completion_logprobs"],
                mask=step.get("completion_mask"),
                prompt_tokens=step.get("prompt_ids"),
                settings=settings(row) | settings(step),
                places=places(row),
            )


def read_sample(row: Row, context: Context) -> Iterator[SequenceRecord]:
    mask = flags(row["mask"], "mask")
    yield whole_sequence(
        whole(row["token_ids"], "token_ids"),
        spread(numbers(row["logprobs"], "logprobs"), mask),
        mask,
        places=places(row),
    )


def _branches(nodes: list[Row]) -> Iterator[SequenceRecord]:
    """Every root-to-leaf path is a sequence; a message shared by several is counted in the first."""
    parents = [_parent(index, node) for index, node in enumerate(nodes)]
    counted: set[int] = set()
    for leaf in sorted(set(range(len(nodes))) - set(parents)):
        path = [leaf]
        while (parent := parents[path[-1]]) is not None:
            path.append(parent)
        path.reverse()
        parts = [_message(nodes[index]) for index in path]
        sampled = np.concatenate([mask for _, _, mask in parts])
        fresh = np.concatenate([mask & (index not in counted) for index, (_, _, mask) in zip(path, parts, strict=True)])
        counted.update(path)
        if fresh.any():
            ids, given = (np.concatenate([part[column] for part in parts]) for column in (0, 1))
            start = int(np.argmax(sampled))
            yield SequenceRecord(ids[start:], given[start:], mask=fresh[start:], prompt_tokens=ids[:start])


def _parent(index: int, node: Row) -> int | None:
    """A node's parent, which stands before it; so no path runs in a circle."""
    parent = node.get("parent")
    if parent is not None and not (is_whole(parent) and 0 <= parent < index):
        raise ValueError(
            f"node {index}: parent={reprlib.repr(parent)}; allowed: null or the number of a node before it"
        )
    return parent


def _message(node: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, logprobs and mask of a message."""
    ids = whole(node.get("token_ids") or [], "token_ids")
    mask = flags(node.get("mask") or [], "mask")
    given = spread(numbers(node.get("logprobs") or [], "logprobs"), mask)
    same_length(token_ids=ids, mask=mask)
    return ids, given, mask


FORMATS = (
    Format(
        "prime-rl",
        (fields("token_ids", "inference_logprobs", "trainer_logprobs"),),
        read_export,
        join=join_exports,
    ),
    Format("prime-rl traces", (fields("traces", "run"), fields("traces", "env")), read_episode, EXPORT, join_episodes),
    Format(
        "prime-rl rollouts",
        (fields("nodes"), fields("trajectory"), fields("completion_ids", "completion_logprobs")),
        read_trace,
        EXPORT,
    ),
    Format("prime-rl samples", (fields("token_ids", "mask", "logprobs"),), read_sample, EXPORT),
)
