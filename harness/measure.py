"""Measure an engine's skew on a model: tokens from the engine, logprobs from the trainer's side, a table, a profile.

All prompts go to the engine at once, and its rows are scored while it works on the next ones. Every batch is on disk
before the next is scored, so a worker that dies leaves the rows it gave. Log-probabilities that are not finite (a token
outside the trainer's support, an overflow) are counted and left out, never set to zero.
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.arguments import Size
from harness.client import Limits
from harness.engines import find_spec, require
from harness.prompts import built_in, check_prompts, read_prompts
from harness.scorer import Processing, Scorer, Scores, read_model_config, stop_tokens
from harness.server_session import ServerSession
from harness.session import EngineSession, Request, Row
from skewsim.base_policy import shipped_folder
from skewsim.errors import UserError
from skewsim.profile import SkewProfile, fit_profile, save_profile
from skewsim.seeding import Purpose, generator
from skewsim.settings import DType, EngineSettings, TaskSettings
from skewsim.task import Task
from skewsim.tokens import TokenTable, TokenTableWriter

Progress = Callable[[int, int, str], None]
"""(tokens done, tokens asked for, what is being done)."""
SEQUENCES_AT_ONCE = 64
SCORED_AT_ONCE = 16


@dataclass(frozen=True)
class Measurement:
    """What a measurement found and where it lies."""

    table: TokenTable
    profile: SkewProfile
    table_path: Path
    profile_path: Path
    info: dict[str, Any]
    """What the engine said of itself."""
    dropped: int
    """Tokens left out because a logprob was not finite."""
    seconds: dict[str, float]
    """Wall time: start, engine (generating), scorer, total."""


def measure(
    engine_name: str,
    model_folder: Path | str = "base",
    *,
    out: Path | str,
    settings: EngineSettings | None = None,
    prompts: Sequence[Sequence[int]] | Path | str | None = None,
    num_tokens: int = 8192,
    max_tokens: int | None = None,
    num_generations: int = 1,
    dtype: DType = "float32",
    head_dtype: DType | None = None,
    renormalize: bool = True,
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
    root: Path | str | None = None,
    limits: Limits | None = None,
) -> Measurement:
    """Measure at least `num_tokens` tokens and write ``tokens.npz`` and ``profile.json`` into the folder `out`.

    `engine_name` may be a server's address; it must serve the same model. `model_folder` is a Hugging Face folder, or ``base`` (the shipped policy of the first task, on its own prompts).
    `prompts`: token ids, a file (see `harness.prompts`), or None for a built-in set. `dtype` and `head_dtype` are the
    trainer's. Raises UserError before anything is written, EngineError with the rows received kept.
    """
    began = time.monotonic()
    settings, say = settings or EngineSettings(), progress or (lambda done, total, text: None)
    if num_tokens < 1 or num_generations < 1:
        raise UserError(f"tokens={num_tokens}, generations={num_generations}; allowed: at least 1")
    spec = None if "://" in engine_name else find_spec(engine_name)
    if spec:
        require(spec, root=root)
    plan = _plan(model_folder, prompts, max_tokens=max_tokens, seed=seed)
    table_path, profile_path = Path(out) / "tokens.npz", Path(out) / "profile.json"
    writer = TokenTableWriter(table_path)
    say(0, num_tokens, "loading the trainer's model")
    scorer = Scorer(plan.folder, dtype=dtype, head_dtype=head_dtype)
    requests = _requests(plan, num_tokens=num_tokens, num_generations=num_generations, seed=seed)
    size = Size(max(map(len, plan.prompts)), plan.max_tokens, min(SEQUENCES_AT_ONCE, len(requests)))
    label = spec.name if spec else "server"
    say(0, num_tokens, f"starting {spec.name if spec else engine_name}")
    with (
        EngineSession(spec, plan.folder, settings, size=size, root=root, limits=limits)
        if spec
        else ServerSession(engine_name, settings)
    ) as session:
        started = time.monotonic()
        meta = _provenance(plan, settings, scorer, session) | {"seed": seed}
        work = _Work(writer, scorer, Processing.of(settings, renormalize=renormalize), plan, num_generations, meta)
        with writer:
            rows = session.generate(requests, settings, max_tokens=plan.max_tokens, stop=plan.stop)
            for batch in _batched(rows, SCORED_AT_ONCE):
                work.take(batch)
                say(min(work.done, num_tokens), num_tokens, "measuring")
        seconds = {"start": started - began, "engine": session.stats["seconds"], "scorer": work.seconds}
    say(num_tokens, num_tokens, "fitting")
    table = TokenTable.load(table_path)
    profile = fit_profile(table, name=name or f"{label}-{settings.dtype}", provenance={"dropped": work.dropped})
    save_profile(profile, profile_path)
    seconds["total"] = time.monotonic() - began
    return Measurement(table, profile, table_path, profile_path, session.info, work.dropped, seconds)


@dataclass(frozen=True)
class _Plan:
    """What to ask which model."""

    folder: Path
    label: str
    prompts: list[list[int]]
    max_tokens: int
    stop: list[int]


def _plan(
    model: Path | str, prompts: Sequence[Sequence[int]] | Path | str | None, *, max_tokens: int | None, seed: int
) -> _Plan:
    task = Task(TaskSettings()) if str(model) == "base" else None
    folder = shipped_folder(TaskSettings()) if task else Path(model)
    config = read_model_config(folder)
    vocab_size = int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)
    if prompts is None:
        chosen = task.pool.tolist() if task else built_in(folder, vocab_size=vocab_size, seed=seed)
    else:
        chosen = read_prompts(prompts, model=folder) if isinstance(prompts, str | Path) else list(prompts)
    chosen = check_prompts(chosen, vocab_size=vocab_size)
    length = max_tokens or (task.max_tokens if task else 64)
    room = int(config.get("max_position_embeddings") or 2**31) - max(map(len, chosen))
    if not 1 <= length <= room:
        raise UserError(f"max_tokens={length}; allowed with these prompts and this model: 1 to {max(room, 0)}")
    stop = [] if task else stop_tokens(folder)
    return _Plan(
        folder, f"skewsim base policy ({folder.name})" if task else folder.resolve().name, chosen, length, stop
    )


def _requests(plan: _Plan, *, num_tokens: int, num_generations: int, seed: int) -> list[Request]:
    """Enough sequences for the tokens asked for, whole groups, cycling through the prompts."""
    groups = math.ceil(num_tokens / (plan.max_tokens * num_generations))
    stream = generator(seed, step=0, purpose=Purpose.SAMPLING)
    import torch

    seeds = torch.randint(2**31, (groups * num_generations,), generator=stream).tolist()
    return [Request(i, plan.prompts[i // num_generations % len(plan.prompts)], s) for i, s in enumerate(seeds)]


def _batched(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Rows in batches; those in hand when the iterator fails come first, then the failure."""
    batch: list[Row] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:  # whatever it was: the rows in hand are scored and kept, then it goes on up
        if batch:
            yield batch
        raise
    if batch:
        yield batch


