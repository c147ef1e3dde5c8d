"""Metrics by step from whatever a tracker left behind: one dictionary of named columns, whoever wrote the file.

- W&B: a CSV export of panels; the file of an offline run, `run-ID.wandb` (a LevelDB log of protobuf records,
  wandb/proto/wandb_internal.proto).
- TensorBoard: `events.out.tfevents.*` (records of tensorboard/compat/proto/event.proto).
- trackio: `PROJECT.db`, SQLite (trackio/sqlite_storage.py).
- JSON lines: prime-rl's `metrics.jsonl`, verl's `file` logger (`{"step", "data"}`), ms-swift's `logging.jsonl`,
  NeMo-RL's and any other flat lines; JSON: Hugging Face's `trainer_state.json`.
- Prometheus' text format, of a vLLM server's /metrics: one moment, step 0.

`read_curves` maps the names to ours; `identify` says what a file or folder is.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.log_files import LONGEST_LINE, SUFFIXES, first_row, read_rows
from skewsim.errors import FileFormatError
from skewsim.skew.curves import MetricCurves, curves_of, find_name, guess_framework

Columns = dict[str, tuple[list[int], list[float]]]
STEP_NAMES = (
    "step",
    "Step",
    "_step",
    "global_step",
    "train/global_step",
    "training/global_step",
    "trainer/global_step",
)
CONFIGS = (".toml", ".yaml", ".yml", ".sh")


@dataclass
class Logged:
    """Named columns, by run."""

    runs: dict[str, Columns] = field(default_factory=dict)

    def add(self, run: str, name: str, step: int, value: Any) -> None:
        """Keep a value if it is a number."""
        number = _number(value)
        if number is not None:
            steps, values = self.runs.setdefault(run, {}).setdefault(name, ([], []))
            steps.append(step)
            values.append(number)

    def row(self, run: str, row: Mapping[str, Any], default: int) -> None:
        """Keep every number of a row of names and values, at the step that it names."""
        step = next((int(s) for name in STEP_NAMES if (s := _number(row.get(name))) is not None and s == s), default)
        for name, value in row.items():
            if name not in STEP_NAMES:
                self.add(run, str(name), step, value)


def read_curves(path: Path | str, *, run: str | None = None) -> MetricCurves:
    """The metrics of a log, or of the one log in a folder, under our names, values in our sign and unit.

    Of several runs in one file the first is taken, or the one named. FileFormatError: no metrics, truncated, unknown.
    """
    path = _metrics_file(Path(path))
    logged = _reader(path)(path)
    if not logged.runs:
        raise FileFormatError(f"metrics {path}: no numbers by step")
    chosen = run if run is not None else next(iter(logged.runs))
    if chosen not in logged.runs:
        raise FileFormatError(f"metrics {path}: no run {chosen}; there are {', '.join(logged.runs)}")
    return curves_of(logged.runs[chosen], source=path.name, runs=tuple(logged.runs))


def _reader(path: Path) -> Callable[[Path], Logged]:
    if not path.is_file():
        raise FileFormatError(f"metrics {path}: no such file")
    if "tfevents" in path.name:
        return _tensorboard
    known = {
        ".csv": _csv,
        ".wandb": _wandb,
        ".db": _trackio,
        ".sqlite": _trackio,
        ".prom": _prometheus,
        ".txt": _prometheus,
    }
    found = known.get(path.suffix, _json if path.suffix in (".jsonl", ".json", ".ndjson") else None)
    if found is None:
        kinds = ".csv, .wandb, .db, .jsonl, .json, .prom, .txt, events.out.tfevents.*"
        raise FileFormatError(f"metrics {path}: suffix {path.suffix!r} is not known; allowed: {kinds}")
    return found


def _number(value: Any) -> float | None:
    """A value as a number; trackio and JSON write those that are not finite as words. None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


# ------------------------------------------------------------------------------------------------------- text files


def _csv(path: Path) -> Logged:
    """A W&B export: a column Step, and `RUN - NAME` for each run and metric, with its least and greatest beside it."""
    logged = Logged()
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            for number, row in enumerate(rows):
                by_run: dict[str, dict[str, Any]] = {}
                shared = {name: row[name] for name in STEP_NAMES if row.get(name)}
                for column, value in row.items():
                    if column is None or column in STEP_NAMES or not value or column.endswith(("__MIN", "__MAX")):
                        continue
                    run, dash, name = column.rpartition(" - ")
                    if not (name in STEP_NAMES or name == "_timestamp"):
                        by_run.setdefault(run if dash else "", {})[name] = value
                for run, values in by_run.items():
                    logged.row(run, values | shared, number)
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"metrics {path}: no CSV ({str(error)[:80]})") from None
    return logged


