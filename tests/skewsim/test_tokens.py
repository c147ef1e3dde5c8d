"""Token tables: what is saved is what is loaded, and a bad file is one line."""

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewsim.errors import FileFormatError, UserError
from skewsim.skew.sequences import SequenceRecord, build_table, load_sequences, write_sequences
from skewsim.skew.tokens import FORMAT, PLACES, SCHEMA_VERSION, TYPE_OF_COLUMN, TokenTable

SUFFIXES = (".npz", ".parquet")


def make_table(rows: int = 50, *, seed: int = 0, optional: bool = True) -> TokenTable:
    rng = np.random.default_rng(seed)
    logprobs = np.log(rng.uniform(size=(3, rows)))
    logprobs[1, : rows // 5] = np.nan
    extra = {"sampler_logprob": logprobs[2], "prompt": rng.integers(0, 9, rows)} if optional else {}
    extra |= {name: rng.integers(-1, 9, rows) for name in PLACES} if optional else {}
    return TokenTable(
        sequence=np.arange(rows) // 7,
        position=np.arange(rows) % 7,
        token=rng.integers(0, 64, rows),
        engine_logprob=logprobs[0],
        trainer_logprob=logprobs[1],
        weight_version=np.full(rows, -1),
        meta={"engine": "sim", "temperature": 0.8, "nested": {"a": [1, None]}},
        **extra,
    )


def assert_equal(left: TokenTable, right: TokenTable) -> None:
    assert left.meta == right.meta
    assert left.columns().keys() == right.columns().keys()
    for name, column in left.columns().items():
        np.testing.assert_array_equal(column, right.columns()[name])
        assert right.columns()[name].dtype == TYPE_OF_COLUMN[name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(0, 40), seed=st.integers(0, 99), optional=st.booleans())
def test_a_table_survives_a_round_trip_bit_for_bit(tmp_path_factory, suffix, rows, seed, optional):
    table = make_table(rows, seed=seed, optional=optional)
    path = tmp_path_factory.mktemp("round") / f"table{suffix}"
    table.save(path)
    assert_equal(table, TokenTable.load(path))
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file stays


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_million_tokens_are_held_saved_and_read(tmp_path, suffix):
    rows = 1_000_000
    base = np.arange(rows)
    logprob = -(base % 997) / 100.0
    table = TokenTable(base // 1000, base % 1000, base % 32000, logprob, logprob + 0.01, np.zeros(rows))
    table.save(tmp_path / f"big{suffix}")
    assert_equal(table, TokenTable.load(tmp_path / f"big{suffix}"))


def test_skew_is_trainer_minus_engine_and_unknown_stays_unknown():
    table = TokenTable([0, 0, 0], [0, 1, 2], [5, 6, 7], [-1.0, -2.0, -np.inf], [-0.5, np.nan, -np.inf], [0, 0, 0])
    np.testing.assert_array_equal(table.skew, [0.5, np.nan, np.nan])


def test_rollout_arrays_become_one_row_per_sampled_token():
    mask = np.array([[1, 1, 0], [1, 0, 0]], dtype=np.float32)
    tokens = np.arange(6).reshape(2, 3)
    table = TokenTable.from_rollouts(
        tokens=tokens, mask=mask, engine_logprobs=-tokens * 1.0, prompt_ids=np.array([8, 9]), meta={"a": 1}
    )
    assert table.token.tolist() == [0, 1, 3]
    assert table.sequence.tolist() == [0, 0, 1]
    assert table.position.tolist() == [0, 1, 0]
    assert table.prompt.tolist() == [8, 8, 9]
    assert np.isnan(table.trainer_logprob).all()
    assert table.weight_version.tolist() == [-1, -1, -1]
    assert table.kept_mass is None


def test_joined_tables_keep_every_row_and_name_what_they_disagree_on():
    one, two = make_table(14), make_table(14, seed=1, optional=False).with_meta(engine="vllm")
    joined = TokenTable.concat([one, two], renumber=True)
    assert len(joined) == 28
    assert joined.sequence.tolist() == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7
    assert joined.meta["mixed"] == {"engine": ["sim", "vllm"]}
    assert np.isnan(joined.sampler_logprob[14:]).all()
    assert (joined.prompt[14:] == -1).all()
    assert_equal(joined.select(slice(0, 14)).with_meta(engine="sim", mixed=0), one.with_meta(mixed=0))


def test_places_go_from_sequences_to_the_table_and_through_the_file_and_are_absent_where_nobody_knows_them(tmp_path):
    turn = np.array([0, -1, 1])
    known = SequenceRecord(
        [5, 6, 7], [-1.0, 0.0, -2.0], mask=[1, 0, 1], prompt_key="q", places={"step": 3, "turn": turn}
    )
    records = [known, SequenceRecord([8], [-3.0], places={"rank": 2})]
    write_sequences(records, tmp_path / "s.jsonl")
    log = load_sequences(tmp_path / "s.jsonl")
    for before, after in zip(records, log.records, strict=True):
        assert before.to_json() == after.to_json()
    table = log.table()
    assert_equal(table.with_meta(source=0), build_table(records, meta={"source": 0}))
    assert table.step.tolist() == [3, 3, -1]
    assert table.turn.tolist() == [0, 1, -1]
    assert table.rank.tolist() == [-1, -1, 2]
    assert table.replica is None
    assert table.pack_index is None
    assert table.prompt.tolist() == [0, 0, -1]


@pytest.mark.parametrize("value", [1.5, "3", [1, 2], [None] * 3, [[1, 2, 3]]])
def test_a_place_that_is_no_whole_number_is_one_line(tmp_path, value):
    line = {"token_ids": [1, 2, 3], "engine_logprobs": [-1, -1, -1], "step": value}
    (tmp_path / "s.jsonl").write_text(json.dumps(line))
    with pytest.raises(FileFormatError, match="line 1: step is neither"):
        load_sequences(tmp_path / "s.jsonl")


def one_line(path: Path) -> str:
    with pytest.raises(FileFormatError) as caught:
        TokenTable.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95, 0.999])
