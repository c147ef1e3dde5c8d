"""The checkpoint of a run: its state as safetensors, with a checksum of every part.

The file's metadata hold a note as JSON: what the state is, how many bytes of records belong to it, and the CRC-32 of
each tensor (with its dtype and shape) and of those records; beside it the CRC-32 of the note. A checkpoint of an
earlier version has no checksums and is read without them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skewsim.border import parse_json
from skewsim.errors import FileFormatError, shown
from skewsim.files import atomic_writer, check_schema_version

if TYPE_CHECKING:
    from torch import Tensor

    from skewsim.learn.trainer import TrainState

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A state, and the records that were written when it was saved."""

    state: TrainState
    length: int
    """Bytes of ``steps.jsonl`` that belong to the state."""
    records: int | None
    """The CRC-32 of those bytes; None in a checkpoint of an earlier version."""


def write_checkpoint(path: Path, previous: Path, found: Checkpoint) -> None:
    """Save a checkpoint; the one that was there before becomes `previous` once the new one is on the disk."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.state.tensors.items()}
    note = {
        "schema_version": SCHEMA_VERSION,
        "length": found.length,
        "meta": found.state.meta,
        "checksums": {name: _checksum(tensor) for name, tensor in tensors.items()},
        "records": found.records,
    }
    text = json.dumps(note)
    with atomic_writer(path, previous=previous) as file:
        file.writelines(_safetensors(tensors, {"skewsim": text, "checksum": str(zlib.crc32(text.encode()))}))


def _safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """The pieces of a safetensors file (its layout is in `skewsim.model.folder`), no value of which is copied.

    Tensors of wider values come first, so that each begins at a multiple of its values' width.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {
            "dtype": _DTYPES[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for _, tensor in ordered:
        yield _values(tensor)


_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}  # fmt: skip
"""torch's name of a dtype -> its name in a safetensors file."""


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint whose parts are as they were written. FileFormatError names the part that is not."""
    from safetensors import SafetensorError, safe_open

    from skewsim.learn.trainer import TrainState
    from skewsim.model.folder import check_safetensors

    check_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError):
        raise FileFormatError(f"{path}: truncated, or no checkpoint of a run") from None
    note = _read_note(path, metadata)
    _verify(path, tensors, note.get("checksums"))
    return Checkpoint(TrainState(tensors=tensors, meta=note["meta"]), note["length"], note.get("records"))


def _read_note(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    text = metadata.get("skewsim", "")
    if "checksum" in metadata and metadata["checksum"] != str(zlib.crc32(text.encode())):
        raise FileFormatError(f"{path}: its part note was altered since it was written")
    note = parse_json(text, f"{path}: its part note")
    if not isinstance(note, dict):
        raise FileFormatError(f"{path}: truncated, or no checkpoint of a run")
    check_schema_version(str(path), note.get("schema_version"), newest=SCHEMA_VERSION)
    length, records = note.get("length"), note.get("records")
    if not (isinstance(note.get("meta"), dict) and type(length) is int and length >= 0 and type(records) in (int, _NO)):
        raise FileFormatError(f"{path}: its part note is not as a run writes it")
    return note


_NO = type(None)


def _verify(path: Path, tensors: dict[str, Tensor], checksums: Any) -> None:
    """FileFormatError that names the first tensor that is not as its checksum says; none are in an old checkpoint."""
    if checksums is None:
        return
    known = checksums if isinstance(checksums, dict) else {}
    for name in sorted(tensors.keys() | known.keys()):
        if name not in tensors or known.get(name) != _checksum(tensors[name]):
            raise FileFormatError(f"{path}: its part {shown(name, 80)} was altered since it was written")


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(_values(tensor), zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode()))


def _values(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor's values."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def fitting(path: Path, state: TrainState | None) -> Iterator[None]:
    """The block gives a state to a trainer: what goes wrong there means that the state is of another run or program."""
    try:
        yield
    except (LookupError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
        if state is None:
            raise
        raise FileFormatError(f"{path} does not fit this run ({shown(error, 120)})") from None
