"""A vLLM plugin that computes lm_head at a precision of its own, for versions without ``head_dtype`` (before 0.26).

    PYTHONPATH=.../harness/plugin SKEWSIM_HEAD_DTYPE=float32 vllm serve MODEL

vLLM finds it by its entry point in every process that it starts. Hidden states and the head's weight are cast and
multiplied at that precision. The cast copy of the weight is kept between steps, and so it must be dropped whenever the
weights change: otherwise the engine would go on with a new body and an old head.
"""

from __future__ import annotations

import functools
import os
import weakref
from typing import Any

VARIABLE = "SKEWSIM_HEAD_DTYPE"
DTYPES = ("float32", "bfloat16", "float16")

_copies: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""Head -> its weight, cast, and the memory address of the weight that was cast."""


def register() -> None:
    """Called by vLLM in each process; does nothing if the variable is not set."""
    dtype = os.environ.get(VARIABLE)
    if not dtype:
        return
    if dtype not in DTYPES:
        raise ValueError(f"{VARIABLE}={dtype!r}; allowed: {', '.join(DTYPES)}")
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    if getattr(LogitsProcessor, "skewsim_head_dtype", None):
        return
    LogitsProcessor._get_logits = _logits(dtype)
    LogitsProcessor.skewsim_head_dtype = dtype
    _watch_updates()


def active() -> str | None:
    """The head's dtype, if the plugin computes the head."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    return getattr(LogitsProcessor, "skewsim_head_dtype", None)


def forget() -> None:
    """Drop the cast copies: the weights have changed."""
    _copies.clear()


def _logits(dtype_name: str) -> Any:
    import torch

    dtype = getattr(torch, dtype_name)

    def get_logits(self: Any, hidden_states: Any, lm_head: Any, embedding_bias: Any = None, *more: Any) -> Any:
        weight, source = _copies.get(lm_head, (None, 0))
        if weight is None or source != lm_head.weight.data_ptr():
            weight = lm_head.weight.detach().to(dtype, copy=True)
            _copies[lm_head] = weight, lm_head.weight.data_ptr()
        bias = None if embedding_bias is None else embedding_bias.to(dtype)
        logits = torch.nn.functional.linear(hidden_states.to(dtype), weight, bias)
        logits = self._gather_logits(logits)
        return None if logits is None else logits[..., : self.org_vocab_size]

    return get_logits


def _watch_updates() -> None:
    """Drop the copies when weights are loaded: every way of doing so calls the weight loader of embedding and head."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    load = VocabParallelEmbedding.weight_loader

    @functools.wraps(load)
    def weight_loader(*args: Any, **kwargs: Any) -> Any:
        forget()
        return load(*args, **kwargs)

    VocabParallelEmbedding.weight_loader = weight_loader
