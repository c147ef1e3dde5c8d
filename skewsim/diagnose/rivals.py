"""With the weights at hand: every explanation as a configuration whose logprobs are computed and compared.

A configuration says which weights, whose keys and values, which precision, which temperature and truncation. The
trainer's is found first (its own logprobs may be off, too), then the engine's, starting from the trainer's: of all
single changes the one that takes most of the remaining mean square away is accepted, if it takes at least a quarter
and does so in sequence after sequence; then again. What the engine's configuration differs in are the causes, each
with its share of the reduction, so several at once come apart.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from skewsim.diagnose import marks, noise
from skewsim.diagnose import signatures as sign
from skewsim.diagnose.findings import FLOOR, Findings, take_out_outliers
from skewsim.diagnose.judge import name_places, name_wrong_entry
from skewsim.diagnose.precision import dtype_floor, is_rounding, low_precision, what_next
from skewsim.diagnose.predict import LOGGED, Config, Models, model_of_version, temperatures
from skewsim.diagnose.routes import known, name_near_ties, name_routing
from skewsim.diagnose.rows import Floats, Rows
from skewsim.diagnose.search import EXACT, OwnPrompts, Step, predicted_by, search
from skewsim.diagnose.staleness import stale_by_contrast

COMPUTED_FLOOR = 0.006  # rms that a float16 engine leaves of float32 predictions (published: 0.0057)

ROUNDED = ("bfloat16", "float16")

LEAST_BESIDE_STALE = 0.01
"""A smaller share that is left beside cached prompts is no sign of rounding: not all weights of then are at hand."""


def compare(findings: Findings, models: Models) -> None:
    """Causes by rescoring, added to the findings."""
    base = Config()
    if name_wrong_entry(findings):
        return
    name_routing(findings)
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
    prompts = OwnPrompts.of(models, rows, rows.engine, found)
    for step in found:
        _explain(findings, prompts, step, trainer, engine, share=(step.before - step.after) * scale)
    if steps:
        findings.notes.append(f"the trainer's own logprobs fit {_describe(trainer, models)}")
    findings.rest = trainer_rest - engine_rest
    if not findings.has("stale_weights", "stale_kv"):
        stale_by_contrast(findings)
    trainer_rms = float(np.sqrt((trainer_rest**2).mean()))
    kept = _near_ties(findings, models, steps, found)
    _leftover(findings, trainer, engine, trainer_rms, kept=kept, checkpoints=len(models.scorers) > 1)


def _near_ties(findings: Findings, models: Models, steps: list[Step], found: list[Step]) -> float:
    """Routing by the model's near ties, where no routes are logged; the share of the rows that are left."""
    rows = findings.rows
    ends = [each[-1].config for each in (found, steps) if each]
    weights = ends[0].weights if ends else 0
    rounded = [each.dtype for each in ends] + [str(rows.meta.get(key)) for key in ("dtype", "trainer_dtype")]
    dtypes = [each for each in rounded if each in ROUNDED][:1] or ROUNDED
    if known(rows) or _as_float32(rows.skew) or models.ties(weights, dtypes[0], rows) is None:
        return 1.0
    sides = ((rows.trainer, steps, Config()), (rows.engine, found, _exact(steps[-1].config) if steps else Config()))
    trainer, engine = (target - predicted_by(models, rows, target, _without_body(s), at) for target, s, at in sides)
    if _as_float32(trainer - engine):
        return 1.0
    return name_near_ties(findings, models, weights, dtypes, trainer - engine)


def _as_float32(skew: Floats) -> bool:
    """Whether there is no more of it than between two float32 implementations."""
    return not len(skew) or float(np.sqrt((skew**2).mean())) <= EXACT


def _without_body(steps: list[Step]) -> list[Step]:
    """The same changes over a body in float32."""
    return [replace(step, config=_exact(step.config)) for step in steps if step.kind not in ("body", "cache")]


def _exact(config: Config) -> Config:
    return replace(config, dtype="float32", kv_cache_dtype="auto")


def _reinstate(findings: Findings, models: Models, found: list[Step], trainer: Config) -> None:
    """Sequences that stood out are not broken if the configuration found explains them like the others."""
    rows = findings.broken
    assert rows is not None
    rest = rows.engine - predicted_by(models, rows, rows.engine, found, trainer)
    if np.abs(rest).mean() < 0.3 * np.abs(rows.skew).mean():
        findings.causes = [cause for cause in findings.causes if cause.name != "outlier_sequences"]
        findings.total -= float((rows.skew**2).sum())


