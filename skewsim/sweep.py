"""Ensembles of scenarios and seeds under common random numbers; the ladder and its verdicts.

All seeds of a scenario are stacked in one trainer; scenarios run side by side in step (`Ensemble`), or one after another
where each needs a real engine of its own (`Relay`). A member's numbers never depend on who rides along: members that
differ in nothing coincide bit for bit.

A rung's numbers are means over the last tenth of its steps. The reference band runs from its lowest seed's final
reward to its highest's, as in the figure (with one seed: over the range of those steps).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from skewsim.engine import RolloutEngine
from skewsim.records import StepRecord
from skewsim.scenarios import LADDER, Values, ladder_scenarios
from skewsim.settings import Scenario
from skewsim.trainer import Trainer, TrainState


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


@dataclass(frozen=True)
class Rung:
    """One scenario's end, as means over its seeds and the last tenth of its steps."""

    name: str
    reward_final: float | None
    reward_band: tuple[float, float] | None
    entropy_final: float | None
    clip_rate: float | None
    kl_k3: float | None
    logprob_diff_mean: float | None
    lag: float | None
    inside_reference_band: bool
    identical_to_reference: bool
    diverged: bool

    @property
    def verdict(self) -> str:
        """In words."""
        if self.diverged:
            return "diverged"
        if self.identical_to_reference:
            return "identical"
        return "inside" if self.inside_reference_band else "outside"


@dataclass(frozen=True)
class LadderResult:
    """The rungs of a ladder, the first of which is the reference, and every record behind them."""

    objective: str
    seeds: int
    steps: int
    rungs: list[Rung]
    records: dict[str, list[StepRecord]] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Without the records."""
        rungs = [asdict(r) | {"reward_band": list(r.reward_band or (None, None))} for r in self.rungs]
        return {"objective": self.objective, "seeds": self.seeds, "steps": self.steps, "rungs": rungs}


class Ladder:
    """The ladder as one ensemble: `ensemble()` to run, `result(records)` to judge."""

    def __init__(
        self,
        *,
        objective: str = "grpo",
        seeds: int = 5,
        steps: int = 100,
        profile: str | None = None,
        values: Values | None = None,
        names: tuple[str, ...] = LADDER,
    ) -> None:
        self.objective, self.steps, self.seeds = objective, steps, tuple(range(seeds))
        self.scenarios = ladder_scenarios(objective=objective, steps=steps, profile=profile, values=values, names=names)

    def ensemble(
        self, *, engine: Callable[[str], RolloutEngine] | None = None, state: TrainState | None = None
    ) -> Ensemble | Relay:
        """Simulated side by side, or, given what makes a rung's real engine, one rung after another."""
        if engine is not None:
            return Relay(self.scenarios, seeds=self.seeds, engine=engine, state=state)
        return Ensemble(self.scenarios, seeds=self.seeds, state=state)

    def result(self, records: Iterable[StepRecord]) -> LadderResult:
        by_name: dict[str, list[StepRecord]] = {s.name: [] for s in self.scenarios}
        for record in records:
            by_name[record.scenario].append(record)
        reference = by_name[self.scenarios[0].name]
        band = _band(_tail(reference, self.steps))
        rungs = [_rung(name, found, reference, band, self.steps) for name, found in by_name.items()]
        return LadderResult(self.objective, len(self.seeds), self.steps, rungs, by_name)


def _rung(
    name: str, records: list[StepRecord], reference: list[StepRecord], band: tuple[float, float] | None, steps: int
) -> Rung:
    tail = _tail(records, steps)
    reward = _mean(tail, "reward/mean")
    return Rung(
        name=name,
        reward_final=reward,
        reward_band=_band(tail),
        entropy_final=_mean(tail, "policy/entropy"),
        clip_rate=_mean(tail, "update/clip_rate"),
        kl_k3=_mean(tail, "skew/kl_k3"),
        logprob_diff_mean=_mean(tail, "skew/logprob_diff_mean"),
        lag=_mean(tail, "lag/mean"),
        inside_reference_band=reward is not None and band is not None and band[0] <= reward <= band[1],
        identical_to_reference=_numbers(records) == _numbers(reference),
        diverged=any(r.diverged for r in records),
    )


def _tail(records: list[StepRecord], steps: int) -> list[StepRecord]:
    """The last tenth."""
    return [r for r in records if r.step >= steps - max(1, steps // 10)]


def _mean(records: list[StepRecord], key: str) -> float | None:
    values = [v for r in records if (v := r.metrics[key]) is not None]
    return statistics.fmean(values) if values else None


def _band(tail: list[StepRecord]) -> tuple[float, float] | None:
    """From the lowest seed's mean reward to the highest's."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for r in tail:
        by_seed[r.seed].append(r.metrics["reward/mean"] or 0.0)
    finals = [statistics.fmean(v) for v in by_seed.values()]
    if not finals:
        return None
    if len(finals) == 1:
        (values,) = by_seed.values()
        return min(values), max(values)
    return min(finals), max(finals)


def _numbers(records: list[StepRecord]) -> dict[tuple[int, int], dict[str, float | None]]:
    """Every number that a run computed (not how long it took)."""
    return {(r.seed, r.step): {k: v for k, v in r.metrics.items() if not k.startswith("time/")} for r in records}
