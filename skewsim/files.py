"""Writing files atomically, and checking a file's schema version.

A file is written under a temporary name in its own folder and renamed once it is complete. So a program killed in the
middle leaves the old file or none, never half of one.
"""

from __future__ import annotations

import math
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from skewsim.errors import FileFormatError, UserError


def state_folder() -> Path:
    """Where the last session's settings and the reports of faults lie; SKEWSIM_STATE sets it."""
    import platformdirs

    chosen = os.environ.get("SKEWSIM_STATE")
    return Path(chosen) if chosen else platformdirs.user_state_path("skewsim")


@contextmanager
def atomic_writer(path: Path | str, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A binary handle whose content becomes the file `path` when the block ends, and is deleted if it raises.

    A file that is there is renamed to `previous` first, if that is given. File and folder are on the disk at the end.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Put the names of a folder's files on the disk, where its file system can."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


_TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.[0-9a-f]{8}")


def remove_leftovers(folder: Path, names: Collection[str] = ()) -> None:
    """Delete the temporary files of writers that were killed. Of the files called `names` no other process writes any,
    so that theirs are deleted whoever seems to run."""
    for entry in os.scandir(folder):
        found = _TEMPORARY.fullmatch(entry.name)
        if found and (found[1] in names or not _runs(int(found[2]))):
            Path(entry.path).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def check_schema_version(what: str, version: object, *, newest: int) -> None:
    """FileFormatError if ``what`` (a file, or a line of one) has a schema version that this program does not read."""
    if not isinstance(version, int) or version < 1:
        raise FileFormatError(f"{what}: schema_version={version!r} is not known; this skewsim reads up to {newest}")
    if version > newest:
        raise FileFormatError(
            f"{what}: schema_version={version} is from a later skewsim; this one reads up to {newest}"
        )


def finite(data: Any) -> Any:
    """The same data with None for every number that is NaN or infinite."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data
