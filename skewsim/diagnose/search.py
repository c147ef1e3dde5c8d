"""The search for a side's configuration: of all single changes the best, if it is good enough; then again.

A change is accepted if it takes at least a quarter of the remaining mean square away, and does so in sequence after
sequence rather than by a few sequences' luck. A temperature found early is fitted again at the end. Where the logits
are too many to be kept, a sample of the sequences says which change is best, and all of them whether it is good enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from skewsim.catalogue import truncates
from skewsim.diagnose import normal
from skewsim.diagnose import signatures as sign
from skewsim.diagnose.predict import LOGGED, Config, Models, model_of_version, temperatures
from skewsim.diagnose.rows import Bools, Floats, Ints, Mean, Rows, mean, sequence_means

Prefix = tuple[int, int]
LEAST_GAIN = 0.25
EXACT = 2e-3  # rms between float32 implementations of one model, with a margin (published: 0.0024 on 1.7 B)
TRY_TOP_P = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.95, 0.97, 0.98, 0.99)
BLOCKS = (1, 16)  # whole prompt but its last token; vLLM's blocks
TRY_TOP_K = (5, 10, 20, 40, 50, 100)
TRY_CACHES = ("fp8", "fp8_truncated")  # of `kv_cache.STORED`: as a GPU stores keys and values, as a CPU does


@dataclass(frozen=True)
class Step:
    """An accepted change."""

    kind: str
    config: Config
    before: float
    after: float
    joint: tuple[float, float] | None = None
    """Of a change that was accepted together with another: the square before and after both."""


def search(models: Models, rows: Rows, target: Floats, start: Config, *, trainer: bool = False) -> list[Step]:
    """Accepted changes, in order; the last one's configuration is the best found."""
    steps: list[Step] = []
    config, predicted = start, models.predict(start, rows)
    done: set[str] = set()
    held: list[Prefix] = []
    few, chosen = models.sample(rows)
    sampled = models.sampled(rows, chosen)
    while len(steps) < 6:
        loss = _losses(target, predicted)
        if np.sqrt(loss.mean()) < EXACT / 2:
            break
        for moves in (_moves, _cache_moves):
            found = moves(few, sampled, target[chosen], config, trainer=trainer)
            best = _best(few, sampled, target[chosen], predicted[chosen], found, held, done)
            if best is None:
                continue
            kind, rival = best
            guess = _guess(models, rows, target, predicted, rival, held, kind=kind)
            if _better(loss, _losses(target, guess), rows.sequence):
                break
        else:
            break
        steps += _split(kind, rival, _square(target, predicted), _square(target, guess))
        config, predicted = rival, guess
        held += [config.prefix] if "prefix" in kind and config.prefix else []
        done |= set(kind.split("+")) - {"prefix"}  # prompts may have been cached under several weights
    return _polish(models, rows, target, steps)


def _best(
    models: Models,
    rows: Rows,
    target: Floats,
    predicted: Floats,
    moves: Iterator[tuple[str, Config]],
    held: list[Prefix],
    done: set[str],
) -> tuple[str, Config] | None:
    """The single change after which least is left, of the kinds that are not `done`."""
    best: tuple[str, Config] | None = None
    least = np.inf
    for kind, rival in moves:
        if done & set(kind.split("+")):
            continue
        left = float(_losses(target, _guess(models, rows, target, predicted, rival, held, kind=kind)).mean())
        if left < least * (1 - 1e-9):
            best, least = (kind, rival), left
    return best


def _split(kind: str, config: Config, before: float, after: float) -> list[Step]:
    """A joint change as its parts, with the gain in equal shares."""
    kinds = kind.split("+")
    levels = np.linspace(before, after, len(kinds) + 1)
    joint = (before, after) if len(kinds) > 1 else None
    return [Step(part, config, float(levels[n]), float(levels[n + 1]), joint) for n, part in enumerate(kinds)]


