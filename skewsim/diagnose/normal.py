"""Is it normal? The skew's size beside what is published for a dtype and a kind of model.

Figures are those of `skewsim.skew.published` for dense models. Mixtures of experts: Qwen3-30B-A3B 1.5e-3 nats of k3
(arXiv 2510.11370), 1e-3 to 1e-1 in training (Miles); an rms is the square root of twice a k3.
"""

from __future__ import annotations

from skewsim.errors import UserError

DTYPES = ("float32", "float16", "bfloat16", "fp8")
KINDS = ("dense", "moe")
MOST = {("float32", "dense"): 0.01, ("float16", "dense"): 0.02, ("bfloat16", "dense"): 0.12, ("fp8", "dense"): 0.36}
"""rms up to which a dtype is usual: what is published, with room for small and for sharp models."""
MOST |= {("float32", "moe"): 0.02, ("float16", "moe"): 0.08, ("bfloat16", "moe"): 0.3, ("fp8", "moe"): 0.45}
LIKE = {
    "float32": "float32 on both sides (published 0.0022 for Qwen2.5-0.5B, 0.0024 for Qwen3-1.7B)",
    "float16": "float16 on both sides (published 0.0057 for Qwen3-1.7B)",
    "bfloat16": "bfloat16 on a dense model of 0.5 to 8 billion weights (published 0.040 for Qwen3-8B, 0.045 for Qwen3-1.7B)",
    "fp8": "8-bit keys and values or weights (published 0.178 for Qwen3-1.7B with an fp8 cache)",
}
LIKE_MOE = "bfloat16 on a mixture of experts (k3 1.5e-3 published for Qwen3-30B-A3B, an rms of 0.055; up to 0.1 in training, 0.45)"


def check(dtype: str | None, model_kind: str | None) -> None:
    """UserError for a dtype or kind of model that is not known."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is not known; allowed: {', '.join(DTYPES)}")
    if model_kind is not None and model_kind not in KINDS:
        raise UserError(f"model-kind={model_kind!r} is not known; allowed: {', '.join(KINDS)}")


def most(dtype: str, model_kind: str | None) -> float:
    return MOST.get((dtype, model_kind or "dense"), 0.01)


def usual(rms: float, dtype: str | None, model_kind: str | None) -> str:
    """The size in words, beside the published one it is nearest to."""
    if dtype is not None:
        like = LIKE_MOE if (dtype, model_kind) == ("bfloat16", "moe") else LIKE[dtype]
        return f"rms {rms:.3g}: {'usual for' if rms <= most(dtype, model_kind) else 'above what is usual for'} {like}"
    for name, lower in (("float32", None), ("float16", "float32"), ("bfloat16", "float16")):
        if rms <= most(name, None):
            return f"rms {rms:.3g}: usual for {LIKE[name]}" + (f"; above what {lower} shows" if lower else "")
    if model_kind == "moe" and rms <= MOST["bfloat16", "moe"]:
        return f"rms {rms:.3g}: usual for {LIKE_MOE}; above what a dense model shows"
    return f"rms {rms:.3g}: above what is usual for bfloat16 on a dense model (published 0.045 for Qwen3-1.7B)"
