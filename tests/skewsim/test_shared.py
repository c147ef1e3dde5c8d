"""Runs that share a trainer while they are equal have the numbers that each would have alone, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import skewsim.learn.trainer as module
from skewsim.learn.trainer import Trainer
from skewsim.runs.shared import Shared, SharedTrainer
from skewsim.settings import Scenario

SMALL = Scenario().with_values(
    {"policy": "random", "task.response_length": 4, "trainer.num_prompts": 2, "trainer.num_generations": 2}
)
TOGGLED = {"engine.temperature": 0.7, "engine.lag": 1}
SEEDS = (3, 4)


def named(name: str, **values: Any) -> Scenario:
    return SMALL.with_values({"name": name, "engine.lag": 2, "engine.enable_prefix_caching": True, **values})


def numbers(records: list[Any]) -> list[Any]:
    return [
        (r.scenario, r.seed, r.step, r.events, {k: v for k, v in r.metrics.items() if k[:5] != "time/"})
        for r in records
    ]


def alone(name: str, steps: int, toggle_at: int | None) -> list[Any]:
    trainer, found = Trainer(named(name), seeds=SEEDS), []
    for step in range(steps):
        if step == toggle_at:
            trainer.toggle(named(name, **TOGGLED))
        found += numbers(trainer.step())
    return found


@pytest.fixture(scope="module")
def expected() -> dict[int | None, list[Any]]:
    """The curve of a run alone that is toggled before so many steps."""
    return {at: alone("x", 3, at) for at in (*range(3), None)}


@settings(max_examples=4)
@given(st.lists(st.sampled_from("abc"), max_size=9), st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)))
def test_whatever_their_order_and_their_toggles_each_run_has_its_own_curve(
    expected: dict[int | None, list[Any]], order: list[str], toggles: dict[str, int]
) -> None:
    shared = Shared()
    runs = {name: shared.begin(named(name), seeds=SEEDS) for name in "abc"}
    found: dict[str, list[Any]] = {name: [] for name in runs}
    for name in [*order, *"abc" * 3]:
        run = runs[name]
        if run.step_number == 3:
            continue
        if toggles.get(name) == run.step_number:
            run.toggle(named(name, **TOGGLED))
        found[name] += numbers(run.step())
        assert run.look().step == run.step_number - 1
        assert run.look().scenario.name == name
    for name, rows in found.items():
        assert [("x", *row[1:]) for row in rows] == expected[toggles.get(name)]


def test_equal_curves_are_computed_once_until_the_first_toggle(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []
    step = Trainer.step

    def counted(trainer: Trainer) -> Any:
        computed.append(trainer.scenario.name)
        return step(trainer)

    monkeypatch.setattr(module.Trainer, "step", counted)
    shared = Shared()
    ours, theirs = (shared.begin(named(name), seeds=SEEDS) for name in ("initial_v1", "yours"))
    other = shared.begin(named("reference", **TOGGLED), seeds=SEEDS)
    for at in range(4):
        if at == 2:
            theirs.toggle(named("yours", **TOGGLED))
        for run in (other, ours, theirs):
            run.step()
    assert computed == ["reference", "initial_v1"] * 2 + ["reference", "initial_v1", "yours"] * 2


def test_a_run_that_begins_when_the_other_has_gone_on_is_computed_by_itself() -> None:
    shared = Shared()
    first = shared.begin(named("first"), seeds=SEEDS)
    first.step()
    second = shared.begin(named("second"), seeds=SEEDS)
    assert second.step_number == 0
    assert numbers(second.step()) == [("second", *row[1:]) for row in alone("x", 1, None)]


def test_a_run_that_has_ended_leaves_the_trainer_to_the_other() -> None:
    shared = Shared()
    runs: list[SharedTrainer] = [shared.begin(named(name), seeds=SEEDS) for name in ("a", "b")]
    found = [numbers(run.step()) for run in runs][1]
    runs[0].close()
    found += numbers(runs[1].step())
    assert [("x", *row[1:]) for row in found] == alone("x", 2, None)
