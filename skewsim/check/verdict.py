"""One verdict from all that was read: normal or not, bias or noise, where, since when, whose fault, what to set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from skewsim.check.by_step import look
from skewsim.check.evidence import Evidence, Read
from skewsim.check.parts import Part, Problem, of_curves, of_profile, of_tokens, rms_of
from skewsim.check.words import LOG_COLUMNS, LOG_TOKENS, REMIND_OF, SAYS, canonical
from skewsim.diagnose import FIX, Diagnosis, Scorer, normal
from skewsim.diagnose.causes import Cause, fix_for
from skewsim.errors import UserError
from skewsim.skew.rules import RULES
from skewsim.skew.trends import Trend

if TYPE_CHECKING:
    from skewsim.skew.advise import AdviseReport

Status = Literal["normal", "wrong", "unknown"]
EXIT_CODE: dict[Status, int] = {"normal": 0, "wrong": 1, "unknown": 2}
SCHEMA_VERSION = 1
DISAGREE = 2.0
"""Factor between the levels of a token log and of the curves beside it from which on it is said."""
UNSURE = ("unknown", "outlier_sequences", "compute_dtype", "moe_routing")
"""Verdicts that a further column of the log might turn into a cause."""
LENGTH = 1000
"""Tokens of a response, where no log and no curve tells."""


@dataclass(frozen=True)
class Checkup:
    """The page, as data."""

    read: tuple[Read, ...]
    framework: str | None
    problems: tuple[Problem, ...]
    watch: tuple[str, ...]
    """What is no fault yet, and worth a look."""
    rms: float | None
    """The level, nats: of the token log, else as the curves or the profile tell."""
    level: dict[str, Any]
    """Sizes by name, and where they come from."""
    normal: bool | None
    usual: str
    kind: str | None
    kind_text: str
    trend: Trend | None
    diagnosis: Diagnosis | None
    candidates: tuple[Cause, ...]
    """Causes that the curves remind of; a log of tokens would tell, and does if it is of the same level."""
    thresholds: AdviseReport | None
    length_known: bool
    values: tuple[str, ...]
    sample: str
    """How much of the log was diagnosed; empty: all of it."""
    more: tuple[str, ...]
    """What to log to know more."""
    notes: tuple[str, ...] = ()
    level_of: str = ""
    """The file that the level is of, where several tell different ones."""

    @property
    def status(self) -> Status:
        if self.problems:
            return "wrong"
        return "unknown" if self.rms is None else "normal"

    @property
    def exit_code(self) -> int:
        return EXIT_CODE[self.status]

    @property
    def summary(self) -> str:
        """The verdict in a sentence."""
        if self.problems:
            return SAYS[self.problems[0].name]
        if self.rms is None:
            return "no log-probabilities of both sides, and no metric that tells the skew"
        return "nothing to mend: noise of the usual size" if self.kind in (None, "noise") else "nothing to mend"

    @property
    def causes(self) -> tuple[Cause, ...]:
        return () if self.diagnosis is None else self.diagnosis.to_mend

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "status": self.status,
            "exit_code": self.exit_code,
            "summary": self.summary,
            "problems": [problem.to_json() for problem in self.problems],
            "watch": list(self.watch),
            "framework": self.framework,
            "read": [read.to_json() for read in self.read],
            "sample": self.sample or None,
            "level": {"rms": self.rms, **self.level},
            "normal": self.normal,
            "usual": self.usual,
            "kind": self.kind,
            "kind_text": self.kind_text,
            "values": list(self.values),
            "where": [] if self.diagnosis is None else [place.to_json() for place in self.diagnosis.where],
            "odd_one_out": None if self.diagnosis is None else self.diagnosis.odd_one_out,
            "agreement": None if self.diagnosis is None else self.diagnosis.agreement,
            "trend": None if self.trend is None else self.trend.to_json(),
            "thresholds": None if self.thresholds is None else self.thresholds.to_json(),
            "causes": [cause.to_json() for cause in self.causes],
            "candidates": [
                {"name": cause.name, "says": SAYS[cause.name], "fix": cause.fix} for cause in self.candidates
            ],
            "more": list(self.more),
            "notes": list(self.notes),
        }


def check(
    evidence: Evidence,
    *,
    models: Sequence[Scorer] = (),
    dtype: str | None = None,
    model_kind: str | None = None,
    framework: str | None = None,
) -> Checkup:
    """The verdict on all that was read.

    `models`, `dtype`, `model_kind` and `framework` are as in `skewsim.diagnose.diagnose`; the framework is otherwise
    the one that wrote the files. UserError for one that is not known, and for models without a log of sequences.
    """
    normal.check(dtype, model_kind)
    if framework is not None:
        fix_for("", framework)  # refuses what it does not know
    if models and evidence.tokens is None:
        raise UserError("--model scores the tokens of a log; nothing here has tokens")
    whose = canonical(framework) or evidence.framework
    parts = _with_sources(list(_parts(evidence, dtype, model_kind, models)))
    first = next((part for part in parts if part.rms is not None), Part())
    said = next((part for part in parts if part.kind_text), Part())
    length = next((part.length for part in parts if part.length), None)
    diagnosis = next((part.diagnosis for part in parts if part.diagnosis is not None), None)
    trends = [part.trend for part in parts if part.trend is not None]
    return Checkup(
        read=evidence.read,
        framework=whose,
        problems=tuple({problem.name: problem for part in parts for problem in part.problems}.values()),
        watch=(*(word for part in parts for word in part.watch), *_disagreement(parts)),
        rms=first.rms,
        level=first.level,
        normal=first.normal,
        usual=first.usual,
        level_of=first.source if _apart(parts) else "",
        kind=said.kind,
        kind_text=said.kind_text,
        trend=max(trends, key=lambda each: each.steps, default=None),
        diagnosis=None if diagnosis is None else _in_the_words_of(diagnosis, whose),
        candidates=() if diagnosis and not _apart(parts) else _candidates(parts, canonical(framework), whose),
        thresholds=_thresholds(first.rms, length or LENGTH, whose),
        length_known=length is not None,
        values=tuple(word for part in parts for word in part.values),
        sample="" if evidence.tokens is None else evidence.tokens.said,
        more=tuple(_more(evidence, parts, whose)),
        notes=() if evidence.tokens is None else evidence.tokens.notes,
    )


def _parts(evidence: Evidence, dtype: str | None, model_kind: str | None, models: Sequence[Scorer]) -> Iterator[Part]:
    if evidence.tokens is not None:
        yield replace(of_tokens(evidence.tokens, dtype, model_kind, models), source="the log of tokens")
    for curves in evidence.curves:
        part = of_curves(look(curves), dtype, model_kind)
        yield replace(part, source=curves.source, framework=canonical(curves.framework))
    yield from (replace(of_profile(profile), source=profile.name) for profile in evidence.profiles)


def _with_sources(parts: list[Part]) -> list[Part]:
    """Of several files, each curve's problems with the name of its file."""
    if len(parts) < 2:
        return parts
    return [part if part.diagnosis is not None else _with_source(part) for part in parts]


