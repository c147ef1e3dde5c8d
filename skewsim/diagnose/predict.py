"""What an explanation would report: the logprobs of a configuration, computed with the models at hand.

A configuration says which weights, whose keys and values, which precision, which temperature and truncation. Logits
are kept for the few configurations used last, so a log is scored on as many sequences as a fixed memory allows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from skewsim.diagnose.rows import Bools, Floats, Rows
from skewsim.errors import UserError
from skewsim.skew.sequences import SequenceRecord

BUDGET = 60_000_000  # logits held at a time; longer logs are diagnosed on their first sequences
KEPT = 4  # logit matrices
LOGGED = -1  # each sequence's boundary is where its logged weight version first changes


class Scorer(Protocol):
    """What `skewsim.diagnose.models.ModelScorer` does; anything else with these two will do."""

    @property
    def name(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    def logits(
        self,
        records: Sequence[SequenceRecord],
        *,
        dtype: str = "float32",
        head_dtype: str = "float32",
        older: Scorer | None = None,
        old_tokens: Sequence[int] | None = None,
    ) -> Floats: ...


@dataclass(frozen=True)
class Config:
    """One side of the comparison."""

    weights: int = 0
    """Index of the model that computes: 0 is the newest."""
    by_version: bool = False
    """Each token by the weights of its logged version."""
    prefix: tuple[int, int] | None = None
    """(model whose keys and values the prompt keeps, block size)."""
    boundary: tuple[int, int, bool] | None = None
    """(older model, token at which `weights` take over or `LOGGED`, old keys and values kept)."""
    dtype: str = "float32"
    head_dtype: str = "float32"
    temperature: float | None = None
    """None: the request's."""
    truncation: tuple[float, int, float] | None = None
    """(top_p, top_k, min_p), renormalised; None: the whole vocabulary."""


