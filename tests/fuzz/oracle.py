"""A second reading of what the fuzz fed in: what a command accepts has to be sound, and to come out as it went in.

Nothing here uses the readers that are tried: files are read by json, tomllib, numpy, pyarrow, safetensors and torch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import tomllib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.common import paths
from tests.fuzz.runs import UNSUMMED, whole_run

Check = Callable[[list[str], Path, str], str]
COLUMNS = ("sequence", "position", "token", "engine_logprob", "trainer_logprob", "weight_version")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim", "max_position_embeddings", "num_experts", "sliding_window", "n_embd", "n_layer")  # fmt: skip
MOST, RATIO = 1 << 28, 32
"""Bytes that any file may unpack to, and times its own size."""


def misread(kind: str, words: list[str], folder: Path, status: int, out: str) -> str:
    """What is wrong with an input that a command accepted, or with what it made of it; empty if nothing is."""
    if status not in (0, 1):
        return ""
    try:
        accepted = _import(words, folder) if words[0] == "import" else ""
        return accepted or CHECKS.get(kind, lambda *_: "")(words, folder, out)
    except Exception as error:
        return f"accepted, though a second reading ends in {error!r}"[:200]


def _import(words: list[str], folder: Path) -> str:
    """What is wrong with the file that an import has written."""
    path = folder / words[words.index("--out") + 1]
    if not path.exists():
        return ""
    if path.suffix == ".jsonl":
        return _sequence_lines(path)[0]
    if path.suffix == ".npz":
        with np.load(path) as archive:
            columns = {name: archive[name] for name in archive.files if name != "header"}
    else:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
    if not set(COLUMNS) <= set(columns) or len({len(column) for column in columns.values()}) != 1:
        return f"the table has columns {sorted(columns)} of unequal length"
    whole = all(columns[name].dtype == np.int64 for name in ("sequence", "position", "token", "weight_version"))
    return "" if whole and len(columns["token"]) else "the table has no tokens, or ids that are no whole numbers"


def _logged(words: list[str], folder: Path, out: str) -> str:
    """Of a log in our own format: every line is sound, and as many tokens were counted as it has."""
    path = Path(words[1]) if words[0] != "advise" else Path(words[2])
    if path.suffix == ".npz":
        return _npz(path, words, out)
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix not in (".jsonl", ".json") or not path.is_file():
        return ""
    first = next((line for line in path.read_bytes().split(b"\n") if line.strip()), b"")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return "" if path.suffix == ".json" else "the first line is no JSON"
    if not (isinstance(row, dict) and {"token_ids", "engine_logprobs"} <= set(row)):
        return ""
    said, tokens = _sequence_lines(path)
    return said or _counted(words, out, tokens)


def _counted(words: list[str], out: str, tokens: int) -> str:
    """What is wrong with the number of tokens that `gate --json` tells."""
    if words[0] != "gate" or "--json" not in words:
        return ""
    told = json.loads(out)
    found = told["tokens"] + told["left_out"]
    return "" if found == tokens else f"{found} tokens were read, there are {tokens}"


def _sequence_lines(path: Path) -> tuple[str, int]:
    """What is wrong with a file of sequences, and how many sampled tokens it has."""
    tokens = 0
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                tokens += _sequence(json.loads(line.decode("utf-8-sig")))
            except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
                return f"line {number} was accepted: {error!r}"[:200], 0
    return "", tokens


def _sequence(row: dict[str, Any]) -> int:
    """Sampled tokens of a line; raises whatever Python does at one that is not sound."""
    ids = row["token_ids"]
    for name in ("token_ids", "weight_versions", "prompt_token_ids"):
        for value in row.get(name) or []:
            if int(value) != value or not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} has {value!r}")
    for name in ("engine_logprobs", "trainer_logprobs"):
        for value in row.get(name) or []:
            float("nan" if value is None else value + 0)
    for name in ("engine_logprobs", "trainer_logprobs", "weight_versions", "mask"):
        if (name == "engine_logprobs" or row.get(name) is not None) and len(row[name]) != len(ids):
            raise ValueError(f"{name} has {len(row[name])} values for {len(ids)} tokens")
    return len(ids) if row.get("mask") is None else sum(map(bool, row["mask"]))


def _npz(path: Path, words: list[str], out: str) -> str:
    import zipfile

    with zipfile.ZipFile(path) as zipped:
        sizes = {entry.filename: entry.file_size for entry in zipped.infolist()}
        heads = {name: zipped.open(name).read(10) for name in sizes}
    size = sum(sizes.values())
    if size > max(MOST, RATIO * path.stat().st_size):
        return f"{path.stat().st_size} bytes that unpack to {size} were accepted"
    with np.load(path) as archive:
        try:
            arrays = {name: archive[name] for name in archive.files}
        except (ValueError, OSError) as error:
            return f"accepted, though numpy says {error}"[:200]
    odd = [name for name, array in arrays.items() if getattr(array, "ndim", 0) != 1 or array.dtype.kind not in "biuf"]
    if odd or not all(name.endswith(".npy") for name in sizes):
        return f"{odd or list(sizes)} was accepted, which is no column of numbers"
    for name, head in heads.items():
        if head[6] == 1 and 10 + int.from_bytes(head[8:], "little") + arrays[name[:-4]].nbytes != sizes[name]:
            return f"{name} was accepted, whose header does not tell of all its bytes"
    return _counted(words, out, len(arrays["engine_logprob"]))


def _parquet(path: Path) -> str:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    names = file.schema_arrow.names
    if len(set(names)) != len(names):
        return "a column that is there twice was accepted"
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    size = sum(8 * group.column(0).num_values for group in groups if group.num_columns)
    return f"{size} bytes were accepted" if size > max(MOST, RATIO * path.stat().st_size) else ""


def _dumped(words: list[str], folder: Path, out: str) -> str:
    import torch

    data = torch.load(Path(words[1]) if words[0] != "advise" else Path(words[2]), weights_only=True)
    samples = data.get("samples") if isinstance(data, dict) else None
    if isinstance(samples, list):
        return "" if all(isinstance(row, dict) for row in samples) else "a sample that is no mapping was accepted"
    return "" if isinstance(data, dict) else "a dump that is no mapping was accepted"


def _model(words: list[str], folder: Path, out: str) -> str:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    config = json.loads((folder / "model/config.json").read_text())
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        return "a configuration without model_type was accepted"
    for name in SIZES:
        value = config.get(name)
        if value is not None and (type(value) is not int or not 0 < value < 2**31):
            return f"{name}={value!r} was accepted"
    for name in ("rope_theta", "rms_norm_eps"):
        value = config.get(name)
        if value is not None and not (isinstance(value, int | float) and 0 < value < 1e30):
            return f"{name}={value!r} was accepted"
    for name in ("rope_parameters", "rope_scaling", "quantization_config", "text_config"):
        if not isinstance(config.get(name) or {}, dict):
            return f"{name}={config[name]!r} was accepted"
    try:
        load((folder / "model/model.safetensors").read_bytes())
    except SafetensorError as error:
        return f"weights were accepted of which safetensors says {error}"
    return ""


def _scenario(words: list[str], folder: Path, out: str) -> str:
    """Every value that a scenario's file or share string gives is in the scenario that is printed."""
    if words[1].startswith("skew1-"):
        packed = words[1].removeprefix("skew1-").strip()
        data = json.loads(zlib.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))))
    else:
        path = Path(words[1])
        if not path.is_file():
            return f"{path} was accepted" if path.exists() and not path.is_dir() else ""
        data = tomllib.loads(path.read_text())
    return _same(data, tomllib.loads(out)) if out else ""


