"""What a version of vLLM does where nothing is set, as far as it changes logprobs, caches or arithmetic.

Read from vLLM's own `vllm/config`, `vllm/engine/arg_utils.py` and `vllm/sampling_params.py` of 0.8.5, 0.9.2, 0.18.1 and
0.32.0; what changed between them is dated by its pull request: asynchronous scheduling #27614 (0.14), cascade attention
#36318 (0.18), temperatures above 2 #44965 (refused by 0.24, accepted by 0.18.1).
"""

from __future__ import annotations

from packaging.version import InvalidVersion, Version

from harness.versions import at_least
from skewsim.errors import UserError, shown

NEWEST_READ = "0.32.0"


def checked(version: str | None) -> str | None:
    """A version as a user types it, with or without a v. UserError if it is none."""
    if version is None:
        return None
    plain = version.strip().removeprefix("v")
    try:
        Version(plain)
    except InvalidVersion:
        raise UserError(f"vllm={shown(version, 60)!r} is no version; an example: 0.18.1") from None
    return plain


def before(version: str | None, since: str) -> bool:
    """Whether a version is known and earlier than another."""
    return version is not None and not at_least(version, since)


def raw_by_default(version: str | None) -> str:
    """What V1 or V0 says of its logprobs without a setting."""
    if before(version, "0.8.0"):
        return "processed (V0 has no other)"
    if before(version, "0.10.0"):
        return "V1: raw, and no setting for it; V0 (VLLM_USE_V1=0): processed"
    return "raw_logprobs"


def defaults(version: str) -> tuple[tuple[str, str], ...]:
    """(setting, what this version does without it)."""
    both = not at_least(version, "0.11.0")
    v0 = before(version, "0.8.0")
    caching = "off" if v0 else "on in V1, off in V0" if both else "on"
    chunked = "off, on for long contexts" if v0 else "on in V1" if both else "on"
    rows = [
        ("logprobs_mode", raw_by_default(version)),
        ("enable_prefix_caching", caching),
        ("enable_chunked_prefill", chunked),
        ("async_scheduling", _async(version)),
        ("cascade attention", _cascade(version)),
        ("generation_config", "auto: what a request leaves open comes from the model's generation_config.json"),
        ("head_dtype", "the model's; settable" if at_least(version, "0.26.0") else "the model's; not settable"),
    ]
    if at_least(version, "0.12.0"):
        rows.append(("pause_generation", 'mode="abort", clear_cache=True'))
    return tuple(rows)


def _async(version: str) -> str:
    if not at_least(version, "0.10.0"):
        return "not there"
    return "on where it can be" if at_least(version, "0.14.0") else "off"


def _cascade(version: str) -> str:
    if at_least(version, NEWEST_READ):
        return "not there any more"
    return "off" if at_least(version, "0.18.0") else "on in V1" if at_least(version, "0.8.0") else "not there"
