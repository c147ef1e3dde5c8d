"""Scoring sequences with a Hugging Face model, also at another precision or over keys and values of older weights.

A `ModelScorer` gives full logits at each response token. `dtype` and `head_dtype` cast body and lm_head; with an
`older` scorer the keys and values of the first tokens are its, and only the rest is computed by this one: what an
engine does whose cache outlived a weight update. Folders are read without pickle and without remote code.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skewsim.diagnose.rows import Floats, Ints
from skewsim.model.huggingface import load_model
from skewsim.skew.sequences import SequenceRecord

BATCH_TOKENS = 8192


@dataclass(eq=False)
class ModelScorer:
    """A causal language model that scores; casts are made once and kept."""

    name: str
    model: Any
    _casts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path | str) -> ModelScorer:
        """A local Hugging Face folder with safetensors. FileFormatError if it is none."""
        model = load_model(folder, dtype=torch.float32)
        model.train(False)
        return cls(Path(folder).name, model)

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
        older: ModelScorer | None = None,
        old_tokens: Sequence[int] | None = None,
    ) -> Floats:
        """(sampled tokens of all records, V) float32 logits at temperature 1, in record order.

        With `older`, the first ``old_tokens[i]`` tokens of prompt and response i keep its keys and values.
        """
        parts: list[Floats | None] = [None] * len(records)
        for batch in _batches(records, old_tokens):
            tokens = [_whole(records[index]) for index in batch]
            ids = torch.zeros(len(batch), max(len(row) for row in tokens), dtype=torch.long)
            for row, values in enumerate(tokens):
                ids[row, : len(values)] = torch.from_numpy(values)
            cut = 0 if older is None or old_tokens is None else int(old_tokens[batch[0]])
            hidden = self._hidden(ids, dtype, older, cut)
            for row, index in enumerate(batch):
                record = records[index]
                start = len(tokens[row]) - len(record.tokens)
                rows = torch.from_numpy(np.flatnonzero(record.sampled)) + start - 1 - cut
                rows = rows.clamp(min=0)  # logits before the cut are not this configuration's: nobody reads them
                parts[index] = self._head(hidden[row, rows], head_dtype)
        return np.concatenate([part for part in parts if part is not None])

    def _hidden(self, ids: torch.Tensor, dtype: str, older: ModelScorer | None, cut: int) -> torch.Tensor:
        """Last hidden states from position `cut` on; right padding needs no mask in a causal model."""
        body = self._cast(dtype)
        if older is None or cut == 0:
            plain: torch.Tensor = body.base_model(input_ids=ids, use_cache=False).last_hidden_state
            return plain
        cache = older._cast(dtype).base_model(input_ids=ids[:, :cut], use_cache=True).past_key_values
        rest = body.base_model(input_ids=ids[:, cut:], past_key_values=cache, use_cache=True)
        mixed: torch.Tensor = rest.last_hidden_state
        return mixed

    def _head(self, hidden: torch.Tensor, head_dtype: str) -> Floats:
        kind = getattr(torch, head_dtype)
        head = self.model.get_output_embeddings()
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


def _whole(record: SequenceRecord) -> Ints:
    prompt = record.prompt_tokens if record.prompt_tokens is not None else np.zeros(0, dtype=np.int64)
    return np.concatenate([prompt, record.tokens]).astype(np.int64)


def _batches(records: Sequence[SequenceRecord], old_tokens: Sequence[int] | None) -> list[list[int]]:
    """Indices of records of like length (and like cut), at most `BATCH_TOKENS` padded tokens a batch."""
    cut = [0] * len(records) if old_tokens is None else [int(value) for value in old_tokens]
    length = [len(_whole(record)) for record in records]
    batches: list[list[int]] = []
    for index in sorted(range(len(records)), key=lambda i: (cut[i], length[i])):
        if batches and cut[batches[-1][0]] == cut[index] and (len(batches[-1]) + 1) * length[index] <= BATCH_TOKENS:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
