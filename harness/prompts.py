"""Prompts to measure with: token ids, a file, or a built-in set.

A file is either JSON lines, each a list of token ids, an object with ``prompt_token_ids``, or one with ``prompt``
(text); or plain text, one prompt a line. Text needs the model's tokenizer. The built-in set of a model without a
tokenizer is random token ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skewsim.errors import FileFormatError, UserError

RANDOM_LENGTH = 16
RANDOM_COUNT = 64
BUILT_IN = (
    "Write a short poem about a lighthouse.",
    "What is 17 times 23? Work it out step by step.",
    "Explain in two sentences why the sky is blue.",
    "List five things to pack for a week in the mountains.",
    "def fibonacci(n):\n",
    "The train left the station at seven, and",
    "Translate into French: The bread is still warm.",
    "A farmer has 12 sheep and buys twice as many. How many has he now?",
    "Name the planets in order of their distance from the sun.",
    "Summarise the plot of Romeo and Juliet for a child.",
    "SELECT name, count(*) FROM orders",
    "Give three reasons to learn to swim.",
    "If x + 3 = 11, then x is",
    "Dear neighbour, I am writing to you because",
    "How does a refrigerator keep food cold?",
    "Once upon a time, in a village by the sea,",
)


def read_prompts(path: Path | str, *, model: Path) -> list[list[int]]:
    """Token ids of a file's prompts. Raises FileFormatError with one line."""
    path = Path(path)
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise FileFormatError(f"prompts {path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise FileFormatError(f"prompts {path}: not a text file") from None
    if not lines:
        raise FileFormatError(f"prompts {path}: no prompt in it")
    structured = path.suffix in (".jsonl", ".json")
    entries = [_entry(path, number, line) if structured else line for number, line in enumerate(lines, 1)]
    tokenizer = _tokenizer(model) if any(isinstance(entry, str) for entry in entries) else None
    return [_ids(tokenizer, entry) for entry in entries]


def built_in(model: Path, *, vocab_size: int, seed: int) -> list[list[int]]:
    """The built-in prompts for a model with a tokenizer, else random token ids."""
    if (model / "tokenizer.json").is_file() or (model / "tokenizer.model").is_file():
        tokenizer = _tokenizer(model)
        return [_ids(tokenizer, text) for text in BUILT_IN]
    draws = np.random.default_rng(seed).integers(vocab_size, size=(RANDOM_COUNT, RANDOM_LENGTH))
    return [[int(token) for token in row] for row in draws]


def check_prompts(prompts: Sequence[Sequence[int]], *, vocab_size: int) -> list[list[int]]:
    """The prompts as lists, every token within the vocabulary. Raises UserError."""
    if not prompts:
        raise UserError("prompts: none given; allowed: at least one")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompts: prompt {number} is empty; allowed: at least one token")
        outside = [token for token in prompt if not 0 <= token < vocab_size]
        if outside:
            raise UserError(f"prompts: token {outside[0]} of prompt {number}; allowed: 0 to {vocab_size - 1}")
    return [list(prompt) for prompt in prompts]


def _entry(path: Path, number: int, line: str) -> str | list[int]:
    try:
        entry = json.loads(line)
    except ValueError:
        raise FileFormatError(f"prompts {path}: line {number} is no JSON") from None
    if isinstance(entry, dict):
        entry = entry.get("prompt_token_ids", entry.get("prompt"))
    if isinstance(entry, str) or (isinstance(entry, list) and all(type(token) is int for token in entry)):
        return entry
    raise FileFormatError(f"prompts {path}: line {number} has neither prompt_token_ids (a list of integers) nor prompt")


def _ids(tokenizer: Any, entry: str | list[int]) -> list[int]:
    return entry if isinstance(entry, list) else [int(token) for token in tokenizer(entry)["input_ids"]]


def _tokenizer(model: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"prompts: text needs a tokenizer, and {model} has none that loads ({reason})") from None