def _polish(models: Models, rows: Rows, target: Floats, steps: list[Step]) -> list[Step]:
    """A temperature fitted before the other causes were known took some of theirs: fit it again at the end."""
    if len(steps) < 2 or all(step.kind != "temperature" for step in steps):
        return steps
    final = steps[-1].config
    if final.prefix is not None:
        return [
            s if s.config.temperature is None else replace(s, config=replace(s.config, temperature=final.temperature))
            for s in steps
        ]
    few, chosen = models.sample(rows)
    sampled = models.sampled(rows, chosen)
    moves = [config for _, config in _temperature_moves(few, sampled, target[chosen], final)]
    losses = [float(_losses(target[chosen], few.predict(config, sampled)).mean()) for config in [final, *moves]]
    best = [final, *moves][int(np.argmin(losses))]
    at = next(number for number, step in enumerate(steps) if step.kind == "temperature")
    changed = [replace(step, config=replace(step.config, temperature=best.temperature)) for step in steps[at:]]
    changed[-1] = replace(changed[-1], after=_square(target, models.predict(best, rows)))
    return steps[:at] + changed


def predicted_by(models: Models, rows: Rows, target: Floats, steps: list[Step], start: Config) -> Floats:
    """The prediction at the end of the search (a stale prefix chosen for each sequence, as there)."""
    predicted, held = models.predict(start, rows), list[Prefix]()
    for step in steps:
        predicted = _guess(models, rows, target, predicted, step.config, held, kind=step.kind)
        held += [step.config.prefix] if step.kind == "prefix" and step.config.prefix else []
    return predicted


@dataclass(frozen=True)
class OwnPrompts:
    """Predictions in which each sequence's prompt was cached under the weights that fit it best, of those found."""

    models: Models
    rows: Rows
    prefixes: tuple[Prefix | None, ...]
    chosen: Ints
    """For each row the number of its prefix."""
    fits: Bools
    """Rows of sequences that fit about as well as most: the others' prompts may be of weights that nobody kept."""

    @classmethod
    def of(cls, models: Models, rows: Rows, target: Floats, steps: list[Step]) -> OwnPrompts:
        found = dict.fromkeys(step.config.prefix for step in steps if step.kind == "prefix")
        prefixes = (None, *found)
        if not found:
            return cls(models, rows, prefixes, np.zeros(len(rows), np.int64), np.ones(len(rows), bool))
        final = steps[-1].config
        guesses = [models.predict(replace(final, prefix=prefix), rows) for prefix in prefixes]
        losses = np.stack([sequence_means(_losses(target, guess), rows.sequence)[1] for guess in guesses])
        each = np.searchsorted(np.unique(rows.sequence), rows.sequence)
        least = losses.min(axis=0)
        fits = least <= 10 * np.median(least)
        return cls(models, rows, prefixes, losses.argmin(axis=0)[each], fits[each])

    def gain(self, requested: Config, reported: Config) -> Mean:
        """How much likelier the tokens are under one configuration than under the other, by the sequences that fit."""
        gained = self.predict(requested) - self.predict(reported)
        return mean(gained[self.fits], self.rows.sequence[self.fits])

    def predict(self, config: Config) -> Floats:
        """(N,) logprobs under a configuration, its own prefix aside where others were found."""
        if len(self.prefixes) == 1:
            return self.models.predict(config, self.rows)
        guesses = [self.models.predict(replace(config, prefix=prefix), self.rows) for prefix in self.prefixes]
        return np.stack(guesses)[self.chosen, np.arange(len(self.rows))]


def _guess(
    models: Models, rows: Rows, target: Floats, predicted: Floats, rival: Config, held: list[Prefix], *, kind: str
) -> Floats:
    """What a rival predicts; under which weights a prompt was cached, if under any, is not logged, so that fits
    best.
    """
    if "prefix" in kind:
        if "weights" in kind:  # the same weights without a cached prompt, where that fits better
            predicted = models.predict(replace(rival, prefix=None), rows)
        return _per_sequence(target, predicted, models.predict(rival, rows), rows)
    guess = models.predict(replace(rival, prefix=None), rows)
    for prefix in held:
        guess = _per_sequence(target, guess, models.predict(replace(rival, prefix=prefix), rows), rows)
    return guess