class _Work:
    """Scores batches of rows and appends them to the table."""

    def __init__(
        self,
        writer: TokenTableWriter,
        scorer: Scorer,
        processing: Processing,
        plan: _Plan,
        num_generations: int,
        meta: dict[str, Any],
    ) -> None:
        self._writer, self._scorer, self._processing = writer, scorer, processing
        self._plan, self._group, self._meta = plan, num_generations, meta
        self.done = self.dropped = 0
        self.seconds = 0.0

    def take(self, rows: list[Row]) -> None:
        began = time.monotonic()
        numbers = [row.id // self._group % len(self._plan.prompts) for row in rows]
        prompts = [self._plan.prompts[n] for n in numbers]
        scores = self._scorer.score(prompts, [row.tokens for row in rows], self._processing)
        table = _table(rows, scores, numbers, meta=self._meta)
        finite = np.isfinite(table.engine_logprob) & np.isfinite(table.trainer_logprob)
        self._writer.append(table.select(finite))
        self.done += len(table)
        self.dropped += int((~finite).sum())
        self.seconds += time.monotonic() - began


def _table(rows: list[Row], scores: list[Scores], prompts: list[int], *, meta: dict[str, Any]) -> TokenTable:
    lengths = [len(row.tokens) for row in rows]
    return TokenTable(
        sequence=np.repeat([row.id for row in rows], lengths),
        position=np.concatenate([np.arange(n) for n in lengths]),
        token=np.concatenate([row.tokens for row in rows]),
        engine_logprob=np.concatenate([row.logprobs for row in rows]),
        trainer_logprob=np.concatenate([s.logprobs for s in scores]),
        weight_version=np.concatenate([row.versions for row in rows]),
        kept_mass=np.concatenate([s.kept_mass for s in scores]),
        prompt=np.repeat(prompts, lengths),
        square_mass=np.concatenate([s.square_mass for s in scores]),
        meta=meta,
    )


def _provenance(
    plan: _Plan, settings: EngineSettings, scorer: Scorer, session: EngineSession | ServerSession
) -> dict[str, Any]:
    import transformers

    parameters = sum(p.numel() for p in scorer.model.parameters())
    return {
        "engine": session.spec.package if isinstance(session, EngineSession) else "server",
        "engine_version": str(session.info.get("vllm", "not known")),
        "dtype": settings.dtype,
        "head_dtype": settings.head_dtype,
        "trainer": f"transformers {transformers.__version__}",
        "trainer_dtype": scorer.dtype,
        "trainer_head_dtype": scorer.head_dtype,
        "model": plan.label,
        "model_parameters": parameters,
        "model_sha256": _checksum(plan.folder),
        "temperature": settings.temperature,
        "settings": {"asked": settings.model_dump(), "actual": session.info, "overruled": session.overruled},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _checksum(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()
