"""verl, TRL, SkyRL and OpenRLHF: a row of the training batch, with prompt and response padded to the batch's width.

- verl: `prompts`, `responses`, `response_mask`, `rollout_log_probs` (engine), `old_log_probs` (trainer), `uid`
  (verl/trainer/ppo/ray_trainer.py, verl/utils/debug/metrics.py). `trainer.rollout_data_dir` writes text only.
- TRL: `completion_ids`, `completion_mask`, `tool_mask`, `prompt_ids`, `sampling_per_token_logps` (engine),
  `old_per_token_logps` (trainer): what `GRPOTrainer._generate_and_score_completions` returns
  (trl/trainer/grpo_trainer.py).
- SkyRL: a TrainingInputBatch's `sequences`, `attention_mask`, `response_mask`, `loss_mask`, `rollout_logprobs`
  (engine), `action_log_probs` (trainer) (skyrl/backends/skyrl_train/training_batch.py).
- OpenRLHF: an Experience's `sequences`, `action_mask`, `rollout_log_probs` (engine), `action_log_probs` (trainer)
  (openrlhf/trainer/ppo_utils/experience.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness.logs.rows import Context, Format, Row, fields, first, flags, numbers, places, same_length, settings, whole
from skewsim.skew.sequences import SequenceRecord


def read_verl(row: Row, context: Context) -> Iterator[SequenceRecord]:
    tokens = whole(row["responses"], "responses")
    attention = None if row.get("attention_mask") is None else flags(row["attention_mask"], "attention_mask")
    mask = first(row, "response_mask", "loss_mask", "attention_mask")
    prompt = None if row.get("prompts") is None else whole(row["prompts"], "prompts")
    if prompt is not None and attention is not None:  # left-padded
        prompt = prompt[attention[: len(prompt)]]
    yield SequenceRecord(
        tokens=tokens,
        engine_logprobs=row["rollout_log_probs"],
        trainer_logprobs=row.get("old_log_probs"),
        mask=None if mask is None else flags(mask, "response_mask")[-len(tokens) :],
        prompt_tokens=prompt,
        prompt_key=row.get("uid"),
        settings=settings(row),
        places=places(row),
    )


def read_trl(row: Row, context: Context) -> Iterator[SequenceRecord]:
    prompt = row.get("prompt_ids")
    if prompt is not None and row.get("prompt_mask") is not None:
        prompt = whole(prompt, "prompt_ids")[flags(row["prompt_mask"], "prompt_mask")]
    masks = [flags(row[name], name) for name in ("completion_mask", "tool_mask") if row.get(name) is not None]
    same_length(completion_ids=row["completion_ids"], **{f"mask {number}": mask for number, mask in enumerate(masks)})
    yield SequenceRecord(
        tokens=row["completion_ids"],
        engine_logprobs=row["sampling_per_token_logps"],
        trainer_logprobs=row.get("old_per_token_logps"),
        mask=np.logical_and.reduce(masks) if masks else None,
        prompt_tokens=prompt,
        prompt_key=row["prompt"] if isinstance(row.get("prompt"), str) else None,
        settings=settings(row),
        places=places(row),
    )


def read_skyrl(row: Row, context: Context) -> Iterator[SequenceRecord]:
    """The response is what is last of the tokens that are no padding, on whichever side the padding is."""
    response = flags(row["response_mask"], "response_mask")
    engine, trainer = row["rollout_logprobs"], row.get("action_log_probs")
    loss = first(row, "loss_mask", "response_mask")
    same_length(response_mask=response, rollout_logprobs=engine, loss_mask=loss, action_log_probs=trainer)
    ids = whole(row["sequences"], "sequences")[flags(row["attention_mask"], "attention_mask")]
    start = len(ids) - int(response.sum())
    yield SequenceRecord(
        tokens=ids[start:],
        engine_logprobs=numbers(engine, "rollout_logprobs")[response],
        trainer_logprobs=None if trainer is None else numbers(trainer, "action_log_probs")[response],
        mask=flags(loss, "loss_mask")[response],
        prompt_tokens=ids[:start],
        settings=settings(row),
        places=places(row),
    )


def read_openrlhf(row: Row, context: Context) -> Iterator[SequenceRecord]:
    """Value i of the action columns belongs to the i-th of the last tokens, as many as there are values."""
    action = flags(row["action_mask"], "action_mask")
    ids = whole(row["sequences"], "sequences")
    begin = len(ids) - len(action)
    start = int(np.argmax(action)) if action.any() else len(action)
    attended = row.get("attention_mask")
    real = np.ones(len(ids), dtype=bool) if attended is None else flags(attended, "attention_mask")
    trainer = row.get("action_log_probs")
    yield SequenceRecord(
        tokens=ids[begin + start :],
        engine_logprobs=numbers(row["rollout_log_probs"], "rollout_log_probs")[start:],
        trainer_logprobs=None if trainer is None else numbers(trainer, "action_log_probs")[start:],
        mask=action[start:],
        prompt_tokens=ids[: begin + start][real[: begin + start]],
        settings=settings(row),
        places=places(row),
    )


FORMATS = (
    Format(
        "verl",
        (fields("responses", "rollout_log_probs"), fields("responses", "old_log_probs")),
        read_verl,
        "log old_log_probs beside rollout_log_probs",
    ),
    Format(
        "trl",
        (fields("completion_ids", "sampling_per_token_logps"),),
        read_trl,
        "TRL computes old_per_token_logps with vllm_importance_sampling_correction=True; log it too",
    ),
    Format(
        "skyrl",
        (fields("sequences", "response_mask", "rollout_logprobs"),),
        read_skyrl,
        "SkyRL computes action_log_probs in its forward pass; log it too",
    ),
    Format(
        "openrlhf",
        (fields("sequences", "action_mask", "rollout_log_probs"),),
        read_openrlhf,
        "log action_log_probs too",
    ),
)
