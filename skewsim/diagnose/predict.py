"""What an explanation would report: the logprobs of a configuration, computed with the models at hand.

A configuration says which weights, whose keys and values, which precision, which temperature and truncation. Where all
logits of a log fit into a fixed memory, those of the few configurations used last are kept. Where they do not (those of
4,000 tokens over a vocabulary of 49,152 are 800 MB), the logits are computed piece by piece and only the logprobs kept;
the many configurations of a search are first compared on a sample of the sequences, the best is then computed on all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from skewsim.diagnose.rows import Bools, Floats, Ints, Rows
from skewsim.diagnose.ties import Ties
from skewsim.errors import UserError
from skewsim.skew.sequences import SequenceLog, SequenceRecord

BUDGET = 60_000_000  # logits of a matrix that is kept whole: 240 MB
PIECE = 2**24  # logits of a piece: 64 MB
SAMPLE = 12_000_000  # logits of the sample on which a search compares its configurations
KEPT = 4  # logit matrices
REMEMBERED = 64  # configurations whose logprobs are kept
BLOCK = 2**18  # logits whose softmax is taken at once: what a processor's cache holds
LOGGED = -1  # each sequence's boundary is where its logged weight version first changes


Progress = Callable[[int, int, str], None]
"""Told (sequences scored, of how many, with what) during a pass that takes long."""


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
        kv_cache_dtype: str = "auto",
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
    kv_cache_dtype: str = "auto"
    """``fp8``, ``fp8_truncated``: all keys and values are rounded to it, to the nearest or towards zero."""
    temperature: float | None = None
    """None: the request's."""
    truncation: tuple[float, int, float] | None = None
    """(top_p, top_k, min_p), renormalised; None: the whole vocabulary."""


