"""Rollouts that a training run has already logged, read into a TokenTable or whole sequences.

A module per framework, each with the field names of the code that writes the log, and where that code is: `batches`
(verl, TRL, SkyRL, OpenRLHF), `prime_rl`, `slime` (and Miles), `nemo_rl`, `engines` (PipelineRL, open-instruct, vLLM's
answers); `table` reads what somebody made, `text_only` says what to switch on where a log holds text only. What each
keeps is in docs/logs.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.log_files import first_row, log_files, read_rows
from harness.logs import batches, engines, nemo_rl, prime_rl, slime
from harness.logs.rows import Context, Format, Notes, Read, fields, turns
from harness.logs.table import LONG, check_columns, is_long, long_table, wide_reader
from harness.logs.text_only import refusal
from harness.logs.values import ValueCounts, count_values, without_tools
from skewsim.errors import FileFormatError, UserError, shown
from skewsim.skew.curves import find_name
from skewsim.skew.sequences import SequenceLog, SequenceRecord, build_table, load_source, parse_record
from skewsim.skew.tokens import TokenTable


def _sequences(row: Any, context: Context) -> Iterator[SequenceRecord]:
    yield parse_record(row)


FORMATS = {
    each.name: each
    for each in (
        Format("sequences", (fields("token_ids", "engine_logprobs"),), _sequences, "score it with diagnose --model"),
        *batches.FORMATS,
        *nemo_rl.FORMATS,
        *slime.FORMATS,
        *prime_rl.FORMATS,
        *engines.FORMATS,
    )
}
PREFERRED = ("prime-rl", "miles", "slime", "slime rollouts", "prime-rl traces")
"""Of several logs in one folder, the one that says most."""
BESIDE = {
    "prime-rl": {"prime-rl traces", "prime-rl rollouts", "prime-rl samples"},
    "prime-rl traces": {"prime-rl rollouts", "prime-rl samples"},
    "miles": {"miles dashboard"},
    "slime rollouts": {"miles dashboard"},
}
"""What a framework writes beside a log of the same sequences; not read when that log is there."""
TOGETHER = {"miles": {"slime rollouts"}, "slime": {"slime rollouts"}}
"""What is read together with a log, as it speaks of the same sequences."""
_WRONG = (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError)


@dataclass
class Report:
    """What was found while a log was read: complete once the last row is."""

    format: str = ""
    notes: Notes = field(default_factory=Notes)
    values: ValueCounts = field(default_factory=ValueCounts)
    trainer_known: bool = False

    def lines(self) -> list[str]:
        """What to tell a person, a sentence each."""
        lines = [*self.values.lines(), *self.notes.lines()]
        advice = FORMATS[self.format].trainer if self.format in FORMATS else ""
        if not self.trainer_known and advice:
            lines.append(f"the engine's logprobs only; {advice}")
        return lines


def import_rollouts(
    path: Path | str,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    report: Report | None = None,
) -> TokenTable:
    """A framework's log (a file, or a folder of them) as a TokenTable.

    `format` is one of `formats()` or "auto" (by field names). `columns` maps a name of ours to the log's:
    ``{"engine_logprob": "vllm_lp"}`` (one row a token) or ``{"engine_logprobs": "lps"}`` (one row a sequence);
    giving it means format "table". `report` is filled with what a person should know. FileFormatError names file and
    row; UserError an unknown format or column.
    """
    report = report or Report()
    chosen, files = _choose(Path(path), format, columns or {})
    meta: dict[str, Any] = {"source": Path(path).name, "imported_from": chosen.partition(" ")[0]}
    if chosen == "table" and is_long(files[0], columns or {}):
        table = long_table(files, columns or {}, meta)
        _report_table(table, report)
    else:
        table = build_table(import_sequences(path, format=format, columns=columns, report=report), meta=meta)
    if not len(table):
        raise FileFormatError(f"{chosen} log {path}: no sampled token")
    return _described(table, report)


def import_sequences(
    path: Path | str,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    report: Report | None = None,
) -> Iterator[SequenceRecord]:
    """The same log as whole sequences with their prompts, one by one."""
    report = report or Report()
    report.format, files = _choose(Path(path), format, columns or {})
    read = _table(files[0], columns or {}) if report.format == "table" else FORMATS[report.format].read
    join = FORMATS[report.format].join if report.format in FORMATS else None
    at: tuple[Path, int] = (files[0], 0)
    row: Any = None
    try:
        for file, row in join(files) if join else _rows(files):
            at = (file, at[1] + 1 if file == at[0] else 1)
            for record in read(row, Context(file, report.notes)):
                yield _checked(record, report)
    except _WRONG as error:
        raise FileFormatError(f"{report.format} log {at[0]}, row {at[1]}: {_reason(error, row)}") from None


def _table(file: Path, columns: Mapping[str, str]) -> Read:
    """The reader of a table with a sequence a row, once its first row is known to have the columns that are named."""
    read = wide_reader(columns)
    check_columns(file, columns)
    return read


def _reason(error: Exception, row: Any) -> str:
    """What is wrong with a row, in our words: a reader's own, the name of what is missing, or that a type is odd."""
    if isinstance(error, KeyError):
        return f"no field {shown(error, 80)}"
    if type(error) is ValueError:
        return shown(error, 200)
    if not isinstance(row, Mapping | list):
        return "no JSON object"
    return f"one of its fields ({shown(', '.join(map(str, row)), 100)}) has another type than this format's"


