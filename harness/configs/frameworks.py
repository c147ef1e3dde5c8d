"""Which name each framework has for a setting, and its default: one table, and a configuration that answers by field.

Names and defaults were read in the newest stored code of August 2026 (TRL: July): verl
`verl/trainer/config/rollout/rollout.yaml`, `algorithm/rollout_correction.yaml`, `actor/actor.yaml`,
`model/hf_model.yaml`; TRL `trl/trainer/grpo_config.py`, `trl/trainer/model_config.py`, `trl/scripts/vllm_serve.py`;
prime-rl `packages/prime-rl-configs/src/prime_rl/configs/{orchestrator,inference,trainer}.py`; slime
`slime/utils/arguments.py` and `examples/train_infer_mismatch_helper/mis.yaml`; Miles `miles/utils/arguments.py`;
NeMo-RL `examples/configs/grpo_math_1B.yaml`, `nemo_rl/models/generation/vllm/{config,vllm_worker}.py`,
`nemo_rl/algorithms/loss/loss_functions.py`; OpenRLHF `openrlhf/cli/train_ppo_ray.py`; vLLM `vllm/engine/arg_utils.py`
and `vllm/config/` of 0.8.5, 0.9.2, 0.18.1 and 0.32.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.configs.settings import Setting, Settings
from skewsim.errors import UserError, shown

Framework = Literal["verl", "TRL", "prime-rl", "slime", "Miles", "NeMo-RL", "OpenRLHF", "vLLM"]
FRAMEWORKS: tuple[Framework, ...] = ("verl", "TRL", "prime-rl", "slime", "Miles", "NeMo-RL", "OpenRLHF", "vLLM")


class Absent:
    """Stands for a default that is not known, or that depends on something else."""

    def __repr__(self) -> str:
        return "not set"


ABSENT = Absent()


@dataclass(frozen=True)
class Field:
    """The names of one setting in a framework, the one that holds first, and its default."""

    names: tuple[str, ...]
    default: Any = ABSENT
    write: str = ""
    """The name to write where the file has none."""


def _f(*names: str, default: Any = ABSENT, write: str = "") -> Field:
    return Field(names, default, write or names[0])


_ROLLOUT, _VERL_VLLM = "actor_rollout_ref.rollout", "actor_rollout_ref.rollout.engine_kwargs.vllm"
_CORRECTION, _ACTOR = "algorithm.rollout_correction", "actor_rollout_ref.actor"
_VERL_MODE = f"{_ROLLOUT}.logprobs_mode"
_PRIME = ("orchestrator.train.source.sampling", "orchestrator.train.sampling", "orchestrator.sampling")
_NEMO = "policy.generation"


def _prime(name: str) -> tuple[str, ...]:
    return tuple(f"{table}.{name}" for table in _PRIME)


def _prime_f(name: str, default: Any = ABSENT) -> Field:
    return Field(_prime(name), default, f"{_PRIME[1]}.{name}")


_VERL: dict[str, Field] = {
    "engine": _f(f"{_ROLLOUT}.name"),
    "model": _f("actor_rollout_ref.model.path"),
    "temperature": _f(f"{_ROLLOUT}.temperature", default=1.0),
    "top_p": _f(f"{_ROLLOUT}.top_p", default=1),
    "top_k": _f(f"{_ROLLOUT}.top_k", default=-1),
    "length": _f(
        f"{_ROLLOUT}.response_length", "data.max_response_length", default=512, write="data.max_response_length"
    ),
    "dtype": _f(f"{_ROLLOUT}.dtype", default="bfloat16"),
    "logprobs_mode": _f(f"{_VERL_VLLM}.logprobs_mode", _VERL_MODE, default="processed_logprobs", write=_VERL_MODE),
    "quantization": _f(f"{_ROLLOUT}.quantization", f"{_VERL_VLLM}.quantization", default=None),
    "quantized_training": _f(
        f"{_ACTOR}.fsdp_config.qat.enable", f"{_ACTOR}.megatron.qat.enable", f"{_ACTOR}.qat.enable"
    ),
    "kv_cache_dtype": _f(f"{_VERL_VLLM}.kv_cache_dtype", default="auto"),
    "engine_head": _f(f"{_VERL_VLLM}.hf_overrides.head_dtype"),
    "disable_cascade_attn": _f(f"{_VERL_VLLM}.disable_cascade_attn"),
    "router_replay": _f(f"{_ROLLOUT}.enable_rollout_routing_replay", default=False),
    "dropout": _f("actor_rollout_ref.model.lora.dropout", default=0.0),
    "asynchronous": _f("async_training.staleness_threshold"),
    "weights": _f(f"{_CORRECTION}.rollout_is", default=None),
    "weights_threshold": _f(f"{_CORRECTION}.rollout_is_threshold", default=2.0),
    "normalised": _f(f"{_CORRECTION}.rollout_is_batch_normalize", default=False),
    "rejection": _f(f"{_CORRECTION}.rollout_rs", default=None),
    "rejection_threshold": _f(f"{_CORRECTION}.rollout_rs_threshold", default=None),
    "bypass": _f(f"{_CORRECTION}.bypass_mode", default=False),
    "loss_type": _f(f"{_CORRECTION}.loss_type", default="ppo_clip"),
}
_TRL: dict[str, Field] = {
    "use_vllm": _f("use_vllm", default=False),
    "vllm_mode": _f("vllm_mode", default="colocate"),
    "sleep_mode": _f("vllm_enable_sleep_mode", default=False),
    "model": _f("model_name_or_path", "model"),
    "temperature": _f("temperature", default=1.0),
    "engine_temperature": _f("generation_kwargs.temperature"),
    "top_p": _f("generation_kwargs.top_p", "top_p", default=1.0, write="top_p"),
    "top_k": _f("generation_kwargs.top_k", "top_k", default=0, write="top_k"),
    "min_p": _f("generation_kwargs.min_p", "min_p", default=None, write="min_p"),
    "repetition_penalty": _f(
        "generation_kwargs.repetition_penalty", "repetition_penalty", default=1.0, write="repetition_penalty"
    ),
    "presence_penalty": _f("generation_kwargs.presence_penalty"),
    "frequency_penalty": _f("generation_kwargs.frequency_penalty"),
    "length": _f("max_completion_length", default=512),
    "kv_cache_dtype": _f("kv_cache_dtype", default="auto"),
    "trainer_head": _f("cast_lm_head_to_fp32", default=False),
    "disable_dropout": _f("disable_dropout", default=False),
    "dropout": _f("LoraConfig.lora_dropout", "lora_dropout", write="lora_dropout"),
    "use_peft": _f("use_peft", default=False),
    "correction": _f("vllm_importance_sampling_correction", default=True),
    "correction_mode": _f("vllm_importance_sampling_mode", default="sequence_mask"),
    "correction_high": _f("vllm_importance_sampling_clip_max", default=3.0),
    "correction_low": _f("vllm_importance_sampling_clip_min", default=None),
}
_PRIME_RL: dict[str, Field] = {
    "model": _f("inference.vllm.model", "inference.model.name", "orchestrator.model.name", "model.name"),
    "trainer_model": _f("trainer.model.name", "model.name"),
    "temperature": _prime_f("temperature", default=1.0),
    "top_p": _prime_f("extra_body.top_p", default=1.0),
    "top_k": _prime_f("extra_body.top_k", default=-1),
    "min_p": _prime_f("extra_body.min_p", default=0.0),
    "repetition_penalty": _prime_f("extra_body.repetition_penalty", default=None),
    "presence_penalty": _prime_f("extra_body.presence_penalty"),
    "frequency_penalty": _prime_f("extra_body.frequency_penalty"),
    "length": _f(
        *_prime("max_completion_tokens"), "orchestrator.sampling.max_tokens", "seq_len", "orchestrator.seq_len"
    ),
    "dtype": _f("inference.vllm.dtype", default="auto"),
    "logprobs_mode": _f("inference.vllm.logprobs_mode", default="processed_logprobs"),
    "quantization": _f("inference.vllm.quantization", default=None),
    "kv_cache_dtype": _f("inference.vllm.kv_cache_dtype", default="auto"),
    "disable_cascade_attn": _f("inference.vllm.disable_cascade_attn"),
    "router_replay": _f("trainer.enable_router_replay", default=False),
    "dropout": _f("trainer.model.lora.dropout", default=0.0),
}
_SLIME: dict[str, Field] = {
    "model": _f("hf-checkpoint"),
    "temperature": _f("rollout-temperature", default=1.0),
    "top_p": _f("rollout-top-p", default=1.0),
    "top_k": _f("rollout-top-k", default=-1),
    "length": _f("rollout-max-response-len"),
    "original_logprob": _f("env.SGLANG_RETURN_ORIGINAL_LOGPROB"),
    "quantization": _f("sglang-quantization", default=None),
    "quantized_training": _f("fp8-format", "env.OPEN_TRAINING_INT4_FAKE_QAT_FLAG"),
    "kv_cache_dtype": _f("sglang-kv-cache-dtype", default="auto"),
    "engine_head": _f("sglang-enable-fp32-lm-head"),
    "router_replay": _f("use-rollout-routing-replay", default=False),
    "dropout": _f("attention-dropout"),
    "hidden_dropout": _f("hidden-dropout"),
    "bypass": _f("use-rollout-logprobs", default=False),
    "correction": _f("use-tis", default=False),
    "correction_high": _f("tis-clip", default=2.0),
    "correction_low": _f("tis-clip-low", default=0),
    "custom_correction": _f("custom-tis-function-path"),
    "mis_weights": _f("use_tis"),
    "mis_level": _f("tis_level"),
    "mis_mode": _f("tis_mode"),
    "mis_low": _f("tis_lower_bound"),
    "mis_high": _f("tis_upper_bound"),
    "normalised": _f("tis_batch_normalize"),
    "mis_rejects": _f("use_rs"),
    "mis_rejection_level": _f("rs_level"),
    "mis_rejection_low": _f("rs_lower_bound", "tis_lower_bound"),
    "mis_rejection_high": _f("rs_upper_bound", "tis_upper_bound"),
}
_MILES: dict[str, Field] = _SLIME | {
    "pause_mode": _f("pause-generation-mode", default="retract"),
    "lora_dropout": _f("lora-dropout", default=0.0),
}
_NEMO_RL: dict[str, Field] = {
    "engine": _f(f"{_NEMO}.backend", default="vllm"),
    "model": _f("policy.model_name"),
    "temperature": _f(f"{_NEMO}.temperature", default=1.0),
    "top_p": _f(f"{_NEMO}.top_p", default=1.0),
    "top_k": _f(f"{_NEMO}.top_k", default=None),
    "length": _f(f"{_NEMO}.max_new_tokens", "policy.max_total_sequence_length"),
    "dtype": _f(f"{_NEMO}.vllm_cfg.precision", "policy.precision", default="bfloat16"),
    "trainer_dtype": _f("policy.precision", default="bfloat16"),
    "logprobs_mode": _f(f"{_NEMO}.vllm_cfg.logprobs_mode"),
    "quantization": _f(f"{_NEMO}.vllm_cfg.precision"),
    "quantized_training": _f("policy.megatron_cfg.fp8_cfg.enabled", default=False),
    "kv_cache_dtype": _f(f"{_NEMO}.vllm_cfg.kv_cache_dtype", default="auto"),
    "engine_head": _f(f"{_NEMO}.vllm_kwargs.hf_overrides.head_dtype"),
    "disable_cascade_attn": _f(f"{_NEMO}.vllm_kwargs.disable_cascade_attn"),
    "http_server": _f(f"{_NEMO}.vllm_cfg.expose_http_server", default=False),
    "in_flight": _f("grpo.async_grpo.in_flight_weight_updates", default=False),
    "recompute_kv": _f("grpo.async_grpo.recompute_kv_cache_after_weight_updates", default=False),
    "asynchronous": _f("grpo.async_grpo.enabled", default=False),
    "router_replay": _f("policy.router_replay.enabled", default=False),
    "megatron": _f("policy.megatron_cfg.enabled", default=False),
    "dropout": _f("policy.megatron_cfg.peft.dropout", default=0.0),
    "dropout_on": _f("policy.megatron_cfg.peft.enabled", default=False),
    "correction": _f("loss_fn.use_importance_sampling_correction", default=False),
    "correction_mode": _f("loss_fn.truncated_importance_sampling_type", default=None),
    "correction_high": _f("loss_fn.truncated_importance_sampling_ratio", default=None),
    "correction_low": _f("loss_fn.truncated_importance_sampling_ratio_min", default=None),
    "force_on_policy": _f("loss_fn.force_on_policy_ratio", default=False),
}
_OPENRLHF: dict[str, Field] = {
    "model": _f("actor.model-name-or-path"),
    "temperature": _f("rollout.temperature", default=1.0),
    "top_p": _f("rollout.top-p", default=1.0),
    "length": _f("rollout.max-new-tokens", "data.max-len", default=2048),
    "dropout": _f("ds.lora.dropout", default=0),
    "lora_rank": _f("ds.lora.rank", default=0),
    "correction": _f("algo.advantage.is-correction-enable", default=False),
    "correction_mode": _f("algo.advantage.is-correction-type", default="tis"),
    "correction_bounds": _f("algo.advantage.is-correction-threshold", default=[0.5, 5.0]),
}
_VLLM: dict[str, Field] = {
    "model": _f("model"),
    "logprobs_mode": _f("logprobs-mode", "LLM.logprobs_mode"),
    "temperature": _f("SamplingParams.temperature"),
    "top_p": _f("SamplingParams.top_p"),
    "top_k": _f("SamplingParams.top_k"),
    "min_p": _f("SamplingParams.min_p"),
    "repetition_penalty": _f("SamplingParams.repetition_penalty"),
    "presence_penalty": _f("SamplingParams.presence_penalty"),
    "frequency_penalty": _f("SamplingParams.frequency_penalty"),
    "length": _f("SamplingParams.max_tokens"),
    "dtype": _f("dtype", "LLM.dtype", default="auto"),
    "prefix_caching": _f("no-enable-prefix-caching", "enable-prefix-caching"),
    "quantization": _f("quantization", "LLM.quantization", default=None),
    "kv_cache_dtype": _f("kv-cache-dtype", "LLM.kv_cache_dtype", default="auto"),
    "hf_overrides": _f("hf-overrides"),
    "engine_head": _f("LLM.hf_overrides.head_dtype"),
    "generation_config": _f("generation-config", default="auto"),
    "override_generation_config": _f("override-generation-config"),
    "disable_cascade_attn": _f("disable-cascade-attn", "LLM.disable_cascade_attn"),
    "served": _f("call.serve"),
}
FIELDS: dict[Framework, dict[str, Field]] = {
    "verl": _VERL,
    "TRL": _TRL,
    "prime-rl": _PRIME_RL,
    "slime": _SLIME,
    "Miles": _MILES,
    "NeMo-RL": _NEMO_RL,
    "OpenRLHF": _OPENRLHF,
    "vLLM": _VLLM,
}


@dataclass(frozen=True)
class Configuration:
    """One framework's configuration, asked by field; a field that the framework lacks is None."""

    framework: Framework
    settings: Settings
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def get(self, name: str) -> Setting | None:
        """What holds for a field: what the files say, else the framework's default (without a line), else None."""
        entry = FIELDS[self.framework].get(name)
        if entry is None:
            return None
        found = self.settings.first(self._spellings(entry.names))
        if found is not None or isinstance(entry.default, Absent):
            return found
        return Setting(self._name(entry), entry.default)

    def _spellings(self, names: Iterable[str]) -> Iterable[str]:
        return (spelt for name in names for spelt in (name, name.replace("_", "-")))

    def _name(self, entry: Field) -> str:
        """The name to write for a field that the file does not have."""
        calls = [name for name in entry.names if name.startswith(_CALLS)]
        return calls[0] if calls and self.settings.syntax == "python" else entry.write

    def number(self, name: str) -> float | None:
        found = self.get(name)
        return None if found is None else found.number

    def flag(self, name: str) -> bool | None:
        found = self.get(name)
        return None if found is None else found.flag

    def text(self, name: str) -> str:
        found = self.get(name)
        return "" if found is None else found.text

    def line(self, name: str, value: Any) -> str:
        """The line that sets a field, in this file's syntax."""
        entry = FIELDS[self.framework][name]
        found = self.settings.first(self._spellings(entry.names))
        return self.written(self._name(entry) if found is None else found.name, value)

    def written(self, name: str, value: Any) -> str:
        """``name`` set to a value, as a line of the file that has it, or else of the first."""
        found = self.settings.found.get(name)
        in_yaml = found is not None and found.file.endswith((".yaml", ".yml")) and self.settings.syntax == "shell"
        syntax = "yaml" if in_yaml and self.framework in ("slime", "Miles") else self.settings.syntax
        if syntax == "toml":
            table, _, key = name.rpartition(".")
            return (f"[{table}] " if table else "") + f"{key} = {_toml(value)}"
        if syntax == "yaml":
            return f"{name}: {_plain(value)}"
        if syntax == "python":
            return _keyword(name, value)
        if self.framework in ("verl", "NeMo-RL"):
            return f"{'+' if '.engine_kwargs.' in name else ''}{name}={_plain(value)}"
        if self.framework == "OpenRLHF" or self.framework == "TRL":
            name = name.replace("-", "_")
        if isinstance(value, bool) and self.framework != "TRL":
            return f"--{name}" if value else f"(without --{name})"
        return f"--{name} {_plain(value)}"


