"""NeMo-RL: `train_data_step*.jsonl`, a sequence a line: `token_ids`, `token_loss_mask`, `generation_logprobs` (engine),
`prev_logprobs` (trainer), padded on the right; value i belongs to token i (nemo_rl/algorithms/grpo.py). Every value is
a batch of one, so that a list of numbers is the only member of a list (nemo_rl/utils/logger.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.logs.rows import Context, Format, Row, fields, flags, numbers, places, settings, whole, whole_sequence
from skewsim.skew.sequences import SequenceRecord

SKIPPED = "loss_fn.force_on_policy_ratio skips it unless grpo.seq_logprob_error_threshold is set"


def read(row: Row, context: Context) -> Iterator[SequenceRecord]:
    row = {name: _only(value) for name, value in row.items()}
    engine = numbers(row["generation_logprobs"], "generation_logprobs")
    length = int(row.get("input_lengths") or len(engine))
    if not 0 < length <= len(engine):
        raise ValueError(f"input_lengths={length}, but generation_logprobs has {len(engine)} values")
    mask, tokens, trainer = row.get("token_loss_mask"), row.get("token_ids"), row.get("prev_logprobs")
    if mask is None:
        context.notes.say("no token_loss_mask: what has an engine logprob of exactly 0 counts as not sampled")
    if trainer is not None and not any(trainer):
        context.notes.say(f"prev_logprobs is a placeholder of zeros, not the trainer's: {SKIPPED}")
        trainer = None
    step = re.search(r"step(\d+)", context.file.name)
    record = whole_sequence(
        np.full(length, -1) if tokens is None else whole(tokens, "token_ids")[:length],
        engine[:length],
        (engine != 0)[:length] if mask is None else flags(mask, "token_loss_mask")[:length],
        trainer=None if trainer is None else numbers(trainer, "prev_logprobs")[:length],
        settings=settings(row),
        places=({"step": int(step[1])} if step else {}) | places(row),
    )
    if tokens is not None:
        yield record
    else:
        yield SequenceRecord(
            record.tokens, record.engine_logprobs, record.trainer_logprobs, mask=record.mask, places=record.places
        )


def _only(value: Any) -> Any:
    """The member of a batch of one; anything else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


FORMATS = (
    Format(
        "nemo-rl",
        (fields("generation_logprobs", "prev_logprobs"), fields("token_ids", "generation_logprobs")),
        read,
        f"NeMo-RL logs prev_logprobs too, but {SKIPPED}",
    ),
)
