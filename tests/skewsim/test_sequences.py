"""Whole sequences as JSON lines: what is written is what is read, and a line from the future is named."""

import json

import numpy as np
import pytest

from skewsim.errors import FileFormatError
from skewsim.skew.sequences import SequenceRecord, load_sequences, write_sequences


def make_records(count: int = 3) -> list[SequenceRecord]:
    rng = np.random.default_rng(0)
    return [
        SequenceRecord(
            tokens=rng.integers(0, 50, 4),
            engine_logprobs=np.array([-0.5, -1e-300, np.nan, -7.25]),
            trainer_logprobs=np.array([-0.25, np.nan, -3.0, -1 / 3]),
            weight_versions=np.array([3, 3, 4, 4]),
            mask=np.array([True, True, False, True]),
            prompt_tokens=rng.integers(0, 50, 5),
            settings={"temperature": 0.8, "top_p": 0.9},
        )
        for _ in range(count)
    ]


def test_sequences_survive_a_round_trip_and_every_line_says_its_schema_version(tmp_path):
    records = make_records()
    write_sequences(records, tmp_path / "s.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [line["schema_version"] for line in lines] == [1, 1, 1]
    assert [record.to_json() for record in load_sequences(tmp_path / "s.jsonl").records] == lines
    for before, after in zip(records, load_sequences(tmp_path / "s.jsonl").records, strict=True):
        np.testing.assert_array_equal(before.engine_logprobs, after.engine_logprobs)
        np.testing.assert_array_equal(before.trainer_logprobs, after.trainer_logprobs)


def test_a_line_without_a_schema_version_is_of_the_first(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"token_ids": [1, 2], "engine_logprobs": [-0.5, null]}\n')
    (record,) = load_sequences(tmp_path / "s.jsonl").records
    np.testing.assert_array_equal(record.engine_logprobs, [-0.5, np.nan])


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (2, "schema_version=2 is from a later skewsim; this one reads up to 1"),
        (0, "schema_version=0 is not known"),
        ("1", "schema_version='1' is not known"),
    ],
)
def test_a_line_of_another_schema_version_is_one_line_that_names_it(tmp_path, version, says):
    good, other = make_records(1)[0].to_json(), {"schema_version": version, "whatever": "it holds"}
    (tmp_path / "s.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(other)}\n")
    with pytest.raises(FileFormatError, match=r"s\.jsonl, line 2") as caught:
        load_sequences(tmp_path / "s.jsonl")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
