"""The commands that judge skew that was measured or logged before: check, diagnose, advise and
gate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from skewsim.cli.display import counter, print_json, print_table, say, show_lines
from skewsim.cli.options import Flag
from skewsim.errors import UserError

if TYPE_CHECKING:
    from skewsim.diagnose.predict import Scorer
    from skewsim.skew.tokens import TokenTable

Limits = Annotated[list[str] | None, Parameter(negative="")]


def diagnose(
    table: Path,
    /,
    *,
    model: Annotated[list[Path] | None, Parameter(negative="")] = None,
    dtype: str | None = None,
    model_kind: str | None = None,
    framework: str | None = None,
    batch_tokens: int | None = None,
    json: Flag = False,
) -> None:
    """Name the causes of a token table's skew in the order to mend them, with the evidence and the setting to change.

    Parameters
    ----------
    table
        A token table, whole sequences, or another program's log (as `skewsim import` reads it): a file or a folder.
    model
        A Hugging Face folder to score the tokens with, an installed model's name, base or base_moe; may be given more
        than once, newest first.
    dtype
        What both sides compute in: float32, float16, bfloat16 or fp8; skew that is usual for it is healthy.
    model_kind
        dense or moe: a mixture of experts has more skew, and heavier tails.
    framework
        Only this one's settings in the fixes: vLLM, PipelineRL, verl, TRL, prime-rl, slime, Miles, NeMo-RL, SkyRL,
        OpenRLHF or AReaL.
    batch_tokens
        Tokens of prompts and responses that a model scores at once (default 8192): fewer need less memory.
    json
        One JSON object.
    """
    from skewsim.cli.main import READ_LOG, resolve
    from skewsim.diagnose import diagnose
    from skewsim.diagnose.page import page

    notes: list[str] = []
    source = resolve(READ_LOG)(table, notes)
    models = load_named(model, batch_tokens=batch_tokens)
    with counter(0) if models else nullcontext() as progress:
        found = diagnose(
            source, models=models, dtype=dtype, model_kind=model_kind, framework=framework, progress=progress
        )
    _say_all(notes)
    if json:
        print_json(found.to_json())
        return
    show_lines(*page(found, get_terminal_size().columns))
    _say_all([f"note: {note}" for note in found.notes])


def check(
    *paths: Path,
    model: Annotated[list[Path] | None, Parameter(negative="")] = None,
    dtype: str | None = None,
    model_kind: str | None = None,
    framework: str | None = None,
    run: str | None = None,
    config: Annotated[list[Path] | None, Parameter(negative="")] = None,
    vllm: str | None = None,
    json: Flag = False,
    markdown: Flag = False,
) -> int:
    """One verdict on a page from whatever there is: is it normal, bias or noise, where, since when, what to set.

    With --config and no log: which known traps a training configuration is in, each with the line to change.

    Exit code 0: normal. 1: something is wrong. 2: a mistake, or nothing that tells the skew.

    Parameters
    ----------
    paths
        Files or folders, several are judged together: a log of tokens of any framework (as `skewsim import` reads it);
        metrics by step (a W&B export or offline run, TensorBoard, trackio, JSON lines); a folder with either or both; a
        run folder, a token table or a profile of skewsim.
    model
        As in `skewsim diagnose`: a Hugging Face folder that scores the tokens of a log, or the name of an installed
        model; tells which of engine, trainer and model is the odd one out. May be given more than once, newest first.
    dtype
        What both sides compute in: float32, float16, bfloat16 or fp8.
    model_kind
        dense or moe: a mixture of experts has more skew, and heavier tails.
    framework
        Whose settings and thresholds to name, if the files do not tell: vLLM, PipelineRL, verl, TRL, prime-rl, slime,
        Miles, NeMo-RL, SkyRL, OpenRLHF or AReaL.
    run
        Of several runs in a file of metrics, the one to judge.
    config
        A training configuration, read and never run: verl's or NeMo-RL's YAML, prime-rl's TOML, a shell script of verl,
        slime, Miles, OpenRLHF, TRL or vllm serve, a Python file with GRPOConfig. Give it once for each file of a run.
    vllm
        With --config: the version of vLLM that makes the rollouts, as in 0.18.1.
    json
        One JSON object.
    markdown
        Markdown, to paste into an issue.
    """
    from skewsim.check import check
    from skewsim.check.page import markdown as as_markdown
    from skewsim.check.page import text as as_text
    from skewsim.cli.main import GATHER, resolve

    if config:
        return _check_config(paths, config, vllm, framework, as_json=json, as_markdown=markdown)
    if vllm is not None:
        raise UserError("--vllm says which version a configuration is for; it needs --config")
    if not paths:
        raise UserError("check: no path given; allowed: files and folders, as in skewsim check rollouts.jsonl")
    if json and markdown:
        raise UserError("--json and --markdown: allowed is one of them")
    evidence = resolve(GATHER)(paths, run=run)
    models = load_named(model)
    found = check(evidence, models=models, dtype=dtype, model_kind=model_kind, framework=framework)
    if json:
        print_json(found.to_json())
    else:
        show_lines(as_markdown(found) if markdown else as_text(found))
    return found.exit_code


def load_named(names: list[Path] | None, *, batch_tokens: int | None = None) -> list[Scorer]:
    """Models as scorers, newest first: folders, installed models, or ``base`` and ``base_moe``. Raises UserError."""
    if not names:
        return []
    from skewsim.cli.main import FIND_MODEL, resolve
    from skewsim.diagnose import load_models
    from skewsim.learn.base_policy import model_folder

    return load_models([model_folder(resolve(FIND_MODEL)(each)) for each in names], batch_tokens=batch_tokens)


def _check_config(
    paths: Sequence[Path],
    config: list[Path],
    vllm: str | None,
    framework: str | None,
    *,
    as_json: bool,
    as_markdown: bool,
) -> int:
    """The traps that a configuration is in; exit code 1 if it surely is in one."""
    from skewsim.cli.main import CHECK_CONFIG, resolve

    if paths:
        raise UserError("--config is looked at by itself; check the log in a second command: skewsim check LOG")
    if as_json and as_markdown:
        raise UserError("--json and --markdown: allowed is one of them")
    found = resolve(CHECK_CONFIG)(config, vllm=vllm, framework=framework)
    if as_json:
        print_json(found.to_json())
    else:
        show_lines(found.to_markdown() if as_markdown else found.to_text())
    return int(found.trapped)


def advise(
    *,
    length: int | None = None,
    sigma: Annotated[float | None, Parameter(alias="--rms")] = None,
    mean_abs: float | None = None,
    k3: float | None = None,
    metric: Annotated[str | None, Parameter(negative="")] = None,
    profile: str | None = None,
    log: Path | None = None,
    json: Flag = False,
    plain: Flag = False,
) -> None:
    """Say what every framework's default threshold does to perfectly healthy data, and which setting does the least
    harm.

    Give the noise level in one of six ways. "touches" is the share of tokens or sequences that the default clips, masks
    or rejects; "weight" is the mean weight it leaves (1: the whole gradient); "bias" is by how much the expected
    gradient can be off; "ess" is the share of the data that counts.

    Parameters
    ----------
    length
        Response tokens; with --log, the mean length of its responses unless given.
    sigma
        Noise level: rms skew per token, nats.
    mean_abs
        Noise level by the mean absolute skew, nats.
    k3
        Noise level by the k3 estimate of the KL divergence, nats.
    metric
        Noise level by a metric under any framework's name: rollout_corr/k3_kl=0.002, mismatch_kl/all/mean=0.002.
    profile
        A measured profile, as a name or a path.
    log
        A log of both log-probabilities, as `skewsim diagnose` takes it: its own tokens are drawn from.
    json
        One JSON object.
    plain
        Plain text without a table.
    """
    from skewsim.skew.advise import advise
    from skewsim.skew.noise_level import noise_of

    notes: list[str] = []
    tokens = None if log is None else _tokens(log, notes)
    level = noise_of(length, sigma=sigma, mean_abs=mean_abs, k3=k3, metric=metric, profile=profile, log=tokens)
    found = advise(level.noise, level.length)
    _say_all(notes)
    if json:
        print_json(found.to_json())
        return
    rows = [
        [
            r.framework,
            r.rule,
            f"{r.fired:.1%}",
            f"{r.mean_weight:.3g}",
            f"{r.bias:.1%}",
            f"{r.ess:.3f}",
            f"e.g. {r.default}" if r.source.example else r.default,
            r.advice,
        ]
        for r in found.rows
    ]
    title = f"Healthy data, rms skew {found.sigma:.3g} nats, {found.length} tokens ({found.source})"
    columns = ["framework", "rule", "touches", "weight", "bias", "ess", "default", "better"]
    print_table(title, columns, rows, plain=plain, prose=("rule", "default"))


def gate(table: Path, /, *, max: Limits = None, min: Limits = None, json: Flag = False) -> int:
    """Check a token table against limits: exit code 0 if all hold, 1 if not.

    Parameters
    ----------
    table
        A token table, whole sequences, or another program's log (as `skewsim import` reads it): a file or a folder.
    max
        METRIC=VALUE, as in kl_k3=1e-3; may be given more than once. nonfinite=0 and placeholder=0 hold unless other
        values are given: tokens without a number, and values that are no log-probability.
    min
        METRIC=VALUE, as in ess=0.9; may be given more than once.
    json
        One JSON object.
    """
    from skewsim.cli.main import READ_LOG, resolve
    from skewsim.diagnose import count_values
    from skewsim.skew.gate import gate

    notes: list[str] = []
    rows, filled = count_values(resolve(READ_LOG)(table, notes))
    report = gate(rows, maximum=max or [], minimum=min or [], placeholder=filled)
    _say_all(notes)
    if json:
        print_json(report.to_json())
    else:
        show_lines(*report.checks)
    return report.exit_code


def _say_all(notes: list[str]) -> None:
    for note in notes:
        say(note)


def _tokens(log: Path, notes: list[str]) -> TokenTable:
    """Any log as a table of tokens that says where it is from."""
    from skewsim.cli.main import READ_LOG, resolve
    from skewsim.skew.tokens import TokenTable

    found = resolve(READ_LOG)(log, notes)
    table: TokenTable = found if isinstance(found, TokenTable) else found.table()
    return table.with_meta(source=table.meta.get("source", log.name))
