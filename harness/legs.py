"""A skew in three legs, each with its own fix, over the same tokens at temperature 1 and so without sampling noise.

    trainer - decode = (trainer - prefill) + (prefill - decode),      and beside it: usual batch - other batch

The first leg is two programs that do the same sum: precisions, kernels, the head. The second is one engine's two ways
through one sequence: keys and values read back from their cache, and other kernels for one token than for many. The
third is the engine against itself: sums in another order where another batch is under way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.client import Limits
from harness.engines import find_spec, require
from harness.given import Difference, bin_names, difference, figure, read_given, score_given
from harness.journal import SEQUENCES
from harness.measure import SEQUENCES_AT_ONCE, Trainer
from harness.scorer import Scorer
from skewsim.files import atomic_writer
from skewsim.learn.base_policy import shipped_folder
from skewsim.settings import EngineSettings, TaskSettings

FORMAT, SCHEMA_VERSION = "skewsim-legs", 1
FILE = "legs.json"
MOST_TOKENS = 16384
"""Enough for three digits; the rest of a long measurement is not replayed."""
BATCHES = (1, 8)
"""Other batch sizes."""
TOKENS_BY_BATCH = {1: 2048}
"""A batch of one is twenty times as slow."""
FIXES = {
    "trainer against prefill": "precision and kernels: the same dtype and an fp32 head on both sides (engine.head_dtype=float32, "
    "trainer.head_dtype=float32), the same attention; if it stays: other weights or another rope, skewsim diagnose --model",
    "decode against prefill": "the key/value cache and the decode kernel: kv_cache_dtype=auto, enable_prefix_caching=False, "
    "another attention backend, enforce_eager=True",
    "other batch sizes": "the order of sums: VLLM_BATCH_INVARIANT=1 on CUDA, a fixed max_num_seqs, or a wider dtype",
}
FLOOR = 1e-4
"""Nats rms, between float32 implementations with a margin: nothing to mend below it."""


@dataclass(frozen=True)
class Leg:
    """One leg: reference minus way."""

    name: str
    what: str
    """Which two, in words."""
    found: Difference

    @property
    def fix(self) -> str:
        return FIXES[self.name] if self.found.rms > FLOOR else "nothing to mend: equal to the floor of float32"

    def rows(self) -> list[list[str]]:
        d = self.found
        mean = ("+" if d.mean > 0 else "") + figure(d.mean)
        parts = (mean, figure(d.rms), figure(d.max), figure(d.k3), *(figure(row.rms) for row in d.by_probability))
        return [[self.what.replace(" - ", "\n- "), *parts]]


@dataclass(frozen=True)
class Legs:
    """What was found, and which leg is the longest."""

    legs: list[Leg]
    tokens: int
    info: dict[str, Any]

    @property
    def columns(self) -> list[str]:
        return ["leg", "mean", "rms", "max", "k3", *(f"p {n}" for n in bin_names(self.legs[0].found))]

    def describe(self) -> list[str]:
        """A line for each leg: how large, and what mends it; the largest first."""
        order = sorted(self.legs, key=lambda leg: -leg.found.rms)
        return [f"{leg.what}: rms {leg.found.rms:.2g} nats; {leg.fix}" for leg in order]

    def to_json(self) -> dict[str, Any]:
        legs = [{"name": leg.name, "what": leg.what, "fix": leg.fix, **asdict(leg.found)} for leg in self.legs]
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "tokens": self.tokens,
            "legs": _plain(legs),
            "engine": self.info,
        }


def measure_legs(
    folder: Path,
    engine: str,
    model: Path | str,
    *,
    settings: EngineSettings,
    trainer: Trainer | None = None,
    batches: tuple[int, ...] = BATCHES,
    progress: Callable[[int, int, str], None] | None = None,
    root: Path | str | None = None,
    limits: Limits | None = None,
) -> Legs:
    """The three legs of the measurement in `folder`, also written there as ``legs.json``.

    Takes the first `MOST_TOKENS` of its sequences. Raises UserError, EngineError; the measurement is not touched.
    """
    say, trainer, spec = progress or (lambda done, total, text: None), trainer or Trainer(), find_spec(engine)
    require(spec, root=root)
    path = shipped_folder(TaskSettings()) if str(model) == "base" else Path(model)
    total = 2 + len(batches)
    say(0, total, "legs: the trainer")
    scorer = Scorer(
        path,
        dtype=trainer.dtype,
        head_dtype=trainer.head_dtype,
        attention=trainer.attention,
        device=trainer.device,
    )
    given = read_given(folder / SEQUENCES, vocab_size=scorer.vocab_size, num_tokens=MOST_TOKENS)
    expected = np.concatenate([s.logprobs for s in scorer.score(given.prompts, given.responses)])
    del scorer
    say(1, total, "legs: decode and prefill")
    usual = min(SEQUENCES_AT_ONCE, len(given.prompts))
    run = {"root": root, "limits": limits}
    found, info = score_given(given, spec, path, settings, paths=("decode", "prefill"), sequences=usual, **run)
    prefill, decode = found["prefill"], found["decode"]
    legs = [
        Leg("trainer against prefill", "trainer - prefill", difference(expected, prefill, expected)),
        Leg("decode against prefill", "prefill - decode", difference(prefill, decode, expected)),
    ]
    for done, batch in enumerate((b for b in batches if b < usual), start=2):
        say(done, total, f"legs: batches of {batch}")
        some = read_given(
            folder / SEQUENCES, vocab_size=2**63, num_tokens=min(TOKENS_BY_BATCH.get(batch, MOST_TOKENS), given.tokens)
        )
        other, _ = score_given(some, spec, path, settings, paths=("decode",), sequences=batch, **run)
        first = slice(0, some.tokens)
        what = f"batch of {usual} - batch of {batch}"
        legs.append(Leg("other batch sizes", what, difference(decode[first], other["decode"], expected[first])))
    result = Legs(legs, given.tokens, info)
    with atomic_writer(folder / FILE) as handle:
        handle.write(json.dumps(result.to_json(), indent=1).encode() + b"\n")
    return result


def _plain(value: Any) -> Any:
    """What is no number is null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
