"""The search for a side's configuration: of all single changes the best, if it is good enough; then again.

A change is accepted if it takes at least a quarter of the remaining mean square away, and does so in sequence after
sequence rather than by a few sequences' luck. A temperature found early is fitted again at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from skewsim.diagnose import signatures as sign
from skewsim.diagnose.predict import LOGGED, Config, Models, model_of_version, temperatures
from skewsim.diagnose.rows import Floats, Ints, Rows, mean, sequence_means

LEAST_GAIN = 0.25
EXACT = 2e-3  # rms between float32 implementations of one model, with a margin (published: 0.0024 on 1.7 B)
TRY_TOP_P = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.95, 0.97, 0.98, 0.99)
BLOCKS = (1, 16)  # whole prompt but its last token; vLLM's blocks
TRY_TOP_K = (5, 10, 20, 40, 50, 100)


@dataclass(frozen=True)
class Step:
    """An accepted change."""

    kind: str
    config: Config
    before: float
    after: float


def search(models: Models, rows: Rows, target: Floats, start: Config, *, trainer: bool = False) -> list[Step]:
    """Accepted changes, in order; the last one's configuration is the best found."""
    steps: list[Step] = []
    config, predicted = start, models.predict(start, rows)
    done: set[str] = set()
    while len(steps) < 5:
        loss = _losses(target, predicted)
        if np.sqrt(loss.mean()) < EXACT / 2:
            break
        best: tuple[float, str, Config, Floats] | None = None
        for kind, rival in _moves(models, rows, target, config, trainer=trainer):
            if done & set(kind.split("+")):
                continue
            guess = models.predict(rival, rows)
            if rival.prefix is not None:
                guess = _per_sequence(target, predicted, guess, rows)
            gain = float(_losses(target, guess).mean())
            if best is None or gain < best[0] * (1 - 1e-9):
                best = (gain, kind, rival, guess)
        if best is None or not _better(loss, _losses(target, best[3]), rows.sequence):
            break
        steps += _split(best[1], best[2], float(loss.mean()), best[0])
        config, predicted = best[2], best[3]
        done |= set(best[1].split("+")) - {"prefix"}  # prompts may have been cached under several weights
    return _polish(models, rows, target, steps)


def _split(kind: str, config: Config, before: float, after: float) -> list[Step]:
    """A joint change as its parts, with the gain in equal shares."""
    kinds = kind.split("+")
    levels = np.linspace(before, after, len(kinds) + 1)
    return [Step(part, config, float(levels[n]), float(levels[n + 1])) for n, part in enumerate(kinds)]


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
    moves = [config for _, config in _temperature_moves(models, rows, target, final)]
    losses = [float(_losses(target, models.predict(config, rows)).mean()) for config in [final, *moves]]
    best = [final, *moves][int(np.argmin(losses))]
    at = next(number for number, step in enumerate(steps) if step.kind == "temperature")
    changed = [replace(step, config=replace(step.config, temperature=best.temperature)) for step in steps[at:]]
    changed[-1] = replace(changed[-1], after=min(losses))
    return steps[:at] + changed


def predicted_by(models: Models, rows: Rows, target: Floats, steps: list[Step], start: Config) -> Floats:
    """The prediction at the end of the search (a stale prefix chosen for each sequence, as there)."""
    predicted = models.predict(start, rows)
    for step in steps:
        guess = models.predict(step.config, rows)
        predicted = _per_sequence(target, predicted, guess, rows) if step.config.prefix is not None else guess
    return predicted


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


def _temperature_moves(models: Models, rows: Rows, target: Floats, at: Config) -> Iterator[tuple[str, Config]]:
    current = temperatures(rows) if at.temperature is None else np.full(len(rows), at.temperature)

    def loss(log_temperature: float) -> float:
        return float(
            _losses(target, models.predict(replace(at, temperature=float(np.exp(log_temperature))), rows)).mean()
        )

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
    if top_p < 1 or top_k > 0 or min_p > 0:
        yield "truncation", replace(at, truncation=(top_p, int(top_k), min_p))
        if at.temperature is not None:  # a flatter temperature and lost mass may cancel, and neither alone be a gain
            yield "temperature+truncation", replace(at, truncation=(top_p, int(top_k), min_p), temperature=None)


def _weight_moves(models: Models, rows: Rows, target: Floats, at: Config) -> Iterator[tuple[str, Config]]:
    older = range(1, len(models.scorers))
    newest = model_of_version(rows, models.scorers).get(int(rows.version.max(initial=0)), 0) if models.dated else 0
    if at.weights == 0 and not at.by_version and at.boundary is None:
        yield from (("weights", replace(at, weights=k)) for k in older)
        if len(np.unique(rows.version)) > 1 and len(models.scorers) > 1:
            yield "weights", replace(at, by_version=True)
        dated = models.dated and len(np.unique(rows.version)) == 1  # the log says that no update came on the way
        for k in () if dated else (k for k in older if k != newest):
            yield from _boundary_moves(models, rows, target, replace(at, weights=newest), k)
    if at.boundary is None and not at.by_version:
        held = at.prefix[0] if at.prefix is not None else at.weights
        # a stale prefix bends a fitted temperature: is it one of 1 and nothing else?
        starts = {at, at if at.temperature is None else replace(at, temperature=1.0)}
        for k in (k for k in older if k not in (at.weights, held)):
            yield from (("prefix", replace(a, prefix=(k, block))) for block in BLOCKS for a in starts)


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
