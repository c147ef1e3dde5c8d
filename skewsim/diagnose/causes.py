"""The causes a diagnosis can name, the layer each belongs to, and the setting that mends it.

Layers are put right in this order: semantic (the number reported is not the log-probability of what was sampled),
inference path (the engine computed it from the wrong state), precision, staleness, objective. A correction in the
objective hides the others, so it comes last.

Setting names: vLLM engine arguments and `pause_generation`; PipelineRL's `vllm_config`; verl's
`actor_rollout_ref.rollout`; TRL's `GRPOConfig`; prime-rl's `[inference]`; slime's SGLang flags and environment.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from skewsim.errors import UserError
from skewsim.html import bar, heading, paragraph, table

LAYERS = ("semantic", "inference path", "precision", "staleness", "objective")

LAYER_OF: dict[str, str | None] = {
    "placeholder_logprobs": "semantic",
    "not_the_sampled_token": "semantic",
    "misaligned_tokens": "semantic",
    "different_context": "semantic",
    "raw_logprobs": "semantic",
    "wrong_temperature": "semantic",
    "truncation_mass": "semantic",
    "one_sided_processor": "semantic",
    "outlier_sequences": "inference path",
    "stale_kv": "inference path",
    "packed_rows": "inference path",
    "position_dependent": "inference path",
    "stochastic_trainer": "inference path",
    "head_dtype": "precision",
    "one_sided_fp32_head": "precision",
    "compute_dtype": "precision",
    "moe_routing": "precision",
    "stale_weights": "staleness",
    "stale_replica": "staleness",
    "weights_not_delivered": "staleness",
    "healthy": None,
    "unknown": None,
}

FIX: dict[str, str] = {
    "placeholder_logprobs": (
        "Keep tokens without a log-probability out of the loss, or log the real one. vLLM: every sampled token has one, the end "
        "token too (logprobs[t][token_ids[t]]); a value that is missing is an error, not 0.0. "
        "PipelineRL: labels are -100 where logprobs are filled in. "
        "verl: response_mask is 0 on tool and padding tokens, and rollout_log_probs covers the end token. "
        "TRL: a custom rollout_func returns logprobs of every completion token, and env_mask 0 on a tool's. "
        "prime-rl: completion_mask is 0 on a tool's tokens. slime: loss_mask is 0 where rollout_log_probs is filled with 0.0. "
        "NeMo-RL: token_loss_mask is 0 where generation_logprobs is; vllm_cfg must return logprobs for every turn. "
        "SkyRL: loss_mask is 0 on observation tokens, and append_eos_token_after_stop_str_in_multi_turn=false, or mask the end "
        "token that it appends."
    ),
    "not_the_sampled_token": (
        "Read the entry of the sampled token, by its id, not the first or the best one. vLLM: "
        "output.logprobs[t][output.token_ids[t]].logprob; the dictionary also holds the most likely token. "
        "PipelineRL: logprobs.content[t].logprob, not top_logprobs[0]. verl: the rollout worker's log_probs by token id. "
        "TRL: the first entry of each position's list is the sampled one only with logprobs=0. "
        "prime-rl: completion_logprobs from choices[].logprobs.content[t].logprob. "
        "slime: output_token_logprobs of SGLang, not output_top_logprobs. NeMo-RL: generation_logprobs by token id. "
        "SkyRL: response_logprobs by token id."
    ),
    "different_context": (
        "Let both sides read the same tokens before each token. Log prompt_token_ids and token_ids of the engine and train on "
        "those; never render the chat template again. vLLM: return_token_ids=true. "
        "PipelineRL: build TrainingText from the ids of the call. verl: multi_turn.tokenization_sanity_check_mode=strict, a template "
        "that keeps earlier thinking (or one training sequence a turn), and rows paired by uid. "
        "TRL: rollout_func returns prompt_ids of what was sent; chat_template_kwargs that keep thinking. "
        "prime-rl: the renderer's interleaved or branching trajectories, as the template allows. "
        "slime: sample.tokens as sent to the engine, not re-tokenised. NeMo-RL: check that message_log's token_ids extend the prompt of "
        "the turn before. SkyRL: generator.use_conversation_multi_turn=true with a template that keeps thinking."
    ),
    "one_sided_processor": (
        "Switch off what only one side applies, or apply it on both. vLLM: repetition_penalty=1.0, presence_penalty=0, "
        'frequency_penalty=0, no grammar or bad_words; generation_config="vllm" keeps a model\'s generation_config.json from setting '
        "them; a softcap must be in both model definitions. "
        "PipelineRL: llm.parameters without penalties. verl: actor_rollout_ref.rollout.repetition_penalty=1.0 (it reads "
        "generation_config.json). TRL: repetition_penalty=1.0, and generation_kwargs without penalties. "
        "prime-rl: no repetition_penalty in [orchestrator.sampling]. slime: SGLang's --sampling-defaults openai. "
        "NeMo-RL: policy.generation without penalties. SkyRL: generator.sampling_params.repetition_penalty=1.0."
    ),
    "packed_rows": (
        "Isolate the sequences of a packed row: attention by cu_seqlens (variable-length kernels), positions that start again, and "
        "states of convolutions or linear attention reset at each start. vLLM: nothing to set, it is the trainer's side. "
        "PipelineRL: seq_packing=false to see it go. verl: use_remove_padding=true needs flash_attention_2 (or use_dynamic_bsz=false to see "
        "it go). TRL: padding_free or packing needs flash_attention_2. "
        "prime-rl: [trainer.model] attn = flash_attention_2 or 3 with position_ids of each sample. "
        "slime: --qkv-format thd, or a micro batch of one to see it go. NeMo-RL: policy.sequence_packing.enabled=false to see it go. "
        "SkyRL: trainer.use_sample_packing=false to see it go."
    ),
    "position_dependent": (
        "Compare what depends on the place: rope scaling and its base (max_position_embeddings, YaRN factors), the dtype of keys, values "
        "and of a recurrent state, cache blocks, splits of the attention kernel, context parallelism. "
        'vLLM: kv_cache_dtype="auto", hf_overrides without another rope_scaling, mamba_ssm_cache_dtype="float32", '
        "enable_chunked_prefill=False to see whether it goes. "
        "PipelineRL: vllm_config.vllm_kwargs.kv-cache-dtype=auto. verl: ulysses_sequence_parallel_size=1 to see whether it goes. "
        "TRL: vllm_max_model_length and rope_scaling as in the trainer. prime-rl: [trainer.model] cp = 1 to see whether it goes. "
        "slime: --context-parallel-size 1, --sglang-kv-cache-dtype auto. NeMo-RL: context_parallel_size=1, "
        "vllm_cfg.kv_cache_dtype=auto. SkyRL: trainer.policy.sequence_parallel_size=1."
    ),
    "stochastic_trainer": (
        "Score with dropout off. The trainer's two passes over one batch must agree. vLLM: nothing to set, it is the trainer's side. "
        "PipelineRL, TRL: model.eval() while old logprobs are computed, and attention_dropout, hidden_dropout, lora_dropout = 0 "
        "(TRL: disable_dropout=True). verl: actor_rollout_ref.model.override_config.attention_dropout=0 (and Megatron's "
        "override_transformer_config.hidden_dropout=0). prime-rl: [trainer.model] lora dropout = 0. "
        "slime: --attention-dropout 0 --hidden-dropout 0. NeMo-RL: megatron_cfg hidden_dropout and attention_dropout 0. "
        "SkyRL: trainer.policy.model.lora dropout 0, and Megatron's transformer_config_kwargs with both dropouts 0."
    ),
    "moe_routing": (
        "Usual for a mixture of experts: a token near a tie goes to another expert. If it is too much, replay the engine's choice in "
        "the trainer. vLLM: enable_return_routed_experts=True. PipelineRL: truncate or mask by token (epsilon), it has no replay. "
        'verl: actor.router_replay.mode="R3" with rollout.enable_rollout_routing_replay=True. '
        'TRL: vllm_importance_sampling_mode="token_mask" (it has no replay). '
        "prime-rl: enable_return_routed_experts = true in [inference] and [trainer.model]. "
        "slime: --use-rollout-routing-replay. NeMo-RL: router replay of Megatron, or a float32 router. "
        "SkyRL: moe_enable_routing_replay=true. A float32 router and gate on both sides narrows the gap."
    ),
    "stale_replica": (
        "One engine of several did not load the last weights: compare a checksum or the version of every replica after each update, and "
        "load the newest weights when one recovers or joins. vLLM: collective_rpc over all engines, then reset_prefix_cache(); an adapter "
        "is served under a new name for each version. PipelineRL: the update must reach all actor_llm ranks. "
        "verl: one replica restarted after a fault takes the next update_weights. TRL: one server for all, or sync each. "
        "prime-rl: /update_weights must answer from every server of [client] base_url. "
        "slime, Miles: with fault tolerance, send the newest weights to a recovered engine (--use-fault-tolerance). "
        "NeMo-RL: refit all data-parallel workers. SkyRL: every inference engine joins the weight-sync group."
    ),
    "weights_not_delivered": (
        "The engine never received the new weights, or not all of them: compare a parameter's checksum on both sides after an update. "
        "vLLM: sleep level 2 drops the weights, so wake_up must be followed by load_weights; names that load_weights skips are errors; a "
        "LoRA adapter must be loaded and requested by name. "
        "PipelineRL: receive_weight_update reaches every worker. verl: with LoRA, layered_summon and load_format=safetensors, and no "
        "base-only sync. TRL: vllm_sleep only in a version after the fix; sync_weights covers the adapter (merged). "
        "prime-rl: the run directory's step_N/STABLE is the one loaded; MoE names match. "
        "slime: --update-weight-buffer-size large enough for every bucket, names mapped by the model's converter. "
        "NeMo-RL: refit_policy_generation before each rollout. SkyRL: weight_sync_backend set, and lora served if trained."
    ),
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
class Place:
    """One column and the value of it at which the skew differs."""

    column: str
    value: str
    tokens: int
    sequences: int
    rms_inside: float
    rms_outside: float
    bias_inside: float
    explained: float
    """Share of the mean square above the level outside."""
    z: float
    """How sure the difference is, with the sequence as the unit and all columns that were looked at counted."""

    def to_json(self) -> dict[str, Any]:
        return {
            key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Diagnosis:
    """Causes by share explained; `verdict` is the one that hurts most."""

    causes: tuple[Cause, ...]
    tokens: int
    sequences: int
    rms: float
    notes: tuple[str, ...] = ()
    """What was looked at and ruled out, and what could not be looked at."""
    where: tuple[Place, ...] = ()
    """Where the skew is larger or biased, the strongest first, whatever the cause."""
    kind: str = "none"
    """misreported, other_distribution, noise or none."""
    kind_text: str = ""
    values: tuple[str, ...] = ()
    """Values that are no log-probabilities, in words."""
    odd_one_out: str | None = None
    """engine, trainer or model, where the other two agree."""
    agreement: dict[str, float] | None = None
    """rms distance of each pair of engine, trainer and model, nats."""
    normal: bool | None = None
    """Whether this is usual for the dtype and the kind of model; None if there is nothing to compare with."""
    usual: str = ""
    """The same in words, beside published figures."""
    error: float = 0.25
    """By how much the shares of two causes may differ by chance: two standard errors over sequences."""

    @property
    def to_mend(self) -> tuple[Cause, ...]:
        """What hurts most first; shares that differ by less than their error, in the order of layers."""
        top = max((cause.explained for cause in self.causes), default=0.0)
        near = [cause for cause in self.causes if cause.explained >= top - self.error and cause.explained >= 0.01]
        first = tuple(sorted(near or self.causes, key=lambda cause: (_rank(cause), -cause.explained)))
        return first + tuple(cause for cause in self.causes if cause not in first)

    def _repr_html_(self) -> str:
        rows = [(c.name, f"{c.explained:.0%}", bar(c.explained), c.evidence, c.fix) for c in self.to_mend]
        places = [
            (f"{p.column} {p.value}", f"{p.explained:.0%}", bar(p.explained), p.rms_inside, p.rms_outside, p.z)
            for p in self.where
        ]
        said = heading(
            f"{self.verdict}: rms skew {self.rms:.3g} nats, {self.tokens} tokens, {self.sequences} sequences"
        )
        said += "".join(map(paragraph, filter(None, (self.usual, self.kind_text, *self.values, *self.notes))))
        said += table(("cause", "explains", "", "evidence", "fix"), rows)
        if places:
            said += table(("where it lives", "share", "", "rms inside", "rms outside", "z"), places)
        return said

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
        return {
            "verdict": self.verdict,
            "layer": self.layer,
            "causes": [cause.to_json() for cause in self.causes],
            "kind": self.kind,
            "kind_text": self.kind_text,
            "normal": self.normal,
            "usual": self.usual,
            "odd_one_out": self.odd_one_out,
            "agreement": self.agreement,
            "values": list(self.values),
            "where": [place.to_json() for place in self.where],
            "notes": list(self.notes),
        }

    def to_plain(self) -> dict[str, Any]:
        """All of it, for `from_plain`."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Diagnosis:
        parts: dict[str, Any] = {
            "causes": tuple(Cause(**cause) for cause in data["causes"]),
            "where": tuple(Place(**place) for place in data.get("where", ())),
            "notes": tuple(data["notes"]),
            "values": tuple(data.get("values", ())),
        }
        return cls(**data | parts)


