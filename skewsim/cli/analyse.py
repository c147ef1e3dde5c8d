"""The commands that judge a skew that is already there: diagnose, advise, gate, and import of other programs' logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skewsim.cli.display import print_json, print_table, say, show_lines
from skewsim.cli.options import Flag
from skewsim.errors import UserError

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
    show_lines(
        f"verdict: {found.verdict}{layer}; rms skew {found.rms:.3g} nats, {found.tokens} tokens in {found.sequences} sequences"
    )
    for cause in found.causes:
        show_lines(f"\n{cause.name}: explains {cause.explained:.0%}\n  {cause.evidence}")
        if cause.fix:
            show_lines(f"  fix: {cause.fix}")
    for note in found.notes:
        say(f"note: {note}")


def advise(
    *,
    length: int,
    sigma: float | None = None,
    profile: str | None = None,
    json: Flag = False,
    plain: Flag = False,
) -> None:
    """Say what every framework's default threshold does to perfectly healthy data.

    Parameters
    ----------
    length
        Response tokens.
    sigma
        Noise level: rms skew per token, nats.
    profile
        Instead of sigma: a measured profile, as a name or a path.
    json
        One JSON object.
    plain
        Plain text without a table.
    """
    if (sigma is None) == (profile is None):
        raise UserError("advise needs --sigma or --profile, and not both")
    from skewsim.skew.advise import advise
    from skewsim.skew.profile import load_profile

    found = advise(load_profile(profile) if profile is not None else sigma or 0.0, length)
    if json:
        print_json(found.to_json())
        return
    rows = [
        [r.framework, r.rule, f"{r.fired:.1%}", f"{r.ess:.3f}", r.default, r.healthy or "as it is"] for r in found.rows
    ]
    title = f"Healthy data, rms skew {found.sigma:.3g} nats, {found.length} tokens ({found.source})"
    columns = ["framework", "rule", "fires on", "ess", "default", "would not fire"]
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
        show_lines(*report.checks)
    return report.exit_code
