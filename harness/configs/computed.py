"""Traps of how the two sides compute: caches and updates, dtypes and heads, experts, dropout."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.configs.findings import Finding
from harness.configs.frameworks import Configuration
from harness.configs.settings import Setting
from harness.configs.trap import GITHUB, VERL, VLLM, Case, corrected, fields_of, finding, json_of, trap
from harness.configs.versions import before


@trap(
    "prefix_cache_kept",
    "Keys and values of a prompt stay in the prefix cache when new weights arrive: mean abs skew 0.87 after a sync.",
    GITHUB + "NovaSky-AI/SkyRL/issues/2246",
    "stale_kv",
)
def _prefix_cache(case: Case) -> Iterator[Finding]:
    config = case.config
    if config.framework != "vLLM" or config.get("served") is None or before(case.version, "0.8.0"):
        return
    said = config.get("prefix_caching")
    if said is not None and (said.name.startswith("no-") or said.flag is False):
        return
    found = said or Setting("enable-prefix-caching", True)
    what = "Whoever updates the weights must call reset_prefix_cache, or pause_generation with clear_cache=True."
    yield finding("prefix_cache_kept", found, what, config.written("no-enable-prefix-caching", True), sure=False)


@trap(
    "update_in_flight",
    "Requests that are running when new weights arrive continue over the old weights' keys and values, or are cut off.",
    GITHUB + "NVIDIA-NeMo/RL/blob/main/nemo_rl/algorithms/async_utils/trajectory_collector.py",
    "stale_kv",
    "stale_weights",
)
def _in_flight(case: Case) -> Iterator[Finding]:
    config = case.config
    flying = config.get("in_flight") if config.text("engine") in ("vllm", "megatron") else None
    if flying is not None and flying.flag and config.flag("asynchronous") and not config.flag("recompute_kv"):
        what = "Running requests keep the keys and values of the old weights."
        yield finding("update_in_flight", flying, what, config.line("recompute_kv", True))
    mode = config.get("pause_mode")
    miles = GITHUB + "radixark/miles/blob/main/miles/utils/arguments.py"
    if mode is not None and mode.text == "in_place":
        what = "Running requests resume over the keys and values of the old weights."
        yield finding("update_in_flight", mode, what, config.line("pause_mode", "retract"), source=miles)
    if mode is not None and mode.text == "abort":
        what = "Running requests end at every update; the long ones are lost."
        yield finding("update_in_flight", mode, what, config.line("pause_mode", "retract"), source=miles)


@trap(
    "sleep_loses_weights",
    "Sleep level 2 drops the engine's weights; a TRL with #4700 and without #5313 reloads the first ones from disk.",
    GITHUB + "huggingface/trl/issues/5312",
    "weights_not_delivered",
)
def _sleep(case: Case) -> Iterator[Finding]:
    config = case.config
    found = config.get("sleep_mode")
    if case.on_vllm and found is not None and found.flag and config.text("vllm_mode") == "colocate":
        what = "Right only in a TRL that has pull request 5313 (March 2026)."
        yield finding("sleep_loses_weights", found, what, config.line("sleep_mode", False), sure=False)


# ------------------------------------------------------------------------------------------- arithmetic


@trap(
    "one_sided_fp32_head",
    "lm_head in float32 on one side only: the other side's logits are rounded.",
    GITHUB + "ServiceNow/Fast-LLM/pull/525",
    "one_sided_fp32_head",
    "head_dtype",
)
def _head(case: Case) -> Iterator[Finding]:
    config = case.config
    trainer = config.get("trainer_head")
    if case.on_vllm and trainer is not None and trainer.flag:
        what = "It casts the trainer's head only; TRL gives vLLM no head_dtype."
        change = '--hf-overrides \'{"head_dtype": "float32"}\' on a vLLM server of your own (0.26 and later), or '
        yield finding("one_sided_fp32_head", trainer, what, change + config.line("trainer_head", False))
    engine = _engine_head(config)
    if engine is None:
        return
    if case.on_vllm and before(case.version, "0.26.0"):
        what = f"vLLM {case.version} applies head_dtype to pooling models only: the engine's head stays as it is."
        source = VLLM + "blob/v0.18.1/vllm/config/model.py"
        yield finding("one_sided_fp32_head", engine, what, "vLLM 0.26 or later", source=source)
    else:
        what = "The engine's head is in float32; nothing here says that the trainer's is."
        yield finding("one_sided_fp32_head", engine, what, "a float32 head in the trainer as well", sure=False)


def _engine_head(config: Configuration) -> Setting | None:
    """The setting that puts the engine's head into float32, if there is one."""
    found = config.get("engine_head")
    if found is not None and (found.flag or found.text in ("float32", "fp32")):
        return found
    overrides = config.get("hf_overrides")
    return overrides if json_of(overrides).get("head_dtype") in ("float32", "fp32") else None


_QUANTIZED = re.compile(r"\b(fp8|int8|int4|mxfp8|nvfp4|mxfp4|w8a8|w4a16|awq|gptq|modelopt)", re.IGNORECASE)


