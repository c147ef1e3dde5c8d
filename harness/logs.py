"""Rollouts that a training run has already logged, read into a TokenTable.

Each framework's own field names, from its public source:

- verl: keys of the training batch, `prompts`, `responses`, `response_mask`, `rollout_log_probs` (engine),
  `old_log_probs` (trainer) (`verl/utils/debug/metrics.py`, `ray_trainer.py`). Its `rollout_data_dir` dump holds
  text only and is refused with the setting that is needed.
- TRL: `completion_ids`, `completion_mask`, `prompt_ids`, `sampling_per_token_logps` (engine),
  `old_per_token_logps` (trainer) (`trl/trainer/grpo_trainer.py`), as extra columns of its completions parquet.
- PipelineRL: streams of `TrainingText` lists: `input_ids`, `labels` (-100: not sampled), `logprobs`,
  `metadata.model_version`, `group_id` (`pipelinerl/rollouts.py`, `pipelinerl/streams.py`).
- prime-rl: `rollouts/step_N/train_rollouts.jsonl`, a verifiers trace a line: `nodes` of `token_ids`, `mask`,
  `logprobs` (`verifiers/v1/graph.py`), or the older `trajectory[].tokens` of `completion_ids`,
  `completion_logprobs`; or its flat training samples (`prime_rl/transport/types.py`).
- slime: `--save-debug-rollout-data` and `--save-debug-train-data` (.pt) `samples` of `tokens`, `response_length`,
  `rollout_log_probs` (engine), `log_probs` (trainer), `weight_versions` (`slime/utils/types.py`).
- NeMo-RL: `train_data_step*.jsonl`: `token_ids`, `token_loss_mask`, `generation_logprobs` (engine),
  `prev_logprobs` (trainer); value i belongs to token i (`nemo_rl/algorithms/grpo.py`).
- sequences: skewsim's own JSON lines. table: any names, given by `columns`, a sequence or a token per row.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.log_files import log_files, read_rows
from skewsim.errors import FileFormatError, UserError
from skewsim.skew.sequences import SequenceRecord, build_table, parse_record
from skewsim.skew.tokens import TYPE_OF_COLUMN, TokenTable

Row = Mapping[str, Any]
IGNORED_LABEL = -100  # Hugging Face's "no loss here"
TEXT_ONLY = {
    "verl": "holds text only; set actor_rollout_ref.rollout.calculate_log_probs=True and log the batch keys responses, response_mask, rollout_log_probs, old_log_probs",
    "trl": "holds text only; log completion_ids, completion_mask, sampling_per_token_logps and old_per_token_logps as extra columns",
}


def import_rollouts(path: Path | str, *, format: str = "auto", columns: Mapping[str, str] | None = None) -> TokenTable:
    """A framework's log (a file, or a folder of them) as a TokenTable.

    `format` is one of `formats()` or "auto" (by field names). `columns` maps a name of ours to the log's:
    ``{"engine_logprob": "vllm_lp"}`` (one row a token) or ``{"engine_logprobs": "lps"}`` (one row a sequence);
    giving it means format "table". FileFormatError names file and row; UserError an unknown format or column.
    """
    files = log_files(Path(path))
    if columns:
        format = "table" if format == "auto" else format
    chosen = format if format != "auto" else detect_format(files[0])
    meta = {"source": Path(path).name, "imported_from": chosen}
    if chosen == "table" and _is_long(files[0], columns or {}):
        return _long_table(files, columns or {}, meta)
    return build_table(import_sequences(path, format=chosen, columns=columns), meta=meta)


def import_sequences(
    path: Path | str, *, format: str = "auto", columns: Mapping[str, str] | None = None
) -> Iterator[SequenceRecord]:
    """The same log as whole sequences with their prompts, one by one."""
    files = log_files(Path(path))
    chosen = format if format != "auto" else detect_format(files[0])
    reader = _reader(chosen, columns or {})
    for file in files:
        for number, row in enumerate(read_rows(file), start=1):
            try:
                yield from reader(row)
            except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
                reason = f"no field {error}" if isinstance(error, KeyError) else str(error).splitlines()[0][:160]
                raise FileFormatError(f"{chosen} log {file}, row {number}: {reason}") from None


def formats() -> list[str]:
    """The names `import_rollouts` knows."""
    return [*_READERS, "table"]


def detect_format(file: Path) -> str:
    """The format by the field names of the first row. FileFormatError if none fits."""
    row = next(read_rows(file), None)
    if row is None:
        raise FileFormatError(f"log {file}: no rows")
    probe = row[0] if isinstance(row, list) and row else row
    keys = set(probe) if isinstance(probe, Mapping) else set()
    for name, needed in _SIGNATURES.items():
        if any(set(option) <= keys for option in needed):
            return name
    for name, text_keys in (("verl", {"input", "output", "score"}), ("trl", {"prompt", "completion", "advantage"})):
        if text_keys <= keys:
            raise FileFormatError(f"{name} log {file}: {TEXT_ONLY[name]}")
    raise FileFormatError(
        f"log {file}: fields {', '.join(sorted(keys)[:8])} fit no known format; give format ({', '.join(formats())}) and columns"
    )


_SIGNATURES: dict[str, tuple[tuple[str, ...], ...]] = {
    "sequences": (("token_ids", "engine_logprobs"),),
    "verl": (("responses", "rollout_log_probs"),),
    "trl": (("completion_ids", "sampling_per_token_logps"),),
    "nemo-rl": (("generation_logprobs", "prev_logprobs"), ("token_ids", "generation_logprobs")),
    "slime": (("tokens", "rollout_log_probs"),),
    "pipelinerl": (("input_ids", "logprobs"),),
    "prime-rl": (("nodes",), ("trajectory",), ("completion_ids", "completion_logprobs")),
    "table": (("engine_logprob", "trainer_logprob"), ("sequence", "engine_logprob")),
}


# ----------------------------------------------------------------------------------- one reader per framework


def _sequences(row: Row) -> Iterator[SequenceRecord]:
    yield parse_record(row)


def _verl(row: Row) -> Iterator[SequenceRecord]:
    tokens = np.asarray(row["responses"])
    mask = row.get("response_mask", row.get("loss_mask"))
    attention = row.get("attention_mask")
    if mask is None and attention is not None:
        mask = attention
    prompt = None if row.get("prompts") is None else np.asarray(row["prompts"])
    if prompt is not None and attention is not None:  # left-padded
        prompt = prompt[np.asarray(attention[: len(prompt)], dtype=bool)]
    yield SequenceRecord(
        tokens=tokens,
        engine_logprobs=row["rollout_log_probs"],
        trainer_logprobs=row.get("old_log_probs"),
        mask=None if mask is None else np.asarray(mask, dtype=bool)[-len(tokens) :],
        prompt_tokens=prompt,
        prompt_key=row.get("uid"),
        settings=_settings(row),
    )


def _trl(row: Row) -> Iterator[SequenceRecord]:
    prompt = row.get("prompt_ids")
    if prompt is not None and row.get("prompt_mask") is not None:
        prompt = np.asarray(prompt)[np.asarray(row["prompt_mask"], dtype=bool)]
    yield SequenceRecord(
        tokens=row["completion_ids"],
        engine_logprobs=row["sampling_per_token_logps"],
        trainer_logprobs=row.get("old_per_token_logps"),
        mask=_first(row, "tool_mask", "completion_mask"),
        prompt_tokens=prompt,
        prompt_key=row["prompt"] if isinstance(row.get("prompt"), str) else None,
        settings=_settings(row),
    )


def _pipelinerl(row: Row | list[Row]) -> Iterator[SequenceRecord]:
    if isinstance(row, list):
        for text in row:
            yield from _pipelinerl(text)
        return
    ids, given = np.asarray(row["input_ids"]), np.asarray(row["logprobs"], dtype=float)
    labels = row.get("labels")
    sampled = np.arange(len(ids)) >= len(ids) - len(given)
    if labels is not None and len(labels) == len(ids):
        sampled = np.asarray(labels) != IGNORED_LABEL
    start = int(np.argmax(sampled)) if sampled.any() else len(ids)
    version = (row.get("metadata") or {}).get("model_version", row.get("model_version"))
    yield SequenceRecord(
        tokens=ids[start:],
        engine_logprobs=_spread(given, sampled)[start:],
        weight_versions=None if version is None else np.full(len(ids) - start, int(version)),
        mask=sampled[start:],
        prompt_tokens=ids[:start],
        prompt_key=row.get("group_id"),
        settings=_settings(row),
    )


def _prime_rl(row: Row) -> Iterator[SequenceRecord]:
    if row.get("nodes") is not None:
        yield from _branches(row["nodes"])
        return
    steps = [step.get("tokens") for step in row["trajectory"]] if row.get("trajectory") is not None else [row]
    for step in steps:
        if step:
            yield SequenceRecord(
                tokens=step["completion_ids"],
                engine_logprobs=step["completion_logprobs"],
                mask=step.get("completion_mask"),
                prompt_tokens=step.get("prompt_ids"),
                settings=_settings(row) | _settings(step),
            )


def _branches(nodes: list[Row]) -> Iterator[SequenceRecord]:
    """Every root-to-leaf path is a sequence; a message shared by several is counted in the first."""
    parents = {node.get("parent") for node in nodes}
    counted: set[int] = set()
    for leaf in (index for index in range(len(nodes)) if index not in parents):
        path: list[int] = []
        at: int | None = leaf
        while at is not None:
            path.append(at)
            at = nodes[at].get("parent")
        path.reverse()
        ids = np.concatenate([np.asarray(nodes[i].get("token_ids") or [], dtype=int) for i in path])
        masks = [np.asarray(nodes[i].get("mask") or [], dtype=bool) for i in path]
        given = np.concatenate(
            [
                _spread(np.asarray(nodes[i].get("logprobs") or [], dtype=float), m)
                for i, m in zip(path, masks, strict=True)
            ]
        )
        fresh = np.concatenate([m & (i not in counted) for i, m in zip(path, masks, strict=True)])
        counted.update(path)
        if fresh.any():
            start = int(np.argmax(np.concatenate(masks)))
            yield SequenceRecord(ids[start:], given[start:], mask=fresh[start:], prompt_tokens=ids[:start])


def _slime(row: Row) -> Iterator[SequenceRecord]:
    tokens = np.asarray(row["tokens"])
    length = int(_first(row, "response_length", "response_lengths"))
    versions = {str(version) for version in row.get("weight_versions") or []}
    known = len(versions) == 1 and next(iter(versions)).isdigit()  # one entry per engine call, not per token
    if row.get("rollout_log_probs") is None:
        raise ValueError("rollout_log_probs is missing; the run needs --use-tis or --get-mismatch-metrics")
    yield SequenceRecord(
        tokens=tokens[len(tokens) - length :],
        engine_logprobs=row["rollout_log_probs"],
        trainer_logprobs=row.get("log_probs"),
        weight_versions=np.full(length, int(versions.pop())) if known else None,
        mask=_first(row, "loss_mask", "loss_masks"),
        prompt_tokens=tokens[: len(tokens) - length],
        prompt_key=row.get("group_index"),
        settings=_settings(row),
    )


def _nemo_rl(row: Row) -> Iterator[SequenceRecord]:
    length = int(row.get("input_lengths") or len(row["generation_logprobs"]))
    engine = np.asarray(row["generation_logprobs"], dtype=float)[:length]
    mask = row.get("token_loss_mask")
    sampled = engine != 0 if mask is None else np.asarray(mask, dtype=bool)[:length]
    tokens = np.full(length, -1) if row.get("token_ids") is None else np.asarray(row["token_ids"])[:length]
    start = int(np.argmax(sampled)) if sampled.any() else length
    trainer = row.get("prev_logprobs")
    yield SequenceRecord(
        tokens=tokens[start:],
        engine_logprobs=engine[start:],
        trainer_logprobs=None if trainer is None else np.asarray(trainer, dtype=float)[start:length],
        mask=sampled[start:],
        prompt_tokens=tokens[:start] if row.get("token_ids") is not None else None,
        settings=_settings(row),
    )


_READERS: dict[str, Callable[[Any], Iterator[SequenceRecord]]] = {
    "sequences": _sequences,
    "verl": _verl,
    "trl": _trl,
    "pipelinerl": _pipelinerl,
    "prime-rl": _prime_rl,
    "slime": _slime,
    "nemo-rl": _nemo_rl,
}
_WIDE = ("token_ids", "engine_logprobs", "trainer_logprobs", "weight_versions", "mask", "prompt_token_ids", "prompt_id", "temperature", "top_p", "top_k", "min_p")  # fmt: skip


def _reader(name: str, columns: Mapping[str, str]) -> Callable[[Any], Iterator[SequenceRecord]]:
    if name == "table":
        unknown = [ours for ours in columns if ours not in _WIDE]
        if unknown:
            raise UserError(f"columns: {unknown[0]} is not known; allowed: {', '.join(_WIDE)}")
        return lambda row: iter([parse_record({ours: row[columns.get(ours, ours)] for ours in _WIDE if columns.get(ours, ours) in row})])  # fmt: skip
    if name not in _READERS:
        raise UserError(f"format={name}: not known; allowed: auto, {', '.join(formats())}")
    return _READERS[name]


# ---------------------------------------------------------------------------------- a table with a token per row


def _is_long(file: Path, columns: Mapping[str, str]) -> bool:
    row = next(read_rows(file), None)
    name = columns.get("engine_logprob", "engine_logprob")
    return isinstance(row, Mapping) and name in row and np.ndim(row[name]) == 0


def _long_table(files: Iterable[Path], columns: Mapping[str, str], meta: dict[str, Any]) -> TokenTable:
    unknown = [ours for ours in columns if ours not in TYPE_OF_COLUMN]
    if unknown:
        raise UserError(f"columns: {unknown[0]} is not known; allowed: {', '.join(TYPE_OF_COLUMN)}")
    tables = [_long_file(file, columns, meta) for file in files]
    return tables[0] if len(tables) == 1 else TokenTable.concat(tables, renumber=True)


def _long_file(file: Path, columns: Mapping[str, str], meta: dict[str, Any]) -> TokenTable:
    names = {ours: columns.get(ours, ours) for ours in TYPE_OF_COLUMN}
    read = _parquet_columns if file.suffix == ".parquet" else _json_columns
    found = read(file, names)
    missing = [name for ours, name in names.items() if ours in columns and ours not in found]
    if missing:
        raise FileFormatError(f"table log {file}: no column {missing[0]}")
    count = len(found["engine_logprob"])
    if "sequence" not in found:
        found["sequence"] = (
            np.zeros(count) if "position" not in found else np.cumsum(np.diff(found["position"], prepend=0) < 0)
        )
    defaults = {"position": _positions(found["sequence"]), "token": np.full(count, -1), "trainer_logprob": np.full(count, np.nan), "weight_version": np.full(count, -1)}  # fmt: skip
    return TokenTable(**{**defaults, **found}, meta=meta)


def _positions(sequence: np.ndarray) -> np.ndarray:
    """Running number of each row within its sequence, in file order."""
    order = np.argsort(sequence, kind="stable")
    starts = np.flatnonzero(np.diff(sequence[order], prepend=np.nan) != 0)
    ranks = np.arange(len(sequence)) - np.repeat(starts, np.diff(np.append(starts, len(sequence))))
    positions = np.empty(len(sequence))
    positions[order] = ranks
    return positions


def _json_columns(file: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The columns that the first row has, row by row into flat arrays; what a row lacks is NaN."""
    columns: dict[str, array[float]] = {}
    for number, row in enumerate(read_rows(file), start=1):
        columns = columns or {ours: array("d") for ours, name in names.items() if name in row}
        for ours, column in columns.items():
            value = row.get(names[ours])
            try:
                column.append(math.nan if value is None else value)
            except TypeError:
                raise FileFormatError(
                    f"table log {file}, row {number}: {names[ours]}={value!r:.40}; allowed: a number or null"
                ) from None
    return {ours: np.frombuffer(column) for ours, column in columns.items()}


def _parquet_columns(file: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file, columns=None)
    return {ours: table.column(name).to_numpy() for ours, name in names.items() if name in table.column_names}


# ------------------------------------------------------------------------------------------------------- pieces


def _settings(row: Row) -> dict[str, float]:
    names = ("temperature", "top_p", "top_k", "min_p")
    return {name: float(row[name]) for name in names if isinstance(row.get(name), int | float)}


def _first(row: Row, *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values of the sampled tokens put at their places; already full-length values as they are."""
    if len(values) == len(mask):
        return values
    if len(values) != int(mask.sum()):
        raise ValueError(f"{len(values)} logprobs for {int(mask.sum())} sampled tokens")
    full = np.full(len(mask), np.nan)
    full[mask] = values
    return full
