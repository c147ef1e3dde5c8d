"""What a measurement asks which model: prompts, lengths, and requests.

A request's seed depends on the plan's seed and the request's number alone. So a measurement that was interrupted can
ask for the rest only, and ends with the table of one that was not. `Plan.asked` is what must be the same for that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.models import label
from harness.prompts import built_in, check_prompts, read_prompts
from harness.requests import Request
from harness.scorer import read_model_config, stop_tokens
from skewsim.errors import UserError
from skewsim.learn.base_policy import SHIPPED, model_folder
from skewsim.seeding import Purpose, generator
from skewsim.settings import EngineSettings, TaskSettings
from skewsim.task import Task

Prompts = Sequence[Sequence[int]] | Path | str | None
"""Token ids, a file (see `harness.prompts`), or None for a built-in set."""

FIRST_FEW = 64
"""Requests by which a smaller number may grow in one round."""
MOST_TOKENS = 100_000_000
"""Tokens of a measurement: a hundred times what a profile of the rarest bins takes."""


@dataclass(frozen=True)
class Plan:
    """Requests to a model: the prompts in turn, again and again, each with `num_generations` requests."""

    folder: Path
    label: str
    checksum: str
    """SHA-256 over the model's weights."""
    prompts: list[list[int]]
    num_tokens: int
    max_tokens: int
    num_generations: int
    stop: list[int]
    seed: int

    @property
    def prompt_tokens(self) -> int:
        """Of the longest prompt."""
        return max(map(len, self.prompts))

    @property
    def count(self) -> int:
        """Requests: enough for the tokens asked for, if all responses are as long as they may be."""
        return self.num_generations * math.ceil(self.num_tokens / (self.max_tokens * self.num_generations))

    def prompt_id(self, request: int) -> int:
        return request // self.num_generations % len(self.prompts)

    def requests(self, answered: Mapping[int, int] | None = None) -> list[Request]:
        """Those that are still needed; `answered` has the tokens of each answer so far, by its request's id.

        The seed of each depends on nothing but the plan's seed and its id.
        """
        answered, stream = answered or {}, generator(self.seed, step=0, purpose=Purpose.SAMPLING)
        seeds = torch.randint(2**31, (self._needed(answered),), generator=stream).tolist()
        return [Request(i, self.prompts[self.prompt_id(i)], s) for i, s in enumerate(seeds) if i not in answered]

    def _needed(self, answered: Mapping[int, int]) -> int:
        """How many requests give the tokens asked for, as far as the answers tell.

        Where answers end early, the first `count` requests give fewer. Then come rounds of as many more as the rest
        takes at the mean length so far, but at most as many as there are, since few answers tell little of that mean. A
        round's size depends on the rounds before it alone, so an interrupted measurement ends with the requests of one
        that was not.
        """
        count = self.count
        while all(i in answered for i in range(count)):
            tokens = sum(answered[i] for i in range(count))
            if not 0 < tokens < self.num_tokens:
                break
            more = min((self.num_tokens - tokens) * count / tokens, max(count, FIRST_FEW))
            count += self.num_generations * math.ceil(more / self.num_generations)
        return count

    def asked(self, engine: str, settings: EngineSettings, trainer: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that decides what is in the table, as plain JSON."""
        facts = asdict(self)
        del facts["folder"]
        prompts = hashlib.sha256(json.dumps(facts.pop("prompts")).encode()).hexdigest()[:16]
        return {
            "engine": engine,
            "settings": settings.model_dump(),
            "trainer": dict(trainer),
            **facts,
            "prompts": prompts,
        }


def make_plan(
    model: Path | str,
    prompts: Prompts = None,
    *,
    num_tokens: int,
    max_tokens: int | None = None,
    num_generations: int = 1,
    chat_template: bool | None = None,
    seed: int = 0,
) -> Plan:
    """`model` is a Hugging Face folder, or ``base`` or ``base_moe``: what is shipped for the first task.

    Raises UserError.

    `chat_template`: see `harness.prompts`; it acts on texts, not on prompts that are token ids.
    """
    if not (1 <= num_tokens <= MOST_TOKENS and 1 <= num_generations <= MOST_TOKENS):
        raise UserError(
            f"tokens={num_tokens}, generations={num_generations}; allowed: at least 1, at most {MOST_TOKENS}"
        )
    task = Task(TaskSettings()) if str(model) in SHIPPED else None
    folder = model_folder(model)
    config = read_model_config(folder)
    vocab_size = int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)
    if prompts is None:
        chosen = task.pool.tolist() if task else built_in(folder, vocab_size=vocab_size, seed=seed, chat=chat_template)
    else:
        chosen = _given(prompts, folder, chat=chat_template)
    chosen = check_prompts(chosen, vocab_size=vocab_size)
    length = (task.max_tokens if task else 64) if max_tokens is None else max_tokens
    room = int(config.get("max_position_embeddings") or 2**31) - max(map(len, chosen))
    if not 1 <= length <= room:
        raise UserError(f"max_tokens={length}; allowed with these prompts and this model: 1 to {max(room, 0)}")
    return Plan(
        folder=folder,
        label=f"skewsim base policy ({folder.name})" if task else label(folder),
        checksum=weights_checksum(folder),
        prompts=chosen,
        num_tokens=num_tokens,
        max_tokens=length,
        num_generations=num_generations,
        stop=[] if task else stop_tokens(folder),
        seed=seed,
    )


def _given(prompts: Sequence[Sequence[int]] | Path | str, folder: Path, *, chat: bool | None) -> list[list[int]]:
    if isinstance(prompts, str | Path):
        return read_prompts(prompts, model=folder, chat=chat)
    return [list(prompt) for prompt in prompts]


def weights_checksum(folder: Path) -> str:
    """SHA-256 over the SHA-256 of each safetensors file, by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()
