"""Given tokens on the decode path: the sampler is left only the wanted token, and its raw logprob is recorded.

V1 has logits processors for the whole batch, which must keep track of which request is in which row; vLLM takes raw
logprobs before they run. V0 has one callable for each request, which gets the logits before the temperature is applied
and computes the logprob itself, since V0 reports processed ones only. Both give the log-probability at temperature 1.
"""

from __future__ import annotations

from typing import Any

KEY = "skewsim_forced"
"""The entry of a request's ``extra_args`` that holds the wanted response."""


def processor_class() -> type:
    """The class of a V1 logits processor. It is made here, and not at import, since its base class comes from vLLM."""
    try:
        from vllm.v1.sample.logits_processor import LogitsProcessor
    except ImportError:
        base: type = object
    else:
        base = LogitsProcessor

    class Forced(base):  # type: ignore[misc]
        def __init__(self, vllm_config: Any = None, device: Any = None, is_pin_memory: bool = False) -> None:
            self.rows: dict[int, tuple[list[int], list[int]]] = {}

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            """Any request is fine."""

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            """Follow requests that come, go and change rows (removed, then added, then moved)."""
            if batch_update is None:
                return
            for row in batch_update.removed:
                self.rows.pop(row, None)
            for row, params, *_, output in batch_update.added:
                wanted = (getattr(params, "extra_args", None) or {}).get(KEY)
                self.rows.pop(row, None)
                if wanted:
                    self.rows[row] = (wanted, output)
            for source, target, direction in batch_update.moved:
                here, there = self.rows.pop(source, None), self.rows.pop(target, None)
                if here:
                    self.rows[target] = here
                if there and direction.name == "SWAP":
                    self.rows[source] = there

        def apply(self, logits: Any) -> Any:
            for row, (wanted, output) in self.rows.items():
                if len(output) < len(wanted):
                    only(logits[row], wanted[len(output)])
            return logits

    return Forced


def install(engine: Any) -> None:
    """Put the processor into an engine of this process, for V1 before 0.10.1, whose arguments take none."""
    processor = processor_class()()

    def add(worker: Any) -> None:
        worker.model_runner.input_batch.logitsprocs.non_argmax_invariant.append(processor)

    engine.collective_rpc(add)


class Recorder:
    """For V0: forces one request's response, and keeps the logprob of each token at temperature 1."""

    def __init__(self, wanted: list[int]) -> None:
        self.wanted, self.logprobs = wanted, [float("nan")] * len(wanted)

    def __call__(self, output: Any, logits: Any) -> Any:
        position = len(output)
        if position < len(self.wanted):
            token = self.wanted[position]
            self.logprobs[position] = float(logits.float().log_softmax(-1)[token])
            only(logits, token)
        return logits

    def clone(self) -> Recorder:
        """Itself: vLLM copies a request's parameters, and the logprobs are read from this object."""
        return self


def only(logits: Any, token: int) -> None:
    """Set the logits of all other tokens to -inf."""
    value = logits[token].clone()
    logits.fill_(float("-inf"))
    logits[token] = value
