"""What a running server says of itself, in the words of `EngineSettings`, and whether that is what was asked for.

What a server fixed when it started (precision, logprobs mode, caches, scheduling) cannot be set from here. What it
tells is compared with what was asked for, and the rest is listed as not known. Sources: ``/v1/models``, ``/version``,
``/metrics`` (vLLM's cache_config_info, a gauge with the cache's settings as labels), and ``/server_info`` of vLLM's
development endpoints. The logprobs mode can be seen from two answers: raw logprobs after the same prompt do not depend
on the temperature, processed ones do.
"""

from __future__ import annotations

import re
from typing import Any

from skewsim.errors import EngineError, UserError, shown
from skewsim.settings import EngineSettings

LONGEST_LABELS = 10_000
"""Characters of a metric's labels that are read; vLLM's cache_config_info has 1,000."""
ARGUMENTS = {
    "dtype": "--dtype {}",
    "head_dtype": '--hf-overrides \'{{"head_dtype": "{}"}}\'',
    "kv_cache_dtype": "--kv-cache-dtype {}",
    "quantization": "--quantization {}",
    "logprobs_mode": "--logprobs-mode {}",
    "enable_prefix_caching": "--{}enable-prefix-caching",
    "async_scheduling": "--{}async-scheduling",
}
"""Settings that a vLLM server fixes at its start -> the argument that sets it."""


def _is_name(value: Any) -> bool:
    """Whether it can be sent back as a model's name: a text without half a character (a lone surrogate) in it."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def choose_model(models: dict[str, Any], wanted: str | None) -> dict[str, Any]:
    """The entry of ``/v1/models`` to ask. Raises UserError if there are several and none was named, or not this one."""
    found = models.get("data")
    if not isinstance(found, list) or not all(isinstance(m, dict) and _is_name(m.get("id")) for m in found):
        raise EngineError("GET /v1/models: answered without a list of models")
    names = [m["id"] for m in found]
    if wanted is None and len(names) == 1:
        return dict(found[0])
    if wanted not in names:
        said = "needs a model" if wanted is None else f"has no model {shown(repr(wanted), 80)}"
        known = shown(", ".join(names), 400)
        raise UserError(f"engine: the server {said}, as in http://host:port/v1#MODEL; allowed: {known}")
    return dict(found[names.index(wanted)])


def facts_of(model: dict[str, Any], version: Any, details: Any, metrics: str | None) -> dict[str, Any]:
    """What the server tells of itself, as settings and facts; what it does not tell is not in it."""
    facts: dict[str, Any] = {"model": model["id"], "max_model_len": model.get("max_model_len")}
    if isinstance(version, dict):
        facts["vllm"] = version.get("version")
    facts |= _from_metrics(metrics or "")
    config = details.get("vllm_config") if isinstance(details, dict) else None
    facts = {name: value for name, value in facts.items() if value is not None}
    facts |= _from_config(config) if isinstance(config, dict) else {}
    return {name: value for name, value in facts.items() if _is_fact(name, value)}


def _is_fact(name: str, value: Any) -> bool:
    """Whether a value is of the kind that a fact of this name has: a whole number, or something short and plain."""
    if name in ("max_model_len", "block_size", "max_num_seqs"):
        return type(value) is int and 0 < value < 2**53
    return value is None or isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= 400)


def known_settings(
    name: str, settings: EngineSettings, facts: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Settings that the server runs with otherwise than asked, as for a local engine, and settings that are not known.

    Raises UserError for one that differs, except asynchronous scheduling: CPU builds of vLLM turn it off by themselves.
    """
    overruled: dict[str, dict[str, Any]] = {}
    for setting, argument in ARGUMENTS.items():
        asked = getattr(settings, setting)
        if setting not in facts or facts[setting] == asked:
            continue
        if setting == "kv_cache_dtype" and asked == "fp8" and str(facts[setting]).startswith("fp8"):
            continue
        if setting == "async_scheduling" and asked and facts.get("device") == "cpu":
            overruled[setting] = {"asked": asked, "actual": facts[setting]}
            continue
        value = ("" if asked else "no-") if isinstance(asked, bool) else asked
        raise UserError(
            f"engine.{setting}={asked!r}: {name} runs with {facts[setting]!r}, which is fixed at its start; "
            f"start it {'without quantization' if asked is None else 'with ' + argument.format(value)}"
        )
    return overruled, [setting for setting in ARGUMENTS if setting not in facts]


def logprobs_mode(warm: dict[str, Any], cold: dict[str, Any]) -> str | None:
    """The mode, from answers at temperature 1 (`warm`) and 0.5 (`cold`); None if they do not tell.

    Compares the logprob of the most probable token.
    """
    try:
        tops = [answer["choices"][0]["logprobs"]["top_logprobs"][0] for answer in (warm, cold)]
        first, second = (max(float(value) for value in top.values()) for top in tops)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    if not first < -0.01:
        return None  # the token is so probable that a temperature changes nothing
    return "raw_logprobs" if abs(first - second) < 1e-3 * abs(first) else "processed_logprobs"


def _from_metrics(text: str) -> dict[str, Any]:
    """Settings of the cache from Prometheus' text format."""
    found = re.search(r"^vllm:cache_config_info\{(.*)\} ", text, flags=re.MULTILINE)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', found.group(1)[:LONGEST_LABELS])) if found else {}
    facts: dict[str, Any] = {"kv_cache_dtype": labels.get("cache_dtype")}
    if labels.get("enable_prefix_caching") in ("True", "False"):
        facts["enable_prefix_caching"] = labels["enable_prefix_caching"] == "True"
    if labels.get("block_size", "").isdecimal():
        facts["block_size"] = int(labels["block_size"])
    return facts


def _from_config(config: dict[str, Any]) -> dict[str, Any]:
    """Settings from vLLM's whole configuration as JSON."""
    model, cache, scheduler, device = (
        part if isinstance(part := config.get(f"{name}_config"), dict) else {}
        for name in ("model", "cache", "scheduler", "device")
    )
    dtype = str(model["dtype"]).removeprefix("torch.") if model.get("dtype") else None
    overrides = model.get("hf_overrides")
    head = overrides.get("head_dtype") if isinstance(overrides, dict) else None
    facts = {
        "dtype": dtype,
        "head_dtype": str(head).removeprefix("torch.") if head else dtype,
        "logprobs_mode": model.get("logprobs_mode"),
        "max_model_len": model.get("max_model_len"),
        "enforce_eager": model.get("enforce_eager"),
        "kv_cache_dtype": cache.get("cache_dtype"),
        "enable_prefix_caching": cache.get("enable_prefix_caching"),
        "block_size": cache.get("block_size"),
        "async_scheduling": scheduler.get("async_scheduling"),
        "enable_chunked_prefill": scheduler.get("enable_chunked_prefill"),
        "max_num_seqs": scheduler.get("max_num_seqs"),
        "device": device.get("device"),
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    return facts | ({"quantization": model["quantization"]} if "quantization" in model else {})
