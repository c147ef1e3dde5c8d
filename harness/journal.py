"""What a measurement has so far, on disk: whatever interrupts it, no answer is lost and none is asked for twice.

``measurement.json`` says what was asked, and of which engine. ``unfinished.jsonl`` has a line for each answered
sequence, appended once it is scored: the format of `skewsim.skew.sequences`, and beside it `id`, `prompt_id`,
`square_mass` and, where the sampler truncates, `kept_mass`. A last line that is cut off is ignored. At the end,
``tokens.npz`` and ``sequences.jsonl`` are made from the lines, in the order of their ids, each whole or absent, and
``unfinished.jsonl`` is removed. A whole measurement that is to have more sequences goes on: its ``sequences.jsonl``
becomes ``unfinished.jsonl`` again. How many tokens are asked for may change from process to process.

One process at a time measures into a folder: it holds the operating system's lock on the journal, which ends with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from skewsim.errors import FileFormatError, UserError
from skewsim.files import atomic_writer, remove_leftovers
from skewsim.settings import EngineSettings
from skewsim.skew.tokens import TokenTable

FORMAT, SCHEMA_VERSION = "skewsim-measurement", 1
ASKED, LINES = "measurement.json", "unfinished.jsonl"
TABLE, SEQUENCES, PROFILE = "tokens.npz", "sequences.jsonl", "profile.json"
SAME = ("engine_version", "trainer", "machine", "cpu_features")
"""What of the provenance must be the same for all rows."""
ATTEMPTS, BETWEEN_S = 20, 0.1
"""How often a lock is tried, and seconds between."""


class Journal:
    """The journal of one measurement in `folder`. Nothing is written before `begin`.

    Raises UserError if the folder holds another measurement, or this one and `resume` is not set.
    """

    def __init__(self, folder: Path | str, asked: Mapping[str, Any], *, resume: bool = False) -> None:
        self.folder = Path(folder)
        self.lines, self.table_path = self.folder / LINES, self.folder / TABLE
        self.done: dict[int, int] = {}
        """The tokens of each sequence that it has, by the sequence's id."""
        self.meta: dict[str, Any] = {}
        """Provenance of all rows, as the process wrote it that began the measurement."""
        self.whole = False
        """The files that stay are there, and no lines besides."""
        self._asked = json.loads(json.dumps(asked))
        self._written: Any = None
        """What was asked, as the file says it."""
        self._file: int | None = None
        self._end = 0
        self._places: dict[int, tuple[int, int]] = {}
        self._look(resume)

    def begin(self, meta: Mapping[str, Any]) -> None:
        """Open for appending. `meta` is written if there is none yet; else what computes must be the same."""
        if self.meta:
            _compare(self.meta, meta, SAME, self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.whole:
                os.replace(self.folder / SEQUENCES, self.lines)
            self._open()
            if self.whole and self.lines.stat().st_size != self._end:
                raise UserError(f"--out {self.folder}: another process has measured into it meanwhile")
            self.whole = False
            remove_leftovers(self.folder, (ASKED, TABLE, SEQUENCES, PROFILE))
            os.truncate(self.lines, self._end)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error.strerror}") from None
        if self._written != self._asked:
            self.meta = self.meta or dict(meta)
            document = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "asked": self._asked, "meta": self.meta}
            with atomic_writer(self.folder / ASKED) as handle:
                handle.write(json.dumps(document, indent=1).encode() + b"\n")

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append sequences; once this returns, the operating system has them, and killing this process loses none."""
        assert self._file is not None, "begin() comes first"
        found = list(lines)
        data = memoryview("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in found).encode())
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise UserError(f"{self.lines} cannot be written: {error.strerror}; {self.kept}") from None
        self._count(found)

    @property
    def kept(self) -> str:
        """What is left after a failure, in words."""
        return f"{len(self.done)} sequences are kept, and --resume goes on"

    def table(self) -> tuple[TokenTable, int]:
        """All rows in the order of their ids, and how many were left out because a logprob is not finite."""
        columns: dict[str, array[Any]] = {
            name: array("q") for name in ("sequence", "position", "token", "weight_version", "prompt")
        }
        routes = array("q")
        columns |= {n: array("d") for n in ("engine_logprob", "trainer_logprob", "kept_mass", "square_mass")}
        self._places.clear()
        for start, end, line in read_lines(self.lines):
            count = len(line["token_ids"])
            self._places[line["id"]] = (start, end)
            columns["sequence"].extend([line["id"]] * count)
            columns["position"].extend(range(count))
            columns["token"].extend(line["token_ids"])
            columns["weight_version"].extend(line["weight_versions"])
            columns["prompt"].extend([line["prompt_id"]] * count)
            columns["engine_logprob"].extend(_numbers(line["engine_logprobs"]))
            columns["trainer_logprob"].extend(_numbers(line["trainer_logprobs"]))
            columns["kept_mass"].extend(line.get("kept_mass") or [1.0] * count)
            columns["square_mass"].extend(_numbers(line["square_mass"]))
            routes.extend(line.get("routes_differ") or [-1] * count)
        if any(value >= 0 for value in routes):
            columns["routes_differ"] = routes
        arrays = {name: np.frombuffer(column, dtype=column.typecode) for name, column in columns.items()}
        kept = np.isfinite(arrays["engine_logprob"]) & np.isfinite(arrays["trainer_logprob"])
        order = np.argsort(arrays["sequence"], kind="stable")
        table = TokenTable(**{n: a[order] for n, a in arrays.items()}, meta=self.meta).select(kept[order])
        return table, int((~kept).sum())

    def save(self, table: TokenTable) -> None:
        """Write the two files that stay: the table, and the lines in the order of their ids."""
        remove_leftovers(self.folder, (ASKED, TABLE, SEQUENCES, PROFILE))
        table.save(self.table_path)
        with open(self.lines, "rb") as source, atomic_writer(self.folder / SEQUENCES) as handle:
            for start, end in (place for _, place in sorted(self._places.items())):
                source.seek(start)
                handle.write(source.read(end - start))

    def remove(self) -> None:
        """Remove the journal's lines; the measurement is whole."""
        self.lines.unlink()
        self.whole = True

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self.done.update((line["id"], len(line["token_ids"])) for line in lines)

    def _look(self, resume: bool) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--out {self.folder} is a file; allowed is a folder")
        names = (ASKED, LINES, TABLE, SEQUENCES, PROFILE)
        if not any((self.folder / name).exists() for name in names):
            return
        if not resume:
            raise UserError(
                f"--out {self.folder} holds a measurement already; allowed: a folder without one, or --resume"
            )
        if not (self.folder / ASKED).exists():
            if self.lines.exists() and not self.lines.stat().st_size:
                return  # killed in its first moment
            raise UserError(f"--resume: {self.folder / ASKED} is missing, which says what was measured")
        document = _read_document(self.folder / ASKED)
        self._written, self.meta = document["asked"], document["meta"]
        before = _with_defaults(self._written, self._asked)
        _compare(before, self._asked, [key for key in self._asked if key != "num_tokens"], self.folder)
        self.whole = self.table_path.exists() and not self.lines.exists()
        path = self.folder / SEQUENCES if self.whole else self.lines
        if not self.whole and not path.exists():
            return  # killed before its first sequence
        try:
            if not self.whole:
                self._open()
            for _, end, line in read_lines(path):
                self._end = end
                self._count([line])
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}") from None

    def _open(self) -> None:
        if self._file is None:
            self._file = os.open(self.lines, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            if not _locked(self._file):
                self.close()
                raise UserError(f"--out {self.folder}: another process is measuring into it")


def _locked(number: int) -> bool:
    """Lock an open file. A process that was killed a moment ago may hold its lock until the system has ended it."""
    for _ in range(ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(BETWEEN_S)
    return False


def read_lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(first byte, byte after the last, content) of every whole line; a last one that is cut off is left out."""
    end = 0
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            start, end = end, end + len(line)
            try:
                found = json.loads(line)
                if not isinstance(found, dict) or not isinstance(found.get("id"), int):
                    raise ValueError
            except ValueError:
                raise FileFormatError(f"{path}, line {number}: not a measured sequence; the file was changed") from None
            yield start, end, found


def _numbers(values: list[float | None]) -> Iterable[float]:
    return [np.nan if value is None else value for value in values]


def _read_document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not (isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found["asked"], dict)):
            raise ValueError
    except (OSError, ValueError, KeyError):
        raise FileFormatError(f"{path}: truncated, or not a measurement's") from None
    if found.get("schema_version") != SCHEMA_VERSION:
        raise FileFormatError(
            f"{path}: schema_version={found.get('schema_version')!r}; this skewsim reads {SCHEMA_VERSION}"
        )
    return found


def _with_defaults(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What was asked before, perhaps by a version that had fewer settings: those that it lacks had their defaults."""
    old, new = before.get("settings"), now.get("settings")
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return before
    defaults = EngineSettings().model_dump()
    return before | {"settings": {key: defaults[key] for key in new if key in defaults} | old}


def _compare(before: Any, now: Any, keys: Iterable[str], folder: Path, prefix: str = "") -> None:
    """Raises UserError that names the first entry in which two descriptions differ."""
    for key in keys:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _compare(old, new, sorted({*old, *new}), folder, f"{prefix}{key}.")
        elif old != new:
            raise UserError(
                f"--resume: {prefix}{key}={new!r}, but {folder} was begun with {old!r}; "
                "allowed: the same, or another --out"
            )
