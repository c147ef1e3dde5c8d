"""Labelled cases: rollouts of the simulated engine with known faults, for measuring how often a diagnosis is right.

A case is a function of (labels, seed): a task and its policy, a temperature, rollouts under a few successive weights
(made by a few steps of real training, so that older weights differ the way older weights do), and one or two faults.
`knowledge` says what the diagnosis gets to see: the two logprobs of each token with prompts and versions (*log*), or
the weights as well (*models*). Where a cause cannot show in the logprobs alone, its cases come with models.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skewsim.diagnose.models import ModelScorer
from skewsim.engine.rollouts import RolloutEngine, RolloutRequest, Rollouts, WeightUpdate
from skewsim.engine.simulated import SimEngine
from skewsim.learn.look import look_at
from skewsim.learn.trainer import Trainer
from skewsim.model.policy import Policy
from skewsim.settings import EngineSettings, Scenario, TaskSettings, TrainerSettings
from skewsim.skew.sequences import SequenceLog, SequenceRecord
from skewsim.task import Task

PROMPTS, GROUP = 12, 6
CHECKPOINTS = 5
LOGGED = ("temperature", "top_p", "top_k")
"""What a log says of its requests."""
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.2)

REAL_TASK = TaskSettings(name="reverse", response_length=12, pool_size=24)
REAL_LONG_TASK = TaskSettings(name="reverse", response_length=32, pool_size=24)  # a prompt has one whole cache block
REAL_LABELS = (
    ("healthy",),
    ("wrong_temperature",),
    ("truncation_mass",),
    ("stale_weights",),
    ("misaligned_tokens",),
    ("outlier_sequences",),
    ("wrong_temperature", "stale_weights"),
    ("truncation_mass", "stale_weights"),
    ("raw_logprobs",),
    ("raw_logprobs", "stale_weights"),
    ("stale_kv",),
    ("head_dtype",),
    ("compute_dtype",),
    ("one_sided_fp32_head",),
)
"""What a real engine can be made to do by its settings, in an order that starts few processes."""

SINGLE = (
    "raw_logprobs",
    "wrong_temperature",
    "truncation_mass",
    "stale_weights",
    "stale_kv",
    "head_dtype",
    "compute_dtype",
    "one_sided_fp32_head",
    "misaligned_tokens",
    "outlier_sequences",
)
PAIRS = (
    ("raw_logprobs", "head_dtype"),
    ("raw_logprobs", "stale_weights"),
    ("raw_logprobs", "compute_dtype"),
    ("raw_logprobs", "stale_kv"),
    ("raw_logprobs", "misaligned_tokens"),
    ("raw_logprobs", "outlier_sequences"),
    ("wrong_temperature", "stale_weights"),
    ("wrong_temperature", "truncation_mass"),
    ("truncation_mass", "stale_weights"),
    ("truncation_mass", "compute_dtype"),
    ("truncation_mass", "outlier_sequences"),
    ("stale_weights", "head_dtype"),
    ("stale_weights", "misaligned_tokens"),
    ("stale_weights", "outlier_sequences"),
    ("stale_kv", "head_dtype"),
    ("compute_dtype", "misaligned_tokens"),
    ("compute_dtype", "outlier_sequences"),
)


@dataclass(frozen=True)
class Case:
    """What a diagnosis gets, and what it should find."""

    labels: tuple[str, ...]
    seed: int
    knowledge: str
    log: SequenceLog
    models: tuple[ModelScorer, ...]


@dataclass(frozen=True)
class _Plan:
    """One case's dice."""

    task: TaskSettings
    engine: EngineSettings
    trainer_dtype: str = "float32"
    trainer_head: str = "float32"
    trainer_temperature: float | None = None
    lag: int = 0
    update_at: int | None = None
    warm: bool = False
    """Rollouts under older weights come first, and fill the prefix cache."""
    all_rollouts: bool = False
    """The log holds the earlier rollouts too, each scored by its own trainer."""
    declare: bool = False
    """The log's meta names the dtypes."""


