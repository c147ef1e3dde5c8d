"""The command that makes a report: one HTML file of anything that skewsim has made or read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from skewsim.cli.display import say
from skewsim.errors import UserError
from skewsim.files import atomic_writer


def report(source: str, /, *, out: Annotated[Path, Parameter(name=["--out", "-o"])]) -> None:
    """Write one HTML file of a run, ladder, sweep, profile, diagnosis or log: pictures, tables, settings, how to
    reproduce it. It needs no network and no other file, and prints well.

    Parameters
    ----------
    source
        A run's, ladder's or sweep's folder; a profile's name or file; what `skewsim diagnose --json` printed; or a log
        of tokens, as `skewsim import` reads it.
    out
        The file to write; its name ends in .html, and a file of that name is replaced.
    """
    from skewsim.cli.main import READ_LOG, resolve
    from skewsim.reports.kinds import report as make

    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: allowed is a name that ends in .html")
    notes: list[str] = []

    def read_log(path: Path) -> Any:
        return resolve(READ_LOG)(path, notes)

    text = make(source, read_log).to_html()
    with atomic_writer(out) as file:
        file.write(text.encode())
    for note in notes:
        say(note)
    say(f"report: {out}")
