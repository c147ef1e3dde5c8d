"""TRL's own code as the oracle: its trainers' methods, run on given logprobs instead of a model's.

``GRPOTrainer`` and ``RLOOTrainer`` are not constructed: their methods are called on a namespace that has what they
read. What they would compute from a model or an engine (logprobs, entropies, completions, rewards) is handed in.
"""

import warnings
from collections import defaultdict
from dataclasses import dataclass, fields
from types import SimpleNamespace

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # an import of TRL warns about optional packages
    from trl import GRPOConfig, GRPOTrainer, RLOOTrainer


@dataclass
class TRLAnswer:
    loss: Tensor
    metrics: dict[str, list[float]]


def _accelerator():
    return SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
    )


def _trainer(logprobs: Tensor, **settings):
    """A namespace with TRL's defaults, whose model answers with these logprobs; in evaluation, so that no gradient
    accumulation divides the loss."""
    config = {field.name: field.default for field in fields(GRPOConfig)}
    own = {"per_device_eval_batch_size": len(logprobs), "use_bias_correction_kl": False}
    defaults = {
        "args": SimpleNamespace(**(config | own | {k: v for k, v in settings.items() if k in config})),
        "model": SimpleNamespace(training=False, is_gradient_checkpointing=False),
        "accelerator": _accelerator(),
        "_get_per_token_logps_and_entropies": lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        "get_off_policy_mask": GRPOTrainer.get_off_policy_mask,
        "_metrics": {"eval": defaultdict(list)},
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "max_completion_length": logprobs.shape[-1],
        "beta": 0.0,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
    }
    return SimpleNamespace(**(defaults | settings))


def grpo_loss(inputs, *, ratio: Tensor | None = None, **settings) -> TRLAnswer:
    """``GRPOTrainer._compute_loss`` on LossInputs; ratio is TRL's importance sampling ratio, from ``generation``."""
    mask = inputs.mask
    batch = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": inputs.advantages,
        "old_per_token_logps": inputs.old_logprobs,
        "sampling_per_token_logps": inputs.engine_logprobs,
        "num_items_in_batch": mask.sum(),
    }
    if inputs.reference_logprobs is not None:
        batch["ref_per_token_logps"] = inputs.reference_logprobs
    if ratio is not None:
        batch["importance_sampling_ratio"] = ratio
        settings |= {"use_vllm": True, "vllm_importance_sampling_correction": True}
    trainer = _trainer(inputs.trainer_logprobs, **settings)
    return TRLAnswer(GRPOTrainer._compute_loss(trainer, None, batch), trainer._metrics["eval"])


def rloo_loss(inputs, *, epsilon: float) -> TRLAnswer:
    """``RLOOTrainer._compute_loss`` on LossInputs."""
    mask = inputs.mask
    batch = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": inputs.advantages,
        "old_logps": (inputs.old_logprobs * mask).sum(-1),
    }
    trainer = _trainer(inputs.trainer_logprobs, epsilon_low=epsilon, epsilon_high=epsilon)
    return TRLAnswer(RLOOTrainer._compute_loss(trainer, None, batch), trainer._metrics["eval"])


def generation(trainer_class, inputs, rewards: Tensor, **settings) -> dict[str, Tensor]:
    """What ``_generate_and_score_completions`` makes of old and engine logprobs, mask and rewards: advantages and, for
    GRPO, the importance sampling ratio."""
    return _generation(trainer_class, inputs, rewards, **settings)[0]


def generation_metrics(inputs, rewards: Tensor, **settings) -> dict[str, float]:
    """What GRPOTrainer logs about the same rollout."""
    return {key: values[0] for key, values in _generation(GRPOTrainer, inputs, rewards, **settings)[1].items()}


def _generation(
    trainer_class, inputs, rewards: Tensor, *, generations: int, mode="token_truncate", low=None, high=3.0, **settings
):
    """One rollout as TRL scores it, and what it logs; every sequence needs a token."""
    lengths = [int(n) for n in inputs.mask.sum(-1)]
    completions = [[7] * n for n in lengths]
    sampled = [row[:n].tolist() for row, n in zip(inputs.engine_logprobs, lengths, strict=True)]
    generated = ([[5]] * len(lengths), completions)
    if trainer_class is GRPOTrainer:
        generated += (None, completions, sampled, {}, None, None)
    else:
        generated += (completions,)
    old = inputs.old_logprobs[:, : max(lengths)]
    logs = {"prompt": [], "completion": [], "rewards": defaultdict(list), "advantages": [], "extra": defaultdict(list)}
    trainer = _trainer(
        old,
        environment_factories=None,
        environments=None,
        tools=None,
        _generate=lambda prompts: generated,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        _calculate_rewards=lambda *_: rewards.unsqueeze(1),
        reward_weights=torch.ones(1, dtype=rewards.dtype),
        reward_func_names=["reward"],
        reward_funcs=[None],
        reward_clip_range=None,
        multi_objective_aggregation="sum_then_normalize",
        num_generations_eval=generations,
        num_iterations=1,
        _logs=logs,
        _pending_extra_logs={},
        _pending_metrics={},
        log_multimodal=False,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=low,
        vllm_importance_sampling_clip_max=high,
        **({"use_vllm": True, "vllm_importance_sampling_correction": True} | {"scale_rewards": "group"} | settings),
    )
    trainer.args.steps_per_generation = 1
    trainer.args.gradient_accumulation_steps = 1
    answer = trainer_class._generate_and_score_completions(trainer, [{"prompt": "x"}] * len(lengths))
    return answer, trainer._metrics["eval"]
