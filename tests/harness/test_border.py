"""Files that lie about what is in them are refused in one line, before what they claim is allocated."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from harness.log_files import read_rows
from harness.logs import import_rollouts
from skewsim.errors import FileFormatError
from skewsim.learn.base_policy import shipped_folder
from skewsim.model.folder import check_folder
from skewsim.model.huggingface import load_model
from skewsim.model.policy import Policy
from skewsim.settings import TaskSettings
from skewsim.skew.tokens import FORMAT, TokenTable


def refusal(read: Any, path: Path) -> str:
    """The line that says what is wrong; less than 64 MiB are allocated on the way to it."""
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_array_that_claims_more_values_than_its_file_has_is_refused(tmp_path: Path) -> None:
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    header = json.dumps({"format": FORMAT, "schema_version": 1, "meta": {}}).encode()
    whole = io.BytesIO()
    np.save(whole, np.frombuffer(header, np.uint8))
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("header.npy", whole.getvalue())
        archive.writestr("sequence.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    assert "should hold 1000000000000 values" in refusal(TokenTable.load, tmp_path / "t.npz")


def test_a_small_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as entry:
        for _ in range(300):
            entry.write(bytes(1 << 20))
    assert "unpack to 314572800; allowed are" in refusal(TokenTable.load, tmp_path / "t.npz")


def test_a_small_parquet_file_that_becomes_much_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skewsim.arrays.SMALL", 1 << 20)
    coded = pyarrow.DictionaryArray.from_arrays(np.zeros(100_000, np.int8), [-1.0])
    pyarrow.parquet.write_table(pyarrow.table({"engine_logprob": coded, "sequence": coded}), tmp_path / "t.parquet")
    assert "unpack to 1600000; allowed are 1048576" in refusal(import_rollouts, tmp_path / "t.parquet")


def test_one_long_word_in_many_rows_of_a_parquet_file_is_held_once(tmp_path: Path) -> None:
    words = pyarrow.DictionaryArray.from_arrays(np.zeros(1000, np.int8), ["x" * 1_000_000])
    pyarrow.parquet.write_table(pyarrow.table({"uid": words}), tmp_path / "t.parquet")
    tracemalloc.start()
    rows = list(read_rows(tmp_path / "t.parquet"))
    assert tracemalloc.get_traced_memory()[1] < 1 << 25
    tracemalloc.stop()
    assert [row["uid"] for row in rows] == ["x" * 1_000_000] * 1000


def test_a_dump_whose_lists_hold_each_other_is_refused(tmp_path: Path) -> None:
    bomb: list[Any] = [-1.0] * 10
    for _ in range(40):
        bomb = [bomb, bomb]
    row = {"tokens": [1, 2], "response_length": 1, "rollout_log_probs": bomb}
    torch.save({"samples": [row]}, tmp_path / "0.pt")
    assert "unpack to" in refusal(import_rollouts, tmp_path / "0.pt")
    torch.save({"samples": [row | {"rollout_log_probs": torch.zeros(1).expand(10**9)}]}, tmp_path / "0.pt")
    assert "unpack to" in refusal(import_rollouts, tmp_path / "0.pt")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("token_ids", [1e400], "token_ids is [inf]; allowed: a list of whole numbers"),
        ("token_ids", [10**20], "allowed: a list of whole numbers"),
        ("token_ids", [True], "allowed: a list of whole numbers"),
        ("token_ids", [[1], [1, 2]], "allowed: a list of whole numbers"),
        ("token_ids", 3, "token_ids is 3"),
        ("engine_logprobs", None, "engine_logprobs is null"),
        ("engine_logprobs", ["-1"], "engine_logprobs is ['-1']; allowed: a list of numbers and nulls"),
        ("engine_logprobs", [{}], "allowed: a list of numbers and nulls"),
        ("mask", [None], "allowed: a list of 0 and 1"),
        ("prompt_id", ["a"], "the prompt's id is ['a']; allowed: text or a number"),
        ("temperature", "hot", "temperature is 'hot'; allowed: a number"),
        ("turn", [[1], [1, 2]], "turn is neither a whole number"),
    ],
)
def test_a_field_of_the_wrong_type_is_named_with_what_is_allowed(
    tmp_path: Path, field: str, value: Any, said: str
) -> None:
    row = {"token_ids": [1], "engine_logprobs": [-1.0]} | {field: value}
    text = json.dumps(row).replace("Infinity", "1e400")
    (tmp_path / "log.jsonl").write_text(text + "\n")
    assert said in refusal(import_rollouts, tmp_path / "log.jsonl")


def model(folder: Path, **changes: Any) -> Path:
    """The shipped policy with other numbers in its configuration."""
    source = shipped_folder(TaskSettings())
    folder.mkdir()
    config = json.loads((source / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": "linear"}, "rope_parameters='linear'; allowed: a table"),
        ({"vocab_size": -1}, "vocab_size=-1; allowed: a whole number above 0"),
        ({"vocab_size": True}, "vocab_size=True"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta='x'; allowed: a number above 0"),
        ({"hidden_size": 2**30}, "hidden_size=1073741824 is more than the weights in the folder bear out"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000, but there are"),
        ({"num_key_value_heads": 3, "num_attention_heads": 2}, "a divisor of num_attention_heads"),
    ],
)
def test_a_configuration_that_no_model_has_is_refused_with_its_field(tmp_path: Path, changes: Any, said: str) -> None:
    assert said in refusal(Policy.load, model(tmp_path / "model", **changes))


def test_every_cut_of_a_file_of_weights_is_seen_before_it_is_loaded(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    check_folder(folder)
    content = (folder / "model.safetensors").read_bytes()
    for length in (0, 7, 8, 100, 5000, len(content) - 1):
        (folder / "model.safetensors").write_bytes(content[:length])
        assert "model.safetensors" in refusal(check_folder, folder)
    (folder / "model.safetensors").write_bytes(content + b"\0")
    assert "cut off or changed" in refusal(check_folder, folder)


def test_a_model_that_lacks_tensors_is_one_line_without_the_librarys_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileFormatError, match=r"more are missing$"):
        load_model(model(tmp_path / "model", num_hidden_layers=8))
    assert capfd.readouterr() == ("", "")
