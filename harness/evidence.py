"""Whatever somebody has, read for `skewsim.check`: logs of tokens, metrics by step, profiles, folders of them.

A log of sequences is read once, a sequence at a time, so that its length does not matter; tables and PyTorch dumps are
in memory as a whole, as their formats demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.log_files import METRICS, SUFFIXES, first_row, log_files
from harness.logs import Report, detect_format, how_to_name, import_rollouts, import_sequences
from harness.metric_logs import Identity, identify, read_curves
from skewsim.check import Evidence, Read, Tokens, of_records, of_table
from skewsim.check.words import canonical
from skewsim.errors import FileFormatError, UserError, shown
from skewsim.skew.curves import MetricCurves
from skewsim.skew.sequences import SequenceRecord
from skewsim.skew.tokens import TokenTable

if TYPE_CHECKING:
    from skewsim.skew.profile import SkewProfile

OURS = ("sequences", "table")
"""Names of formats that no framework has."""


@dataclass
class _Found:
    """What the paths turned out to be."""

    read: list[Read] = field(default_factory=list)
    logs: list[Identity] = field(default_factory=list)
    tables: list[Identity] = field(default_factory=list)
    curves: list[MetricCurves] = field(default_factory=list)
    profiles: list[SkewProfile] = field(default_factory=list)


def gather(paths: Sequence[Path], *, run: str | None = None) -> Evidence:
    """Read files and folders of any kind that is known; `run` chooses one of several runs in a file of metrics.

    FileFormatError or UserError: a file that is damaged, or a path at which there is nothing to judge.
    """
    found = _Found()
    for path in paths:
        what = identify(path)
        before = len(found.read) + len(found.logs) + len(found.tables)
        for part in _parts(what):
            _take(part, found, run)
        if len(found.read) + len(found.logs) + len(found.tables) == before:
            raise _nothing(what)
    tokens = _tokens(found)
    return Evidence(tuple(found.read), tokens, tuple(found.curves), tuple(found.profiles))


def _parts(what: Identity) -> Iterator[Identity]:
    """A file itself; of a folder its token logs as one log, and its other files one by one."""
    if what.kind != "folder":
        yield what
        return
    logs = [part for part in what.parts if part.kind == "tokens"]
    if len(logs) == 1:
        yield logs[0]
    elif logs:
        yield Identity(what.path, "tokens", logs[0].framework)
    kinds = ("metrics", "profile") if logs else ("table", "metrics", "profile")  # a table beside a log is made of it
    yield from (part for part in what.parts if part.kind in kinds)
    if not logs:
        yield from (part for part in what.parts if part.kind == "text")


def _take(what: Identity, found: _Found, run: str | None) -> None:
    if what.kind == "tokens":
        found.logs.append(what)
    elif what.kind == "table":
        found.tables.append(what)
    elif what.kind == "metrics":
        curves = read_curves(what.path, run=run)
        found.curves.append(curves)
        found.read.append(
            Read(str(what.path), "metrics", canonical(curves.framework or what.framework), _of_curves(curves))
        )
    elif what.kind == "profile":
        from skewsim.skew.profile import load_profile  # imported here: it loads pydantic

        profile = load_profile(str(what.path))
        found.profiles.append(profile)
        words = f"{profile.name}: {profile.provenance.tokens:,} tokens, {profile.kind}"
        found.read.append(Read(str(what.path), "profile", None, words))
    elif what.kind == "text":
        found.read.append(
            Read(str(what.path), "text", canonical(what.framework), f"no log-probabilities: {what.detail}")
        )


def _nothing(what: Identity) -> UserError:
    """Why a path cannot be judged, in a line."""
    if what.kind == "folder":
        return UserError(f"{what.path}: no log of tokens, no metrics by step and no profile in this folder")
    if what.kind == "config":
        return UserError(f"{what.path}: a configuration, no log; look at it with skewsim check --config {what.path}")
    reason = what.detail or _unknown(what.path)
    return FileFormatError(
        shown(reason) if str(what.path) in reason.partition(": ")[0] else f"{what.path}: {shown(reason)}"
    )


def _unknown(path: Path) -> str:
    """Why a file is none of what is known."""
    if path.suffix not in SUFFIXES:
        return f"suffix {path.suffix!r} is not known; allowed: {', '.join((*SUFFIXES, *METRICS))}"
    row = first_row(path)
    if not isinstance(row, Mapping):
        return "no rows" if row is None else "its rows are no JSON objects"
    fields = ", ".join(sorted(map(str, row))[:8])
    return f"fields {fields} fit no known format; {how_to_name(path, row)}"


def _of_curves(curves: MetricCurves) -> str:
    steps = max((len(curve.steps) for curve in curves.curves.values()), default=0)
    skew = [curve.name for key, curve in curves.curves.items() if key.startswith(("skew/", "ratio/"))]
    others = [name for name in curves.runs if name][1:]
    words = f"{_many(steps, 'step')}, {_many(len(skew), 'metric')} of the skew"
    words += f" ({', '.join(skew[:3])}{', ...' if len(skew) > 3 else ''})" if skew else ""
    words += f", {_many(len(curves.covariates), 'metric')} beside it" if curves.covariates else ""
    return words + (f"; run {curves.runs[0]}, others with --run: {', '.join(others[:3])}" if others else "")


# ---------------------------------------------------------------------------------------------------------- tokens


def _tokens(found: _Found) -> Tokens | None:
    """All logs and tables as one; None if there is none."""
    logs = [what for what in found.logs if not _is_table(what.path)]
    tables = [TokenTable.load(what.path) for what in found.tables]
    tables += [import_rollouts(what.path) for what in found.logs if _is_table(what.path)]
    if tables and logs:
        raise UserError("tables of tokens and logs of sequences together: give one of them")
    if tables:
        tokens = of_table(tables[0] if len(tables) == 1 else TokenTable.concat(tables, renumber=True))
    elif logs:
        tokens = _streamed(logs)
    else:
        return None
    what = [*found.tables, *found.logs]
    kind = "token table" if tables else "token log"
    names = [canonical(each.framework) for each in what if each.framework not in (None, *OURS)]
    framework = names[0] if names else "skewsim"
    if not len(tokens.table):
        raise FileFormatError(f"log {what[0].path}: no sampled token")
    found.read.insert(0, Read(", ".join(str(each.path) for each in what), kind, framework, _of_tokens(tokens)))
    return tokens


def _is_table(path: Path) -> bool:
    """Whether a log has a token a row."""
    files = log_files(path)
    return len(files) == 1 and detect_format(files[0]) == "table"


def _streamed(logs: list[Identity]) -> Tokens:
    reports = [Report() for _ in logs]

    def records() -> Iterable[SequenceRecord]:
        for what, report in zip(logs, reports, strict=True):
            yield from import_sequences(what.path, report=report)

    first = logs[0].path
    tokens = of_records(records(), {"source": first.name})
    notes = [line for report in reports for line in _told(report)]
    unmasked = sum(report.values.left_out for report in reports)
    return replace(tokens, unmasked=unmasked, notes=tuple(notes))


def _told(report: Report) -> list[str]:
    """What was noticed, without what the verdict says itself: odd values, a missing mask, missing trainer's numbers."""
    said = ("values of ", "the engine's logprobs only") + (("no loss mask",) if report.values.left_out else ())
    return [line for line in report.lines() if not line.startswith(said)]


def _of_tokens(tokens: Tokens) -> str:
    moments = tokens.moments
    steps = len([step for step in moments.by_step if step >= 0])
    words = f"{moments.sequences:,} sequences, {moments.tokens:,} sampled tokens"
    return words + (f", {_many(steps, 'step')}" if steps else "")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
