"""Measure an engine's skew on a model: tokens from the engine, logprobs from the trainer's side, a table and a profile.

Prompts are given to the engine by the thousand, and its rows are scored while it works on the next ones. Every batch is
in the journal (`harness.journal`) before the next is scored: whatever ends a measurement leaves the rows that it has,
and `resume` asks for the others only. Log-probabilities that are not finite (a token that the trainer's side cut off,
an overflow) are counted and left out, never set to zero.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from harness.journal import PROFILE, SEQUENCES, TABLE, Journal
from harness.plan import Plan, Prompts, make_plan
from harness.protocols import RealChoice, Session
from harness.requests import Row, Size, check_ids
from harness.scorer import Processing, TokenScores, TrainerScorer, TrainerSide
from skewsim.errors import EngineError, UserError
from skewsim.machine import check_room, cpu_features, free_memory, size
from skewsim.settings import EngineSettings
from skewsim.skew.fitting import fit_profile
from skewsim.skew.profile import SkewProfile, load_profile, save_profile
from skewsim.skew.sequences import SequenceRecord, routes_differ
from skewsim.skew.tokens import TokenTable

Progress = Callable[[int, int, str], None]
"""(tokens done, tokens asked for, what is being done)."""
SEQUENCES_AT_ONCE = 64
"""Sequences that the engine computes in one batch."""
REQUESTS_AT_ONCE = 8192
"""Requests that are given to the engine in one go; a million of them would only wait there and take memory."""
SCORED_AT_ONCE = 4096
"""Tokens, prompts included, that are scored and written together."""
TOKEN_MEMORY, REQUEST_MEMORY, TOKEN_DISK = 150, 100, 150
"""Bytes that a token takes in the table's making, a request before it is asked, and a token in all files: at least."""
KEPT = ("model_sha256", "trainer_attention", "machine", "cpu_features")
"""What a profile keeps of the table's provenance besides its own fields."""
SCORED_AFTER = 5.0
"""Seconds after which fewer of them are scored all the same."""


@dataclass(frozen=True)
class Measurement:
    """What a measurement found and where it lies."""

    table: TokenTable
    profile: SkewProfile
    folder: Path
    info: dict[str, Any]
    """What the engine said of itself."""
    dropped: int
    """Tokens that were left out because a logprob was not finite."""
    seconds: dict[str, float]
    """Wall time of this process: start, engine (generating), scorer, total."""

    @property
    def table_path(self) -> Path:
        return self.folder / TABLE

    @property
    def profile_path(self) -> Path:
        return self.folder / PROFILE

    @property
    def sequences_path(self) -> Path:
        return self.folder / SEQUENCES


