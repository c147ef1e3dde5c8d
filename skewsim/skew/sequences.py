"""Rollouts as whole sequences: JSON lines with one sequence per line, and their conversion to a TokenTable.

A `TokenTable` holds tokens without their prompts. Scoring a sequence again, under other weights or at another
precision, also needs the prompt, which this format keeps. Keys of a line: `prompt_token_ids`, `token_ids`,
`engine_logprobs`, and, where known, `trainer_logprobs`, `weight_versions`, `mask` (1 where the token was sampled by the
engine, 0 for a tool's answer), `prompt_id`, `temperature`, `top_p`, `top_k`, `min_p`, and `step`, `rank`, `replica`,
`turn`, `pack_index`, `routes_differ`: a whole number for the sequence, or one for each of its tokens. The experts that
a mixture of experts chose may be given as they are, `engine_routed_experts` (vLLM's and SGLang's `routed_experts`) and
`trainer_routed_experts`: for each token of prompt and response but the last, or of the response only, L lists of k
experts; `routes_differ` is counted from them. The engine's alone are kept, to be compared with a model's own. A
log-probability that is unknown or not finite is null. Every line has its `schema_version`; a line without one is read
as version 1, so that other programs can write the format easily.
"""

from __future__ import annotations

import itertools
import json
import math
import reprlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skewsim.border import parse_line, read_lines
from skewsim.errors import FileFormatError, shown
from skewsim.files import atomic_writer, check_schema_version
from skewsim.skew.tokens import PLACES, TokenTable, is_whole

Column = npt.NDArray[Any]
SCHEMA_VERSION = 1
SETTINGS = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True, eq=False)
class SequenceRecord:
    """One rollout. Arrays are 1-D and, except the prompt, of equal length; raises ValueError if they are not."""

    tokens: Column
    engine_logprobs: Column
    trainer_logprobs: Column | None = None
    weight_versions: Column | None = None
    mask: Column | None = None
    """True where the engine sampled the token; None: everywhere."""
    prompt_tokens: Column | None = None
    prompt_key: Hashable | None = None
    """Identifies the prompt if its tokens are not known."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """temperature, top_p, top_k, min_p of the request."""
    places: Mapping[str, int | Column] = field(default_factory=dict)
    """Any of `tokens.PLACES`: a whole number for the sequence, or one for each token."""
    engine_routes: Column | None = None
    """(tokens, L, k) the experts that the engine chose for the row before each token, where the trainer's are not
    known. Rows before the response may come first; they are left out."""

    def __post_init__(self) -> None:
        for name, dtype in _TYPES.items():
            value = getattr(self, name)
            if value is None and name in ("tokens", "engine_logprobs"):
                raise ValueError(f"{name} is null; allowed: a list")
            if value is not None:
                array = to_array(_IN_A_FILE.get(name, name), value, dtype)
                if array.ndim != 1 or (name != "prompt_tokens" and len(array) != len(self.tokens)):
                    raise ValueError(f"{name} has shape {array.shape}, but there are {len(self.tokens)} tokens")
                object.__setattr__(self, name, array)
        if not isinstance(self.prompt_key, str | int | float | np.integer | None):
            raise ValueError(f"the prompt's id is {reprlib.repr(self.prompt_key)}; allowed: text or a number")
        object.__setattr__(self, "places", {name: self._place(name, value) for name, value in self.places.items()})
        if self.engine_routes is not None:
            object.__setattr__(self, "engine_routes", self._own_routes())

    def _place(self, name: str, value: Any) -> int | Column:
        if name not in PLACES:
            raise ValueError(f"{name} is no place; allowed: {', '.join(PLACES)}")
        try:
            array = np.asarray(value)
        except ValueError:  # lists of unequal length
            array = np.empty(0)
        whole = array.dtype.kind == "i" or (array.dtype.kind == "u" and bool(np.all(array < 2**63)))
        if not whole or array.shape not in ((), (len(self.tokens),)):
            raise ValueError(f"{name} is neither a whole number nor one for each of the {len(self.tokens)} tokens")
        return array if array.ndim else int(array)

    def _own_routes(self) -> Column | None:
        """The engine's routes in the smallest type that holds them; None for a response without tokens."""
        if not len(self.tokens):
            return None
        routes = _routes("engine_routed_experts", self.engine_routes, len(self.tokens))
        ends = (np.min_scalar_type(int(end)) for end in (routes.min(initial=0), routes.max(initial=0)))
        return routes.astype(np.result_type(*ends))

    @property
    def sampled(self) -> Column:
        return np.ones(len(self.tokens), dtype=bool) if self.mask is None else self.mask

    @property
    def key(self) -> Hashable:
        """Equal for sequences of one prompt; None if the prompt is not known."""
        if self.prompt_key is None and self.prompt_tokens is not None:
            return self.prompt_tokens.tobytes()
        return self.prompt_key

    def to_json(self) -> dict[str, Any]:
        line: dict[str, Any] = {
            "prompt_token_ids": [] if self.prompt_tokens is None else self.prompt_tokens.tolist(),
            "token_ids": self.tokens.tolist(),
            "engine_logprobs": _with_nulls(self.engine_logprobs),
        }
        if self.trainer_logprobs is not None:
            line["trainer_logprobs"] = _with_nulls(self.trainer_logprobs)
        if self.weight_versions is not None:
            line["weight_versions"] = self.weight_versions.tolist()
        if self.mask is not None:
            line["mask"] = self.mask.astype(int).tolist()
        if isinstance(self.prompt_key, str | int):
            line["prompt_id"] = self.prompt_key
        if self.engine_routes is not None:
            line["engine_routed_experts"] = self.engine_routes.tolist()
        places = {name: value if isinstance(value, int) else value.tolist() for name, value in self.places.items()}
        return line | dict(self.settings) | places | {"schema_version": SCHEMA_VERSION}


