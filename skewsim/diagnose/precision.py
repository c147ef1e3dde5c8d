"""What is left when nothing else was found: rounding of a dtype or of one side's head, experts chosen otherwise, a
trainer that does not repeat itself, a bend; else unknown, with the measurement that would tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skewsim.diagnose import marks, noise, normal, routes
from skewsim.diagnose import signatures as sign
from skewsim.diagnose.findings import FLOOR, PLACED, Findings
from skewsim.diagnose.rows import Floats, Rows
from skewsim.diagnose.view import OF_TOKENS, strong

LARGEST_SIGMA = 0.3  # noise per logit: 0.155 for bfloat16 (Qwen3), so twice that is no rounding of a 16-bit type


def name_precision(findings: Findings) -> None:
    """Noise, if what is left is larger than a 16-bit float's and follows the law; else unknown."""
    rows, rest = findings.rows, findings.rest
    if len(rows) < 50:
        return
    rms = float(np.sqrt((rest**2).mean()))
    share = float((rest**2).sum()) / findings.total if findings.total > 0 else 0.0
    head = None if findings.causes else _head(findings, rms)
    if head is not None:
        findings.add(head.name, share * head.share, head.text)
        if head.share < 1:
            findings.add("compute_dtype", share * (1 - head.share), f"{head.text}: the rest is the body's")
        return
    declared = dtype_floor(rows)
    if rms <= declared or findings.has("raw_logprobs", "wrong_temperature", "truncation_mass"):
        return  # within the dtype; and what a semantic fault leaves without a model is its own approximation
    if findings.has("stale_weights"):
        findings.notes.append(
            f"rms {rms:.3g} is left where the weights are the newest: older keys and values, or rounding"
        )
        return
    law = noise.noise_law(rows, rest)
    placed = [name for name in PLACED if not (name == "moe_routing" and routes.known(rows))]
    if findings.has(*placed, "placeholder_logprobs"):
        findings.notes.append(f"elsewhere {normal.usual(rms, None, rows.meta.get('model_kind'))}")
        return
    text = (
        f"rms {rms:.3g}; noise of {law.sigma_z:.3g} on each logit, the law holds within a factor {law.spread:.2g} "
        f"from improbable to probable tokens; bias {law.bias}"
    )
    if _repeated_otherwise(findings, rms, share, text):
        return
    if not _has_place(findings) and _unplaced(findings, law, rms, share, text):
        return
    if law.lawful and (is_rounding(law) or low_precision(rows)):
        findings.add("compute_dtype", share, text)
    elif not findings.causes and is_rounding(law) and _like_noise(rows, rest):
        findings.add("compute_dtype", share, f"{text}; the size is a 16-bit type's, though not its law")
    elif not findings.causes and _old_on_record(rows) and sign.truth(rows).lean < -0.3:
        findings.add(
            "stale_weights",
            share,
            f"{text}: truthful, larger than rounding, and the log has tokens of weights {int(np.ptp(rows.version))} versions "
            "apart; old and new differ little, as when keys and values outlive an update; --model OLD would show which",
        )
    elif not findings.causes:
        findings.add("unknown", share, f"{text}; {what_next(rows)}")


MOST_ROUTING = 0.6  # nats; 0.45 is the most that was published for a mixture of experts in training
HEAVY_REPEATED = 1.45
"""The same where the trainer repeats itself, so that no dropout is behind it."""
HEAVY = 2.2
"""rms over what the median says; a Student-t of 3 degrees has 1.5, of 2.2 about 2.5."""


def _repeated_otherwise(findings: Findings, rms: float, share: float, text: str) -> bool:
    """A trainer that gives one token in one context several values."""
    again, most = marks.repeats(findings.rows), normal.most("bfloat16", None)
    if not (again.enough and again.trainer_varies and again.engine < 1.5 * most and rms > most):
        return False
    findings.add(
        "stochastic_trainer",
        share,
        f"{text}; of {again.rows} tokens asked for again in the same context the trainer's values are {again.trainer:.3g} nats apart, "
        f"the engine's {again.engine:.2g}: the trainer does not repeat itself",
    )
    return True


def _has_place(findings: Findings) -> bool:
    """Whether the skew has a place, though no fault goes with it: then it is nothing that has none."""
    return any(
        strong(each) and each.gain > 0.05 and each.place.explained > 0.3
        for each in findings.contrasts()
        if each.place.column not in OF_TOKENS and not each.place.column.startswith("seen before")
    )


