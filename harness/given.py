"""The same tokens scored in several ways, and how two of the ways differ, without the noise of sampling.

A way is the trainer (transformers), or an engine under some settings on one of its two paths: on *decode* each token is
forced in its turn as if it had been sampled; on *prefill* the whole sequence is one prompt (`prompt_logprobs`). All are
raw and at temperature 1, which is what prefill reports in every V1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.choices import LocalChoice
from harness.requests import Size
from skewsim.errors import EngineError, FileFormatError, UserError
from skewsim.settings import EngineSettings
from skewsim.skew.metrics import ProbabilityBin, by_probability, skew_metrics
from skewsim.skew.sequences import SequenceRecord, read_sequences

Floats = npt.NDArray[np.float64]
EnginePath = Literal["decode", "prefill"]
ASKED_AT_ONCE = 4096
"""Sequences handed to an engine in one go."""


@dataclass(frozen=True)
class Given:
    """Whole sequences to score, as token ids."""

    prompts: list[list[int]]
    responses: list[list[int]]
    sequence: npt.NDArray[np.int64]
    """Number of each token's sequence in its file, (tokens,)."""

    @property
    def tokens(self) -> int:
        return len(self.sequence)

    @property
    def longest(self) -> tuple[int, int]:
        """Tokens of the longest prompt and of the longest response."""
        return max(map(len, self.prompts)), max(map(len, self.responses))

    def columns(self) -> dict[str, npt.NDArray[np.int64]]:
        """sequence, position and token of every token."""
        position = np.concatenate([np.arange(len(r)) for r in self.responses])
        return {"sequence": self.sequence, "position": position, "token": np.concatenate(self.responses)}


def read_given(path: Path | str, *, vocab_size: int, num_tokens: int | None = None) -> Given:
    """The first sequences of a file (`skewsim.skew.sequences`), up to `num_tokens` tokens. Raises UserError.

    Tokens that the engine did not sample (a tool's answer) are scored like the others.
    """
    if num_tokens is not None and num_tokens < 1:
        raise UserError(f"tokens={num_tokens}; allowed: at least 1")
    prompts, responses, numbers, total = list[list[int]](), list[list[int]](), list[int](), 0
    for number, record in enumerate(read_sequences(path)):
        if total >= (num_tokens or np.inf):
            break
        if not len(record.tokens):
            continue
        prompts.append(_prompt(record, path, number))
        responses.append(record.tokens.tolist())
        numbers += [number] * len(record.tokens)
        total += len(record.tokens)
        outside = [t for t in (*prompts[-1], *responses[-1]) if not 0 <= t < vocab_size]
        if outside:
            raise UserError(
                f"sequences {path}, sequence {number}: token {outside[0]}; the model has 0 to {vocab_size - 1}"
            )
    if not total:
        raise FileFormatError(f"sequences {path}: no token in it")
    return Given(prompts, responses, np.array(numbers))


def _prompt(record: SequenceRecord, path: Path | str, number: int) -> list[int]:
    if record.prompt_tokens is None:
        raise UserError(
            f"sequences {path}, sequence {number}: prompt_token_ids is missing, and nothing scores without it"
        )
    found: list[int] = record.prompt_tokens.tolist()
    return found


def at_temperature_1(settings: EngineSettings) -> EngineSettings:
    """The settings without those of the sampler, which does not act on given tokens."""
    return settings.model_copy(update={"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0})


def score_given(
    given: Given,
    engine: LocalChoice,
    model: Path,
    settings: EngineSettings,
    *,
    paths: Sequence[EnginePath],
    sequences: int,
) -> tuple[dict[EnginePath, Floats], dict[str, Any]]:
    """Log-probabilities (tokens,) in nats on each path, and what the engine said of itself.

    `sequences` are in a batch. Raises EngineError, UserError for a setting that the engine lacks.
    """
    size = Size(*given.longest, sequences)
    pairs = list(zip(given.prompts, given.responses, strict=True))
    with engine.session(model, at_temperature_1(settings), size=size, forced=True) as session:
        found: dict[EnginePath, Floats] = {}
        for path in paths:
            rows: list[list[float]] = []
            for part in _parts(pairs, ASKED_AT_ONCE):
                if path == "decode":
                    rows += session.replay(part)
                else:
                    whole = session.score([[*prompt, *response] for prompt, response in part])
                    rows += [row[-len(response) :] for row, (_, response) in zip(whole, part, strict=True)]
            found[path] = _checked(rows, given, path)
        return found, session.info | {"overruled": session.overruled}


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _checked(rows: Iterable[Sequence[float]], given: Given, path: str) -> Floats:
    rows = list(rows)
    wrong = [i for i, (row, asked) in enumerate(zip(rows, given.responses, strict=True)) if len(row) != len(asked)]
    if wrong:
        number = wrong[0]
        raise EngineError(
            f"engine gave {len(rows[number])} logprobs for the {len(given.responses[number])} tokens of sequence "
            f"{number} on the {path} path"
        )
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])


@dataclass(frozen=True)
class Difference:
    """How one way of scoring differs from another, over the same tokens: d = reference minus way, nats."""

    tokens: int
    mean: float
    rms: float
    max: float
    """Largest absolute difference."""
    k3: float
    identical: float
    """Share of tokens whose two numbers are the same to the last bit."""
    by_probability: list[ProbabilityBin]
    """By the trainer's probability, in the published bins."""
    not_finite: int

    def to_json(self) -> dict[str, Any]:
        from dataclasses import asdict

        return asdict(self)


def difference(reference: Floats, way: Floats, trainer: Floats) -> Difference:
    """Figures of ``reference - way``; tokens where either is not finite are counted and left out."""
    finite = np.isfinite(reference) & np.isfinite(way) & np.isfinite(trainer)
    if not finite.any():
        raise EngineError("no token has two finite log-probabilities")
    one, other = reference[finite], way[finite]
    metrics = skew_metrics(one[None], other[None], np.ones((1, len(one))))
    d = one - other
    return Difference(
        tokens=len(d),
        mean=metrics["bias"],
        rms=float(np.sqrt(np.square(d).mean())),
        max=metrics["logprob_diff_max"],
        k3=metrics["kl_k3"],
        identical=float((d == 0).mean()),
        by_probability=by_probability(trainer[finite], d),
        not_finite=int((~finite).sum()),
    )


def bin_names(found: Difference) -> list[str]:
    """Headings of the bins: below .01, .1, .5, .9, and above."""
    inner = [f"<{row.high:g}" for row in found.by_probability[:-1]]
    return [*inner, f">{found.by_probability[-1].low:g}"]


def figure(value: float) -> str:
    """Two digits, for a table; a dash where there is nothing."""
    return "-" if np.isnan(value) else "0" if value == 0 else f"{value:.2g}"
