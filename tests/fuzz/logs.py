"""Logs, tables and model folders for the fuzz: good ones of every format, with a few things wrong."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from skewsim.learn.base_policy import shipped_folder
from skewsim.settings import TaskSettings
from skewsim.skew.tokens import FORMAT, TYPE_OF_COLUMN
from tests.fuzz.common import altered, leaf, spoiled

IDS, ENGINE, TRAINER, MASK = [3, 4, 5], [-1.0, -2.0, -0.5], [-1.0, -2.1, -0.4], [1, 1, 1]
ROWS: dict[str, dict[str, Any]] = {
    "sequences": {"token_ids": IDS, "engine_logprobs": ENGINE, "trainer_logprobs": TRAINER, "mask": [1, 0, 1], "prompt_id": "a", "temperature": 1.0, "turn": [0, 0, 1], "schema_version": 1},
    "verl": {"prompts": [0, 1, 2], "responses": IDS, "response_mask": MASK, "attention_mask": [0, 1, 1, 1, 1, 1], "rollout_log_probs": ENGINE, "old_log_probs": TRAINER, "uid": "u", "global_step": 3},
    "trl": {"prompt_ids": [1, 2], "prompt_mask": [0, 1], "completion_ids": IDS, "completion_mask": MASK, "tool_mask": [1, 0, 1], "sampling_per_token_logps": ENGINE, "old_per_token_logps": TRAINER, "prompt": "x"},
    "skyrl": {"sequences": [0, 1, 2, *IDS], "attention_mask": [0, 1, 1, 1, 1, 1], "response_mask": MASK, "loss_mask": MASK, "rollout_logprobs": ENGINE, "action_log_probs": TRAINER},
    "openrlhf": {"sequences": [1, 2, *IDS], "action_mask": MASK, "attention_mask": [0, 1, 1, 1, 1], "rollout_log_probs": ENGINE, "action_log_probs": TRAINER},
    "nemo": {"token_ids": [1, *IDS], "token_loss_mask": [0, 1, 1, 1], "generation_logprobs": [0, *ENGINE], "prev_logprobs": [0, *TRAINER], "input_lengths": 4},
    "slime": {"tokens": [1, 2, *IDS], "response_length": 3, "loss_mask": MASK, "rollout_log_probs": ENGINE, "log_probs": TRAINER, "weight_versions": ["1"], "group_index": 0, "index": 0, "response": "x"},
    "slime train": {"tokens": [1, 2, *IDS], "response_lengths": 3, "total_lengths": 5, "max_seq_lens": 8, "loss_masks": MASK, "rollout_log_probs": ENGINE, "log_probs": TRAINER, "rollout_position": 0, "sample_indices": 0, "cp_rank": 0},
    "export": {"token_ids": [1, *IDS], "loss_mask": [0, 1, 1, 1], "inference_logprobs": [0, *ENGINE], "trainer_logprobs": [0, *TRAINER]},
    "episode": {"run": {"work": {"policy": {"start": 1, "end": 1}, "step": 2}}, "group": {"id": "g"}, "env": "e", "traces": [{"nodes": [{"token_ids": [1, 2], "mask": [0, 0], "logprobs": [], "parent": None}, {"token_ids": IDS, "mask": MASK, "logprobs": ENGINE, "parent": 0}]}]},
    "trace": {"nodes": [{"token_ids": [1, 2], "mask": [0, 0], "logprobs": []}, {"token_ids": IDS, "mask": MASK, "logprobs": ENGINE, "parent": 0}]},
    "trajectory": {"trajectory": [{"tokens": {"prompt_ids": [1], "completion_ids": IDS, "completion_logprobs": ENGINE, "completion_mask": MASK}}]},
    "sample": {"token_ids": [1, *IDS], "mask": [0, 1, 1, 1], "logprobs": ENGINE},
    "pipelinerl": {"input_ids": [1, *IDS], "labels": [-100, *IDS], "logprobs": ENGINE, "metadata": {"model_version": 3}, "group_id": "g"},
    "open-instruct": {"prompt_tokens": [1], "response_tokens": IDS, "logprobs": ENGINE, "step": 1},
    "chat": {"choices": [{"token_ids": IDS, "logprobs": {"content": [{"token": "a", "logprob": v} for v in ENGINE]}}], "prompt_token_ids": [1]},
    "completion": {"request": {"temperature": 1.0}, "response": {"choices": [{"logprobs": {"tokens": ["token_id:3", "b", "c"], "token_logprobs": ENGINE}}]}},
    "table": {"sequence": 0, "position": 1, "token": 5, "engine_logprob": -1.0, "trainer_logprob": -1.1, "step": 1},
    "metrics": {"step": 1, "data": {"rollout_corr/k3_kl": 0.001}},
}  # fmt: skip


def _judge(rng: random.Random, path: Path) -> list[str]:
    out = rng.choice(("new.npz", "new.jsonl", "new.parquet"))
    if rng.random() < 0.1:  # these take a hundred times as long
        return rng.choice((["diagnose", str(path), "--json"], ["advise", "--log", str(path), "--json"]))
    return rng.choice((["gate", str(path), "--max", "kl_k3=1", "--json"], ["import", str(path), "--out", out]))


def _rows(rng: random.Random) -> list[Any]:
    row = ROWS[rng.choice([*ROWS])]
    return [altered(row, rng, times=2) if rng.random() < 0.5 else row for _ in range(rng.randint(1, 5))]


def logs(rng: random.Random, folder: Path) -> list[str]:
    """JSON lines, or one JSON value; a file, or a folder of two."""
    rows = _rows(rng)
    whole = rng.random() < 0.2
    content = json.dumps(rows) if whole else "\n".join(map(json.dumps, rows))
    data = content.encode()
    data = spoiled(data, rng) if rng.random() < 0.25 else data
    if rng.random() < 0.1:
        data += b"\n" + rng.choice((b"[" * 5000, b'{"token_ids": [' + b"9" * 5000 + b"]}", b"\xff\xfe", b'{"a":' * 999))
    path = folder / rng.choice(
        ("log.jsonl", "log.json", "train_data_step3.jsonl", "rank_0.jsonl", "rank_99999999.jsonl")
    )
    if rng.random() < 0.2:
        path = folder / "step_1" / path.name
        path.parent.mkdir()
        (path.parent / "rank_1.jsonl").write_bytes(data)
        path.write_bytes(data)
        return _judge(rng, path.parent)
    path.write_bytes(data)
    return _judge(rng, path)


def npz(rng: random.Random, folder: Path) -> list[str]:
    """Archives whose arrays, headers and names lie."""
    path = folder / "t.npz"
    count = rng.randint(1, 70)
    columns: dict[str, Any] = {
        name: np.zeros(count, dtype) if dtype is np.int64 else np.full(count, -1.0)
        for name, dtype in TYPE_OF_COLUMN.items()
    }
    meta = {"dtype": "bfloat16", "temperature": 1.0, "model_kind": "moe", "source": "x"}
    meta = altered(meta, rng) if rng.random() < 0.3 else meta
    head = {"format": FORMAT, "schema_version": 1, "meta": meta}
    head = altered(head, rng, times=1) if rng.random() < 0.2 else head
    columns["header"] = np.frombuffer(json.dumps(head, default=str).encode(errors="replace"), np.uint8)
    for _ in range(rng.randint(0, 2)):
        name = rng.choice([*columns])
        how = rng.randrange(6)
        name = "x" if rng.random() < 0.3 else name
        column = np.asarray(columns.get(name, np.zeros(count)))
        if how == 0:
            columns.pop(name, None)
        elif how == 1:
            columns[name] = column.reshape(rng.choice(((1, -1), (-1, 1))))
        elif how == 2:
            columns[name] = rng.choice((np.array(["a"] * count), np.full(count, 1j), np.full(count, np.inf), np.full(count, np.nan), np.full(count, 1e300), np.full(count, 2**64 - 1, np.uint64), np.zeros(count + 1), np.zeros(0), np.array(1.0), np.zeros(count, ">f8"), np.full(count, 5.0), np.zeros(count, "M8[s]"), np.zeros(count, "i4,f8")))  # fmt: skip
        elif how == 3:
            columns[name] = _lying_header(rng) if rng.random() < 0.7 else _other_length(column)
        elif how == 4:
            columns[rng.choice(("x", "../x", "\x1b]0;x", ""))] = column
        else:
            columns[name] = rng.choice((b"", b"{}", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x09\x00"))
    with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, column in columns.items():
            archive.writestr(
                f"{name}.npy" if rng.random() < 0.98 else name or "x",
                column if isinstance(column, bytes) else _npy(column),
            )
        if rng.random() < 0.01:
            archive.writestr("x.npy", _zeros(), zipfile.ZIP_DEFLATED)
    if rng.random() < 0.15:
        path.write_bytes(spoiled(path.read_bytes(), rng))
    return _judge(rng, path)


@cache
def _zeros() -> bytes:
    """A column that is 300 times as large as it is packed."""
    return _npy(np.zeros(270_000_000, np.int8))


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _other_length(array: Any) -> bytes:
    """A column whose header tells of one value more, or less, than follow."""
    return _npy(array).replace(b"(%d,)" % array.size, b"(%d,)" % (array.size ^ 1))


def _lying_header(rng: random.Random) -> bytes:
    shape = rng.choice(
        (
            "(10,)",
            "(1000000000000,)",
            "(-1,)",
            "()",
            "(2, 3)",
            "(10.5,)",
            "(True,)",
            "'a'",
            "(" * 99,
            "(9" + "9" * 5000 + ",)",
        )
    )
    descr = rng.choice(
        ("'<f8'", "'|O'", "'<U9'", "'<f16'", "'|V1000000000'", "'x'", "[('a', '<f8')]", "('<f8', (1000000,))", "1")
    )
    if rng.random() < 0.5:
        shape, descr = rng.choice(("(20,)", "(1000000000000,)", "(1,)")), "'<f8'"
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) & 0xFFFF) + text + rng.randbytes(rng.choice((0, 80, 80, 80)))
    )


def parquet(rng: random.Random, folder: Path) -> list[str]:
    """Tables with columns of odd types, twice, nested, with nulls, or larger than they look."""
    import pyarrow
    import pyarrow.parquet

    rows = [row for row in _rows(rng) if isinstance(row, dict)] or [{}]
    rows = [ROWS["table"]] * rng.randint(1, 5) if rng.random() < 0.3 else rows
    path = folder / "t.parquet"
    try:
        table = pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):  # rows of unlike types, as parquet has none
        table = pyarrow.table({"engine_logprob": [-1.0], "sequence": [1]})
    for _ in range(rng.randint(0, 2)):
        name = rng.choice([*table.column_names, "engine_logprob", "sequence"])
        count = table.num_rows
        odd = rng.choice((["a"] * count, [None] * count, [[1]] * count, [2**63 - 1] * count, [b"\xff"] * count, [float("inf")] * count, [{"a": 1}] * count, [True] * count, [[[-1.0]]] * count, [[None, -1.0]] * count))  # fmt: skip
        column = pyarrow.array(odd)
        if rng.random() < 0.2:
            column = rng.choice((pyarrow.array([1] * count, pyarrow.uint64()), pyarrow.array([1] * count, pyarrow.timestamp("ns")), pyarrow.array([1] * count).cast(pyarrow.decimal128(30, 2)), pyarrow.array([0.5] * count, pyarrow.float16())))  # fmt: skip
        if name in table.column_names and rng.random() < 0.7:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    if rng.random() < 0.3:
        header = json.dumps({"format": FORMAT, "schema_version": 1, "meta": {}})
        table = table.replace_schema_metadata(
            {FORMAT: header if rng.random() < 0.7 else rng.choice(("", "[", "{}", "[]"))}
        )
    if rng.random() < 0.02:  # a megabyte that becomes gigabytes
        count = rng.choice((1_000, 40_000_000))
        big = pyarrow.DictionaryArray.from_arrays(
            np.zeros(count, np.int8), ["x" * 1_000_000] if count < 2000 else [1.0]
        )
        table = pyarrow.table({"engine_logprob": big if count > 2000 else np.full(count, -1.0), "uid": big})
    try:
        pyarrow.parquet.write_table(table, path, compression=rng.choice(("zstd", "snappy", "none")))
    except pyarrow.ArrowException:  # an empty struct
        path.write_bytes(b"PAR1")
    if rng.random() < 0.3:
        path.write_bytes(spoiled(path.read_bytes(), rng))
    return _judge(rng, path)


def dumps(rng: random.Random, folder: Path) -> list[str]:
    """PyTorch dumps of slime, Miles and SkyRL."""
    import torch

    path = folder / "0.pt"

    def tensor(value: Any) -> Any:
        if not (isinstance(value, list) and value and rng.random() < 0.7):
            return value
        try:
            made = torch.tensor(value)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            return value
        odd = (torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.float16, torch.int8)
        made = made.to(rng.choice(odd)) if rng.random() < 0.2 else made
        if made.dim() == 1 and rng.random() < 0.2:
            plain = made.float()
            made = rng.choice((made[:1].expand(10**9), plain.to_sparse(), plain.requires_grad_(), made.reshape(1, -1)))
        return made

    rows = [{k: tensor(v) for k, v in row.items()} if isinstance(row, dict) else row for row in _rows(rng)]
    if rng.random() < 0.15:
        rows.insert(rng.choice((0, len(rows))), leaf(rng))
    data: Any = {"samples": rows, "rollout_id": leaf(rng), "cp_size": rng.choice((1, 2, 0, -1, 10**9, "a", None))}
    how = rng.randrange(8)
    if how == 0:
        data = {
            "rollout_data": {k: [v] * 2 for k, v in ROWS["slime train"].items()},
            "cp_size": rng.choice((1, 2)),
            "rank": 0,
        }
    elif how == 1:
        data = {k: torch.tensor([v] * 2) for k, v in ROWS["skyrl"].items()}
    elif how == 2:
        data = leaf(rng)
    elif how == 3:
        bomb: list[Any] = [1.0] * 10
        for _ in range(40):
            bomb = [bomb, bomb]
        data["samples"] = [{**ROWS["slime"], rng.choice([*ROWS["slime"]]): bomb}]
    elif how == 4:
        loop: list[Any] = []
        loop.append(loop)
        data["samples"] = [{**ROWS["slime"], "rollout_log_probs": loop}]
    torch.save(data, path, _use_new_zipfile_serialization=rng.random() < 0.8)
    content = path.read_bytes()
    if rng.random() < 0.3:
        path.write_bytes(spoiled(content, rng))
    return _judge(rng, path)


@cache
def _model() -> Path:
    return shipped_folder(TaskSettings())


def models(rng: random.Random, folder: Path) -> list[str]:
    """A model folder with an altered configuration, or with weights that are cut, changed or renamed."""
    path = folder / "model"
    path.mkdir()
    config = json.loads((_model() / "config.json").read_text())
    weights = (_model() / "model.safetensors").read_bytes()
    how = rng.randrange(4)
    if how < 2:
        whole, config = config, altered(config, rng)
        extra = rng.choice(("rope_scaling", "rope_parameters", "text_config", "quantization_config", "vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "num_attention_heads", "hidden_act", "torch_dtype", "layer_types", "num_experts", "sliding_window", "n_embd", "model_type", "rope_theta", "rms_norm_eps"))  # fmt: skip
        if rng.random() < 0.8:
            config = whole | {extra: rng.choice((leaf(rng), "linear", -1, 0))}
        config = leaf(rng) if rng.random() < 0.05 else config
    elif how == 2:
        weights = spoiled(weights[: rng.choice((len(weights), 3000, 9))], rng)
    else:
        length = int.from_bytes(weights[:8], "little")
        names = altered(json.loads(weights[8 : 8 + length]), rng) if rng.random() < 0.85 else leaf(rng)
        header = json.dumps(names).encode(errors="replace")
        weights = len(header).to_bytes(8, "little") + header + weights[8 + length :]
    (path / "config.json").write_text(json.dumps(config, default=str))
    (path / "model.safetensors").write_bytes(weights)
    if rng.random() < 0.05:
        shutil.copy(path / "config.json", path / "model.safetensors")
    if rng.random() < 0.7:
        small = ("policy=model", "task.response_length=4", "task.pool_size=4", "trainer.num_prompts=2", "trainer.num_generations=2")  # fmt: skip
        return ["run", "v0_reference", "--steps", "1", *(word for pair in small for word in ("--set", pair)), "--json"]
    row = {
        "prompt_token_ids": [1, 2],
        "token_ids": rng.choice((IDS, [63, 64, 65], [-1, 2, 3])),
        "engine_logprobs": ENGINE,
    }
    (folder / "s.jsonl").write_text((json.dumps(row) + "\n") * 20)
    return ["diagnose", "s.jsonl", "--model", "model", "--json"]
