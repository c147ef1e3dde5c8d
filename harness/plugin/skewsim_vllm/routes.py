"""The experts that each token went to in a mixture of experts, taken down as the engine's own routers choose them.

vLLM returns them itself (`enable_return_routed_experts`), but not on a CPU, whose runner has no part for it. On any
device its routers call a function of ours with the experts of a step's rows (`BaseRouter.set_capture_fn`). Which rows
are whose is in the scheduler's output: requests in the order of the runner's batch, each with its next so many tokens.
"""

from __future__ import annotations

import functools
from typing import Any

_kept: dict[str, dict[int, list[list[int]]]] = {}
"""Request -> position of a token -> its experts by layer, (L, k)."""
_step: dict[int, Any] = {}
"""Layer -> the experts (rows, k) of the step under way."""


def install(worker: Any) -> int:
    """Run by ``collective_rpc``: take down the experts from now on. Returns the number of layers that have routers."""
    runner = worker.model_runner
    routers = [
        router
        for module in runner.get_model().modules()
        if (router := getattr(module, "router", None)) is not None and hasattr(router, "set_capture_fn")
    ]
    if not routers:
        raise ValueError("enable_return_routed_experts: this model has no layer that routes to experts")
    for layer, router in enumerate(routers):
        router.set_capture_fn(functools.partial(_take, layer))
    execute = runner.execute_model

    @functools.wraps(execute)
    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        _step.clear()
        result = execute(scheduler_output, *args, **kwargs)
        if _step:
            _assign(runner.input_batch.req_ids, scheduler_output)
        return result

    runner.execute_model = execute_model
    return len(routers)


def taken(request: str, tokens: int) -> list[list[list[int]]]:
    """The experts (tokens, L, k) of a request's first tokens, which are forgotten. ValueError if one is missing."""
    found = _kept.pop(request, {})
    missing = [place for place in range(tokens) if place not in found]
    if missing:
        raise ValueError(f"no router was seen to choose the experts of token {missing[0]} of {tokens}")
    return [found[place] for place in range(tokens)]


def _take(layer: int, experts: Any) -> None:
    _step[layer] = experts.detach().to("cpu", copy=True)


def _assign(order: list[str], scheduled: Any) -> None:
    """Give a step's rows to their requests."""
    begin = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
    cached = scheduled.scheduled_cached_reqs
    begin |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    rows = [_step[layer].tolist() for layer in sorted(_step)]
    row = 0
    for identity in order:
        count = scheduled.num_scheduled_tokens[identity]
        request = _kept.setdefault(identity.partition("-")[0], {})  # vLLM adds a random part to the name
        for place in range(begin[identity], begin[identity] + count):
            request[place] = [layer[row] for layer in rows]
            row += 1