def read_log(path: Path | str, *, report: Report | None = None) -> TokenTable | SequenceLog:
    """Whatever somebody has, for `skewsim.diagnose`: a token table, whole sequences, or another program's log.

    `report` is filled where the log was another program's. Raises FileFormatError.
    """
    path = Path(path)
    if path.suffix == ".npz" or not path.exists():
        return load_source(path)
    row = first_row(path) if path.is_file() else None
    keys = set(map(str, row)) if isinstance(row, Mapping) else set()
    if keys >= {"token_ids", "engine_logprobs"} or keys >= {"sequence", "position", "engine_logprob"}:
        return load_source(path)
    report = report or Report()
    records = tuple(import_sequences(path, report=report))
    return SequenceLog(records, {"source": path.name, "imported_from": report.format.partition(" ")[0]})


def formats() -> list[str]:
    """The names `import_rollouts` knows."""
    return [*dict.fromkeys(each.framework for each in FORMATS.values()), "table"]


def detect_format(file: Path) -> str:
    """The format by the field names of the first row. FileFormatError if none fits, with what to log instead."""
    row = first_row(file)
    if row is None:
        raise FileFormatError(f"log {file}: no rows")
    keys = set(map(str, row)) if isinstance(row, Mapping) else set()
    if (found := format_of(keys)) is not None:
        return found
    if (words := refusal(keys)) is not None:
        framework, _, rest = words.partition(": ")
        raise FileFormatError(f"{framework} log {file}: {rest}")
    if any(find_name(key) for key in keys):
        raise FileFormatError(f"log {file}: metrics by step, no log of tokens")
    how = how_to_name(file, row) if isinstance(row, Mapping) else f"give format ({', '.join(formats())}) and columns"
    raise FileFormatError(f"log {file}: fields {', '.join(sorted(keys)[:8])} fit no known format; {how}")


def format_of(keys: set[str]) -> str | None:
    """The format of rows that have these fields."""
    if (found := next((each.name for each in FORMATS.values() if each.fits(keys)), None)) is not None:
        return found
    return "table" if any(fits <= keys for fits in LONG) else None


def how_to_name(file: Path, row: Mapping[str, Any]) -> str:
    """The command that makes a table of rows whose fields are none that is known."""
    name = "engine_logprobs" if any(isinstance(value, list) for value in row.values()) else "engine_logprob"
    return f"name them: skewsim import {file} --column {name}=THEIRS --out table.npz"


# ---------------------------------------------------------------------------------------------------- which files


def _choose(path: Path, format: str, columns: Mapping[str, str]) -> tuple[str, list[Path]]:
    """The format, and the files of a folder that are in it."""
    files = log_files(path)
    if format == "auto" and columns:
        format = "table"
    if format != "auto":
        if format not in formats():
            raise UserError(f"format={format}: not known; allowed: auto, {', '.join(formats())}")
        return _kind(format, files[0]), files
    if len(files) == 1:
        return detect_format(files[0]), files
    return _of_folder(path, files)


def _kind(framework: str, file: Path) -> str:
    """Which of a framework's logs a file is; the first that it has, where the fields do not tell."""
    row = first_row(file)
    found = format_of(set(map(str, row))) if isinstance(row, Mapping) else None
    return found if found in FORMATS and FORMATS[found].framework == framework else framework


def _of_folder(path: Path, files: list[Path]) -> tuple[str, list[Path]]:
    """The one format of a folder's token logs; what holds none (metrics, settings) is passed over."""
    by_format: dict[str, list[Path]] = {}
    problems: list[FileFormatError] = []
    for file in files:
        try:
            by_format.setdefault(detect_format(file), []).append(file)
        except FileFormatError as error:
            problems.append(error)
    if not by_format:
        raise problems[0]
    chosen = min(by_format, key=lambda name: PREFERRED.index(name) if name in PREFERRED else len(PREFERRED))
    others = set(by_format) - {chosen} - BESIDE.get(chosen, set()) - TOGETHER.get(chosen, set())
    if others:
        found = ", ".join(f"{name} ({by_format[name][0].name})" for name in sorted({chosen, *others}))
        raise FileFormatError(f"log {path}: logs of several kinds: {found}; give one file, not the folder")
    together = [file for name in (chosen, *TOGETHER.get(chosen, ())) for file in by_format.get(name, [])]
    return chosen, sorted(together)


def _rows(files: list[Path]) -> Iterator[tuple[Path, Any]]:
    for file in files:
        for row in read_rows(file):
            yield file, row


# ----------------------------------------------------------------------------------------------- what is said of it


def _checked(record: SequenceRecord, report: Report) -> SequenceRecord:
    """The record with its turns, without what zeros give away; its values counted."""
    record = without_tools(record, report.values)
    report.values.add(record)
    report.trainer_known |= record.trainer_logprobs is not None
    if "turn" in record.places or record.mask is None:
        return record
    return replace(record, places={**record.places, "turn": turns(record)})


def _report_table(table: TokenTable, report: Report) -> None:
    report.values.tokens = len(table)
    report.values.counts["engine"] += count_values(table.engine_logprob)
    report.trainer_known = not np.isnan(table.trainer_logprob).all()
    if report.trainer_known:
        report.values.counts["trainer"] += count_values(table.trainer_logprob)


def _described(table: TokenTable, report: Report) -> TokenTable:
    """The table without a turn column that says nothing, and with the counts of its values in `meta`."""
    if table.turn is not None and table.turn.max() < 1:
        columns = {name: column for name, column in table.columns().items() if name != "turn"}
        table = TokenTable(**columns, meta=table.meta)
    found: dict[str, Any] = {"values": report.values.to_json()} if report.values.to_json() else {}
    if report.values.left_out:
        found["mask"] = f"guessed from exact zeros: {report.values.left_out} tokens left out"
    return table.with_meta(**found) if found else table