def _json(path: Path) -> Logged:
    """Flat lines, `{"step", "data": {...}}` lines, or a `log_history`."""
    logged = Logged()
    for number, row in enumerate(read_rows(path)):
        if not isinstance(row, Mapping):
            raise FileFormatError(f"metrics {path}, row {number + 1}: no JSON object")
        if isinstance(history := row.get("log_history"), list):
            for place, each in enumerate(history):
                logged.row("", _flat(each) if isinstance(each, Mapping) else {}, place)
        elif isinstance(data := row.get("data"), Mapping):
            logged.row("", {"step": row.get("step"), **_flat(data)}, number)
        else:
            logged.row("", _flat(row), number)
    return logged


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """One level of nesting, as in {"train": {"loss": 1}}, as names with a slash."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": each for inner, each in value.items()}
        else:
            flat[name] = value
    return flat


def _prometheus(path: Path) -> Logged:
    """Prometheus' text: a name, labels in braces, a value; the values of a name under all labels are summed."""
    sums: dict[str, float] = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                found = re.match(r"([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)", line)
                number = None if found is None else _number(found[2])
                if found is not None and number is not None:
                    sums[found[1]] = sums.get(found[1], 0.0) + number
    except UnicodeDecodeError:
        raise FileFormatError(f"metrics {path}: not UTF-8") from None
    logged = Logged()
    for name, value in sums.items():
        logged.add("", name, 0, value)
    return logged


# ---------------------------------------------------------------------------------------------------- trackers' own


def _trackio(path: Path) -> Logged:
    logged = Logged()
    try:
        with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True) as connection:
            for run, step, metrics in connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"):
                logged.row(str(run), {**_flat(json.loads(metrics)), "step": step}, 0)
        connection.close()
    except (sqlite3.Error, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"metrics {path}: truncated, or no trackio project ({str(error)[:80]})") from None
    return logged


