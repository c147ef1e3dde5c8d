"""All exceptions that skewsim raises on purpose, and how text from outside is shown.

A user's mistake is a ``UserError`` (one line, exit code 2); any other error is a fault of the program or the machine.
"""

LONGEST_LINE = 2000
"""Characters of a message; more is cut out of its middle."""


def printable(text: str) -> str:
    """The text with every character that a terminal would act on as an escape such as ``\\x1b``; line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shown(text: object, limit: int = LONGEST_LINE) -> str:
    """Text from outside as one printable line of about `limit` characters: what is longer loses its middle."""
    line = " ".join(str(text).split())
    if len(line) > limit:
        head = limit * 2 // 3
        line = f"{line[:head]} ... {line[head - limit :]}"
    return printable(line)


class SkewsimError(Exception):
    """Base of every error that skewsim raises on purpose."""


class UserError(SkewsimError):
    """The user's mistake: one line naming the setting, the value and what is allowed. Exit code 2."""


class FileFormatError(UserError):
    """A file that is missing, truncated, of a later schema version, or not what its name says."""


class EngineError(SkewsimError):
    """A rollout engine died, hung or gave an invalid answer. Exit code 1; the rows received so far are kept."""


class EngineNotInstalled(UserError):
    """The engine named is not installed; the message gives the install command."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived during a command that must clean up before it ends; `number` is the signal's.

    Exit code 128 + `number`, which is 143 or 129.
    """

    number: int = 15
