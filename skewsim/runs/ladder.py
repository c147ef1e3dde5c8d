"""The ladder: the reference, initial V1 and its four fixes one by one, and how each of them ended.

A rung's numbers are means over its seeds and the last tenth of its steps. The reference band goes from the final reward
of the reference's lowest seed to that of its highest, as in the figure. One seed has no band: its range over those
steps is given, and nothing is judged by it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from skewsim.html import bar, heading, table
from skewsim.records import StepRecord, last_tenth, seeds_in_words
from skewsim.scenarios import ALONE, LADDER, Values, ladder_scenarios

if TYPE_CHECKING:
    from skewsim.engine.rollouts import RolloutEngine
    from skewsim.learn.memory import StepSize
    from skewsim.learn.trainer import TrainState
    from skewsim.runs.ensemble import Ensemble, Relay
    from skewsim.runs.figures import Picture


@dataclass(frozen=True)
class Rung:
    """How one scenario ended, as means over its seeds and the last tenth of its steps."""

    name: str
    reward_final: float | None
    reward_band: tuple[float, float] | None
    entropy_final: float | None
    clip_rate: float | None
    kl_k3: float | None
    logprob_diff_mean: float | None
    lag: float | None
    inside_reference_band: bool | None
    """None where the reference has one seed, and so no band of seeds."""
    identical_to_reference: bool
    diverged: bool

    @property
    def verdict(self) -> str:
        """diverged, identical, one seed, inside or outside, as docs/scenarios.md defines them."""
        if self.diverged:
            return "diverged"
        if self.identical_to_reference:
            return "identical"
        if self.inside_reference_band is None:
            return "one seed"
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
        """The result as plain data, without the records."""
        rungs = [asdict(r) | {"reward_band": list(r.reward_band or (None, None))} for r in self.rungs]
        return {"objective": self.objective, "seeds": self.seeds, "steps": self.steps, "rungs": rungs}

    def figure(self, *, engine: str = "sim", predicted: LadderResult | None = None, alone: bool = False) -> Picture:
        """The rungs' curves, a panel for each metric, with `predicted` drawn behind them. Needs matplotlib.

        `alone`: the reference and each fault alone, which are left out otherwise.
        """
        from skewsim.runs.figures import curves_figure

        where = "" if engine == "sim" else f" on {engine}"
        about = "each fault alone" if alone else "initial V1, then the fixes one by one"
        title = f"{self.objective.upper()}, {seeds_in_words(self.seeds)}{where}: {about}"
        first = self.rungs[0].name
        shown = {name: rows for name, rows in self.records.items() if name == first or (name in ALONE) == alone}
        return curves_figure(shown, title=title, predicted=predicted.records if predicted else None)

    def _repr_html_(self) -> str:
        columns = ("rung", "reward", "", "clip rate", "k3", "lag", "reference band")
        rows = [
            (
                r.name,
                r.reward_final,
                bar(r.reward_final or 0.0),
                r.clip_rate,
                r.kl_k3,
                r.lag,
                r.verdict if n else "itself",
            )
            for n, r in enumerate(self.rungs)
        ]
        said = f"{self.objective.upper()}, {seeds_in_words(self.seeds)}, {self.steps} steps: means over the last tenth"
        return heading(said) + table(columns, rows)


class Ladder:
    """The scenarios of a ladder: `ensemble()` trains them, `result(records)` judges them."""

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
        """The rungs ready to train: simulated side by side, or, given real engines, one after another. Needs torch."""
        from skewsim.runs.ensemble import Ensemble, Relay

        if engine is not None:
            return Relay(self.scenarios, seeds=self.seeds, engine=engine, state=state)
        return Ensemble(self.scenarios, seeds=self.seeds, state=state)

    def check_memory(self) -> None:
        """UserError if the rungs together are too large for the memory that is free. Needs torch."""
        from skewsim.learn.memory import check_memory, free_on

        check_memory(self._sizes(), free_on(self.scenarios[0].device))

    def checkpoint_bytes(self) -> int:
        """Of the largest checkpoint, with all rungs in it; nothing is loaded for it. Needs torch."""
        return sum(size.state for size in self._sizes())

    def _sizes(self) -> list[StepSize]:
        from skewsim.learn.memory import StepSize

        return [StepSize.before(each, members=len(self.seeds)) for each in self.scenarios]

    def run(self) -> LadderResult:
        """Train all rungs on the simulated engine, side by side, and judge them. Needs torch."""
        ensemble, records = self.ensemble(), list[StepRecord]()
        while ensemble.alive:
            records += ensemble.step()
        return self.result(records)

    def result(self, records: Iterable[StepRecord]) -> LadderResult:
        """Judge the rungs by their records, just made or read from a run folder; needs no torch."""
        by_name: dict[str, list[StepRecord]] = {s.name: [] for s in self.scenarios}
        for record in records:
            by_name[record.scenario].append(record)
        reference = by_name[self.scenarios[0].name]
        band = _band(last_tenth(reference, self.steps)) if len(self.seeds) > 1 else None
        rungs = [_rung(name, found, reference, band, self.steps) for name, found in by_name.items()]
        return LadderResult(self.objective, len(self.seeds), self.steps, rungs, by_name)


def _rung(
    name: str, records: list[StepRecord], reference: list[StepRecord], band: tuple[float, float] | None, steps: int
) -> Rung:
    tail = last_tenth(records, steps)
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
        inside_reference_band=None if band is None else reward is not None and band[0] <= reward <= band[1],
        identical_to_reference=_numbers(records) == _numbers(reference),
        diverged=any(r.diverged for r in records),
    )


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
    """Every number that a run computed, except the time it took."""
    return {(r.seed, r.step): {k: v for k, v in r.metrics.items() if not k.startswith("time/")} for r in records}
