"""The last net: an exception that nobody foresaw is one line and a report, and exit code 70 (EX_SOFTWARE of
sysexits.h).

The report holds what a bug report needs: versions, the command line and the traceback, each without secrets. It lies
in the state folder; the newest `_KEPT` are kept. SKEWSIM_DEBUG=1 shows the traceback on stderr, too.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from skewsim.errors import printable, shown
from skewsim.files import atomic_writer, state_folder

_KEPT = 20
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_IN_ARGUMENT = re.compile(r"((?:key|token|secret|password)[=:]\s*)[^\s'\"]+", re.IGNORECASE)


def fault(error: BaseException, words: Sequence[str]) -> str:
    """Write the report of an exception under the command line `words`; the line that says so."""
    text = "".join(traceback.format_exception(error))
    if os.environ.get("SKEWSIM_DEBUG") == "1":
        print(printable(scrubbed(text)), end="", file=sys.stderr)
    what = shown(scrubbed(f"{type(error).__name__}: {error}".rstrip(": ")), 200)
    return f"a fault in skewsim: {what}; report: {_written(text, words)}"


def scrubbed(text: str) -> str:
    """The text without passwords in addresses, and without any value of an environment variable that holds a secret."""
    secrets = {os.environ[name].strip() for name in os.environ if _SECRET_NAME.search(name)}
    for secret in sorted(filter(lambda each: len(each) > 3, secrets), key=len, reverse=True):
        for form in (secret, repr(secret)[1:-1]):
            text = text.replace(form, "***")
    return _IN_ARGUMENT.sub(r"\1***", _IN_ADDRESS.sub("***", text))


def _written(text: str, words: Sequence[str]) -> str:
    """The report's path, or why there is none."""
    folder = state_folder()
    path = folder / f"fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as handle:
            handle.write(printable(scrubbed(_report(text, words))).encode())
        _forget_old(folder)
    except Exception as error:  # whatever keeps the report from being written, the line is still said
        return f"none, it could not be written ({type(error).__name__})"
    return str(path)


def _report(text: str, words: Sequence[str]) -> str:
    from skewsim.cli.first_aid import lines, versions

    return "\n".join([*lines(versions()), f"command: skewsim {shlex.join(words)}", "", text])


def _forget_old(folder: Path) -> None:
    for old in sorted(folder.glob("fault-*.txt"))[:-_KEPT]:
        old.unlink(missing_ok=True)
