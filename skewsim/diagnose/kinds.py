"""Bias or noise: what the moments of the skew say of the engine's report, whatever the cause.

A truthful engine has E exp(d) = 1 and E d < 0; where the tokens came from the trainer's distribution E exp(-d) = 1 and
E d > 0. These are means over the tokens that were sampled, so no prompt needs two responses.
"""

from __future__ import annotations

import numpy as np

from skewsim.diagnose import noise
from skewsim.diagnose import signatures as sign
from skewsim.diagnose.rows import Rows

OF_CAUSE = {
    **dict.fromkeys(
        ("placeholder_logprobs", "not_the_sampled_token", "misaligned_tokens", "raw_logprobs"), "misreported"
    ),
    **dict.fromkeys(("truncation_mass", "wrong_temperature", "different_context", "packed_rows"), "other_distribution"),
    **dict.fromkeys(("one_sided_processor", "stale_kv", "stale_weights"), "other_distribution"),
    **dict.fromkeys(("stale_replica", "weights_not_delivered"), "other_distribution"),
    **dict.fromkeys(
        ("head_dtype", "one_sided_fp32_head", "compute_dtype", "moe_routing", "stochastic_trainer"), "noise"
    ),
}
WORDS = {
    "misreported": "bias: what the engine reports is not the log-probability of what it sampled; no weight mends it",
    "other_distribution": "another distribution: the engine reports what it sampled from, and the trainer computes something else; "
    "a weight would correct it, at a price in variance",
    "noise": "noise: truthful, on both sides of 0, growing as tokens become improbable; a weight corrects it",
    "none": "none: the two sides agree",
}
PRICED = "noise: truthful, on both sides of 0; a weight would correct it, at a price in variance, and its cause stays"
"""Of noise that does not belong to a healthy engine."""
LAWFUL = ("healthy", "compute_dtype", "head_dtype", "one_sided_fp32_head", "moe_routing")
AGREE = 2e-3  # rms of two float32 implementations (published 0.0024)


def kind_of(verdict: str, rows: Rows) -> tuple[str, str]:
    """(kind, words with the moments). The cause decides where there is one, the moments where there is none."""
    facts = sign.truth(rows)
    kind = OF_CAUSE.get(verdict) or _by_moments(verdict, facts, rows)
    words = PRICED if kind == "noise" and verdict not in LAWFUL else WORDS[kind]
    moments = f"E exp(d) = {1 + facts.ratio.value:.4g} ± {facts.ratio.error:.1g}, E exp(-d) = {1 + facts.inverse.value:.4g} ± {facts.inverse.error:.1g}, bias {facts.bias}"
    if verdict == "placeholder_logprobs":
        moments = f"the other {len(rows)} tokens: {_by_moments('', facts, rows).replace('_', ' ')}, {moments}"
    return kind, f"{words} ({moments})"


def _by_moments(verdict: str, facts: sign.Truth, rows: Rows) -> str:
    if np.sqrt(facts.square) <= AGREE:
        return "none"
    if verdict == "outlier_sequences" or _misreported(facts, rows):
        return "misreported"
    if verdict == "healthy" or (noise.noise_law(rows, rows.skew).lawful and facts.square < 0.3**2):
        return "noise"
    return "other_distribution"


def _misreported(facts: sign.Truth, rows: Rows) -> bool:
    """E exp(d) is off in a way that rare tokens which were not sampled cannot make."""
    if facts.bias.z > 5 and facts.bias.value > 0.1 * np.sqrt(facts.square):
        return True  # a truthful engine has a bias below 0
    off = abs(facts.ratio.z) > 5 and abs(facts.ratio.value) > 0.01
    return bool(off and (facts.ratio.value > 0 or sign.lost_mass(rows).one_sided > 0.8))