_CALLS = ("LLM.", "SamplingParams.", "LoraConfig.")


def _keyword(name: str, value: Any) -> str:
    """A keyword of a call; an entry of a dictionary that is one."""
    owner, _, key = name.partition(".")
    if name.startswith(_CALLS):
        return f"{owner}({key}={value!r})"
    return f"{owner}={{{key!r}: {value!r}}}" if key else f"{owner}={value!r}"


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


# --------------------------------------------------------------------------------------------- which it is

_NEMO_KEYS = r"generation|megatron_cfg|dtensor_cfg|max_total_sequence_length|model_name"
_MARKS: tuple[tuple[Framework, str], ...] = (
    ("NeMo-RL", rf"^policy:(?s:.*)^\s+(?:{_NEMO_KEYS}):|\bpolicy\.generation\.|nemo_rl"),
    ("verl", r"\bactor_rollout_ref\.|^actor_rollout_ref:|verl\.trainer\.main_ppo|\brollout_correction\b"),
    ("OpenRLHF", r"openrlhf\.cli\.train_ppo|--algo\.advantage\.|--vllm\.num_engines"),
    ("Miles", r"\bmiles[./]|/miles\b|--pause-generation-mode|--true-on-policy-mode"),
    ("slime", r"--rollout-max-response-len|--rollout-batch-size|--sglang-|^rs_level:|^tis_level:"),
    ("prime-rl", r"^\s*\[+(?:orchestrator|inference|trainer)\b|^\s*\[+(?:train\.(?:sampling|source)|sampling|vllm)\]"),
    (
        "TRL",
        r"\b(?:GRPO|RLOO|AsyncGRPO)Config\(|\btrl\s+(?:grpo|rloo|vllm-serve)\b|vllm_importance|use_vllm|max_completion_",
    ),
    ("vLLM", r"\bvllm\s+serve\b|vllm\.entrypoints|\bLLM\(|--logprobs-mode"),
)
"""What shows a framework, the surest first."""
_SYNTAX_OF: dict[Framework, tuple[str, ...]] = {
    "verl": ("yaml", "shell"),
    "TRL": ("python", "yaml", "shell"),
    "prime-rl": ("toml",),
    "slime": ("shell", "yaml"),
    "Miles": ("shell", "yaml"),
    "NeMo-RL": ("yaml", "shell"),
    "OpenRLHF": ("shell",),
    "vLLM": ("shell", "python"),
}


def recognise(text: str, syntax: str) -> Framework | None:
    """The framework that a file's text is for; None if no mark of any is in it."""
    for framework, mark in _MARKS:
        if syntax in _SYNTAX_OF[framework] and re.search(mark, text, re.MULTILINE):
            return framework
    return None


def framework_named(name: str) -> Framework:
    """A framework as a user types it. UserError if it is none of `FRAMEWORKS`."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    for known in FRAMEWORKS:
        if re.sub(r"[^a-z]", "", known.lower()) == plain:
            return known
    raise UserError(f"framework={shown(name, 100)!r} is not known; allowed: {', '.join(FRAMEWORKS)}")
