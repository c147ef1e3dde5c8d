"""From signatures to causes, when only the two logprobs of each token are known (and, at best, prompts and versions).

Order matters: a shifted pairing or a broken sequence spoils every mean, so they are taken out first; then the
report's truth (temperature, truncation), then staleness where versions or prompts give a contrast, then precision.
What none of these explains is called unknown, with the measurement that would tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from skewsim.diagnose import marks, normal, places, where
from skewsim.diagnose import signatures as sign
from skewsim.diagnose.causes import Cause, found
from skewsim.diagnose.rows import Floats, Rows, within
from skewsim.diagnose.where import Contrast
from skewsim.settings import truncates

FLOOR = 0.01  # rms of float16 and float32 engines: 0.0057 and 0.0024 (AknA13/train-infer-mismatch)
LARGEST_SIGMA = 0.3  # noise per logit: 0.155 for bfloat16 (Qwen3), so twice that is no rounding of a 16-bit type


@dataclass
class Findings:
    """What has been found so far, and the skew still to be explained."""

    rows: Rows
    total: float
    """Sum of squares that the shares refer to."""
    rest: Floats
    broken: Rows | None = None
    """Rows of the sequences taken out."""
    causes: list[Cause] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scanned: tuple[Rows, list[Contrast]] | None = None
    """The contrasts of some rows, so that they are looked for once."""
    scanned_rest: Floats | None = None
    placed: list[Floats] = field(default_factory=list)
    """The skew of rows that a place was named for: named, but not computed away."""

    def add(self, name: str, explained: float, evidence: str) -> None:
        self.causes.append(found(name, min(max(explained, 0.0), 1.0), evidence))

    def add_to(self, name: str, explained: float, evidence: str) -> None:
        """The same where the cause may be there already: prompts cached under several weights are one cause."""
        before = next((cause for cause in self.causes if cause.name == name), None)
        if before is not None:
            self.causes.remove(before)
            explained, evidence = before.explained + explained, f"{before.evidence}; {evidence}"
        self.add(name, explained, evidence)

    def contrasts(self) -> list[Contrast]:
        """Where the rest lives."""
        if self.scanned is None or self.scanned[0] is not self.rows or self.rest is not self.scanned_rest:
            self.scanned, self.scanned_rest = (self.rows, where.scan(self.rows, self.rest)), self.rest
        return self.scanned[1]

    @property
    def unexplained(self) -> float:
        """Mean square of the rest; what was taken out as broken is not explained either."""
        left = np.concatenate([self.rest, self.broken.skew if self.broken is not None else [], *self.placed])
        return float((left**2).mean()) if len(left) else 0.0

    def has(self, *names: str) -> bool:
        return any(cause.name in names for cause in self.causes)


def clean(rows: Rows, *, align: bool = True) -> Findings:
    """Alignment (unless it is taken for right) and broken sequences, taken out."""
    findings = Findings(rows, float((rows.skew**2).sum()), rows.skew)
    aligned = sign.align(rows) if align else None
    if aligned is not None:
        of = rows.sequences
        findings.add(
            "misaligned_tokens",
            aligned.explained,
            f"in {aligned.sequences} of {of} sequences the engine's values fit the trainer's {abs(aligned.shift)} token(s) "
            f"{'earlier' if aligned.shift > 0 else 'later'}: rms {aligned.rms_before:.3g} -> {aligned.rms_after:.3g}",
        )
        findings.rows, findings.rest = aligned.rows, aligned.rows.skew
    take_out_outliers(findings, findings.rest)
    return findings


def take_out_outliers(findings: Findings, rest: Floats) -> bool:
    """Name the broken sequences of what is left and drop them; whether there were any."""
    rows = replace(findings.rows, engine=findings.rows.trainer - rest)
    if findings.has("misaligned_tokens"):  # too short to be aligned, so not known to be broken
        _, index, count = np.unique(rows.sequence, return_inverse=True, return_counts=True)
        long = count[index] >= sign.SHORTEST
        rows, findings.rows = rows.select(long), findings.rows.select(long)
        findings.rest = findings.rows.skew
    outliers = sign.find_outliers(rows)
    if outliers is None:
        return False
    broken = np.isin(rows.sequence, outliers.sequences)
    prompts = sign.by_prompt(rows, rows.skew)
    if prompts is not None and prompts.group[broken].all() and (prompts.group & ~broken).sum() < 0.2 * broken.sum():
        return False  # not broken: these are the ones whose prompt was cached
    share = float((rows.skew[broken] ** 2).sum()) / max(findings.total, 1e-30)
    if findings.has("misaligned_tokens") and share < 0.1:
        return False  # rather shifted ones that were not recognised
    names = ", ".join(str(number) for number in outliers.sequences[:5])
    findings.add(
        "outlier_sequences",
        share,
        f"{len(outliers.sequences)} of {rows.sequences} sequences (numbers {names}) stand out: "
        f"rms {outliers.rms_inside:.3g} in them, {outliers.rms_outside:.3g} in the rest",
    )
    findings.rows, findings.broken = findings.rows.select(~broken), findings.rows.select(broken)
    findings.rest = findings.rows.skew
    return True


def judge(findings: Findings) -> None:
    """Causes from the logprobs alone, added to the findings."""
    if name_wrong_entry(findings):
        return
    stale_by_contrast(findings)  # a temperature or lost mass has no quiet rows; staleness, which may look like one, has
    _semantic(findings, sure=True)
    if not findings.causes or findings.has("outlier_sequences"):
        name_places(findings)
    _semantic(findings, sure=False)
    if not findings.has("stale_weights", "stale_kv"):
        stale_by_contrast(findings)
    _precision(findings)


def name_wrong_entry(findings: Findings) -> bool:
    """The most likely token's value instead of the sampled one's; nothing else can be judged on such a column."""
    wrong = marks.wrong_entry(findings.rows)
    constant = sign.lost_mass(findings.rows).constant
    if wrong is None or _truncates(findings.rows) or (constant is not None and constant > 0.9):
        return False  # lost mass, too, is above everywhere, by one number for each context
    other = "trainer" if wrong.side == "engine" else "engine"
    inside = wrong.rows
    findings.add(
        "not_the_sampled_token",
        float((findings.rest[inside] ** 2).sum()) / max(findings.total, 1e-30),
        f"the {wrong.side}'s value is above the {other}'s at {wrong.apart:.0%} of the improbable tokens and as good as never below; the "
        f"two are equal (median {wrong.equal:.2g} nats apart) where the sampled token was the most likely one: the {wrong.side} column "
        "holds the most likely token's value",
    )
    keep = ~inside
    findings.rows, findings.rest = findings.rows.select(keep), findings.rest[keep]
    return True


MOST_PLACES = 2


def name_places(findings: Findings) -> None:
    """Faults that show in where the skew is; what each accounts for is taken out before the next is looked for."""
    for _ in range(MOST_PLACES):
        if len(findings.rows) < 200:
            return
        named = places.name(findings.rows, findings.rest, findings.total, findings.contrasts())
        if named is None or findings.has(named.cause.name) or named.cause.explained < places.LEAST_NAMED:
            return
        findings.causes.append(named.cause)
        findings.placed.append(findings.rest[named.inside])
        if named.cause.name == "one_sided_processor":  # it moves every token a little: nothing is left to measure on
            findings.rest = np.zeros(len(findings.rest))
            return
        findings.rows, findings.rest = findings.rows.select(~named.inside), findings.rest[~named.inside]


# -------------------------------------------------------------------------------------------------- semantic layer


def _semantic(findings: Findings, *, sure: bool) -> None:
    """Temperature and lost mass; `sure` is before any place is looked at, and then only what cannot be anything
    else.
    """
    rows = findings.rows
    facts = sign.truth(rows)
    if facts.square < FLOOR**2 / 4 or len(rows) < 50 or findings.has(*_SEMANTIC, *_PLACED):
        return
    temperature = sure and _temperature(findings, facts)
    if not sure or temperature or _constant(rows):
        _truncation(findings, facts, temperature=temperature)


_SEMANTIC = ("raw_logprobs", "wrong_temperature", "truncation_mass")
_PLACED = (
    "different_context",
    "packed_rows",
    "position_dependent",
    "stale_replica",
    "weights_not_delivered",
    "moe_routing",
    "one_sided_processor",
    "not_the_sampled_token",
)
LEAST_K, MOST_K = 0.2, 5.0
TOGETHER = 0.8
"""Least product of the slopes both ways round; a temperature only stretches, and the product is 1."""


def _constant(rows: Rows) -> bool:
    """Truncation by its shape: never above 0, and one number for each context, where enough contexts are shared."""
    signs = sign.lost_mass(rows)
    square = float((rows.skew[rows.context >= 0] ** 2).sum()) / max(float((rows.skew**2).sum()), 1e-30)
    return bool(_truncates(rows) or (signs.constant is not None and signs.constant > 0.5 and square > 0.2))


def _temperature(findings: Findings, facts: sign.Truth) -> bool:
    """Raw logprobs or a wrong temperature; the sign of the bias says who was sampled from."""
    rows = findings.rows
    slope = sign.context_slope(rows)
    total = max(float((rows.skew**2).sum()), 1e-30)
    if slope is not None:
        k, share = slope.k.value, slope.explained
        if abs(k - 1) < max(0.02, 5 * slope.k.error) or share < 0.8:
            findings.notes.append(f"no temperature: slope within contexts {slope.k} over {slope.tokens} tokens")
            return False
        if not LEAST_K < k < MOST_K or k * slope.back < TOGETHER:
            findings.notes.append(
                f"no temperature: slope within contexts {slope.k}, the other way round {slope.back:.3g}: not one line"
            )
            return False
        alone = rows.context < 0
        if alone.sum() >= 50 and not _stretched(rows.select(alone), k):
            findings.notes.append(f"no temperature: slope {slope.k} does not hold outside equal contexts")
            return False
        how = f"within {slope.tokens} tokens of equal context, engine = {slope.k} x trainer + const, explaining {share:.0%}"
        if alone.any():
            tested = float((rows.skew[~alone] ** 2).sum()) / total
            outside = sign.curve_slope(rows.select(alone), given=rows.trainer[alone])[0]
            share = share * tested + max(outside, 0.0) * (1 - tested)
            how += f", and of the other tokens a function of their probability explains {max(outside, 0.0):.0%}"
    else:
        share, k = max(sign.curve_slope(rows, given=given) for given in (rows.trainer, rows.engine))
        one_signed = float((rows.skew > FLOOR).mean()) < 0.05 and facts.ratio.z < -4
        if share < 0.6 or abs(k - 1) < 0.03 or one_signed or not _stretched(rows, k):
            return False
        how = f"a function of the token's probability explains {share:.0%} of the skew, with slope {k:.3g}"
    raw = _sampled_by_trainer(facts, k, rows)
    request = rows.setting("temperature")
    known = "" if request is None else f" (request {request:.3g}: engine {request / k:.3g} if that is the trainer's)"
    moments = f"bias {facts.bias}, mean ratio - 1 = {facts.ratio}, mean inverse ratio - 1 = {facts.inverse}"
    if raw and request != 1.0:
        findings.add(
            "raw_logprobs",
            share,
            f"{how}; k is the temperature ({k:.3g}) if the engine reports at 1; {moments}: tokens were not sampled from what is reported",
        )
    else:
        findings.add(
            "wrong_temperature",
            share,
            f"{how}; the trainer's temperature over the engine's is {k:.3g}{known}; {moments}",
        )
    findings.rest = _temperature_rest(rows, k)
    return True


def _stretched(rows: Rows, k: float) -> bool:
    """Whether engine and trainer are one line with a plausible slope also where each context has a normaliser of its
    own.
    """
    if not LEAST_K < k < MOST_K:
        return False
    together = marks.agreement(rows.engine, rows.trainer)
    return together**2 > TOGETHER


def _sampled_by_trainer(facts: sign.Truth, k: float, rows: Rows) -> bool:
    """Whether the trainer's distribution is the one that was sampled from, so that the engine's report is raw."""
    request = rows.setting("temperature")
    if abs(facts.bias.z) > 4:
        return facts.bias.value > 0
    if request is not None and request != 1.0 and abs(k - request) < 0.2 * abs(request - 1):
        return facts.bias.z > -2
    return abs(facts.inverse.z) < abs(facts.ratio.z)


def _temperature_rest(rows: Rows, k: float) -> Floats:
    """The skew without the temperature: engine - k trainer less its normaliser (each context's own, else by
    probability).
    """
    gap = k * rows.trainer - rows.engine
    shared, inner = within(gap, rows.context)
    rest = np.empty(len(gap))
    order = np.argsort(rows.trainer)
    for part in np.array_split(order, max(4, min(40, len(order) // 50))):
        rest[part] = gap[part] - gap[part].mean()
    rest[shared] = inner
    return rest


def _truncation(findings: Findings, facts: sign.Truth, *, temperature: bool) -> None:
    rows = findings.rows
    active = _truncates(rows)
    if active is False or findings.has("raw_logprobs"):
        return
    signs = sign.lost_mass(rows)
    lost = -signs.mass.value
    needed = signs.mass.z < -4 and lost > 0.003
    shape = signs.one_sided > 0.5 or (signs.constant is not None and signs.constant > 0.5 and signs.one_sided > 0.2)
    bounded = float(np.quantile(rows.skew, 0.002)) > -4 and float((rows.skew > 0.15).mean()) < 0.03
    if not needed or not bounded or not (shape or temperature or (active and facts.lean < -1.2)):
        return
    explained = signs.one_sided if signs.constant is None else max(signs.one_sided, signs.constant)
    if rows.kept_mass is not None and np.isfinite(rows.kept_mass).all():
        predicted = np.log(rows.kept_mass)
        explained = 1 - float(((rows.skew - predicted) ** 2).sum() / (rows.skew**2).sum())
        findings.rest = findings.rest - predicted
    elif not temperature:
        findings.rest = _without_context_means(rows)
    findings.add(
        "truncation_mass",
        0.5 * explained if temperature else explained,
        f"mean ratio {1 - lost:.3f} ± {signs.mass.error:.1g}, below one: mean kept mass; {signs.one_sided:.0%} one-sided"
        + ("" if signs.constant is None else f", {signs.constant:.0%} of the square is one number for each context")
        + _settings_text(rows),
    )


def _without_context_means(rows: Rows) -> Floats:
    """What one number per context leaves; where a context was seen once, the positive part mirrored is the noise."""
    rest = np.where(rows.skew > 0, rows.skew * np.sqrt(2), 0.0)
    shared, inner = within(rows.skew, rows.context)
    rest[shared] = inner
    return rest


def _truncates(rows: Rows) -> bool | None:
    """Whether top-p, top-k or min-p cut something off; None if that is not recorded."""
    values = {name: rows.settings[name] for name in ("top_p", "top_k", "min_p")}
    known = [np.isfinite(column).all() for column in values.values()]
    if not any(known):
        return None
    top_p, top_k, min_p = (
        np.nan_to_num(column, nan=off) for column, off in zip(values.values(), (1.0, 0.0, 0.0), strict=True)
    )
    return bool(truncates(top_p, top_k, min_p).any())


def _settings_text(rows: Rows) -> str:
    known = {name: rows.setting(name) for name in ("top_p", "top_k", "min_p")}
    text = ", ".join(f"{name} {value:g}" for name, value in known.items() if value is not None)
    return f"; the request says {text}" if text else ""


# ------------------------------------------------------------------------------------------------- staleness


def stale_by_contrast(findings: Findings) -> None:
    """Older versions and cached prompts against the rest; the stronger contrast first, then the other in its quiet
    rows.
    """
    rows, rest = findings.rows, findings.rest
    version, prompt = sign.by_version(rows, rest), sign.by_prompt(rows, rest)
    known = rows.version >= 0
    stale = np.zeros(len(rows), dtype=bool)
    whole = float((rest**2).sum())
    base = findings.total if findings.total > 0 else 1.0
    if version is not None and (_clear(version) or _beyond_rounding(version)) and not _better(prompt, version):
        stale[known] = version.group
        newest = rows.meta.get("trainer_version", int(rows.version[known].max()))
        lag = newest - rows.version[stale]
        findings.add(
            "stale_weights",
            version.explained * whole / base,
            f"rms {np.sqrt(version.high):.3g} in the {stale.mean():.0%} of tokens sampled {lag.min()} to {lag.max()} versions "
            f"before {newest}, {np.sqrt(version.low):.3g} in the others (z {version.z:.1f}){_boundary_text(rows, stale)}",
        )
        quiet = rows.select(~stale)
        prompt = sign.by_prompt(quiet, rest[~stale]) if len(quiet) >= 100 else None
        rows = quiet
    if prompt is not None and _clear(prompt):
        skew = rest[~stale]
        first = (rows.position == 0) & prompt.group
        findings.add(
            "stale_kv",
            prompt.explained * float((skew**2).sum()) / base,
            f"rms {np.sqrt(prompt.high):.3g} after prompts seen before, {np.sqrt(prompt.low):.3g} after new ones "
            f"(z {prompt.z:.1f}); {np.sqrt((skew[first] ** 2).mean() if first.any() else 0):.3g} at the first response token already",
        )
        keep = np.flatnonzero(~stale)[~prompt.group]
    else:
        keep = np.flatnonzero(~stale)
    if len(keep) < len(findings.rows):
        chosen = np.zeros(len(findings.rows), dtype=bool)
        chosen[keep] = True
        findings.rows, findings.rest = findings.rows.select(chosen), findings.rest[chosen]


def _clear(each: sign.Contrast) -> bool:
    return each.z > 4 and each.high > 4 * each.low and np.sqrt(each.high) > 1e-3


def _beyond_rounding(each: sign.Contrast) -> bool:
    """Tokens after an update in mid-sequence still read old keys and values, so theirs is no quiet skew."""
    return each.z > 4 and each.high > 1.8 * each.low and each.high > 0.1**2


def _better(prompt: sign.Contrast | None, version: sign.Contrast) -> bool:
    """The prompts explain it and the versions do not add to that."""
    return prompt is not None and _clear(prompt) and prompt.low < 0.3 * version.low


def _boundary_text(rows: Rows, stale: np.ndarray) -> str:
    """Where in the sequence the newer weights take over, if they do."""
    ids = np.unique(rows.sequence)
    fresh = [rows.position[(rows.sequence == each) & ~stale] for each in ids[:50]]
    starts = [int(position.min()) for position in fresh if len(position)]
    if not starts or max(starts) == 0:
        return ""
    return f"; the newest weights take over at token {int(np.median(starts))}"


# ------------------------------------------------------------------------------------------------- precision


def _precision(findings: Findings) -> None:
    """Noise, if what is left is larger than a 16-bit float's and follows the law; else unknown."""
    rows, rest = findings.rows, findings.rest
    if len(rows) < 50:
        return
    rms = float(np.sqrt((rest**2).mean()))
    share = float((rest**2).sum()) / findings.total if findings.total > 0 else 0.0
    head = None if findings.causes else _head(findings, rms)
    if head is not None:
        findings.add(head[0], share, head[1])
        return
    declared = dtype_floor(rows)
    if rms <= declared or findings.has("raw_logprobs", "wrong_temperature", "truncation_mass"):
        return  # within the dtype; and what a semantic fault leaves without a model is its own approximation
    if findings.has("stale_weights"):
        findings.notes.append(
            f"rms {rms:.3g} is left where the weights are the newest: older keys and values, or rounding"
        )
        return
    law = sign.noise_law(rows, rest)
    if findings.has(*_PLACED, "placeholder_logprobs"):
        findings.notes.append(f"elsewhere {normal.usual(rms, None, rows.meta.get('model_kind'))}")
        return
    text = (
        f"rms {rms:.3g}; noise of {law.sigma_z:.3g} on each logit, the law holds within a factor {law.spread:.2g} "
        f"from improbable to probable tokens; bias {law.bias}"
    )
    if _repeated_otherwise(findings, rms, share, text):
        return
    if not _placed(findings) and _unplaced(findings, law, rms, share, text):
        return
    if law.lawful and (is_rounding(law) or low_precision(rows)):
        findings.add("compute_dtype", share, text)
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


