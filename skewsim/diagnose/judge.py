"""From signatures to causes, when only the two logprobs of each token are known (and, at best, prompts and versions).

Order matters: a shifted pairing or a broken sequence spoils every mean, so they are taken out first (`findings`); then
the report's truth (`truth`: temperature, truncation), then staleness where versions or prompts give a contrast, then
places (`places`), then precision. What none of these explains is called unknown, with the measurement that would tell.
"""

from __future__ import annotations

import numpy as np

from skewsim.diagnose import marks, places
from skewsim.diagnose import signatures as sign
from skewsim.diagnose.bends import name_bend
from skewsim.diagnose.findings import Findings
from skewsim.diagnose.precision import name_precision
from skewsim.diagnose.routes import name_routing
from skewsim.diagnose.staleness import stale_by_contrast
from skewsim.diagnose.truth import name_report, truncated


def judge(findings: Findings) -> None:
    """Causes from the logprobs alone, added to the findings."""
    if name_wrong_entry(findings):
        return
    name_routing(findings)
    stale_by_contrast(findings)  # a temperature or lost mass has no quiet rows; staleness, which may look like one, has
    name_bend(findings)
    name_report(findings, sure=True)
    if not findings.causes or findings.has("outlier_sequences"):
        name_places(findings)
    name_report(findings, sure=False)
    if not findings.has("stale_weights", "stale_kv"):
        stale_by_contrast(findings)
    name_precision(findings)


def name_wrong_entry(findings: Findings) -> bool:
    """The most likely token's value instead of the sampled one's; nothing else can be judged on such a column."""
    wrong = marks.wrong_entry(findings.rows)
    constant = sign.lost_mass(findings.rows).constant
    if wrong is None or truncated(findings.rows) or (constant is not None and constant > 0.9):
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