def to_array(name: str, value: Any, dtype: Any) -> Column:
    """A list as an array of numbers; null is NaN in a column of floats. ValueError for anything else."""
    try:
        given = np.asarray(value)
        if given.dtype.kind == "O" and not (dtype is np.float64 and _NUMBERS.issuperset(map(type, given.flat))):
            raise TypeError
        if given.dtype.kind not in "biufO" or not _CHECKS[dtype](given):
            raise TypeError
        return given.astype(dtype)
    except (TypeError, ValueError, OverflowError):  # numpy's words for lists of unequal length, and for huge numbers
        allowed = {np.float64: "numbers and nulls", np.int64: "whole numbers"}.get(dtype, "0 and 1")
        raise ValueError(f"{name} is {shown(reprlib.repr(value), 60)}; allowed: a list of {allowed}") from None


_IN_A_FILE = {"tokens": "token_ids", "prompt_tokens": "prompt_token_ids"}
"""What columns are called in a file, where that is another name."""
_NUMBERS = {int, float, bool, type(None)}


def _are_ids(array: Column) -> bool:
    return array.ndim == 1 and (not len(array) or (array.dtype.kind != "b" and is_whole(array)))


def _are_flags(array: Column) -> bool:
    return bool(np.isfinite(array).all())


_CHECKS: dict[Any, Callable[[Column], bool]] = {np.int64: _are_ids, bool: _are_flags, np.float64: lambda array: True}
"""Type of a column -> whether an array of numbers may become one."""


def routes_differ(row: Mapping[str, Any], tokens: int) -> Column | None:
    """In how many layers the two sides of a line chose other experts for the row before each of `tokens` tokens.

    None if the line does not have both sides' experts, or no tokens. Raises ValueError for experts that are no whole
    numbers of shape (rows, L, k), or have fewer rows than there are tokens.
    """
    names = ("engine_routed_experts", "trainer_routed_experts")
    if not tokens or any(row.get(name) is None for name in names):
        return None
    engine, trainer = (_routes(name, row[name], tokens) for name in names)
    if engine.shape != trainer.shape:
        raise ValueError(f"engine_routed_experts has shape {engine.shape}, trainer_routed_experts {trainer.shape}")
    differ = (np.sort(engine, -1) != np.sort(trainer, -1)).any(-1)
    counted: Column = differ.sum(-1)
    return counted


def _routes(name: str, value: Any, tokens: int) -> Column:
    """The experts (tokens, L, k) of the rows that predict a response's tokens."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        array = np.empty(0)
    if array.ndim != 3 or array.dtype.kind not in "iu" or len(array) < tokens:
        raise ValueError(
            f"{name} has shape {array.shape}; allowed: whole numbers, (rows, layers, experts of a token), with a row "
            f"for each of the {tokens} tokens, or for each token of prompt and response but the last"
        )
    return array[len(array) - tokens :]


def finite_number(name: str, value: Any) -> float:
    """A number of a log as a float. ValueError if it is none."""
    try:
        number = float("nan" if isinstance(value, str | bytes | bool) else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {shown(reprlib.repr(value), 60)}; allowed: a number")
    return number


_TYPES: dict[str, Any] = {
    "tokens": np.int64,
    "engine_logprobs": np.float64,
    "trainer_logprobs": np.float64,
    "weight_versions": np.int64,
    "mask": bool,
    "prompt_tokens": np.int64,
}


@dataclass(frozen=True)
class SequenceLog:
    """Rollouts in their order, with provenance."""

    records: tuple[SequenceRecord, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    numbers: tuple[int, ...] | None = None
    """Each record's number in the log that it is a sample of; `meta["sampled_from"]` is how many that log has."""

    def table(self) -> TokenTable:
        """A row for every sampled token."""
        return build_table(self.records, meta=self.meta, numbers=self.numbers)

    def where(self, kept: Iterable[bool]) -> SequenceLog:
        """The records chosen by booleans."""
        chosen = [place for place, keep in enumerate(kept) if keep]
        numbers = None if self.numbers is None else tuple(self.numbers[place] for place in chosen)
        return SequenceLog(tuple(self.records[place] for place in chosen), self.meta, numbers)

    def save(self, path: Path | str) -> int:
        """Write JSON lines, as `load_sequences` reads them; returns the number of sequences."""
        return write_sequences(self.records, path)