def _placed(findings: Findings) -> bool:
    """Whether the skew has a place, though no fault goes with it: then it is nothing that has none."""
    return any(
        places.strong(each) and each.gain > 0.05 and each.place.explained > 0.3
        for each in findings.contrasts()
        if each.place.column not in places.OF_TOKENS and not each.place.column.startswith("seen before")
    )


def _unplaced(findings: Findings, law: sign.Noise, rms: float, share: float, text: str) -> bool:
    """Truthful and of no place: a trainer that does not repeat itself, a bend, a few tokens far off among quiet
    ones.
    """
    rows, rest = findings.rows, findings.rest
    again = marks.repeats(rows)
    rounding = law.lawful and (is_rounding(law) or low_precision(rows))
    heavy, bulk = marks.tail(rows, rest)
    if (
        not rounding
        and heavy > HEAVY
        and bulk < LARGEST_SIGMA
        and 0.05 < rms < MOST_ROUTING
        and not _old_on_record(rows)
    ):
        findings.add(
            "moe_routing",
            share,
            f"{text}; rms {heavy:.2g} times what the median says, so a few tokens are far off among quiet ones: as where a token near a tie "
            "goes to another expert; usual for a mixture of experts"
            + ("" if rows.meta.get("model_kind") != "dense" else ", but this model was declared dense"),
        )
        return True
    if not rounding and not findings.causes and marks.agreement(rows.engine, rows.trainer) ** 2 > TOGETHER:
        bend = max(sign.curve_slope(rows, given=given)[0] for given in (rows.trainer, rows.engine))
        if bend > 0.5:
            findings.add(
                "one_sided_processor",
                bend,
                f"{text}; a function of the token's probability explains {bend:.0%} of the square, and it is no straight line: a bend, as "
                "of a softcap or a processor of logits on one side",
            )
            return True
    unrelated = abs(marks.by_token(rows, rest)) < 3 and not (again.enough and not again.trainer_varies)
    if not rounding and not findings.causes and unrelated and rms > 0.15 and sign.truth(rows).bias.value < 0:
        findings.add(
            "stochastic_trainer",
            share,
            f"{text}; truthful, in no place, too large for rounding, and different for every occurrence of a token, where other weights "
            "would favour some tokens: as of dropout in the trainer's pass (score one batch twice to see)",
        )
        return True
    return False


