"""Older weights and cached prompts, found by contrast: tokens of older versions, or after prompts seen before, against
the rest.
"""

from __future__ import annotations

import numpy as np

from skewsim.diagnose import signatures as sign
from skewsim.diagnose.findings import Findings
from skewsim.diagnose.rows import Rows


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
    if version is not None and (version.clear or _beyond_rounding(version)) and not _better(prompt, version):
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
    if prompt is not None and prompt.clear:
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


def _beyond_rounding(each: sign.Contrast) -> bool:
    """Tokens after an update in mid-sequence still read old keys and values, so theirs is no quiet skew."""
    return each.z > 4 and each.high > 1.8 * each.low and each.high > 0.1**2


def _better(prompt: sign.Contrast | None, version: sign.Contrast) -> bool:
    """The prompts explain it and the versions do not add to that."""
    return prompt is not None and prompt.clear and prompt.low < 0.3 * version.low


def _boundary_text(rows: Rows, stale: np.ndarray) -> str:
    """Where in the sequence the newer weights take over, if they do."""
    ids = np.unique(rows.sequence)
    fresh = [rows.position[(rows.sequence == each) & ~stale] for each in ids[:50]]
    starts = [int(position.min()) for position in fresh if len(position)]
    if not starts or max(starts) == 0:
        return ""
    return f"; the newest weights take over at token {int(np.median(starts))}"
