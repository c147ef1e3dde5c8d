"""What a completion server answers, checked token by token.

An answer is of use for training only if every token has its id and its log-probability, and if there are as many tokens
as were asked for. A server that drops tokens, adds some, or stops by rules of its own would shift all later tokens.
"""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any

from harness.requests import Request, Row
from skewsim.errors import EngineError

ABOVE_ZERO = 1e-5
"""Rounding of a log-softmax may leave a logprob this little above 0."""
MOST_TOO_MANY = 1000
"""Tokens beyond those that were asked for after which an answer is not read to its end."""


class Incomplete(Exception):
    """The answer broke off before its end."""


class Answer:
    """The answer to one request, as it comes in."""

    def __init__(self, request: Request, *, max_tokens: int, stop: tuple[int, ...]) -> None:
        self.request, self._max_tokens, self._stop = request, max_tokens, stop
        self.clear()

    def clear(self) -> None:
        """As before the first token."""
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.finish: str | None = None

    def asks(self) -> dict[str, Any]:
        """The request's own part of the body."""
        body: dict[str, Any] = {"prompt": self.request.prompt}
        if self.request.seed is not None:
            body["seed"] = self.request.seed
        return body | ({"cache_salt": self.request.salt} if self.request.salt else {})

    def take(self, piece: dict[str, Any], *, version: int) -> None:
        """Add a part of the answer. Raises EngineError."""
        if piece.get("error"):
            raise EngineError(f"refused a request: {error_text(json.dumps(piece).encode())}")
        choices = piece.get("choices")
        if not isinstance(choices, list) or any(not isinstance(c, dict) for c in choices) or len(choices) > 1:
            raise EngineError(f"answered without one choice: {error_text(json.dumps(piece).encode())}")
        if not choices:  # a part with only the usage
            return
        (choice,) = choices
        echoed = choice.get("prompt_token_ids")
        if echoed is not None and echoed != self.request.prompt:
            raise EngineError("changed the prompt: the token ids that it answered to are not those that were sent")
        tokens, logprobs = _tokens(choice)
        self.tokens += tokens
        self.logprobs += logprobs
        self.versions += [version] * len(tokens)
        self.finish = str(choice.get("finish_reason") or "") or self.finish
        if len(self.tokens) > max(self._max_tokens, 1) + MOST_TOO_MANY:
            raise EngineError(f"sent {len(self.tokens)} tokens where {self._max_tokens} were asked for")

    def check(self) -> None:
        """The whole answer. Raises EngineError, or Incomplete if its end is missing."""
        number, most = len(self.tokens), self._max_tokens
        if self.finish is None:
            raise Incomplete(f"broke off after {number} tokens")
        if self.finish not in ("stop", "length", "abort"):
            raise EngineError(
                f"ended an answer with finish_reason={str(self.finish)[:80]!r}; known: stop, length, abort"
            )
        if number > most or (self.finish == "length" and number != most):
            raise EngineError(f"sent {number} tokens where {most} were asked for")
        if self.finish == "stop" and (not self.tokens or self.tokens[-1] not in self._stop):
            raise EngineError(
                f"sent {number} tokens where {most} were asked for: it stopped at a token of its own choice "
                "(ignore_eos and stop_token_ids are not known to it)"
            )

    def row(self) -> Row:
        assert self.finish is not None
        return Row(self.request.id, self.tokens, self.logprobs, self.versions, self.finish)


def parse(text: str | bytes) -> dict[str, Any]:
    """A JSON object, or EngineError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        words = error_text(text.encode() if isinstance(text, str) else text)
        raise EngineError(f"answered what is no JSON object: {words!r}")
    return found


def error_text(content: bytes) -> str:
    """What an error body says, as one line. It is cut later, when the key has been taken out of it."""
    text = content.decode(errors="replace")
    try:
        found = json.loads(text)
        while isinstance(found, dict):
            found = next(found[k] for k in ("error", "message", "detail", *found) if k in found)
        text = found if isinstance(found, str) else json.dumps(found)
    except (ValueError, StopIteration, RecursionError):
        pass
    return " ".join(text.split())


def _tokens(choice: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Token ids and log-probabilities of a part of an answer."""
    ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
    if not logprobs:
        if ids or choice.get("text"):
            raise EngineError("returned no logprobs, though logprobs=1 was asked for")
        return [], []
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(values, list) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise EngineError("returned no logprobs for some tokens (token_logprobs)")
    if odd := next((v for v in values if not (v == -math.inf or -1e30 < v <= ABOVE_ZERO)), None):
        raise EngineError(f"sent {reprlib.repr(odd)} as a log-probability; none is above 0")
    if ids is None:
        ids = [_token_id(name) for name in logprobs.get("tokens") or []]
    if not isinstance(ids, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise EngineError(
            "returned no token ids; vLLM does, with return_token_ids or return_tokens_as_token_ids (from 0.8 on)"
        )
    if odd_id := next((i for i in ids if not 0 <= i < 2**31), None):
        raise EngineError(f"sent {reprlib.repr(odd_id)} as the id of a token")
    if len(ids) != len(values):
        raise EngineError(f"sent {len(ids)} tokens with {len(values)} logprobs")
    return ids, [float(v) for v in values]


def _token_id(name: Any) -> int | None:
    """17 of "token_id:17"; None if there is no id in it."""
    mark, _, number = str(name).partition("token_id:")
    return int(number) if not mark and number.isdecimal() else None
