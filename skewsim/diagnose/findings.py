"""What a diagnosis has found so far, and the skew that is still to be explained.

Shifted pairings and broken sequences spoil every mean, so `clean` takes them out before anything else is judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from skewsim.diagnose import alignment, where
from skewsim.diagnose import signatures as sign
from skewsim.diagnose.causes import Cause, found
from skewsim.diagnose.rows import Floats, Rows
from skewsim.diagnose.where import Contrast

FLOOR = 0.01  # rms of float16 and float32 engines: 0.0057 and 0.0024 (AknA13/train-infer-mismatch)
PLACED = (
    "different_context",
    "packed_rows",
    "position_dependent",
    "stale_replica",
    "weights_not_delivered",
    "moe_routing",
    "one_sided_processor",
    "not_the_sampled_token",
)
"""Causes that account for the rows of a place, or for every row, so that no general cause is looked for after them."""


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

    def cap(self, name: str, most: float) -> None:
        """A cause explains no more than that: the rest of it has another name."""
        self.causes = [
            replace(cause, explained=min(cause.explained, most)) if cause.name == name else cause
            for cause in self.causes
        ]

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
    aligned = alignment.align(rows) if align else None
    if aligned is not None:
        of = rows.sequences
        findings.add(
            "misaligned_tokens",
            aligned.explained,
            f"in {aligned.sequences} of {of} sequences the engine's values fit the trainer's {_how_far(aligned.shift)}: rms "
            f"{aligned.rms_before:.3g} -> {aligned.rms_after:.3g}",
        )
        findings.rows, findings.rest = aligned.rows, aligned.rows.skew
    take_out_outliers(findings, findings.rest)
    return findings


def take_out_outliers(findings: Findings, rest: Floats) -> bool:
    """Name the broken sequences of what is left and drop them; whether there were any."""
    rows = replace(findings.rows, engine=findings.rows.trainer - rest)
    if findings.has("misaligned_tokens"):  # too short to be aligned, so not known to be broken
        _, index, count = np.unique(rows.sequence, return_inverse=True, return_counts=True)
        long = count[index] >= alignment.SHORTEST
        rows, findings.rows = rows.select(long), findings.rows.select(long)
        findings.rest = findings.rows.skew
    outliers = alignment.find_outliers(rows)
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


def _how_far(shift: int) -> str:
    if shift == 0:
        return "some tokens earlier or later, each by its own number, as of a text that was tokenised again"
    return f"{abs(shift)} token(s) {'earlier' if shift > 0 else 'later'}"
