"""The known traps, as a table of small functions: each looks at a configuration and says whether it is in the trap.

A trap is found only where its ground is in the file or in the framework's own code; what depends on a default, on the
model or on noise "may be". Settings that a framework makes by itself are no traps: verl, NeMo-RL's base, prime-rl, TRL
and OpenRLHF ask vLLM for processed logprobs themselves; verl, TRL and OpenRLHF reset the prefix cache with an update
(`vllm_async_server.py`, `vllm_generation.py`, `ppo_actor.py`), prime-rl salts it by version (`dispatcher.py`), slime
flushes it; NeMo-RL and slime (top-p) renormalise on the trainer's side too (`dtensor_policy_worker.py`, `loss.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.configs import bounds as limits
from harness.configs.findings import Certainty, Finding
from harness.configs.frameworks import FIELDS, Configuration, Field
from harness.configs.settings import Setting
from harness.configs.versions import before, raw_by_default
from harness.versions import HIGHEST_TEMPERATURE, at_least, refuses_hot

GITHUB = "https://github.com/"
_VLLM = GITHUB + "vllm-project/vllm/"
_VERL = GITHUB + "verl-project/verl/"
REJECTS = 0.05
"""Share of healthy tokens or sequences from which on a bound counts as below the noise."""
BIAS = 0.5
"""Share of the gradient that a weight on healthy data may lose or shift before it counts as a trap."""


@dataclass(frozen=True)
class Case:
    """One configuration under one version of vLLM; None: not said."""

    config: Configuration
    version: str | None = None

    @property
    def on_vllm(self) -> bool:
        """Whether vLLM makes the rollouts."""
        framework = self.config.framework
        if framework in ("slime", "Miles"):
            return False
        if framework == "TRL":
            return self.is_async_trl or bool(self.config.flag("use_vllm"))
        return self.config.text("engine") in ("", "vllm")

    @property
    def is_async_trl(self) -> bool:
        """Whether it is TRL's asynchronous trainer, whose vLLM server is started apart."""
        return "call.AsyncGRPOConfig" in self.config.settings.found


Look = Callable[[Case], Iterator[Finding]]


@dataclass(frozen=True)
class Trap:
    """One trap: what it does, where that is said, and what a log with it would be diagnosed as."""

    what: str
    source: str
    causes: tuple[str, ...]
    look: Look


TRAPS: dict[str, Trap] = {}


def _trap(name: str, what: str, source: str, *causes: str) -> Callable[[Look], Look]:
    def register(look: Look) -> Look:
        TRAPS[name] = Trap(what, source, causes, look)
        return look

    return register


def _found(
    name: str, setting: Setting, what: str, change: str, *, sure: bool = True, source: str | None = None
) -> Finding:
    """A finding about one setting; of a conditional one it only may be."""
    certainty: Certainty = "is" if sure and not setting.conditional else "may be"
    if setting.conditional:
        what += " It stands under a condition of the script."
    trap = TRAPS[name]
    return Finding(
        name,
        certainty,
        what,
        change,
        setting.name,
        setting.value,
        setting.line,
        setting.file,
        source or trap.source,
        trap.causes,
    )


def look(case: Case) -> tuple[Finding, ...]:
    """Every trap that a configuration is in; the sure ones first."""
    found = [finding for trap in TRAPS.values() for finding in trap.look(case)]
    return tuple(sorted(found, key=lambda each: each.certainty != "is"))


# ---------------------------------------------------------------------------------------- what is reported


def _sampling(config: Configuration) -> list[Setting]:
    """The settings that make the distribution that is sampled from another than the raw one."""
    return [found for found in (config.get(name) for name in _NEUTRAL) if found is not None and _acts(config, found)]


_NEUTRAL = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def _acts(config: Configuration, found: Setting) -> bool:
    value, name = found.number, found.name
    if value is None:
        return False
    if name.endswith(("top_k", "top-k")):
        return value > 0
    if name.endswith(("min_p", "presence_penalty", "frequency_penalty")):
        return value != 0
    return value != 1


