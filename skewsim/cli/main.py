"""The ``skewsim`` command: which commands there are, and what a user sees when one fails.

A command is an entry in ``COMMANDS``: its name, where its code is (an import string, resolved when the command runs)
and a sentence of help. So ``skewsim --help`` loads neither torch nor pydantic nor the parser, and this package never
imports harness or tui by itself. Results go to stdout, messages to stderr. Exit codes: 0 done, 1 the engine or the
machine failed, 2 the user's mistake or a package that is not installed (one line), 70 a fault in skewsim (one line,
and a report: `skewsim.cli.fault`), 130 interrupted, 143 terminated, 129 hung up, 141 the reader of stdout has gone.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any

from skewsim import __version__
from skewsim.cli.process import discard_output, heed_interrupts, ignore_interrupts, open_streams, was_interrupted
from skewsim.errors import SkewsimError, Terminated, UserError, shown
from skewsim.extras import explain

if TYPE_CHECKING:
    from cyclopts import App

COMMANDS = {
    "run": ("skewsim.cli.simulate:run", "Train one scenario, on the simulated engine or a real one."),
    "ladder": ("skewsim.cli.simulate:ladder", "Train the reference, initial V1 and its four fixes one by one."),
    "sweep": ("skewsim.cli.sweep:sweep", "Train a grid of settings and seeds; show where training collapses."),
    "report": ("skewsim.cli.report:report", "One HTML file of a run, ladder, sweep, profile, diagnosis or log."),
    "scenarios": ("skewsim.cli.simulate:scenarios", "List the named scenarios, print one, or list every setting."),
    "profile": ("skewsim.cli.simulate:profile", "List measured skew profiles, or show one."),
    "check": ("skewsim.cli.analyse:check", "One verdict on any log, metrics or folder; exit code 1 if it is wrong."),
    "diagnose": ("skewsim.cli.analyse:diagnose", "Name the causes of a token table's skew, and what mends them."),
    "advise": ("skewsim.cli.analyse:advise", "What every framework's default threshold does to healthy data."),
    "published": ("skewsim.cli.published:published", "List published runs; say where a number stands among them."),
    "gate": ("skewsim.cli.analyse:gate", "Check a token table against limits; for continuous integration."),
    "import": ("harness.commands:import_log", "Read another program's logged rollouts into a token table."),
    "measure": ("harness.commands:measure", "Measure a real engine's skew on a model: table and profile."),
    "replay": ("harness.commands:replay", "Score the same tokens under several engines or settings."),
    "engines": ("harness.commands:engines", "Install, list and check real engines."),
    "models": ("harness.commands:models", "Install, list and show real language models."),
    "tui": ("tui.launch:run", "The terminal UI: toggle a fix, watch the curves respond."),
    "serve": ("tui.serve:serve", "The terminal UI in a browser."),
    "pretrain": ("skewsim.cli.simulate:pretrain", "Make the base policy that training starts from."),
}
"""Name -> (import string of a function or a cyclopts App, help)."""
SWITCHES = {
    "--version": ("skewsim.cli.first_aid:version", "Print the version; with --verbose, what a bug report needs."),
    "--install-completion": ("skewsim.cli.completion:install", "Let the Tab key complete commands and options."),
    "--show-completion": ("skewsim.cli.completion:show", "Print the script that does so."),
}
"""Options that are used in place of a command; entries as in ``COMMANDS``."""
TERMINAL_UI = "tui.launch:main"
"""The function that ``skewsim`` without a command calls, with the options."""
_MISTAKEN_PATHS = (
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.ELOOP,
    errno.EROFS,
)
"""Errors of the system for which the path that the user gave is to blame."""
LAST_NET = "skewsim.cli.fault:fault"
"""The function that writes the report of an exception that nobody foresaw, and returns the line to print."""
CHOOSE_ENGINE = "harness.engines:choose"
"""The function that turns a real engine's name into an `EngineChoice` (`skewsim.engine.choice`)."""
READ_LOG = "harness.commands:read_source"
"""The function that reads any log that somebody has, and adds what it noticed to a list."""
GATHER = "harness.evidence:gather"
"""The function that reads files and folders of any kind for `skewsim check`."""
CHECK_CONFIG = "harness.configs:check_config"
"""The function that looks for known traps in a training configuration, for `skewsim check --config`."""
FIND_MODEL = "harness.models:find_model"
"""The function that turns an installed model's name into its folder, and leaves other paths as they are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Without `arguments`, the command line of this process."""
    if arguments is not None:
        return _guarded(list(arguments))
    try:
        open_streams()
        heed_interrupts()
        try:
            return _guarded(sys.argv[1:])
        finally:
            ignore_interrupts()
    except KeyboardInterrupt:  # one more, after the command has said how it ended and before the line above
        ignore_interrupts()
        return 130