@trap(
    "quantized_rollout",
    "Rollouts with quantised weights against a trainer in 16 bits: k3 of 0.0014 to 0.06.",
    GITHUB + "NVIDIA-NeMo/RL/blob/main/docs/fp8.md",
    "compute_dtype",
)
def quantized(case: Case) -> Iterator[Finding]:
    config = case.config
    training = config.get("quantized_training")
    if training is not None and training.text and training.flag is not False:
        return
    found = config.get("quantization")
    if found is not None and found.text and _QUANTIZED.search(found.text):
        sure = config.framework != "vLLM" and corrected(config) is False
        what = (
            "The trainer is not quantised" if config.framework != "vLLM" else "Unless the trainer rounds the same way"
        )
        what += ", so the skew is far above 16-bit noise; it needs an importance weight."
        yield finding("quantized_rollout", found, what, _sixteen_bits(config, found), sure=sure)
        return
    model, trained = config.get("model"), config.get("trainer_model")
    if (
        model is not None
        and config.framework in ("slime", "Miles", "prime-rl")
        and _QUANTIZED.search(_words(model.words))
    ):
        if trained is not None and trained.text == model.text:
            return
        what = "The checkpoint that the engine serves is quantised, and nothing here quantises the trainer."
        yield finding(
            "quantized_rollout", model, what, "the 16-bit checkpoint, or training in the same format", sure=False
        )


def _words(name: str) -> str:
    return re.sub(r"[_\-/.]", " ", name)


def _sixteen_bits(config: Configuration, found: Setting) -> str:
    if config.framework == "NeMo-RL":
        return config.written(found.name, "bfloat16")
    if config.settings.syntax == "shell" and config.framework != "verl":
        return f"without --{found.name}"
    return config.written(found.name, None) if config.settings.syntax != "toml" else f"without {found.name}"


@trap(
    "fp8_kv_cache",
    "Keys and values in fp8: rms 0.178 nats on Qwen3-1.7B, four times bfloat16's.",
    GITHUB + "AknA13/train-infer-mismatch",
    "compute_dtype",
)
def fp8_kv(case: Case) -> Iterator[Finding]:
    found = case.config.get("kv_cache_dtype")
    if found is not None and found.text.lower().startswith(("fp8", "int8", "nvfp4")):
        what = "The engine rounds keys and values to 8 bits; the trainer does not."
        yield finding("fp8_kv_cache", found, what, case.config.written(found.name, "auto"))


@trap(
    "moe_without_replay",
    "A mixture of experts routes tokens differently in engine and trainer: heavy tails, k3 about twice as high as with "
    "routing replay.",
    "https://arxiv.org/abs/2510.11370",
    "moe_routing",
)
def moe(case: Case) -> Iterator[Finding]:
    config = case.config
    model, replay = config.get("model"), config.get("router_replay")
    if model is None or replay is None or replay.flag is not False or not _MOE.search(model.words):
        return
    what = f"{model.words.rsplit('/', 1)[-1]} looks like a mixture of experts, and routing replay is off."
    change = config.line("router_replay", True)
    if config.framework == "verl":
        change += " actor_rollout_ref.actor.router_replay.mode=R3"
    if config.framework == "NeMo-RL" and not (config.flag("megatron") and case.on_vllm):
        change = f"{config.line('correction_mode', 'icepop')} with bounds (replay needs Megatron and vLLM)"
    yield finding("moe_without_replay", replay, what, change, sure=False)


_MOE = re.compile(
    r"^(?!.*distill).*(-A\d+(\.\d+)?B|mixtral|\bmoe\b|-moe-|deepseek-(v[234]|r1)|gpt-oss|kimi-k2|moonlight|glm-?[45]\.\d|glm-5\b|minimax-m)",
    re.IGNORECASE,
)


@trap(
    "dropout_in_trainer",
    "Dropout is on in the trainer's pass that is differentiated, and off in the engine.",
    GITHUB + "huggingface/trl/blob/main/trl/trainer/grpo_config.py",
    "stochastic_trainer",
)
def _dropout(case: Case) -> Iterator[Finding]:
    config = case.config
    if config.flag("disable_dropout") or config.flag("dropout_on") is False or config.number("lora_rank") == 0:
        return
    for name in ("dropout", "hidden_dropout", "lora_dropout"):
        found = config.get(name)
        if found is not None and (found.number or 0) > 0:
            if found.name == "lora_dropout" and config.framework == "TRL" and config.flag("use_peft") is False:
                continue
            change = (
                config.line("disable_dropout", True) if config.framework == "TRL" else config.written(found.name, 0.0)
            )
            yield finding("dropout_in_trainer", found, "The trainer drops activations; the engine does not.", change)
    if config.framework == "TRL" and config.flag("use_peft") and config.get("dropout") is None:
        what = "TRL's ModelConfig has a LoRA dropout of 0.05 unless it is set."
        found = Setting("lora_dropout", 0.05)
        yield finding("dropout_in_trainer", found, what, config.line("disable_dropout", True), sure=False)


@trap(
    "cascade_attention",
    "vLLM's cascade attention came out wrong on some GPUs; on by default in V1 before 0.18, where prompts are shared.",
    VERL + "blob/main/docs/faq/faq.rst",
    "position_dependent",
)
def _cascade(case: Case) -> Iterator[Finding]:
    config = case.config
    if not case.on_vllm or "disable_cascade_attn" not in fields_of(config) or not before(case.version, "0.18.0"):
        return
    found = config.get("disable_cascade_attn")
    if before(case.version, "0.8.3") or (found is not None and found.flag):
        return
    name = fields_of(config)["disable_cascade_attn"].write
    what = "An A100 or a similar GPU with long shared prompts showed a high gradient norm; 0.10.2 and before had the fault."
    setting = found or Setting(name, False)
    yield finding("cascade_attention", setting, what, config.line("disable_cascade_attn", True), sure=False)
