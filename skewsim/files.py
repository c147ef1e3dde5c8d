"""Writing files atomically, and checking a file's schema version.

A file is written under a temporary name in its own folder and renamed once it is complete. So a program killed in the
middle leaves the old file or none, never half of one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from skewsim.errors import FileFormatError, UserError


def state_folder() -> Path:
    """Where the last session's settings and the reports of faults lie; SKEWSIM_STATE sets it."""
    import platformdirs

    chosen = os.environ.get("SKEWSIM_STATE")
    return Path(chosen) if chosen else platformdirs.user_state_path("skewsim")


@contextmanager
def atomic_writer(path: Path | str) -> Iterator[BinaryIO]:
    """A binary handle whose content becomes the file `path` when the block ends, and is deleted if it raises."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_schema_version(what: str, version: object, *, newest: int) -> None:
    """FileFormatError if ``what`` (a file, or a line of one) has a schema version that this program does not read."""
    if not isinstance(version, int) or version < 1:
        raise FileFormatError(f"{what}: schema_version={version!r} is not known; this skewsim reads up to {newest}")
    if version > newest:
        raise FileFormatError(
            f"{what}: schema_version={version} is from a later skewsim; this one reads up to {newest}"
        )
