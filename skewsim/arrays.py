"""Where big files of columns come in: npz and parquet.

What a file says of itself is compared with its size before anything is allocated: how many values each column has, and
how many bytes they unpack to. Whatever is wrong is a FileFormatError of one line.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from skewsim.border import open_regular
from skewsim.errors import FileFormatError, shown

if TYPE_CHECKING:
    import pyarrow.parquet

SMALL = 1 << 28
"""Bytes that any file may unpack to."""
RATIO = 32
"""A file may unpack to so many times its own size; a token table with all columns does to at most 17."""
NUMBERS = "biuf"
"""Kinds of numpy types: booleans, whole numbers with and without sign, floats."""


def check_unpacked(name: str, size: int, unpacked: int) -> None:
    """FileFormatError if a file of `size` bytes says that it unpacks to more than such a file may."""
    if unpacked > (allowed := max(SMALL, RATIO * size)):
        raise FileFormatError(f"{name}: its {size} bytes unpack to {unpacked}; allowed are {allowed}")


# ------------------------------------------------------------------------------------------------------------- npz


def read_npz(path: Path | str, *, what: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file: 1-D, of numbers. FileFormatError begins with `what` and the path."""
    name = f"{what} {path}"
    with open_regular(path, what=what) as handle, _reading(name, "npz archive of numbers"):
        size = handle.seek(0, io.SEEK_END)
        with zipfile.ZipFile(handle) as archive:
            entries = archive.infolist()
            check_unpacked(name, size, sum(entry.file_size for entry in entries))
            return {_array_name(entry, name): _read_array(archive, entry, name) for entry in entries}


def _array_name(entry: zipfile.ZipInfo, name: str) -> str:
    if not entry.filename.endswith(".npy"):
        raise FileFormatError(f"{name}: {shown(entry.filename, 80)} in it is no array")
    return entry.filename.removesuffix(".npy")


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> np.ndarray:
    """One array, whose header must agree with the size of its entry."""
    with archive.open(entry) as stream:
        shape, dtype, begin = _array_header(stream)
        told = f"{name}: {shown(entry.filename, 80)}"
        if len(shape) != 1 or dtype.kind not in NUMBERS:
            raise FileFormatError(f"{told} has shape {shape} and type {shown(dtype, 80)}; allowed: one axis, numbers")
        if begin + shape[0] * dtype.itemsize != entry.file_size:
            raise FileFormatError(f"{told} should hold {shape[0]} values, but has {entry.file_size - begin} bytes")
        return np.frombuffer(stream.read(), dtype=dtype).astype(dtype.newbyteorder("="))


def _array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and type as an array's header says, and the number of bytes that the header takes."""
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"npy version {version}")
    shape, _, dtype = read[version](stream)
    return shape, dtype, stream.tell()


# --------------------------------------------------------------------------------------------------------- parquet


@contextmanager
def opened_parquet(path: Path | str, *, what: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A parquet file to read. Text stays coded, so that one long word in many rows is held once.

    Read with ``use_threads=False``: a thread of pyarrow's own, which reads from a file of Python's, may still be there
    when the process ends, and then ends it by an abort (seen once in some hundred runs of `gate`).

    Whatever goes wrong in the block, too, is a FileFormatError that begins with `what` and the path.
    """
    import pyarrow.parquet

    name = f"{what} {path}"
    with open_regular(path, what=what) as handle, _reading(name, "parquet", pyarrow.ArrowException):
        size = handle.seek(0, io.SEEK_END)
        footer = pyarrow.parquet.read_metadata(handle)
        names = footer.schema.to_arrow_schema().names
        if twice := next((each for each in names if names.count(each) > 1), None):
            raise FileFormatError(f"{name}: the column {shown(twice, 80)} is there twice")
        check_unpacked(name, size, _unpacked(footer))
        leaves = [footer.schema.column(index) for index in range(footer.num_columns)]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        handle.seek(0)
        with pyarrow.parquet.ParquetFile(handle, read_dictionary=texts, pre_buffer=False) as source:
            yield source


def _unpacked(footer: Any) -> int:
    """Bytes of all values by a parquet footer: as they are coded, or 8 for each where that is more."""
    groups = (footer.row_group(index) for index in range(footer.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(footer.num_columns))
    return sum(max(chunk.total_uncompressed_size, 8 * chunk.num_values) for chunk in chunks)


def numbers(column: Any, name: str) -> np.ndarray:
    """A pyarrow column of numbers; null is NaN. FileFormatError begins with `name`."""
    import pyarrow.types as types

    kind = column.type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)):
        raise FileFormatError(f"{name} has type {shown(kind, 80)}; allowed: numbers")
    if types.is_null(kind):
        return np.full(len(column), math.nan)
    return np.asarray(column.to_numpy(zero_copy_only=False))


@contextmanager
def _reading(name: str, kind: str, *theirs: type[Exception]) -> Iterator[None]:
    """What numpy, zipfile and pyarrow raise at a file that is none of theirs, as one line."""
    try:
        yield
    except FileFormatError:
        raise
    except (*_WRONG, *theirs) as error:
        raise FileFormatError(f"{name}: truncated or no {kind} ({shown(error, 100)})") from None


_WRONG: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, OSError, ValueError, EOFError, MemoryError, RuntimeError, LookupError, TypeError, OverflowError, SyntaxError)  # fmt: skip