def _with_source(part: Part) -> Part:
    return replace(part, problems=tuple(replace(each, words=f"{part.source}: {each.words}") for each in part.problems))


def _candidates(parts: list[Part], wanted: str | None, whose: str | None) -> tuple[Cause, ...]:
    """What curves remind of, in the words of the framework that is asked for, or that wrote the curves."""
    speaks = {
        name: wanted or part.framework or whose
        for part in reversed(parts)
        for hint in part.hints
        for name in REMIND_OF[hint]
    }
    names = dict.fromkeys(name for part in parts for hint in part.hints for name in REMIND_OF[hint])
    return tuple(Cause(name, 0.0, "", _fix(FIX[name], speaks[name])) for name in names)


def _in_the_words_of(found: Diagnosis, framework: str | None) -> Diagnosis:
    return replace(found, causes=tuple(replace(cause, fix=_fix(cause.fix, framework)) for cause in found.causes))


def _fix(fix: str, framework: str | None) -> str:
    """A fix in one framework's words; in vLLM's where the framework is none that it speaks to."""
    try:
        return fix_for(fix, framework or "vLLM")
    except UserError:
        return fix_for(fix, "vLLM")


def _thresholds(rms: float | None, length: int, framework: str | None) -> AdviseReport | None:
    """What the framework's own thresholds do to healthy data of this level and length; None where it has none."""
    level = rms_of(rms)
    known = {rule.framework.lower() for rule in RULES}
    if level is None or framework is None or framework.lower() not in known:
        return None
    from skewsim.skew.advise import advise  # imported here, so that a check without thresholds starts without scipy

    report = advise(level, length)
    return replace(report, rows=tuple(row for row in report.rows if row.framework.lower() == framework.lower()))


def _disagreement(parts: list[Part]) -> list[str]:
    """What to say where a log of tokens and curves beside it are of different sizes."""
    if not _apart(parts):
        return []
    told = ", ".join(f"{part.rms:.3g} in {part.source}" for part in parts if part.rms)
    return [
        f"the files tell different levels (rms {told}): they are of different steps, or of different runs; check them "
        "one by one"
    ]


def _apart(parts: list[Part]) -> bool:
    levels = [part.rms for part in parts if part.rms]
    return len(levels) > 1 and max(levels) >= DISAGREE * min(levels)


def _more(evidence: Evidence, parts: list[Part], framework: str | None) -> Iterator[str]:
    """What to log to know more."""
    if not any(part.diagnosis is not None for part in parts):
        if evidence.tokens is not None:
            yield (
                "the log has the engine's numbers only: skewsim import LOG --out s.jsonl, then skewsim diagnose s.jsonl "
                "--model FOLDER computes the trainer's"
            )
        how = LOG_TOKENS.get(
            framework or "", "docs/logs.md has how" + ("" if framework else "; --framework says it here")
        )
        yield f"log both log-probabilities of every token, and check that: {how}"
    elif framework is None and any(part.problems for part in parts):
        yield "--framework verl (TRL, prime-rl, slime, NeMo-RL, ...) adds its own settings and thresholds"
    for part in parts:
        if part.diagnosis is not None and part.problems and part.diagnosis.verdict in UNSURE:
            yield from (LOG_COLUMNS[name] for name in part.missing)
