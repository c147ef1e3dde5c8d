"""Scoring sequences with a Hugging Face model, also at another precision or over keys and values of older weights.

A `ModelScorer` gives full logits at each response token. `dtype` and `head_dtype` cast body and lm_head; with an
`older` scorer the keys and values of the first tokens are its, and only the rest is computed by this one: what an
engine does whose cache outlived a weight update. Folders are read without pickle and without remote code.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skewsim.diagnose.rows import Floats, Ints
from skewsim.engine.kv_cache import STORED
from skewsim.errors import UserError
from skewsim.model.huggingface import load_model
from skewsim.skew.sequences import SequenceRecord

BATCH_TOKENS = 8192
STATES = 2**28  # bytes of hidden states that are kept


@dataclass(frozen=True)
class _Kept:
    """Last hidden states, so that another head or temperature needs no pass of the body."""

    states: list[torch.Tensor]
    belong_to: object
    """What they were computed of: known by its identity, and held so that nothing else can get the same."""

    @property
    def size(self) -> int:
        return sum(each.nbytes for each in self.states)


@dataclass(eq=False)
class ModelScorer:
    """A causal language model that scores; casts are made once and kept."""

    name: str
    model: Any
    batch_tokens: int = BATCH_TOKENS
    """Padded tokens of prompts and responses that go through the body at once."""
    _casts: dict[str, Any] = field(default_factory=dict)
    _kept: OrderedDict[tuple[object, ...], _Kept] = field(default_factory=OrderedDict)

    @classmethod
    def from_folder(cls, folder: Path | str, *, batch_tokens: int | None = None) -> ModelScorer:
        """A local Hugging Face folder with safetensors. FileFormatError if it is none."""
        if batch_tokens is not None and batch_tokens < 1:
            raise UserError(f"batch_tokens={batch_tokens}; allowed: at least 1")
        model = load_model(folder, dtype=torch.float32)
        model.train(False)
        return cls(Path(folder).name, model, batch_tokens or BATCH_TOKENS)

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    @torch.inference_mode()
    def logits(
        self,
        records: Sequence[SequenceRecord],
        *,
        dtype: str = "float32",
        head_dtype: str = "float32",
        kv_cache_dtype: str = "auto",
        older: ModelScorer | None = None,
        old_tokens: Sequence[int] | None = None,
    ) -> Floats:
        """(sampled tokens of all records, V) float32 logits at temperature 1, in record order.

        With `older`, the first ``old_tokens[i]`` tokens of prompt and response i keep its keys and values. With
        a `kv_cache_dtype` of `kv_cache.STORED` all keys and values are rounded as vLLM's cache does it (e4m3, scale 1).
        """
        states = self._of(records, dtype, kv_cache_dtype, older, old_tokens)
        return np.concatenate([self._head(each, dtype, head_dtype) for each in states])

    def _of(
        self,
        records: Sequence[SequenceRecord],
        dtype: str,
        kv_cache_dtype: str,
        older: ModelScorer | None,
        old_tokens: Sequence[int] | None,
    ) -> list[torch.Tensor]:
        """The last hidden states (sampled tokens, width) of each record; those computed last are kept."""
        key = (
            tuple(map(id, records)),
            dtype,
            kv_cache_dtype,
            id(older),
            None if older is None else tuple(old_tokens or ()),
        )
        if key not in self._kept:
            states = self._computed(records, dtype, kv_cache_dtype, older, old_tokens)
            self._kept[key] = _Kept(states, (tuple(records), older))
            while len(self._kept) > 1 and sum(each.size for each in self._kept.values()) > STATES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key].states

    def _computed(
        self,
        records: Sequence[SequenceRecord],
        dtype: str,
        kv_cache_dtype: str,
        older: ModelScorer | None,
        old_tokens: Sequence[int] | None,
    ) -> list[torch.Tensor]:
        parts: list[torch.Tensor] = [torch.empty(0)] * len(records)
        for batch in _batches(records, old_tokens, self.batch_tokens):
            tokens = [_whole(records[index]) for index in batch]
            ids = torch.zeros(len(batch), max(len(row) for row in tokens), dtype=torch.long)
            for row, values in enumerate(tokens):
                ids[row, : len(values)] = torch.from_numpy(values)
            cut = 0 if older is None or old_tokens is None else int(old_tokens[batch[0]])
            hidden = self._hidden(ids, dtype, kv_cache_dtype, older, cut)
            for row, index in enumerate(batch):
                record = records[index]
                start = len(tokens[row]) - len(record.tokens)
                rows = torch.from_numpy(np.flatnonzero(record.sampled)) + start - 1 - cut
                rows = rows.clamp(min=0)  # logits before the cut are not this configuration's: nobody reads them
                parts[index] = hidden[row, rows]
        return parts

    def _hidden(
        self, ids: torch.Tensor, dtype: str, kv_cache_dtype: str, older: ModelScorer | None, cut: int
    ) -> torch.Tensor:
        """Last hidden states from position `cut` on; right padding needs no mask in a causal model."""
        body = self._cast(dtype)
        cache = _rounded_cache(body.config, STORED[kv_cache_dtype]) if kv_cache_dtype in STORED else None
        if older is not None and cut > 0:
            before = older._cast(dtype).base_model(input_ids=ids[:, :cut], past_key_values=cache, use_cache=True)
            cache, ids = before.past_key_values, ids[:, cut:]
        states: torch.Tensor = body.base_model(
            input_ids=ids, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        return states

    def _head(self, hidden: torch.Tensor, dtype: str, head_dtype: str) -> Floats:
        """Logits of a head that is held in `dtype`, as all of an engine's weights are, and computed in `head_dtype`."""
        kind = getattr(torch, head_dtype)
        head = self._cast(dtype).get_output_embeddings()
        bias = None if getattr(head, "bias", None) is None else head.bias.to(kind)
        logits = torch.nn.functional.linear(hidden.to(kind), head.weight.to(kind), bias)
        values: Floats = logits.float().numpy()
        return values

    def _cast(self, dtype: str) -> Any:
        if dtype == "float32":
            return self.model
        if dtype not in self._casts:
            self._casts[dtype] = copy.deepcopy(self.model).to(getattr(torch, dtype))
        return self._casts[dtype]


def _rounded_cache(config: Any, rounded: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """transformers' cache of keys and values, rounded when they are stored."""
    from transformers import DynamicCache

    class Rounded(DynamicCache):
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            return super().update(rounded(key_states), rounded(value_states), *args, **kwargs)

    return Rounded(config=config)


def _whole(record: SequenceRecord) -> Ints:
    prompt = record.prompt_tokens if record.prompt_tokens is not None else np.zeros(0, dtype=np.int64)
    return np.concatenate([prompt, record.tokens]).astype(np.int64)


def _batches(records: Sequence[SequenceRecord], old_tokens: Sequence[int] | None, limit: int) -> list[list[int]]:
    """Indices of records of like length (and like cut), at most `limit` padded tokens a batch."""
    cut = [0] * len(records) if old_tokens is None else [int(value) for value in old_tokens]
    length = [len(_whole(record)) for record in records]
    batches: list[list[int]] = []
    for index in sorted(range(len(records)), key=lambda i: (cut[i], length[i])):
        if batches and cut[batches[-1][0]] == cut[index] and (len(batches[-1]) + 1) * length[index] <= limit:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
