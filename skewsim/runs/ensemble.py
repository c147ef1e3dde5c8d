"""Scenarios and seeds trained together under common random numbers.

All seeds of a scenario are stacked in one trainer; scenarios run side by side in step (`Ensemble`), or one after another
where each needs a real engine of its own (`Relay`). A member's numbers never depend on who rides along: members that
differ in nothing coincide bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from skewsim.engine.rollouts import RolloutEngine
from skewsim.learn.trainer import Trainer, TrainState
from skewsim.records import StepRecord
from skewsim.settings import Scenario


class Ensemble:
    """Scenarios of one length, each with the same seeds, in step."""

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
        """One step of every trainer that goes on; a record for each of their living members."""
        return [record for trainer in self._running() for record in trainer.step()]

    def state(self) -> TrainState:
        """All members' states in one."""
        return _whole({name: t.state() for name, t in self.trainers.items()})

    def close(self) -> None:
        """Done with its engines."""
        for trainer in self.trainers.values():
            trainer.engine.close()

    def _running(self) -> list[Trainer]:
        return [t for t in self.trainers.values() if t.alive and t.step_number < t.scenario.steps]


class Relay:
    """Scenarios one after another, each with an engine of its own (made from its name), of which only one is open at a time.

    The first one's engine starts at once, so that what is wrong with it shows before anything is written.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        *,
        seeds: Sequence[int],
        engine: Callable[[str], RolloutEngine],
        state: TrainState | None = None,
    ) -> None:
        self._seeds, self._engine = tuple(seeds), engine
        self._states = {name: _part(state, name) for name in state.meta} if state else {}
        self._waiting = [s for s in scenarios if not self._finished(s)]
        self._trainer: Trainer | None = None
        self._next()

    @property
    def alive(self) -> bool:
        return self._trainer is not None

    @property
    def step_number(self) -> int:
        """Of the scenario under way."""
        return self._trainer.step_number if self._trainer else 0

    def step(self) -> list[StepRecord]:
        """One step of the scenario under way; after its last, the next one's engine starts."""
        assert self._trainer is not None, "all are done"
        records = self._trainer.step()
        if not self._trainer.alive or self._trainer.step_number >= self._trainer.scenario.steps:
            self._states[self._trainer.scenario.name] = self._trainer.state()
            self.close()
            self._next()
        return records

    def state(self) -> TrainState:
        """Of all that have begun."""
        under_way = {}
        if self._trainer and self._trainer.step_number:
            under_way = {self._trainer.scenario.name: self._trainer.state()}
        return _whole(self._states | under_way)

    def close(self) -> None:
        """Close the engine that is open; again and again does no harm."""
        if self._trainer:
            self._trainer.engine.close()
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
