"""What a report says of each kind of thing, and how the kind is told from what is on the disk."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skewsim.border import parse_json, read_small
from skewsim.errors import FileFormatError, UserError, shown
from skewsim.records import StepRecord, seeds_in_words
from skewsim.reports.document import Document, heading, own_html, pairs, paragraph, picture, rows, text_block
from skewsim.runs.recording import SCENARIO, STEPS, read_records, read_summary, run_status, summarise
from skewsim.settings import Scenario, changes
from skewsim.share import load_toml, to_share, to_toml
from skewsim.sweeps.folder import PLAN

if TYPE_CHECKING:
    from skewsim.runs.figures import Picture
    from skewsim.skew.tokens import TokenTable

ReadLog = Callable[[Path], Any]
"""Reads any log of tokens; the harness has it."""
_HEADLINE = {
    "reward/mean": "reward",
    "update/clip_rate": "clip rate",
    "skew/kl_k3": "k3",
    "policy/entropy": "entropy",
    "lag/mean": "lag",
}


def report(source: str, read_log: ReadLog) -> Document:
    """The report of a run, ladder or sweep folder, a profile (a name or a file), a diagnosis as JSON, or a log.

    Raises UserError if it is none of these.
    """
    path = Path(source)
    if (path / PLAN).is_file():
        return sweep_report(path)
    if (path / SCENARIO).is_file():
        return run_report(path)
    if path.suffix == ".json" and path.is_file() and (found := _json_report(path)):
        return found
    if not path.exists():
        return profile_report(source)
    return log_report(source, read_log(path))


def _json_report(path: Path) -> Document | None:
    """The report of a JSON file: a profile's or a diagnosis's; None if it is neither."""
    data = parse_json(read_small(path), str(path))
    if isinstance(data, dict) and "rungs" in data:
        raise UserError(f"{path} is a ladder's result; a report is made of its folder: skewsim report {path.parent}")
    if isinstance(data, dict) and {"verdict", "causes"} <= data.keys():
        return diagnosis_report(str(path), data)
    return profile_report(str(path)) if isinstance(data, dict) and "provenance" in data else None


# ----------------------------------------------------------------------------------------------------- run and ladder


def run_report(folder: Path) -> Document:
    """The report of a run folder: of one scenario, or of a ladder."""
    summary, scenario = read_summary(folder), load_toml(folder / SCENARIO)
    records = list(read_records(folder)) if (folder / STEPS).exists() else []
    if not records:
        raise FileFormatError(f"{folder} has no step yet: there is nothing to report")
    rungs = [str(rung) for rung in summary.get("rungs") or []]
    if rungs:
        return _ladder_report(folder, scenario, summary, rungs, records)
    return _one_run(folder, scenario, summary, records)


def _one_run(folder: Path, scenario: Scenario, summary: Mapping[str, Any], records: Sequence[StepRecord]) -> Document:
    from skewsim.runs.figures import curves_figure

    seeds, engine = _seeds(summary, records), str(summary.get("engine", "sim"))
    document = Document(f"Run: {scenario.name}", _about(folder, summary, seeds, scenario.steps, engine))
    drawn = curves_figure({scenario.name: records}, title=f"{scenario.name}, {seeds_in_words(len(seeds))}")
    document.section("Curves", picture(drawn, "Reward, clip rate, k3, entropy and lag by step"))
    columns = ("seed", "steps", *_HEADLINE.values(), "end")
    ends = [
        (m["seed"], m["steps"], *(m["last_tenth"].get(key) for key in _HEADLINE), m["diverged"] or "finished")
        for m in summarise(records)["members"]
    ]
    document.section("How it ended: means over the last tenth of the steps", rows(columns, ends))
    again = ["skewsim", "run", to_share(scenario), "--seeds", str(len(seeds))]
    again += ["--engine", engine] if engine != "sim" else []
    _settings(document, scenario)
    _reproduce(document, summary, scenario, shlex.join(again))
    return document


def _ladder_report(
    folder: Path, scenario: Scenario, summary: Mapping[str, Any], rungs: Sequence[str], records: Sequence[StepRecord]
) -> Document:
    from skewsim.runs.ladder import Ladder
    from skewsim.scenarios import SCENARIOS

    strangers = {record.scenario for record in records} - set(rungs) | set(rungs) - set(SCENARIOS)
    if strangers:
        raise FileFormatError(f"{folder}: {shown(min(strangers), 80)} is no rung of this ladder")
    seeds, engine = _seeds(summary, records), str(summary.get("engine", "sim"))
    objective = scenario.trainer.objective
    ladder = Ladder(objective=objective, seeds=len(seeds), steps=scenario.steps, names=tuple(rungs))
    result = ladder.result(records)
    document = Document(f"Ladder: {objective.upper()}", _about(folder, summary, seeds, scenario.steps, engine))
    document.section("Rungs", own_html(result))
    drawn = result.figure(engine=engine)
    document.section("Curves", picture(drawn, "Curves of every rung: reward, clip rate, k3, entropy and lag by step"))
    _settings(document, scenario, of=f"The first rung's settings ({rungs[0]})")
    again = ["skewsim", "ladder", "--objective", objective, "--seeds", str(len(seeds)), "--steps", str(scenario.steps)]
    for path, value in _set(ladder.scenarios[0], scenario).items():
        again += ["--set", f"{path}={value}"]
    again += ["--engine", engine] if engine != "sim" else []
    _reproduce(document, summary, scenario, shlex.join(again))
    return document


def _set(before: Scenario, after: Scenario) -> dict[str, str]:
    """The settings in which a scenario differs from another, as ``--set`` takes them."""
    found = (change.partition(": ") for change in changes(before, after))
    return {path: change.rpartition(" -> ")[2].replace("None", "none") for path, _, change in found}


def _seeds(summary: Mapping[str, Any], records: Sequence[StepRecord]) -> list[int]:
    return sorted({record.seed for record in records}) or list(summary.get("seeds", []))


def _about(folder: Path, summary: Mapping[str, Any], seeds: Sequence[int], steps: int, engine: str) -> str:
    where = "the simulated engine" if engine == "sim" else engine
    return f"{folder.name}: {seeds_in_words(len(seeds))}, {steps} steps, on {where}; {run_status(folder)}"


def _settings(document: Document, scenario: Scenario, of: str = "Settings") -> None:
    found = [line.partition(": ") for line in changes(Scenario(), scenario)]
    different = [(path, *change.split(" -> ", 1)) for path, _, change in found]
    words = rows(("setting", "default", "here"), different) if different else paragraph("All are the defaults.")
    document.section(
        of, heading("What differs from the defaults"), words, heading("All, as TOML"), text_block(to_toml(scenario))
    )


def _reproduce(document: Document, summary: Mapping[str, Any], scenario: Scenario, command: str) -> None:
    document.section(
        "How to reproduce it",
        paragraph(f"With skewsim {summary.get('skewsim', 'of the same version')}:"),
        text_block(command),
        heading("The scenario as a share string"),
        text_block(to_share(scenario)),
    )


# -------------------------------------------------------------------------------------------------------------- sweep


def sweep_report(folder: Path) -> Document:
    """The report of a sweep's folder."""
    from skewsim.runs.outcome import WARNINGS
    from skewsim.sweeps.figures import map_figures, message
    from skewsim.sweeps.folder import read_status
    from skewsim.sweeps.layout import progress_words
    from skewsim.sweeps.map import load_map

    found = load_map(folder)
    settings = found.sweep.settings
    document = Document(f"Sweep: {found.title}", f"{folder.name}: {progress_words(found)}")
    collapsed = any(cell.collapsed for cell in found.cells)
    for name, drawn in map_figures(found).items():
        if collapsed or name not in ("steps", "lead"):
            words = message(found, name)
            document.section(words, picture(drawn, words))
    if collapsed:
        columns = ("number", "steps before the fall", "warned of", "of the collapsed", "false alarms", "of the others")
        warned = [
            (WARNINGS[key], w.lead, w.warned, w.collapsed, w.false_alarms, w.others)
            for key, w in found.warnings().items()
        ]
        document.section("Which number warns first", rows(columns, warned))
    titles = (*found.sweep.titles, "members", "collapsed", "90 % interval", "final reward", "steps to collapse")
    cells = [
        (
            *cell.labels,
            cell.members,
            cell.collapsed,
            "-" if cell.interval is None else f"{cell.interval[0]:.2f} to {cell.interval[1]:.2f}",
            cell.final_reward,
            cell.steps_to_collapse,
        )
        for cell in found.cells
    ]
    document.section("Every cell", rows(titles, cells))
    _settings(document, found.sweep.base, of="The settings that all cells share")
    document.section(
        "How to reproduce it",
        paragraph(
            f"With skewsim {read_status(folder).get('skewsim', 'of the same version')}, this file as sweep.toml:"
        ),
        text_block(found.sweep.to_toml()),
        text_block(f"skewsim sweep run sweep.toml --out {shlex.quote(settings.name)}"),
        heading("The scenario as a share string"),
        text_block(to_share(found.sweep.base)),
    )
    return document


