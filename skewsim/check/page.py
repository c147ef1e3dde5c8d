"""A verdict as a page: text for a terminal of 80 columns, or Markdown to paste into an issue."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skewsim.check.verdict import Checkup
from skewsim.check.words import SAYS
from skewsim.diagnose.causes import Cause, Diagnosis, Place

if TYPE_CHECKING:
    from skewsim.skew.advise import AdviseReport, AdviseRow

WIDTH = 80
LABEL = 11
MOST_CAUSES, MOST_CANDIDATES, MOST_PLACES, MOST_RULES = 3, 2, 5, 6
LONGEST_EVIDENCE = 600
FELT = 0.02
"""Share of the data, or of the gradient, that a rule may take without being mentioned."""
LEAST_SHARE = 0.02
"""Share of the mean square of a place that is worth a line."""
STATUS = {"normal": "NORMAL", "wrong": "WRONG", "unknown": "CANNOT TELL"}


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    label: str
    lines: tuple[str, ...] = ()
    """Sentences, each a paragraph of its own."""
    table: tuple[tuple[str, ...], ...] = ()
    """Rows of cells, the headings first."""


def sections(found: Checkup) -> Iterator[Section]:
    """The page in its order; what there is nothing to say of is left out."""
    named = {cause.name for cause in found.causes}
    for number, problem in enumerate(found.problems):
        if problem.name not in named:  # a cause has a section of its own
            label = "because" if number == 0 else "also wrong"
            yield Section(label, ((f"{problem.name}: " if number else "") + _short(problem.words),))
    yield Section("read", tuple(_read(found)))
    yield Section("normal?", tuple(_normal(found)))
    if found.kind_text:
        yield Section("bias/noise", (found.kind_text,))
    if found.diagnosis is not None and found.diagnosis.agreement is not None:
        yield Section("whose fault", (_odd_one_out(found.diagnosis),))
    if found.values:
        yield Section("odd values", found.values)
    places = [] if found.diagnosis is None else [p for p in found.diagnosis.where if p.explained >= LEAST_SHARE]
    if places:
        yield Section("where", table=tuple(_where(places)))
    if found.trend is not None and found.trend.shape not in {problem.name for problem in found.problems}:
        yield Section("trend", (f"rms {found.trend}" if found.trend.shape != "too_short" else str(found.trend),))
    yield from _causes(found)
    yield from _thresholds(found)
    if found.watch:
        yield Section("watch", found.watch)
    if found.more or found.notes:
        yield Section("know more" if found.more else "noted", (*found.more, *found.notes))


def headline(found: Checkup) -> str:
    name = f"{found.problems[0].name}: " if found.problems else ""
    return f"{STATUS[found.status]}: {name}{found.summary}"


def _read(found: Checkup) -> Iterator[str]:
    for read in found.read:
        whose = f", {read.framework}" if read.framework else ""
        yield f"{read.path} ({read.kind}{whose}): {read.words}"
    if found.sample:
        yield found.sample


def _normal(found: Checkup) -> Iterator[str]:
    if found.rms is None:
        yield "cannot be told: nothing here measures the skew"
        return
    said = {True: "yes", False: "no", None: "cannot be told"}[found.normal]
    if found.normal is False and found.usual and "above what is usual" not in found.usual:
        said = (
            "no, by its cause; what the odd values leave would be, by its size"
            if found.values
            else "no, by its cause; by its size it would be"
        )
    said = f"in {found.level_of}: {said}" if found.level_of else said
    yield f"{said}: {found.usual}" if found.usual else said
    sizes = ("mean_abs", "mean size"), ("k3", "k3"), ("bias", "bias"), ("worst", "largest")
    told = [f"{name} {found.level[key]:.3g}" for key, name in sizes if found.level.get(key) is not None]
    if told:
        yield f"all tokens, d = trainer - engine: rms {found.rms:.3g}, {', '.join(told)} nats"
    elif found.level.get("from"):
        yield f"rms {found.rms:.3g} nats now, from {found.level['from']}"


def _odd_one_out(found: Diagnosis) -> str:
    """Which of engine, trainer and model the other two contradict."""
    apart = ", ".join(f"{pair} {rms:.3g}" for pair, rms in (found.agreement or {}).items())
    said = f"the {found.odd_one_out}'s: the other two agree" if found.odd_one_out else "nobody's alone"
    return f"{said} (rms apart, nats: {apart})"


def _where(places: Sequence[Place]) -> Iterator[tuple[str, ...]]:
    yield ("place (counted from 0)", "share", "rms in", "rms out", "tokens")
    for place in places[:MOST_PLACES]:
        sizes = f"{place.rms_inside:.2g}", f"{place.rms_outside:.2g}", f"{place.tokens:,}"
        yield (f"{place.column} {place.value}", f"{_bar(place.explained)} {place.explained:.0%}", *sizes)


def _bar(share: float, width: int = 6) -> str:
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "#" * filled + "." * (width - filled)


def _causes(found: Checkup) -> Iterator[Section]:
    shown = [cause for cause in found.causes if cause.name != "healthy"][:MOST_CAUSES]
    for number, cause in enumerate(shown, start=1):
        label = "made of" if found.normal else "cause" if len(shown) == 1 else f"cause {number}"
        yield Section(label, tuple(_cause(cause, mend=not found.normal)))
    if found.candidates:
        named = [f"{cause.name}: {cause.fix}" for cause in found.candidates[:MOST_CANDIDATES]]
        yield Section("may be", ("curves name no cause; such curves are left by:", *named))


def _cause(cause: Cause, *, mend: bool) -> Iterator[str]:
    yield f"{cause.name} ({_share(cause)}): {SAYS[cause.name]}"
    if cause.evidence:
        yield f"evidence: {_short(cause.evidence)}"
    if cause.fix and mend:
        yield f"set: {cause.fix}"


def _share(cause: Cause) -> str:
    return f"{cause.explained:.0%} of the mean square" if cause.sized else "no share: what is no number has no size"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_EVIDENCE else text[: LONGEST_EVIDENCE - 4] + " ..."


def _thresholds(found: Checkup) -> Iterator[Section]:
    report = found.thresholds
    if report is None or not report.rows:
        return
    assumed = "" if found.length_known else " (assumed: nothing tells the length)"
    yield Section("thresholds", tuple(_of_rules(report, assumed, mend=found.normal is not False)))


def _of_rules(report: AdviseReport, assumed: str, *, mend: bool) -> Iterator[str]:
    """What each rule that touches such data does to it; a better setting only where the skew itself is in order."""
    from skewsim.skew.advise import AS_IT_IS

    whose = report.rows[0].framework
    yield f"{whose}'s own, on noise of rms {report.sigma:.3g} and responses of {report.length:,} tokens{assumed}:"
    if not mend:
        yield "mend the cause first: wider bounds let the fault through, narrower ones hide it"
    touched = [row for row in report.rows if row.advice != AS_IT_IS or row.fired > FELT or row.mean_weight < 1 - FELT]
    for row in touched[:MOST_RULES]:
        name = row.rule.split(" (")[0]
        yield f"{name}: touches {row.fired:.1%}, mean weight {row.mean_weight:.2g}" + (_better(row) if mend else "")
    if len(touched) > MOST_RULES:
        yield f"{len(touched) - MOST_RULES} more: skewsim advise --rms {report.sigma:.3g} --length {report.length}"
    if len(touched) < len(report.rows):
        others = f"the other {len(report.rows) - len(touched)}" if touched else "all"
        yield f"{others} of its {_rules(len(report.rows))}: next to no effect on such data"


def _better(row: AdviseRow) -> str:
    from skewsim.skew.advise import AS_IT_IS

    if row.advice == AS_IT_IS:
        return "; leave it as it is"
    return f"; {row.advice}" if row.instead else f"; better: {row.advice}"


def _rules(count: int) -> str:
    return "1 rule" if count == 1 else f"{count} rules"


# -------------------------------------------------------------------------------------------------------------- text


def text(found: Checkup) -> str:
    """The page for a terminal."""
    lines = textwrap.wrap(headline(found), WIDTH, subsequent_indent="  ")
    for section in sections(found):
        lines += ["", *_laid_out(section)] if section.label.startswith(("cause", "made of")) else _laid_out(section)
    return "\n".join(lines)


def _laid_out(section: Section) -> list[str]:
    inner = WIDTH - LABEL
    lines = [line for sentence in section.lines for line in _wrapped(sentence, inner)]
    lines += _columns(section.table, inner)
    label = section.label
    if len(label) >= LABEL:
        return [label, *(" " * LABEL + line for line in lines)]
    return [f"{label if number == 0 else '':{LABEL}}{line}" for number, line in enumerate(lines)]


def _wrapped(sentence: str, width: int) -> list[str]:
    return textwrap.wrap(sentence, width, subsequent_indent="  ", break_on_hyphens=False) or [""]


def _columns(table: tuple[tuple[str, ...], ...], width: int) -> list[str]:
    """Cells in columns, aligned right but for the first two; a long first cell loses its end."""
    if not table:
        return []
    wide = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    wide[0] = min(wide[0], width - sum(wide[1:]) - 2 * (len(wide) - 1))
    lines = []
    for row in table:
        names = [f"{row[0][: wide[0]]:{wide[0]}}", f"{row[1]:{wide[1]}}"]
        lines.append("  ".join([*names, *(f"{cell:>{w}}" for cell, w in zip(row[2:], wide[2:], strict=True))]))
    return lines


# ---------------------------------------------------------------------------------------------------------- Markdown


def markdown(found: Checkup) -> str:
    """The page for an issue."""
    parts = [f"### skewsim check: {headline(found)}"]
    for section in sections(found):
        body = [_escaped(sentence) for sentence in section.lines]
        if len(body) == 1:
            parts.append(f"**{section.label}** {body[0]}")
        elif body:
            parts.append("\n".join([f"**{section.label}**", "", *(f"- {line}" for line in body)]))
        else:
            parts.append(f"**{section.label}**")
        if section.table:
            parts.append(_markdown_table(section.table))
    return "\n\n".join(parts)


def _markdown_table(table: tuple[tuple[str, ...], ...]) -> str:
    rows = [" | ".join(_escaped(cell).replace("|", "\\|") for cell in row) for row in table]
    rule = " | ".join(["---"] * len(table[0]))
    return "\n".join(f"| {row} |" for row in [rows[0], rule, *rows[1:]])


def _escaped(sentence: str) -> str:
    """Characters that Markdown would take for its own, in names such as rollout_is or `*_logps`."""
    return "".join(f"\\{c}" if c in "*_<>#" else c for c in sentence)
