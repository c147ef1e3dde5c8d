"""A model of a real one's shape and few parameters: SmolLM2-135M's layers, heads, vocabulary and tokenizer, narrow."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, HEADS, KEY_VALUE_HEADS, VOCAB = 30, 9, 3, 49_152
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_real_shape(folder: Path, *, head_dim: int = 4, seed: int = 0) -> Path:
    """Thirty layers, nine heads over three of keys and values, a tied head over 49,152 tokens, and a tokenizer with a
    chat template. vLLM wants a `head_dim` of 32 or more."""
    torch.manual_seed(seed)
    width = HEADS * head_dim
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=1.5 / width**0.5,
    )
    model = LlamaForCausalLM(config)
    model.model.norm.weight.data.fill_(2.0)  # an entropy of a real model's size
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """Bytes as tokens, and words that no text has, up to the size of the vocabulary."""
    words = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    words += [f"<word {number}>" for number in range(len(words), VOCAB)]
    bytes_only = Tokenizer(BPE({word: number for number, word in enumerate(words)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens(SPECIAL)
    bytes_only.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<|im_start|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
