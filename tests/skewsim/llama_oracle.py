"""transformers' own Llama as the oracle of the policy, its cache and its gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from skewsim.model.policy import Policy, PolicyConfig

SMALL = PolicyConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=2)
GROUPED = SMALL.model_copy(update={"num_attention_heads": 4, "num_key_value_heads": 2})


def random_policy(config: PolicyConfig = SMALL, *, seed: int = 0) -> Policy:
    """A policy with weights large enough for the entropy to vary."""
    policy = Policy.random(config, generator=torch.Generator().manual_seed(seed))
    config.views(policy.flat)["lm_head"].mul_(3)
    return policy


def huggingface(policy: Policy, folder: Path) -> LlamaForCausalLM:
    """The same weights in transformers, through the files that we write."""
    policy.save(folder)
    return LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def replay(parts: list[tuple[LlamaForCausalLM, Tensor]], *, cache: DynamicCache | None = None) -> Tensor:
    """float32 logits (N, tokens, V) of consecutive parts of sequences, each under its own weights, over one cache."""
    cache = DynamicCache() if cache is None else cache
    logits = []
    with torch.no_grad():
        for model, tokens in parts:
            logits.append(model(tokens, past_key_values=cache, use_cache=True).logits)
    return torch.cat(logits, 1)
