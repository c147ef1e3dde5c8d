"""Is it normal? The skew's size beside what is published for a dtype and a kind of model.

The limits leave room around the published figures (`skewsim.skew.published`) for small and for sharp models.
"""

from __future__ import annotations

from skewsim.skew.placing import place
from skewsim.skew.published import DTYPES, KINDS
from skewsim.skew.published import check_kind as check

__all__ = ["DTYPES", "KINDS", "MOST", "check", "most", "usual"]

MOST = {("float32", "dense"): 0.01, ("float16", "dense"): 0.02, ("bfloat16", "dense"): 0.12, ("fp8", "dense"): 0.36}
"""rms up to which a dtype is usual: what is published, with room for small and for sharp models."""
MOST |= {("float32", "moe"): 0.02, ("float16", "moe"): 0.08, ("bfloat16", "moe"): 0.3, ("fp8", "moe"): 0.45}
LIKE = {
    "float32": "float32 on both sides",
    "float16": "float16 on both sides",
    "bfloat16": "bfloat16 on a dense model",
    "fp8": "8-bit keys and values or weights",
}
LIKE_MOE = "bfloat16 on a mixture of experts"


def most(dtype: str, model_kind: str | None) -> float:
    return MOST.get((dtype, model_kind or "dense"), 0.01)


def usual(rms: float, dtype: str | None, model_kind: str | None) -> str:
    """The size in words, beside the range that is published for the dtype it is nearest to."""
    if dtype is not None:
        kind = model_kind if dtype == "bfloat16" else None
        if rms <= most(dtype, model_kind):
            return f"rms {rms:.3g}: usual for {_like(dtype, kind, rms, most(dtype, model_kind))}"
        return f"rms {rms:.3g}: above what is usual for {_like(dtype, kind)}"
    for name, lower in (("float32", None), ("float16", "float32"), ("bfloat16", "float16")):
        if rms <= most(name, None):
            above = f"; above what {lower} shows" if lower else ""
            return f"rms {rms:.3g}: usual for {_like(name, None, rms, most(name, None))}{above}"
    if model_kind == "moe" and rms <= MOST["bfloat16", "moe"]:
        return f"rms {rms:.3g}: usual for {_like('bfloat16', 'moe', rms, most('bfloat16', 'moe'))}; above what a dense model shows"
    return f"rms {rms:.3g}: above what is usual for {_like('bfloat16')}"


def _like(dtype: str, model_kind: str | None = None, rms: float = 0.0, limit: float = 0.0) -> str:
    """A dtype in words, with the least and greatest published rms; and for one above these, what still is usual."""
    kind = model_kind or ("dense" if dtype == "bfloat16" else None)
    found = place("rms", 0.0, dtype=dtype, model_kind=kind)
    words = LIKE_MOE if (dtype, kind) == ("bfloat16", "moe") else LIKE[dtype]
    room = f"; up to {limit:.3g} is usual" if found.high is not None and rms > found.high else ""
    return f"{words} (published {found.low:.3g} to {found.high:.3g}{room})"
