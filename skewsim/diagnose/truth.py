"""Whether the report is true: a temperature on one side only, raw logprobs, probability mass that was cut off.

Each of them moves every token by a rule, so they are judged on all rows at once.
"""

from __future__ import annotations

import numpy as np

from skewsim.catalogue import truncates
from skewsim.diagnose import marks
from skewsim.diagnose import signatures as sign
from skewsim.diagnose.findings import FLOOR, PLACED, Findings
from skewsim.diagnose.rows import Floats, Rows, within
from skewsim.diagnose.view import LARGEST_ROUNDING


def name_report(findings: Findings, *, sure: bool) -> None:
    """Temperature and lost mass; `sure` is before any place is looked at, and then only what cannot be anything
    else.
    """
    rows = findings.rows
    facts = sign.truth(rows)
    if facts.square < FLOOR**2 / 4 or len(rows) < 50 or findings.has(*_SEMANTIC, *PLACED):
        return
    temperature = sure and _temperature(findings, facts)
    if not sure or temperature or _constant(rows):
        _truncation(findings, facts, temperature=temperature)


_SEMANTIC = ("raw_logprobs", "wrong_temperature", "truncation_mass")
LEAST_K, MOST_K = 0.2, 5.0
LEAST_SHARE = 0.72
"""Least share that a temperature explains in equal contexts."""
EXACT = 0.95
"""Share from which the line in equal contexts is sure by itself."""
SAME_SLOPE = 0.16
"""By how much the slopes inside and outside equal contexts may differ, of the slope."""
TOGETHER = 0.8
"""Least product of the slopes both ways round; a temperature only stretches, and the product is 1."""


def _constant(rows: Rows) -> bool:
    """Truncation by its shape: never above 0, and one number for each context, where enough contexts are shared."""
    signs = sign.lost_mass(rows)
    square = float((rows.skew[rows.context >= 0] ** 2).sum()) / max(float((rows.skew**2).sum()), 1e-30)
    return bool(truncated(rows) or (signs.constant is not None and signs.constant > 0.5 and square > 0.2))


def _temperature(findings: Findings, facts: sign.Truth) -> bool:
    """Raw logprobs or a wrong temperature; the sign of the bias says who was sampled from."""
    rows = findings.rows
    slope = sign.context_slope(rows)
    total = max(float((rows.skew**2).sum()), 1e-30)
    if slope is not None:
        k, share = slope.k.value, slope.explained
        if abs(k - 1) < max(0.02, 5 * slope.k.error) or share < LEAST_SHARE:
            findings.notes.append(
                f"a temperature is ruled out: slope within contexts {slope.k} over {slope.tokens} tokens"
            )
            return False
        if not LEAST_K < k < MOST_K or k * slope.back < TOGETHER:
            findings.notes.append(
                f"a temperature is ruled out: slope within contexts {slope.k}, the other way round {slope.back:.3g}: not one line"
            )
            return False
        alone = rows.context < 0
        if alone.sum() >= 50 and not _stretched(rows.select(alone), k, np.inf if share > EXACT else slope.k.error):
            findings.notes.append(f"a temperature is ruled out: slope {slope.k} does not hold outside equal contexts")
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
        left = np.sqrt((1 - share) * facts.square)
        if (
            share < (0.6 if left < LARGEST_ROUNDING else 0.66)
            or abs(k - 1) < 0.03
            or one_signed
            or not _stretched(rows, k)
        ):
            return False
        how = f"a function of the token's probability explains {share:.0%} of the skew, with slope {k:.3g}"
    raw = _sampled_by_trainer(facts, k, rows)
    request = rows.setting("temperature")
    known = "" if request is None else f" (request {request:.3g}: engine {request / k:.3g} if that is the trainer's)"
    moments = f"bias {facts.bias}, mean mismatch ratio - 1 = {facts.ratio}, mean inverse - 1 = {facts.inverse}"
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


def _stretched(rows: Rows, k: float, error: float = np.inf) -> bool:
    """Whether engine and trainer are one line with this slope also where each context has a normaliser of its own."""
    if not LEAST_K < k < MOST_K or marks.agreement(rows.engine, rows.trainer) ** 2 < TOGETHER:
        return False
    return abs(k - sign.curve_slope(rows, given=(rows.engine + rows.trainer) / 2)[1]) < max(SAME_SLOPE * k, 3 * error)


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
    active = truncated(rows)
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
        f"mean mismatch ratio {1 - lost:.3f} ± {signs.mass.error:.1g}, below one: mean kept mass; {signs.one_sided:.0%} one-sided"
        + ("" if signs.constant is None else f", {signs.constant:.0%} of the square is one number for each context")
        + _settings_text(rows),
    )


def _without_context_means(rows: Rows) -> Floats:
    """What one number per context leaves; where a context was seen once, the positive part mirrored is the noise."""
    rest = np.where(rows.skew > 0, rows.skew * np.sqrt(2), 0.0)
    shared, inner = within(rows.skew, rows.context)
    rest[shared] = inner
    return rest


def truncated(rows: Rows) -> bool | None:
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
