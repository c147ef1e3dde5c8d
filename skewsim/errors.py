"""All exceptions that skewsim raises on purpose.

A user's mistake is a ``UserError`` (one line, exit code 2); any other error is a fault of the program or the machine.
"""


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
    """SIGTERM arrived during a command that must clean up before it ends. Exit code 143."""