def _tensorboard(path: Path) -> Logged:
    """Scalars of an event file; a record that is cut off at its end, as while a run goes on, ends it."""
    logged = Logged()
    with open(path, "rb") as handle:
        while len(head := handle.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            if length > LONGEST_LINE:
                raise FileFormatError(f"metrics {path}: no TensorBoard event file")
            event = handle.read(length)
            if len(event) < length or len(handle.read(4)) < 4:
                break
            with _parsing(path, "TensorBoard event file"):
                _event(logged, event)
    return logged


def _event(logged: Logged, event: bytes) -> None:
    step, summaries = 0, []
    for number, value in _message(event):
        if number == 2:
            step = int(value)
        elif number == 5:
            summaries.append(value)
    for summary in summaries:
        for number, scalar in _message(summary):
            if number == 1:
                parts = dict(_message(scalar))
                logged.add("", parts[1].decode(), step, _scalar(parts))


def _scalar(parts: Mapping[int, Any]) -> float | None:
    """A summary value's number: `simple_value`, or a tensor of one float or double."""
    if 2 in parts:
        return float(struct.unpack("<f", parts[2])[0])
    tensor = dict(_message(parts[8])) if 8 in parts else {}
    for name, letter, size in ((5, "f", 4), (6, "d", 8)):
        if name in tensor and len(tensor[name]) == size:
            return float(struct.unpack(f"<{letter}", tensor[name])[0])
    if tensor.get(1) in (1, 2) and len(tensor.get(4, b"")) == 4 * tensor[1]:
        return float(struct.unpack("<f" if tensor[1] == 1 else "<d", tensor[4])[0])
    return None


def _wandb(path: Path) -> Logged:
    """The history of an offline run."""
    logged = Logged()
    for number, record in enumerate(_leveldb(path)):
        with _parsing(path, "W&B run"):
            for name, history in _message(record):
                if name == 2:  # Record.history
                    logged.row("", _history(history), number)
    return logged


def _history(history: bytes) -> dict[str, Any]:
    """A HistoryRecord's items: their keys, or nested keys joined by a dot, and those values that are numbers."""
    row: dict[str, Any] = {}
    for name, value in _message(history):
        if name == 1:
            keys: list[bytes] = []
            text = b""
            for number, part in _message(value):
                if number == 16:
                    text = part
                elif number in (1, 2):
                    keys.append(part)
            try:
                row[b".".join(keys).decode()] = float(text)
            except ValueError:
                continue  # a table, a histogram, a word
        elif name == 2:
            row.setdefault("_step", dict(_message(value)).get(1, 0))
    return row


BLOCK = 32768
"""Bytes of a block of a LevelDB log; a record's pieces do not cross it."""


def _leveldb(path: Path) -> Iterator[bytes]:
    """The records of W&B's LevelDB log; one that is cut off ends it."""
    with open(path, "rb") as handle:
        if handle.read(7)[:4] != b":W&B":
            raise FileFormatError(f"metrics {path}: no W&B run")
        at, record = 7, b""
        while True:
            if BLOCK - at % BLOCK < 7:
                at += len(handle.read(BLOCK - at % BLOCK))
            head = handle.read(7)
            if len(head) < 7:
                return
            _, length, kind = struct.unpack("<IHB", head)
            piece = handle.read(length)
            at += 7 + len(piece)
            if len(piece) < length or kind not in (1, 2, 3, 4) or len(record) > LONGEST_LINE:
                return
            record = piece if kind in (1, 2) else record + piece
            if kind in (1, 4):
                yield record


# --------------------------------------------------------------------------------------------------------- protobuf


class _parsing:
    """Whatever goes wrong inside is a file that is not what its name says."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, KeyError | IndexError | ValueError | TypeError | AttributeError | struct.error):
            raise FileFormatError(f"metrics {self.path}: no {self.what}") from None


def _message(data: Any) -> list[tuple[int, Any]]:
    """The fields of a protobuf message: number, and a whole number or bytes."""
    at, end = 0, len(data)
    fields = []
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            length, at = _varint(data, at) if wire == 2 else (8 if wire == 1 else 4, at)
            if at + length > end:
                raise ValueError("no protobuf message")
            value = data[at : at + length]
            at += length
        else:
            raise ValueError("no protobuf message")
        fields.append((tag >> 3, value))
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    if data[at] < 128:
        return data[at], at + 1
    value = 0
    for shift in itertools.count(0, 7):
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("no protobuf number")
    raise AssertionError


# ----------------------------------------------------------------------------------------------------- what it is

Kind = Literal["tokens", "metrics", "profile", "text", "config", "table", "folder", "unknown"]


@dataclass(frozen=True)
class Identity:
    """What a file or folder is: a log of tokens, metrics by step, a log without logprobs, a configuration, ..."""

    path: Path
    kind: Kind
    framework: str | None = None
    detail: str = ""
    """For `text`: what to switch on. For `folder`: nothing; its parts say it."""
    parts: tuple[Identity, ...] = ()
    """A folder's files that are something."""

    def first(self, kind: Kind) -> Identity | None:
        """The first part of a kind, or this itself."""
        return self if self.kind == kind else next((part for part in self.parts if part.kind == kind), None)


def identify(path: Path | str) -> Identity:
    """What a file or folder is, by its name and first row. FileFormatError only if it is not there."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        parts = (identify(file) for file in files)
        whose = "skewsim" if (path / "scenario.toml").is_file() else None
        return Identity(path, "folder", whose, parts=tuple(part for part in parts if part.kind != "unknown"))
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file")
    try:
        return _identify_file(path)
    except FileFormatError as error:
        return Identity(path, "unknown", detail=str(error))


def _identify_file(path: Path) -> Identity:
    from harness.logs import FORMATS, format_of
    from harness.logs.text_only import refusal

    if path.suffix in CONFIGS:
        return Identity(path, "config")
    if path.suffix == ".npz":
        return Identity(path, "table", "skewsim")
    if path.suffix in (".pkl", ".pickle"):
        return Identity(path, "text", "SkyRL", "a pickle is not read")
    if path.suffix in (".csv", ".wandb", ".db", ".prom") or "tfevents" in path.name:
        names = [name for run in _reader(path)(path).runs.values() for name in run]
        return Identity(path, "metrics", guess_framework(names))
    if path.suffix not in SUFFIXES:
        return Identity(path, "unknown")
    row = first_row(path)
    keys = set(map(str, row)) if isinstance(row, Mapping) else set()
    if path.suffix == ".parquet" and _is_token_table(path):
        return Identity(path, "table", "skewsim")
    if keys >= {"by_probability", "quantile_levels"}:
        return Identity(path, "profile", "skewsim")
    if (found := format_of(keys)) is not None:
        return Identity(path, "tokens", FORMATS[found].framework if found in FORMATS else found)
    if (words := refusal(keys)) is not None:
        framework, _, detail = words.partition(": ")
        return Identity(path, "text", framework, detail)
    names = list(_flat(row.get("data") or row)) if isinstance(row, Mapping) and not _nested(row.get("data")) else []
    if "log_history" in keys or any(find_name(name) for name in names):
        return Identity(path, "metrics", guess_framework(names) if "log_history" not in keys else "TRL")
    return Identity(path, "unknown")


def _nested(data: Any) -> bool:
    return data is not None and not isinstance(data, Mapping)


def _is_token_table(path: Path) -> bool:
    import pyarrow.parquet

    from skewsim.skew.tokens import FORMAT

    return FORMAT.encode() in (pyarrow.parquet.read_schema(path).metadata or {})


def _metrics_file(path: Path) -> Path:
    """The file itself; of a folder, the one that holds metrics."""
    if not path.is_dir():
        return path
    found = [part.path for part in identify(path).parts if part.kind == "metrics"]
    if not found:
        raise FileFormatError(f"metrics {path}: no file of metrics by step")
    if len(found) > 1:
        named = ", ".join(str(file.relative_to(path)) for file in found[:5])
        raise FileFormatError(f"metrics {path}: {len(found)} files of metrics ({named}); give one of them")
    return found[0]