def _square(target: Floats, predicted: Floats) -> float:
    """Mean square, what is reported; the search itself looks at capped losses, so that few tokens do not decide."""
    return float(((target - predicted) ** 2).mean())


def _losses(target: Floats, predicted: Floats) -> Floats:
    return np.minimum((target - predicted) ** 2, 25.0)


def _better(before: Floats, after: Floats, sequence: Ints) -> bool:
    """At least a quarter less, and not by a few sequences' luck."""
    if after.mean() > (1 - LEAST_GAIN) * before.mean():
        return False
    gain = mean(before - after, sequence)
    _, each = sequence_means(before - after, sequence)
    return gain.z > 3 or after.mean() < 0.1 * before.mean() or float((each > 0).mean()) > 0.75


def _per_sequence(target: Floats, plain: Floats, rival: Floats, rows: Rows) -> Floats:
    """The rival where it fits a sequence better: which prompts were cached is not logged."""
    ids, old = sequence_means(_losses(target, plain), rows.sequence)
    _, new = sequence_means(_losses(target, rival), rows.sequence)
    return np.where((new < old)[np.searchsorted(ids, rows.sequence)], rival, plain)


def _moves(models: Models, rows: Rows, target: Floats, at: Config, *, trainer: bool) -> Iterator[tuple[str, Config]]:
    yield from _temperature_moves(models, rows, target, at)
    if not trainer:
        yield from _truncation_moves(rows, at)
        yield from _weight_moves(models, rows, target, at)
    for dtype in ("bfloat16", "float16"):
        if at.head_dtype == "float32":
            yield "head", replace(at, head_dtype=dtype)
        if at.dtype == "float32":
            yield "body", replace(at, dtype=dtype, head_dtype=dtype)
            yield "body", replace(at, dtype=dtype)


def _cache_moves(
    models: Models, rows: Rows, target: Floats, at: Config, *, trainer: bool
) -> Iterator[tuple[str, Config]]:
    """Keys and values of 8 bits, where nothing else is good enough and the rest is too large for 16: they take passes
    of their own."""
    if trainer or at.kv_cache_dtype != "auto":
        return
    if np.sqrt(_losses(target, models.predict(at, rows)).mean()) > normal.most("bfloat16", None):
        for dtype, cache in itertools.product(dict.fromkeys((at.dtype, "bfloat16")), TRY_CACHES):
            yield "cache", replace(at, kv_cache_dtype=cache, dtype=dtype)


def _temperature_moves(models: Models, rows: Rows, target: Floats, at: Config) -> Iterator[tuple[str, Config]]:
    current = temperatures(rows) if at.temperature is None else np.full(len(rows), at.temperature)

    def loss(log_temperature: float) -> float:
        return float(
            _losses(target, models.predict(replace(at, temperature=float(np.exp(log_temperature))), rows)).mean()
        )

    from scipy import optimize  # imported here, so that a command that fits nothing starts without it

    fitted = optimize.minimize_scalar(
        loss, bounds=(np.log(0.2), np.log(5.0)), method="bounded", options={"xatol": 1e-3}
    )
    if np.any(np.abs(current - 1) > 1e-9):
        now, one = float(_losses(target, models.predict(at, rows)).mean()), loss(0.0)
        yield "temperature", replace(at, temperature=1.0)
        if now - one > 0.85 * (now - fitted.fun):
            return  # as good as the best, and a temperature that is wrong for a reason
    best = round(float(np.exp(fitted.x)), 3)
    if np.all(np.abs(best / current - 1) > 0.01) and abs(best - 1) > 0.01:
        yield "temperature", replace(at, temperature=best)


