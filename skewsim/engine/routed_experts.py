"""The experts that an engine returns with its answers, which R3 replays, and what people found wrong with them.

zeros      nothing was captured and the buffer was never written (vllm-ascend issue 16314: all 0 while generation is
           right)
shifted    each token has the experts of the token before it: the last sampled token is never fed to the model, so an
           engine returns one row less than a sequence has tokens, and whoever aligns the ends instead is off by one
padded     rows of padding come before a sequence's own (slime pull request 1052): the rest is shifted by as many

Axes: E member, N sequences, S input tokens of prompt and response, L layers, k experts of a token.
"""

from __future__ import annotations

from torch import Tensor

from skewsim.settings import EngineSettings

PADDED_TO = 32
"""Input tokens whose multiple a padded sequence has."""


def returned(routes: Tensor | None, engine: EngineSettings) -> Tensor | None:
    """What comes back of the true experts (E, N, S, L, k): nothing unless asked for; with the fault that is set."""
    if routes is None or not engine.enable_return_routed_experts:
        return None
    if engine.routed_experts_fault == "zeros":
        return routes.new_zeros(routes.shape)
    if engine.routed_experts_fault == "shifted":
        return _late(routes, 1)
    if engine.routed_experts_fault == "padded":
        return _late(routes, -routes.shape[2] % PADDED_TO)
    return routes


def _late(routes: Tensor, by: int) -> Tensor:
    """Each token has the experts of the one `by` places before it, the first ones those of padding: 0."""
    late = routes.new_zeros(routes.shape)
    late[:, :, by:] = routes[:, :, : routes.shape[2] - by]
    return late
