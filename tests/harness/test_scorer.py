"""The trainer's side agrees with transformers and with the simulator, at every dtype and processing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.scorer import Processing, TrainerScorer, stop_tokens
from skewsim.errors import UserError
from skewsim.learn.scoring import response_logits
from skewsim.model.policy import Policy

PROMPTS = [[1, 5, 9, 3], [1, 7, 3], [1, 8, 9, 10, 11, 3]]
RESPONSES = [[20, 21, 22], [30, 31, 32, 33, 34], [40]]


def reference_logits(folder: Path, prompt: list[int], response: list[int]) -> np.ndarray:
    """The simulator's float32 logits (T, V)."""
    weights = Policy.load(folder).weights(dtype="float32", head_dtype="float32")
    ids = (torch.tensor(part)[None, None] for part in (prompt, [*response, 0]))
    return response_logits(weights, *ids, group=1)[0, 0, :-1].double().numpy()


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logprobs_equal_the_simulators_for_prompts_and_responses_of_any_length(
    tiny_model: Path, attention: str
) -> None:
    scores = TrainerScorer(tiny_model, attention=attention).score(PROMPTS, RESPONSES, Processing(temperature=0.8))  # type: ignore[arg-type]
    for prompt, response, found in zip(PROMPTS, RESPONSES, scores, strict=True):
        expected = log_softmax(reference_logits(tiny_model, prompt, response) / 0.8)
        assert np.abs(found.logprobs - expected[np.arange(len(response)), response]).max() < 1e-5
        assert np.allclose(found.square_mass, np.square(np.exp(expected)).sum(-1), atol=1e-6)


def test_renormalising_after_top_p_adds_the_log_of_the_kept_mass(tiny_model: Path) -> None:
    scorer = TrainerScorer(tiny_model)
    plain = scorer.score(PROMPTS, RESPONSES, Processing(temperature=0.8, top_p=0.7, renormalize=False))
    kept = scorer.score(PROMPTS, RESPONSES, Processing(temperature=0.8, top_p=0.7))
    for without, with_ in zip(plain, kept, strict=True):
        assert (with_.kept_mass >= 0.7 - 1e-9).all()
        inside = np.isfinite(with_.logprobs)
        gain = with_.logprobs[inside] - without.logprobs[inside]
        assert np.allclose(gain, -np.log(with_.kept_mass[inside]), atol=1e-9)
        assert np.isfinite(without.logprobs).all()


def test_a_bfloat16_head_rounds_logits_and_a_float32_head_on_a_bfloat16_body_does_not(tiny_model: Path) -> None:
    exact, head, body, both = (
        np.concatenate([s.logprobs for s in TrainerScorer(tiny_model, dtype=d, head_dtype=h).score(PROMPTS, RESPONSES)])
        for d, h in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
    )
    assert 1e-4 < np.abs(head - exact).mean() < 0.05
    assert 1e-4 < np.abs(body - exact).mean() < 0.1
    assert np.abs(both - body).mean() > 1e-4


def test_the_head_gets_a_copy_where_it_shares_the_embeddings_weight(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=[5, 6],
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    scorer = TrainerScorer(tmp_path, dtype="bfloat16", head_dtype="float32")
    assert scorer.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert scorer.model.get_output_embeddings().weight.dtype == torch.float32
    assert np.isfinite(scorer.score([[1, 2]], [[3, 4]])[0].logprobs).all()
    assert stop_tokens(tmp_path) == [5, 6]


def test_many_sequences_are_scored_in_batches_and_come_back_in_order(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = TrainerScorer(tiny_model)
    whole = scorer.score(PROMPTS * 5, RESPONSES * 5)
    monkeypatch.setattr("harness.scorer.LOGITS_AT_ONCE", 10 * scorer.vocab_size)
    parts = scorer.score(PROMPTS * 5, RESPONSES * 5)
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(one.logprobs - other.logprobs).max() < 1e-5


def spoiled(folder: Path, what: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 64}))
    if what == "config":
        (folder / "config.json").write_text("{")
    elif what == "type":
        (folder / "config.json").write_text("{}")
    elif what == "pickle":
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    elif what == "truncated":
        (folder / "model.safetensors").write_bytes(b"\x10\x00\x00")
    elif what == "code":
        (folder / "config.json").write_text(
            json.dumps({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "evil.Model"}})
        )
        (folder / "evil.py").write_text("raise SystemExit('code of the model was run')")
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("config", "truncated or no JSON"),
        ("type", "model_type is missing"),
        ("pickle", "pickled weights"),
        ("truncated", "truncated, or not a safetensors file"),
        ("code", "cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path, what: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        TrainerScorer(spoiled(tmp_path / what, what))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match="no such folder"):
        TrainerScorer("no-such-folder")
