"""The rows of a log: a file or a folder of JSON lines, parquet, or PyTorch dumps, one row at a time.

A row is a mapping from field to value, or a list of them where a framework writes a group per line. Lists of
numbers in a parquet file and tensors arrive as numpy arrays, so that a million tokens take seconds. Whatever is wrong
with a file is a `FileFormatError` of one line; no line longer than `LONGEST_LINE` is read into memory.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skewsim.errors import FileFormatError, UserError

SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".pt")
METRICS = (".csv", ".wandb", ".db", ".prom")
PICKLES = (".pkl", ".pickle")
ROWS = 128
"""Rows of a parquet file that are in memory at once, beside the row group that they are in."""
LONGEST_LINE = 1 << 28
"""Bytes of a line of JSON, or of a file that is one JSON value."""
PLAIN_SKYRL = (
    'torch.save({k: batch[k] for k in ("sequences", "attention_mask", "response_mask", "loss_mask", '
    '"rollout_logprobs", "action_log_probs")}, "step.pt")'
)


def log_files(path: Path) -> list[Path]:
    """The files of a log, in order; FileFormatError if there are none that can be read."""
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        files = [file for file in inside if file.suffix in SUFFIXES]
        if not files and (pickled := [file for file in inside if file.suffix in PICKLES]):
            raise _pickle(pickled[0])
        if not files:
            raise FileFormatError(f"log {path}: no file ending in {', '.join(SUFFIXES)}")
        return files
    if not path.is_file():
        raise FileFormatError(f"log {path}: no such file")
    if path.suffix in PICKLES:
        raise _pickle(path)
    if path.suffix in METRICS or "tfevents" in path.name:
        raise FileFormatError(f"log {path}: metrics by step, no log of tokens")
    if path.suffix not in SUFFIXES:
        raise FileFormatError(f"log {path}: suffix {path.suffix!r} is not known; allowed: {', '.join(SUFFIXES)}")
    return [path]


def read_rows(file: Path) -> Iterator[Any]:
    """Rows one by one; list columns of a parquet file and tensors as numpy arrays."""
    read = {".parquet": _parquet_rows, ".pt": _torch_rows}.get(file.suffix, _json_rows)
    try:
        yield from read(file)
    except (PermissionError, IsADirectoryError) as error:
        raise FileFormatError(f"log {file}: {error.strerror}") from None


def first_row(file: Path) -> Any:
    """The first row, or None; of a group, its first member."""
    row = next(read_rows(file), None)
    return row[0] if isinstance(row, list) and row else row


def _pickle(file: Path) -> FileFormatError:
    return FileFormatError(
        f"log {file}: a pickle runs code when it is read, so it is not; SkyRL (trainer.dump_data_batch): write {PLAIN_SKYRL}"
    )


# ------------------------------------------------------------------------------------------------------------ JSON


def _json_rows(file: Path) -> Iterator[Any]:
    number = 0
    for line in _lines(file):
        number += 1
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            if number == 1 and (rows := _one_value(file)) is not None:
                yield from rows
                return
            raise FileFormatError(f"log {file}, line {number}: truncated or no JSON") from None
        except RecursionError:
            raise FileFormatError(f"log {file}, line {number}: nested too deeply") from None
        yield from row if number == 1 and file.suffix == ".json" and isinstance(row, list) else [row]


def _lines(file: Path) -> Iterator[str]:
    with open(file, "rb") as handle:
        for number in itertools.count(1):
            line = handle.readline(LONGEST_LINE)
            if not line:
                return
            if len(line) == LONGEST_LINE:
                raise FileFormatError(f"log {file}, line {number}: longer than {LONGEST_LINE >> 20} MiB")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise FileFormatError(f"log {file}, line {number}: not UTF-8") from None


def _one_value(file: Path) -> list[Any] | None:
    """The rows of a file that is one JSON value over several lines; None if it is not."""
    if file.suffix != ".json" or file.stat().st_size > LONGEST_LINE:
        return None
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else [value]


# --------------------------------------------------------------------------------------------------------- parquet


def _parquet_rows(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        source = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        for batch in source.iter_batches(batch_size=ROWS, use_threads=False):
            columns = {name: _values(batch.column(name)) for name in batch.schema.names}
            for index in range(batch.num_rows):
                yield {name: values[index] for name, values in columns.items()}
    except (pyarrow.ArrowException, OSError) as error:
        raise FileFormatError(f"log {file}: truncated or no parquet ({str(error).splitlines()[0][:120]})") from None


def _values(array: Any) -> Any:
    """A column's rows; lists of numbers as slices of one numpy array, everything else as Python objects."""
    import pyarrow

    kind = array.type
    plain = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    if (
        not plain
        or not (pyarrow.types.is_integer(kind.value_type) or pyarrow.types.is_floating(kind.value_type))
        or array.null_count
    ):
        return array.to_pylist()
    values, offsets = array.values.to_numpy(zero_copy_only=False), array.offsets.to_numpy()
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]


# --------------------------------------------------------------------------------------------------------- PyTorch


def _torch_rows(file: Path) -> Iterator[Any]:
    """A dump's samples, with what the dump says of them all; a batch of tensors as its rows."""
    data = _load(file)
    shared = {name: data[name] for name in SHARED if name in data}
    if isinstance(data.get("samples"), list):
        rows: Iterator[Any] = iter(data["samples"])
    else:
        rows = _transposed(file, data.get("rollout_data", data))
    for row in rows:
        if not isinstance(row, Mapping):
            raise FileFormatError(f"log {file}: a sample is no mapping of fields")
        yield {key: _plain(value) for key, value in row.items()} | shared


SHARED = ("rollout_id", "rank", "cp_rank", "cp_size", "qkv_format", "format_version")
"""What slime's and Miles's dumps say of all their samples."""


def _load(file: Path) -> Mapping[str, Any]:
    """A dump read with torch's `weights_only`: tensors, numbers, strings and containers, no code."""
    import pickle

    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(f"log {file}: a .pt file needs PyTorch: pip install 'skewsim[sim]'") from None
    try:
        data = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, RecursionError, AttributeError, IndexError):  # fmt: skip
        raise FileFormatError(f"log {file}: truncated, or no dump of plain tensors, numbers and text") from None
    if not isinstance(data, Mapping):
        raise FileFormatError(f"log {file}: no dump of named fields, but a {type(data).__name__}")
    return data


def _transposed(file: Path, columns: Any) -> Iterator[dict[str, Any]]:
    """Columns of equal length as rows; what is no column is left out."""
    listed = {
        name: value
        for name, value in (columns.items() if isinstance(columns, Mapping) else ())
        if isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0
    }
    lead = next(
        (listed[name] for name in ("tokens", "responses", "sequences", "completion_ids") if name in listed), None
    )
    if lead is None:
        raise FileFormatError(f"log {file}: fields {', '.join(map(str, list(listed)[:8]))} hold no tokens")
    for index in range(len(lead)):
        yield {name: values[index] for name, values in listed.items() if len(values) == len(lead)}


def _plain(value: Any) -> Any:
    """A tensor as a numpy array; bfloat16, which numpy lacks, as float32."""
    if not hasattr(value, "numpy"):
        return value
    array = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return array.numpy()
