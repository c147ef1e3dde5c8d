"""Published figures of train-inference skew, with their public sources, and how a measured profile compares.

A published figure is of one model on one pair of programs, so only a large factor means something. A profile whose rms
is within a factor of `USUAL` of the published rms of the same precision is *usual*, else *below* or *above*. Below is
no fault: a small model, or a trainer in float32, differs less. Above needs a cause.

Sources: AknA13/train-infer-mismatch (GitHub; Qwen3-1.7B, 771,300 tokens, vLLM against transformers at one dtype on both
sides); ServiceNow/Fast-LLM pull request 525 (Qwen2.5-0.5B).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

USUAL = 2.0
"""A measured rms is usual if it is at most this factor above or below the published one."""
QWEN3, FAST_LLM = "AknA13/train-infer-mismatch", "ServiceNow/Fast-LLM PR #525"
MEAN_ABS_BY_PROBABILITY = (0.1236, 0.1082, 0.0780, 0.0306, 0.0010)
"""Mean absolute skew of bfloat16 on both sides, nats, for p below .01, .1, .5, .9 and above (`QWEN3`)."""


@dataclass(frozen=True)
class Published:
    """A published skew of one precision; figures in nats."""

    precision: str
    what: str
    source: str
    rms: float
    mean_abs: float | None = None
    k3: float | None = None


FIGURES = (
    Published("bfloat16", "bf16 on both sides, Qwen3-1.7B", QWEN3, 0.0449, 0.0139, 1.00e-3),
    Published("bfloat16", "bf16 on both sides, Qwen3-8B", QWEN3, 0.0398, 0.0117, 7.84e-4),
    Published("bfloat16 with a float32 head", "bf16 with fp32 heads, Qwen2.5-0.5B", FAST_LLM, 0.031),
    Published("float16", "fp16 on both sides, Qwen3-1.7B", QWEN3, 0.0057),
    Published("float32", "fp32 on both sides, Qwen3-1.7B", QWEN3, 0.0024),
    Published("float32", "fp32 on both sides, Qwen2.5-0.5B", FAST_LLM, 0.0022),
    Published("fp8 keys and values", "bf16 with fp8 KV, Qwen3-1.7B", QWEN3, 0.178),
)
"""Published figures; a verdict names the first one of its precision."""


@dataclass(frozen=True)
class Verdict:
    """A profile compared with the published figure of its precision; `published` is None if there is none."""

    precision: str
    rms: float | None
    published: Published | None
    verdict: Literal["below", "usual", "above", "nothing published"]
    advice: str

    def __str__(self) -> str:
        if self.published is None or self.rms is None:
            return f"nothing published for {self.precision} to compare with"
        row = self.published
        return (
            f"rms {self.rms:.3g} against {row.rms:.3g} published for {row.precision} ({row.what}; {row.source}): "
            f"{self.verdict}; {self.advice}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(precision: str, rms: float | None) -> Verdict:
    """Compare the profile's rms skew with the published one of the same precision."""
    row = next((figure for figure in FIGURES if figure.precision == precision), None)
    if row is None or rms is None:
        return Verdict(precision, rms, None, "nothing published", "compare with another engine: skewsim replay")
    if rms < row.rms / USUAL:
        return Verdict(precision, rms, row, "below", "nothing to look at")
    if rms <= row.rms * USUAL:
        return Verdict(
            precision, rms, row, "usual", "the noise of this dtype; skewsim advise says which thresholds bear it"
        )
    return Verdict(precision, rms, row, "above", "look at its cause: skewsim diagnose, and skewsim measure --legs")
