"""The rows of a log: a file or a folder of JSON lines, parquet, or PyTorch dumps, one row at a time.

A row is a mapping from field to value, or a list of them where a framework writes a group per line. Lists of
numbers in a parquet file and tensors arrive as numpy arrays, so that a million tokens take seconds. Whatever is wrong
with a file is a `FileFormatError` of one line; nothing is read that would fill the memory (`skewsim.border`,
`skewsim.arrays`).
"""

from __future__ import annotations

import io
import itertools
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skewsim.arrays import check_unpacked, opened_parquet
from skewsim.border import LONGEST_LINE, decoded, open_regular, parse_line, read_lines
from skewsim.errors import FileFormatError, UserError, shown

MOST_FILES = 100_000
"""Names that are looked at in a folder."""
SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".pt")
METRICS = (".csv", ".wandb", ".db", ".prom")
PICKLES = (".pkl", ".pickle")
ROWS = 128
"""Rows of a parquet file that are in memory at once, beside the row group that they are in."""
PLAIN_SKYRL = (
    'torch.save({k: batch[k] for k in ("sequences", "attention_mask", "response_mask", "loss_mask", '
    '"rollout_logprobs", "action_log_probs")}, "step.pt")'
)


def log_files(path: Path) -> list[Path]:
    """The files of a log, in order; FileFormatError if there are none that can be read."""
    if path.is_dir():
        inside = files_inside(path)
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


def files_inside(folder: Path) -> list[Path]:
    """All files of a folder and of those in it, in order; FileFormatError if there are too many names to look at."""
    names = list(itertools.islice(folder.rglob("*"), MOST_FILES + 1))
    if len(names) > MOST_FILES:
        raise FileFormatError(f"log {folder}: more than {MOST_FILES} files and folders in it; give one of them")
    return sorted(file for file in names if file.is_file())


def read_rows(file: Path) -> Iterator[Any]:
    """Rows one by one; list columns of a parquet file and tensors as numpy arrays."""
    yield from {".parquet": _parquet_rows, ".pt": _torch_rows}.get(file.suffix, _json_rows)(file)


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
    """A row a line; or, of a .json file, the rows of its one list, or its one row."""
    first = file.suffix == ".json"
    for name, line in read_lines(file, what="log"):
        try:
            row = parse_line(line, name)
        except FileFormatError:
            if first and (rows := _one_value(file)) is not None:
                yield from rows
                return
            raise
        yield from row if first and isinstance(row, list) else [row]
        first = False


def _one_value(file: Path) -> list[Any] | None:
    """The rows of a file that is one JSON value over several lines; None if it is not."""
    if file.stat().st_size > LONGEST_LINE:
        return None
    try:
        value = json.loads(decoded(file.read_bytes(), f"log {file}"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else [value]


# --------------------------------------------------------------------------------------------------------- parquet


def _parquet_rows(file: Path) -> Iterator[Any]:
    with opened_parquet(file, what="log") as source:
        for batch in source.iter_batches(batch_size=ROWS, use_threads=False):
            columns = {name: _values(batch.column(name)) for name in batch.schema.names}
            for index in range(batch.num_rows):
                yield {name: values[index] for name, values in columns.items()}


def _values(array: Any) -> Any:
    """A column's rows; lists of numbers as slices of one numpy array, everything else as Python objects."""
    import pyarrow

    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        words = [*array.dictionary.to_pylist(), None]
        return [words[index] for index in array.indices.fill_null(len(words) - 1).to_pylist()]
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
        try:
            yield {key: _plain(value) for key, value in row.items()} | shared
        except ValueError as error:
            raise FileFormatError(f"log {file}: {shown(error, 160)}") from None


SHARED = ("rollout_id", "rank", "cp_rank", "cp_size", "qkv_format", "format_version")
"""What slime's and Miles's dumps say of all their samples."""


def _load(file: Path) -> Mapping[str, Any]:
    """A dump read with torch's `weights_only`: tensors, numbers, strings and containers, no code."""
    import pickle

    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(f"log {file}: a .pt file needs PyTorch: pip install 'skewsim[sim]'") from None
    wrong = (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError, AttributeError, AssertionError, OverflowError, MemoryError, struct.error)  # fmt: skip
    try:
        with open_regular(file, what="log") as handle:
            size = handle.seek(0, io.SEEK_END)
            if zipfile.is_zipfile(handle):
                with zipfile.ZipFile(handle) as archive:
                    check_unpacked(f"log {file}", size, sum(entry.file_size for entry in archive.infolist()))
            handle.seek(0)
            data = torch.load(handle, map_location="cpu", weights_only=True)
        _check_repeats(data, file, size)
    except wrong:
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
    """A tensor as a numpy array; types that numpy lacks as float32. ValueError for one that is no dense array."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        raise ValueError(f"a tensor of type {value.dtype} and layout {value.layout}; allowed: dense numbers")
    known = not value.dtype.is_floating_point or value.dtype in (torch.float16, torch.float32, torch.float64)
    return (value if known else value.float()).detach().numpy()


def _check_repeats(data: Any, file: Path, size: int) -> None:
    """FileFormatError if containers and tensors that hold the same values again and again stand for too many of them.

    A pickle can hold one list at two places of another, that one at two places of a third, and so on.
    """
    check_unpacked(f"log {file}", size, _bytes_meant(data, {}))


def _bytes_meant(value: Any, known: dict[int, int]) -> int:
    """8 bytes for each number that the value stands for; RecursionError if it holds itself."""
    if hasattr(value, "numel"):
        return 8 * int(value.numel())
    if not isinstance(value, Mapping | list | tuple | set):
        return 8
    if id(value) not in known:
        members = [*value.values()] if isinstance(value, Mapping) else value
        nested = not _PLAIN.issuperset(map(type, members))
        known[id(value)] = sum(_bytes_meant(each, known) for each in members) + 8 if nested else 8 * len(members) + 8
    return known[id(value)]


_PLAIN = {int, float, bool, str, type(None)}
