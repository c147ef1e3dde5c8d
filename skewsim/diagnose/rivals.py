"""With the weights at hand: every explanation as a configuration whose logprobs are computed and compared.

A configuration says which weights, whose keys and values, which precision, which temperature and truncation. The
trainer's is found first (its own logprobs may be off, too), then the engine's, starting from the trainer's: of all
single changes the one that takes most of the remaining mean square away is accepted, if it takes at least a quarter
and does so in sequence after sequence; then again. What the engine's configuration differs in are the causes, each
with its share of the reduction, so several at once come apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from scipy import optimize

from skewsim.diagnose import signatures as sign
from skewsim.diagnose.judge import (
    FLOOR,
    Findings,
    dtype_floor,
    is_rounding,
    low_precision,
    stale_by_contrast,
    take_out_outliers,
    what_next,
)
from skewsim.diagnose.rows import Bools, Floats, Ints, Rows, mean, sequence_means
from skewsim.errors import UserError
from skewsim.sequences import SequenceRecord

BUDGET = 60_000_000  # logits held at a time; longer logs are diagnosed on their first sequences
KEPT = 4  # logit matrices
LEAST_GAIN = 0.25
EXACT = 2e-3  # rms between float32 implementations of one model, with a margin (published: 0.0024 on 1.7 B)
COMPUTED_FLOOR = 0.006  # rms that a float16 engine leaves of float32 predictions (published: 0.0057)
LOGGED = -1  # each sequence's boundary is where its logged weight version first changes
TRY_TOP_P = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.95, 0.97, 0.98, 0.99)
BLOCKS = (1, 16)  # whole prompt but its last token; vLLM's blocks
TRY_TOP_K = (5, 10, 20, 40, 50, 100)


class Scorer(Protocol):
    """What `skewsim.diagnose.models.ModelScorer` does; anything else with these two will do."""

    name: str

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


@dataclass(frozen=True)
class Step:
    """An accepted change."""

    kind: str
    config: Config
    before: float
    after: float


@dataclass(eq=False)
class Models:
    """Scorers, newest first, and the sequences they score; logits are kept for a few configurations."""

    scorers: Sequence[Scorer]
    records: Sequence[SequenceRecord]
    _logits: OrderedDict[tuple[object, ...], Floats] = field(default_factory=OrderedDict)

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
        for version, weights in _model_of_version(rows, len(self.scorers)).items():
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


def _model_of_version(rows: Rows, models: int) -> dict[int, int]:
    """Logged version -> model: by how many versions it is behind, or in order where the numbers are further apart."""
    versions = [int(version) for version in np.unique(rows.version)[::-1]]
    if versions[0] - versions[-1] < models:
        return {version: versions[0] - version for version in versions}
    return {version: min(order, models - 1) for order, version in enumerate(versions)}


def _logprobs(logits: Floats, config: Config, rows: Rows) -> Floats:
    temperature = _temperatures(rows) if config.temperature is None else np.full(len(rows), config.temperature)
    scaled = logits / temperature[:, None]
    picked: Floats = np.take_along_axis(scaled, rows.token[:, None], axis=1)[:, 0].astype(np.float64)
    if config.truncation is not None:
        scaled = np.where(_support(scaled, *config.truncation), scaled, -np.inf)
    top = scaled.max(axis=1)
    result: Floats = picked - top - np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return result


def _temperatures(rows: Rows) -> Floats:
    return np.nan_to_num(rows.settings["temperature"], nan=1.0)


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


# -------------------------------------------------------------------------------------------------------- search


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
        done |= set(best[1].split("+"))
    return _polish(models, rows, target, steps)


def _split(kind: str, config: Config, before: float, after: float) -> list[Step]:
    """A joint change as its parts, with the gain in equal shares."""
    kinds = kind.split("+")
    levels = np.linspace(before, after, len(kinds) + 1)
    return [Step(part, config, float(levels[n]), float(levels[n + 1])) for n, part in enumerate(kinds)]


def _polish(models: Models, rows: Rows, target: Floats, steps: list[Step]) -> list[Step]:
    """A temperature fitted before the other causes were known took some of theirs: fit it again at the end."""
    if len(steps) < 2 or all(step.kind != "temperature" for step in steps) or any(s.config.prefix for s in steps):
        return steps
    final = steps[-1].config
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
    current = _temperatures(rows) if at.temperature is None else np.full(len(rows), at.temperature)

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
    if at.weights == 0 and not at.by_version and at.boundary is None:
        yield from (("weights", replace(at, weights=k)) for k in older)
        if len(np.unique(rows.version)) > 1 and len(models.scorers) > 1:
            yield "weights", replace(at, by_version=True)
        for k in older:
            yield from _boundary_moves(models, rows, target, at, k)
    if at.prefix is None and at.boundary is None and not at.by_version:
        for k in (k for k in older if k != at.weights):
            yield from (("prefix", replace(at, prefix=(k, block))) for block in BLOCKS)


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


# ------------------------------------------------------------------------------------------------------ judgement


def compare(findings: Findings, models: Models) -> None:
    """Causes by rescoring, added to the findings."""
    base = Config()
    for _ in range(2):
        rows = findings.rows
        steps = search(models, rows, rows.trainer, base, trainer=True)
        trainer = steps[-1].config if steps else base
        trainer_rest = rows.trainer - predicted_by(models, rows, rows.trainer, steps, base)
        found = search(models, rows, rows.engine, trainer)
        engine_rest = rows.engine - predicted_by(models, rows, rows.engine, found, trainer)
        # a broken sequence may only stand out once the rest is explained; then look again without it
        if findings.broken is not None or not take_out_outliers(findings, trainer_rest - engine_rest):
            break
    engine = found[-1].config if found else trainer
    if found and findings.broken is not None:
        _reinstate(findings, models, found, trainer)
    scale = len(rows) / findings.total if findings.total > 0 else 0.0
    for step in found:
        _explain(findings, models, step, trainer, engine, share=(step.before - step.after) * scale)
    if steps:
        findings.notes.append(f"the trainer's own logprobs fit {_describe(trainer, models)}")
    findings.rest = trainer_rest - engine_rest
    if not findings.has("stale_weights", "stale_kv"):
        stale_by_contrast(findings)
    _leftover(findings, trainer, engine, float(np.sqrt((trainer_rest**2).mean())))


def _reinstate(findings: Findings, models: Models, found: list[Step], trainer: Config) -> None:
    """Sequences that stood out are not broken if the configuration found explains them like the others."""
    rows = findings.broken
    assert rows is not None
    rest = rows.engine - predicted_by(models, rows, rows.engine, found, trainer)
    if np.abs(rest).mean() < 0.3 * np.abs(rows.skew).mean():
        findings.causes = [cause for cause in findings.causes if cause.name != "outlier_sequences"]
        findings.total -= float((rows.skew**2).sum())


def _explain(findings: Findings, models: Models, step: Step, trainer: Config, engine: Config, *, share: float) -> None:
    rows, config = findings.rows, step.config
    change = f"rms {np.sqrt(step.before):.3g} -> {np.sqrt(step.after):.3g}"
    if step.kind == "temperature":
        _explain_temperature(findings, models, config, trainer, change, share)
    elif step.kind == "truncation" and config.truncation is not None:
        top_p, top_k, min_p = config.truncation
        findings.add(
            "truncation_mass",
            share,
            f"renormalised over top_p={top_p:g} top_k={top_k} min_p={min_p:g} the trainer gives the engine's numbers: "
            f"{change}; mean ratio {np.exp(rows.skew).mean():.3f}",
        )
    elif step.kind == "weights":
        findings.add("stale_weights", share, f"{_which_weights(config, models, rows)}: {change}")
    elif step.kind == "prefix" and config.prefix is not None:
        findings.add(
            "stale_kv",
            share,
            f"with the prompt's keys and values of {models.scorers[config.prefix[0]].name} (whole blocks of "
            f"{config.prefix[1]}) and the weights of {models.scorers[config.weights].name}: {change}",
        )
    elif step.kind == "head":
        both = trainer.dtype == config.dtype != "float32"
        findings.add(
            "one_sided_fp32_head" if both else "head_dtype",
            share,
            f"rescored with a {config.head_dtype} head: {change}",
        )
    elif step.kind == "body":
        findings.add("compute_dtype", share, f"rescored in {config.dtype}: {change}")


def _explain_temperature(
    findings: Findings, models: Models, config: Config, trainer: Config, change: str, share: float
) -> None:
    """Raw if the engine reports at temperature 1 but the tokens were drawn at the request's; else simply another one."""
    rows = findings.rows
    assumed = trainer.temperature if trainer.temperature is not None else float(_temperatures(rows).mean())
    reported = config.temperature if config.temperature is not None else float(_temperatures(rows).mean())
    requested = replace(config, temperature=None if rows.setting("temperature") is not None else assumed)
    gain = mean(models.predict(requested, rows) - models.predict(config, rows), rows.sequence)
    if config.temperature == 1.0 and gain.value > 0:
        findings.add(
            "raw_logprobs",
            share,
            f"the engine's numbers are those of temperature 1: {change}; but its tokens are {gain.value:.3g} ± {gain.error:.1g} "
            f"nats likelier at temperature {_temperatures(rows).mean() if requested.temperature is None else assumed:.3g}",
        )
    else:
        findings.add(
            "wrong_temperature",
            share,
            f"the engine's numbers are those of temperature {reported:.3g}, the trainer's of {assumed:.3g}: {change}",
        )


