"""Runs one vLLM engine inside that engine's own environment: JSON lines in on stdin, JSON lines out on stdout.

It imports only the standard library, vllm, and the plugin on PYTHONPATH, since nothing else of the project is installed
there. It works with vLLM 0.8.5 (V0) and everything after it. vLLM and its C libraries print on stdout, so the real
stdout is put aside first and descriptor 1 becomes stderr. The worker calls ``LLMEngine.step()`` itself, in its own
process: nothing runs between two steps. So to pause is simply not to step, a weight update falls on an exact token
boundary, and every token's weight version is known by counting.

In:  {"id": 3, "command": "generate", ...}
Out: {"id": 3, "event": "row" | "done" | "error", ...} and {"event": "alive", "progress": n} every second.
The worker ends when stdin closes, so it does not outlive the process that started it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import sys
import threading
import time
import traceback
from typing import Any

PROTOCOL = 1


class Channel:
    """The real stdout: whole lines, from any thread."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self.progress = 0
        """Counts what the worker has done; only that it changes matters."""

    def send(self, message: dict[str, Any]) -> None:
        self.progress += 1
        self._write(message)

    def _write(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    def beat(self) -> None:
        """Send a message every second, forever, with the count of what has been done."""
        while True:
            time.sleep(1.0)
            with contextlib.suppress(OSError, ValueError):
                self._write({"event": "alive", "progress": self.progress})


class EngineWorker:
    """One engine and the commands on it; each command is a method that returns its result."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._engine: Any = None
        self._version = -1
        self._current = 0
        self._count = 0
        self._v1 = self._forced = self._routes = False

    def run(self, message: dict[str, Any]) -> None:
        """Carry out one command, and send its result or its error."""
        self._current, command = message.pop("id"), message.pop("command")
        try:
            if command not in ("init", "info", "generate", "score", "replay", "update", "reset_prefix_cache"):
                raise ValueError(f"no such command: {command}")
            if command != "init" and self._engine is None:
                raise RuntimeError("init comes first")
            result = getattr(self, command)(**message)
            self._channel.send({"id": self._current, "event": "done", "result": result})
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split()) or type(error).__name__
            self._channel.send({"id": self._current, "event": "error", "message": f"{type(error).__name__}: {text}"})

    def init(
        self, *, model: str, arguments: dict[str, Any], version: int, forced: bool = False, routes: bool = False
    ) -> dict[str, Any]:
        """Start the engine; `forced` lets `replay` choose the tokens, `routes` adds the experts of each to a row."""
        from skewsim_vllm.forced import install, processor_class
        from vllm import EngineArgs, LLMEngine

        official = "logits_processors" in {each.name for each in dataclasses.fields(EngineArgs)}
        if forced and official:
            arguments = {**arguments, "logits_processors": [processor_class()]}
        self._engine = LLMEngine.from_engine_args(EngineArgs(model=model, **arguments))
        self._v1 = type(self._engine).__module__.startswith("vllm.v1")
        if forced and self._v1 and not official:
            install(self._engine)
        if routes:
            from skewsim_vllm.routes import install as install_routes

            self._engine.collective_rpc(install_routes)
        self._forced, self._routes = forced, routes
        self._set_version(version)
        return self.info()

    def info(self) -> dict[str, Any]:
        """What the engine is and what it chose, read back from its own configuration."""
        import platform

        import torch
        import vllm
        from skewsim_vllm import head

        config = self._engine.vllm_config
        model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
        facts = {
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "dtype": model.dtype,
            "head_dtype": head.active() or getattr(model, "head_dtype", model.dtype),
            "logprobs_mode": getattr(model, "logprobs_mode", "raw_logprobs" if self._v1 else "processed_logprobs"),
            "engine_generation": "v1" if self._v1 else "v0",
            "max_model_len": model.max_model_len,
            "quantization": model.quantization,
            "enforce_eager": model.enforce_eager,
            "enable_prefix_caching": bool(cache.enable_prefix_caching),
            "block_size": cache.block_size,
            "kv_cache_dtype": cache.cache_dtype,
            "async_scheduling": bool(getattr(scheduler, "async_scheduling", False)),
            "enable_chunked_prefill": scheduler.enable_chunked_prefill,
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "attention_backend": self._attention_backend(config),
            "device": getattr(config.device_config, "device_type", None),
        }
        plain = {k: v if isinstance(v, int | str | type(None)) else str(v) for k, v in facts.items()}
        return {k: v.removeprefix("torch.") if isinstance(v, str) else v for k, v in plain.items()}

    def _attention_backend(self, config: Any) -> str | None:
        layers = getattr(config.compilation_config, "static_forward_context", {}) or {}
        names = {b.get_name() for layer in layers.values() if (b := getattr(layer, "attn_backend", None))}
        return ",".join(sorted(names)) or None

    def update(self, *, folder: str, version: int, clear_cache: bool) -> dict[str, Any]:
        """New weights between requests."""
        started = time.monotonic()
        if clear_cache:
            self.reset_prefix_cache()
        self._load(folder, version)
        return {"seconds": time.monotonic() - started}

    def reset_prefix_cache(self, *, running: bool = False) -> dict[str, Any]:
        """Drop cached prefixes; `running`: also the keys and values of requests under way, which are computed again."""
        reset = self._engine.reset_prefix_cache
        return {"reset": reset(reset_running_requests=True) if running else reset()}

    def generate(
        self, *, requests: list[dict[str, Any]], sampling: dict[str, Any], update: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Answer every request; a row is sent when its request has finished. See `_apply` for the update."""
        started, flights = time.monotonic(), {}
        for request in requests:
            key = f"{self._count}"
            self._count += 1
            flights[key] = Flight(request["id"], key, len(request["prompt"]))
            self._add(key, request["prompt"], {**sampling, "seed": request.get("seed")}, salt=request.get("salt"))
        steps = tokens = 0
        while self._engine.has_unfinished_requests():
            if update and max(len(f.tokens) for f in flights.values()) >= update["at"]:
                update = self._apply(update, flights)
            else:
                steps += 1
                for output in self._engine.step():
                    tokens += self._take(output, flights)
                self._channel.progress += 1
        if update:
            self.update(folder=update["folder"], version=update["version"], clear_cache=update["clear_cache"])
        return {"steps": steps, "tokens": tokens, "seconds": time.monotonic() - started}

    def _apply(self, update: dict[str, Any], flights: dict[str, Flight]) -> dict[str, Any] | None:
        """Carry out an update while requests are under way; returns what is left to do once they have finished."""
        if update["mode"] == "wait":
            return {**update, "at": sys.maxsize}
        live = [key for key, flight in flights.items() if not flight.finished]
        if update["mode"] == "abort":
            self._engine.abort_request(live)
            for key in live:
                self._finish(flights[key], "abort")
        if update["clear_cache"]:
            self.reset_prefix_cache(running=update["mode"] == "keep")
        self._load(update["folder"], update["version"])
        return None

    def score(self, *, sequences: list[dict[str, Any]], temperature: float = 1.0) -> dict[str, Any]:
        """The log-probability of each given token after the first, on the prefill path."""
        ids = {}
        for sequence in sequences:
            key = f"{self._count}"
            self._count += 1
            ids[key] = sequence["id"]
            params = {"temperature": temperature, "max_tokens": 1, "prompt_logprobs": 0, "logprobs": None}
            self._add(key, sequence["tokens"], params, salt=None)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.prompt_logprobs and output.request_id in ids:
                    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
                    values = [chosen[token].logprob for token, chosen in pairs]
                    self._row({"id": ids.pop(output.request_id), "logprobs": values})
            self._channel.progress += 1
        return {}

    def replay(self, *, sequences: list[dict[str, Any]]) -> dict[str, Any]:
        """The raw log-probability at temperature 1 of each given response token, on the decode path."""
        from skewsim_vllm.forced import KEY, Recorder

        if not self._forced:
            raise RuntimeError("replay needs an engine that was started for it")
        waiting: dict[str, dict[str, Any]] = {}
        found: dict[str, list[float]] = {}
        for sequence in sequences:
            key, wanted = f"{self._count}", sequence["tokens"]
            self._count += 1
            waiting[key] = sequence
            params: dict[str, Any] = {
                "temperature": 1.0,
                "max_tokens": len(wanted),
                "logprobs": 0,
                "ignore_eos": True,
            }
            if self._v1:
                found[key] = []
                params["extra_args"] = {KEY: wanted}
            else:
                recorder = Recorder(wanted)
                found[key] = recorder.logprobs
                params["logits_processors"] = [recorder]
            self._add(key, sequence["prompt"], params, salt=None)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                key, part = output.request_id, output.outputs[0]
                sequence = waiting[key]
                sequence["came"] = [*sequence.get("came", []), *part.token_ids]
                if self._v1:
                    pairs = zip(part.token_ids, part.logprobs or [], strict=True)
                    found[key] += [chosen[token].logprob for token, chosen in pairs]
                if output.finished:
                    if sequence["came"] != sequence["tokens"]:
                        raise RuntimeError(f"sequence {sequence['id']} came out otherwise than it was given")
                    self._row({"id": sequence["id"], "logprobs": found.pop(key)})
            self._channel.progress += 1
        return {}

    def _add(self, key: str, prompt: list[int], sampling: dict[str, Any], *, salt: str | None) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY if "prompt_logprobs" in sampling else RequestOutputKind.DELTA
        params = SamplingParams(detokenize=False, output_kind=kind, **sampling)
        inputs: dict[str, Any] = {"prompt_token_ids": prompt}
        if salt is not None:
            inputs["cache_salt"] = salt
        self._engine.add_request(key, inputs, params)

    def _take(self, output: Any, flights: dict[str, Flight]) -> int:
        flight, part = flights[output.request_id], output.outputs[0]
        new = list(part.token_ids)
        flight.tokens += new
        flight.versions += [self._version] * len(new)
        for token, chosen in zip(new, part.logprobs or [], strict=False):
            flight.logprobs.append(chosen[token].logprob)
            if len(chosen) > 2:  # the whole vocabulary was asked for: what is not -inf is the support
                flight.support.append([t for t, entry in chosen.items() if entry.logprob > float("-inf")])
        if output.finished:
            spans = getattr(part, "weight_versions", None)
            flight.spans = [[s.version, s.start, s.end] for s in spans] if spans else None
            flight.cached = getattr(output, "num_cached_tokens", None)
            self._finish(flight, part.finish_reason)
        return len(new)

    def _finish(self, flight: Flight, reason: str) -> None:
        flight.finished = True
        self._row(
            {
                "id": flight.id,
                "tokens": flight.tokens,
                "logprobs": flight.logprobs,
                "versions": flight.versions,
                "support": flight.support or None,
                "spans": flight.spans,
                "cached": flight.cached,
                "finish": reason,
                "routes": self._routes_of(flight),
            }
        )

    def _routes_of(self, flight: Flight) -> list[list[list[int]]] | None:
        """The experts of every token of prompt and response but the last, which was sampled and never computed."""
        if not self._routes or not flight.tokens:
            return None
        from skewsim_vllm.routes import taken

        found: list[list[list[int]]] = taken(flight.key, flight.prompt + len(flight.tokens) - 1)
        return found

    def _row(self, row: dict[str, Any]) -> None:
        self._channel.send({"id": self._current, "event": "row", "row": row})

    def _load(self, folder: str, version: int) -> None:
        from skewsim_vllm.weights import load

        self._engine.collective_rpc(load, args=(folder,))
        self._set_version(version)

    def _set_version(self, version: int) -> None:
        self._version = version
        if hasattr(self._engine, "set_weight_version"):
            self._engine.set_weight_version(str(version))


class Flight:
    """One request under way."""

    def __init__(self, identity: int, key: str, prompt: int) -> None:
        self.id, self.key, self.prompt = identity, key, prompt
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.support: list[list[int]] = []
        self.spans: list[list[Any]] | None = None
        self.cached: int | None = None
        self.finished = False


def read_commands(inbox: queue.Queue[dict[str, Any]]) -> None:
    """Put commands from stdin into the inbox; the end of stdin ends the process, even in the middle of a command."""
    for line in sys.stdin:
        inbox.put(json.loads(line))
    os._exit(0)


def main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [
        p for p in sys.path if os.path.abspath(p or ".") != here
    ]  # else this folder's files would hide vllm's modules of the same name
    missing = os.environ.pop("SKEWSIM_PRELOAD_MISSING", None)
    if missing:  # names that the version looks for in LD_PRELOAD, see harness.places
        os.environ["LD_PRELOAD"] = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), missing]))
    channel = Channel()
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=channel.beat, daemon=True).start()
    threading.Thread(target=read_commands, args=(inbox,), daemon=True).start()
    channel.send({"event": "hello", "protocol": PROTOCOL, "pid": os.getpid()})
    worker = EngineWorker(channel)
    while True:
        message = inbox.get()
        if message["command"] == "shutdown":
            os._exit(0)  # without the engine's exit hooks, which may hang
        worker.run(message)


if __name__ == "__main__":
    main()
