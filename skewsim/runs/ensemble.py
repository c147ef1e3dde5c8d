"""Scenarios and seeds trained together under common random numbers.

All seeds of a scenario are stacked in one trainer. Scenarios run side by side, one step of each at a time (`Ensemble`),
or one after another where each needs its own real engine (`Relay`). A member's numbers do not depend on the other
members: members with equal settings and seeds have equal numbers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from skewsim.engine.rollouts import RolloutEngine
from skewsim.learn.memory import StepSize
from skewsim.learn.trainer import Trainer, TrainState
from skewsim.records import StepRecord
from skewsim.settings import Scenario


class Ensemble:
    """Scenarios of equal length with the same seeds, trained side by side."""

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        *,
        seeds: Sequence[int],
        state: TrainState | None = None,
    ) -> None:
        assert len({s.name for s in scenarios}) == len(scenarios), "members are told apart by name"
        self.trainers = {
            s.name: Trainer(s, seeds=seeds, state=_part(state, s.name) if state else None) for s in scenarios
        }

    @property
    def alive(self) -> bool:
        return any(self._running())

    @property
    def step_number(self) -> int:
        return max(t.step_number for t in self.trainers.values())

    def step(self) -> list[StepRecord]:
        """One step of every trainer that has not finished; a record for each member still training."""
        return [record for trainer in self._running() for record in trainer.step()]

    def state(self) -> TrainState:
        """The states of all scenarios' trainers in one."""
        return _whole({name: t.state() for name, t in self.trainers.items()})

    def checkpoint_bytes(self) -> int:
        """Of all scenarios' trainers together."""
        return sum(trainer.checkpoint_bytes() for trainer in self.trainers.values())

    def close(self) -> None:
        """Close the trainers' engines."""
        for trainer in self.trainers.values():
            trainer.close()

    def _running(self) -> list[Trainer]:
        return [t for t in self.trainers.values() if t.alive and t.step_number < t.scenario.steps]


class Relay:
    """Scenarios one after another, each with its own engine, of which only one is open at a time.

    ``engine`` opens the engine of a scenario, given the scenario's name. The first engine starts at once, so that an
    engine that cannot start is found before anything is written.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        *,
        seeds: Sequence[int],
        engine: Callable[[str], RolloutEngine],
        state: TrainState | None = None,
    ) -> None:
        self._scenarios, self._seeds, self._engine = tuple(scenarios), tuple(seeds), engine
        self._states = {name: _part(state, name) for name in state.meta} if state else {}
        self._waiting = [s for s in scenarios if not self._finished(s)]
        self._trainer: Trainer | None = None
        self._next()

    @property
    def alive(self) -> bool:
        return self._trainer is not None

    @property
    def step_number(self) -> int:
        """Steps done of the current scenario; 0 when all are finished."""
        return self._trainer.step_number if self._trainer else 0

    def step(self) -> list[StepRecord]:
        """One step of the current scenario; after its last step the next scenario's engine starts."""
        assert self._trainer is not None, "all are done"
        records = self._trainer.step()
        if not self._trainer.alive or self._trainer.step_number >= self._trainer.scenario.steps:
            self._states[self._trainer.scenario.name] = self._trainer.state()
            self.close()
            self._next()
        return records

    def state(self) -> TrainState:
        """The states of all scenarios that have begun, in one."""
        under_way = {}
        if self._trainer and self._trainer.step_number:
            under_way = {self._trainer.scenario.name: self._trainer.state()}
        return _whole(self._states | under_way)

    def checkpoint_bytes(self) -> int:
        """With all scenarios in it."""
        return sum(StepSize.before(each, members=len(self._seeds)).state for each in self._scenarios)

    def close(self) -> None:
        """Close the open engine, if there is one."""
        if self._trainer:
            self._trainer.close()
        self._trainer = None

    def _next(self) -> None:
        if not self._waiting:
            return
        scenario = self._waiting.pop(0)
        engine = self._engine(scenario.name)
        try:
            self._trainer = Trainer(scenario, engine, seeds=self._seeds, state=self._states.get(scenario.name))
        except BaseException:
            engine.close()
            raise

    def _finished(self, scenario: Scenario) -> bool:
        found = self._states.get(scenario.name)
        if found is None:
            return False
        return bool(found.meta["step"] >= scenario.steps or len(found.meta["diverged"]) == len(self._seeds))


def _whole(states: dict[str, TrainState]) -> TrainState:
    tensors: dict[str, torch.Tensor] = {}
    for name, state in states.items():
        tensors |= {f"{name}/{key}": tensor for key, tensor in state.tensors.items()}
    return TrainState(tensors, {name: state.meta for name, state in states.items()})


def _part(state: TrainState, name: str) -> TrainState:
    prefix = f"{name}/"
    tensors = {k.removeprefix(prefix): t for k, t in state.tensors.items() if k.startswith(prefix)}
    return TrainState(tensors, state.meta[name])