@_trap(
    "raw_logprobs",
    "The engine reports logprobs of the logits before temperature, penalties and truncation, and samples after them: no "
    "importance weight can correct it.",
    GITHUB + "huggingface/trl/issues/4159",
    "raw_logprobs",
)
def _raw_logprobs(case: Case) -> Iterator[Finding]:
    config = case.config
    original = config.get("original_logprob")
    mode = config.get("logprobs_mode")
    acting = _sampling(config)
    if original is not None and original.flag and acting:
        yield _found(
            "raw_logprobs", original, f"SGLang reports raw logprobs, and {_said(acting)}.", f"unset {original.name[4:]}"
        )
    if case.is_async_trl and acting:
        what = f"{_said(acting)}, and the vLLM server is started apart: its default is raw logprobs."
        yield _found("raw_logprobs", acting[0], what, "vllm serve ... --logprobs-mode processed_logprobs", sure=False)
    if not case.on_vllm or "logprobs_mode" not in _fields(config):
        return
    if mode.text != "raw_logprobs" if mode is not None and mode.text else config.settings.notes:
        return  # another mode; or it is not set here, and a file that this one is based on was not read
    yield from _raw_vllm(case, mode or Setting(_fields(config)["logprobs_mode"].write, None), acting)


def _raw_vllm(case: Case, mode: Setting, acting: list[Setting]) -> Iterator[Finding]:
    config = case.config
    default = raw_by_default(case.version)
    if default.startswith("processed"):
        return
    fix = config.line("logprobs_mode", "processed_logprobs")
    if case.version is not None and not at_least(case.version, "0.10.0"):
        fix = "vLLM 0.10 or later with " + fix
    says = f"{mode.name} is {mode.text}" if mode.given else f"vLLM's default is {default}"
    if acting:
        sure = mode.given or case.version is not None
        yield _found("raw_logprobs", mode, f"{says}, and {_said(acting)}.", fix, sure=sure)
    elif config.framework == "vLLM" and config.get("temperature") is None:
        what = f"{says}. Requests at a temperature other than 1, or with top-p, top-k or penalties, get logprobs of another distribution."
        yield _found("raw_logprobs", mode, what, fix, sure=False)


def _said(acting: list[Setting]) -> str:
    return " and ".join(f"{each.name} is {each.text}" for each in acting)


def _fields(config: Configuration) -> dict[str, Field]:
    return FIELDS[config.framework]


@_trap(
    "logits_for_logprobs",
    "The engine reports logits where the trainer reads log-probabilities: values above 0.",
    _VLLM + "blob/main/vllm/config/model.py",
    "placeholder_logprobs",
)
def _logits(case: Case) -> Iterator[Finding]:
    mode = case.config.get("logprobs_mode")
    if mode is not None and mode.text in ("raw_logits", "processed_logits"):
        yield _found(
            "logits_for_logprobs",
            mode,
            "Logits are no log-probabilities.",
            case.config.line("logprobs_mode", "processed_logprobs"),
        )


@_trap(
    "truncated_sampling",
    "The engine renormalises over the tokens that top-p, top-k or min-p leave; the trainer's softmax is over all of them. "
    "The mean ratio falls to the kept mass (0.896 at top-p 0.8).",
    GITHUB + "huggingface/trl/pull/7269",
    "truncation_mass",
)
def _truncated(case: Case) -> Iterator[Finding]:
    config = case.config
    if config.framework in ("NeMo-RL", "vLLM") or (config.framework == "TRL" and not case.on_vllm):
        return
    for name, neutral in (("top_p", 1.0), ("top_k", -1), ("min_p", 0.0)):
        found = config.get(name)
        if found is None or not _acts(config, found) or (config.framework == "slime" and name == "top_p"):
            continue
        neutral = 0 if config.framework == "TRL" and name == "top_k" else neutral
        what = f"Sampling is over a part of the vocabulary, and {config.framework}'s trainer does not restrict its softmax to it."
        yield _found("truncated_sampling", found, what, config.written(found.name, neutral))


@_trap(
    "one_sided_penalty",
    "A repetition, presence or frequency penalty changes what the engine samples from; the trainer does not apply it.",
    _VERL + "issues/7270",
    "one_sided_processor",
)
def _penalty(case: Case) -> Iterator[Finding]:
    config = case.config
    if config.framework == "TRL" and not case.on_vllm:
        return
    for name, neutral in (("repetition_penalty", 1.0), ("presence_penalty", 0.0), ("frequency_penalty", 0.0)):
        found = config.get(name)
        if found is not None and _acts(config, found):
            what = "Tokens that were seen before are sampled less often than the trainer's softmax says."
            yield _found("one_sided_penalty", found, what, config.written(found.name, neutral))
    yield from _overridden(config)


