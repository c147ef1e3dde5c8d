"""Loads new weights into a running engine, in whichever way its version offers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any


def load(worker: Any, folder: str) -> None:
    """Run by ``collective_rpc`` on every vLLM worker: load the weights of a Hugging Face folder in place.

    From 0.16 on, ``reload_weights`` takes a folder and undoes what was done to the weights after loading (CPU builds
    prepack them). Before that, the only way is to load again through the model; seen to be exact on 0.8.5 and 0.9.2.
    """
    runner = worker.model_runner
    reload = getattr(runner, "reload_weights", None)
    if reload and "weights_path" in inspect.signature(reload).parameters:
        _pack_experts_again(runner)
        reload(weights_path=folder)
    else:
        runner.model.load_weights(_tensors(folder))
    _tie(runner)
    from skewsim_vllm import head

    head.forget()


def _pack_experts_again(runner: Any) -> None:
    """Make a CPU build pack the new weights of experts as it packed the first ones.

    0.32.0 packs (and pads) them when it makes the experts' kernel, and at a reload only if there is no kernel. With one
    it copies them unpacked into the packed ones' place: refused where they were padded, wrong without a word elsewhere.
    On a GPU nothing is packed there, and captured graphs refer to the kernel, which therefore stays.
    """
    model = runner.model
    if next(model.parameters()).device.type != "cpu":
        return
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _tie(runner: Any) -> None:
    """Let a tied head follow the embedding: its weight is in no file, so a reload leaves the packed copy of a CPU build
    as it was, and the engine would go on with a new body under an old head (seen on 0.32.0)."""
    model = runner.model
    head: Any = getattr(model, "lm_head", None)
    embedding: Any = getattr(getattr(model, "model", None), "embed_tokens", None)
    tied = getattr(runner.model_config.hf_config, "tie_word_embeddings", False)
    if not tied or head is embedding or getattr(head, "weight", None) is None or embedding is None:
        return
    head.weight = embedding.weight
    pack = getattr(head.quant_method, "process_weights_after_loading", None)
    if pack is not None:
        pack(head)


def _tensors(folder: str) -> Any:
    from safetensors.torch import load_file

    for path in sorted(Path(folder).glob("*.safetensors")):
        yield from load_file(path).items()