def _unplaced(findings: Findings, law: noise.Noise, rms: float, share: float, text: str) -> bool:
    """Truthful and of no place, and no rounding: a bend, a few tokens far off among quiet ones, a trainer that does not
    repeat itself.
    """
    if law.lawful and (is_rounding(law) or low_precision(findings.rows)):
        return False
    return (
        _bent(findings, text) or _routed_otherwise(findings, rms, share, text) or _by_chance(findings, rms, share, text)
    )


def _bent(findings: Findings, text: str) -> bool:
    bend = None if findings.causes else _bend(findings.rows)
    if bend is None or sign.truth(findings.rows).bias.z > 4:
        return False  # an engine that samples from what it reports has a bias below 0
    findings.add(
        "one_sided_processor",
        bend,
        f"{text}; a function of the token's probability explains {bend:.0%} of the square, and it is no straight line: a bend, as "
        "of a softcap or a processor of logits on one side",
    )
    return True


def _routed_otherwise(findings: Findings, rms: float, share: float, text: str) -> bool:
    """Heavy tails: most tokens as quiet as a 16-bit type's, a few far off."""
    rows = findings.rows
    heavy, bulk = marks.tail(rows, findings.rest)
    least = HEAVY_REPEATED if _repeats_itself(rows) else HEAVY
    if routes.known(rows):
        return False  # the log says which tokens went elsewhere: these did not
    if heavy < least or bulk > LARGEST_SIGMA or not 0.05 < rms < MOST_ROUTING or _old_on_record(rows):
        return False
    if not _truthful(sign.truth(rows)):
        return False
    findings.add(
        "moe_routing",
        share,
        f"{text}; rms {heavy:.2g} times what the median says, so a few tokens are far off among quiet ones: as where a token near a tie "
        "goes to another expert; usual for a mixture of experts"
        + ("" if rows.meta.get("model_kind") != "dense" else ", but this model was declared dense"),
    )
    return True


def _by_chance(findings: Findings, rms: float, share: float, text: str) -> bool:
    """Too large for rounding, and no token has a preference of its own, as it would have under other weights."""
    rows = findings.rows
    if findings.causes or _repeats_itself(rows) or rms < 0.15 or sign.truth(rows).bias.value >= 0:
        return False
    if not marks.by_token(rows, findings.rest).unrelated:
        return False
    findings.add(
        "stochastic_trainer",
        share,
        f"{text}; truthful, in no place, too large for rounding, and different for every occurrence of a token, where other weights "
        "would favour some tokens: as of dropout in the trainer's pass (score one batch twice to see), or of weights or keys and "
        "values of 8 bits in the engine, of which the log says nothing",
    )
    return True


def _repeats_itself(rows: Rows) -> bool:
    """Whether tokens that were asked for again show that the trainer gives the same value each time."""
    again = marks.repeats(rows)
    return again.enough and not again.trainer_varies


def _bend(rows: Rows) -> float | None:
    """Share of the square that a function of the probability explains, from either side alike; None if it is none.

    Where two sides differ by chance or by their weights, the sampled token is less likely on the other side: then the
    other side's value explains much, and the sampler's own hardly anything.
    """
    one, other = (max(sign.curve_slope(rows, given=given)[0], 0.0) for given in (rows.trainer, rows.engine))
    least, most = min(one, other), max(one, other)
    return most if least > 0.2 and (least > 0.6 * most or least > 0.35) else None


def _old_on_record(rows: Rows) -> bool:
    """Whether sequences were continued under newer weights."""
    same = np.diff(rows.sequence) == 0
    return bool((rows.version >= 0).all() and (np.diff(rows.version)[same] > 0).any())


@dataclass(frozen=True)
class _Head:
    """A head that is rounded on one side."""

    name: str
    share: float
    """Of the mean square: all of it, unless a rounded body shows beside the head."""
    text: str


BODY_TOO = 1.4
"""Noise over the rounding of the head from which on half of it and more is the body's; a rounded head alone has 1.2 at
most (simulated logs), SmolLM2-135M in bfloat16 throughout 1.6."""