def make_case(
    labels: Sequence[str], seed: int, *, knowledge: str | None = None, engine: RolloutEngine | None = None
) -> Case:
    """The case of these labels ("healthy" alone for none) and this seed; on a real engine, if one is given."""
    rng = np.random.default_rng((seed, *[sum(label.encode()) for label in labels]))
    seen = knowledge or _knowledge(labels, rng)
    plan = _plan(tuple(labels), rng, with_models=seen == "models")
    checkpoints = _checkpoints(plan.task.name, plan.task.response_length)
    if engine is not None:
        seen = "models" if labels[0] == "stale_weights" else seen  # one version only: nothing in the log tells
    if engine is not None:  # settings that need no new process: one task, float32 unless the fault is precision
        plan = replace(plan, task=REAL_LONG_TASK if "stale_kv" in labels else REAL_TASK, update_at=None)
        checkpoints = _checkpoints(plan.task.name, plan.task.response_length)
        if "stale_kv" in labels:
            engine.close()  # it may hold another case's prefixes
    log = _log(plan, checkpoints, seed, engine)
    if "misaligned_tokens" in labels:
        log = _misalign(log, rng)
    if "outlier_sequences" in labels:
        log = _break_some(log, rng)
    keep_trainer = (
        plan.trainer_head != "float32" or plan.trainer_dtype != "float32" or plan.trainer_temperature is not None
    )
    models: tuple[ModelScorer, ...] = ()
    if seen == "models":
        models = _scorers(plan.task.name, plan.task.response_length)
        if not keep_trainer and rng.random() < 0.5:
            log = SequenceLog(tuple(replace(record, trainer_logprobs=None) for record in log.records), log.meta)
    return Case(tuple(labels), seed, seen, log, models)


def _knowledge(labels: Sequence[str], rng: np.random.Generator) -> str:
    if len(labels) > 1:
        return "models"
    if labels[0] == "one_sided_fp32_head":
        return "log" if rng.random() < 0.3 else "models"
    return "log" if rng.random() < 0.5 else "models"


def _plan(labels: tuple[str, ...], rng: np.random.Generator, *, with_models: bool) -> _Plan:
    name, length = [("reverse", 12), ("reverse_until_zero", 12), ("reverse_until_zero", 32)][int(rng.integers(3))]
    task = TaskSettings(name=name, response_length=length, pool_size=24)
    temperature = float(
        rng.choice([t for t in TEMPERATURES if t != 1.0 or not {"raw_logprobs", "wrong_temperature"} & set(labels)])
    )
    engine: dict[str, Any] = {"temperature": temperature, "lag": 0, "update_at_token": None, "block_size": 1}
    plan: dict[str, Any] = {}
    for label in labels:
        _PLANS[label](engine, plan, rng, with_models)
    if plan.get("trainer_temperature") == temperature:
        plan["trainer_temperature"] = 1.0
    return _Plan(task, EngineSettings(**engine), **plan)


def _healthy(engine: dict[str, Any], plan: dict[str, Any], rng: np.random.Generator, models: bool) -> None:
    """float32 on both sides, or one 16-bit type on both, said so in the log; or settings that change nothing."""
    kind = int(rng.integers(4))
    if kind == 1 and not models:
        engine |= {"dtype": "bfloat16", "head_dtype": "bfloat16"}
        plan |= {"trainer_dtype": "bfloat16", "trainer_head": "bfloat16", "declare": True}
    elif kind == 2:
        engine |= {"dtype": "float16", "head_dtype": "float16"}
        plan |= {"trainer_dtype": "float16", "trainer_head": "float16", "declare": True}
    elif kind == 3:
        engine |= {"temperature": 1.0, "logprobs_mode": "raw_logprobs", "enable_prefix_caching": True}


def _raw(engine: dict[str, Any], plan: dict[str, Any], rng: np.random.Generator, models: bool) -> None:
    engine["logprobs_mode"] = "raw_logprobs"


