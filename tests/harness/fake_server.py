"""A server without an engine that answers as vLLM's does, or with the fault that a test sets. Loopback only.

Its tokens and log-probabilities are functions of prompt, seed, temperature and the weights' folder, so that a test can
compute what a client must make of them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
import zlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Manner:
    """How the server behaves."""

    how: str = "well"
    """How it answers requests for completions: "well", or the name of a fault."""
    good: int = 0
    """Requests that are answered well before the fault."""
    stream: bool = True
    ids: str = "token_ids"
    """token_ids, or only "token_id:N", or none."""
    development: bool = True
    raw: bool = False
    info: dict[str, Any] | None = None
    key: str | None = None
    first_s: float = 0.0
    """Before the first token of all."""
    token_s: float = 0.0
    """Between two tokens."""
    models: tuple[str, ...] = ("policy",)
    dead: bool = False
    fail_update: str | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)
    weights: str = "first"
    under_way: int = 0
    most: int = 0


def token(prompt: list[int], seed: int, position: int) -> int:
    return (sum(prompt) + 7 * seed + 3 * position) % 50 + 2


def logprob(position: int, weights: str) -> float:
    return -0.5 - 0.01 * position - (0.25 if weights != "first" else 0.0)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, manner: Manner) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.manner, self.lock, self.stopping = manner, threading.Lock(), threading.Event()
        self.going = threading.Event()
        self.going.set()
        self.aborted = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing when a client has closed the connection."""

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        manner, path = self.server.manner, urlsplit(self.path).path
        manner.calls.append((path, None))
        if path == "/v1/models":
            if manner.key and self.headers.get("Authorization") != f"Bearer {manner.key}":
                self.answer(401, {"error": {"message": f"wrong key: {self.headers.get('Authorization')}"}})
            else:
                self.answer(200, {"data": [{"id": m, "max_model_len": 100} for m in manner.models]})
        elif path == "/version" and manner.development:
            self.answer(200, {"version": "fake"})
        elif path == "/server_info" and manner.info:
            self.answer(200, {"vllm_config": manner.info})
        elif path == "/is_paused" and manner.dead:
            self.answer(500, {"error": "EngineCore died"})
        elif path == "/is_paused" and manner.development:
            self.answer(200, {"is_paused": False})
        elif path == "/collective_rpc" and manner.development:
            self.answer(405, {"detail": "Method Not Allowed"})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        path = urlsplit(self.path)
        if path.path == "/v1/completions":
            self.complete(body)
        else:
            self.develop(path.path, body | {k: v[0] for k, v in parse_qs(path.query).items()})

    def develop(self, path: str, body: dict[str, Any]) -> None:
        manner, server = self.server.manner, self.server
        manner.calls.append((path, body))
        if not manner.development:
            return self.answer(404, {"detail": "Not Found"})
        if path == manner.fail_update:
            return self.answer(400, {"error": "no such folder"})
        if path == "/pause":
            server.going.clear() if body["mode"] != "wait" else None
            server.aborted.set() if body["mode"] == "abort" else None
            while body["mode"] != "keep" and manner.under_way:
                time.sleep(0.005)
            time.sleep(0.02)
        elif path == "/collective_rpc":
            manner.weights = body["kwargs"]["weights_path"]
        elif path == "/resume":
            server.aborted.clear()
            server.going.set()
        return self.answer(200, {"status": "done"})

    def complete(self, body: dict[str, Any]) -> None:
        manner, server = self.server.manner, self.server
        with server.lock:
            mine = sum(path == "/v1/completions" for path, _ in manner.calls)
            manner.calls.append(("/v1/completions", body))
            manner.under_way += 1
            manner.most = max(manner.most, manner.under_way)
        try:
            tasting = body.get("max_tokens") == 1
            server.stopping.wait(0.0 if mine else manner.first_s)
            if tasting or manner.how == "well" or mine < manner.good + 2:
                self.tokens(body)
            else:
                self.misbehave(manner.how, body)
        finally:
            with server.lock:
                manner.under_way -= 1

    def misbehave(self, how: str, body: dict[str, Any]) -> None:
        if how == "500":
            self.answer(500, {"error": {"message": "CUDA error\nout of memory"}})
        elif how == "429":
            self.answer(429, {"error": "busy"}, {"Retry-After": "0"})
        elif how == "400":
            self.answer(400, {"error": {"message": "logprobs is not allowed"}})
        elif how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif how in ("empty events", "long line", "blank lines"):
            self.stream_forever(
                {"empty events": b'data: {"choices": []}\n\n', "long line": b"x" * (1 << 20)}.get(how, b"\n" * 4096)
            )
        elif how in ("large", "bomb", "zstd"):
            self.send_large(how)
        elif how == "hang":
            self.server.stopping.wait(60)
        elif how == "no gzip":
            self.answer(200, "{}", {"Content-Encoding": "gzip"})
        elif how == "html":
            self.answer(200, "<html>It works!</html>")
        elif how == "array":
            self.answer(200, [1, 2])
        else:
            self.tokens(body, fault=how)

    def stream_forever(self, piece: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.stopping.is_set():
                self.wfile.write(piece)
        self.close_connection = True

    def send_large(self, how: str) -> None:
        """64 MiB, also packed into 64 KiB, or in an encoding that was not asked for."""
        content = bytes(1 << 26)
        content = content if how == "large" else zlib.compress(content, 9, 31)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if how != "large":
            self.send_header("Content-Encoding", "gzip" if how == "bomb" else "zstd")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)
        self.close_connection = True

    def tokens(self, body: dict[str, Any], *, fault: str = "") -> None:
        """The answer, token by token or at once."""
        manner = self.server.manner
        number = body["max_tokens"] + {"fewer": -1, "more": 1, "half": -2, "stops": -1}.get(fault, 0)
        pieces, finish = [], "stop" if fault == "stops" else "length"
        streamed = manner.stream and body.get("stream")
        if streamed:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Connection", "close")
            self.close_connection = True
            self.end_headers()
        for position in range(number):
            self.server.going.wait() if not self.server.aborted.is_set() else None
            if self.server.aborted.is_set():
                finish = "abort"
                break
            piece = self.piece(body, position, fault)
            pieces.append(piece)
            time.sleep(manner.token_s)
            if streamed:
                end = finish if position == number - 1 and fault != "half" else None
                self.event({"choices": [{**piece, "finish_reason": end}]})
            if fault == "stalls" and position == 1:
                self.server.stopping.wait(60)
        if streamed and finish == "abort":
            self.event({"choices": [{"text": "", "finish_reason": "abort", "logprobs": None, "token_ids": []}]})
        if streamed:
            self.wfile.write(b"data: [DONE]\n\n" if fault != "half" else b"")
        else:
            self.answer(200, {"choices": [self.joined(pieces, finish)]})

    def event(self, message: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(message).encode() + b"\n\n")
        self.wfile.flush()

    def piece(self, body: dict[str, Any], position: int, fault: str) -> dict[str, Any]:
        manner = self.server.manner
        one = token(body["prompt"], body.get("seed", 0), position)
        value = logprob(position, manner.weights) / (1.0 if manner.raw else body.get("temperature", 1.0))
        found: dict[str, Any] = {"text": "x", "index": 0}
        one = {"negative id": -1, "huge id": 2**40}.get(fault, one)
        value = {"above 0": 0.5, "nan": float("nan"), "huge": -(10**400)}.get(fault, value)
        values = [value] if fault != "ragged" else [value, value]
        found["logprobs"] = {
            "tokens": [f"token_id:{one}" if manner.ids != "none" else "x"],
            "token_logprobs": values if fault != "null" else [None],
            "top_logprobs": [{f"token_id:{one}": value}],
        }
        if fault == "no_logprobs":
            found["logprobs"] = None
        if manner.ids == "token_ids":
            found["token_ids"] = [one]
            found["prompt_token_ids"] = ([1] if fault == "prompt" else []) + body["prompt"] if position == 0 else None
        return found

    def joined(self, pieces: list[dict[str, Any]], finish: str) -> dict[str, Any]:
        whole: dict[str, Any] = {"text": "x" * len(pieces), "finish_reason": finish, "logprobs": None}
        if any(p["logprobs"] for p in pieces):
            names = ("tokens", "token_logprobs", "top_logprobs")
            whole["logprobs"] = {n: [x for p in pieces for x in p["logprobs"][n]] for n in names}
        if any("token_ids" in p for p in pieces):
            whole["token_ids"] = [t for p in pieces for t in p["token_ids"]]
        return whole
