"""Logs that hold no log-probabilities, and what to switch on instead."""

from __future__ import annotations

_BOTH = "skewsim.callbacks.RolloutLog writes both logprobs from inside a training script (docs/logs.md)"

TEXT_ONLY: tuple[tuple[str, frozenset[str], str], ...] = (
    (
        "verl",
        frozenset({"input", "output", "score"}),
        "trainer.rollout_data_dir writes text only; set actor_rollout_ref.rollout.calculate_log_probs=True and log "
        f"responses, response_mask, rollout_log_probs and old_log_probs of the batch: {_BOTH}",
    ),
    (
        "trl",
        frozenset({"prompt", "completion", "advantage"}),
        "log_completions writes text only, and reward functions never see the logprobs: add "
        "skewsim.callbacks.RolloutCallback to the trainer (docs/logs.md)",
    ),
    (
        "areal",
        frozenset({"seqlen", "prompt_len", "head_version", "tail_version"}),
        f"dump_to_file writes text only; {_BOTH}; its curves by step are compute_logp/kl_div_direct and kl_div_dual",
    ),
    (
        "ms-swift",
        frozenset({"prompt", "completion"}),
        f"log_completions writes text only; {_BOTH}; its curves by step are rollout_correction/*",
    ),
)


def refusal(keys: set[str]) -> str | None:
    """The framework that writes rows of these fields, and what it must be told; None if it is none of them."""
    return next((f"{name}: {words}" for name, needed, words in TEXT_ONLY if needed <= keys), None)