def _guarded(words: list[str]) -> int:
    """The exit code of a command, however it ends; this is the one place where exceptions become words."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # a step is too small for a second thread to help
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except UserError as error:
        return _complain(2, str(error))
    except ModuleNotFoundError as error:
        user = words[0] if words and words[0] in COMMANDS else "the terminal UI"
        missing = explain(error, user)
        return _fault(error, words) if missing is None else _complain(2, str(missing))
    except KeyboardInterrupt as interrupt:
        status = 128 + interrupt.number if isinstance(interrupt, Terminated) else 130
        return _complain(status, str(interrupt) or "interrupted")
    except BrokenPipeError:
        discard_output()
        return 141
    except SkewsimError as error:
        return _complain(1, str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            discard_output()
        status = 2 if error.filename is not None and error.errno in _MISTAKEN_PATHS else 1
        return _complain(status, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception as error:
        return _complain(130, "interrupted") if was_interrupted() else _fault(error, words)


def help_text() -> str:
    """What ``skewsim --help`` prints."""

    def rows(table: dict[str, tuple[str, str]]) -> list[str]:
        width = max(map(len, table))
        return [f"  {name:<{width}}  {sentence}" for name, (_, sentence) in table.items()]

    return "\n".join(
        [
            "Usage: skewsim COMMAND [OPTIONS]",
            "",
            "See, measure and fix train-inference skew in online RL for language models.",
            "With no command: the terminal UI.",
            "",
            "Commands:",
            *rows(COMMANDS),
            "",
            "Instead of a command:",
            *rows(SWITCHES),
            "",
            "`skewsim COMMAND --help` says more.",
        ]
    )


def resolve(target: str) -> Any:
    """The object that an import string ``module:name`` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in ("--help", "-h", "help") or not (arguments or sys.stdout.isatty()):
        print(help_text())
        return 0
    if arguments == ["--version"]:
        print(__version__)
        return 0
    if first.startswith("-") and "--version" in arguments:
        return _call("--version", [word for word in arguments if word != "--version"])
    if first in SWITCHES:
        return _call(first, arguments[1:])
    if first.startswith("-") or arguments in ([], ["tui"]):  # the terminal UI starts sooner without the parser
        return int(resolve(TERMINAL_UI)([] if first == "tui" else arguments) or 0)
    if first not in COMMANDS:
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        raise UserError(
            f"unknown command {shown(first, 80)}; allowed: {', '.join(COMMANDS)}"
            + (f" (did you mean {near[0]}?)" if near else "")
        )
    return _call(first, arguments[1:])


def _call(name: str, arguments: list[str]) -> int:
    from cyclopts import CycloptsError, UnusedCliTokensError

    try:
        return int(parser([name])([name, *arguments]) or 0)
    except UnusedCliTokensError as error:
        words = shown(" ".join(error.unused_tokens or ()), 80)
        raise UserError(f"{name}: {words} is more than it takes. See skewsim {name} --help") from None
    except CycloptsError as error:
        raise UserError(f"{name}: {error} See skewsim {name} --help") from None


def parser(names: Iterable[str]) -> App:
    """The parser of these commands and switches; making it imports the module of each."""
    from cyclopts import App, Parameter

    app = App(
        name="skewsim",
        help_format="plaintext",
        version_flags=(),
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(negative=()),  # no --no-json, no --empty-hide
    )
    known = COMMANDS | SWITCHES
    for name in names:
        app.command(_flowing(resolve(known[name][0])), name=name)
    return app


def _flowing(command: Any) -> Any:
    """A command whose help is folded where the terminal ends, and not where lines of its docstring do."""
    import inspect

    if isinstance(command, FunctionType):
        command.__doc__ = unfolded(inspect.getdoc(command) or "")
    return command


def unfolded(text: str) -> str:
    """A docstring with each of its paragraphs on one line; headings, names and indentation stay."""
    lines: list[str] = []
    for line in text.splitlines():
        before = lines[-1] if lines else ""
        ruled = line.startswith("---") or before.startswith("---")
        if line.strip() and before.strip() and _indent(line) == _indent(before) and not ruled:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _complain(status: int, message: str) -> int:
    print(f"skewsim: {shown(message)}", file=sys.stderr)
    return status


def _fault(error: Exception, words: list[str]) -> int:
    return _complain(70, resolve(LAST_NET)(error, words))
