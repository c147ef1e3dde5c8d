"""What the light installation leaves out, and the command that installs it.

`pip install skewsim` brings what reads logs, judges them and lists profiles. Training, models, engines and the
terminal UI need more, each named in ``[project.optional-dependencies]`` of pyproject.toml. Code imports a package
where it is used; if it is missing, `explain` turns the error into one line. It is called in two places: by the
command line, and by ``skewsim.NAME`` in a program.
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
}
"""Top-level module -> the extra that installs it."""
EXTRA_OF_COMMAND = {
    "diagnose": "models",
    "measure": "engines",
    "replay": "engines",
    "engines": "engines",
    "models": "models",
    "serve": "serve",
}
"""Commands that need more than the first package they miss: the extra that has all of it."""


class NotInstalled(UserError, ModuleNotFoundError):
    """A package of an optional extra is missing; the message gives the command that installs it. Exit code 2."""


def explain(error: ModuleNotFoundError, user: str) -> NotInstalled | None:
    """The one line for a missing package of an extra, or None if the error is of another kind.

    `user` is what needs the package: a command's name, or a name of the library. A module that no extra has, or one
    missing inside a package that is there, is a mistake of ours or a broken installation: None.
    """
    if error.name not in EXTRA_OF:
        return None
    extra = EXTRA_OF_COMMAND.get(user, EXTRA_OF[error.name])
    package = error.name.replace("_", "-")
    line = f"{user} needs {package}, which is not installed; install it with: pip install 'skewsim[{extra}]'"
    return NotInstalled(line, name=error.name)
