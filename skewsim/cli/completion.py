"""Tab completion: the script that a shell loads, made by cyclopts from the commands' signatures.

The script lists every command and option, so pressing Tab starts no Python. ``skewsim --install-completion`` writes it;
run that again after an update, so that the script has the new options.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from cyclopts.completion.detect import ShellDetectionError, detect_shell

from skewsim.cli.display import say
from skewsim.cli.main import COMMANDS, SWITCHES, parser
from skewsim.errors import UserError

Shell = Literal["bash", "zsh", "fish"]
SHELLS: tuple[Shell, ...] = ("bash", "zsh", "fish")


def install(shell: Shell | None = None, /) -> None:
    """Write the completion script where the shell looks for it, and a line that loads it into ~/.bashrc or ~/.zshrc.

    Parameters
    ----------
    shell
        bash, zsh or fish; by default the one that you are in.
    """
    chosen = _chosen(shell)
    print(parser([*COMMANDS, *SWITCHES]).install_completion(shell=chosen))
    below = " whose ~/.zshrc runs `autoload -Uz compinit && compinit` below the new line" if chosen == "zsh" else ""
    say(f"It works in every new shell{below}.")


def show(shell: Shell | None = None, /) -> None:
    """Print the completion script.

    Parameters
    ----------
    shell
        bash, zsh or fish; by default the one that you are in.
    """
    print(script(_chosen(shell)))


def script(shell: Shell) -> str:
    """The completion script for a shell."""
    return str(parser([*COMMANDS, *SWITCHES]).generate_completion(shell=shell))


def _chosen(shell: Shell | None) -> Shell:
    """The shell asked for, or the one that this process was started from. UserError if that is another."""
    if shell is not None:
        return shell
    with suppress(ShellDetectionError):
        found = detect_shell()
        if found != "powershell":
            return found
    raise UserError(f"this shell is not known; allowed: {', '.join(SHELLS)}, as in skewsim --install-completion bash")