def _head(findings: Findings, rms: float) -> _Head | None:
    """Which side's head is rounded to bfloat16, by the grid its logits lie on."""
    rows = findings.rows
    temperature = rows.setting("temperature") or 1.0
    engine, trainer = (noise.lattice(values, rows, temperature) for values in (rows.engine, rows.trainer))
    if rms < 1e-3 or engine.coarse == trainer.coarse or min(engine.pairs, trainer.pairs) < 12:
        return None
    text = (
        f"of {engine.pairs} logit differences in equal contexts {engine.share:.0%} of the engine's and {trainer.share:.0%} of "
        f"the trainer's lie on bfloat16's grid; rms {rms:.3g}"
    )
    if trainer.coarse:
        return _Head("one_sided_fp32_head", 1.0, f"{text}: the head is float32 in the engine only")
    law = noise.noise_law(rows, findings.rest)
    rounding = engine.spacing / np.sqrt(12)
    declared = rows.meta.get("trainer_dtype"), rows.meta.get("dtype")
    if declared == ("bfloat16", "bfloat16"):
        return _Head(
            "one_sided_fp32_head", 1.0, f"{text}: the head is float32 in the trainer only, both bodies are bfloat16"
        )
    if law.sigma_z >= 2.5 * rounding:
        return None
    share = float(rounding / law.sigma_z) ** 2 if law.sigma_z > BODY_TOO * rounding else 1.0
    return _Head(
        "head_dtype", share, f"{text}; noise of {law.sigma_z:.3g} on each logit, rounding at this grid {rounding:.3g}"
    )


def dtype_floor(rows: Rows) -> float:
    """rms up to which the declared dtypes are healthy; `FLOOR` where none is declared."""
    kind = rows.meta.get("model_kind")
    dtypes = {str(rows.meta[key]) for key in ("dtype", "trainer_dtype", "head_dtype") if key in rows.meta}
    return max((normal.most(name, kind) for name in dtypes), default=FLOOR)


def is_rounding(law: noise.Noise) -> bool:
    """Whether a 16-bit type makes noise of this size."""
    return law.sigma_z < LARGEST_SIGMA and law.square < normal.most("bfloat16", None) ** 2


def _like_noise(rows: Rows, rest: Floats) -> bool:
    """Truthful, and for no token more than for another."""
    facts = sign.truth(rows)
    centred = facts.bias.value < 0.1 * np.sqrt(facts.square)
    return _truthful(facts) and bool(centred) and marks.by_token(rows, rest).unrelated


def _truthful(facts: sign.Truth) -> bool:
    """Whether the mean ratio is 1, as of an engine that reports what it samples from."""
    return abs(facts.ratio.z) < 5 or abs(facts.ratio.value) < 0.01


WIDE_CACHES = ("auto", "bfloat16", "float16", "half", "float32")
"""vLLM's names for keys and values of 16 bits and more."""


def low_precision(rows: Rows) -> bool:
    """Whether the log says that the engine's weights, or its keys and values, had fewer than 16 bits."""
    cache = str(_engine_setting(rows, "kv_cache_dtype") or "auto")
    return bool(_engine_setting(rows, "quantization")) or cache not in WIDE_CACHES


def _engine_setting(rows: Rows, name: str) -> Any:
    """What the log says of the engine: by itself, or as `skewsim measure` writes it, as it ran and as it was asked."""
    settings = rows.meta.get("settings")
    nested = [settings.get(part) for part in ("actual", "asked")] if isinstance(settings, dict) else []
    said = [each[name] for each in (rows.meta, *nested) if isinstance(each, dict) and each.get(name) is not None]
    return said[0] if said else None


def what_next(rows: Rows, *, checkpoints: bool = False) -> str:
    """The measurement that would tell the remaining causes apart."""
    wanted = []
    if (rows.context < 0).all():
        wanted.append("several responses to each prompt, logged with prompts and token ids (a temperature, lost mass and a "
                      "rounded head show between tokens of equal context)")  # fmt: skip
    if (rows.version < 0).any():
        wanted.append("the weight version of each token")
    elif np.ptp(rows.version) == 0 and not checkpoints:
        wanted.append("the checkpoints before this one (--model NEW --model OLD ...)")
    if not np.isfinite(rows.settings["temperature"]).all():
        wanted.append("the temperature, top_p and top_k of each request")
    wanted.append("the same tokens replayed in float32")
    return "cannot tell; measure next: " + "; ".join(wanted)
