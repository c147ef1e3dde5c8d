"""A figure's curves are the records' numbers, and every curve can be told from every other without colour."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from skewsim.records import StepRecord
from skewsim.runs.figures import COLOURS, DASHES, PANELS, curve, curves_figure, letter, spread


def rows(values: dict[int, list[float | None]], key: str = "reward/mean") -> list[StepRecord]:
    return [StepRecord(k, "s", seed, {key: v}) for seed, line in values.items() for k, v in enumerate(line)]


def test_a_curve_is_the_mean_and_the_range_over_seeds() -> None:
    line = curve(rows({0: [0.0, 1.0, 0.5], 1: [1.0, 1.0, 0.0]}), "reward/mean")
    np.testing.assert_array_equal(line.steps, [0, 1, 2])
    np.testing.assert_allclose(line.mean, [0.5, 1.0, 0.25])
    np.testing.assert_allclose(line.low, [0.0, 1.0, 0.0])
    np.testing.assert_allclose(line.high, [1.0, 1.0, 0.5])


def test_a_member_that_diverged_leaves_the_curve_to_the_others() -> None:
    line = curve(rows({0: [0.2, 0.2, 0.2, 0.2], 1: [0.4]}), "reward/mean")
    np.testing.assert_allclose(line.mean, [0.3, 0.2, 0.2, 0.2])


def test_a_missing_number_is_a_gap() -> None:
    line = curve(rows({0: [0.2, None, 0.4]}), "reward/mean")
    assert math.isnan(line.mean[1])


@given(st.lists(st.floats(0, 1), min_size=40, max_size=80))
def test_smoothing_is_a_running_mean_over_a_twentieth_of_the_steps(values: list[float]) -> None:
    line = curve(rows({0: list(values)}), "reward/mean")
    half = len(values) // 20 // 2
    expected = [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    np.testing.assert_allclose(line.mean, expected, atol=1e-9)


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.2))
def test_letters_are_spread_apart_in_order_and_without_moving_their_mean(heights: list[float], gap: float) -> None:
    placed = spread(sorted(heights), gap)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(placed))
    if heights:
        assert np.mean(placed) == pytest.approx(np.mean(heights))


def test_letters_that_are_apart_stay_where_they_are() -> None:
    assert spread([0.1, 0.5, 0.9], 0.05) == pytest.approx([0.1, 0.5, 0.9])


def test_six_curves_differ_in_colour_and_dashes_and_letter() -> None:
    assert len(set(COLOURS[:6])) == len(set(DASHES[:6])) == len({letter(i) for i in range(6)}) == 6


def test_the_figure_is_written_whole_also_with_gaps_zeros_and_a_run_without_records(tmp_path: Path) -> None:
    def record(seed: int, step: int, value: float | None) -> StepRecord:
        return StepRecord(step, "s", seed, dict.fromkeys(PANELS, value))

    runs = {
        "plain": [record(seed, step, 0.1 * seed + step) for seed in range(2) for step in range(30)],
        "zero": [record(0, step, 0.0) for step in range(30)],
        "gaps": [record(0, step, None) for step in range(3)],
        "empty": [],
    }
    path = curves_figure(runs, title="test").save(tmp_path / "figure.png")
    picture = imread(path)
    assert picture.shape[0] > 500
    assert picture.shape[1] > 1000
    assert picture.min() < picture.max()
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]
