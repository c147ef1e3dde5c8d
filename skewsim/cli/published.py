"""The command that lists published runs: a table for each metric that fits 80 columns, with the sources below."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import TYPE_CHECKING

from skewsim.cli.display import print_json, say, show_lines
from skewsim.cli.options import Flag
from skewsim.errors import UserError

if TYPE_CHECKING:
    from skewsim.skew.published import PublishedRun

SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "fp8": "fp8", None: "?"}
COLUMNS = 80
NAME = 36  # columns of a run's name


def published(
    *,
    model_kind: str | None = None,
    dtype: str | None = None,
    metric: str | None = None,
    framework: str | None = None,
    search: str | None = None,
    value: float | None = None,
    json: Flag = False,
    csv: Flag = False,
    markdown: Flag = False,
) -> None:
    """List published runs of train-inference skew with their sources, or say where a number stands among them.

    Parameters
    ----------
    model_kind
        dense or moe.
    dtype
        The less precise of engine and trainer: float32, float16, bfloat16 or fp8.
    metric
        A metric by our name (rms, kl_k3, logprob_diff_mean, ...) or any framework's.
    framework
        A framework, an engine or a trainer: verl, TRL, prime-rl, vLLM, SGLang, Megatron, ...
    search
        A word anywhere in a run's texts.
    value
        A number of your own, as in --metric rms --value 0.048: one sentence says which runs are just below and above.
    json
        One JSON object.
    csv
        One line for each figure.
    markdown
        A table to paste into an issue.
    """
    from skewsim.skew.placing import place
    from skewsim.skew.published import select_runs

    if sum((json, csv, markdown)) > 1:
        raise UserError("published: --json, --csv and --markdown exclude each other")
    if value is not None and metric is None:
        raise UserError("published: --value needs --metric, as in --metric rms --value 0.048")
    runs = select_runs(model_kind=model_kind, dtype=dtype, metric=metric, framework=framework, search=search)
    placed = None if value is None else place(metric or "", value, dtype=dtype, model_kind=model_kind)
    if json:
        print_json({"placed": None if placed is None else placed.to_json(), "figures": list(records(runs))})
        return
    if csv or markdown:
        show_lines(as_csv(runs) if csv else as_markdown(runs))
        return
    if placed is not None:
        show_lines(*wrap(placed.sentence, COLUMNS), "")
    if not runs:
        say("no published run is like that; without options all are listed")
        return
    show_lines(*tables(runs))


def records(runs: Iterable[PublishedRun]) -> Iterator[dict[str, object]]:
    """One flat record for each figure, with the rms that it stands for where it tells one."""
    from skewsim.skew.placing import CONVERSIONS, rms_of

    for run in runs:
        for row in run.rows():
            key = row["metric"]
            converted = key in CONVERSIONS and key != "rms"
            formula = f"{key} = {CONVERSIONS[key].formula}" if converted else None
            yield row | {"as_rms": rms_of(key, row["value"]), "converted_by": formula}


def as_csv(runs: Iterable[PublishedRun]) -> str:
    """The records as CSV with a header."""
    rows = list(records(runs))
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def as_markdown(runs: Iterable[PublishedRun]) -> str:
    """The figures as one Markdown table."""
    lines = [
        "| run | size | engine | trainer | metric | figure | as rms | role | source | note |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        where = f"[{run.source.title}]({run.source.url})" if run.source.url.startswith("https") else run.source.title
        sides = (_side(run.engine, run.engine_dtype), _side(run.trainer, run.trainer_dtype))
        for row in records([run]):
            rms, mark = row["as_rms"], "~" if row["converted_by"] else ""
            cells = (
                *(run.name, _size(run), *sides, f"`{row['metric']}`", f"{row['value']:g}"),
                *("" if rms is None else f"{mark}{rms:.3g}", run.role, where, run.note),
            )
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _side(program: str, dtype: str | None) -> str:
    return ", ".join(filter(None, (program, dtype))) or "?"


def tables(runs: list[PublishedRun]) -> Iterator[str]:
    """A table for each metric, its smallest figure first, then the sources by number."""
    from skewsim.skew.published import ROLES, UNITS

    sources = list(dict.fromkeys(run.source for run in runs))
    others = [(role, words) for role, words in ROLES.items() if role != "usual"]
    for metric, unit in UNITS.items():
        chosen = sorted((run for run in runs if metric in run.values), key=lambda run: run.values[metric])
        if chosen:
            yield f"{metric}, {'nats' if unit == 'nats' else 'no unit'}: {_formula(metric)}"
            yield f"{'figure':>9} {'':7} {'run':{NAME}} {'size':9} {'dtypes':9} from"
            for run in chosen:
                yield from _lines(run, run.values[metric], sources.index(run.source) + 1)
            yield ""
    yield from wrap(f"dtypes: engine/trainer. Not compared with: {'; '.join(f'{k}, {v}' for k, v in others)}.", COLUMNS)
    yield ""
    for number, source in enumerate(sources, 1):
        text = f"[{number}] {source.title}" + (f", {source.date}" if source.date else "")
        yield from wrap(text, COLUMNS, subsequent_indent="    ")
        if source.url:
            yield f"  {source.url}"


def _lines(run: PublishedRun, value: float, source: int) -> Iterator[str]:
    first, *rest = wrap(run.name, NAME)
    role = "" if run.role == "usual" else run.role
    known = run.engine_dtype or run.trainer_dtype
    dtypes = f"{SHORT[run.engine_dtype]}/{SHORT[run.trainer_dtype]}" if known else "-"
    yield f"{value:>9.4g} {role:7} {first:{NAME}} {_size(run):9} {dtypes:9} [{source}]"
    yield from (f"{'':18}{line}" for line in rest)


def _size(run: PublishedRun) -> str:
    """Billions of parameters: of a mixture of experts all and active."""
    if run.size is None:
        return run.kind or "-"
    active = f"/{run.active:g}" if run.active is not None else ""
    return f"{run.size:g}{active} B" + (" moe" if run.kind == "moe" and not active else "")


def _formula(metric: str) -> str:
    from skewsim.skew.metric_table import METRICS, SKEW_KEYS
    from skewsim.skew.published import OTHER_METRICS

    if metric == "rms":
        return "root of mean d^2, d = trainer - engine"
    return OTHER_METRICS[metric][1] if metric in OTHER_METRICS else METRICS[SKEW_KEYS[metric]].formula
