"""A table that somebody made: any names, given by `columns`; a sequence or a token per row."""

from __future__ import annotations

import math
import reprlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.log_files import first_row, read_rows
from harness.logs.rows import Context, Read
from skewsim.arrays import numbers, opened_parquet
from skewsim.errors import FileFormatError, UserError, shown
from skewsim.skew.sequences import SETTINGS, SequenceRecord, parse_record
from skewsim.skew.tokens import PLACES, TYPE_OF_COLUMN, TokenTable

SEVERAL = {"token": "token_ids", "engine_logprob": "engine_logprobs", "trainer_logprob": "trainer_logprobs", "weight_version": "weight_versions"}  # fmt: skip
"""Names of a column with a token per row, and of the same with a sequence per row; each is understood for both."""
WIDE = ("token_ids", "engine_logprobs", "trainer_logprobs", "weight_versions", "mask", "prompt_token_ids", "prompt_id", "engine_routed_experts", "trainer_routed_experts", *SETTINGS, *PLACES)  # fmt: skip
LONG = (frozenset({"engine_logprob", "trainer_logprob"}), frozenset({"sequence", "engine_logprob"}))
"""Fields by which a table with a token per row is known without `columns`."""


def wide_reader(columns: Mapping[str, str]) -> Read:
    """A reader of rows with a sequence each; UserError for a column that is not known."""
    columns = {SEVERAL.get(ours, ours): theirs for ours, theirs in columns.items()}
    unknown = [ours for ours in columns if ours not in WIDE]
    if unknown:
        raise UserError(f"columns: {unknown[0]} is not known; allowed: {', '.join(WIDE)}")

    def read(row: Any, context: Context) -> Iterator[SequenceRecord]:
        yield parse_record({ours: row[columns.get(ours, ours)] for ours in WIDE if columns.get(ours, ours) in row})

    return read


def is_long(file: Path, columns: Mapping[str, str]) -> bool:
    row = first_row(file)
    name = _of_a_token(columns).get("engine_logprob", "engine_logprob")
    return isinstance(row, Mapping) and name in row and np.ndim(row[name]) == 0


def check_columns(file: Path, columns: Mapping[str, str]) -> None:
    """FileFormatError for a name given in `columns` that the first row of a file does not have."""
    row = first_row(file) if columns else None
    missing = [theirs for theirs in columns.values() if isinstance(row, Mapping) and theirs not in row]
    if missing:
        raise FileFormatError(f"table log {file}: no column {shown(missing[0], 80)}")


def _of_a_token(columns: Mapping[str, str]) -> dict[str, str]:
    """The same by the names for a token per row."""
    one = {several: name for name, several in SEVERAL.items()}
    return {one.get(ours, ours): theirs for ours, theirs in columns.items()}


def long_table(files: Iterable[Path], columns: Mapping[str, str], meta: dict[str, Any]) -> TokenTable:
    """A token per row; FileFormatError for a column that is not there or no number."""
    columns = _of_a_token(columns)
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
    missing += [] if "engine_logprob" in found else [names["engine_logprob"]]
    if missing:
        raise FileFormatError(f"table log {file}: no column {shown(missing[0], 80)}")
    count = len(found["engine_logprob"])
    if "sequence" not in found:
        found["sequence"] = (
            np.zeros(count) if "position" not in found else np.cumsum(np.diff(found["position"], prepend=0) < 0)
        )
    defaults = {"position": _positions(found["sequence"]), "token": np.full(count, -1), "trainer_logprob": np.full(count, np.nan), "weight_version": np.full(count, -1)}  # fmt: skip
    try:
        return TokenTable(**{**defaults, **found}, meta=meta)
    except UserError as error:
        raise FileFormatError(f"table log {file}: {error}") from None


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
        if not isinstance(row, Mapping):
            raise FileFormatError(f"table log {file}, row {number}: no JSON object")
        columns = columns or {ours: array("d") for ours, name in names.items() if name in row}
        for ours, column in columns.items():
            value = row.get(names[ours])
            try:
                column.append(math.nan if value is None else value)
            except (TypeError, OverflowError):
                told = f"{names[ours]}={shown(reprlib.repr(value), 60)}"
                raise FileFormatError(f"table log {file}, row {number}: {told}; allowed: a number or null") from None
    return {ours: np.frombuffer(column) for ours, column in columns.items()}


def _parquet_columns(file: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    with opened_parquet(file, what="table log") as source:
        known = [name for name in source.schema_arrow.names if name in names.values()]
        table = source.read(columns=known)
    return {
        ours: numbers(table.column(name), f"table log {file}: {name}") for ours, name in names.items() if name in known
    }