# --------------------------------------------------------------------------------------- profile, diagnosis and a log


def profile_report(name: str) -> Document:
    """The report of a profile, by its name or its file."""
    from skewsim.skew.profile import load_profile

    profile = load_profile(name)
    document = Document(f"Profile: {profile.name}", f"a {profile.kind} skew profile")
    document.section("What it says", own_html(profile))
    document.section(
        "Skew by probability",
        picture(
            by_probability_figure([(b.low, b.high, b.tokens, b.rms.value or 0.0) for b in profile.table]),
            "rms skew by probability",
        ),
    )
    document.section("Metrics", pairs({key: str(value) for key, value in profile.metrics.items()}, ("metric", "value")))
    known = {k: v for k, v in profile.provenance.model_dump(mode="json").items() if v is not None}
    document.section("Where it comes from", pairs(known, ("", "")))
    document.section(
        "How to use it",
        text_block(f"skewsim run v0_reference --set skew.noise=profile --set skew.profile={shlex.quote(name)}"),
    )
    return document


def diagnosis_report(name: str, data: Mapping[str, Any]) -> Document:
    """The report of a diagnosis that `skewsim diagnose --json` printed."""
    document = Document(f"Diagnosis: {data['verdict']}", name)
    causes = _dicts(data["causes"])
    columns = ("cause", "explains", "evidence", "fix")
    found = [(c.get("name"), _share(c.get("explained")), c.get("evidence"), c.get("fix")) for c in causes]
    document.section("Causes", rows(columns, found))
    if where := _dicts(data.get("where")):
        keys = ("column", "value", "tokens", "rms_inside", "rms_outside", "explained")
        document.section("Where it lives", rows(keys, [[place.get(key) for key in keys] for place in where]))
    rest = {key: value for key, value in data.items() if isinstance(value, str | int | float | bool)}
    document.section("All else that it says", pairs(rest, ("", "")))
    return document


