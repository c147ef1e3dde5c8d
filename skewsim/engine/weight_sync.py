"""What of a weight update reaches the engine: all of it, nothing, or some of the tensors.

The engine counts the new version in any case, which is why such a fault is not seen in the lag. What is reported:

none       the engine keeps serving what it has: an adapter that is never served, or first weights that come back after
           sleeping (TRL issue 5312, SkyRL 1776)
base_only  the base model is sent and the adapter is not (verl issue 7495): the matrices that PEFT's
           ``target_modules="all-linear"`` puts an adapter on stay, while embeddings, norms and lm_head arrive
partial    the tensors of some layers are lost on the way, in a later bucket or under names that the engine's loader
           skips (prime-rl pull request 3543): the second half of the layers stays
"""

from __future__ import annotations

from torch import Tensor

from skewsim.model.policy import PolicyConfig
from skewsim.model.quantization import BODY


def delivered(config: PolicyConfig, held: Tensor, sent: Tensor, how: str) -> Tensor:
    """The weights (E, D) of an engine that held `held` after `sent` went out; a new tensor."""
    result = sent.clone()
    kept = config.views(held)
    for name, view in config.views(result).items():
        if not _arrives(name, config.num_hidden_layers, how):
            view.copy_(kept[name])
    return result


def _arrives(name: str, layers: int, how: str) -> bool:
    layer, _, part = name.rpartition(".")
    if how == "base_only":
        return part not in BODY
    if how == "partial":
        return not layer or int(layer) < layers // 2
    return how == "full"
