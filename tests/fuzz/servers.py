"""Answers of a server that misbehaves, for the fuzz."""

from __future__ import annotations

import atexit
import json
import random
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.fuzz.common import TEXTS, altered, leaf, spoiled


class _Handler(BaseHTTPRequestHandler):
    """Answers every request from the generator that the input in hand has set."""

    def do_GET(self) -> None:
        kind = self.path.partition("?")[0]
        whole: dict[str, Any] = {
            "/v1/models": {"data": [{"id": "m", "max_model_len": 100}]},
            "/version": {"version": "1"},
            "/server_info": {"vllm_config": {"model_config": {"dtype": "float32"}, "cache_config": {"block_size": 16}}},
        }
        self._send(whole.get(kind, {"is_paused": False}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        number = body.get("max_tokens", 1)
        choice = {
            "finish_reason": "length",
            "token_ids": [3] * number,
            "prompt_token_ids": body.get("prompt"),
            "logprobs": {"tokens": ["token_id:3"] * number, "token_logprobs": [-1.0] * number},
        }
        self._send({"choices": [choice]}, streams=bool(body.get("stream")))

    def _send(self, data: Any, *, streams: bool = False) -> None:
        server: Any = self.server
        rng: random.Random = server.rng
        with server.lock:
            data = altered(data, rng) if rng.random() < 0.1 else data
            data = leaf(rng) if rng.random() < 0.02 else data
            content = json.dumps(data, default=str).encode(errors="replace")
            content = b"data: " + content + b"\n\ndata: [DONE]\n\n" if streams else content
            content = spoiled(content, rng) if rng.random() < 0.03 else content
            content = b"[" * 100_000 if rng.random() < 0.005 else content
            status = rng.choice((200,) * 200 + (400, 401, 404, 429, 500, 302, 99, 700))
            encoding = rng.choice(("identity",) * 100 + ("gzip", "br", "x" * 500))
            kind = "text/event-stream" if streams else "application/json"
            kind = kind if rng.random() < 0.97 else rng.choice(("text/event-stream", "application/json", leaf(rng)))
        self.send_response(status)
        self.send_header(
            "Content-Type", str(kind)[:200].encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")
        )
        self.send_header("Content-Encoding", encoding)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@cache
def _server() -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.lock = threading.Lock()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    atexit.register(server.shutdown)
    return server


def servers(rng: random.Random, folder: Path) -> list[str]:
    """A run on a server whose answers are altered; or at an address that is none."""
    server: Any = _server()
    server.rng = random.Random(rng.random())
    url = f"http://127.0.0.1:{server.server_port}/v1"
    if rng.random() < 0.2:
        odd = rng.choice(TEXTS)[:200].replace("\x00", "").encode(errors="replace").decode()
        url = rng.choice((f"http://{odd}/v1", f"http://127.0.0.1:{odd}/v1", f"{url}#{odd}", odd, "http://[::1/v1", "http://a b/v1", "http://xn--/v1"))  # fmt: skip
        url = url if "127.0.0.1" in url or "http" not in url else url.replace("//", "//127.0.0.1:1", 1)
    words = ["run", "v0_reference", "--engine", url, "--steps", "1", "--json"]
    for pair in ("policy=random", "task.response_length=4", "task.pool_size=4", "trainer.num_prompts=2", "trainer.num_generations=2", "trainer.learning_rate=0"):  # fmt: skip
        words += ["--set", pair]
    return words