def _truncation_moves(rows: Rows, at: Config) -> Iterator[tuple[str, Config]]:
    if at.truncation is not None:
        return
    names = ("top_p", "top_k", "min_p")
    values = [rows.setting(name) for name in names]
    if all(value is None for value in values):
        if sign.lost_mass(rows).mass.z < -3:
            yield from (("truncation", replace(at, truncation=(p, 0, 0.0))) for p in TRY_TOP_P)
            yield from (("truncation", replace(at, truncation=(1.0, k, 0.0))) for k in TRY_TOP_K)
        return
    top_p, top_k, min_p = (off if value is None else value for value, off in zip(values, (1.0, 0.0, 0.0), strict=True))
    if truncates(top_p, top_k, min_p):
        yield "truncation", replace(at, truncation=(top_p, int(top_k), min_p))
        if at.temperature is not None:  # a flatter temperature and lost mass may cancel, and neither alone be a gain
            yield "temperature+truncation", replace(at, truncation=(top_p, int(top_k), min_p), temperature=None)


def _weight_moves(models: Models, rows: Rows, target: Floats, at: Config) -> Iterator[tuple[str, Config]]:
    older = range(1, len(models.scorers))
    settled = at.weights != 0 or at.by_version or at.boundary is not None
    if models.dated and len(rows):
        yield from _logged_moves(models, rows, target, at, settled=settled)
        return
    if not settled:
        yield from (("weights", replace(at, weights=k)) for k in older)
        if len(np.unique(rows.version)) > 1 and len(models.scorers) > 1:
            yield "weights", replace(at, by_version=True)
        for k in older:
            yield from _boundary_moves(models, rows, target, at, k)
    if at.boundary is None and not at.by_version:
        yield from _prefix_moves(at, [k for k in older if k != at.weights], kind="prefix")


def _logged_moves(
    models: Models, rows: Rows, target: Floats, at: Config, *, settled: bool
) -> Iterator[tuple[str, Config]]:
    """The same where each model's version is known, and so which of them sampled each token."""
    sampled = model_of_version(rows, models.scorers)
    newest, oldest = sampled[int(rows.version.max())], sampled[int(rows.version.min())]
    by_log = replace(at, weights=newest)
    if not settled and newest != oldest:
        yield "weights", replace(at, by_version=True)
        yield from _boundary_moves(models, rows, target, by_log, oldest)
    if newest == oldest != 0 and not settled:
        yield "weights", by_log
    if at.boundary is None and not at.by_version:
        before = [k for k in range(len(models.scorers)) if k > newest]
        yield from _prefix_moves(by_log, before, kind="prefix" if at.weights == newest else "weights+prefix")


def _prefix_moves(at: Config, older: Sequence[int], *, kind: str) -> Iterator[tuple[str, Config]]:
    """Prompts cached under older weights, in vLLM's blocks or whole. They bend a fitted temperature: is it 1 and no
    other?
    """
    held = at.prefix[0] if at.prefix is not None else None
    starts = {at, at if at.temperature is None else replace(at, temperature=1.0)}
    for k in (k for k in older if k != held):
        yield from ((kind, replace(start, prefix=(k, block))) for block in BLOCKS for start in starts)


def _boundary_moves(models: Models, rows: Rows, target: Floats, at: Config, old: int) -> Iterator[tuple[str, Config]]:
    """Old weights up to a token, new ones after it, on old or on recomputed keys and values.

    The token is the logged one; without versions it is where the old weights stop to fit: the change point of their
    loss over positions (two exponential segments).
    """
    boundary = LOGGED
    if len(np.unique(rows.version)) < 2:
        loss = _losses(target, models.predict(replace(at, weights=old), rows))
        count = np.maximum(np.bincount(rows.position), 1)
        level = np.bincount(rows.position, weights=loss) / count + 1e-9
        cuts = np.arange(1, len(level))
        if len(cuts) == 0:
            return
        total = np.cumsum(level)
        left = cuts * np.log(total[cuts - 1] / cuts)
        right = (len(level) - cuts) * np.log((total[-1] - total[cuts - 1]) / (len(level) - cuts))
        boundary = int(cuts[np.argmin(left + right)])
    yield "weights", replace(at, boundary=(old, boundary, False))
    yield "weights", replace(at, boundary=(old, boundary, True))
