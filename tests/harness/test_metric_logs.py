"""Metrics by step: every tracker's file gives the same curves, under our names, in our sign."""

from __future__ import annotations

import json
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.metric_logs import BLOCK, identify, read_curves
from skewsim.errors import FileFormatError
from skewsim.skew.curves import CONVERSIONS, METRIC_NAMES, find_name, guess_framework
from skewsim.skew.metrics import METRICS

STEPS = [1, 2, 5]
K3 = [0.001, 0.002, 0.25]
K1 = [-0.001, 0.0015, 0.125]
LOGGED = [{"rollout_corr/k3_kl": k3, "rollout_corr/kl": k1} for k3, k1 in zip(K3, K1, strict=True)]


# ------------------------------------------------------------------------------------ the trackers' files, made by hand


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: bytes | int) -> bytes:
    """A protobuf field: a whole number, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def wandb(folder: Path, padding: int = 0) -> Path:
    """wandb/proto/wandb_internal.proto in a LevelDB log: blocks of 32 KiB, pieces with a head of 7 bytes."""
    data = b":W&B" + b"\xe1\xbe\x00"
    for step, row in zip(STEPS, LOGGED, strict=True):
        values = {**row, "_step": step, "note": "x" * padding, "table": {"_type": "table-file"}}
        items = b"".join(field(1, field(1, k.encode()) + field(16, json.dumps(v).encode())) for k, v in values.items())
        record = field(1, step) + field(2, items)
        first = True
        while first or record:
            if BLOCK - len(data) % BLOCK < 7:
                data += bytes(BLOCK - len(data) % BLOCK)
            room = BLOCK - len(data) % BLOCK - 7
            piece, record = record[:room], record[room:]
            kind = (1 if not record else 2) if first else (4 if not record else 3)
            data += struct.pack("<IHB", 0, len(piece), kind) + piece
            first = False
    path = folder / "run-abc.wandb"
    path.write_bytes(data)
    return path


def tensorboard(folder: Path, *, as_tensor: bool = False) -> Path:
    """tensorboard/compat/proto/event.proto in TFRecord frames."""
    path = folder / "events.out.tfevents.1.host"
    with open(path, "wb") as handle:
        for step, row in zip(STEPS, LOGGED, strict=True):
            summary = b""
            for name, value in row.items():
                number = struct.pack("<f", value)
                scalar = field(8, field(1, 1) + field(4, number)) if as_tensor else varint(2 << 3 | 5) + number
                summary += field(1, field(1, name.encode()) + scalar)
            event = varint(1 << 3 | 1) + struct.pack("<d", 0.0) + field(2, step) + field(5, summary)
            handle.write(struct.pack("<Q", len(event)) + bytes(4) + event + bytes(4))
    return path


def trackio(folder: Path) -> Path:
    """trackio/sqlite_storage.py."""
    path = folder / "project.db"
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, timestamp TEXT NOT NULL, "
            "run_name TEXT NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL)"
        )
        for step, row in zip(STEPS, LOGGED, strict=True):
            values = (json.dumps({**row, "odd": "Infinity"}), step)
            connection.execute("INSERT INTO metrics VALUES (NULL, 'i', 't', 'run', ?2, ?1)", values)
    connection.close()
    return path


def csv(folder: Path) -> Path:
    path = folder / "wandb_export.csv"
    lines = [
        '"Step","a - rollout_corr/k3_kl","a - rollout_corr/k3_kl__MIN","a - rollout_corr/kl","b - rollout_corr/kl"'
    ]
    lines += [f'"{s}","{k3}","9","{k1}","7"' for s, k3, k1 in zip(STEPS, K3, K1, strict=True)]
    path.write_text("\n".join([*lines, '"9","","","",""']) + "\n", encoding="utf-8-sig")
    return path


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flat(folder: Path) -> Path:
    """prime-rl's metrics.jsonl: several lines a step, each with other names."""
    rows = [{"step": s, "time": 1.0, name: v} for s, row in zip(STEPS, LOGGED, strict=True) for name, v in row.items()]
    return written(folder / "metrics.jsonl", rows)


def verl_file(folder: Path) -> Path:
    """verl/utils/tracking.py: FileLogger."""
    return written(folder / "run.jsonl", [{"step": s, "data": row} for s, row in zip(STEPS, LOGGED, strict=True)])