def _old_on_record(rows: Rows) -> bool:
    """Whether sequences were continued under newer weights."""
    same = np.diff(rows.sequence) == 0
    return bool((rows.version >= 0).all() and (np.diff(rows.version)[same] > 0).any())


def _head(findings: Findings, rms: float) -> tuple[str, str] | None:
    """Which side's head is rounded to bfloat16, by the grid its logits lie on."""
    rows = findings.rows
    temperature = rows.setting("temperature") or 1.0
    engine, trainer = (sign.lattice(values, rows, temperature) for values in (rows.engine, rows.trainer))
    if rms < 1e-3 or engine.coarse == trainer.coarse or min(engine.pairs, trainer.pairs) < 12:
        return None
    text = (
        f"of {engine.pairs} logit differences in equal contexts {engine.share:.0%} of the engine's and {trainer.share:.0%} of "
        f"the trainer's lie on bfloat16's grid; rms {rms:.3g}"
    )
    if trainer.coarse:
        return "one_sided_fp32_head", text + ": the head is float32 in the engine only"
    law = sign.noise_law(rows, findings.rest)
    rounding = engine.spacing / np.sqrt(12)
    declared = rows.meta.get("trainer_dtype"), rows.meta.get("dtype")
    if declared == ("bfloat16", "bfloat16"):
        return "one_sided_fp32_head", text + ": the head is float32 in the trainer only, both bodies are bfloat16"
    if law.sigma_z < 2.5 * rounding:
        return "head_dtype", text + f"; noise of {law.sigma_z:.3g} on each logit, rounding at this grid {rounding:.3g}"
    return None


def dtype_floor(rows: Rows) -> float:
    """rms up to which the declared dtypes are healthy; `FLOOR` where none is declared."""
    kind = rows.meta.get("model_kind")
    dtypes = {str(rows.meta[key]) for key in ("dtype", "trainer_dtype", "head_dtype") if key in rows.meta}
    return max((normal.most(name, kind) for name in dtypes), default=FLOOR)


def is_rounding(law: sign.Noise) -> bool:
    """Whether a 16-bit type makes noise of this size."""
    return law.sigma_z < LARGEST_SIGMA and law.square < normal.most("bfloat16", None) ** 2


def low_precision(rows: Rows) -> bool:
    return bool(rows.meta.get("quantization")) or str(rows.meta.get("kv_cache_dtype", "auto")) not in ("auto", "None")


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
