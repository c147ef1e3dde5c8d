"""The commands that judge a skew that is already there: diagnose, advise, gate, and import of other programs' logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skewsim.cli.display import print_json, print_table, say
from skewsim.cli.options import Flag

Limits = Annotated[list[str] | None, Parameter(negative="")]


def diagnose(
    table: Path,
    /,
    *,
    model: Annotated[list[Path] | None, Parameter(negative="")] = None,
    json: Flag = False,
) -> None:
    """Say what causes the skew of a token table, most first to mend, with the evidence and the setting that mends it.

    Parameters
    ----------
    table
        A token table (.npz, .parquet), or JSON lines with a sequence a line.
    model
        A Hugging Face folder to score the tokens with; may be given again and again, newest first.
    json
        One JSON object.
    """
    from skewsim.diagnose import diagnose_path

    found = diagnose_path(table, models=model or [])
    if json:
        print_json(found.to_json())
        return
    layer = f" ({found.layer} layer)" if found.layer else ""
    print(
        f"verdict: {found.verdict}{layer}; rms skew {found.rms:.3g} nats, {found.tokens} tokens in {found.sequences} sequences"
    )
    for cause in found.causes:
        print(f"\n{cause.name}: explains {cause.explained:.0%}\n  {cause.evidence}")
        if cause.fix:
            print(f"  fix: {cause.fix}")
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
    """Say what every framework's default threshold does to perfectly healthy data, and which setting does the least harm.

    Give the noise level in one of six ways. "touches" is the share of tokens or sequences that the default clips, masks
    or rejects; "weight" is the mean weight it leaves (1: the whole gradient); "bias" is by how much the expected gradient
    can be off; "ess" is the share of the data that counts.

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
        A log of both log-probabilities: its own tokens are drawn from. A token table (.npz, .parquet) or JSON lines.
    json
        One JSON object.
    plain
        Plain text without a table.
    """
    from skewsim.skew.advise import advise
    from skewsim.skew.noise_level import noise_of

    level = noise_of(length, sigma=sigma, mean_abs=mean_abs, k3=k3, metric=metric, profile=profile, log=log)
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
        A token table (.npz, .parquet), or JSON lines with a sequence a line.
    max
        METRIC=VALUE, as in kl_k3=1e-3; may be given again and again.
    min
        METRIC=VALUE, as in ess=0.9; may be given again and again.
    json
        One JSON object.
    """
    from skewsim.diagnose import load_source
    from skewsim.skew.gate import gate
    from skewsim.skew.tokens import TokenTable

    source = load_source(table)
    rows = source if isinstance(source, TokenTable) else source.table()
    report = gate(rows, maximum=max or [], minimum=min or [])
    if json:
        print_json(report.to_json())
    else:
        print("\n".join(map(str, report.checks)))
    return report.exit_code
