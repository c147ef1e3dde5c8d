"""The commands of the simulator: what each takes, and in which order it works.

Everything that can be wrong is looked at before anything is written: the settings, then the engine, the policy and
the profile, then the run folder.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from skewsim import share
from skewsim.display import Style, display, print_json, print_summary, print_table, say
from skewsim.errors import UserError
from skewsim.recording import RunFolder, record, summarise
from skewsim.settings import Scenario, Settings

if TYPE_CHECKING:
    from skewsim.engine import RolloutEngine
    from skewsim.trainer import StepRecord

ENGINES = "harness.engines:resolve_engine"
Assignments = Annotated[list[str] | None, Parameter(name="--set", negative="")]
Flag = Annotated[bool, Parameter(negative="")]


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
        Train so many seeds as one ensemble, counting up from the first.
    seed
        The first seed.
    steps
        Rollouts to train on.
    assignments
        path=value, as in engine.temperature=1.0; may be given again and again.
    out
        Run folder: scenario, a record for each step, summary, checkpoint.
    resume
        Go on with the run in --out, if there is one.
    checkpoint_every
        Steps between checkpoints.
    json
        A record a line on stdout.
    plain
        Every number as plain text on stdout.
    """
    chosen = choose_scenario(scenario, assignments, steps=steps, seed=seed)
    members = choose_seeds(chosen, seeds)
    at_least_one("--checkpoint-every", checkpoint_every)
    if resume and out is None:
        raise UserError("--resume needs --out: the run folder to go on with")
    style = choose_style(json=json, plain=plain)
    with open_engine(engine) as rollouts:
        folder = RunFolder(out, chosen, seeds=members, engine=engine, resume=resume) if out else None
        state = folder.load_state() if folder else None
        from skewsim.trainer import Trainer

        trainer = Trainer(chosen, rollouts, seeds=members, state=state)
        history: list[StepRecord] = []
        with display(chosen.steps, style=style) as shown, resumable(out):
            for records in record(trainer, folder, checkpoint_every=checkpoint_every):
                history += records
                shown.show(records)
    if style != "json":
        print_summary(chosen.name, summarise(history)["members"], plain=plain)
    if out:
        say(f"run folder: {out}")


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

        for known in SCENARIOS:
            print(known)


profile = App(help="List measured skew profiles, or show one.")


@profile.command(name="list")
def list_profiles() -> None:
    """List the profiles that come with skewsim, and whether each was measured, computed or invented."""
    from skewsim.profile import load_profile, shipped_profiles

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
    from skewsim.profile import load_profile

    found = load_profile(name)
    if json:
        print_json(found.model_dump(mode="json"))
        return
    print("\n".join(found.describe()))
    rows = [[key, str(estimate)] for key, estimate in found.metrics.items()]
    print_table("Metrics, nats", ["metric", "value"], rows, plain=plain)
    by = [
        [f"{b.low:g} to {b.high:g}", str(b.tokens), f"{b.mean:.4g}", str(b.mean_abs), str(b.rms)] for b in found.table
    ]
    print_table("Skew by probability", ["probability", "tokens", "mean", "mean abs", "rms"], by, plain=plain)


def pretrain(
    task: Literal["reverse", "reverse_until_zero"] = "reverse",
    /,
    *,
    response_length: int = 12,
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
    seed
        Seed of weights and batches.
    out
        The folder to write.
    """
    settings = Scenario().with_values({"task.name": task, "task.response_length": response_length}).task
    folder = out or fresh_folder(f"pretrain-{task}-{response_length}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder} is there already; allowed is a folder that is new or empty")
    from skewsim.base_policy import pretrain

    found = None
    for found in pretrain(settings, seed=seed):
        say(f"step {found.step}: loss {found.loss:.3f}, solved {found.solved:.2f}")
    assert found is not None
    found.policy.save(folder)
    print(folder)


def choose_scenario(
    text: str, assignments: Sequence[str] | None, *, steps: int | None = None, seed: int | None = None
) -> Scenario:
    """The scenario that a share string, a TOML file or a name stands for, with the command line's values in it."""
    if share.is_share(text):
        scenario = share.from_share(text)
    elif text.endswith(".toml") or "/" in text or Path(text).is_file():
        scenario = share.load_toml(Path(text))
    else:
        from skewsim.scenarios import find_scenario

        scenario = find_scenario(text)
    values = share.parse_assignments(assignments or [])
    values |= {path: value for path, value in (("steps", steps), ("seed", seed)) if value is not None}
    return scenario.with_values(values)


def choose_seeds(scenario: Scenario, count: int | None) -> tuple[int, ...]:
    """The members' seeds: ``count`` of them, upward from the scenario's."""
    at_least_one("--seeds", count if count is not None else 1)
    return tuple(range(scenario.seed, scenario.seed + (count or 1)))


def choose_style(*, json: bool, plain: bool) -> Style:
    """How records are shown."""
    if json and plain:
        raise UserError("--json and --plain are both set; allowed is one of them")
    return "json" if json else "plain" if plain else "shown"


def at_least_one(option: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{option} {value}: allowed is at least 1")


@contextmanager
def open_engine(name: str) -> Iterator[RolloutEngine]:
    """The engine of that name, closed at the end."""
    from skewsim.cli import resolve
    from skewsim.engine import SimEngine

    with closing(SimEngine() if name == "sim" else resolve(ENGINES)(name)) as engine:
        yield engine


@contextmanager
def resumable(out: Path | None) -> Iterator[None]:
    """Ctrl+C says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if out is None:
            raise KeyboardInterrupt("interrupted; with --out DIR a run can be resumed") from None
        again = [word for word in sys.argv[1:] if word != "--resume"]
        raise KeyboardInterrupt(f"interrupted; to go on: skewsim {shlex.join(again)} --resume") from None


def list_settings(model: type[Settings], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting's path, default and help text."""
    for name, field in model.model_fields.items():
        default = field.default
        if isinstance(default, Settings):
            yield from list_settings(type(default), f"{prefix}{name}.")
        else:
            yield prefix + name, "none" if default is None else str(default), field.description or ""


def fresh_folder(name: str) -> Path:
    """``runs/NAME``, or the first of ``runs/NAME-2``, ``-3``, ... that is not there yet."""
    root = Path("runs")
    return next(path for n in count(1) if not (path := root / (name if n == 1 else f"{name}-{n}")).exists())