def measure(
    engine: RealChoice,
    model_folder: Path | str = "base",
    *,
    out: Path | str,
    settings: EngineSettings | None = None,
    prompts: Prompts = None,
    num_tokens: int = 8192,
    max_tokens: int | None = None,
    num_generations: int = 1,
    chat_template: bool | None = None,
    trainer: TrainerSide | None = None,
    batch_tokens: int | None = None,
    seed: int = 0,
    name: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Measure `num_tokens` tokens, or a few more, and write table, sequences and profile into the folder `out`.

    `engine` is what `harness.engines.choose` makes of a name; a server must have the same model. `model_folder` is a
    Hugging Face folder, or ``base`` or ``base_moe`` (what ships for the first task, on its own prompts).
    `chat_template`: whether prompts that are texts go through the model's; None: where it has one. `batch_tokens`
    bounds what the trainer's side computes at once. `resume` goes on with what `out` holds, whole or not, until it has
    as many tokens as are asked for now; sequences that are there are not asked for again. Tokens that are left out
    since a logprob is not finite count as measured.

    Raises UserError before anything is written, EngineError with the rows received kept.
    """
    began = time.monotonic()
    settings, trainer = settings or EngineSettings(), trainer or TrainerSide()
    say = progress or (lambda done, total, text: None)
    plan = make_plan(
        model_folder,
        prompts,
        num_tokens=num_tokens,
        max_tokens=max_tokens,
        num_generations=num_generations,
        chat_template=chat_template,
        seed=seed,
    )
    check_machine(plan, Path(out))
    asked = plan.asked(engine.name, settings, asdict(trainer))
    seconds = {"start": 0.0, "engine": 0.0, "scorer": 0.0}
    with Journal(out, asked, resume=resume) as journal:
        info = dict(journal.meta.get("settings", {}).get("actual", {}))
        if plan.requests(journal.done):
            engine.require()
            work = _Work(journal, plan, settings, trainer, batch_tokens, say)
            try:
                info = work.run(engine)
            except EngineError as error:
                raise EngineError(f"{error}; {journal.kept}" if journal.done else str(error)) from None
            seconds |= work.seconds
        say(num_tokens, num_tokens, "fitting")
        dtype = journal.meta.get("dtype", "unknown-dtype")
        table, profile = _conclude(journal, name=name or f"{engine.profile_stem}-{dtype}")
    seconds["total"] = time.monotonic() - began
    dropped = int(getattr(profile.provenance, "dropped", 0))
    return Measurement(table, profile, Path(out), info, dropped, seconds)


def check_machine(plan: Plan, folder: Path) -> None:
    """UserError if the machine has no memory for the plan's table and the trainer's model, or no disk for its files."""
    tokens, free = plan.count * plan.max_tokens, free_memory()
    model = sum(file.stat().st_size for file in plan.folder.glob("*.safetensors"))
    need = model + TOKEN_MEMORY * tokens + REQUEST_MEMORY * plan.count
    if free is not None and need > free:
        fits = max(0, int(plan.num_tokens * (free - model) / max(need - model, 1)))
        raise UserError(
            f"tokens={plan.num_tokens}: they and the model take about {size(need)} of memory, and {size(free)} are "
            f"free; allowed: {f'at most {fits}' if fits else 'a smaller model'}"
        )
    check_room(folder, TOKEN_DISK * tokens, "--out")


def _conclude(journal: Journal, *, name: str) -> tuple[TokenTable, SkewProfile]:
    """Write table, sequences and profile of a journal that holds every sequence, or read what was written before."""
    path = journal.folder / PROFILE
    if journal.whole:
        return TokenTable.load(journal.table_path), load_profile(path)
    table, dropped = journal.table()
    kept = {key: table.meta[key] for key in KEPT if key in table.meta}
    profile = fit_profile(table, name=name, provenance={"dropped": dropped} | kept)
    try:
        journal.save(table)
        save_profile(profile, path)
    except UserError as error:
        raise UserError(f"{error}; {journal.kept}") from None
    journal.remove()
    return table, profile


def _batched(rows: Iterator[Row], prompt_tokens: int) -> Iterator[list[Row]]:
    """The rows in batches. If the iterator fails, the rows that came before are yielded first; then this fails too."""
    batch: list[Row] = []
    size, since = 0, time.monotonic()
    try:
        for row in rows:
            batch.append(row)
            size += prompt_tokens + len(row.tokens)
            if size >= SCORED_AT_ONCE or time.monotonic() - since > SCORED_AFTER:
                yield batch
                batch, size, since = [], 0, time.monotonic()
    except (Exception, KeyboardInterrupt):  # whatever it was, the rows that came are scored and kept first
        if batch:
            yield batch
        raise
    if batch:
        yield batch


class _Work:
    """Asks the engine for what is missing, scores it and puts it into the journal."""

    def __init__(
        self,
        journal: Journal,
        plan: Plan,
        settings: EngineSettings,
        trainer: TrainerSide,
        batch_tokens: int | None,
        say: Progress,
    ) -> None:
        self._journal, self._plan, self._say = journal, plan, say
        self._settings, self._processing = settings, Processing.of(settings, renormalize=trainer.renormalize)
        threading.Thread(target=import_module, args=("skewsim.skew.fitting",), daemon=True).start()  # needed at the end
        self._tell("loading the trainer's model")
        self._scorer = TrainerScorer.of(plan.folder, trainer, batch_tokens=batch_tokens)
        self._sampler = {n: getattr(settings, n) for n in ("temperature", "top_p", "top_k", "min_p")}
        self._truncates = settings.truncates
        self.seconds = {"start": 0.0, "engine": 0.0, "scorer": 0.0}

    def run(self, engine: RealChoice) -> dict[str, Any]:
        """Go on until every request is answered; returns what the engine said of itself."""
        began, plan = time.monotonic(), self._plan
        self._tell(f"starting {engine.name}")
        size = Size(plan.prompt_tokens, plan.max_tokens, min(SEQUENCES_AT_ONCE, plan.count))
        with engine.session(plan.folder, self._settings, size=size) as session:
            self.seconds["start"] = time.monotonic() - began
            if not_known := session.info.get("not_known"):
                self._tell(f"{engine.name} does not tell its {', '.join(not_known)}")
            self._journal.begin(provenance(plan, self._settings, self._scorer, engine.package, session))
            while requests := plan.requests(self._journal.done):
                rows = session.generate(
                    requests[:REQUESTS_AT_ONCE], self._settings, max_tokens=plan.max_tokens, stop=plan.stop
                )
                for batch in _batched(rows, plan.prompt_tokens):
                    self._take(batch)
                self.seconds["engine"] += session.stats["seconds"]
            return session.info

    def _take(self, rows: list[Row]) -> None:
        check_ids(rows, self._scorer.vocab_size)
        began, numbers = time.monotonic(), [self._plan.prompt_id(row.id) for row in rows]
        prompts = [self._plan.prompts[number] for number in numbers]
        scores = self._scorer.score(prompts, [row.tokens for row in rows], self._processing)
        self.seconds["scorer"] += time.monotonic() - began
        self._journal.append(map(self._line, rows, numbers, prompts, scores))
        self._tell("measuring")

    def _tell(self, what: str) -> None:
        self._say(min(sum(self._journal.done.values()), self._plan.num_tokens), self._plan.num_tokens, what)

    def _line(self, row: Row, number: int, prompt: list[int], scores: TokenScores) -> dict[str, Any]:
        record = SequenceRecord(
            tokens=np.array(row.tokens),
            engine_logprobs=np.array(row.logprobs),
            trainer_logprobs=scores.logprobs,
            weight_versions=np.array(row.versions),
            prompt_tokens=np.array(prompt),
            settings=self._sampler,
            places=_routing(row, scores),
        )
        line = {"id": row.id, "prompt_id": number, **record.to_json(), "square_mass": scores.square_mass.tolist()}
        return line | ({"kept_mass": scores.kept_mass.tolist()} if self._truncates else {})


def _routing(row: Row, scores: TokenScores) -> dict[str, Any]:
    """In how many layers the trainer chose other experts, where both sides' are known."""
    if row.routes is None or scores.routes is None:
        return {}
    both = {"engine_routed_experts": row.routes, "trainer_routed_experts": scores.routes}
    return {"routes_differ": routes_differ(both, len(row.tokens))}


def provenance(
    plan: Plan, settings: EngineSettings, scorer: TrainerScorer, package: str, session: Session
) -> dict[str, Any]:
    """Where a table comes from: engine, model, both precisions, what was asked and what the engine chose by itself."""
    import transformers

    precision = {"dtype": settings.dtype, "head_dtype": settings.head_dtype}
    told = {key: value for key, value in precision.items() if key not in session.info.get("not_known", ())}
    return {
        "engine": package,
        "engine_version": str(session.info.get("vllm", "not known")),
        **told,
        "trainer": f"transformers {transformers.__version__}",
        "trainer_dtype": scorer.dtype,
        "trainer_head_dtype": scorer.head_dtype,
        "trainer_attention": scorer.attention,
        "trainer_device": scorer.device,
        "model": plan.label,
        "model_parameters": sum(p.numel() for p in scorer.model.parameters()),
        "model_sha256": plan.checksum,
        "temperature": settings.temperature,
        "seed": plan.seed,
        "settings": {"asked": settings.model_dump(), "actual": session.info, "overruled": session.overruled},
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_features": cpu_features(),
    }
