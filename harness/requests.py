"""What goes into an engine's session and what comes out of it: sizes, requests, weight updates, rows. Data alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from skewsim.errors import EngineError


@dataclass(frozen=True)
class Size:
    """How much one engine must hold at once: all sequences in one batch, so that they advance by one token together."""

    prompt_tokens: int
    max_tokens: int
    sequences: int

    def holds(self, other: Size) -> bool:
        return self == self.joined(other)

    def joined(self, other: Size) -> Size:
        """The smallest size that holds both."""
        return Size(
            max(self.prompt_tokens, other.prompt_tokens),
            max(self.max_tokens, other.max_tokens),
            max(self.sequences, other.sequences),
        )


@dataclass(frozen=True)
class Request:
    """One prompt to answer."""

    id: int
    prompt: list[int]
    seed: int | None = None
    salt: str | None = None
    """Requests share cached prefixes only with requests of the same salt."""


@dataclass(frozen=True)
class InFlightUpdate:
    """New weights, from a folder with model.safetensors, that arrive while requests are being answered."""

    folder: str
    version: int
    at: int
    """The token boundary: before the step in which the furthest request would sample its token number `at`."""
    mode: Literal["keep", "wait", "abort"]
    """What happens to the requests under way, in vLLM's words: they go on, finish first, or end."""
    clear_cache: bool


@dataclass(frozen=True)
class Row:
    """The answer to one request."""

    id: int
    tokens: list[int]
    logprobs: list[float]
    """nats, one a token."""
    versions: list[int]
    """Version of the weights that sampled each token, as the session counts them."""
    finish: str
    """stop, length or abort."""
    support: list[list[int]] | None = None
    """The tokens that top-p, top-k and min-p left at each position, if the logprobs of all tokens were asked for."""
    spans: list[list[Any]] | None = None
    """The engine's own record of weight versions, [version, start, end], where it keeps one."""
    cached: int | None = None
    """Prompt tokens that were taken from the prefix cache."""
    routes: list[list[list[int]]] | None = None
    """The experts (P+T-1, L, k) that each token of prompt and response but the last went to, if asked for."""


def check_ids(rows: list[Row], vocab_size: int) -> list[Row]:
    """The rows. EngineError for a token that the model does not have."""
    for row in rows:
        if row.tokens and not 0 <= min(row.tokens) <= max(row.tokens) < vocab_size:
            odd = next(token for token in row.tokens if not 0 <= token < vocab_size)
            raise EngineError(f"engine sent token {odd}; the model has 0 to {vocab_size - 1}")
    return rows
