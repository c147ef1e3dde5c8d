"""Traps of what an engine samples from and reports: raw logprobs, truncation, penalties, temperatures."""

from __future__ import annotations

from collections.abc import Iterator

from harness.configs.findings import Finding
from harness.configs.frameworks import Configuration
from harness.configs.settings import Setting
from harness.configs.trap import GITHUB, VERL, VLLM, Case, fields_of, finding, json_of, trap
from harness.configs.versions import before, raw_by_default
from harness.versions import HIGHEST_TEMPERATURE, at_least, refuses_hot


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


@trap(
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
        yield finding(
            "raw_logprobs", original, f"SGLang reports raw logprobs, and {_said(acting)}.", f"unset {original.name[4:]}"
        )
    if case.is_async_trl and acting:
        what = f"{_said(acting)}, and the vLLM server is started apart: its default is raw logprobs."
        yield finding("raw_logprobs", acting[0], what, "vllm serve ... --logprobs-mode processed_logprobs", sure=False)
    if not case.on_vllm or "logprobs_mode" not in fields_of(config):
        return
    if mode.text != "raw_logprobs" if mode is not None and mode.text else config.settings.notes:
        return  # another mode; or it is not set here, and a file that this one is based on was not read
    yield from _raw_vllm(case, mode or Setting(fields_of(config)["logprobs_mode"].write, None), acting)


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
        yield finding("raw_logprobs", mode, f"{says}, and {_said(acting)}.", fix, sure=sure)
    elif config.framework == "vLLM" and config.get("temperature") is None:
        what = f"{says}. Requests at a temperature other than 1, or with top-p, top-k or penalties, get logprobs of another distribution."
        yield finding("raw_logprobs", mode, what, fix, sure=False)


def _said(acting: list[Setting]) -> str:
    return " and ".join(f"{each.name} is {each.text}" for each in acting)


@trap(
    "logits_for_logprobs",
    "The engine reports logits where the trainer reads log-probabilities: values above 0.",
    VLLM + "blob/main/vllm/config/model.py",
    "placeholder_logprobs",
)
def _logits(case: Case) -> Iterator[Finding]:
    mode = case.config.get("logprobs_mode")
    if mode is not None and mode.text in ("raw_logits", "processed_logits"):
        yield finding(
            "logits_for_logprobs",
            mode,
            "Logits are no log-probabilities.",
            case.config.line("logprobs_mode", "processed_logprobs"),
        )


@trap(
    "truncated_sampling",
    "The engine renormalises over the tokens that top-p, top-k or min-p leave; the trainer's softmax is over all of them. "
    "The mean mismatch ratio falls to the kept mass (0.896 at top-p 0.8).",
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
        yield finding("truncated_sampling", found, what, config.written(found.name, neutral))


@trap(
    "one_sided_penalty",
    "A repetition, presence or frequency penalty changes what the engine samples from; the trainer does not apply it.",
    VERL + "issues/7270",
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
            yield finding("one_sided_penalty", found, what, config.written(found.name, neutral))
    yield from _overridden(config)


def _overridden(config: Configuration) -> Iterator[Finding]:
    """vLLM's --override-generation-config: penalties for all requests that name none."""
    found = config.get("override_generation_config")
    values = json_of(found)
    acting = {name: values[name] for name in _NEUTRAL[4:] if _acts(config, Setting(name, values.get(name)))}
    if found is not None and acting:
        said = ", ".join(f"{name} {value}" for name, value in acting.items())
        what = f"{said} for every request that names none; the trainer does not apply it."
        yield finding("one_sided_penalty", found, what, config.written(found.name, "'{}'"), sure=False)


@trap(
    "generation_config",
    "What a request leaves open (repetition penalty, top-k, top-p, temperature) comes from the model's "
    "generation_config.json; the trainer knows nothing of it.",
    VERL + "issues/7270",
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
        yield finding("generation_config", said, what, config.line("generation_config", "vllm"), sure=False)
    http = config.get("http_server")
    if http is not None and http.flag and case.on_vllm:
        what = "Requests over HTTP send temperature and top_p; a repetition penalty of the model's generation_config.json applies."
        fix = config.written("policy.generation.vllm_kwargs.generation_config", "vllm")
        yield finding("generation_config", http, what, fix, sure=False)


@trap(
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
        yield finding("temperature_mismatch", engine, what, change)


@trap(
    "temperature_range",
    "vLLM 0.24 and later refuse temperatures above 2 (0.18.1 took them); temperature 0 is greedy: no distribution to "
    "weigh by.",
    VLLM + "pull/44965",
)
def _temperature_range(case: Case) -> Iterator[Finding]:
    found = case.config.get("engine_temperature") or case.config.get("temperature")
    if found is None or found.number is None:
        return
    if found.number <= 0:
        what = "Greedy rollouts: the ratio of probabilities means nothing, and all responses to a prompt are one."
        yield finding("temperature_range", found, what, case.config.written(found.name, 1.0))
    elif found.number > HIGHEST_TEMPERATURE and case.on_vllm and not before(case.version, "0.19.0"):
        sure = case.version is not None and refuses_hot(case.version)
        yield finding(
            "temperature_range",
            found,
            "vLLM refuses it.",
            case.config.written(found.name, HIGHEST_TEMPERATURE),
            sure=sure,
        )