def build_table(
    records: Iterable[SequenceRecord], *, meta: Mapping[str, Any] | None = None, numbers: Iterable[int] | None = None
) -> TokenTable:
    """A table with a row for every sampled token; reads the records one by one. Settings common to all go to `meta`.

    `numbers` are the sequences' ids; without them they are counted from 0.
    """
    parts: dict[str, list[Column]] = {
        name: [] for name in ("sequence", "position", "token", *_FLOATS, "weight_version", "prompt", *PLACES)
    }
    prompts: dict[Hashable, int] = {}
    settings: list[Mapping[str, float]] = []
    known = dict.fromkeys(PLACES, False)
    for number, record in zip(itertools.count() if numbers is None else numbers, records, strict=False):
        kept = np.flatnonzero(record.sampled)
        count = len(kept)
        key = record.key
        parts["sequence"].append(np.full(count, number))
        parts["position"].append(kept)
        parts["token"].append(record.tokens[kept])
        parts["engine_logprob"].append(record.engine_logprobs[kept])
        parts["trainer_logprob"].append(_or_nan(record.trainer_logprobs, kept))
        versions = record.weight_versions
        parts["weight_version"].append(np.full(count, -1) if versions is None else versions[kept])
        parts["prompt"].append(np.full(count, -1 if key is None else prompts.setdefault(key, len(prompts))))
        for name in PLACES:
            place = record.places.get(name, -1)
            known[name] |= name in record.places
            parts[name].append(np.full(count, place) if isinstance(place, int) else place[kept])
        if not settings or record.settings != settings[-1]:
            settings.append(record.settings)
    if not parts["sequence"]:
        return TokenTable.empty(meta)
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items() if known.get(name, True)}
    agreed = dict(settings[0]) if len({tuple(sorted(s.items())) for s in settings}) == 1 else {}
    return TokenTable(**columns, meta={**agreed, **(meta or {})})


_FLOATS = ("engine_logprob", "trainer_logprob")


def parse_record(row: Mapping[str, Any]) -> SequenceRecord:
    """The record of one parsed line. Raises ValueError that says what is wrong."""
    if "token_ids" not in row or "engine_logprobs" not in row:
        raise ValueError("token_ids and engine_logprobs are needed")
    return SequenceRecord(
        tokens=row["token_ids"],
        engine_logprobs=row["engine_logprobs"],
        trainer_logprobs=row.get("trainer_logprobs"),
        weight_versions=row.get("weight_versions"),
        mask=row.get("mask"),
        prompt_tokens=_or_none(row.get("prompt_token_ids")),
        prompt_key=row.get("prompt_id"),
        settings={name: finite_number(name, row[name]) for name in SETTINGS if row.get(name) is not None},
        places={name: row[name] for name in PLACES if row.get(name) is not None} | _counted(row),
        engine_routes=row.get("engine_routed_experts") if row.get("trainer_routed_experts") is None else None,
    )


def _counted(row: Mapping[str, Any]) -> dict[str, Column]:
    counted = routes_differ(row, len(row["token_ids"])) if isinstance(row["token_ids"], list) else None
    return {} if counted is None else {"routes_differ": counted}


def read_sequences(path: Path | str) -> Iterator[SequenceRecord]:
    """The sequences of a JSON-lines file, one by one. FileFormatError names file and line."""
    for name, line in read_lines(path, what="sequences"):
        row = parse_line(line, name)
        try:
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            check_schema_version(name, row.get("schema_version", 1), newest=SCHEMA_VERSION)
            record = parse_record(row)
        except ValueError as error:
            raise FileFormatError(f"{name}: {shown(error, 160)}") from None
        yield record


def load_sequences(path: Path | str) -> SequenceLog:
    """All sequences of a JSON-lines file."""
    return SequenceLog(tuple(read_sequences(path)), {"source": Path(path).name})


def load_source(path: Path | str) -> TokenTable | SequenceLog:
    """A token table (.npz, .parquet) or sequences (.jsonl, .json)."""
    path = Path(path)
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return load_sequences(path)
    return TokenTable.load(path)


def write_sequences(records: Iterable[SequenceRecord], path: Path | str) -> int:
    """Write JSON lines; returns the number of sequences."""
    count = 0
    with atomic_writer(path) as handle:
        for record in records:
            handle.write(json.dumps(record.to_json(), separators=(",", ":")).encode() + b"\n")
            count += 1
    return count


def _or_none(values: Any) -> Any:
    """None for an empty list: the prompt is not known."""
    return None if isinstance(values, list | np.ndarray) and not len(values) else values


def _or_nan(values: Column | None, kept: Column) -> Column:
    return np.full(len(kept), np.nan) if values is None else values[kept]


def _with_nulls(values: Column) -> list[float | None]:
    found: list[float | None] = values.tolist()
    return found if np.isfinite(values).all() else [v if v is not None and math.isfinite(v) else None for v in found]
