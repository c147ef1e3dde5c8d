"""Numbers kept for the screen: bounded, and still the whole run."""

from __future__ import annotations

import numpy as np
import pytest

from skewsim.records import StepRecord
from tui.series import Series


def feed(series: Series, steps: range) -> None:
    for step in steps:
        records = [StepRecord(step, "scripted", seed, {"reward/mean": step / 1000}) for seed in series.seeds]
        series.append(records)  # type: ignore[arg-type]


def test_memory_stays_flat_over_a_long_run_that_keeps_its_whole_shape() -> None:
    series = Series((0, 1), capacity=64)
    feed(series, range(64))
    full = series.nbytes
    feed(series, range(64, 10_000))
    assert series.nbytes == full
    assert len(series) <= 64
    assert series.steps[0] == 0
    assert series.steps[-1] > 9_700
    assert np.allclose(series.mean("reward/mean"), series.steps / 1000)
    assert series.step == 9_999


def test_values_that_are_missing_or_not_finite_are_gaps() -> None:
    series = Series((7,))
    for step, value in enumerate([0.5, None, float("nan"), float("inf"), 0.7]):
        series.append([StepRecord(step, "scripted", 7, {"reward/mean": value})])
    assert np.isnan(series.values("reward/mean")[0]).tolist() == [False, True, True, True, False]
    assert series.now("reward/mean") == pytest.approx(0.7)
    assert series.now("no/such") is None


def test_a_diverged_seed_is_remembered_and_the_others_go_on() -> None:
    series = Series((1, 2))
    dead = StepRecord(0, "scripted", 1, {"reward/mean": None}, diverged="loss is nan")
    series.append([dead, StepRecord(0, "scripted", 2, {"reward/mean": 0.5})])
    series.append([StepRecord(1, "scripted", 2, {"reward/mean": 0.6})])
    assert series.diverged == {1: (0, "loss is nan")}
    assert series.mean("reward/mean").tolist() == [0.5, 0.6]
