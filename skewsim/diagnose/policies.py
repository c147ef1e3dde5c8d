"""Scoring sequences with the simulator's own policy: what `models.ModelScorer` does with a folder, without
transformers.

The terminal UI holds the weights of the run that it shows, and of the versions before them, so it can name causes that
the logprobs alone do not tell apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skewsim.diagnose.predict import Scorer
from skewsim.diagnose.rows import Floats, Ints
from skewsim.diagnose.ties import Choices, Ties, tokens_of
from skewsim.engine.kv_cache import KVCache
from skewsim.model.experts import Routes
from skewsim.model.policy import Policy, PolicyConfig, Weights
from skewsim.skew.sequences import SequenceRecord

SMALLEST = 1e-38
"""Of a probability whose logarithm is taken."""


@dataclass(eq=False)
class PolicyScorer:
    """One member's weights as a `predict.Scorer`; every record has prompt tokens."""

    version: int
    policy: Policy

    @property
    def name(self) -> str:
        return f"version {self.version}"

    @property
    def vocab_size(self) -> int:
        return self.policy.config.vocab_size

    @torch.inference_mode()
    def logits(
        self,
        records: Sequence[SequenceRecord],
        *,
        dtype: str = "float32",
        head_dtype: str = "float32",
        kv_cache_dtype: str = "auto",
        older: PolicyScorer | None = None,
        old_tokens: Sequence[int] | None = None,
    ) -> Floats:
        """(sampled tokens of all records, V) float32 logits at temperature 1, in record order.

        With `older`, the first ``old_tokens[i]`` tokens of prompt and response i keep its keys and values. With
        a `kv_cache_dtype` of `kv_cache.STORED` all keys and values are rounded so.
        """
        weights = self.policy.weights(dtype=dtype, head_dtype=head_dtype)
        before = weights if older is None else older.policy.weights(dtype=dtype, head_dtype=head_dtype)
        whole = [_whole(record) for record in records]
        cuts = [0] * len(records) if older is None or old_tokens is None else list(old_tokens)
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, (tokens, cut) in enumerate(zip(whole, cuts, strict=True)):
            alike[len(tokens), max(int(cut), 0)].append(index)
        parts: list[Floats] = [np.empty((0, self.vocab_size), np.float32)] * len(records)
        for (length, cut), batch in alike.items():
            ids = torch.from_numpy(np.stack([whole[index] for index in batch])).unsqueeze(0)
            cache = KVCache.empty(before, 1, len(batch), room=length, dtype=kv_cache_dtype)
            if cut:
                cache.extend(before, ids[:, :, :cut])
            hidden = cache.extend_all(weights, ids[:, :, cut:])
            for row, index in enumerate(batch):
                record = records[index]
                read = torch.from_numpy(np.flatnonzero(record.sampled)) + length - len(record.tokens) - 1 - cut
                chosen = hidden[
                    :, row, read.clamp(min=0)
                ]  # what lies before the cut is not this one's: nobody reads it
                parts[index] = weights.logits(chosen)[0].numpy()
        return np.concatenate(parts)

    @torch.inference_mode()
    def ties(self, records: Sequence[SequenceRecord], dtype: str) -> Ties | None:
        """What rounding to `dtype` does to the routers' choices, for the sampled tokens of all records in their order;
        None if the policy is no mixture of experts."""
        if self.policy.config.route is None:
            return None
        exact, rounded = (self.policy.weights(dtype=each, head_dtype="float32") for each in ("float32", dtype))
        alike: dict[int, list[int]] = defaultdict(list)
        for index, record in enumerate(records):
            alike[len(_whole(record))].append(index)
        chosen = [[records[index] for index in batch] for batch in alike.values()]
        parts = [Ties.of(_choices(exact, each), _choices(rounded, each)) for each in chosen]
        return Ties.joined(parts, tokens_of(records, list(alike.values())))


def _choices(weights: Weights, records: Sequence[SequenceRecord]) -> Choices:
    """What the routers make of the rows that predict the sampled tokens of some records of one length.

    Routers are told by their softmax, whose logarithm has the differences of the logits.
    """
    ids, taken = torch.from_numpy(np.stack([_whole(record) for record in records])), Routes()
    cache = KVCache.empty(weights, 1, len(records), room=ids.shape[1])
    cache.extend_all(weights, ids.unsqueeze(0), taken)
    starts = [number * ids.shape[1] + len(_prompt(record)) - 1 for number, record in enumerate(records)]
    rows = np.concatenate([np.flatnonzero(r.sampled) + start for r, start in zip(records, starts, strict=True)])
    probs = torch.stack(taken.probs, dim=-2)[0, rows]
    return Choices(probs.clamp_min(SMALLEST).log().numpy(), taken.chosen[0, rows].numpy())


def policy_scorers(config: PolicyConfig, weights: Mapping[int, Tensor]) -> list[Scorer]:
    """Scorers of flat weights (1, D) by their versions, newest first, as `diagnose` wants them."""
    newest_first = sorted(weights.items(), reverse=True)
    return [PolicyScorer(version, Policy(config, flat)) for version, flat in newest_first]  # type: ignore[misc]


def _whole(record: SequenceRecord) -> Ints:
    return np.concatenate([_prompt(record), record.tokens]).astype(np.int64)


def _prompt(record: SequenceRecord) -> Floats:
    assert record.prompt_tokens is not None, "the first token's logprob depends on the prompt"
    return record.prompt_tokens
