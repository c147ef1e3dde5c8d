"""The commands that judge skew that was measured or logged before: diagnose, advise and gate."""

from __future__ import annotations

from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from skewsim.cli.display import print_json, print_table, say, show_lines
from skewsim.cli.options import Flag

if TYPE_CHECKING:
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
    json: Flag = False,
) -> None:
    """Name the causes of a token table's skew in the order to mend them, with the evidence and the setting to change.

    Parameters
    ----------
    table
        A token table, whole sequences, or another program's log (as `skewsim import` reads it): a file or a folder.
    model
        A Hugging Face folder to score the tokens with, or the name of an installed model; may be given more than once,
        newest first.
    dtype
        What both sides compute in: float32, float16, bfloat16 or fp8; skew that is usual for it is healthy.
    model_kind
        dense or moe: a mixture of experts has more skew, and heavier tails.
    framework
        Only this one's settings in the fixes: vLLM, PipelineRL, verl, TRL, prime-rl, slime, Miles, NeMo-RL, SkyRL,
        OpenRLHF or AReaL.
    json
        One JSON object.
    """
    from skewsim.cli.main import FIND_MODEL, READ_LOG, resolve
    from skewsim.diagnose import diagnose, load_models
    from skewsim.diagnose.page import page

    source = resolve(READ_LOG)(table)
    models = load_models([resolve(FIND_MODEL)(each) for each in model or []])
    found = diagnose(source, models=models, dtype=dtype, model_kind=model_kind, framework=framework)
    if json:
        print_json(found.to_json())
        return
    show_lines(*page(found, get_terminal_size().columns))
    for note in found.notes:
        say(f"note: {note}")


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

    tokens = None if log is None else _tokens(log)
    level = noise_of(length, sigma=sigma, mean_abs=mean_abs, k3=k3, metric=metric, profile=profile, log=tokens)
    found = advise(level.noise, level.length)
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

    rows, filled = count_values(resolve(READ_LOG)(table))
    report = gate(rows, maximum=max or [], minimum=min or [], placeholder=filled)
    if json:
        print_json(report.to_json())
    else:
        show_lines(*report.checks)
    return report.exit_code


def _tokens(log: Path) -> TokenTable:
    """Any log as a table of tokens that says where it is from."""
    from skewsim.cli.main import READ_LOG, resolve
    from skewsim.skew.tokens import TokenTable

    found = resolve(READ_LOG)(log)
    table: TokenTable = found if isinstance(found, TokenTable) else found.table()
    return table.with_meta(source=table.meta.get("source", log.name))