def _explain(
    findings: Findings, prompts: OwnPrompts, step: Step, trainer: Config, engine: Config, *, share: float
) -> None:
    rows, config, models = findings.rows, step.config, prompts.models
    change = _change(step)
    if step.kind == "temperature":
        _explain_temperature(findings, prompts, config, trainer, change, share)
    elif step.kind == "truncation" and config.truncation is not None:
        top_p, top_k, min_p = config.truncation
        findings.add(
            "truncation_mass",
            share,
            f"renormalised over top_p={top_p:g} top_k={top_k} min_p={min_p:g} the trainer gives the engine's numbers: "
            f"{change}; mean mismatch ratio {np.exp(rows.skew).mean():.3f}",
        )
    elif step.kind == "weights":
        findings.add("stale_weights", share, f"{_which_weights(config, models, rows)}: {change}")
    elif step.kind == "prefix" and config.prefix is not None:
        findings.add_to(
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
    elif step.kind == "cache":
        how = ", their digits cut off as vLLM does it on a CPU" if config.kv_cache_dtype == "fp8_truncated" else ""
        findings.add_to(
            "compute_dtype", share, f"rescored in {config.dtype} with keys and values in fp8{how}: {change}"
        )
    elif step.kind == "body":
        findings.add_to("compute_dtype", share, f"rescored in {config.dtype}: {change}")


_OTHER = {"weights": "the cached prompts", "prefix": "the weights", "temperature": "the truncation"}
"""What each change may be accepted with; else with the temperature."""


def _change(step: Step) -> str:
    """What a change takes away; of two that were accepted together, what both do."""
    before, after = np.sqrt(step.joint or (step.before, step.after))
    change = f"rms {before:.3g} -> {after:.3g}"
    if step.joint is None:
        return change
    return f"{change} together with {_OTHER.get(step.kind, 'the temperature')}, half of it counted for each"


def _explain_temperature(
    findings: Findings, prompts: OwnPrompts, config: Config, trainer: Config, change: str, share: float
) -> None:
    """Raw if the engine reports at temperature 1 and nothing says that the tokens were drawn there, neither the request
    nor the tokens; else another one.
    """
    rows = findings.rows
    assumed = trainer.temperature if trainer.temperature is not None else float(temperatures(rows).mean())
    reported = config.temperature if config.temperature is not None else float(temperatures(rows).mean())
    requested = replace(config, temperature=None if rows.setting("temperature") is not None else assumed)
    gain = prompts.gain(requested, config)
    if config.temperature == 1.0 != rows.setting("temperature") and gain.z > -2:
        findings.add(
            "raw_logprobs",
            share,
            f"the engine's numbers are those of temperature 1: {change}; but its tokens are {gain.value:.3g} ± {gain.error:.1g} "
            f"nats likelier at temperature {temperatures(rows).mean() if requested.temperature is None else assumed:.3g}",
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
        mapped = list(model_of_version(rows, models.scorers).items())
        pairs = ", ".join(f"{version}: {names[index]}" for version, index in mapped[:5])
        return f"scored under the weights of each token's version ({pairs})"
    if config.boundary is not None:
        old, at, kept = config.boundary
        how = "over its keys and values" if kept else "keys and values computed again"
        token = "each sequence's change of version" if at == LOGGED else f"token {at}"
        return f"scored under {names[old]} up to {token}, {names[config.weights]} from there on, {how}"
    return f"scored under {names[config.weights]} ({config.weights} checkpoint(s) back), from the first token on"


def _leftover(
    findings: Findings, trainer: Config, engine: Config, trainer_rms: float, *, kept: float, checkpoints: bool
) -> None:
    """Precision, from what no configuration explains; `kept`: the share of the rows that are left to tell by."""
    rows, rest = findings.rows, findings.rest
    rms = float(np.sqrt((rest**2).mean())) if len(rest) else 0.0
    if trainer.head_dtype != "float32" and engine.head_dtype == trainer.head_dtype and trainer.dtype == "float32":
        findings.notes.append("trainer and engine both round the head")
    if rms <= EXACT or len(rows) < 50:
        return
    share = float((rest**2).sum()) / findings.total / kept if findings.total > 0 else 0.0
    if not findings.has("head_dtype", "one_sided_fp32_head") and _one_sided(findings, trainer_rms, share):
        return
    if share < LEAST_BESIDE_STALE and findings.has("stale_kv"):
        return
    declared = dtype_floor(rows)
    if rms <= (COMPUTED_FLOOR if declared == FLOOR else declared) or findings.has("compute_dtype"):
        return
    if engine.truncation is not None:  # where rounding moved a token across the cut the prediction is off by far more
        size = np.abs(rest)
        inside = size < 8 * np.median(size)
        rows, rest = rows.select(inside), rest[inside]
    law = noise.noise_law(rows, rest)
    text = (
        f"what no other weights, precision of the head, temperature or truncation explains: rms {rms:.3g}, noise of "
        f"{law.sigma_z:.3g} on each logit, the law holds within a factor {law.spread:.2g}, bias {law.bias}"
    )
    if law.lawful and (is_rounding(law) or low_precision(rows)):
        findings.add("compute_dtype", share, text)
        return
    if not findings.causes:
        findings.rest = rest if len(rest) == len(findings.rest) else findings.rest
        name_places(findings)
    if not findings.causes and not _stochastic(findings, share, text, trainer_rms):
        findings.add("unknown", share, f"{text}; {what_next(rows, checkpoints=checkpoints)}")


def _stochastic(findings: Findings, share: float, text: str, trainer_rms: float) -> bool:
    """The engine computes what the model does and the trainer does not, in no place and under no other setting."""
    rows, engine_rms = findings.rows, float(np.sqrt(((findings.rest) ** 2).mean()))
    facts, again = sign.truth(rows), marks.repeats(rows)
    if trainer_rms < 0.9 * engine_rms or facts.bias.value > 0 or (again.enough and not again.trainer_varies):
        return False
    repeated = ""
    if again.enough:
        repeated = f"; of {again.rows} tokens asked for again the trainer's values are {again.trainer:.3g} apart, the engine's {again.engine:.2g}"
    findings.add(
        "stochastic_trainer",
        share,
        f"{text}; the trainer is {trainer_rms:.3g} from the model and the engine is not{repeated}: as of dropout in the trainer's pass "
        "(score one batch twice to see), or of weights that are not the model's",
    )
    return True


def _one_sided(findings: Findings, trainer_rms: float, share: float) -> bool:
    """One head on bfloat16's grid and the other not, over bodies that are both rounded."""
    rows = findings.rows
    temperature = rows.setting("temperature") or 1.0
    engine, trainer = (noise.lattice(values, rows, temperature) for values in (rows.engine, rows.trainer))
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
