"""An engine that runs as a worker process of ours, as a `Session`: one model, typed requests in, typed rows out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from harness.arguments import engine_arguments, missing_kernel, overruled, refuse_update, sampling_parameters
from harness.client import Limits, WorkerClient
from harness.folders import prepared
from harness.places import require, worker_environment
from harness.requests import InFlightUpdate, Request, Row, Size
from harness.specs import EngineSpec
from skewsim.errors import EngineError
from skewsim.settings import EngineSettings

WORKER = Path(__file__).with_name("worker.py")


class EngineSession:
    """Starts when it is made; ends with `close`, at the end of its ``with`` block, or with the interpreter.

    If started with `forced`, it can `replay` given tokens, and its logprobs are raw. Raises UserError for settings that
    the version lacks, EngineNotInstalled, EngineError.
    """

    started_here = True

    def __init__(
        self,
        spec: EngineSpec,
        model: Path | str,
        settings: EngineSettings,
        *,
        size: Size,
        version: int = 0,
        full_logprobs: bool = False,
        forced: bool = False,
        root: Path | str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.spec = spec
        if forced and "raw_logprobs" in self.spec.logprobs_modes:
            settings = settings.model_copy(update={"logprobs_mode": "raw_logprobs"})
        self.arguments = engine_arguments(self.spec, settings, size=size, full_logprobs=full_logprobs)
        python = require(self.spec, root=root).python
        environment = worker_environment(self.spec, settings, root=root)
        self._full_logprobs = full_logprobs
        self._scratch = tempfile.TemporaryDirectory(prefix="skewsim-model-")
        self._settings = settings
        self.takes_weights = settings.quantization is None
        folder = prepared(
            Path(model),
            Path(self._scratch.name) / "model",
            int8=settings.quantization == "int8",
            tokenizer=self.spec.needs_tokenizer and self.spec.generation == "v1",
        )
        limits = limits or (Limits() if self.spec.device == "cpu" else Limits(start_silence_s=60.0, idle_s=60.0))
        self._client = WorkerClient([str(python), "-u", str(WORKER)], env=environment, limits=limits)
        try:
            self.info = self._client.call(
                "init",
                model=str(folder),
                arguments=self.arguments,
                version=version,
                forced=forced,
                routes=settings.enable_return_routed_experts,
            )
            self.overruled = overruled(self.spec, settings, self.info)
        except BaseException as error:
            self.close()
            refused = missing_kernel(self.spec, settings, str(error))
            if refused is not None:
                raise refused from None
            raise
        self.stats: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        return self._client.pid

    @property
    def alive(self) -> bool:
        return self._client.alive

    def generate(
        self,
        requests: Sequence[Request],
        settings: EngineSettings,
        *,
        max_tokens: int,
        stop: Iterable[int] = (),
        update: InFlightUpdate | None = None,
    ) -> Iterator[Row]:
        """Rows in the order in which they finish. Raises EngineError; the rows yielded before it are whole."""
        if update:
            refuse_update(self.spec, self._settings)
        full = self._full_logprobs
        sampling = sampling_parameters(settings, max_tokens=max_tokens, stop=list(stop), full_logprobs=full)
        stream = self._client.stream(
            "generate",
            requests=[asdict(r) for r in requests],
            sampling=sampling,
            update=asdict(update) if update else None,
        )
        expected = {r.id for r in requests}
        while True:
            try:
                row = _row(next(stream), expected)
            except StopIteration as end:
                self.stats = end.value
                break
            except EngineError:
                self.close()
                raise
            yield row
        if expected:
            self.close()
            raise EngineError(f"engine worker left {len(expected)} of {len(requests)} requests without an answer")

    def score(self, sequences: Sequence[Sequence[int]], *, temperature: float = 1.0) -> list[list[float]]:
        """Log-probability (nats) of each sequence's tokens from the second on, as the engine's prefill computes it."""
        found: list[list[float]] = [[] for _ in sequences]
        requests = [{"id": i, "tokens": list(s)} for i, s in enumerate(sequences)]
        for row in self._client.stream("score", sequences=requests, temperature=temperature):
            found[row["id"]] = row["logprobs"]
        return found

    def replay(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probability (nats) of each response token of each (prompt, response), as decoding computes it.

        Raw and at temperature 1. All are asked at once; the engine's `Size` says how many of them share a batch.
        """
        found: list[list[float]] = [[] for _ in sequences]
        requests = [{"id": i, "prompt": list(p), "tokens": list(r)} for i, (p, r) in enumerate(sequences)]
        for row in self._client.stream("replay", sequences=requests):
            found[row["id"]] = row["logprobs"]
        return found

    def update(self, folder: Path | str, *, version: int, clear_cache: bool) -> float:
        """Load new weights between requests; returns seconds."""
        refuse_update(self.spec, self._settings)
        result = self._client.call("update", folder=str(folder), version=version, clear_cache=clear_cache)
        return float(result["seconds"])

    def close(self) -> None:
        """End the process; calling it twice does no harm."""
        self._client.close()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _row(data: dict[str, Any], expected: set[int]) -> Row:
    """A checked row; its id is taken out of `expected`."""
    try:
        row = Row(**data)
        lengths = {len(row.tokens), len(row.logprobs), len(row.versions)}
        if row.id not in expected or len(lengths) != 1 or row.finish not in ("stop", "length", "abort"):
            raise ValueError("its parts do not fit together")
        if row.routes is not None:
            _check_routes(row)
    except (TypeError, ValueError) as error:
        raise EngineError(f"engine worker sent a row that is none: {str(error)[:120]}") from None
    expected.discard(row.id)
    return row


def _check_routes(row: Row) -> None:
    """ValueError unless each token but the last has whole numbers, as many in every layer of every token."""
    shape = np.asarray(row.routes)
    if shape.ndim != 3 or shape.dtype.kind != "i" or len(shape) < len(row.tokens):
        raise ValueError(f"its experts have shape {shape.shape}")
