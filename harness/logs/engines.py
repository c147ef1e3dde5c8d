"""Logs of what an engine alone says: PipelineRL's streams, open-instruct's rollouts, answers of an OpenAI-like server.

- PipelineRL: streams of `TrainingText` lists: `input_ids`, `labels` (-100: not sampled), `logprobs`,
  `metadata.model_version`, `group_id` (pipelinerl/rollouts.py, pipelinerl/streams.py).
- open-instruct (`--save_traces True --rollouts_save_path D`): `prompt_tokens`, `response_tokens`, `logprobs`, `step`,
  `prompt_idx` (open_instruct/rl_utils.py).
- vLLM and SGLang: an answer of /v1/chat/completions (`choices[].logprobs.content[]`) or /v1/completions
  (`choices[].logprobs.token_logprobs`) a row; ids from `return_token_ids` or `return_tokens_as_token_ids`
  (vllm/entrypoints/openai).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.logs.rows import Context, Format, Row, field_of, fields, first, numbers, places, settings, spread, whole
from skewsim.skew.sequences import SequenceRecord

IGNORED_LABEL = -100  # Hugging Face's "no loss here"
TOKEN_ID = "token_id:"


def read_pipelinerl(row: Row | list[Row], context: Context) -> Iterator[SequenceRecord]:
    if isinstance(row, list):
        for text in row:
            yield from read_pipelinerl(text, context)
        return
    ids, given = whole(row["input_ids"], "input_ids"), numbers(row["logprobs"], "logprobs")
    labels = row.get("labels")
    sampled = np.arange(len(ids)) >= len(ids) - len(given)
    if labels is not None and len(labels) == len(ids):
        sampled = whole(labels, "labels") != IGNORED_LABEL
    start = int(np.argmax(sampled)) if sampled.any() else len(ids)
    version = (row.get("metadata") or {}).get("model_version", row.get("model_version"))
    yield SequenceRecord(
        tokens=ids[start:],
        engine_logprobs=spread(given, sampled)[start:],
        weight_versions=None if version is None else np.full(len(ids) - start, int(version)),
        mask=sampled[start:],
        prompt_tokens=ids[:start],
        prompt_key=row.get("group_id"),
        settings=settings(row),
        places=places(row),
    )


def read_open_instruct(row: Row, context: Context) -> Iterator[SequenceRecord]:
    if row.get("logprobs") is None:
        raise ValueError("logprobs is null: the run's engine was not asked for them")
    yield SequenceRecord(
        tokens=row["response_tokens"],
        engine_logprobs=row["logprobs"],
        prompt_tokens=row.get("prompt_tokens"),
        settings=settings(row),
        places=places(row),
    )


def read_answer(row: Row, context: Context) -> Iterator[SequenceRecord]:
    request, answer = row.get("request") or {}, row.get("response") or row
    prompt = first(answer, "prompt_token_ids")
    for choice in field_of(answer, "choices", list):
        tokens, given = _choice(choice)
        if (tokens < 0).any():
            context.notes.say("no token ids; ask with return_token_ids: true to have them")
        yield SequenceRecord(
            tokens=tokens,
            engine_logprobs=given,
            prompt_tokens=first(choice, "prompt_token_ids") or prompt,
            settings=settings(request) | settings(answer),
            places=places(answer),
        )


def _choice(choice: Row) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, -1 where unknown, and logprobs of one answer."""
    logprobs = choice.get("logprobs")
    if not logprobs:
        raise ValueError("no logprobs; ask for them with logprobs: true (chat) or logprobs: 0 (completions)")
    chat = logprobs.get("content")
    given = [each["logprob"] for each in chat] if chat is not None else logprobs["token_logprobs"]
    words = [each["token"] for each in chat] if chat is not None else logprobs["tokens"]
    ids = choice.get("token_ids")
    return whole([_id(word) for word in words] if ids is None else ids, "token_ids"), numbers(given, "logprobs")


def _id(word: Any) -> int:
    return int(word.removeprefix(TOKEN_ID)) if isinstance(word, str) and word.startswith(TOKEN_ID) else -1


_SCORE = "to have the trainer's, import to .jsonl and give it to skewsim diagnose --model, or log both with skewsim.callbacks"
FORMATS = (
    Format(
        "pipelinerl",
        (fields("input_ids", "logprobs"),),
        read_pipelinerl,
        f"PipelineRL's streams have the engine's only; {_SCORE}",
    ),
    Format(
        "open-instruct",
        (fields("response_tokens", "prompt_tokens", "logprobs"), fields("response_tokens", "logprobs")),
        read_open_instruct,
        f"open-instruct logs the engine's only; {_SCORE}",
    ),
    Format(
        "vllm",
        (fields("choices"), fields("response", "request")),
        read_answer,
        f"a server knows its own numbers only; {_SCORE}",
    ),
)
