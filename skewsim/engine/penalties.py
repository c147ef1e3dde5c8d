"""vLLM's penalties on tokens that were there before, which the engine applies and the trainer knows nothing of.

With c_v how often token v stands in the response so far, and the logit l_v that the model gives it:

    l_v <- l_v / r if l_v > 0, else l_v * r    where v stands in prompt or response    (repetition_penalty r)
    l_v <- l_v - f c_v                                                                 (frequency_penalty f)
    l_v <- l_v - p         where c_v > 0                                               (presence_penalty p)

in this order, before the temperature, as in vLLM's `apply_penalties`. A later turn is a new request: what stands
before it is its prompt.

Axes: E member, N sequences, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skewsim.settings import EngineSettings


class Penalties:
    """What each sequence's prompt and response hold so far, and the penalties on it."""

    def __init__(self, prompts: Tensor, vocab_size: int, settings: EngineSettings) -> None:
        self._settings = settings
        shape = (*prompts.shape[:2], vocab_size)
        self._counts = torch.zeros(shape, device=prompts.device)
        self._prompt = torch.zeros(shape, dtype=torch.bool, device=prompts.device).scatter_(2, prompts, True)

    def apply(self, logits: Tensor) -> Tensor:
        """The penalised logits (E, N, V)."""
        engine, in_response = self._settings, self._counts > 0
        repeated = torch.where(logits > 0, logits / engine.repetition_penalty, logits * engine.repetition_penalty)
        logits = torch.where(self._prompt | in_response, repeated, logits)
        return logits - engine.frequency_penalty * self._counts - engine.presence_penalty * in_response

    def write(self, tokens: Tensor) -> None:
        """Count one more token (E, N) of every response."""
        self._counts.scatter_add_(2, tokens.unsqueeze(-1), torch.ones_like(tokens, dtype=torch.float32).unsqueeze(-1))

    def read(self, tokens: Tensor) -> None:
        """A token (E, N) that somebody else wrote: it and all before it are the prompt of the next turn."""
        self._prompt |= self._counts > 0
        self._prompt.scatter_(2, tokens.unsqueeze(-1), True)
        self._counts.zero_()
