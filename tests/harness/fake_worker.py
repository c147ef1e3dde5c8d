"""A worker without an engine: it answers as the real one does, or misbehaves as the environment variable FAKE says."""

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
        time.sleep(0.05)


def misbehave(how: str, row: dict[str, object]) -> None:
    if how == "die":
        print("ValueError: the fake worker was told to die", file=sys.stderr, flush=True)
        os._exit(3)
    if how == "freeze":
        FROZEN.set()
    if how in ("hang", "freeze"):
        time.sleep(600)
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
    found = {"vllm": "fake", "head_dtype": arguments.get("dtype"), **arguments, "async_scheduling": False}
    overrides = arguments.get("hf_overrides")
    return {**found, **overrides} if isinstance(overrides, dict) else found


def generate(message: dict[str, object], how: str) -> None:
    requests = message.get("requests") or [{"id": 0}, {"id": 1}]
    assert isinstance(requests, list)
    for number, request in enumerate(requests):
        logprobs = [-0.5, float("nan") if how == "nan" else -0.25]
        row = {"id": request["id"], "tokens": [1, 2], "logprobs": logprobs, "versions": [0, 0], "finish": "length"}
        if number == GOOD_ROWS:
            misbehave(how, row)
        send(id=CURRENT, event="row", row=row)
    send(id=CURRENT, event="done", result={"steps": 2, "tokens": 2 * len(requests), "seconds": 0.5})


threading.Thread(target=beat, daemon=True).start()
for line in sys.stdin:
    message = json.loads(line)
    CURRENT, how = message["id"], message.get("how") or os.environ.get("FAKE", "well")
    if message["command"] == "init":
        misbehave(message.get("how", "well"), {})
        send(id=CURRENT, event="done", result=info(message.get("arguments") or {}))
    elif how == "refuse":
        send(id=CURRENT, event="error", message="ValueError: no such dtype")
    else:
        generate(message, how)
