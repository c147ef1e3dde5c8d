"""slime and Miles: dumps of rollouts and of training data, which speak of the same sequences and are put together.

- slime: `--dump-details D`, or `--save-debug-rollout-data` and `--save-debug-train-data`: .pt files of `samples` with
  `tokens`, `response_length(s)`, `loss_mask(s)`, `rollout_log_probs` (engine), `log_probs` (trainer, train dump only),
  `weight_versions`, `group_index` (rollout dump only), `data_parallel_rank` (train dump only); a train sample names its
  place in the rollout dump in `rollout_position` (slime/observability/train_data_utils.py, slime/utils/types.py). With
  `--use-rollout-routing-replay` the rollout dump has `rollout_routed_experts`: (tokens - 1, layers, k), zeros in layers
  that are no mixtures.
- Miles: the train dump is a file for each rank: columns under `rollout_data`, of which the logprobs may be this rank's
  share of a sequence under context parallelism (miles/utils/train_dump_utils.py; the shares as in
  miles/backends/training_utils/cp_utils.py); `dashboard_columns/rollout_N.parquet` has the engine's numbers only
  (miles/ray/rollout/debug_data.py).
"""

from __future__ import annotations

import reprlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.log_files import read_rows
from harness.logs.rows import Context, Format, Row, fields, first, flags, is_whole, places, settings, whole
from skewsim.errors import FileFormatError
from skewsim.skew.sequences import SequenceRecord

MOST_RANKS = 4096
SHARED_OUT = ("rollout_log_probs", "log_probs")
"""What context parallelism shares out among ranks."""
OF_ROLLOUT = ("group_index", "weight_versions", "rollout_routed_experts")
"""What only the rollout dump says of a sequence."""


def read(row: Row, context: Context) -> Iterator[SequenceRecord]:
    tokens = whole(row["tokens"], "tokens")
    length = first(row, "response_length", "response_lengths")
    if not (is_whole(length) and 0 <= length <= len(tokens)):
        raise ValueError(f"response_length={reprlib.repr(length)}, but there are {len(tokens)} tokens")
    start = len(tokens) - int(length)
    if row.get("rollout_log_probs") is None:
        raise ValueError("rollout_log_probs is missing; the run needs --get-mismatch-metrics or --use-tis")
    given = row.get("weight_versions")
    versions = {str(version) for version in ([] if given is None else given) if isinstance(version, int | str)}
    known = len(versions) == 1 and next(iter(versions)).isdigit()  # one entry per engine call, not per token
    if len(versions) > 1:
        context.notes.say("a sequence with several weight versions: which token has which is not logged")
    mask = first(row, "loss_mask", "loss_masks")
    yield SequenceRecord(
        tokens=tokens[start:],
        engine_logprobs=row["rollout_log_probs"],
        trainer_logprobs=row.get("log_probs"),
        weight_versions=np.full(int(length), int(versions.pop())) if known else None,
        mask=None if mask is None else flags(mask, "loss_mask"),
        prompt_tokens=tokens[:start],
        prompt_key=row.get("group_index"),
        settings=settings(row),
        places=places(row, step=row.get("rollout_id")),
        engine_routes=_routes(row, int(length), context),
    )


def _routes(row: Row, tokens: int, context: Context) -> Any:
    """The engine's routes, if there are those of all the response's tokens."""
    routes = row.get("rollout_routed_experts")
    if routes is None or (np.ndim(routes) == 3 and len(routes) >= tokens):
        return routes
    context.notes.say("rollout_routed_experts of another shape than (tokens - 1, layers, experts of a token): left out")
    return None


def join(files: list[Path]) -> Iterator[tuple[Path, Any]]:
    """Each sequence once, with what all dumps of its rollout say of it; a rollout at a time."""
    if len(training := [file for file in files if not file.name.startswith("eval_")]):
        files = training
    by_rollout: dict[Any, list[Path]] = defaultdict(list)
    for file in files:
        head = next(read_rows(file), None)
        if isinstance(head, Mapping):
            by_rollout[head.get("rollout_id", _number(file))].append(file)
    for members in by_rollout.values():
        yield from _joined(members)


def _number(file: Path) -> Any:
    """The rollout's number in the name of a file that does not hold it, as in rollout_4.parquet."""
    digits = "".join(letter if letter.isdigit() else " " for letter in file.stem).split()
    return int(digits[-1]) if digits else file.stem


