"""Run folders that were altered and are resumed, for the fuzz."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.fuzz.common import altered, leaf, spoiled

WORDS = ["run", "v0_reference", "--out", "run", "--json"]
for _pair in ("policy=random", "task.response_length=4", "task.pool_size=4", "trainer.num_prompts=2", "trainer.num_generations=2"):  # fmt: skip
    WORDS += ["--set", _pair]


UNSUMMED = "unsummed"
"""A file beside a run folder whose checkpoint has no checksums, so that an altered one may lead to another run."""


@cache
def whole_run(*, steps: int = 2) -> Path:
    """A run of so many steps."""
    from skewsim.cli.simulate import choose_scenario, choose_seeds
    from skewsim.learn.trainer import Trainer
    from skewsim.runs.recording import RunFolder, record

    path = Path(tempfile.mkdtemp(prefix="skewsim-fuzz-")) / "run"
    scenario = choose_scenario("v0_reference", WORDS[6::2], steps=steps, seed=None)
    seeds = choose_seeds(scenario, 1)
    trainer = Trainer(scenario, seeds=seeds)
    for _ in record(trainer, RunFolder(path, scenario, seeds=seeds), steps=steps):
        pass
    return path


def unaltered(folder: Path) -> list[str]:
    """The run folder as it was written, to be resumed for its third step."""
    shutil.copytree(whole_run(), folder / "run")
    return [*WORDS, "--steps", "3", "--resume"]


def resumed(rng: random.Random, folder: Path) -> list[str]:
    """One file of a run folder altered: bytes, JSON values, the checkpoint's note; or left out, or made a folder."""
    path = shutil.copytree(whole_run(), folder / "run")
    name = rng.choice(
        ("checkpoint.safetensors", "checkpoint.safetensors", "steps.jsonl", "summary.json", "scenario.toml")
    )
    file = path / name
    content = file.read_bytes()
    how = rng.randrange(5)
    if how == 0:
        content = spoiled(content, rng)
    elif how == 1 and name.endswith("json"):
        content = json.dumps(altered(json.loads(content), rng)).encode()
    elif how == 1 and name.endswith("jsonl"):
        rows = [json.loads(line) for line in content.splitlines()]
        rows[0] = altered(rows[0], rng)
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    elif name == "checkpoint.safetensors" and how in (1, 2):
        content = _other_note(content, rng)
        (folder / UNSUMMED).touch()
    else:
        changed = bytearray(content)
        for place in rng.sample(range(len(changed)), rng.randint(1, 3)):
            changed[place] ^= rng.randint(1, 255)
        content = bytes(changed)
    file.write_bytes(content)
    if rng.random() < 0.05:
        file.unlink()
        if rng.random() < 0.5:
            file.mkdir()
    return [*WORDS, "--steps", "3", "--resume"]


def _other_note(content: bytes, rng: random.Random) -> bytes:
    """A checkpoint as an earlier version wrote it, without checksums, of which the note is altered."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    note = json.loads(header["__metadata__"]["skewsim"])
    old = {name: note[name] for name in ("schema_version", "length", "meta")}
    if rng.random() < 0.5:
        old["meta"][rng.choice([*old["meta"]])] = leaf(rng)
    note = leaf(rng) if rng.random() < 0.15 else altered(old, rng)
    header["__metadata__"] = {"skewsim": json.dumps(note, default=str)}
    if rng.random() < 0.3:
        name = rng.choice([key for key in header if key != "__metadata__"])
        header[f"{name}x"] = header.pop(name)
    packed = json.dumps(header).encode()
    return len(packed).to_bytes(8, "little") + packed + content[8 + length :]