def _temperature(engine: dict[str, Any], plan: dict[str, Any], rng: np.random.Generator, models: bool) -> None:
    factor = float(rng.choice([0.7, 0.8, 0.85, 1.15, 1.25, 1.4]))
    plan["trainer_temperature"] = 1.0 if rng.random() < 0.5 else round(engine["temperature"] * factor, 3)


def _truncation(engine: dict[str, Any], plan: dict[str, Any], rng: np.random.Generator, models: bool) -> None:
    cuts: list[dict[str, Any]] = [{"top_p": 0.8}, {"top_p": 0.9}, {"top_k": 3}, {"top_k": 2}]
    engine |= cuts[int(rng.integers(4))]


def _stale_weights(engine: dict[str, Any], plan: dict[str, Any], rng: np.random.Generator, models: bool) -> None:
    plan["lag"] = int(rng.integers(2, CHECKPOINTS))
    if not models or rng.random() < 0.4:
        plan["update_at"] = int(rng.integers(2, 8))


def _stale_kv(engine: dict[str, Any], plan: dict[str, Any], rng: np.random.Generator, models: bool) -> None:
    engine["enable_prefix_caching"] = True
    plan |= {"warm": True, "all_rollouts": not models}


def _head(engine: dict[str, Any], plan: dict[str, Any], rng: np.random.Generator, models: bool) -> None:
    engine["head_dtype"] = "bfloat16"


def _compute(engine: dict[str, Any], plan: dict[str, Any], rng: np.random.Generator, models: bool) -> None:
    engine |= {"dtype": "bfloat16", "head_dtype": "bfloat16" if rng.random() < 0.5 else "float32"}


def _one_sided(engine: dict[str, Any], plan: dict[str, Any], rng: np.random.Generator, models: bool) -> None:
    in_engine = not models or rng.random() < 0.5
    engine |= {"dtype": "bfloat16", "head_dtype": "float32" if in_engine else "bfloat16"}
    plan |= {"trainer_dtype": "bfloat16", "trainer_head": "bfloat16" if in_engine else "float32"}


def _nothing(engine: dict[str, Any], plan: dict[str, Any], rng: np.random.Generator, models: bool) -> None:
    """Put into the finished log."""


_PLANS = {
    "healthy": _healthy,
    "raw_logprobs": _raw,
    "wrong_temperature": _temperature,
    "truncation_mass": _truncation,
    "stale_weights": _stale_weights,
    "stale_kv": _stale_kv,
    "head_dtype": _head,
    "compute_dtype": _compute,
    "one_sided_fp32_head": _one_sided,
    "misaligned_tokens": _nothing,
    "outlier_sequences": _nothing,
}


# --------------------------------------------------------------------------------------------------- rollouts


@functools.cache
def _checkpoints(task: str, length: int) -> tuple[Policy, ...]:
    """Weights after every few training steps, oldest first: a learning rate at which a few steps are seen."""
    scenario = Scenario(
        name="checkpoints",
        task=TaskSettings(name=task, response_length=length, pool_size=24),
        engine=EngineSettings(lag=0, update_at_token=None, temperature=1.0),
        trainer=TrainerSettings(learning_rate=4e-4),
    )
    trainer = Trainer(scenario, seeds=(0,))
    found = []
    for _ in range(CHECKPOINTS):
        found.append(Policy(trainer.policy.config, trainer.policy.flat.detach().clone()))
        trainer.step()
    return tuple(found)


@functools.cache
def _scorers(task: str, length: int) -> tuple[ModelScorer, ...]:
    """The same as Hugging Face models, newest first."""
    scorers = []
    for number, policy in reversed(list(enumerate(_checkpoints(task, length)))):
        with tempfile.TemporaryDirectory() as folder:
            policy.save(Path(folder))
            scorer = ModelScorer.from_folder(folder)
        scorers.append(ModelScorer(f"checkpoint-{number}", scorer.model))
    return tuple(scorers)