def found(name: str, explained: float, evidence: str, *, fix: str | None = None) -> Cause:
    """A cause with its standard fix."""
    return Cause(name, explained, evidence, FIX[name] if fix is None else fix)


def ranked(causes: list[Cause]) -> tuple[Cause, ...]:
    """By share explained, the largest first."""
    return tuple(sorted(causes, key=lambda cause: -cause.explained))


def _rank(cause: Cause) -> int:
    return len(LAYERS) if cause.layer is None else LAYERS.index(cause.layer)


_FRAMEWORKS = ("vLLM", "PipelineRL", "verl", "TRL", "prime-rl", "slime", "Miles", "NeMo-RL", "SkyRL")


def fix_for(fix: str, framework: str) -> str:
    """What a fix says in general, to vLLM and to one framework. UserError if that is none it knows."""
    known = {name.lower(): name for name in _FRAMEWORKS}
    wanted = known.get(framework.lower())
    if wanted is None:
        raise UserError(f"framework={framework!r} is not known; allowed: {', '.join(_FRAMEWORKS)}")
    names = "|".join(map(re.escape, _FRAMEWORKS))
    parts = re.split(rf"(?:(?<=[^,]\s)|^)(?=(?:{names})(?:, (?:{names}))*: )", fix)
    kept = [part for part in parts if _speaks_to(part, wanted, names)]
    return "".join(kept).strip()


def _speaks_to(part: str, wanted: str, names: str) -> bool:
    head = re.match(rf"((?:{names})(?:, (?:{names}))*): ", part)
    return head is None or bool({"vLLM", wanted} & set(head[1].split(", ")))
