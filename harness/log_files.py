"""The rows of a log: a file or a folder of JSON lines, parquet, or slime's .pt dumps, one row at a time.

A row is a mapping from field to value, or a list of them where a framework writes a group per line. Lists of
numbers in a parquet file arrive as numpy arrays, so that a million tokens take seconds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skewsim.errors import FileFormatError

SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".pt")


def log_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        if not files:
            raise FileFormatError(f"log {path}: no file ending in {', '.join(SUFFIXES)}")
        return files
    if not path.is_file():
        raise FileFormatError(f"log {path}: no such file")
    if path.suffix not in SUFFIXES:
        raise FileFormatError(f"log {path}: suffix {path.suffix!r} is not known; allowed: {', '.join(SUFFIXES)}")
    return [path]


def read_rows(file: Path) -> Iterator[Any]:
    """Rows one by one; list columns of a parquet file as numpy arrays."""
    read = {".parquet": _parquet_rows, ".pt": _torch_rows}.get(file.suffix, _json_rows)
    return read(file)


def _json_rows(file: Path) -> Iterator[Any]:
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError:
                    raise FileFormatError(f"log {file}, line {number}: truncated or no JSON") from None


def _parquet_rows(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        source = pyarrow.parquet.ParquetFile(file)
        for batch in source.iter_batches(batch_size=1024):
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


def _torch_rows(file: Path) -> Iterator[Any]:
    """slime's dumps. `weights_only` is torch's restricted reader: tensors, numbers, strings and containers, no code."""
    import pickle

    import torch

    try:
        data = torch.load(file, map_location="cpu", weights_only=True)
        samples = data["samples"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError):
        raise FileFormatError(f"slime log {file}: truncated, or no dump of plain samples") from None
    for sample in samples:
        yield {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in sample.items()}
