"""The exception tree: small and total.

A user's mistake is a ``UserError`` (one line, exit code 2); everything else is ours.
"""


class SkewsimError(Exception):
    """Base of every error that skewsim raises on purpose."""


class UserError(SkewsimError):
    """The user's mistake: one line naming the setting, the value and what is allowed. Exit code 2."""


class FileFormatError(UserError):
    """A file that is missing, truncated, of a later schema version, or not what its name says."""


class EngineError(SkewsimError):
    """A rollout engine died, hung or answered rubbish. Exit code 1; the rows received so far are kept."""


class EngineNotInstalled(UserError):
    """The engine named is not installed; the message gives the install command."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where a command cleans up after it. Exit code 143."""