def _share(value: Any) -> Any:
    return f"{value:.0%}" if isinstance(value, float) else value


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def log_report(source: str, log: Any) -> Document:
    """The report of a log of tokens: its diagnosis, its metrics and its skew by probability."""
    from skewsim.diagnose import diagnose
    from skewsim.skew.metrics import by_probability, skew_metrics
    from skewsim.skew.sequences import SequenceLog

    table: TokenTable = log.table() if isinstance(log, SequenceLog) else log
    found = diagnose(log)
    document = Document(f"Log: {Path(source).name}", f"{found.tokens} tokens in {found.sequences} sequences")
    document.section("Diagnosis", own_html(found))
    known = table.select(~_unknown(table))
    if len(known):
        trainer, engine = known.trainer_logprob, known.engine_logprob
        bins = [(b.low, b.high, b.tokens, b.rms) for b in by_probability(trainer, known.skew)]
        document.section("Skew by probability", picture(by_probability_figure(bins), "rms skew by probability"))
        numbers = skew_metrics(trainer[None], engine[None], (trainer == trainer)[None].astype(float))
        document.section("Metrics", pairs(numbers, ("metric", "value")))
    meta = {str(key): shown(value, 400) for key, value in table.meta.items()}
    if meta:
        document.section("Where it comes from", pairs(meta, ("", "")))
    document.section("How to reproduce it", text_block(f"skewsim diagnose {shlex.quote(source)}"))
    return document


def _unknown(table: TokenTable) -> Any:
    import numpy as np

    return ~np.isfinite(table.trainer_logprob) | ~np.isfinite(table.engine_logprob)


def by_probability_figure(bins: Sequence[tuple[float, float, int, float]]) -> Picture:
    """The rms of the skew by the trainer's probability: a bar for each bin (from, to, tokens, rms)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from skewsim.runs.figures import Picture

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.bar(range(len(bins)), [rms for *_, rms in bins], color="#0072B2")
    for n, (_, _, tokens, rms) in enumerate(bins):
        axis.text(n, rms, f"{tokens:,}", ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(bins)), [f"{low:.2g} to {high:.2g}" for low, high, *_ in bins], fontsize=8, rotation=20)
    axis.set_xlabel("the trainer's probability of the token; above each bar: its tokens", fontsize=9)
    axis.set_ylabel("rms skew, nats", fontsize=9)
    axis.set_title("How large the skew is, by how probable the token was", loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    return Picture(figure)
