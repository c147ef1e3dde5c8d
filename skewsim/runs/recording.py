"""The run folder: a run's scenario, every step's records, and the state from which a killed run is resumed.

``scenario.toml`` is the scenario, ``steps.jsonl`` has a line per member and step, ``summary.json`` says how the run
ended, ``checkpoint.safetensors`` is the trainer's state. A checkpoint also holds the length of ``steps.jsonl`` when it
was made. Resuming cuts the file to that length and trains on, so that no step is lost or repeated, at whatever moment
the run was killed. Whole files are written aside and renamed; ``steps.jsonl`` is only appended to. The lock is held by
the operating system and is released when its process ends.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from skewsim import __version__
from skewsim.errors import FileFormatError, UserError
from skewsim.files import atomic_writer, check_schema_version
from skewsim.records import SCHEMA_VERSION as RECORD_VERSION
from skewsim.records import StepRecord, last_tenth
from skewsim.settings import Scenario
from skewsim.share import load_toml, to_toml

if TYPE_CHECKING:
    from skewsim.learn.trainer import TrainState
    from skewsim.runs.experiment import Experiment

SCHEMA_VERSION = 1
SCENARIO, STEPS, SUMMARY, CHECKPOINT = "scenario.toml", "steps.jsonl", "summary.json", "checkpoint.safetensors"
LOCK = ".lock"


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
        self._resume_at = 0

    def load_state(self) -> TrainState | None:
        """The state to resume from; None at the start of a run, or if it was killed before the first checkpoint."""
        if not self.resume or not (self.path / CHECKPOINT).exists():
            return None
        state, self._resume_at = _read_checkpoint(self.path / CHECKPOINT)
        steps = self.path / STEPS
        if not steps.exists() or steps.stat().st_size < self._resume_at:
            raise FileFormatError(f"{steps} is shorter than its checkpoint says; it was changed since")
        return state

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
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
        self._steps.write(b"".join(_line(record.to_json()) for record in records))
        self._steps.flush()

    def checkpoint(self, state: TrainState) -> None:
        """Save the state that belongs to the records appended so far."""
        assert self._steps is not None
        os.fsync(self._steps.fileno())
        _write_checkpoint(self.path / CHECKPOINT, state, self._steps.tell())

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
    experiment: Experiment, folder: RunFolder | None, *, steps: int, checkpoint_every: int = 1
) -> Generator[list[StepRecord], None, None]:
    """Train up to ``steps`` and yield each step's records, after writing them to the folder if there is one."""
    with folder or nullcontext():
        while experiment.alive and experiment.step_number < steps:
            records = experiment.step()
            if folder is not None:
                folder.append(records)
                if experiment.step_number % checkpoint_every == 0:
                    folder.checkpoint(experiment.state())
            yield records
        if folder is not None:
            folder.checkpoint(experiment.state())


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


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a run folder; empty if there is none yet."""
    path = folder / SUMMARY
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_bytes())
        version = summary["schema_version"]
    except (ValueError, TypeError, KeyError, OSError):
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


def finite(data: Any) -> Any:
    """The same data with None for every number that is NaN or infinite."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data


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
    except (ValueError, TypeError, AttributeError, KeyError):
        raise FileFormatError(f"{where} is not a step record") from None


def _write_checkpoint(path: Path, state: TrainState, length: int) -> None:
    from safetensors.torch import save

    note = {"schema_version": SCHEMA_VERSION, "length": length, "meta": state.meta}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    with atomic_writer(path) as file:
        file.write(save(tensors, metadata={"skewsim": json.dumps(note)}))


def _read_checkpoint(path: Path) -> tuple[TrainState, int]:
    from safetensors import SafetensorError, safe_open

    from skewsim.learn.trainer import TrainState

    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {})["skewsim"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        version, length, meta = note["schema_version"], note["length"], note["meta"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise FileFormatError(f"{path} is not a checkpoint of a run, or is cut off") from None
    check_schema_version(str(path), version, newest=SCHEMA_VERSION)
    return TrainState(tensors=tensors, meta=meta), length