def _which_weights(config: Config, models: Models, rows: Rows) -> str:
    names = [scorer.name for scorer in models.scorers]
    if config.by_version:
        mapped = list(_model_of_version(rows, len(names)).items())
        pairs = ", ".join(f"{version}: {names[index]}" for version, index in mapped[:5])
        return f"scored under the weights of each token's version ({pairs})"
    if config.boundary is not None:
        old, at, kept = config.boundary
        how = "over its keys and values" if kept else "keys and values computed again"
        token = "each sequence's change of version" if at == LOGGED else f"token {at}"
        return f"scored under {names[old]} up to {token}, {names[0]} from there on, {how}"
    return f"scored under {names[config.weights]} ({config.weights} checkpoint(s) back), from the first token on"


def _leftover(findings: Findings, trainer: Config, engine: Config, trainer_rms: float) -> None:
    """Precision, from what no configuration explains."""
    rows, rest = findings.rows, findings.rest
    rms = float(np.sqrt((rest**2).mean())) if len(rest) else 0.0
    if trainer.head_dtype != "float32" and engine.head_dtype == trainer.head_dtype and trainer.dtype == "float32":
        findings.notes.append("trainer and engine both round the head")
    if rms <= EXACT or len(rows) < 50:
        return
    share = float((rest**2).sum()) / findings.total if findings.total > 0 else 0.0
    if not findings.has("head_dtype", "one_sided_fp32_head") and _one_sided(findings, trainer_rms, share):
        return
    declared = dtype_floor(rows)
    if rms <= (COMPUTED_FLOOR if declared == FLOOR else declared) or findings.has("compute_dtype"):
        return
    if engine.truncation is not None:  # where rounding moved a token across the cut the prediction is off by far more
        size = np.abs(rest)
        inside = size < 8 * np.median(size)
        rows, rest = rows.select(inside), rest[inside]
    law = sign.noise_law(rows, rest)
    text = (
        f"what no other weights, precision of the head, temperature or truncation explains: rms {rms:.3g}, noise of "
        f"{law.sigma_z:.3g} on each logit, the law holds within a factor {law.spread:.2g}, bias {law.bias}"
    )
    if law.lawful and (is_rounding(law) or low_precision(rows)):
        findings.add("compute_dtype", share, text)
    elif not findings.causes:
        findings.add("unknown", share, f"{text}; {what_next(rows)}")


