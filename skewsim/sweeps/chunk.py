"""A chunk of a sweep: some seeds of one cell, trained as one stacked ensemble.

A member's curve is the same, bit for bit, whatever else is in its chunk, whether it is alone, and in which process it
is computed, on one machine with one thread. A matrix product of a stack of one is another kernel of the BLAS than that
of a stack of several, so that no stack has fewer than two members: one that is alone is trained beside a copy of
itself. A member that has stopped is taken out of the stack once half of the stack has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from skewsim.runs.outcome import Watch
from skewsim.settings import Scenario
from skewsim.sweeps.plan import Rule, member_key

if TYPE_CHECKING:
    from skewsim.learn.trainer import Trainer, TrainState
    from skewsim.records import StepRecord

LARGEST = 16
"""Members of a chunk, at most: the more, the less a member costs, and the more a kill loses."""

LARGEST_ON_GPU = 256
"""The same where a step takes as long for many members as for few."""

Columns = dict[str, Any]
"""Column name -> values of all rows, one for each member and step."""


@dataclass(frozen=True)
class Chunk:
    """Seeds of one scenario, and the rules by which each of them stops early."""

    scenario: Scenario
    seeds: tuple[int, ...]
    stop: tuple[Rule, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(member_key(self.scenario, seed, self.stop) for seed in self.seeds)

    @property
    def work(self) -> int:
        """Members times steps, if none stops early."""
        return len(self.seeds) * self.scenario.steps


def largest(scenario: Scenario) -> int:
    """How many members a chunk of a scenario may have."""
    return LARGEST if scenario.device == "cpu" else LARGEST_ON_GPU


def train_chunk(chunk: Chunk) -> Columns:
    """Train a chunk and return its curves as columns. Raises UserError as a run does."""
    import torch

    torch.set_num_threads(1)
    rows: list[StepRecord] = []
    watches = {seed: Watch() for seed in chunk.seeds}
    trainer = _trainer(chunk.scenario, chunk.seeds)
    living = set(chunk.seeds)
    while living and trainer.step_number < chunk.scenario.steps:
        records = {record.seed: record for record in trainer.step()}  # a copy's record is the same
        for seed in sorted(living & records.keys()):
            rows.append(records[seed])
            watches[seed].add(records[seed].metrics["reward/mean"], diverged=records[seed].diverged is not None)
        living = {s for s in living if s in records and not _ended(records[s], watches[s], chunk.stop)}
        if living and 2 * len(living) <= len(trainer.seeds) > 2:
            trainer = _without_the_others(trainer, sorted(living))
    return columns(rows, dict(zip(chunk.seeds, chunk.keys, strict=True)))


def _ended(record: StepRecord, watch: Watch, stop: tuple[Rule, ...]) -> bool:
    return record.diverged is not None or any(getattr(watch, rule) is not None for rule in stop)


def _trainer(scenario: Scenario, seeds: Sequence[int], state: TrainState | None = None) -> Trainer:
    from skewsim.learn.trainer import Trainer

    return Trainer(scenario, seeds=tuple(seeds) * (2 if len(seeds) == 1 else 1), state=state)


def _without_the_others(trainer: Trainer, seeds: Sequence[int]) -> Trainer:
    """The same training with only these seeds."""
    state = trainer.state()
    places = [trainer.seeds.index(seed) for seed in seeds] * (2 if len(seeds) == 1 else 1)
    trainer.close()
    return _trainer(trainer.scenario, seeds, some_members(state, places))


def some_members(state: TrainState, places: Sequence[int]) -> TrainState:
    """The state of some members alone, none of which has diverged; ``places`` are theirs in the stack."""
    from skewsim.learn.trainer import TrainState

    tensors = {
        name: tensor if tensor.ndim == 0 else tensor[:, places] if name == _LAYERS_FIRST else tensor[places]
        for name, tensor in state.tensors.items()
    }
    seeds = [state.meta["seeds"][place] for place in places]
    return TrainState(tensors, state.meta | {"seeds": seeds, "diverged": {}})


_LAYERS_FIRST = "engine.prefix_store"
"""The one tensor of a state whose first axis is of layers, and its second of members."""


def columns(rows: Sequence[StepRecord], keys: dict[int, str]) -> Columns:
    """Records as columns, members in order of their keys; times are left out, as they are of no curve."""
    ordered = sorted(rows, key=lambda row: (keys[row.seed], row.step))
    names = sorted({name for row in rows for name in row.metrics if not name.startswith("time/")})
    found: Columns = {
        "member": [keys[row.seed] for row in ordered],
        "step": np.array([row.step for row in ordered], dtype=np.int64),
        "diverged": np.array([row.diverged is not None for row in ordered], dtype=np.int64),
    }
    for name in names:
        values = [row.metrics.get(name) for row in ordered]
        found[name] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return found