@dataclass(eq=False)
class Models:
    """Scorers, newest first, and the sequences they score."""

    scorers: Sequence[Scorer]
    log: SequenceLog
    progress: Progress | None = None
    _logits: OrderedDict[tuple[object, ...], Floats] = field(default_factory=OrderedDict)
    _logprobs: OrderedDict[Config, Floats] = field(default_factory=OrderedDict)
    _ties: dict[tuple[int, str], Ties | None] = field(default_factory=dict)

    @property
    def records(self) -> tuple[SequenceRecord, ...]:
        return self.log.records

    @property
    def dated(self) -> bool:
        """Whether it is known which version of the weights each model is."""
        return all(hasattr(scorer, "version") for scorer in self.scorers)

    @cached_property
    def ends(self) -> Ints:
        """(sequences + 1,) the first row of each sequence, and the end."""
        return np.cumsum([0, *(int(record.sampled.sum()) for record in self.records)])

    @property
    def whole(self) -> bool:
        """Whether the logits of all rows fit into memory."""
        return int(self.ends[-1]) * self.scorers[0].vocab_size <= BUDGET

    def predict(self, config: Config, rows: Rows) -> Floats:
        """The configuration's logprob of each row's token."""
        if config.by_version:
            return self._each_version(config, rows)
        if config.boundary is not None:
            return self._across(config, rows)
        return self._under(config, rows)

    def _under(self, config: Config, rows: Rows) -> Floats:
        """The logprobs under the keys and values that `config` names."""
        if self.whole:
            return _logprobs(self._matrix(config)[rows.index], config, rows)
        if config not in self._logprobs:
            self._logprobs[config] = np.concatenate(list(self._in_pieces(config)))
            while len(self._logprobs) > REMEMBERED:
                self._logprobs.popitem(last=False)
        return self._logprobs[config][rows.index]

    def _in_pieces(self, config: Config) -> Iterator[Floats]:
        """The logprobs of every row, a few sequences at a time."""
        what = f"scoring with {self.scorers[config.weights].name}, body {config.dtype}, head {config.head_dtype}"
        for chosen in self._pieces:
            if self.progress is not None:
                self.progress(int(chosen[0]), len(self.records), what)
            part = self._of(chosen)
            yield _logprobs(part._score(config), config, part._rows)

    @cached_property
    def _pieces(self) -> list[Ints]:
        """Consecutive sequences whose logits fit into a piece (at least one sequence each)."""
        limit = max(PIECE // self.scorers[0].vocab_size, 1)
        pieces: list[list[int]] = []
        for number, end in enumerate(self.ends[1:]):
            if pieces and end - self.ends[pieces[-1][0]] <= limit:
                pieces[-1].append(number)
            else:
                pieces.append([number])
        return [np.array(piece) for piece in pieces]

    @cached_property
    def _rows(self) -> Rows:
        return Rows.from_log(self.log)

    def _of(self, chosen: Ints) -> Models:
        """The same models with some of the sequences."""
        return Models(self.scorers, self.log.where(np.isin(np.arange(len(self.records)), chosen)))

    @cached_property
    def _sample(self) -> tuple[Models, Ints]:
        """Sequences from all over the log, whose logits fit into `SAMPLE`, and their numbers."""
        share = SAMPLE / (int(self.ends[-1]) * self.scorers[0].vocab_size)
        count = min(max(round(share * len(self.records)), 8), len(self.records))
        chosen = np.unique(np.linspace(0, len(self.records) - 1, count).round().astype(np.int64))
        return self._of(chosen), chosen

    def sample(self, rows: Rows) -> tuple[Models, Bools]:
        """(models that keep their logits, which of these rows are theirs): all of them where memory allows."""
        if self.whole:
            return self, np.ones(len(rows), dtype=bool)
        models, chosen = self._sample
        return models, np.isin(rows.sequence, chosen)

    def sampled(self, rows: Rows, mask: Bools) -> Rows:
        """The sampled rows, numbered as their models number them."""
        if self.whole:
            return rows
        models, chosen = self._sample
        few = rows.select(mask)
        number = np.searchsorted(chosen, few.sequence)
        return replace(few, sequence=number, index=few.index - self.ends[few.sequence] + models.ends[number])

    def ties(self, weights: int, dtype: str, rows: Rows) -> Ties | None:
        """What rounding to `dtype` does to the choices of a model's routers; None if it has none, or does not tell."""
        if (weights, dtype) not in self._ties:
            self._ties[weights, dtype] = self._all_ties(self.scorers[weights], dtype)
        found = self._ties[weights, dtype]
        return None if found is None else found.select(rows.index)

    def routes_differ(self, rows: Rows) -> Ints | None:
        """In how many layers the newest model chooses other experts for each row's token than the engine of the log
        did; -1 where the log does not say, or says it of other layers than the model has. None where it never says, or
        the model has no routers."""
        scorer, given = self.scorers[0], [r.engine_routes for r in self.records if r.engine_routes is not None]
        if not hasattr(scorer, "experts") or not given:
            return None
        parts: list[Ints] = []
        layers: Ints | None = None
        for chosen in self._pieces:
            if self.progress is not None and not self.whole:
                self.progress(int(chosen[0]), len(self.records), f"scoring with {scorer.name}, its routes")
            records = [self.records[number] for number in chosen]
            if (own := scorer.experts(records)) is None:
                return None
            layers = _routed_layers(given, own.shape[1]) if layers is None else layers
            ends = np.cumsum([int(record.sampled.sum()) for record in records])[:-1]
            parts += [_differ(record, layers, each) for record, each in zip(records, np.split(own, ends), strict=True)]
        return np.concatenate(parts)[rows.index]

    @property
    def routed(self) -> bool:
        """Whether a model was found to have routers."""
        return any(found is not None for found in self._ties.values())

    def _all_ties(self, scorer: Scorer, dtype: str) -> Ties | None:
        """Those of every row, a few sequences at a time."""
        if not hasattr(scorer, "ties"):
            return None
        parts: list[Ties | None] = []
        for chosen in self._pieces:
            if self.progress is not None and not self.whole:
                self.progress(int(chosen[0]), len(self.records), f"scoring with {scorer.name}, routers {dtype}")
            parts.append(scorer.ties([self.records[number] for number in chosen], dtype))
            if parts[-1] is None:
                break
        return Ties.joined(parts, np.arange(self.ends[-1]))

    def _matrix(self, config: Config) -> Floats:
        key = (config.weights, config.prefix, config.dtype, config.head_dtype, config.kv_cache_dtype, config.boundary)
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
            self.records,
            dtype=config.dtype,
            head_dtype=config.head_dtype,
            kv_cache_dtype=config.kv_cache_dtype,
            older=older,
            old_tokens=cut,
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
        after = self._under(config, rows) if kept else self.predict(replace(config, boundary=None), rows)
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
    result = np.empty(len(rows))
    step = max(BLOCK // logits.shape[1], 1)
    for block in (slice(start, start + step) for start in range(0, len(rows), step)):
        result[block] = _block(logits[block] / temperature[block, None], rows.token[block], config.truncation)
    return result


def _block(scaled: Floats, token: Ints, truncation: tuple[float, int, float] | None) -> Floats:
    picked: Floats = np.take_along_axis(scaled, token[:, None], axis=1)[:, 0].astype(np.float64)
    if truncation is not None:
        scaled = np.where(_support(scaled, *truncation), scaled, -np.inf)
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


def prepare(scorers: Sequence[Scorer], log: SequenceLog, progress: Progress | None = None) -> Models:
    """The models with the sequences they score. UserError if these cannot be scored."""
    vocab = scorers[0].vocab_size
    for record in log.records:
        if record.prompt_tokens is None or len(record.prompt_tokens) == 0:
            raise UserError(
                "--model needs prompt_token_ids in every line: the first token's logprob depends on the prompt"
            )
        for ids in (record.tokens, record.prompt_tokens):
            for odd in ids[(ids < 0) | (ids >= vocab)]:
                raise UserError(f"token id {odd} is outside the vocabulary of {scorers[0].name} ({vocab})")
    return Models(scorers, log, progress)


def _routed_layers(given: Sequence[Ints], count: int) -> Ints:
    """Which layers of an engine's routes are those of a model with `count` mixtures.

    slime's routes have all layers, with zeros for those that are no mixtures. If all are zeros, nothing was captured.
    """
    wide = [routes for routes in given if routes.shape[1] > count]
    used = np.flatnonzero(np.any([(routes != 0).any((0, 2)) for routes in wide], axis=0)) if _alike(wide) else ()
    return np.asarray(used) if len(used) else np.arange(count)


def _alike(given: Sequence[Ints]) -> bool:
    return len({routes.shape[1] for routes in given}) == 1


def _differ(record: SequenceRecord, layers: Ints, own: Ints) -> Ints:
    """In how many layers the engine's experts differ from `own` (sampled tokens, L, k); -1 where they are not known."""
    given = record.engine_routes
    if given is not None and given.shape[1] > own.shape[1]:
        given = given[:, layers]
    if given is None or given.shape[1:] != own.shape[1:]:
        return np.full(len(own), -1)
    differ: Ints = (np.sort(given[record.sampled], -1) != np.sort(own, -1)).any(-1).sum(-1)
    return differ
