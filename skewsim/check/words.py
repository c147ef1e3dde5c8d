"""What each cause is in a sentence, what a trend reminds of, and what to log to know more, for each framework."""

from __future__ import annotations

SAYS: dict[str, str] = {
    "placeholder_logprobs": "values that are no log-probabilities stand in the log, and the loss uses them",
    "not_the_sampled_token": "one side logs another token's value than the sampled one's",
    "misaligned_tokens": "the two sides' values are shifted against each other by a token",
    "different_context": "trainer and engine do not read the same tokens before each token",
    "raw_logprobs": "the engine reports raw log-probabilities, not those that it sampled from",
    "wrong_temperature": "trainer and engine use different temperatures",
    "truncation_mass": "the engine renormalises over top-p, top-k or min-p, and the trainer does not",
    "one_sided_processor": "one side changes the logits (a penalty, a softcap) and the other does not",
    "outlier_sequences": "a few sequences are broken; the others are quiet",
    "stale_kv": "the engine uses keys and values that were cached under older weights",
    "packed_rows": "the trainer's packed rows see the sequence before them",
    "position_dependent": "the sides differ by the position in the sequence",
    "stochastic_trainer": "the trainer gives another number each time it scores (dropout)",
    "head_dtype": "the engine's last matrix is computed in bfloat16",
    "one_sided_fp32_head": "the last matrix is in float32 on one side only",
    "compute_dtype": "rounding of a 16-bit type; nothing is misreported",
    "moe_routing": "experts are routed differently: truthful, but with heavy tails",
    "stale_weights": "tokens were sampled under older weights",
    "stale_replica": "one engine of several has older weights",
    "weights_not_delivered": "the engine does not receive the new weights",
    "healthy": "the skew is within the noise of the dtype",
    "unknown": "the skew fits none of the known causes",
    "mask_missing": "tokens that no engine sampled (a tool's answer) stand in the log without a loss mask",
    "nonfinite": "metrics of the skew are not numbers",
    "too_large": "the skew is larger than what is usual",
    "misreported": "the engine does not report what it samples from",
    "weight_collapsed": "the importance weight has collapsed: it is multiplied up over whole sequences",
    "rejects": "the run's own correction throws most of the data away",
    "jump": "the skew jumped, and stays up",
    "growing": "the skew grows with the step",
    "rare": "what is wrong is rare: the whole log is louder than the sample that was diagnosed",
}
"""Causes of a diagnosis, and what `check` adds to them."""

REMIND_OF: dict[str, tuple[str, ...]] = {
    "jump": ("weights_not_delivered", "stale_replica"),
    "growing": ("weights_not_delivered", "position_dependent"),
    "follows_lag": ("stale_weights", "stale_kv"),
    "misreported": ("raw_logprobs", "wrong_temperature", "placeholder_logprobs"),
    "lost_mass": ("truncation_mass", "not_the_sampled_token"),
    "heavy": ("moe_routing", "outlier_sequences", "placeholder_logprobs"),
}
"""What curves of this shape may come from; only a log of tokens tells which."""

LOG_TOKENS: dict[str, str] = {
    "verl": "actor_rollout_ref.rollout.calculate_log_probs=True, trainer.rollout_data_dir=D and the six lines of "
    "RolloutLog in docs/logs.md",
    "TRL": "trainer.add_callback(RolloutCallback(trainer, 'rollouts.jsonl')) from skewsim.callbacks, with use_vllm=True",
    "prime-rl": "trainer.enable_token_export = true, then give the run folder",
    "slime": "--dump-details D --get-mismatch-metrics, then give D",
    "Miles": "--dump-details D, then give D",
    "NeMo-RL": "train_data_step*.jsonl is written by itself, unless env.should_log_nemo_gym_responses is on: give its folder",
    "SkyRL": "torch.save of the batch's tensors (docs/logs.md has the line)",
    "OpenRLHF": "torch.save of an Experience's tensors as a dictionary",
    "PipelineRL": "its streams as files: give streams/ (the engine's numbers only)",
    "open-instruct": "--save_traces True --rollouts_save_path D (the engine's numbers only)",
    "AReaL": "RolloutLog of skewsim.callbacks (docs/logs.md)",
    "ms-swift": "RolloutLog of skewsim.callbacks (docs/logs.md)",
}
"""How a framework logs both log-probabilities of every token."""

WEIGH_TOKENS = {"NeMo-RL": "loss_fn.sequence_level_importance_ratios=false"}
"""Where no rule of a framework says how it weighs tokens."""


def canonical(framework: str | None) -> str | None:
    """A framework's name as it writes it itself."""
    names = {name.lower(): name for name in (*LOG_TOKENS, "vLLM", "SGLang", "skewsim")}
    return None if framework is None else names.get(framework.lower(), framework)


LOG_COLUMNS: dict[str, str] = {
    "prompt": "no prompts: responses to one prompt could not be compared, which tells raw logprobs, temperature and dropout "
    "apart; log prompt_token_ids or a prompt_id",
    "step": "no step: no trend; log step with each sequence",
    "weight_version": "no weight versions: older weights cannot be told from rounding; log weight_version",
    "replica": "no rank or replica: a single stale engine shows only in the sequences' numbers; log replica",
}
"""What a missing column keeps a diagnosis from telling."""
