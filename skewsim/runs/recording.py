"""The run folder: a run's scenario, every step's records, and the state from which a killed run is resumed.

``scenario.toml`` is the scenario, ``steps.jsonl`` has a line per member and step, ``summary.json`` says how the run
ended, ``checkpoint.safetensors`` is the trainer's state, ``checkpoint.previous.safetensors`` the one before. A
checkpoint also holds the length of ``steps.jsonl`` when it was made. Resuming checks state and records, cuts the file
to that length and trains on, so that no step is lost or repeated, at whatever moment the run was killed. Whole files
are written aside and renamed; ``steps.jsonl`` is only appended to. The lock is held by the operating system and is
released when its process ends.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from skewsim import __version__
from skewsim.border import open_regular, parse_json, read_small
from skewsim.errors import FileFormatError, UserError
from skewsim.files import atomic_writer, check_schema_version, finite, remove_leftovers
from skewsim.machine import check_room
from skewsim.records import SCHEMA_VERSION as RECORD_VERSION
from skewsim.records import StepRecord, last_tenth
from skewsim.runs.checkpoint import Checkpoint, fitting, read_checkpoint, write_checkpoint
from skewsim.settings import Scenario
from skewsim.share import load_toml, to_toml

if TYPE_CHECKING:
    from skewsim.learn.trainer import TrainState
    from skewsim.runs.experiment import Experiment

SCHEMA_VERSION = 1
SCENARIO, STEPS, SUMMARY, CHECKPOINT = "scenario.toml", "steps.jsonl", "summary.json", "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
LOCK = ".lock"
RECORD_BYTES = 1500
"""Of a line of ``steps.jsonl``, about."""


class RunFolder:
    """A run folder open for writing, by one process.

    The constructor only checks that the folder can be used, and raises UserError if not. ``with folder:`` creates the
    folder and begins to write. So a caller can check everything else in between.
    """

    def __init__(
        self,
        path: Path,
        scenario: Scenario,
        *,
        seeds: tuple[int, ...],
        engine: str = "sim",
        rungs: tuple[str, ...] = (),
        resume: bool = False,
    ) -> None:
        self.path, self.scenario, self.resume = path, scenario, resume
        self._identity = {"seeds": list(seeds), "engine": engine, "rungs": list(rungs)}
        self._lock = FileLock(path / LOCK, timeout=0)
        self._steps: IO[bytes] | None = None
        if (path / LOCK).exists():
            self._acquire()
        try:
            self._look()
        except BaseException:
            self._lock.release()
            raise
        self._resume_at, self._checksum = 0, 0

    def check_room(self, checkpoint: int, steps: int) -> None:
        """UserError if the disk cannot be written, or has no room for the records of so many steps in all and three
        checkpoints of so many bytes: the one that is written, and the two before it. What is there counts."""
        members = len(self._identity["seeds"]) * max(1, len(self._identity["rungs"]))
        there = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        check_room(self.path, RECORD_BYTES * members * steps + 3 * checkpoint - there, "run folder")

    def load_state(self) -> TrainState | None:
        """The state to resume from; None at the start of a run, or if it was killed before the first checkpoint."""
        there = [path for name in (CHECKPOINT, PREVIOUS) if (path := self.path / name).exists()]
        if not self.resume or not there:
            return None
        try:
            found = self._whole(there[0])
        except FileFormatError as error:
            self._lock.release()
            raise FileFormatError(f"{error}{self._offer(there[1:])}") from None
        self._resume_at = found.length
        return found.state

    def _whole(self, path: Path) -> Checkpoint:
        """A checkpoint that is as it was written, and whose records are."""
        found = read_checkpoint(path)
        self._checksum = check_records(self.path / STEPS, found)
        return found

    def _offer(self, others: list[Path]) -> str:
        """What to do about a checkpoint that was altered, if the one before it is whole."""
        for other in others:
            with suppress(FileFormatError):
                self._whole(other)
                return f"; the one before it is whole: mv {other} {self.path / CHECKPOINT}, and resume"
        return ""

    @contextmanager
    def fitting(self, state: TrainState | None) -> Iterator[None]:
        """The block gives `state` to a trainer; FileFormatError if it does not fit."""
        with fitting(self.path / CHECKPOINT, state):
            yield

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            remove_leftovers(self.path, (SCENARIO, SUMMARY, CHECKPOINT))
            with atomic_writer(self.path / SCENARIO) as file:
                file.write(to_toml(self.scenario).encode())
            self._steps = (self.path / STEPS).open("ab")
        except OSError as error:
            raise UserError(f"run folder {self.path} cannot be written: {error.strerror}") from None
        self._steps.truncate(self._resume_at)
        self._summarise("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._steps is not None:
            self._steps.close()
            self._summarise("finished" if kind is None else "interrupted")
        self._lock.release()

    def append(self, records: list[StepRecord]) -> None:
        """Append a step's records; they are with the operating system on return, so that a kill does not lose them."""
        assert self._steps is not None
        lines = b"".join(_line(record.to_json()) for record in records)
        self._steps.write(lines)
        self._steps.flush()
        self._checksum = zlib.crc32(lines, self._checksum)

    def checkpoint(self, state: TrainState) -> None:
        """Save the state that belongs to the records appended so far."""
        assert self._steps is not None
        os.fsync(self._steps.fileno())
        found = Checkpoint(state, self._steps.tell(), self._checksum)
        write_checkpoint(self.path / CHECKPOINT, self.path / PREVIOUS, found)

    def _look(self) -> None:
        if self.path.is_dir():
            used = any(entry.name != LOCK for entry in self.path.iterdir())
        elif self.path.exists():
            raise UserError(f"run folder {self.path} is a file; allowed is a folder that is new, empty or resumed")
        else:
            used = False
        if used and not self.resume:
            raise UserError(f"run folder {self.path} is not empty; --resume goes on with its run")
        if self.resume and (self.path / SCENARIO).exists():
            self._check_same_run()

    def _check_same_run(self) -> None:
        own = load_toml(self.path / SCENARIO)
        if own.model_copy(update={"steps": self.scenario.steps}) != self.scenario:  # a resumed run may have more steps
            raise UserError(f"run folder {self.path} is of another scenario; its own is {self.path / SCENARIO}")
        summary = read_summary(self.path)
        for key, value in self._identity.items():
            if key in summary and summary[key] != value:
                raise UserError(f"run folder {self.path} has {key}={summary[key]!r}, not {value!r}")

    def _acquire(self) -> None:
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(f"run folder {self.path} is in use by another process") from None
        except OSError as error:
            raise UserError(f"run folder {self.path} cannot be written: {error.strerror}") from None

    def _summarise(self, status: str) -> None:
        summary = {"schema_version": SCHEMA_VERSION, "skewsim": __version__, "status": status, **self._identity}
        if status != "running":
            summary |= summarise(read_records(self.path))
        write_json(self.path / SUMMARY, summary)