def _overridden(config: Configuration) -> Iterator[Finding]:
    """vLLM's --override-generation-config: penalties for all requests that name none."""
    found = config.get("override_generation_config")
    values = _json(found)
    acting = {name: values[name] for name in _NEUTRAL[4:] if _acts(config, Setting(name, values.get(name)))}
    if found is not None and acting:
        said = ", ".join(f"{name} {value}" for name, value in acting.items())
        what = f"{said} for every request that names none; the trainer does not apply it."
        yield _found("one_sided_penalty", found, what, config.written(found.name, "'{}'"), sure=False)


def _json(found: Setting | None) -> dict[str, object]:
    try:
        data = json.loads(found.text) if found is not None and found.text else {}
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


@_trap(
    "generation_config",
    "What a request leaves open (repetition penalty, top-k, top-p, temperature) comes from the model's "
    "generation_config.json; the trainer knows nothing of it.",
    _VERL + "issues/7270",
    "one_sided_processor",
    "truncation_mass",
)
def _generation_config(case: Case) -> Iterator[Finding]:
    config = case.config
    said, served = config.get("generation_config"), config.get("served")
    if served is not None and said is not None and said.text != "vllm":
        what = (
            "Every request must name temperature, top_p, top_k, min_p and repetition_penalty, or the model's own apply."
        )
        yield _found("generation_config", said, what, config.line("generation_config", "vllm"), sure=False)
    http = config.get("http_server")
    if http is not None and http.flag and case.on_vllm:
        what = "Requests over HTTP send temperature and top_p; a repetition penalty of the model's generation_config.json applies."
        fix = config.written("policy.generation.vllm_kwargs.generation_config", "vllm")
        yield _found("generation_config", http, what, fix, sure=False)


@_trap(
    "temperature_mismatch",
    "The engine samples at one temperature and the trainer divides its logits by another.",
    GITHUB + "huggingface/trl/blob/main/trl/generation/vllm_generation.py",
    "wrong_temperature",
)
def _temperature_mismatch(case: Case) -> Iterator[Finding]:
    config = case.config
    engine, trainer = config.get("engine_temperature"), config.get("temperature")
    if engine is None or trainer is None or engine.number is None or trainer.number is None:
        return
    if engine.number != trainer.number:
        what = f"It overrides the engine's temperature only; the trainer divides by {trainer.text}."
        change = f"{config.written('temperature', engine.number)}, without it in generation_kwargs"
        yield _found("temperature_mismatch", engine, what, change)


@_trap(
    "temperature_range",
    "vLLM 0.24 and later refuse temperatures above 2 (0.18.1 took them); temperature 0 is greedy: no distribution to "
    "weigh by.",
    _VLLM + "pull/44965",
)
def _temperature_range(case: Case) -> Iterator[Finding]:
    found = case.config.get("engine_temperature") or case.config.get("temperature")
    if found is None or found.number is None:
        return
    if found.number <= 0:
        what = "Greedy rollouts: the ratio of probabilities means nothing, and all responses to a prompt are one."
        yield _found("temperature_range", found, what, case.config.written(found.name, 1.0))
    elif found.number > HIGHEST_TEMPERATURE and case.on_vllm and not before(case.version, "0.19.0"):
        sure = case.version is not None and refuses_hot(case.version)
        yield _found(
            "temperature_range",
            found,
            "vLLM refuses it.",
            case.config.written(found.name, HIGHEST_TEMPERATURE),
            sure=sure,
        )


# ------------------------------------------------------------------------------------ caches and updates