def _one_sided(findings: Findings, trainer_rms: float, share: float) -> bool:
    """One head on bfloat16's grid and the other not, over bodies that are both rounded."""
    rows = findings.rows
    temperature = rows.setting("temperature") or 1.0
    engine, trainer = (sign.lattice(values, rows, temperature) for values in (rows.engine, rows.trainer))
    if min(engine.pairs, trainer.pairs) < 12 or engine.coarse == trainer.coarse:
        return False
    if engine.coarse and trainer_rms <= EXACT:
        return False  # the trainer is float32 throughout: the body is what differs
    findings.add(
        "one_sided_fp32_head",
        share,
        f"of {engine.pairs} logit differences in equal contexts {engine.share:.0%} of the engine's and {trainer.share:.0%} of "
        f"the trainer's lie on bfloat16's grid; the trainer is {trainer_rms:.3g} from float32",
    )
    return True


def _describe(config: Config, models: Models) -> str:
    temperature = "the request's temperature" if config.temperature is None else f"temperature {config.temperature:.3g}"
    return f"{models.scorers[config.weights].name} in {config.dtype}, head {config.head_dtype}, {temperature}"


def prepare(scorers: Sequence[Scorer], records: Sequence[SequenceRecord]) -> tuple[Models, int]:
    """(models, sequences used): as many sequences as the memory for logits allows. UserError if they cannot be scored."""
    vocab = scorers[0].vocab_size
    used, tokens = 0, 0
    for record in records:
        if record.prompt_tokens is None or len(record.prompt_tokens) == 0:
            raise UserError(
                "--model needs prompt_token_ids in every line: the first token's logprob depends on the prompt"
            )
        highest = max(int(record.tokens.max(initial=0)), int(record.prompt_tokens.max()))
        if highest >= vocab:
            raise UserError(f"token id {highest} is outside the vocabulary of {scorers[0].name} ({vocab})")
        tokens += int(record.sampled.sum())
        if tokens * vocab > BUDGET and used >= 8:
            break
        used += 1
    return Models(scorers, records[:used]), used
