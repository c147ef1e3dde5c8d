"""Importing logs: one small fixture per framework in its own field names, all saying the same two sequences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from harness.logs import formats, import_rollouts, import_sequences, read_log
from skewsim.cli.main import main
from skewsim.errors import FileFormatError, UserError
from skewsim.skew.sequences import SequenceLog, load_sequences, write_sequences
from skewsim.skew.tokens import TokenTable

PROMPT = [5, 6, 7]
TOKENS = [[10, 11, 12], [13, 14]]
ENGINE = [[-0.1, -0.2, -0.3], [-0.4, -0.5]]
TRAINER = [[-0.15, -0.2, -0.25], [-0.4, -0.6]]
VERSIONS = [4, 4]


def padded(values: list[Any], length: int, filler: Any) -> list[Any]:
    return values + [filler] * (length - len(values))


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verl(folder: Path) -> Path:
    rows = [
        {
            "prompts": [0, *PROMPT],
            "responses": padded(tokens, 4, 0),
            "attention_mask": [0, 1, 1, 1, *padded([1] * len(tokens), 4, 0)],
            "response_mask": padded([1] * len(tokens), 4, 0),
            "rollout_log_probs": padded(engine, 4, -1.0),
            "old_log_probs": padded(trainer, 4, 0.0),
            "uid": "a",
        }
        for tokens, engine, trainer in zip(TOKENS, ENGINE, TRAINER, strict=True)
    ]
    return lines(folder / "verl.jsonl", rows)


def trl(folder: Path) -> Path:
    table = pyarrow.table(
        {
            "step": [1, 1],
            "prompt": ["p", "p"],
            "completion": ["x", "y"],
            "prompt_ids": [PROMPT, PROMPT],
            "completion_ids": [padded(tokens, 3, 0) for tokens in TOKENS],
            "completion_mask": [padded([1] * len(tokens), 3, 0) for tokens in TOKENS],
            "sampling_per_token_logps": [padded(values, 3, 0.0) for values in ENGINE],
            "old_per_token_logps": [padded(values, 3, 0.0) for values in TRAINER],
        }
    )
    pyarrow.parquet.write_table(table, folder / "completions_00001.parquet")
    return folder / "completions_00001.parquet"


def pipelinerl(folder: Path) -> Path:
    group = [
        {
            "text": "...",
            "n_predicted": 4,
            "input_ids": PROMPT + tokens,
            "labels": [-100] * len(PROMPT) + tokens,
            "logprobs": engine,
            "group_id": "7",
            "metadata": {"model_version": 4},
        }
        for tokens, engine in zip(TOKENS, ENGINE, strict=True)
    ]
    stream = folder / "streams" / "actor" / "0" / "0"
    stream.mkdir(parents=True)
    lines(stream / "0.jsonl", [group])
    return folder / "streams"


def prime_rl(folder: Path) -> Path:
    rows = [
        {
            "task": "t",
            "reward": 1.0,
            "trajectory": [{"tokens": {"prompt_ids": PROMPT, "prompt_mask": [0] * 3, "completion_ids": tokens, "completion_mask": [1] * len(tokens), "completion_logprobs": engine}}],
        }
        for tokens, engine in zip(TOKENS, ENGINE, strict=True)
    ]  # fmt: skip
    return lines(folder / "train_rollouts.jsonl", rows)


def prime_rl_trace(folder: Path) -> Path:
    """A prompt with two answers: two leaves of one message graph."""
    nodes: list[dict[str, Any]] = [
        {"parent": None, "sampled": False, "token_ids": PROMPT, "mask": [False] * 3, "logprobs": []}
    ]
    nodes += [
        {"parent": 0, "sampled": True, "token_ids": tokens, "mask": [True] * len(tokens), "logprobs": engine}
        for tokens, engine in zip(TOKENS, ENGINE, strict=True)
    ]
    return lines(folder / "trace.jsonl", [{"nodes": nodes, "reward": 0.0}])


def slime(folder: Path) -> Path:
    samples = [
        {
            "tokens": torch.tensor(PROMPT + tokens),
            "response_lengths": len(tokens),
            "rollout_log_probs": torch.tensor(engine, dtype=torch.float64),
            "log_probs": torch.tensor(trainer, dtype=torch.float64),
            "loss_masks": torch.ones(len(tokens), dtype=torch.int32),
            "weight_versions": ["4"],
        }
        for tokens, engine, trainer in zip(TOKENS, ENGINE, TRAINER, strict=True)
    ]
    torch.save({"rollout_id": 0, "samples": samples}, folder / "0.pt")
    return folder / "0.pt"


def nemo_rl(folder: Path) -> Path:
    rows = [
        {
            "content": "...",
            "token_ids": padded(PROMPT + tokens, 7, 0),
            "token_loss_mask": padded([0, 0, 0] + [1] * len(tokens), 7, 0),
            "generation_logprobs": padded([0.0, 0.0, 0.0, *engine], 7, 0.0),
            "prev_logprobs": padded([0.0, -1.0, -1.0, *trainer], 7, 0.0),
            "input_lengths": 3 + len(tokens),
        }
        for tokens, engine, trainer in zip(TOKENS, ENGINE, TRAINER, strict=True)
    ]
    return lines(folder / "train_data_step1.jsonl", rows)


@pytest.mark.parametrize("write", [verl, trl, slime, nemo_rl])
def test_diagnose_and_gate_read_a_frameworks_log_as_import_would(
    write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    read = read_log(path)
    assert isinstance(read, SequenceLog)
    assert read.table().skew.tolist() == import_rollouts(path).skew.tolist()
    assert main(["diagnose", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "unknown"  # five tokens are too few
    assert main(["gate", str(path), "--max", "logprob_diff_max=0.11"]) == 0


def test_read_log_takes_our_own_files_as_they_are(tmp_path: Path) -> None:
    table = import_rollouts(nemo_rl(tmp_path))
    for name in ("table.npz", "table.parquet"):
        table.save(tmp_path / name)
        assert isinstance(read_log(tmp_path / name), TokenTable)
    write_sequences(import_sequences(nemo_rl(tmp_path)), tmp_path / "ours.jsonl")
    assert isinstance(read_log(tmp_path / "ours.jsonl"), SequenceLog)


def test_a_file_of_metrics_is_not_diagnosed_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "export.csv").write_text("Step,run - train/reward\n1,0.5\n2,0.6\n")
    assert main(["diagnose", str(tmp_path / "export.csv")]) == 2
    assert "metrics, no log of tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("write", "name", "trainer", "versions"),
    [
        (verl, "verl", True, False),
        (trl, "trl", True, False),
        (pipelinerl, "pipelinerl", False, True),
        (prime_rl, "prime-rl", False, False),
        (prime_rl_trace, "prime-rl", False, False),
        (slime, "slime", True, True),
        (nemo_rl, "nemo-rl", True, False),
    ],
)
def test_every_framework_gives_the_same_tokens(
    write: Any, name: str, trainer: bool, versions: bool, tmp_path: Path
) -> None:
    path = write(tmp_path)
    table = import_rollouts(path)  # the format is found by itself
    assert table.meta["imported_from"] == name
    assert table.token.tolist() == [*TOKENS[0], *TOKENS[1]]
    assert table.sequence.tolist() == [0, 0, 0, 1, 1]
    assert table.position.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_allclose(table.engine_logprob, [*ENGINE[0], *ENGINE[1]])
    expected = [*TRAINER[0], *TRAINER[1]] if trainer else [np.nan] * 5
    np.testing.assert_allclose(table.trainer_logprob, expected)
    assert table.weight_version.tolist() == ([4] * 5 if versions else [-1] * 5)
    assert table.prompt is not None
    assert len(set(table.prompt.tolist())) == 1
    records = list(import_sequences(path, format=name))
    assert all(record.prompt_tokens is not None and record.prompt_tokens.tolist() == PROMPT for record in records)


def test_a_branch_shared_by_two_leaves_is_counted_once(tmp_path: Path) -> None:
    nodes = [
        {"parent": None, "token_ids": [1, 2], "mask": [False, False], "logprobs": []},
        {"parent": 0, "token_ids": [3, 4], "mask": [False, True], "logprobs": [-1.0]},
        {"parent": 1, "token_ids": [5, 6], "mask": [False, True], "logprobs": [-2.0]},
        {"parent": 1, "token_ids": [7, 8], "mask": [False, True], "logprobs": [-3.0]},
    ]
    table = import_rollouts(lines(tmp_path / "t.jsonl", [{"nodes": nodes}]))
    assert sorted(table.engine_logprob.tolist()) == [-3.0, -2.0, -1.0]
    assert sorted(table.token.tolist()) == [4, 6, 8]


def test_a_table_with_a_token_per_row_by_named_columns(tmp_path: Path) -> None:
    columns = {"engine_logprob": "vllm", "trainer_logprob": "hf", "sequence": "seq"}
    data = {"seq": [3, 3, 9], "vllm": [-1.0, -2.0, -3.0], "hf": [-1.1, -2.0, -3.5]}
    pyarrow.parquet.write_table(pyarrow.table(data), tmp_path / "t.parquet")
    lines(tmp_path / "t.jsonl", [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)])
    for name in ("t.parquet", "t.jsonl"):
        table = import_rollouts(tmp_path / name, columns=columns)
        assert table.position.tolist() == [0, 1, 0]
        np.testing.assert_allclose(table.skew, [-0.1, 0.0, -0.5])
    with pytest.raises(FileFormatError, match="no column nope"):
        import_rollouts(tmp_path / "t.parquet", columns=columns | {"weight_version": "nope"})
    with pytest.raises(UserError, match="enginelogprob"):
        import_rollouts(
            tmp_path / "t.parquet", format="table", columns={"enginelogprob": "vllm", "engine_logprob": "vllm"}
        )


def test_a_table_with_a_sequence_per_row_by_named_columns(tmp_path: Path) -> None:
    rows = [{"ids": tokens, "lps": engine, "T": 0.7} for tokens, engine in zip(TOKENS, ENGINE, strict=True)]
    names = {"token_ids": "ids", "engine_logprobs": "lps", "temperature": "T"}
    table = import_rollouts(lines(tmp_path / "w.jsonl", rows), columns=names)
    assert table.meta["temperature"] == 0.7
    np.testing.assert_allclose(table.engine_logprob, [*ENGINE[0], *ENGINE[1]])
    with pytest.raises(FileFormatError, match="no column lpz"):
        import_rollouts(tmp_path / "w.jsonl", columns=names | {"trainer_logprobs": "lpz"})


def test_a_column_may_be_named_in_the_singular_or_the_plural_whatever_a_row_is(tmp_path: Path) -> None:
    wide = [{"ids": tokens, "lps": engine} for tokens, engine in zip(TOKENS, ENGINE, strict=True)]
    long = [{"lp": value, "id": token} for token, value in zip(TOKENS[0], ENGINE[0], strict=True)]
    lines(tmp_path / "wide.jsonl", wide)
    lines(tmp_path / "long.jsonl", long)
    for token, engine in (("token", "engine_logprob"), ("token_ids", "engine_logprobs")):
        table = import_rollouts(tmp_path / "wide.jsonl", columns={token: "ids", engine: "lps"})
        assert table.engine_logprob.tolist() == [*ENGINE[0], *ENGINE[1]]
        table = import_rollouts(tmp_path / "long.jsonl", columns={token: "id", engine: "lp"})
        assert table.token.tolist() == TOKENS[0]


def test_a_log_whose_last_line_is_cut_off_says_how_to_go_on(tmp_path: Path) -> None:
    log = lines(tmp_path / "log.jsonl", [{"token_ids": [1], "engine_logprobs": [-0.1]}] * 3)
    whole = log.read_text().rstrip("\n")
    log.write_text(whole[:-5])
    with pytest.raises(FileFormatError, match=r"line 3: truncated .* `sed '\$d'"):
        import_rollouts(log)
    log.write_text(whole.replace("}", "", 1) + "\n")
    with pytest.raises(FileFormatError, match=r"line 1: truncated or no JSON$"):
        import_rollouts(log)


def test_rows_of_unknown_fields_get_the_command_that_names_them(tmp_path: Path) -> None:
    for row, name in (({"ids": [1], "lps": [-0.1]}, "engine_logprobs"), ({"id": 1, "lp": -0.1}, "engine_logprob")):
        log = lines(tmp_path / f"{name}.jsonl", [row])
        with pytest.raises(FileFormatError, match=f"skewsim import .*jsonl --column {name}=THEIRS --out table.npz"):
            import_rollouts(log)


def test_sequences_survive_a_round_trip_with_their_prompts(tmp_path: Path) -> None:
    records = list(import_sequences(slime(tmp_path)))
    assert write_sequences(records, tmp_path / "s.jsonl") == 2
    log = load_sequences(tmp_path / "s.jsonl")
    for before, after in zip(records, log.records, strict=True):
        assert before.to_json() == after.to_json()
    assert log.table().skew == pytest.approx(import_rollouts(tmp_path / "0.pt").skew)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"input": "a", "output": "b", "gts": "", "score": 1, "step": 3}\n', "calculate_log_probs"),
        ('{"token_ids": [1, 2], "engine_logprobs": [-0.1]}\n', "row 1"),
        ('{"token_ids": [1, 2], "engine_logprobs": [-0.1', "truncated"),
        ('{"colour": 3}\n', "fit no known format"),
        ("", "no rows"),
    ],
)
def test_a_log_that_cannot_be_used_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        import_rollouts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["x", "-0.5", [1.0], {}])
def test_a_value_of_a_long_table_that_is_no_number_is_one_line(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    rows = [{"sequence": 0, "engine_logprob": -1.0}, {"sequence": 0, "engine_logprob": value}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FileFormatError, match=r"row 2: engine_logprob=.*allowed: a number or null") as caught:
        import_rollouts(path)
    assert "\n" not in str(caught.value)


def test_a_value_that_a_long_table_lacks_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    rows = [{"engine_logprob": -1.0, "trainer_logprob": -1.5}, {"engine_logprob": None}, {"engine_logprob": -2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = import_rollouts(path)
    assert np.array_equal(table.engine_logprob, [-1.0, np.nan, -2.0], equal_nan=True)
    assert np.array_equal(table.trainer_logprob, [-1.5, np.nan, np.nan], equal_nan=True)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"samples": [Trap()]}, tmp_path / "x.pt")
    with pytest.raises(FileFormatError):
        import_rollouts(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_the_command_writes_a_table_or_whole_sequences_by_suffix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = str(nemo_rl(tmp_path))
    assert main(["import", log, "--out", str(tmp_path / "t.npz")]) == 0
    assert main(["import", log, "--out", str(tmp_path / "s.jsonl")]) == 0
    assert "2 sequences" in capsys.readouterr().out
    np.testing.assert_allclose(
        TokenTable.load(tmp_path / "t.npz").skew, load_sequences(tmp_path / "s.jsonl").table().skew
    )
    assert main(["gate", str(tmp_path / "s.jsonl"), "--max", "logprob_diff_max=0.2"]) == 0
    assert main(["gate", str(tmp_path / "t.npz"), "--max", "logprob_diff_max=0.01"]) == 1


def test_wrong_paths_and_formats_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such file"):
        import_rollouts(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="format=verlx"):
        import_rollouts(verl(tmp_path), format="verlx")
    assert {"verl", "trl", "pipelinerl", "prime-rl", "slime", "nemo-rl", "table"} <= set(formats())
