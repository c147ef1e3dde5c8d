"""Rescoring a log whose logits do not fit into memory: the same diagnosis, from as few passes of a body as can be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from skewsim.diagnose import Diagnosis, diagnose
from skewsim.diagnose.models import ModelScorer
from skewsim.diagnose.policies import policy_scorers
from skewsim.learn.scoring import response_logits
from skewsim.model.policy import Policy, PolicyConfig, cast_weights
from skewsim.skew.sequences import SequenceLog, SequenceRecord

VOCAB, SEQUENCES, PROMPT, RESPONSE = 3000, 24, 6, 10


def scorer(name: str, seed: int) -> ModelScorer:
    """Three layers, four heads over two of keys and values, a tied head, a vocabulary larger than all else."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.15,
    )  # fmt: skip
    return ModelScorer(name, transformers.LlamaForCausalLM(config).eval())


@pytest.fixture(scope="module")
def scorers() -> list[ModelScorer]:
    return [scorer("new", 0), scorer("old", 1)]


def with_engine(scorers: list[ModelScorer], engine: Callable[..., np.ndarray]) -> SequenceLog:
    """Random tokens with what the new model in float32 says at temperature .7, and what `engine` does."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(SEQUENCES):
        record = SequenceRecord(
            tokens=rng.integers(VOCAB, size=RESPONSE),
            engine_logprobs=np.zeros(RESPONSE),
            prompt_tokens=rng.integers(VOCAB, size=PROMPT),
            settings={"temperature": 0.7, "top_p": 1.0, "top_k": 0.0},
        )
        logits = scorers[0].logits([record])
        trainer = logprobs(logits / 0.7, record)
        records.append(replace(record, engine_logprobs=engine(record, number), trainer_logprobs=trainer))
    return SequenceLog(tuple(records))


def logprobs(logits: np.ndarray, record: SequenceRecord) -> np.ndarray:
    values = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    found: np.ndarray = values[np.arange(RESPONSE), record.tokens]
    return found


def engines(scorers: list[ModelScorer]) -> dict[str, Callable[..., np.ndarray]]:
    new, old = scorers
    return {
        "wrong_temperature": lambda r, n: logprobs(new.logits([r]), r),
        "stale_weights": lambda r, n: logprobs(old.logits([r]) / 0.7, r),
        "head_dtype": lambda r, n: logprobs(new.logits([r], head_dtype="bfloat16") / 0.7, r),
        "stale_kv": lambda r, n: logprobs(
            new.logits([r], **({"older": old, "old_tokens": [PROMPT - 1]} if n % 2 else {})) / 0.7, r
        ),
    }


def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 240 tokens the logits of 20 at a time, and a sample of a third for the search."""
    predict = sys.modules["skewsim.diagnose.predict"]
    for name, tokens in (("BUDGET", 40), ("PIECE", 20), ("SAMPLE", 80)):
        monkeypatch.setattr(predict, name, tokens * VOCAB)


def shares(found: Diagnosis) -> dict[str, float]:
    return {cause.name: cause.explained for cause in found.causes}


@pytest.mark.parametrize("name", ["wrong_temperature", "stale_weights", "head_dtype", "stale_kv"])
def test_with_little_memory_all_sequences_are_scored_and_the_shares_are_the_same(
    name: str, scorers: list[ModelScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = with_engine(scorers, engines(scorers)[name])
    whole = diagnose(log, models=scorers)
    little_memory(monkeypatch)
    found = diagnose(log, models=scorers)
    assert whole.verdict == found.verdict == name
    assert found.tokens == whole.tokens == SEQUENCES * RESPONSE
    assert shares(found) == pytest.approx(shares(whole), abs=1e-3)


def test_temperature_1_is_not_raw_where_1_was_asked_for(scorers: list[ModelScorer]) -> None:
    log = with_engine(scorers, engines(scorers)["wrong_temperature"])
    asked = {"temperature": 1.0, "top_p": 1.0, "top_k": 0.0}
    records = tuple(replace(record, settings=asked) for record in log.records)
    assert diagnose(SequenceLog(records), models=scorers[:1]).verdict == "wrong_temperature"


def test_another_head_and_another_temperature_need_no_pass_of_the_body(
    scorers: list[ModelScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token of every sequence goes through each of the bodies float32, bfloat16 and float16 at most once, and
    once more for the sample.
    """
    log = with_engine(scorers, engines(scorers)["wrong_temperature"])
    little_memory(monkeypatch)
    model = scorer("new", 0)
    seen: dict[str, int] = {}
    hidden = ModelScorer._hidden

    def counted(self: ModelScorer, ids: torch.Tensor, dtype: str, *more: Any) -> torch.Tensor:
        seen[dtype] = seen.get(dtype, 0) + ids.numel()
        return hidden(self, ids, dtype, *more)

    monkeypatch.setattr(ModelScorer, "_hidden", counted)
    assert diagnose(log, models=[model]).verdict == "wrong_temperature"
    everything = SEQUENCES * (PROMPT + RESPONSE)
    assert everything <= seen.pop("float32") <= 1.5 * everything
    assert all(tokens <= 0.5 * everything for tokens in seen.values()), seen


def test_hidden_states_are_not_taken_for_those_of_other_sequences(scorers: list[ModelScorer]) -> None:
    """They are known by the identity of their sequences, which another object may get once these are gone."""
    rng = np.random.default_rng(1)
    model = scorer("new", 0)
    for _ in range(50):
        tokens = rng.integers(VOCAB, size=4)
        record = SequenceRecord(tokens, np.zeros(4), prompt_tokens=rng.integers(VOCAB, size=3))
        expected = scorer_free(model, record)
        np.testing.assert_allclose(model.logits([record]), expected, atol=1e-5)
        del record


def scorer_free(model: ModelScorer, record: SequenceRecord) -> np.ndarray:
    """transformers itself, nothing kept."""
    assert record.prompt_tokens is not None
    ids = torch.from_numpy(np.concatenate([record.prompt_tokens, record.tokens]))[None]
    with torch.inference_mode():
        found: np.ndarray = model.model(ids).logits[0, len(record.prompt_tokens) - 1 : -1].numpy()
    return found


def test_a_policy_trains_after_it_has_scored() -> None:
    """What a forward pass keeps for the next one must not belong to the mode in which the first one ran."""
    config = PolicyConfig(hidden_size=48, num_attention_heads=3, num_key_value_heads=3, head_dim=16)  # of no other test
    policy = Policy.random(config, generator=torch.Generator().manual_seed(0))
    record = SequenceRecord(np.arange(4), np.zeros(4), prompt_tokens=np.arange(5))
    policy_scorers(config, {0: policy.flat})[0].logits([record])
    flat = policy.flat.clone().requires_grad_()
    weights = cast_weights(config, config.views(flat), dtype="float32", head_dtype="float32")
    tokens = torch.arange(4)[None, None]
    response_logits(weights, torch.arange(5)[None, None], tokens, group=1).logsumexp(-1).sum().backward()
    assert flat.grad is not None
    assert flat.grad.abs().sum() > 0
