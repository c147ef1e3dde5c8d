"""How a run ended: collapse, settling, the fall, and how early a number warned, against curves made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewsim.runs.outcome import LEAST, WINDOW, HealthyBand, Watch, fall, judge, windowed


def watched(rewards: list[float | None], *, diverged: bool = False) -> Watch:
    watch = Watch()
    for n, value in enumerate(rewards):
        watch.add(value, diverged=diverged and n == len(rewards) - 1)
    return watch


def test_a_reward_that_halves_has_collapsed_at_the_step_at_which_its_mean_does() -> None:
    assert watched([0.8] * 20 + [0.0] * 10).collapsed == 24  # five of ten are 0: the mean is 0.4


@pytest.mark.parametrize("rewards", [[0.8] * 40, [0.8] * 20 + [0.5] * 20, [0.2, 0.4, 0.6, 0.8] * 10, [0.0] * 40])
def test_a_reward_that_stays_rises_or_falls_by_less_than_half_has_not(rewards: list[float | None]) -> None:
    assert watched(rewards).collapsed is None


def test_a_reward_that_was_always_rare_is_not_said_to_collapse() -> None:
    assert watched([LEAST * 0.9] * 20 + [0.0] * 20).collapsed is None


def test_a_member_that_diverged_has_collapsed_at_that_step() -> None:
    assert watched([0.5] * 3, diverged=True).collapsed == 2


@pytest.mark.parametrize(("rewards", "settled"), [([1.0] * 30, 19), ([0.0] * 30, 19), ([0.9] * 30, None)])
def test_it_has_settled_where_nothing_is_left_to_learn_from(rewards: list[float | None], settled: int | None) -> None:
    assert watched(rewards).settled == settled


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_the_windowed_reward_is_the_mean_of_the_last_steps(values: list[float]) -> None:
    expected = [np.mean(values[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(values))]
    np.testing.assert_allclose(windowed(np.array(values)), expected, atol=1e-9)


@given(st.lists(st.floats(0, 1), min_size=WINDOW + 1, max_size=60))
def test_the_fall_comes_before_the_collapse(values: list[float]) -> None:
    if (at := watched(list(values)).collapsed) is not None:
        assert fall(np.array(values), at) < at


def test_the_reward_falls_at_the_last_step_within_a_tenth_of_the_highest() -> None:
    assert fall(np.array([0.8] * 20 + [0.0] * 10), 24) == 20  # the mean is 0.72 there, and 0.64 one step later


def band() -> HealthyBand:
    return HealthyBand([np.full(20, 1.0 + n / 10) for n in range(5)])


def test_a_number_warns_where_it_leaves_the_band_of_healthy_runs_and_stays_out() -> None:
    assert band().warning(np.array([1.2] * 10 + [3.0] * 5)) == 10
    assert band().warning(np.array([1.2] * 10 + [0.5] * 5)) == 10
    assert band().warning(np.array([1.2] * 10 + [3.0, 3.0, 1.2, 3.0, 3.0])) is None
    assert band().warning(np.array([1.0, 1.4] * 10)) is None


def test_a_healthy_run_is_compared_with_the_others() -> None:
    assert band().warning(np.full(20, 1.4)) is None
    assert band().warning(np.full(20, 1.4), healthy=True) == 0
    assert band().warning(np.full(20, 1.3), healthy=True) is None


def test_too_few_healthy_runs_are_no_band() -> None:
    few = HealthyBand([np.full(20, 1.0 + n / 10) for n in range(3)])
    assert few.warning(np.full(20, 9.0)) is None
    assert HealthyBand([]).warning(np.full(20, 9.0)) is None


@given(st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=9), min_size=5, max_size=8))
def test_the_band_without_a_run_is_that_of_the_other_runs(curves: list[list[float]]) -> None:
    arrays = [np.array(curve) for curve in curves]
    for n, own in enumerate(arrays):
        others = HealthyBand([each for m, each in enumerate(arrays) if m != n])
        assert HealthyBand(arrays).warning(own, healthy=True) == others.warning(own)


def test_the_final_reward_is_of_the_last_tenth_of_the_planned_steps_counted_from_its_own_end() -> None:
    assert judge([0.0] * 9 + [1.0] * 3, steps=30).final_reward == 1.0