def test_a_cut_off_file_is_one_line(tmp_path, suffix, share):
    path = tmp_path / f"table{suffix}"
    make_table(500).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    one_line(path)


def test_a_missing_file_or_an_unknown_suffix_is_one_line(tmp_path):
    assert "no such file" in one_line(tmp_path / "absent.npz")
    (tmp_path / "table.csv").write_text("a,b\n")
    assert ".npz, .parquet" in one_line(tmp_path / "table.csv")
    with pytest.raises(UserError, match=r"allowed: \.npz, \.parquet"):
        make_table().save(tmp_path / "table.pkl")
    with pytest.raises(UserError, match="cannot be written"):
        make_table().save(tmp_path / "no" / "such" / "folder.npz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pickle_is_refused(tmp_path, suffix):
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps({"sequence": [1]}))
    one_line(path)


def test_an_object_array_inside_an_npz_is_refused(tmp_path):
    path = tmp_path / "object.npz"
    table = make_table(5, optional=False)
    table.save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["token"] = np.array([{}] * 5, dtype=object)
    np.savez(path, **arrays)
    assert "token.npy has shape (5,) and type object; allowed: one axis, numbers" in one_line(path)


def rewritten(path: Path, **changes: object) -> None:
    """The table file at `path` with other header entries."""
    header = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "meta": {}, **changes}
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(path, **arrays)


def test_a_table_from_the_future_is_one_line(tmp_path):
    path = tmp_path / "future.npz"
    make_table(3).save(path)
    rewritten(path, schema_version=SCHEMA_VERSION + 1)
    assert "later skewsim" in one_line(path)


def test_foreign_files_are_one_line(tmp_path):
    path = tmp_path / "foreign.npz"
    np.savez(path, weights=np.zeros(3))
    assert "no token table" in one_line(path)
    make_table(3).save(path)
    rewritten(path, format="something else")
    assert "not a token table" in one_line(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    one_line(path)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "foreign.parquet")
    one_line(tmp_path / "foreign.parquet")


def test_columns_must_be_numbers_of_one_length():
    row = {
        name: [0] for name in ("sequence", "position", "token", "engine_logprob", "trainer_logprob", "weight_version")
    }
    with pytest.raises(UserError, match="token has 2 rows"):
        TokenTable(**{**row, "token": [1, 2]})
    with pytest.raises(UserError, match="numbers"):
        TokenTable(**{**row, "token": ["a"]})
    with pytest.raises(UserError, match="axes"):
        TokenTable(**{**row, "token": [[1]]})
    with pytest.raises(UserError, match="no integers"):
        TokenTable(**{**row, "token": [1.5]})


def test_importing_the_table_loads_neither_torch_nor_pyarrow():
    code = "import sys, skewsim.skew.tokens; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_reading_a_parquet_file_starts_no_thread_that_could_outlive_the_program(tmp_path):
    make_table().save(tmp_path / "t.parquet")
    code = (
        "import os, sys, pyarrow.parquet\n"
        "from skewsim.skew.tokens import TokenTable\n"
        "before = os.listdir('/proc/self/task')\n"
        "TokenTable.load(sys.argv[1])\n"
        "assert os.listdir('/proc/self/task') == before\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "t.parquet")], check=True)
