"""The skew split into three parts, called legs, each with a fix of its own. Same tokens throughout, at temperature 1.

    trainer - decode = (trainer - prefill) + (prefill - decode),      and beside it: usual batch - other batch

The first leg compares two programs that compute the same: precisions, kernels, the head. The second compares the two
ways in which one engine goes through a sequence: decoding reads keys and values back from the cache, and uses other
kernels for one token than prefill does for many. The third compares the engine with itself in batches of another size,
where sums are taken in another order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.choices import LocalChoice
from harness.given import Difference, bin_names, difference, figure, read_given, score_given
from harness.journal import SEQUENCES
from harness.scorer import TrainerScorer, TrainerSide
from skewsim.files import atomic_writer
from skewsim.learn.base_policy import model_folder
from skewsim.settings import EngineSettings

FORMAT, SCHEMA_VERSION = "skewsim-legs", 1
FILE = "legs.json"
USUAL_BATCH = 64
"""Sequences in a batch, as in a measurement."""
MOST_TOKENS = 16384
"""Tokens that are replayed at most; they give three digits."""
BATCHES = (1, 8)
"""Other batch sizes."""
TOKENS_BY_BATCH = {1: 2048}
"""Fewer tokens for a batch of one sequence, which is twenty times as slow."""
FIXES = {
    "trainer against prefill": "precision and kernels: the same dtype and an fp32 head on both sides "
    "(engine.head_dtype=float32, trainer.head_dtype=float32), the same attention; if it stays: other weights or "
    "another rope, skewsim diagnose --model",
    "decode against prefill": "the key/value cache and the decode kernel: kv_cache_dtype=auto, "
    "enable_prefix_caching=False, another attention backend, enforce_eager=True",
    "other batch sizes": "the order of sums: VLLM_BATCH_INVARIANT=1 on CUDA, a fixed max_num_seqs, or a wider dtype",
}
FLOOR = 1e-4
"""Nats rms that two float32 implementations differ by, with a margin; there is nothing to mend below it."""


@dataclass(frozen=True)
class Leg:
    """One leg: how two ways of scoring the same tokens differ."""

    name: str
    what: str
    """Which two ways, in words."""
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
    """What was found."""

    legs: list[Leg]
    tokens: int
    info: dict[str, Any]

    @property
    def columns(self) -> list[str]:
        return ["leg", "mean", "rms", "max", "k3", *(f"p {n}" for n in bin_names(self.legs[0].found))]

    def describe(self) -> list[str]:
        """A line for each leg, the largest first: how large it is and what mends it."""
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
    engine: LocalChoice,
    model: Path | str,
    *,
    settings: EngineSettings,
    trainer: TrainerSide | None = None,
    batches: tuple[int, ...] = BATCHES,
    progress: Callable[[int, int, str], None] | None = None,
) -> Legs:
    """The three legs of the measurement in `folder`, also written there as ``legs.json``.

    Takes the first `MOST_TOKENS` tokens of its sequences. Raises UserError, EngineError; the measurement's own files
    stay as they are.
    """
    say, trainer = progress or (lambda done, total, text: None), trainer or TrainerSide()
    engine.require()
    path = model_folder(model)
    total = 2 + len(batches)
    say(0, total, "legs: the trainer")
    scorer = TrainerScorer.of(path, trainer)
    given = read_given(folder / SEQUENCES, vocab_size=scorer.vocab_size, num_tokens=MOST_TOKENS)
    expected = np.concatenate([s.logprobs for s in scorer.score(given.prompts, given.responses)])
    del scorer
    say(1, total, "legs: decode and prefill")
    usual = min(USUAL_BATCH, len(given.prompts))
    found, info = score_given(given, engine, path, settings, paths=("decode", "prefill"), sequences=usual)
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
        other, _ = score_given(some, engine, path, settings, paths=("decode",), sequences=batch)
        first = slice(0, some.tokens)
        what = f"batch of {usual} - batch of {batch}"
        legs.append(Leg("other batch sizes", what, difference(decode[first], other["decode"], expected[first])))
    result = Legs(legs, given.tokens, info)
    with atomic_writer(folder / FILE) as handle:
        handle.write(json.dumps(result.to_json(), indent=1).encode() + b"\n")
    return result


def _plain(value: Any) -> Any:
    """The value for JSON: floats that are not finite become None."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
