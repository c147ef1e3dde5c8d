"""What the readers of all frameworks share: the row they get, what they may say of it, and small conversions."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from skewsim.skew.sequences import SequenceRecord, finite_number, to_array
from skewsim.skew.tokens import PLACES

Row = Mapping[str, Any]
Kind = TypeVar("Kind")


@dataclass
class Notes:
    """What a person should know of a log that was read: sentences, each with the number of times it was true."""

    counts: Counter[str] = field(default_factory=Counter)

    def say(self, sentence: str) -> None:
        self.counts[sentence] += 1

    def lines(self) -> list[str]:
        return [text if count == 1 else f"{text} ({count} times)" for text, count in self.counts.items()]


@dataclass(frozen=True)
class Context:
    """Where a row stands: its file, and whom to tell."""

    file: Path
    notes: Notes


Read = Callable[[Any, Context], Iterator[SequenceRecord]]


@dataclass(frozen=True)
class Format:
    """How one framework's log is known and read."""

    name: str
    """The framework, and after a blank which of its logs, where it has several."""
    signatures: tuple[frozenset[str], ...]
    """Sets of fields; a row that has all of one set is of this format."""
    read: Read
    trainer: str = ""
    """Where the log holds the engine's numbers only: what to switch on for the trainer's."""
    join: Callable[[list[Path]], Iterator[tuple[Path, Any]]] | None = None
    """Rows of all files together, with the file of each, where several files speak of one sequence."""

    @property
    def framework(self) -> str:
        return self.name.partition(" ")[0]

    def fits(self, keys: set[str]) -> bool:
        return any(signature <= keys for signature in self.signatures)


def fields(*names: str) -> frozenset[str]:
    return frozenset(names)


_PLACE_NAMES = {
    "step": ("step", "global_step", "global_steps", "training_step"),
    "rank": ("data_parallel_rank", "dp_rank", "rank"),
    "replica": ("replica", "replica_id", "engine_id"),
    "turn": ("turn",),
    "pack_index": ("pack_index", "micro_sequence_idx"),
    "routes_differ": ("routes_differ",),
}


def places(row: Row, **known: Any) -> dict[str, int]:
    """The whole numbers of a row that say where in a run it comes from; `known` goes before them."""
    found = {name: first(row, *names) for name, names in _PLACE_NAMES.items()} | known
    return {name: int(found[name]) for name in PLACES if is_whole(found.get(name))}


def is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def settings(row: Row) -> dict[str, float]:
    """The sampling settings that a row names."""
    names = ("temperature", "top_p", "top_k", "min_p")
    return {name: finite_number(name, row[name]) for name in names if isinstance(row.get(name), int | float)}


def first(row: Row, *names: str) -> Any:
    """The first of these fields that is there and not null."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def whole(values: Any, name: str) -> np.ndarray:
    """A list of whole numbers as an array; ValueError says what it is instead."""
    return _one_axis(to_array(name, values, np.int64), name)


def numbers(values: Any, name: str) -> np.ndarray:
    """A list of numbers and nulls as an array; ValueError says what it is instead."""
    return _one_axis(to_array(name, values, np.float64), name)


def flags(values: Any, name: str) -> np.ndarray:
    """A list of 0 and 1, or of booleans, as an array of booleans."""
    return _one_axis(to_array(name, values, bool), name)


def _one_axis(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim != 1:
        raise ValueError(f"{name} has {array.ndim} axes; allowed: 1")
    return array


def field_of(row: Any, name: str, kind: type[Kind]) -> Kind:
    """A field that has to be there and of a kind (list, dict); ValueError says what it is instead."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {reprlib.repr(value)}; allowed: a {kind.__name__}")
    return value


def same_length(**columns: Any) -> None:
    """ValueError if columns that are there differ in length."""
    lengths = {name: len(values) for name, values in columns.items() if isinstance(values, Sized)}
    if len(set(lengths.values())) > 1:
        raise ValueError(", ".join(f"{name} has {length}" for name, length in lengths.items()) + " values")


def spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values of the sampled tokens put at their places; already full-length values as they are."""
    if len(values) == len(mask):
        return values
    if len(values) != int(mask.sum()):
        raise ValueError(f"{len(values)} logprobs for {int(mask.sum())} sampled tokens")
    full = np.full(len(mask), np.nan)
    full[mask] = values
    return full


def whole_sequence(
    tokens: np.ndarray,
    engine: np.ndarray,
    sampled: np.ndarray,
    *,
    trainer: np.ndarray | None = None,
    versions: np.ndarray | None = None,
    **more: Any,
) -> SequenceRecord:
    """A record from columns over prompt and response together: what is before the first sampled token is the prompt."""
    same_length(tokens=tokens, engine=engine, mask=sampled, trainer=trainer, versions=versions)
    start = int(np.argmax(sampled)) if sampled.any() else len(tokens)
    return SequenceRecord(
        tokens=tokens[start:],
        engine_logprobs=engine[start:],
        trainer_logprobs=None if trainer is None else trainer[start:],
        weight_versions=None if versions is None else versions[start:],
        mask=sampled[start:],
        prompt_tokens=tokens[:start],
        **more,
    )


def turns(record: SequenceRecord) -> int | np.ndarray:
    """Which sampled span each token belongs to; -1 between the spans. One span is turn 0."""
    sampled = record.sampled
    starts = np.diff(sampled.astype(np.int8), prepend=0) == 1
    if starts.sum() <= 1:
        return 0
    return np.where(sampled, np.cumsum(starts) - 1, -1)