def _log(plan: _Plan, checkpoints: tuple[Policy, ...], seed: int, engine: RolloutEngine | None = None) -> SequenceLog:
    """The rollouts that a run would have logged. Every rollout of a warm run starts with the next weights."""
    newest = len(checkpoints) - 1
    start = 0 if plan.warm else newest - plan.lag
    task, running = Task(plan.task), engine or SimEngine()
    running.start(Scenario(task=plan.task, engine=plan.engine), checkpoints[start], version=start)
    order = torch.randperm(plan.task.pool_size, generator=torch.Generator().manual_seed(seed))
    if engine is not None:  # it may hold another case's weights
        _rollout(running, task, order[:1], seed, WeightUpdate(checkpoints[start].flat, start))
    records: list[SequenceRecord] = []
    update: WeightUpdate | None = None
    if plan.warm:
        for version in range(newest):
            prompts = order[:12] if version == 0 else order[4 * version : 4 * version + 8]
            before = WeightUpdate(checkpoints[version].flat, version) if version else None
            made = _rollout(running, task, prompts, seed + version, before)
            if plan.all_rollouts:
                records += _records(plan, made, checkpoints[version])
        update = WeightUpdate(checkpoints[newest].flat, newest)
    at = 0
    if plan.update_at is not None and plan.lag:
        update, at = WeightUpdate(checkpoints[newest].flat, newest), plan.update_at
    made = _rollout(running, task, order[:PROMPTS], seed + 100, update, at=at)
    records += _records(plan, made, checkpoints[newest])
    meta = {"dtype": plan.engine.dtype, "trainer_dtype": plan.trainer_dtype} if plan.declare else {}
    return SequenceLog(tuple(records), meta)


def _rollout(
    engine: RolloutEngine, task: Task, prompts: Tensor, seed: int, update: WeightUpdate | None, *, at: int = 0
) -> Rollouts:
    ids = prompts.unsqueeze(0)
    request = RolloutRequest(
        step=seed,
        seeds=(seed,),
        prompt_ids=ids,
        prompts=task.pool[ids],
        num_generations=GROUP,
        max_tokens=task.max_tokens,
        update=update,
        update_at=at,
    )
    return engine.generate(request)


def _records(plan: _Plan, made: Rollouts, trainer: Policy) -> list[SequenceRecord]:
    settings = TrainerSettings(
        dtype=plan.trainer_dtype,
        head_dtype=plan.trainer_head,
        temperature=plan.trainer_temperature,
        num_generations=GROUP,
    )
    scenario = Scenario(task=plan.task, engine=plan.engine, trainer=settings)
    return [
        replace(record, settings={name: record.settings[name] for name in LOGGED})
        for record in look_at(trainer, made, scenario).sequences.records
    ]


# ------------------------------------------------------------------------------------------- faults of the log


def _misalign(log: SequenceLog, rng: np.random.Generator) -> SequenceLog:
    """All sequences or every third, by one token, from the start or from a token on."""
    shift = int(rng.choice([-1, 1]))
    every = int(rng.choice([1, 3]))
    late = rng.random() < 0.3
    records = []
    for number, record in enumerate(log.records):
        if number % every == 0:
            at = len(record.tokens) // 4 if late else 0
            values = record.engine_logprobs.copy()
            values[at:] = np.roll(values[at:], shift)
            record = replace(record, engine_logprobs=values)
        records.append(record)
    return SequenceLog(tuple(records), log.meta)


def _break_some(log: SequenceLog, rng: np.random.Generator) -> SequenceLog:
    """One to four sequences report the logprobs of something else."""
    broken = set(rng.choice(len(log.records), size=int(rng.integers(1, 5)), replace=False).tolist())
    records = [
        replace(record, engine_logprobs=-rng.exponential(2.0, len(record.tokens))) if number in broken else record
        for number, record in enumerate(log.records)
    ]
    return SequenceLog(tuple(records), log.meta)