@dataclass(eq=False)
class Models:
    """Scorers, newest first, and the sequences they score; logits are kept for a few configurations."""

    scorers: Sequence[Scorer]
    records: Sequence[SequenceRecord]
    _logits: OrderedDict[tuple[object, ...], Floats] = field(default_factory=OrderedDict)

    @property
    def dated(self) -> bool:
        """Whether it is known which version of the weights each model is."""
        return all(hasattr(scorer, "version") for scorer in self.scorers)

    def predict(self, config: Config, rows: Rows) -> Floats:
        """The configuration's logprob of each row's token."""
        if config.by_version:
            return self._each_version(config, rows)
        if config.boundary is not None:
            return self._across(config, rows)
        return _logprobs(self._matrix(config)[rows.index], config, rows)

    def _matrix(self, config: Config) -> Floats:
        key = (config.weights, config.prefix, config.dtype, config.head_dtype, config.boundary)
        if key not in self._logits:
            self._logits[key] = self._score(config)
            while len(self._logits) > KEPT:
                self._logits.popitem(last=False)
        self._logits.move_to_end(key)
        return self._logits[key]

    def _score(self, config: Config) -> Floats:
        scorer, older, cut = self.scorers[config.weights], None, None
        prompts = [0 if record.prompt_tokens is None else len(record.prompt_tokens) for record in self.records]
        if config.prefix is not None:
            older = self.scorers[config.prefix[0]]
            cut = [(length - 1) // config.prefix[1] * config.prefix[1] for length in prompts]
        elif config.boundary is not None:
            older = self.scorers[config.boundary[0]]
            # the token before the boundary is the first that the new weights read
            cut = [
                p + min(at, len(r.tokens)) - 1
                for p, at, r in zip(prompts, self._takeover(config), self.records, strict=True)
            ]
        return scorer.logits(
            self.records, dtype=config.dtype, head_dtype=config.head_dtype, older=older, old_tokens=cut
        )

    def _takeover(self, config: Config) -> list[int]:
        """The first token of each sequence that comes from the newer weights."""
        assert config.boundary is not None
        if config.boundary[1] != LOGGED:
            return [config.boundary[1]] * len(self.records)
        found = []
        for record in self.records:
            versions = record.weight_versions
            changed = np.zeros(0, dtype=int) if versions is None else np.flatnonzero(versions != versions[0])
            found.append(int(changed[0]) if len(changed) else len(record.tokens))
        return found

    def _each_version(self, config: Config, rows: Rows) -> Floats:
        """Distinct versions, newest first, are taken for the models in their order."""
        plain = replace(config, by_version=False)
        result = np.empty(len(rows))
        for version, weights in model_of_version(rows, self.scorers).items():
            chosen = rows.version == version
            result[chosen] = self.predict(replace(plain, weights=weights), rows)[chosen]
        return result

    def _across(self, config: Config, rows: Rows) -> Floats:
        assert config.boundary is not None
        old, _, kept = config.boundary
        takeover = np.array(self._takeover(config))[rows.sequence]
        before = self.predict(replace(config, boundary=None, weights=old), rows)
        if kept:
            after = _logprobs(self._matrix(config)[rows.index], config, rows)
        else:
            after = self.predict(replace(config, boundary=None), rows)
        return np.where(rows.position < takeover, before, after)


def model_of_version(rows: Rows, scorers: Sequence[Scorer]) -> dict[int, int]:
    """Logged version -> model: the nearest where models have a `version`; else by how many versions it is behind, or
    in order where the numbers are further apart.
    """
    versions, models = [int(version) for version in np.unique(rows.version)[::-1]], len(scorers)
    dates = [scorer.version for scorer in scorers if hasattr(scorer, "version")]
    if len(dates) == models:
        return {version: min(range(models), key=lambda m: abs(dates[m] - version)) for version in versions}
    if versions[0] - versions[-1] < models:
        return {version: versions[0] - version for version in versions}
    return {version: min(order, models - 1) for order, version in enumerate(versions)}


def _logprobs(logits: Floats, config: Config, rows: Rows) -> Floats:
    temperature = temperatures(rows) if config.temperature is None else np.full(len(rows), config.temperature)
    scaled = logits / temperature[:, None]
    picked: Floats = np.take_along_axis(scaled, rows.token[:, None], axis=1)[:, 0].astype(np.float64)
    if config.truncation is not None:
        scaled = np.where(_support(scaled, *config.truncation), scaled, -np.inf)
    top = scaled.max(axis=1)
    result: Floats = picked - top - np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return result


def temperatures(rows: Rows) -> Floats:
    """The request's; 1 where it is not known, or where decoding was greedy and nothing was divided."""
    given = np.nan_to_num(rows.settings["temperature"], nan=1.0)
    return np.where(given > 1e-3, given, 1.0)


def _support(scaled: Floats, top_p: float, top_k: int, min_p: float) -> Bools:
    """vLLM's order: min-p, top-k, top-p."""
    probs = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    kept: Bools = probs >= min_p
    if 0 < top_k < scaled.shape[1]:
        kept &= probs >= -np.partition(-probs, top_k - 1, axis=1)[:, top_k - 1 : top_k]
    if top_p < 1:
        inside = np.where(kept, probs, 0.0)
        order = np.argsort(-inside, axis=1, kind="stable")
        ordered = np.take_along_axis(inside, order, axis=1)
        before = np.cumsum(ordered, axis=1) - ordered
        keep = before < top_p * inside.sum(axis=1, keepdims=True)
        mask = np.zeros_like(kept)
        np.put_along_axis(mask, order, keep, axis=1)
        kept &= mask
    return kept


def prepare(scorers: Sequence[Scorer], records: Sequence[SequenceRecord]) -> tuple[Models, int]:
    """(models, sequences used): as many sequences as the memory for logits allows. UserError if they cannot be
    scored.
    """
    vocab = scorers[0].vocab_size
    used, tokens = 0, 0
    for record in records:
        if record.prompt_tokens is None or len(record.prompt_tokens) == 0:
            raise UserError(
                "--model needs prompt_token_ids in every line: the first token's logprob depends on the prompt"
            )
        for ids in (record.tokens, record.prompt_tokens):
            for odd in ids[(ids < 0) | (ids >= vocab)]:
                raise UserError(f"token id {odd} is outside the vocabulary of {scorers[0].name} ({vocab})")
        tokens += int(record.sampled.sum())
        if tokens * vocab > BUDGET and used >= 8:
            break
        used += 1
    return Models(scorers, records[:used]), used