def trainer_state(folder: Path) -> Path:
    """transformers' TrainerState, indented as it is saved."""
    history = [{"step": s, "epoch": 0.1, **row} for s, row in zip(STEPS, LOGGED, strict=True)]
    path = folder / "trainer_state.json"
    path.write_text(json.dumps({"best_metric": None, "global_step": 5, "log_history": history}, indent=2))
    return path


FILES = [wandb, tensorboard, trackio, csv, flat, verl_file, trainer_state]


@pytest.mark.parametrize("make", FILES)
def test_every_trackers_file_gives_the_same_curves(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path)
    found = read_curves(path)
    exact = {} if make is tensorboard else {"rtol": 0}
    assert set(found.curves) == {"skew/kl_k3", "skew/kl_k1"}
    for key, values, name in (("skew/kl_k3", K3, "rollout_corr/k3_kl"), ("skew/kl_k1", K1, "rollout_corr/kl")):
        curve = found.curves[key]
        assert curve.steps.tolist() == STEPS
        np.testing.assert_allclose(curve.values, values, **exact)
        assert (curve.name, curve.framework) == (name, "verl")
    assert found.framework == "verl"
    assert identify(path).kind == "metrics"
    assert read_curves(tmp_path).curves.keys() == found.curves.keys()  # the folder has one such file


def test_a_tensor_of_one_number_is_a_scalar_too(tmp_path: Path) -> None:
    np.testing.assert_allclose(read_curves(tensorboard(tmp_path, as_tensor=True)).curves["skew/kl_k3"].values, K3)


@pytest.mark.parametrize("padding", [BLOCK - 200, BLOCK, 3 * BLOCK])
def test_a_record_of_an_offline_run_that_crosses_blocks_is_whole(padding: int, tmp_path: Path) -> None:
    assert read_curves(wandb(tmp_path, padding)).curves["skew/kl_k3"].values.tolist() == K3


def test_of_several_runs_the_first_is_taken_or_the_one_named(tmp_path: Path) -> None:
    path = csv(tmp_path)
    assert read_curves(path).runs == ("a", "b")
    assert read_curves(path, run="b").curves["skew/kl_k1"].values.tolist() == [7.0, 7.0, 7.0]
    with pytest.raises(FileFormatError, match="no run c; there are a, b"):
        read_curves(path, run="c")


