"""Curves that are still equal are computed once: trainers that are one until a setting of one of them changes.

Runs with equal settings and seeds that begin before any of them has done a step share one trainer. Each goes at its own
pace, at most one step apart. The state before the last step is kept while several share, so that a run whose setting is
toggled goes on from its own step, in a trainer of its own, with the numbers that it would have had alone, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakSet

from skewsim.errors import UserError
from skewsim.learn.look import Look
from skewsim.learn.trainer import Trainer, TrainState
from skewsim.model.policy import Policy
from skewsim.records import StepRecord
from skewsim.settings import Scenario


class Shared:
    """Begins runs; those that are equal share a trainer."""

    def __init__(self) -> None:
        self._groups: WeakSet[_Group] = WeakSet()  # a trainer is let go with the last run that has it

    def begin(self, scenario: Scenario, *, seeds: Sequence[int]) -> SharedTrainer:
        """A run from step 0. Raises UserError as `Trainer` does."""
        for group in self._groups:
            same = group.runs and group.trainer.scenario == _named(scenario, group.trainer.scenario.name)
            if same and group.trainer.seeds == tuple(seeds) and group.trainer.step_number == 0:
                return SharedTrainer(scenario, group)
        group = _Group(Trainer(scenario, seeds=seeds))
        self._groups.add(group)
        return SharedTrainer(scenario, group)


@dataclass(eq=False)
class _Group:
    """A trainer, the runs that share it, and what those of them need that have not done its last step."""

    trainer: Trainer
    runs: list[SharedTrainer] = field(default_factory=list)
    records: list[StepRecord] = field(default_factory=list)
    before: TrainState | None = None
    alive_before: set[int] = field(default_factory=set)

    def records_of(self, step: int) -> list[StepRecord]:
        """The records of a step: the last one's, or the next one's."""
        if self.trainer.step_number == step:
            for run in [each for each in self.runs if each.step_number < step]:
                run.leave()
            self.before = self.trainer.state() if len(self.runs) > 1 else None
            self.alive_before = set(self.trainer.alive)
            self.records = self.trainer.step()
        return self.records

    def state_at(self, step: int) -> TrainState:
        """The state before a step: the next one, or the last one."""
        if self.trainer.step_number == step:
            return self.trainer.state()
        assert self.before is not None, "the state is kept while several share a trainer"
        return self.before


class SharedTrainer:
    """One run, as a `Trainer`: it has a trainer of its own once its settings were toggled."""

    def __init__(self, scenario: Scenario, group: _Group) -> None:
        self._scenario, self._group = scenario, group
        self._own: Trainer | None = None
        self._look: Callable[[int], Look] | None = None
        self._steps = 0
        group.runs.append(self)

    @property
    def scenario(self) -> Scenario:
        return self._scenario if self._own is None else self._own.scenario

    @property
    def step_number(self) -> int:
        return self._steps if self._own is None else self._own.step_number

    @property
    def seeds(self) -> tuple[int, ...]:
        return self._group.trainer.seeds

    @property
    def alive(self) -> set[int]:
        if self._own is not None:
            return self._own.alive
        return self._group.trainer.alive if self._is_up_to_date() else self._group.alive_before

    @property
    def policy(self) -> Policy:
        """The weights after the last step that any run which shares them has done."""
        return (self._own or self._group.trainer).policy

    def step(self) -> list[StepRecord]:
        """One step; computed, or what a run that shares the trainer has computed."""
        if self._own is not None:
            records, self._look = self._own.step(), self._own.looking()
            return records
        found = self._group.records_of(self._steps)
        self._steps += 1
        self._look = self._group.trainer.looking()
        return [replace(record, scenario=self._scenario.name) for record in found]

    def look(self, member: int = 0) -> Look:
        """As `Trainer.look`, of the step that this run has just done."""
        if self._look is None:
            raise UserError("no step has been done yet: there is nothing to look at")
        look = self._look(member)
        return replace(look, scenario=_named(look.scenario, self._scenario.name))

    def toggle(self, scenario: Scenario) -> None:
        """As `Trainer.toggle`; from here on the run has a trainer of its own."""
        self.leave()
        assert self._own is not None
        self._own.toggle(scenario)

    def leave(self) -> None:
        """Go on in a trainer of one's own."""
        if self._own is not None:
            return
        group = self._group
        if group.runs == [self]:
            self._own = group.trainer
            self._own.scenario = self._scenario  # which differs in its name, if at all
        else:
            self._own = Trainer(self._scenario, seeds=self.seeds, state=group.state_at(self._steps))
        group.runs.remove(self)

    def state(self) -> TrainState:
        return self._group.state_at(self._steps) if self._own is None else self._own.state()

    def checkpoint_bytes(self) -> int:
        return (self._own or self._group.trainer).checkpoint_bytes()

    def close(self) -> None:
        """End the run; the trainer ends with the last run that shares it."""
        if self._own is not None:
            self._own.close()
        elif self in self._group.runs:
            self._group.runs.remove(self)
            if not self._group.runs:
                self._group.trainer.close()

    def _is_up_to_date(self) -> bool:
        return self._group.trainer.step_number == self._steps


def _named(scenario: Scenario, name: str) -> Scenario:
    return scenario.model_copy(update={"name": name})
