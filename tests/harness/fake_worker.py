"""A worker without an engine, for tests of the client: what it does depends on the first prompt token."""

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


def send(**message: object) -> None:
    with LOCK:
        OUT.write(json.dumps(message) + "\n")
        OUT.flush()


def beat() -> None:
    while not FROZEN.is_set():
        send(event="alive", progress=0)
        time.sleep(0.05)


def row(number: int) -> dict[str, object]:
    return {"id": number, "tokens": [1, 2], "logprobs": [-0.5, -0.25], "versions": [0, 0], "finish": "length"}


def misbehave(how: str) -> None:
    if how == "die":
        print("ValueError: the fake worker was told to die", file=sys.stderr, flush=True)
        os._exit(3)
    if how == "hang":
        time.sleep(600)
    if how == "freeze":
        FROZEN.set()
        time.sleep(600)
    if how == "rubbish":
        with LOCK:
            OUT.write("INFO 11-22 loading weights\n")
            OUT.flush()
    if how == "array":
        with LOCK:
            OUT.write("[1, 2]\n")
            OUT.flush()
    if how == "spawn":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        send(id=CURRENT, event="row", row={**row(1), "cached": child.pid})
        os._exit(1)
    if how == "wrong_id":
        send(id=CURRENT, event="row", row=row(99))
    if how == "ragged":
        send(id=CURRENT, event="row", row={**row(1), "logprobs": [-0.5]})


threading.Thread(target=beat, daemon=True).start()
for line in sys.stdin:
    message = json.loads(line)
    CURRENT, how = message["id"], message.get("how", "well")
    if message["command"] == "init" and how == "well":
        send(id=CURRENT, event="done", result={"vllm": "fake"})
    elif message["command"] == "init":
        misbehave(how)
    elif how == "refuse":
        send(id=CURRENT, event="error", message="ValueError: no such dtype")
    else:
        send(id=CURRENT, event="row", row=row(0))
        misbehave(how)
        send(id=CURRENT, event="row", row=row(1))
        send(id=CURRENT, event="done", result={"steps": 2, "tokens": 4, "seconds": 0.0})
