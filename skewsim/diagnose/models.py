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
from skewsim.diagnose.ties import Choices, Ties, tokens_of
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
            ids = _padded([records[index] for index in batch])
            cut = 0 if older is None or old_tokens is None else int(old_tokens[batch[0]])
            hidden = self._hidden(ids, dtype, kv_cache_dtype, older, cut)
            for row, index in enumerate(batch):
                rows = _predicting(records[index]) - cut
                rows = rows.clamp(min=0)  # logits before the cut are not this configuration's: nobody reads them
                parts[index] = hidden[row, rows]
        return parts

    @torch.inference_mode()
    def ties(self, records: Sequence[SequenceRecord], dtype: str) -> Ties | None:
        """What rounding to `dtype` does to the routers' choices, for the sampled tokens of all records in their order.

        None if the model is no mixture of experts, or one that chooses otherwise than by the largest logits.
        """
        if not _routers(self.model):
            return None
        batches = _batches(records, None, self.batch_tokens)
        chosen = [[records[index] for index in batch] for batch in batches]
        parts = [Ties.of(self._choices(each, "float32"), self._choices(each, dtype)) for each in chosen]
        return Ties.joined(parts, tokens_of(records, batches))

    @torch.inference_mode()
    def experts(self, records: Sequence[SequenceRecord]) -> Ints | None:
        """(sampled tokens of all records, L, k) the experts that the model chooses, in record order. None if the model
        is no mixture of experts."""
        if not _routers(self.model):
            return None
        batches = _batches(records, None, self.batch_tokens)
        parts = [self._choices([records[index] for index in batch], "float32").chosen for batch in batches]
        found: Ints = np.concatenate(parts)[np.argsort(tokens_of(records, batches))]
        return found

    def _choices(self, records: Sequence[SequenceRecord], dtype: str) -> Choices:
        """What the routers make of the rows that predict the sampled tokens of one batch."""
        ids, body, told = _padded(records), self._cast(dtype), list[tuple[torch.Tensor, ...]]()
        hooks = [router.register_forward_hook(lambda _, __, found: told.append(found)) for router in _routers(body)]
        try:
            body.base_model(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        rows = torch.cat([_predicting(record) + number * ids.shape[1] for number, record in enumerate(records)])
        logits, experts = (torch.stack([each[n][rows] for each in told], 1) for n in (0, -1))
        return Choices(logits.float().numpy(), experts.numpy())

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


def _routers(model: Any) -> list[Any]:
    """The routers of a mixture of experts, as transformers calls them; each gives (logits (rows, X), weights, experts
    (rows, k))."""
    return [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]


def _padded(records: Sequence[SequenceRecord]) -> torch.Tensor:
    """(records, longest) the tokens of prompts and responses."""
    tokens = [_whole(record) for record in records]
    ids = torch.zeros(len(tokens), max(len(row) for row in tokens), dtype=torch.long)
    for row, values in enumerate(tokens):
        ids[row, : len(values)] = torch.from_numpy(values)
    return ids


def _predicting(record: SequenceRecord) -> torch.Tensor:
    """The row before each sampled token, counted from the prompt's first token."""
    start = len(_whole(record)) - len(record.tokens)
    return torch.from_numpy(np.flatnonzero(record.sampled)) + start - 1


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
