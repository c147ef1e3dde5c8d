"""Prompts to measure with: token ids, a file, or a built-in set.

A file is either JSON lines, each a list of token ids, an object with ``prompt_token_ids``, or one with ``prompt``
(text); or plain text, one prompt a line. Text needs the model's tokenizer, and goes through its chat template as a
user's message, if it has one and nobody says otherwise. The built-in set has chat, code, arithmetic and beginnings of
texts to continue; that of a model without a tokenizer is random token ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skewsim.errors import FileFormatError, UserError

RANDOM_LENGTH = 16
RANDOM_COUNT = 64
CHAT = (
    "Write a short poem about a lighthouse.",
    "Explain in two sentences why the sky is blue.",
    "List five things to pack for a week in the mountains.",
    "Translate into French: The bread is still warm.",
    "Summarise the plot of Romeo and Juliet for a child.",
    "How does a refrigerator keep food cold?",
)
CODE = (
    "Write a Python function that says whether a word is a palindrome.",
    "Write an SQL query that counts the orders of each customer.",
    "Explain what this does: print(sum(n for n in range(10) if n % 2))",
    "Write a shell command that lists the five largest files of a folder.",
    "What is wrong here? def mean(values): return sum(values) / len(value)",
    "Write an HTML page with a heading and a list of three fruits.",
)
ARITHMETIC = (
    "What is 17 times 23? Work it out step by step.",
    "A farmer has 12 sheep and buys twice as many. How many has he now?",
    "If x + 3 = 11, what is x?",
    "A train goes 180 km in two hours. How far does it go in three?",
    "Which is more: three quarters of 80 or two thirds of 93?",
    "Add up the numbers from 1 to 20.",
)
CONTINUATION = (
    "The train left the station at seven, and",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "Dear neighbour, I am writing to you because",
    "SELECT name, count(*) FROM orders",
    "The three most common causes of a fire at home are",
)
"""Beginnings of texts; they do not go through a chat template."""


def read_prompts(path: Path | str, *, model: Path, chat: bool | None = None) -> list[list[int]]:
    """Token ids of a file's prompts. Raises FileFormatError with one line.

    `chat`: whether texts go through the model's chat template; None: if it has one.
    """
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
    if all(isinstance(entry, list) for entry in entries):
        return [entry for entry in entries if isinstance(entry, list)]
    write = _writer(model, chat=chat)
    return [write(entry) if isinstance(entry, str) else entry for entry in entries]


def built_in(model: Path, *, vocab_size: int, seed: int, chat: bool | None = None) -> list[list[int]]:
    """The built-in prompts for a model with a tokenizer, the kinds in turn; else random token ids."""
    if (model / "tokenizer.json").is_file() or (model / "tokenizer.model").is_file():
        message, plain = _writer(model, chat=chat), _writer(model, chat=False)
        kinds = zip(CHAT, CODE, ARITHMETIC, CONTINUATION, strict=True)
        return [write(text) for four in kinds for write, text in zip((message,) * 3 + (plain,), four, strict=True)]
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


def _writer(model: Path, *, chat: bool | None) -> Callable[[str], list[int]]:
    """What makes token ids of a text: a user's message in the chat template, or the text as it is."""
    tokenizer = _tokenizer(model)
    if chat and not tokenizer.chat_template:
        raise UserError(f"chat_template=true: the tokenizer of {model} has none; allowed: false")

    def message(text: str) -> list[int]:
        said = [{"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return [int(token) for token in tokenizer(whole, add_special_tokens=False)["input_ids"]]

    def plain(text: str) -> list[int]:
        return [int(token) for token in tokenizer(text)["input_ids"]]

    return plain if chat is False or not tokenizer.chat_template else message


def _tokenizer(model: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"prompts: text needs a tokenizer, and {model} has none that loads ({reason})") from None
