"""Packages that a plain ``pip install skewsim`` does not install, and the command that installs each.

`pip install skewsim` can read logs, judge them and list profiles. Training, models, engines and the terminal UI need
further packages, listed in ``[project.optional-dependencies]`` of pyproject.toml. Code imports such a package where it
is used; if it is missing, `explain` turns the error into one line. Two places call it: the command line, and
``skewsim.NAME`` in a program.
"""

from __future__ import annotations

from skewsim.errors import UserError

EXTRA_OF = {
    "torch": "sim",
    "safetensors": "sim",
    "matplotlib": "sim",
    "transformers": "models",
    "gguf": "models",
    "httpx2": "engines",
    "uv": "engines",
    "textual": "tui",
    "textual_serve": "serve",
    "ray": "ray",
}
"""Top-level module -> the extra that installs it."""
EXTRA_OF_COMMAND = {
    "check": "models",
    "diagnose": "models",
    "measure": "engines",
    "replay": "engines",
    "engines": "engines",
    "models": "models",
    "serve": "serve",
}
"""Command -> the extra with everything it needs, where the extra of the first missing package would not be enough."""


class NotInstalled(UserError, ModuleNotFoundError):
    """A package of an optional extra is missing; the message gives the command that installs it. Exit code 2."""


def explain(error: ModuleNotFoundError, user: str) -> NotInstalled | None:
    """The one-line error for a missing package that an extra installs, or None if the error is of another kind.

    `user` is what needs the package: a command's name, or a name of the library. None is for a module that belongs to
    no extra, or that is missing inside an installed package: a fault of the program or a broken installation.
    """
    if error.name not in EXTRA_OF:
        return None
    extra = EXTRA_OF_COMMAND.get(user, EXTRA_OF[error.name])
    package = error.name.replace("_", "-")
    line = f"{user} needs {package}, which is not installed; install it with: pip install 'skewsim[{extra}]'"
    return NotInstalled(line, name=error.name)
