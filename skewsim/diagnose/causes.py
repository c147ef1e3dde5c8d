"""The causes a diagnosis can name, the layer each belongs to, and the setting that mends it.

Layers are put right in this order: semantic (the number reported is not the log-probability of what was sampled),
inference path (the engine computed it from the wrong state), precision, staleness, objective. A correction in the
objective hides the others, so it comes last.

Setting names: vLLM engine arguments and `pause_generation`; PipelineRL's `vllm_config`; verl's
`actor_rollout_ref.rollout`; TRL's `GRPOConfig`; prime-rl's `[inference]`; slime's SGLang flags and environment.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

LAYERS = ("semantic", "inference path", "precision", "staleness", "objective")

LAYER_OF: dict[str, str | None] = {
    "misaligned_tokens": "semantic",
    "raw_logprobs": "semantic",
    "wrong_temperature": "semantic",
    "truncation_mass": "semantic",
    "outlier_sequences": "inference path",
    "stale_kv": "inference path",
    "head_dtype": "precision",
    "one_sided_fp32_head": "precision",
    "compute_dtype": "precision",
    "stale_weights": "staleness",
    "healthy": None,
    "unknown": None,
}

FIX: dict[str, str] = {
    "raw_logprobs": (
        'Report processed logprobs. vLLM: logprobs_mode="processed_logprobs" (V1\'s default is raw_logprobs). '
        "PipelineRL: vllm_config.vllm_kwargs.logprobs-mode=processed_logprobs. "
        "verl: actor_rollout_ref.rollout.logprobs_mode=processed_logprobs. "
        "TRL: colocate mode sets it; start a server of your own with --logprobs-mode processed_logprobs. "
        'prime-rl: [inference.vllm] logprobs_mode = "processed_logprobs". '
        "slime: leave SGLANG_RETURN_ORIGINAL_LOGPROB unset. No importance weight can mend this."
    ),
    "wrong_temperature": (
        "Let trainer and engine divide the logits by the same temperature. vLLM: SamplingParams(temperature=T). "
        "PipelineRL: llm.parameters.temperature=T and finetune.rl.temperature=T. "
        "verl: actor_rollout_ref.rollout.temperature=T (the actor takes it from there). TRL: temperature=T. "
        "prime-rl: the temperature of [orchestrator.sampling] reaches the trainer with the batch. "
        "slime: --rollout-temperature T."
    ),
    "truncation_mass": (
        "Let both sides renormalise over the same tokens, or cut none off. vLLM: SamplingParams(top_p=1.0, top_k=-1, "
        "min_p=0), or (from 0.32) return_sampling_mask and a trainer that applies it. "
        "PipelineRL: llm.parameters.top_p=1.0. verl: actor_rollout_ref.rollout.top_p=1.0 "
        "actor_rollout_ref.rollout.top_k=-1. TRL: top_p=1.0, top_k=0. prime-rl: no top_p or top_k in "
        "[orchestrator.sampling]. slime: --rollout-top-p 1.0 --rollout-top-k -1."
    ),
    "misaligned_tokens": (
        "Pair each logprob with its own token: the value at position t belongs to token t, not to the token before "
        "it (logits[:, :-1] predict tokens[:, 1:]). vLLM: take logprobs[t][token_ids[t]] by token id. "
        "PipelineRL: labels and logprobs of TrainingText count the same tokens. verl: rollout_log_probs has the shape "
        "of responses. TRL: return prompt_ids, completion_ids and logprobs of equal length from a custom rollout_func. "
        "prime-rl: completion_logprobs as long as completion_ids. slime: rollout_log_probs as long as response_length. "
        "Pass token ids through; never decode and tokenise again."
    ),
    "outlier_sequences": (
        "Look at the sequences named, then drop them. vLLM: look for preempted, aborted or resumed requests. "
        "PipelineRL: discard rollouts that ended in an error. verl: rollout_rs=seq_max_k2 with a "
        "rollout_rs_threshold far outside the noise. TRL: mask_truncated_completions=True. "
        "prime-rl: the loss masks them by their ratio. slime: rs_veto_threshold=1e-4, status aborted or failed removed. "
        "A veto hides the fault; the log of the requests shows it."
    ),
    "stale_kv": (
        "Drop what was cached under old weights when new ones arrive. vLLM: enable_prefix_caching=False, or "
        'reset_prefix_cache() after each update, or pause_generation(mode="keep", clear_cache=True); with requests '
        "running reset_prefix_cache(reset_running_requests=True). "
        "PipelineRL: vllm_config.vllm_kwargs.enable-prefix-caching=false. "
        "verl: actor_rollout_ref.rollout.enable_prefix_caching=False. TRL: it resets the cache after each sync; keep "
        "that call in a server of your own. prime-rl: [inference.vllm] enable_prefix_caching = false. "
        "slime: --sglang-disable-radix-cache, or flush_cache after the update."
    ),
    "head_dtype": (
        'Compute lm_head in float32 in the engine too. vLLM: hf_overrides={"head_dtype": "float32"} (0.26 and later; '
        "before that a plugin, whose float32 copy must be renewed at every weight update). "
        "PipelineRL: its fp32 lm_head plugin on the vLLM side. "
        "verl: actor_rollout_ref.rollout.engine_kwargs.vllm.hf_overrides.head_dtype=float32. "
        "TRL: cast_lm_head_to_fp32=True casts the trainer only; the engine needs the vLLM override. "
        'prime-rl: [inference.vllm] hf_overrides with head_dtype = "float32". slime: --sglang-enable-fp32-lm-head.'
    ),
    "one_sided_fp32_head": (
        "Compute lm_head in float32 on both sides or on neither; on one side only it widens the gap. "
        'vLLM: hf_overrides={"head_dtype": "float32"} (0.26 and later). PipelineRL: fp32 lm_head in trainer and vLLM '
        "plugin together. verl: engine_kwargs.vllm.hf_overrides.head_dtype=float32 and an fp32 head in the actor. "
        "TRL: cast_lm_head_to_fp32=True together with the vLLM override. prime-rl: the fp32 head on both [trainer.model] "
        "and [inference.vllm]. slime: --sglang-enable-fp32-lm-head together with Megatron's fp32 output."
    ),
    "compute_dtype": (
        "This is rounding: nothing is misreported. If it is too much for your clip or rejection bounds, widen those "
        '(`skewsim advise`), or raise precision on both sides alike. vLLM: dtype="float16" (error eight times smaller) '
        'or "float32", kv_cache_dtype="auto", no quantization. PipelineRL: vllm_config.vllm_kwargs.dtype=float16 and the '
        "trainer's. verl: actor_rollout_ref.rollout.dtype=float16 and the actor's. TRL: fp16=True and the model's dtype. "
        'prime-rl: [inference.model] dtype = "float16". slime: --sglang-dtype float16 and --fp16.'
    ),
    "stale_weights": (
        "Bring the engine's weights nearer to the trainer's, or account for the lag. vLLM: pause_generation("
        'mode="keep", clear_cache=False), load, resume_generation() at every step. '
        "PipelineRL: weight_update_interval=1, and finetune.max_lag. verl: trainer.async_training.staleness_threshold "
        "lower, or decoupled rollout_correction (rollout_is=token). TRL: steps_per_generation=1, num_iterations=1. "
        "prime-rl: max_off_policy_steps and max_async_level lower. slime: --update-weights-interval 1, or --use-tis."
    ),
    "healthy": "Nothing to mend: the skew is within the noise of this dtype.",
    "unknown": "",
}


@dataclass(frozen=True)
class Cause:
    """One thing found, with the share of the mean square skew it explains and the figures that speak for it."""

    name: str
    explained: float
    evidence: str
    fix: str

    @property
    def layer(self) -> str | None:
        return LAYER_OF[self.name]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "layer": self.layer,
            "explained": round(min(max(self.explained, 0.0), 1.0), 4),
            "evidence": self.evidence,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class Diagnosis:
    """Causes by share explained; `verdict` is the one to mend first, by layer."""

    causes: tuple[Cause, ...]
    tokens: int
    sequences: int
    rms: float
    notes: tuple[str, ...] = ()
    """What was looked at and ruled out, and what could not be looked at."""

    @property
    def to_mend(self) -> tuple[Cause, ...]:
        """Causes in the order in which they are to be mended: by layer, then by share."""
        return tuple(sorted(self.causes, key=lambda cause: (_rank(cause), -cause.explained)))

    @property
    def first(self) -> Cause:
        return self.to_mend[0]

    @property
    def verdict(self) -> str:
        return self.first.name

    @property
    def layer(self) -> str | None:
        return self.first.layer

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "layer": self.layer, "causes": [cause.to_json() for cause in self.causes]}

    def to_plain(self) -> dict[str, Any]:
        """All of it, for `from_plain`."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Diagnosis:
        causes, notes = (Cause(**cause) for cause in data["causes"]), data["notes"]
        return cls(**data | {"causes": tuple(causes), "notes": tuple(notes)})


def found(name: str, explained: float, evidence: str, *, fix: str | None = None) -> Cause:
    """A cause with its standard fix."""
    return Cause(name, explained, evidence, FIX[name] if fix is None else fix)


def ranked(causes: list[Cause]) -> tuple[Cause, ...]:
    """By share explained, the largest first."""
    return tuple(sorted(causes, key=lambda cause: -cause.explained))


def _rank(cause: Cause) -> int:
    return len(LAYERS) if cause.layer is None else LAYERS.index(cause.layer)