def _joined(files: list[Path]) -> Iterator[tuple[Path, Any]]:
    rolled: list[tuple[Path, Row]] = []
    trained: dict[Any, list[tuple[Path, Row]]] = defaultdict(list)
    for file in files:
        for number, row in enumerate(read_rows(file)):
            if "response_lengths" in row:
                trained[_identity(row, number)].append((file, row))
            else:
                rolled.append((file, row))
    if not trained:
        yield from rolled
        return
    of_index = {row["index"]: row for _, row in rolled if is_whole(row.get("index"))}
    in_order = [row for _, row in rolled if row.get("index") is not None or row.get("response") is not None]
    for rows in trained.values():
        file, row = rows[0]
        yield file, dict(_rollout_of(file, row, of_index, in_order)) | _whole(rows)


def _identity(row: Row, number: int) -> Any:
    """Equal on all ranks that hold the same sequence; where nothing numbers them, what they hold tells."""
    index = first(row, "sample_index", "sample_indices", "rollout_position")
    if index is not None:
        return int(index)
    return np.asarray(row["tokens"]).tobytes(), number


def _rollout_of(file: Path, row: Row, of_index: Mapping[int, Row], in_order: list[Row]) -> Row:
    """What the rollout dump says of a train dump's sequence; empty without one."""
    position, index = row.get("rollout_position"), first(row, "sample_index", "sample_indices")
    if isinstance(position, int) and is_whole(position) and position < len(in_order):
        found = in_order[position]
    elif index is not None and int(index) in of_index:
        found = of_index[int(index)]
    else:
        return {}
    if not np.array_equal(found["tokens"], row["tokens"]):
        raise FileFormatError(
            f"slime log {file}: sequence {index}: the rollout dump and the train dump hold other tokens"
        )
    return {name: found[name] for name in OF_ROLLOUT if name in found}


def _whole(rows: list[tuple[Path, Row]]) -> dict[str, Any]:
    """One sequence of the rows that ranks hold of it: shares of context parallelism put together."""
    file, row = rows[0]
    result = dict(row)
    size = row.get("cp_size") or 1
    if not (is_whole(size) and 0 < size <= MOST_RANKS):
        raise ValueError(f"cp_size={reprlib.repr(size)}; allowed: a whole number from 1 to {MOST_RANKS}")
    for name in SHARED_OUT:
        held = {int(each.get("cp_rank") or 0): each[name] for _, each in rows if each.get(name) is not None}
        if held:
            result[name] = held[min(held)] if size == 1 else _put_together(file, row, name, held, size)
    return result


def _put_together(file: Path, row: Row, name: str, held: Mapping[int, Any], size: int) -> np.ndarray:
    """The shares of `size` ranks in one column: the sequence in 2 * size chunks, rank r has chunk r from either end.

    A logprob is computed one position before its token; the chunks are of equal length, counted with the prompt.
    """
    if missing := sorted(set(range(size)) - set(held)):
        raise FileFormatError(
            f"miles log {file}: {name} of cp_rank {missing[0]} is missing; all {size} ranks are needed"
        )
    total, response = int(row["total_lengths"]), int(row["response_lengths"])
    if not 0 < response <= total == len(row["tokens"]):
        raise ValueError(f"response_lengths={response}, total_lengths={total}, but {len(row['tokens'])} tokens")
    padded = total if row.get("qkv_format", "thd") == "thd" else row["max_seq_lens"]
    if not (is_whole(padded) and total <= padded < 2**40):
        raise ValueError(f"max_seq_lens={reprlib.repr(padded)}, but there are {total} tokens")
    chunk = np.arange(total - response - 1, total - 1) // -(-padded // (2 * size))
    owner = np.where(chunk < size, chunk, 2 * size - 1 - chunk)
    column = np.empty(response)
    for rank, share in held.items():
        if np.count_nonzero(owner == rank) != len(share):
            raise ValueError(
                f"{name}: cp_rank {rank} holds {len(share)} values, {np.count_nonzero(owner == rank)} are its share"
            )
        column[owner == rank] = share
    return column


_TRAINER = (
    "the train dump has the trainer's: --dump-details D, and --get-mismatch-metrics where log_probs is missing in it"
)
FORMATS = (
    Format("miles", (fields("tokens", "response_lengths", "cp_size"),), read, _TRAINER, join=join),
    Format("miles dashboard", (fields("tokens", "total_length", "rollout_log_probs"),), read, _TRAINER, join=join),
    Format("slime", (fields("tokens", "response_lengths"),), read, _TRAINER, join=join),
    Format("slime rollouts", (fields("tokens", "response_length"),), read, _TRAINER, join=join),
)