@_trap(
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
    yield _found("prefix_cache_kept", found, what, config.written("no-enable-prefix-caching", True), sure=False)


@_trap(
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
        yield _found("update_in_flight", flying, what, config.line("recompute_kv", True))
    mode = config.get("pause_mode")
    miles = GITHUB + "radixark/miles/blob/main/miles/utils/arguments.py"
    if mode is not None and mode.text == "in_place":
        what = "Running requests resume over the keys and values of the old weights."
        yield _found("update_in_flight", mode, what, config.line("pause_mode", "retract"), source=miles)
    if mode is not None and mode.text == "abort":
        what = "Running requests end at every update; the long ones are lost."
        yield _found("update_in_flight", mode, what, config.line("pause_mode", "retract"), source=miles)


@_trap(
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
        yield _found("sleep_loses_weights", found, what, config.line("sleep_mode", False), sure=False)


# ------------------------------------------------------------------------------------------- arithmetic


@_trap(
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
        yield _found("one_sided_fp32_head", trainer, what, change + config.line("trainer_head", False))
    engine = _engine_head(config)
    if engine is None:
        return
    if case.on_vllm and before(case.version, "0.26.0"):
        what = f"vLLM {case.version} applies head_dtype to pooling models only: the engine's head stays as it is."
        source = _VLLM + "blob/v0.18.1/vllm/config/model.py"
        yield _found("one_sided_fp32_head", engine, what, "vLLM 0.26 or later", source=source)
    else:
        what = "The engine's head is in float32; nothing here says that the trainer's is."
        yield _found("one_sided_fp32_head", engine, what, "a float32 head in the trainer as well", sure=False)


def _engine_head(config: Configuration) -> Setting | None:
    """The setting that puts the engine's head into float32, if there is one."""
    found = config.get("engine_head")
    if found is not None and (found.flag or found.text in ("float32", "fp32")):
        return found
    overrides = config.get("hf_overrides")
    return overrides if _json(overrides).get("head_dtype") in ("float32", "fp32") else None


_QUANTIZED = re.compile(r"\b(fp8|int8|int4|mxfp8|nvfp4|mxfp4|w8a8|w4a16|awq|gptq|modelopt)", re.IGNORECASE)


@_trap(
    "quantized_rollout",
    "Rollouts with quantised weights against a trainer in 16 bits: k3 of 0.0014 to 0.06.",
    GITHUB + "NVIDIA-NeMo/RL/blob/main/docs/fp8.md",
    "compute_dtype",
)
def _quantized(case: Case) -> Iterator[Finding]:
    config = case.config
    training = config.get("quantized_training")
    if training is not None and training.text and training.flag is not False:
        return
    found = config.get("quantization")
    if found is not None and found.text and _QUANTIZED.search(found.text):
        sure = config.framework != "vLLM" and _corrected(config) is False
        what = (
            "The trainer is not quantised" if config.framework != "vLLM" else "Unless the trainer rounds the same way"
        )
        what += ", so the skew is far above 16-bit noise; it needs an importance weight."
        yield _found("quantized_rollout", found, what, _sixteen_bits(config, found), sure=sure)
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
        yield _found(
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


@_trap(
    "fp8_kv_cache",
    "Keys and values in fp8: rms 0.178 nats on Qwen3-1.7B, four times bfloat16's.",
    GITHUB + "AknA13/train-infer-mismatch",
    "compute_dtype",
)
def _fp8_kv(case: Case) -> Iterator[Finding]:
    found = case.config.get("kv_cache_dtype")
    if found is not None and found.text.lower().startswith(("fp8", "int8", "nvfp4")):
        what = "The engine rounds keys and values to 8 bits; the trainer does not."
        yield _found("fp8_kv_cache", found, what, case.config.written(found.name, "auto"))


@_trap(
    "moe_without_replay",
    "A mixture of experts routes tokens differently in engine and trainer: heavy tails, k3 about twice as high as with "
    "routing replay.",
    "https://arxiv.org/abs/2510.11370",
    "moe_routing",
)
def _moe(case: Case) -> Iterator[Finding]:
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
    yield _found("moe_without_replay", replay, what, change, sure=False)


_MOE = re.compile(
    r"^(?!.*distill).*(-A\d+(\.\d+)?B|mixtral|\bmoe\b|-moe-|deepseek-(v[234]|r1)|gpt-oss|kimi-k2|moonlight|glm-?[45]\.\d|glm-5\b|minimax-m)",
    re.IGNORECASE,
)


@_trap(
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
            yield _found("dropout_in_trainer", found, "The trainer drops activations; the engine does not.", change)
    if config.framework == "TRL" and config.flag("use_peft") and config.get("dropout") is None:
        what = "TRL's ModelConfig has a LoRA dropout of 0.05 unless it is set."
        found = Setting("lora_dropout", 0.05)
        yield _found("dropout_in_trainer", found, what, config.line("disable_dropout", True), sure=False)


@_trap(
    "cascade_attention",
    "vLLM's cascade attention came out wrong on some GPUs; on by default in V1 before 0.18, where prompts are shared.",
    _VERL + "blob/main/docs/faq/faq.rst",
    "position_dependent",
)
def _cascade(case: Case) -> Iterator[Finding]:
    config = case.config
    if not case.on_vllm or "disable_cascade_attn" not in _fields(config) or not before(case.version, "0.18.0"):
        return
    found = config.get("disable_cascade_attn")
    if before(case.version, "0.8.3") or (found is not None and found.flag):
        return
    name = _fields(config)["disable_cascade_attn"].write
    what = "An A100 or a similar GPU with long shared prompts showed a high gradient norm; 0.10.2 and before had the fault."
    setting = found or Setting(name, False)
    yield _found("cascade_attention", setting, what, config.line("disable_cascade_attn", True), sure=False)


# ------------------------------------------------------------------------------- weights and rejections


def _corrected(config: Configuration) -> bool | None:
    """Whether anything of the trainer's corrects the skew; None: not known."""
    if config.framework == "verl":
        bypass = config.get("bypass")
        if config.get("asynchronous") is not None and bypass is not None and not bypass.given:
            return True  # fully_async_ppo_trainer.yaml turns bypass_mode on
        return bool(config.text("weights") or config.text("rejection") or config.flag("bypass"))
    if config.framework in ("slime", "Miles"):
        return any(config.flag(name) for name in ("correction", "bypass", "mis_weights", "mis_rejects")) or bool(
            config.text("custom_correction")
        )
    if config.framework in ("TRL", "NeMo-RL", "OpenRLHF"):
        return config.flag("correction")
    return True if config.framework == "prime-rl" else None


@_trap(
    "no_correction",
    "Nothing weighs or rejects by the engine's own probabilities: the trainer takes its recomputed logprobs for the ones "
    "that were sampled from.",
    "https://fengyao.notion.site/off-policy-rl",
)
def _no_correction(case: Case) -> Iterator[Finding]:
    config = case.config
    if _corrected(config) is not False or (config.framework == "TRL" and not case.on_vllm):
        return
    name = "weights" if config.framework == "verl" else "correction"
    found = config.get(name)
    if found is None or (found.flag is None and found.text):
        return
    why = _larger_skew(case)
    if why:
        change = config.line(name, "token" if config.framework == "verl" else True)
        what = f"The skew is more than 16-bit noise here: {', '.join(why)}."
        yield _found("no_correction", found, what, change, sure="asynchronous rollouts" in why)


def _larger_skew(case: Case) -> list[str]:
    """What makes the engine differ by more than rounding to 16 bits."""
    said = case.config.get("asynchronous")
    asynchronous = said is not None and (said.flag or (said.number or 0) > 0)
    traps = {"quantised rollouts": _quantized, "fp8 keys and values": _fp8_kv, "experts without replay": _moe}
    found = [name for name, look in traps.items() if any(True for _ in look(case))]
    return ["asynchronous rollouts"] * bool(asynchronous) + found


@_trap(
    "weight_without_effect",
    "verl's bypass mode with loss_type ppo_clip computes rollout_is (TIS, IcePop) for its metrics and does not apply it.",
    _VERL + "blob/main/verl/trainer/ppo/core_algos.py",
)
def _without_effect(case: Case) -> Iterator[Finding]:
    config = case.config
    found = config.get("weights")
    if config.framework != "verl" or found is None or not found.text:
        return
    if config.flag("bypass") and config.text("loss_type") == "ppo_clip":
        what = "The clip sees the whole ratio, and this weight goes into the metrics alone."
        change = f"{config.written(found.name, None)}, or {config.line('loss_type', 'reinforce')}"
        if not config.text("rejection"):
            change += f", or {config.line('rejection', 'token_k1')} with bounds"
        yield _found("weight_without_effect", found, what, change)


@_trap(
    "bounds_exclude_one",
    "A threshold on the ratio that does not hold 1: tokens or sequences on which both sides agree are rejected.",
    _VERL + "blob/main/verl/trainer/ppo/rollout_corr_helper.py",
)
def _exclude_one(case: Case) -> Iterator[Finding]:
    for bound in limits.bounds(case.config):
        if not limits.holds_one(bound):
            what = f"{bound.rule.rule} keeps ratios from {bound.low or 0:.4g} to {bound.high or 0:.4g}, and 1 is not among them."
            yield _found("bounds_exclude_one", bound.setting, what, _suggested(case.config, bound))


@_trap(
    "bounds_upside_down",
    "verl's k1 thresholds are on -log rho: low_high keeps ratios from 1/high to 1/low. Meant for the ratio itself they "
    "reject what they should keep.",
    _VERL + "blob/main/verl/trainer/ppo/rollout_corr_helper.py",
)
def _upside_down(case: Case) -> Iterator[Finding]:
    for bound, rejected, turned in _rejecting(case.config):
        if bound.rule.units == "inverse" and turned < rejected / 2 and turned < REJECTS:
            what = f"{bound.rule.rule} rejects {rejected:.0%} of healthy data; the inverse bounds would reject {turned:.1%}."
            yield _found("bounds_upside_down", bound.setting, what, _suggested(case.config, bound), sure=False)


@_trap(
    "bounds_below_noise",
    "A rejection or mask that fires on healthy rounding noise at this length.",
    GITHUB + "AknA13/train-infer-mismatch",
)
def _below_noise(case: Case) -> Iterator[Finding]:
    _, of = limits.noise_of(case.config)
    length, said = limits.length_of(case.config)
    for bound, rejected, turned in _rejecting(case.config):
        if bound.rule.units == "inverse" and turned < rejected / 2 and turned < REJECTS:
            continue  # upside down
        what = f"{bound.rule.rule} {'drops' if bound.rule.per == 'sequences' else 'masks'} {rejected:.0%} of healthy "
        what += f"{bound.rule.per} of {length} tokens{'' if said else ' (no length in the file)'}, at {of}"
        what += ", and more of shorter ones." if bound.rule.fold == "mean" else "."
        yield _found("bounds_below_noise", bound.setting, what, _suggested(case.config, bound), sure=False)


def _rejecting(config: Configuration) -> Iterator[tuple[limits.Bound, float, float]]:
    """(bound, share of healthy data it rejects, the same if it were turned) of those that reject too much."""
    rms, _ = limits.noise_of(config)
    length, _ = limits.length_of(config)
    for bound in limits.bounds(config):
        weight = bound.rule.fold == "sum" and bound.rule.action == "mask"  # judged by what it leaves: `_summed`
        if bound.rule.action not in ("reject", "mask") or weight or not limits.holds_one(bound):
            continue
        rejected = limits.touched(bound, rms, length)
        if rejected > REJECTS:
            yield bound, rejected, limits.touched(limits.turned(bound), rms, length)


@_trap(
    "summed_weight",
    "A weight multiplied up over a sequence: on long healthy data most of the gradient is cut off or masked.",
    GITHUB + "huggingface/trl/issues/4772",
)
def _summed(case: Case) -> Iterator[Finding]:
    rms, of = limits.noise_of(case.config)
    length, said = limits.length_of(case.config)
    for bound in limits.bounds(case.config):
        if bound.rule.fold != "sum" or bound.rule.action == "reject" or not limits.holds_one(bound):
            continue
        if said is None or case.config.flag("normalised"):
            continue  # normalised weights have mean one; how few of them count is another matter
        mean, bias = limits.bias(bound, rms, length)
        if bias > BIAS:
            what = f"At {length} tokens and {of} the mean weight is {mean:.2g}."
            yield _found("summed_weight", bound.setting, what, _by_token(case.config), sure=False)


def _suggested(config: Configuration, bound: limits.Bound) -> str:
    """The line that makes a bound bearable, or a rule by token or mean where none does."""
    if bound.rule.fold == "sum":
        return _by_token(config)
    rms, _ = limits.noise_of(config)
    length, _ = limits.length_of(config)
    wide = limits.not_firing(bound, rms, length)
    low, _, high = wide.rpartition("_")
    if config.framework == "verl":
        return config.line(bound.field, wide)
    if config.framework == "OpenRLHF":
        return config.line(bound.field, f"{low or 0} {high}")
    if config.framework == "NeMo-RL":
        return f"{config.line('correction_low', low)}, {config.line('correction_high', high)}"
    if config.framework in ("slime", "Miles"):
        names = (
            ("mis_rejection_low", "mis_rejection_high")
            if bound.field.startswith("mis_rej")
            else ("mis_low", "mis_high")
        )
        return ", ".join(config.line(name, value) for name, value in zip(names, (low, high), strict=True) if value)
    return _by_token(config)


def _by_token(config: Configuration) -> str:
    if config.framework == "verl":
        return config.line("weights", "token")
    if config.framework == "TRL":
        return config.line("correction_mode", "token_truncate")
    return config.line("mis_level", "token") if config.get("mis_level") is not None else "a weight per token"
