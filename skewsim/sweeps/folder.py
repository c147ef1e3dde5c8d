"""A sweep's folder: the sweep, one Parquet file for each chunk that is done, and how far it is.

``sweep.toml`` is the sweep with nothing left to look up, ``parts/*.parquet`` are the curves, ``sweep.json`` says
whether it has finished. A part is written aside and renamed, and its name follows from its members, so that a kill at
any moment loses at most the chunks under way, and nothing is there twice. The columns of a part: member (a key of
`plan.member_key`), step, diverged, and every metric of a step but its time.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from skewsim import __version__
from skewsim.arrays import numbers, opened_parquet
from skewsim.border import parse_json, read_small
from skewsim.errors import FileFormatError, UserError, shown
from skewsim.files import atomic_writer, check_schema_version, remove_leftovers
from skewsim.machine import check_room
from skewsim.runs.recording import write_json
from skewsim.sweeps.chunk import Chunk, Columns
from skewsim.sweeps.plan import Sweep, load_sweep

SCHEMA_VERSION = 1
PLAN, STATUS, PARTS, LOCK = "sweep.toml", "sweep.json", "parts", ".lock"
ROW_BYTES = 300
"""Of a part for each member and step, about: 40 numbers, compressed."""

Curves = dict[str, np.ndarray]
"""Metric -> its values of one member, step by step; also ``diverged``."""


class SweepFolder:
    """A sweep's folder open for writing, by one process. Raises UserError before anything is written."""

    def __init__(self, path: Path, sweep: Sweep, *, resume: bool = False) -> None:
        self.path, self.sweep = path, sweep
        self._lock = FileLock(path / LOCK, timeout=0)
        if path.exists() and not path.is_dir():
            raise UserError(f"sweep folder {path} is a file; allowed is a folder that is new, empty or resumed")
        used = path.is_dir() and any(entry.name != LOCK for entry in path.iterdir())
        if used and not resume:
            raise UserError(f"sweep folder {path} is not empty; --resume goes on with its sweep")
        if used and not (path / PLAN).exists():
            raise UserError(f"sweep folder {path} has no {PLAN}: it is of no sweep")
        if used and (made := read_status(path).get("skewsim", __version__)) != __version__:
            raise UserError(f"sweep folder {path} was made by skewsim {shown(made, 40)}; this is {__version__}")

    def check_room(self, rows: int) -> None:
        """UserError if the disk has no room for the curves of so many members times steps."""
        check_room(self.path, ROW_BYTES * rows, "sweep folder")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The block appends parts; at its end the folder's status is set."""
        try:
            (self.path / PARTS).mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise UserError(f"sweep folder {self.path} is in use by another process") from None
        except OSError as error:
            raise UserError(f"sweep folder {self.path} cannot be written: {error.strerror}") from None
        status = "interrupted"
        try:
            for folder in (self.path, self.path / PARTS):
                remove_leftovers(folder)
            with atomic_writer(self.path / PLAN) as file:
                file.write(self.sweep.to_toml().encode())
            self._say("running")
            yield
            status = "finished"
        finally:
            self._say(status)
            self._lock.release()

    def append(self, chunk: Chunk, found: Columns) -> None:
        """Write a finished chunk as a part; a metric that a step does not have is null."""
        import pyarrow as pa
        import pyarrow.parquet

        table = pa.table({name: pa.array(values, from_pandas=True) for name, values in found.items()})
        name = hashlib.sha256(" ".join(chunk.keys).encode()).hexdigest()[:16]
        with atomic_writer(self.path / PARTS / f"{name}.parquet") as file:
            pyarrow.parquet.write_table(table, file, compression="zstd")

    def _say(self, status: str) -> None:
        data = {"schema_version": SCHEMA_VERSION, "skewsim": __version__, "status": status}
        write_json(self.path / STATUS, data)


def read_status(folder: Path) -> dict[str, Any]:
    """``sweep.json``; empty if there is none yet."""
    path = folder / STATUS
    if not path.exists():
        return {}
    data = parse_json(read_small(path), str(path))
    if not isinstance(data, dict):
        raise FileFormatError(f"{path} is not a sweep's status")
    check_schema_version(str(path), data.get("schema_version"), newest=SCHEMA_VERSION)
    return data


def open_sweep(folder: Path | str) -> Sweep:
    """The sweep of a folder. FileFormatError if it is none."""
    folder = Path(folder)
    if not (folder / PLAN).is_file():
        raise FileFormatError(f"{folder} is no sweep's folder: it has no {PLAN}")
    return load_sweep(folder / PLAN)


def read_curves(folder: Path, names: Iterable[str] | None = None) -> dict[str, Curves]:
    """The curves of every member in a folder, by key; ``names``: only these metrics (and ``diverged``)."""
    found: dict[str, Curves] = {}
    for path in sorted((folder / PARTS).glob("*.parquet")) if (folder / PARTS).is_dir() else ():
        found |= read_part(path, names)
    return found


def read_part(path: Path, names: Iterable[str] | None = None) -> dict[str, Curves]:
    """The curves of a part's members, by key. FileFormatError if the part is damaged, or of another kind."""
    with opened_parquet(path, what="part") as source:
        there = source.schema_arrow.names
        if missing := {"member", "step", "diverged"} - set(there):
            raise FileFormatError(f"part {path} has no column {min(missing)}")
        wanted = there if names is None else [n for n in there if n in {"member", "step", "diverged", *names}]
        table = source.read(columns=wanted, use_threads=False)
        members = np.array([str(key) for key in table["member"].to_pylist()])
    values = {
        name: numbers(table[name].combine_chunks(), f"part {path}: {name}") for name in wanted if name != "member"
    }
    begins = [0, *(np.flatnonzero(members[1:] != members[:-1]) + 1).tolist(), len(members)]
    found: dict[str, Curves] = {}
    for begin, end in itertools.pairwise(begins):
        if begin == end:
            continue
        steps = values["step"][begin:end]
        if members[begin] in found or not np.array_equal(steps, np.arange(end - begin)):
            raise FileFormatError(f"part {path}: the steps of member {shown(members[begin], 20)} are not whole")
        found[str(members[begin])] = {name: column[begin:end] for name, column in values.items() if name != "step"}
    return found