def _same(given: Any, printed: Any) -> str:
    for way in paths(given):
        value, found = _at(given, way), _at(printed, way)
        if isinstance(value, int | float | str) and not _equal(value, found):
            return f"{way} is {value!r}, and became {found!r}"[:200]
    return ""


def _equal(value: Any, found: Any) -> bool:
    """Whether a printed value is the given one; "none" is how a file says that an optional setting is off."""
    said = "none" if found is None else str(found)
    return bool(value == found or (isinstance(value, str) and said == value))


def _at(data: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _profile(words: list[str], folder: Path, out: str) -> str:
    document = json.loads(Path(words[2]).read_bytes())
    body = {key: value for key, value in document.items() if key not in ("format", "checksum")}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    if document.get("checksum") != hashlib.sha256(canonical.encode()).hexdigest():
        return "an altered profile was accepted"
    if any(isinstance(_at(body, way), float) and not math.isfinite(_at(body, way)) for way in paths(body)):
        return "a number that is not finite was accepted"
    return _same(body, json.loads(out)) if "--json" in words else ""


def _resumed(words: list[str], folder: Path, out: str) -> str:
    """A run folder that is accepted, and has checksums, leads to the records of the run that nobody altered."""
    if (folder / UNSUMMED).exists():
        return ""
    own, other = (_records(path / "steps.jsonl") for path in (folder / "run", whole_run(steps=3)))
    return "" if own == other else "another run came of it"


def _records(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def _option(words: list[str], folder: Path, out: str) -> str:
    odd = [word for word in words if 0 < len(word) < 200 and "\x00" not in word and _is_device(folder / word)]
    return f"{odd[0]!r} was accepted" if odd else ""


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


CHECKS: dict[str, Check] = {
    "options": _option, "shares": _scenario, "scenario_files": _scenario, "profiles": _profile, "sequences": _logged,
    "tables": _logged, "logs": _logged, "npz": _logged, "parquet": _logged, "dumps": _dumped, "models": _model,
    "resumed": _resumed,
}  # fmt: skip
"""Name of a kind -> what has to be true of its inputs that are accepted."""
