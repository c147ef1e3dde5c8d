"""TokenTable: one row per sampled token, as numpy columns, on disk as .npz or .parquet.

The table is the result of a measurement: which token of which sequence was sampled, its log-probability by the engine
and by the trainer, and the version of the weights that sampled it. Profiles, diagnoses and figures are computed from
it. Sign: ``skew = trainer_logprob - engine_logprob``.

Files have a schema version and are read without pickle. A file that is missing, cut off, of another format or of a
later version raises `FileFormatError` with one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from skewsim.arrays import numbers, opened_parquet, read_npz
from skewsim.border import parse_json
from skewsim.errors import FileFormatError, UserError
from skewsim.files import atomic_writer, check_schema_version

SCHEMA_VERSION = 1
FORMAT = "skewsim-token-table"
HEADER = "header"

TYPE_OF_COLUMN: dict[str, type[np.generic]] = {
    "sequence": np.int64,
    "position": np.int64,
    "token": np.int64,
    "engine_logprob": np.float64,
    "trainer_logprob": np.float64,
    "weight_version": np.int64,
    "sampler_logprob": np.float64,
    "kept_mass": np.float64,
    "prompt": np.int64,
    "square_mass": np.float64,
    "step": np.int64,
    "rank": np.int64,
    "replica": np.int64,
    "turn": np.int64,
    "pack_index": np.int64,
    "routes_differ": np.int64,
}
PLACES = ("step", "rank", "replica", "turn", "pack_index", "routes_differ")
"""Columns that say where in a run a token comes from, or which way it went."""
OPTIONAL = ("sampler_logprob", "kept_mass", "prompt", "square_mass", *PLACES)

Column = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class TokenTable:
    """One row per sampled token; all columns are 1-D arrays of equal length, log-probabilities in nats.

    Unknown values are NaN (float columns) or -1 (integer columns); an optional column without any value is None.
    Rows may have any order. `meta` is provenance as plain JSON: engine, version, dtype, model, temperature, ...
    """

    sequence: Column
    """Which sequence the token belongs to."""
    position: Column
    """Response position, from 0."""
    token: Column
    """The sampled token's id."""
    engine_logprob: Column
    """Log-probability that the engine reported for it."""
    trainer_logprob: Column
    """Log-probability that the trainer computes for it."""
    weight_version: Column
    """Version of the weights that sampled it; -1: unknown."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Provenance, plain JSON."""
    sampler_logprob: Column | None = None
    """True log-probability under the distribution that was sampled from, if the engine tells it."""
    kept_mass: Column | None = None
    """Probability mass kept by top-p, top-k and min-p."""
    prompt: Column | None = None
    """Id of the sequence's prompt; responses of one group have one id."""
    square_mass: Column | None = None
    """Sum over the vocabulary of the trainer's squared probabilities at this position, for the logit-noise law."""
    step: Column | None = None
    """The training step that used the token."""
    rank: Column | None = None
    """The trainer's data-parallel rank that scored it."""
    replica: Column | None = None
    """The copy of the engine that sampled it."""
    turn: Column | None = None
    """Which of the sequence's sampled spans it belongs to, from 0: an answer, a tool's answer, the next answer."""
    pack_index: Column | None = None
    """Place of its sequence in the row that the trainer packed it into, from 0."""
    routes_differ: Column | None = None
    """In how many layers of a mixture of experts trainer and engine chose different experts for the row before it."""

    def __post_init__(self) -> None:
        for name, dtype in TYPE_OF_COLUMN.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _column(name, value, dtype=dtype))
        for name, column in self.columns().items():
            if len(column) != len(self.sequence):
                raise UserError(f"token table: {name} has {len(column)} rows, sequence has {len(self.sequence)}")

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def skew(self) -> npt.NDArray[np.float64]:
        """Trainer minus engine log-probability, nats; NaN where either is unknown."""
        with np.errstate(invalid="ignore"):  # -inf minus -inf is unknown, not an error
            difference: npt.NDArray[np.float64] = self.trainer_logprob - self.engine_logprob
        return difference

    def columns(self) -> dict[str, Column]:
        """The columns that are present, by name."""
        present = {name: getattr(self, name) for name in TYPE_OF_COLUMN}
        return {name: column for name, column in present.items() if column is not None}

    def select(self, mask: Column) -> TokenTable:
        """The rows chosen by a boolean mask, an index array or a slice."""
        return TokenTable(**{name: column[mask] for name, column in self.columns().items()}, meta=dict(self.meta))

    def with_meta(self, **values: Any) -> TokenTable:
        """The same rows with entries of `meta` added or replaced."""
        return TokenTable(**self.columns(), meta={**self.meta, **values})

    @classmethod
    def empty(cls, meta: Mapping[str, Any] | None = None) -> TokenTable:
        """A table without rows."""
        required = [name for name in TYPE_OF_COLUMN if name not in OPTIONAL]
        return cls(**{name: np.empty(0) for name in required}, meta=dict(meta or {}))

    @classmethod
    def concat(cls, tables: Sequence[TokenTable], *, renumber: bool = False) -> TokenTable:
        """The rows of several tables. With `renumber`, sequences of different tables get different ids.

        An optional column that only some tables have is filled with the value for unknown in the others. Entries of
        `meta` that are not equal in all tables are listed under ``meta["mixed"]``.
        """
        if not tables:
            return cls.empty()
        names = [name for name in TYPE_OF_COLUMN if any(getattr(table, name) is not None for table in tables)]
        columns = {name: np.concatenate([_or_unknown(table, name) for table in tables]) for name in names}
        if renumber:
            owner = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
            pairs = np.stack([owner, columns["sequence"]], axis=1)
            columns["sequence"] = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
        return cls(**columns, meta=_merged_meta([table.meta for table in tables]))

    @classmethod
    def from_rollouts(
        cls,
        *,
        tokens: Column,
        mask: Column,
        engine_logprobs: Column,
        trainer_logprobs: Column | None = None,
        weight_versions: Column | None = None,
        sampler_logprobs: Column | None = None,
        kept_mass: Column | None = None,
        prompt_ids: Column | None = None,
        square_mass: Column | None = None,
        places: Mapping[str, Column] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> TokenTable:
        """A table from arrays of shape (..., N, T), and (..., N) prompts; a row for every position with mask > 0.

        `places`: any of `PLACES`, as (..., N, T).
        """
        kept = np.asarray(mask) > 0
        sequence = np.arange(int(np.prod(kept.shape[:-1]))).reshape(*kept.shape[:-1], 1)

        def rows(values: Column | None, unknown: float | None = None) -> Column | None:
            if values is None:
                return None if unknown is None else np.full(int(kept.sum()), unknown)
            return np.broadcast_to(np.asarray(values), kept.shape)[kept]

        columns = {
            "sequence": rows(sequence),
            "position": rows(np.arange(kept.shape[-1])),
            "token": rows(tokens),
            "engine_logprob": rows(engine_logprobs),
            "trainer_logprob": rows(trainer_logprobs, np.nan),
            "weight_version": rows(weight_versions, -1),
            "sampler_logprob": rows(sampler_logprobs),
            "kept_mass": rows(kept_mass),
            "prompt": rows(None if prompt_ids is None else np.asarray(prompt_ids)[..., None]),
            "square_mass": rows(square_mass),
            **{name: rows(values) for name, values in (places or {}).items()},
        }
        return cls(**columns, meta=dict(meta or {}))  # type: ignore[arg-type]

    def save(self, path: Path | str) -> None:
        """Write .npz or .parquet, by suffix; the file is whole or absent."""
        path = Path(path)
        write = {".npz": _write_npz, ".parquet": _write_parquet}.get(path.suffix)
        if write is None:
            raise UserError(f"token table {path}: suffix {path.suffix!r} is not known; allowed: .npz, .parquet")
        with atomic_writer(path) as handle:
            write(self, handle)

    @classmethod
    def load(cls, path: Path | str) -> TokenTable:
        """Read a .npz or .parquet table."""
        path = Path(path)
        if not path.is_file():
            raise FileFormatError(f"token table {path}: no such file")
        read = {".npz": _read_npz, ".parquet": _read_parquet}.get(path.suffix)
        if read is None:
            raise FileFormatError(f"token table {path}: suffix {path.suffix!r} is not known; allowed: .npz, .parquet")
        header, columns = read(path)
        header = parse_json(header, f"token table {path}: its header")
        _check_header(path, header)
        missing = [name for name in TYPE_OF_COLUMN if name not in OPTIONAL and name not in columns]
        if missing:
            raise FileFormatError(f"token table {path}: column {missing[0]} is missing")
        try:
            return cls(**{name: columns[name] for name in TYPE_OF_COLUMN if name in columns}, meta=header["meta"])
        except UserError as error:
            raise FileFormatError(f"{path}: {error}") from None


def _column(name: str, value: Any, *, dtype: type[np.generic]) -> Column:
    """The values as a 1-D array of the column's type; UserError if they are none."""
    array = np.asarray(value)
    if array.ndim != 1:
        raise UserError(f"token table: {name} has {array.ndim} axes; allowed: 1")
    if array.dtype.kind not in "biuf":
        raise UserError(f"token table: {name} has type {array.dtype}; allowed: numbers")
    if dtype is np.int64 and not is_whole(array):
        raise UserError(f"token table: {name} has values that are no integers of 64 bits")
    return array.astype(dtype, copy=False)


def is_whole(array: Column) -> bool:
    """Whether all numbers of an array are integers that int64 holds."""
    if array.dtype.kind == "f":
        return bool(np.all((array == np.rint(array)) & (np.abs(array) < 2.0**63)))
    return array.dtype != np.uint64 or bool(np.all(array < 2**63))


def _or_unknown(table: TokenTable, name: str) -> Column:
    column: Column | None = getattr(table, name)
    if column is not None:
        return column
    dtype = TYPE_OF_COLUMN[name]
    return np.full(len(table), -1 if dtype is np.int64 else np.nan, dtype=dtype)


def _merged_meta(metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = sorted({key for meta in metas for key in meta})
    agreed = {key: metas[0].get(key) for key in keys if all(meta.get(key) == metas[0].get(key) for meta in metas)}
    mixed = {key: [meta.get(key) for meta in metas] for key in keys if key not in agreed}
    return {**agreed, "mixed": mixed} if mixed else agreed


def _header(table: TokenTable) -> str:
    try:
        return json.dumps({"format": FORMAT, "schema_version": SCHEMA_VERSION, "meta": table.meta}, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"token table: meta is no plain JSON ({error})") from None


def _check_header(path: Path, header: Any) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise FileFormatError(f"token table {path}: not a token table")
    check_schema_version(f"token table {path}", header.get("schema_version"), newest=SCHEMA_VERSION)
    if not isinstance(header.get("meta"), dict):
        raise FileFormatError(f"token table {path}: meta is missing")
    for name in ("dtype", "trainer_dtype", "model_kind"):
        if not isinstance(header["meta"].get(name), str | None):
            raise FileFormatError(f"token table {path}: its meta's {name} is no text")


def _write_npz(table: TokenTable, handle: BinaryIO) -> None:
    header = np.frombuffer(_header(table).encode(), dtype=np.uint8)
    arrays: dict[str, Any] = {HEADER: header, **table.columns()}
    np.savez_compressed(handle, **arrays)


def _read_npz(path: Path) -> tuple[Any, dict[str, Column]]:
    arrays = read_npz(path, what="token table")
    if HEADER not in arrays:
        raise FileFormatError(f"token table {path}: truncated or no token table (it has no header)")
    return arrays[HEADER].tobytes(), arrays


def _write_parquet(table: TokenTable, handle: BinaryIO) -> None:
    import pyarrow
    import pyarrow.parquet

    arrow = pyarrow.table(table.columns())
    pyarrow.parquet.write_table(arrow.replace_schema_metadata({FORMAT: _header(table)}), handle)


def _read_parquet(path: Path) -> tuple[Any, dict[str, Column]]:
    with opened_parquet(path, what="token table") as source:
        raw = (source.schema_arrow.metadata or {}).get(FORMAT.encode())
        if raw is None:
            raise FileFormatError(f"token table {path}: truncated or no token table (it has no header)")
        names = [name for name in source.schema_arrow.names if name in TYPE_OF_COLUMN]
        arrow = source.read(columns=names, use_threads=False)
    columns = {name: numbers(arrow.column(name), f"token table {path}: {name}") for name in arrow.column_names}
    return raw, columns
