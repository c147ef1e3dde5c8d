"""Where a model folder comes in: config.json and *.safetensors, looked at before torch or transformers sees them.

The configuration's numbers are whole and positive, and no larger than the files bear out; a file of weights has every
byte that its header names. The layout of a safetensors file: 8 bytes with the length of the header, the header as JSON
(name -> dtype, shape, data_offsets), and the values (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skewsim.border import open_regular, parse_json, read_small
from skewsim.errors import FileFormatError, UserError, shown

LONGEST_HEADER = 100_000_000
"""Bytes; the safetensors library's own limit."""
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim", "max_position_embeddings", "num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "sliding_window", "n_embd", "n_head", "n_layer", "n_positions")  # fmt: skip
"""Fields of a configuration that are sizes."""
_TABLES = ("rope_parameters", "rope_scaling", "quantization_config", "text_config")
_POSITIVE = ("rope_theta", "rms_norm_eps", "layer_norm_eps", "initializer_range")
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}  # fmt: skip
"""Bits of a value of each dtype."""


def read_config(folder: Path | str) -> dict[str, Any]:
    """The folder's config.json, its sizes and tables checked. Raises UserError, or FileFormatError naming the field."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"model={shown(folder)!r}: no such folder; allowed: a Hugging Face model folder")
    path = folder / "config.json"
    if not path.exists():
        raise FileFormatError(f"{folder}: no config.json; a Hugging Face model folder has one")
    config = parse_json(read_small(path), str(path))
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise FileFormatError(f"{path}: model_type is missing; not a model's configuration")
    for part in (config, config.get("text_config") or {}):
        _check_fields(part, path)
    return config


def _check_fields(config: Any, path: Path) -> None:
    for name in _TABLES:
        if not isinstance(config.get(name) or {}, Mapping):
            raise FileFormatError(f"{path}: {name}={shown(repr(config[name]), 60)}; allowed: a table, or null")
    ropes = [each for name in ("rope_parameters", "rope_scaling") if (each := config.get(name))]
    for name, value in [*config.items(), *(item for rope in ropes for item in rope.items())]:
        if value is None:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        if name in _SIZES and not (whole and 0 < value < 2**31):
            raise FileFormatError(f"{path}: {name}={shown(repr(value), 60)}; allowed: a whole number above 0")
        if name in _POSITIVE and not (isinstance(value, int | float) and 0 < value < 1e30):
            raise FileFormatError(f"{path}: {name}={shown(repr(value), 60)}; allowed: a number above 0")


def check_folder(folder: Path | str) -> dict[str, Any]:
    """`read_config`, once the folder's weights are whole and large enough for what the configuration says."""
    config = read_config(folder)
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileFormatError(f"{folder}: no *.safetensors; pickled weights (*.bin, *.pt) are not read")
    tensors = [each for file in files for each in check_safetensors(file)]
    stored = 8 * sum(file.stat().st_size for file in files)
    for part in (config, config.get("text_config") or {}):
        _check_borne_out(part, Path(folder) / "config.json", len(tensors), stored)
    return config


def _check_borne_out(config: Mapping[str, Any], path: Path, tensors: int, bits: int) -> None:
    """FileFormatError for a size that no weights of so many tensors and bits can have."""
    width = config.get("hidden_size") or 1
    if (config.get("num_hidden_layers") or 0) > tensors:
        raise FileFormatError(
            f"{path}: num_hidden_layers={config['num_hidden_layers']}, but there are {tensors} tensors"
        )
    for name in ("hidden_size", "vocab_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads"):
        if (config.get(name) or 0) * (1 if name == "hidden_size" else width) > bits:
            raise FileFormatError(f"{path}: {name}={config[name]} is more than the weights in the folder bear out")


def check_safetensors(path: Path) -> list[str]:
    """The names of the tensors of a safetensors file that has every byte its header names. FileFormatError if not."""
    with open_regular(path) as handle:
        size = handle.seek(0, io.SEEK_END)
        handle.seek(0)
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise FileFormatError(f"{path}: truncated, or not a safetensors file")
        header = parse_json(handle.read(length), f"{path}: its header")
    if not isinstance(header, dict):
        raise FileFormatError(f"{path}: its header is no table of tensors")
    header.pop("__metadata__", None)
    end = 0
    for begin, stop in sorted(_extent(name, header[name], path) for name in header):
        if begin != end:
            raise FileFormatError(f"{path}: byte {end} of its values belongs to no tensor, or to two")
        end = stop
    if end != size - 8 - length:
        raise FileFormatError(f"{path}: cut off or changed: it has {size} bytes, its header says {8 + length + end}")
    return list(header)


def _extent(name: str, entry: Any, path: Path) -> tuple[int, int]:
    """First byte of a tensor's values and the one after the last, which agree with its dtype and shape."""
    try:
        begin, stop = _whole_numbers(entry["data_offsets"])
        shape = list(_whole_numbers(entry["shape"]))
        if 8 * (stop - begin) == _BITS[entry["dtype"]] * math.prod(shape):
            return begin, stop
    except (KeyError, TypeError, ValueError):
        pass
    raise FileFormatError(f"{path}: dtype, shape and data_offsets of {shown(name, 80)} do not agree")


def _whole_numbers(values: Any) -> Iterator[int]:
    """The values, if each is a whole number from 0 to 2**48; ValueError if not."""
    for value in values:
        if type(value) is not int or not 0 <= value < 2**48:
            raise ValueError(value)
        yield value
