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
        reload(weights_path=folder)
    else:
        runner.model.load_weights(_tensors(folder))
    from skewsim_vllm import head

    head.forget()


def _tensors(folder: str) -> Any:
    from safetensors.torch import load_file

    for path in sorted(Path(folder).glob("*.safetensors")):
        yield from load_file(path).items()
