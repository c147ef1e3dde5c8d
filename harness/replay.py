"""The same tokens under several engines or settings, side by side: what a setting changes, without sampling noise.

Engines run one after another, each in its own environment. The logprobs of every setting and path are compared with the
trainer's (transformers in float32), with those of the first setting on the same path, and, where both paths are asked
for, decode's with prefill's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.choices import LocalChoice
from harness.engines import choose_local
from harness.given import Difference, EnginePath, Floats, bin_names, difference, figure, read_given, score_given
from harness.scorer import TrainerScorer, read_model_config
from skewsim.errors import EngineError, UserError
from skewsim.files import atomic_writer
from skewsim.learn.base_policy import model_folder
from skewsim.settings import EngineSettings, Scenario
from skewsim.share import parse_assignments

if TYPE_CHECKING:
    from harness.client import Limits

FORMAT, SCHEMA_VERSION = "skewsim-replay", 1
SEQUENCES_AT_ONCE = 64
SAMPLER_ONLY = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "logprobs_mode",
    "mode",
    "clear_cache",
    "lag",
    "update_at_token",
)


@dataclass(frozen=True)
class Under:
    """One engine with its settings."""

    label: str
    """As it was typed."""
    engine: LocalChoice
    settings: EngineSettings


@dataclass(frozen=True)
class Comparison:
    """The logprobs of one setting and path against others, of the same tokens."""

    name: str
    against: str
    found: Difference

    def cells(self) -> list[str]:
        d = self.found
        mean = ("+" if d.mean > 0 else "") + figure(d.mean)
        return [self.name, self.against, mean, figure(d.rms), figure(d.max), figure(d.k3), f"{d.identical:.0%}"]

    def by_cells(self) -> list[str]:
        return [self.name, self.against, *(figure(row.rms) for row in self.found.by_probability)]


@dataclass(frozen=True)
class Replay:
    """What a replay found."""

    labels: list[str]
    tokens: int
    rows: list[Comparison]
    columns: dict[str, Floats]
    """(tokens,) log-probabilities in nats: trainer, then LABEL:PATH."""
    infos: dict[str, dict[str, Any]]
    """What each engine said of itself."""
    failed: dict[str, str] = field(default_factory=dict)
    """Label of a setting whose engine failed -> why; the others' rows are there all the same."""

    @property
    def bins(self) -> list[str]:
        return bin_names(self.rows[0].found)

    def to_json(self) -> dict[str, Any]:
        rows = [{"name": row.name, "against": row.against, **row.found.to_json()} for row in self.rows]
        return {
            "settings": self.labels,
            "tokens": self.tokens,
            "rows": rows,
            "engines": self.infos,
            "failed": self.failed,
        }


def parse_under(text: str, *, root: Path | str | None = None, limits: Limits | None = None) -> Under:
    """What ``ENGINE[,path=value,...]`` stands for; a path without a dot is an engine setting's. Raises UserError.

    `root` and `limits` as for `harness.engines.choose`.
    """
    name, *values = text.split(",")
    refusal = f"--under {text}: a server does not score given tokens; allowed: a local engine"
    engine = choose_local(name, root=root, limits=limits, refusal=refusal)
    given = parse_assignments([v if "." in v.partition("=")[0] else f"engine.{v}" for v in values])
    wrong = next((path for path in given if not path.startswith("engine.")), None)
    if wrong:
        raise UserError(f"--under {text}: {wrong} is no engine setting; allowed are engine.NAME=VALUE")
    useless = next((n for n in SAMPLER_ONLY if f"engine.{n}" in given), None)
    if useless:
        raise UserError(f"--under {text}: engine.{useless} does not act on given tokens (temperature 1, raw logprobs)")
    return Under(text, engine, Scenario().with_values(given).engine)


def replay(
    sequences: Path | str,
    model: Path | str,
    *,
    under: Sequence[Under],
    path: Literal["decode", "prefill", "both"] = "both",
    num_tokens: int | None = None,
    out: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> Replay:
    """Score the tokens of `sequences` under every engine, and by the trainer. `under`: see `parse_under`.

    An engine that fails is listed in `Replay.failed`; the others' rows are there all the same. Raises UserError before
    any engine starts; EngineError if no engine has answered.
    """
    say, ways = progress or (lambda done, total, text: None), list(under)
    if len({way.label for way in ways}) < len(ways):
        raise UserError("--under: the same is given twice; allowed: each once")
    if out is not None and (out.suffix not in (".npz", ".parquet") or out.exists()):
        raise UserError(f"--out {out}: allowed is a new file ending in .npz or .parquet")
    for way in ways:
        way.engine.require()
    folder = model_folder(model)
    read_model_config(folder)
    say(0, len(ways), "scoring by the trainer")
    scorer = TrainerScorer(folder, device=device)
    given = read_given(sequences, vocab_size=scorer.vocab_size, num_tokens=num_tokens)
    trainer = np.concatenate([s.logprobs for s in scorer.score(given.prompts, given.responses)])
    del scorer
    paths: tuple[EnginePath, ...] = ("decode", "prefill") if path == "both" else (path,)
    columns, infos, failed = {"trainer": trainer}, dict[str, dict[str, Any]](), dict[str, str]()
    at_once = min(SEQUENCES_AT_ONCE, len(given.prompts))
    for number, way in enumerate(ways):
        say(number, len(ways), f"replaying under {way.label}")
        try:
            found, infos[way.label] = score_given(
                given, way.engine, folder, way.settings, paths=paths, sequences=at_once
            )
        except EngineError as error:
            failed[way.label] = str(error)
            continue
        columns |= {f"{way.label}:{name}": values for name, values in found.items()}
    if not infos:
        raise EngineError("; ".join(f"{label}: {why}" for label, why in failed.items()))
    done = Replay([way.label for way in ways], given.tokens, _compare(ways, paths, columns), columns, infos, failed)
    if out is not None:
        _save(out, given.columns() | columns, done)
    return done


def _compare(ways: list[Under], paths: tuple[EnginePath, ...], columns: dict[str, Floats]) -> list[Comparison]:
    trainer, rows, first = columns["trainer"], list[Comparison](), dict[str, tuple[int, Floats]]()
    for number, way in enumerate(ways, start=1):
        here = {name: columns[f"{way.label}:{name}"] for name in paths if f"{way.label}:{name}" in columns}
        for name, values in here.items():
            rows.append(Comparison(f"{number} {name}", "trainer", difference(trainer, values, trainer)))
            if name in first:
                which, reference = first[name]
                rows.append(Comparison(f"{number} {name}", f"{which} {name}", difference(reference, values, trainer)))
            else:
                first[name] = (number, values)
        if len(here) == 2:
            found = difference(here["prefill"], here["decode"], trainer)
            rows.append(Comparison(f"{number} decode", f"{number} prefill", found))
    return rows


def _save(path: Path, columns: dict[str, Any], done: Replay) -> None:
    """Write every token's numbers, with a header that says what they are; the file is whole or absent."""
    header = json.dumps({"format": FORMAT, "schema_version": SCHEMA_VERSION, "engines": done.infos})
    with atomic_writer(path) as handle:
        if path.suffix == ".npz":
            named = {"header": np.frombuffer(header.encode(), dtype=np.uint8), **columns}
            np.savez_compressed(handle, **named)
            return
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table(columns).replace_schema_metadata({FORMAT: header})
        pyarrow.parquet.write_table(table, handle)
