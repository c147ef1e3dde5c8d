"""A model's folder as an engine needs it: with int8 weights, or with a tokenizer if it does not start without one.

int8 is the W8A8 of compressed-tensors, which vLLM runs on CPUs and GPUs. Each weight matrix of a layer is rounded to 8
bits, with a scale for each output channel, and activations are rounded at run time, with a scale for each token;
embedding, norms and head stay as they are. (Format: neuralmagic/compressed-tensors, "int-quantized".)
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from skewsim.errors import FileFormatError, UserError

_INT8: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def prepared(folder: Path, scratch: Path, *, int8: bool = False, tokenizer: bool = False) -> Path:
    """The folder itself, or a changed copy in `scratch`; files that do not change are linked, not copied.

    Raises UserError, FileFormatError.
    """
    tokenizer = tokenizer and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    if not int8 and not tokenizer:
        return folder
    config = json.loads((folder / "config.json").read_text())
    if int8 and "quantization_config" in config:
        raise UserError(f"engine.quantization='int8': {folder} is quantized already; allowed with it: none")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for path in folder.iterdir():
        if int8 and path.suffix == ".safetensors":
            save_file(quantized(load_file(path)), scratch / path.name, metadata={"format": "pt"})
        elif path.name not in ("config.json", "model.safetensors.index.json" if int8 else ""):
            os.symlink(path.resolve(), scratch / path.name)
    if int8:
        config["quantization_config"] = _INT8
    (scratch / "config.json").write_text(json.dumps(config))
    if tokenizer:
        _write_tokenizer(scratch, vocab_size=int(config["vocab_size"]))
    return scratch


def quantized(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every matrix of a layer as int8 with a scale for each row, max |w| / 127: ``w ~ scale * round(w / scale)``.

    All other tensors stay as they are.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".layers." not in name or tensor.ndim != 2:
            found[name] = tensor
            continue
        if not tensor.isfinite().all():
            raise FileFormatError(f"{name} has values that are no numbers; int8 cannot hold them")
        scale = tensor.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        found[name] = (tensor.float() / scale).round().clamp(-127, 127).to(torch.int8)
        found[f"{name}_scale"] = scale
    return found


def _write_tokenizer(folder: Path, *, vocab_size: int) -> None:
    """Write a tokenizer in which token number n is the word "n". It is never used; the engine only has to find one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = Tokenizer(WordLevel({str(i): i for i in range(vocab_size)}, unk_token="0"))
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