def test_a_servers_metrics_are_covariates_of_one_moment(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    path.write_text(
        '# TYPE vllm:num_preemptions_total counter\nvllm:num_preemptions_total{engine="0"} 3.0\n'
        'vllm:num_preemptions_total{engine="1"} 4.0\npython_info{version="3"} 1.0\nvllm:kv_cache_usage_perc NaN\n'
    )
    found = read_curves(path)
    assert found.covariates["vllm:num_preemptions_total"].values.tolist() == [7.0]
    assert found.unknown == ("python_info",)


@pytest.mark.parametrize(
    ("framework", "name", "key", "logged", "ours"),
    [
        ("verl", "rollout_corr/rollout_rs_masked_fraction", "correction/kept", 0.2, 0.8),
        ("TRL", "sampling/sampling_logp_difference/mean", "skew/logprob_diff_mean", 0.01, 0.01),
        ("TRL", "train/sampling/importance_sampling_ratio/mean", "correction/weight_mean", 0.4, 0.4),
        ("NeMo-RL", "train/gen_kl_error", "skew/kl_k3", 0.003, 0.003),
        ("NeMo-RL", "train/sampling_importance_ratio", "skew/ratio_mean", 0.06, 0.06),
        ("prime-rl", "mismatch_kl/all/mean", "skew/kl_k3", 0.001, 0.001),
        ("prime-rl", "is_masked/mean", "correction/kept", 0.01, 0.99),
        ("slime", "train/mis_k3_kl", "skew/kl_k3", 0.1, 0.1),
        ("Miles", "train/train_rollout_kl", "skew/kl_k3", 0.1, 0.1),
        ("SkyRL", "policy/rollout_train_logprobs_abs_diff_mean", "skew/logprob_diff_mean", 0.02, 0.02),
        ("open-instruct", "debug/vllm_vs_local_logprob_diff_max", "skew/logprob_diff_max", 3.0, 3.0),
        ("AReaL", "ppo_actor/update/compute_logp/kl_div_direct/avg", "skew/kl_k1", 0.01, 0.01),
        ("ms-swift", "rollout_correction/k3_kl", "skew/kl_k3", 0.01, 0.01),
        ("PipelineRL", "rl/ess", "ratio/ess", 0.9, 0.9),
        ("PipelineRL", "stats/lag", "lag/max", 64.0, 64.0),
        ("OpenRLHF", "vllm_kl", "skew/kl_k1", 0.01, 0.01),
    ],
)  # fmt: skip
def test_a_frameworks_name_is_known_alone_and_becomes_ours(
    framework: str, name: str, key: str, logged: float, ours: float, tmp_path: Path
) -> None:
    assert guess_framework([name]) == framework
    curve = read_curves(written(tmp_path / "m.jsonl", [{"step": 4, name: logged}])).curves[key]
    assert curve.values.tolist() == pytest.approx([ours])
    assert curve.framework == framework


def test_names_lead_to_metrics_that_there_are() -> None:
    assert {row.key for row in METRIC_NAMES} <= set(METRICS)
    assert {row.convert for row in METRIC_NAMES} <= set(CONVERSIONS)


def test_a_name_that_the_metrics_page_gives_leads_to_that_metric() -> None:
    """Where it does not, the framework's number is another one, and the table says which."""
    elsewhere = {
        ("TRL", "sampling/importance_sampling_ratio/mean"),  # the weight after truncation
        ("PipelineRL", "stats/lag"),  # last version less the least
        ("verl", "rollout_corr/rollout_is_eff_sample_size"),  # of truncated weights
        ("ms-swift", "chi2_seq"),  # of geometric means
        ("verl", "1 - rollout_rs_masked_fraction"),
        ("verl", "actor/pg_clipfrac"),
        ("PipelineRL", "ratio_new_old"),  # old is the engine's: its skew and its update in one
        ("PipelineRL", "kl_new_old"),
        ("PipelineRL", "kl"),
        ("PipelineRL", "entropy"),
        ("PipelineRL", "clamp_log_ratio_new_old_indicator"),
        ("prime-rl", "mismatch_kl"),
    }
    for metric in METRICS.values():
        for framework, alias in metric.aliases.items():
            name = alias.partition(" (")[0]
            if (framework, name) not in elsewhere:
                row = find_name(name, framework)
                assert row is not None, (framework, name)
                assert row.key == metric.key, (framework, name)


def test_what_no_metrics_file_is_is_said_in_one_line(tmp_path: Path) -> None:
    for name, content in {
        "a.wandb": b"nothing",
        "b.db": b"nothing" * 100,
        "c.csv": b"\xff\xfe\x00",
        "d.jsonl": b'{"step": 1, "x',
        "events.out.tfevents.1": b"\xff" * 100,
        "e.prom": b"\xff",
        "f.xyz": b"",
        "g.csv": b"",
        "h.jsonl": b"[1]",
        "i.json": b"[" * 100_000,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileFormatError) as caught:
            read_curves(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
        assert identify(tmp_path / name).kind in ("unknown", "metrics")


@pytest.mark.parametrize("make", [wandb, tensorboard, trackio])
@pytest.mark.parametrize("seed", range(20))
def test_a_binary_file_with_bytes_changed_or_cut_is_read_or_one_line(make: Any, seed: int, tmp_path: Path) -> None:
    path = make(tmp_path)
    draw = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for at in draw.integers(0, len(data), 5):
        data[at] = draw.integers(256)
    path.write_bytes(data[: draw.integers(1, len(data) + 1)])
    problem = ""
    try:
        read_curves(path)
    except FileFormatError as error:
        problem = str(error)
    assert "\n" not in problem


def test_a_folder_is_known_by_what_lies_in_it(tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "notes.bin").write_text("")
    written(tmp_path / "rollouts.jsonl", [{"token_ids": [1], "engine_logprobs": [-1.0]}])
    written(tmp_path / "text.jsonl", [{"input": "a", "output": "b", "score": 1}])
    found = identify(tmp_path)
    assert {part.path.name: part.kind for part in found.parts} == {
        "metrics.jsonl": "metrics",
        "config.toml": "config",
        "rollouts.jsonl": "tokens",
        "text.jsonl": "text",
    }
    text = found.first("text")
    assert text is not None
    assert text.framework == "verl"
    assert "calculate_log_probs" in text.detail
    with pytest.raises(FileFormatError, match="no such file"):
        identify(tmp_path / "absent")
