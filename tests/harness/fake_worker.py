"""A worker without an engine: it answers as the real one does, or with the fault that the variable FAKE names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

OUT = os.fdopen(os.dup(1), "w")
LOCK = threading.Lock()
FROZEN = threading.Event()
GOOD_ROWS = int(os.environ.get("FAKE_ROWS", "1"))


def write(line: str) -> None:
    with LOCK:
        OUT.write(line + "\n")
        OUT.flush()


def send(**message: object) -> None:
    write(json.dumps(message))


def beat() -> None:
    while not FROZEN.is_set():
        send(event="alive", progress=0)
        time.sleep(0.2)


def misbehave(how: str, row: dict[str, object]) -> None:
    if how == "die":
        print("ValueError: the fake worker was told to die", file=sys.stderr, flush=True)
        os._exit(3)
    if how == "freeze":
        FROZEN.set()
    if how in ("hang", "freeze"):
        time.sleep(600)
    while how == "spin":
        pass
    if how == "rubbish":
        write("INFO 11-22 loading weights")
    if how == "array":
        write("[1, 2]")
    if how == "spawn":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        send(id=CURRENT, event="row", row={**row, "cached": child.pid})
        os._exit(1)
    if how == "wrong_id":
        send(id=CURRENT, event="row", row={**row, "id": 10**6})
    if how == "ragged":
        send(id=CURRENT, event="row", row={**row, "logprobs": [-0.5]})
    if how == "short":
        send(id=CURRENT, event="done", result={})


def info(arguments: dict[str, object]) -> dict[str, object]:
    found = {
        "vllm": os.environ.get("FAKE_VERSION", "fake"),
        "head_dtype": arguments.get("dtype"),
        **arguments,
        "async_scheduling": False,
    }
    overrides = arguments.get("hf_overrides")
    return {**found, **overrides} if isinstance(overrides, dict) else found


def generate(message: dict[str, object], how: str) -> None:
    if log := os.environ.get("FAKE_LOG"):
        with open(log, "a") as lines:
            lines.writelines(f"{r['id']} {r['seed']}\n" for r in message["requests"])  # type: ignore[attr-defined]
    requests = message.get("requests") or [{"id": 0}, {"id": 1}]
    assert isinstance(requests, list)
    for number, request in enumerate(requests):
        early = bool(os.environ.get("FAKE_EARLY")) and request["id"] % 3 == 0
        length = 1 if early else 2
        row = {
            "id": request["id"],
            "tokens": [1, 2 + request["id"] % 50][:length],
            "logprobs": [-0.5, float("nan") if how == "nan" else -0.25][:length],
            "versions": [0] * length,
            "finish": "length",
        }
        if number == GOOD_ROWS:
            misbehave(how, row)
        send(id=CURRENT, event="row", row=row)
    send(id=CURRENT, event="done", result={"steps": 2, "tokens": 2 * len(requests), "seconds": 0.5})


def logprob(token: int, path: str) -> float:
    """A function of the token, the batch and the path, so that a test can compute the expected result."""
    batch = ARGUMENTS.get("max_num_seqs", 0)
    dtype = 0.01 if ARGUMENTS.get("dtype") == "bfloat16" else 0.0
    return -1.0 - 0.01 * token - dtype - (0.002 * (batch == 1) + 0.02 if path == "decode" else 0.0)


def scored(message: dict[str, object], command: str, how: str) -> None:
    """Given tokens, as `replay` and `score` of the real worker answer."""
    for number, sequence in enumerate(message["sequences"]):  # type: ignore[arg-type]
        if number == GOOD_ROWS:
            misbehave(how, {})
        tokens = sequence["tokens"] if command == "replay" else sequence["tokens"][1:]
        path = "decode" if command == "replay" else "prefill"
        values = [logprob(token, path) for token in tokens]
        send(id=CURRENT, event="row", row={"id": sequence["id"], "logprobs": values[: -1 if how == "fewer" else None]})
    send(id=CURRENT, event="done", result={})


ARGUMENTS: dict[str, object] = {}
if os.environ.get("FAKE_START"):
    misbehave(os.environ["FAKE_START"], {})
threading.Thread(target=beat, daemon=True).start()
for line in sys.stdin:
    message = json.loads(line)
    CURRENT, how = message["id"], message.get("how") or os.environ.get("FAKE", "well")
    if message["command"] == "init":
        misbehave(message.get("how", "well"), {})
        misbehave(os.environ.get("FAKE_LOAD", "well"), {})
        ARGUMENTS = message.get("arguments") or {}
        send(id=CURRENT, event="done", result=info(ARGUMENTS))
    elif how == "refuse":
        send(id=CURRENT, event="error", message="ValueError: no such dtype")
    elif message["command"] in ("score", "replay"):
        scored(message, message["command"], how)
    else:
        generate(message, how)
