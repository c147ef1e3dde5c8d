"""Both logprobs written from inside a training script, and read back."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.logs import import_rollouts, import_sequences
from skewsim.callbacks import RolloutCallback, RolloutLog
from skewsim.skew.sequences import load_sequences


def test_a_batch_of_tensors_comes_back_token_by_token(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "deep" / "rollouts.jsonl")
    tokens = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
    engine = -torch.arange(8.0).reshape(2, 4).bfloat16()
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0]])
    for step in (3, 4):
        written = log.write(
            tokens=tokens,
            engine_logprobs=engine,
            trainer_logprobs=engine - 0.5,
            mask=mask,
            prompts=torch.tensor([[0, 1, 2], [1, 2, 3]]),
            prompt_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]),
            weight_versions=[7, 8],
            step=step,
        )
        assert written == 2
    table = load_sequences(tmp_path / "deep" / "rollouts.jsonl").table()
    assert table.token.tolist() == [5, 7, 8, 9] * 2
    assert table.engine_logprob.tolist() == [0, -2, -4, -5] * 2
    assert (table.skew == -0.5).all()
    assert table.step.tolist() == [3] * 4 + [4] * 4
    assert table.weight_version.tolist() == [7, 7, 8, 8] * 2
    first = next(import_sequences(tmp_path / "deep" / "rollouts.jsonl"))
    assert first.prompt_tokens.tolist() == [1, 2]
    with pytest.raises(ValueError, match="engine_logprobs has shape"):
        log.write(tokens=tokens, engine_logprobs=engine[:, :2])


def test_a_sequence_without_a_sampled_token_is_skipped_and_the_others_keep_their_prompts(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    RolloutLog(path).write(
        tokens=np.array([[5, 6], [0, 0], [8, 9]]),
        engine_logprobs=-np.ones((3, 2)),
        mask=np.array([[1, 1], [0, 0], [1, 1]]),
        prompts=np.array([[1], [2], [3]]),
        prompt_ids=["a", "b", "c"],
        weight_versions=[1, 2, 3],
    )
    records = load_sequences(path).records
    assert [record.prompt_tokens.tolist() for record in records] == [[1], [3]]
    assert [(record.prompt_key, record.weight_versions.tolist()) for record in records] == [
        ("a", [1, 1]),
        ("c", [3, 3]),
    ]


def test_the_engines_experts_come_back_for_the_row_before_each_token(tmp_path: Path) -> None:
    """verl's `routed_experts`: a row for each token of the padded prompt and response, zeros behind the response."""
    path, routes = tmp_path / "rollouts.jsonl", torch.arange(2 * 5 * 3 * 2).reshape(2, 5, 3, 2).to(torch.uint8)
    batch = {
        "tokens": torch.tensor([[5, 6, 7], [8, 9, 0]]),
        "engine_logprobs": -torch.ones(2, 3),
        "mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    RolloutLog(path).write(**batch, prompts=torch.tensor([[0, 1], [1, 2]]), routed_experts=routes)
    for record, given, length in zip(load_sequences(path).records, routes, (3, 2), strict=True):
        np.testing.assert_array_equal(record.engine_routes, given[1 : 1 + length])
    for wrong in (
        {"routed_experts": routes},
        {"routed_experts": routes[:, 1:], "prompts": torch.tensor([[0, 1], [1, 2]])},
    ):
        with pytest.raises(ValueError, match="routed_experts has shape"):
            RolloutLog(path).write(**batch, **wrong)


def test_importing_the_callbacks_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, skewsim.callbacks; sys.exit(bool({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def trainer_class():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trl = pytest.importorskip("trl")
        base = trl.GRPOTrainer

    class Sampled(base):
        """TRL's trainer with the numbers that vLLM would report: here they are invented, one for each token."""

        reported: list[list[float]] | None = None

        def _generate(self, prompts):
            made = list(super()._generate(prompts))
            if self.reported is not None:
                made[4] = [[-0.25 * (place + 1) for place in range(len(ids))] for ids in made[1]]
                self.reported += made[4]
            return tuple(made)

    return Sampled


def train(trainer_class, folder: Path, reported: list[list[float]] | None) -> None:
    """Two steps of GRPO on a tiny random model."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig

    words = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefghij"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                    num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None)
    )  # fmt: skip
    settings = GRPOConfig(
        output_dir=str(folder / "out"), max_steps=2, per_device_train_batch_size=4, num_generations=4, num_iterations=2,
        max_completion_length=6, report_to=[], use_cpu=True, logging_steps=1, save_strategy="no", bf16=False,
    )  # fmt: skip
    trainer = trainer_class(
        model=model, reward_funcs=lambda completions, **_: [float(len(c)) for c in completions], args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["a b c", "d e"] * 4}), processing_class=fast,
    )  # fmt: skip
    trainer.reported = reported
    trainer.add_callback(RolloutCallback(trainer, folder / "rollouts.jsonl"))
    trainer.train()


@pytest.mark.filterwarnings("ignore")
def test_trls_own_trainer_writes_both_logprobs_of_every_rollout(trainer_class, tmp_path: Path) -> None:
    reported: list[list[float]] = []
    train(trainer_class, tmp_path, reported)
    records = list(import_sequences(tmp_path / "rollouts.jsonl"))
    assert sorted(record.engine_logprobs.tolist() for record in records) == sorted(reported)
    assert all(record.prompt_tokens is not None and len(record.prompt_tokens) in (2, 3) for record in records)
    table = import_rollouts(tmp_path / "rollouts.jsonl")
    assert np.isfinite(table.trainer_logprob).all()
    assert (table.trainer_logprob < 0).all()
    assert table.meta["temperature"] == 1.0
    assert set(table.rank.tolist()) == {0}
    assert set(table.step.tolist()) == {0}


@pytest.mark.filterwarnings("ignore")
def test_without_vllm_the_callback_says_so_once_and_training_goes_on(trainer_class, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="use_vllm=True") as caught:
        train(trainer_class, tmp_path, None)
    assert len([each for each in caught if "skewsim.callbacks" in str(each.message)]) == 1
    assert not (tmp_path / "rollouts.jsonl").exists()