def record(
    experiment: Experiment, folder: RunFolder | None, *, steps: int | None, checkpoint_every: int = 1
) -> Generator[list[StepRecord], None, None]:
    """Train up to ``steps`` and yield each step's records, after writing them to the folder if there is one.

    None: for as long as somebody asks for steps; the folder's disk must have room up to the first checkpoint.
    """
    if folder is not None:
        folder.check_room(_checkpoint_bytes(experiment), steps or experiment.step_number + checkpoint_every)
    with folder or nullcontext():
        while experiment.alive and (steps is None or experiment.step_number < steps):
            records = experiment.step()
            if folder is not None:
                folder.append(records)
                if experiment.step_number % checkpoint_every == 0:
                    folder.checkpoint(experiment.state())
            yield records
        if folder is not None:
            folder.checkpoint(experiment.state())


def _checkpoint_bytes(experiment: Experiment) -> int:
    """Of the largest checkpoint, or of the first one where nobody knows more."""
    from skewsim.runs.experiment import Grows

    if isinstance(experiment, Grows):
        return experiment.checkpoint_bytes()
    return sum(tensor.nbytes for tensor in experiment.state().tensors.values())


def read_records(folder: Path) -> Iterator[StepRecord]:
    """Every record of a run folder or a ``steps.jsonl``, in order; an incomplete last line is left out."""
    path = folder / STEPS if folder.is_dir() else folder
    try:
        lines = path.open("rb")
    except OSError as error:
        raise FileFormatError(f"{path}: {error.strerror}") from None
    with lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                yield _parse_record(line, f"{path}, line {number}")


def check_records(path: Path, checkpoint: Checkpoint) -> int:
    """The CRC-32 of the records that belong to a checkpoint. FileFormatError if one is none, or was altered."""
    checksum, left = 0, checkpoint.length
    with open_regular(path) as lines:
        for number in itertools.count(1):
            line = lines.readline(left) if left else b""
            if not line:
                break
            if not line.endswith(b"\n"):
                raise FileFormatError(f"{path}, line {number} is not as long as its checkpoint says; it was altered")
            _parse_record(line, f"{path}, line {number}")
            checksum, left = zlib.crc32(line, checksum), left - len(line)
    if left:
        raise FileFormatError(f"{path} is shorter than its checkpoint says; it was changed since")
    if checkpoint.records not in (None, checksum):
        raise FileFormatError(f"{path}: its records were altered since the checkpoint was written")
    return checksum


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a run folder; empty if there is none yet."""
    path = folder / SUMMARY
    if not path.exists():
        return {}
    try:
        summary = parse_json(read_small(path), str(path))
        version = summary["schema_version"]
    except (TypeError, KeyError, FileFormatError):
        raise FileFormatError(f"{path} is not a run's summary") from None
    check_schema_version(str(path), version, newest=SCHEMA_VERSION)
    return dict(summary)


def run_status(folder: Path) -> str:
    """finished, interrupted or running; a summary that says running while the lock is free is of a killed run."""
    status = str(read_summary(folder).get("status", "no summary"))
    if status != "running" or not (folder / LOCK).exists():
        return status
    try:
        with FileLock(folder / LOCK, timeout=0):
            return "interrupted"
    except (Timeout, OSError):
        return status


def summarise(records: Iterable[StepRecord]) -> dict[str, Any]:
    """How each member ended: steps, whether it diverged, and every metric's mean over the last tenth of its steps."""
    members: dict[tuple[str, int], list[StepRecord]] = {}
    for row in records:
        members.setdefault((row.scenario, row.seed), []).append(row)
    return {
        "members": [
            {
                "scenario": name,
                "seed": seed,
                "steps": rows[-1].step + 1,
                "diverged": rows[-1].diverged,
                "last_tenth": _means(last_tenth(rows)),
            }
            for (name, seed), rows in members.items()
        ]
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write data as JSON, atomically; a number that is not finite becomes null."""
    with atomic_writer(path) as file:
        file.write(json.dumps(finite(data), indent=1, allow_nan=False).encode() + b"\n")


def _means(rows: list[StepRecord]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for key in rows[-1].metrics:
        values = [value for row in rows if (value := row.metrics.get(key)) is not None and math.isfinite(value)]
        means[key] = sum(values) / len(values) if values else None
    return means


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(finite(row), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _parse_record(line: bytes, where: str) -> StepRecord:
    try:
        row = json.loads(line)
        check_schema_version(where, row.get("schema_version", 1), newest=RECORD_VERSION)
        return StepRecord.from_json(row)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise FileFormatError(f"{where} is not a step record") from None
