"""How a run ended: collapse, settling, the fall, and how early a number warned, against curves made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewsim.runs.outcome import LEAST, WINDOW, Watch, fall, judge, warning, windowed


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


def test_a_number_warns_where_it_leaves_the_band_of_its_own_first_steps_and_stays_out() -> None:
    start = [1.0, 1.1] * 5
    assert warning(np.array([*start, *[1.05] * 10, *[3.0] * 5])) == 20
    assert warning(np.array([*start, *[1.05] * 10, 3.0, 1.05, 3.0, 1.05])) is None
    assert warning(np.array(start)) is None


def test_the_lead_is_the_number_of_steps_between_the_warning_and_the_fall() -> None:
    reward = [0.8] * 30 + [0.0] * 10
    curves = {"reward/mean": reward, "skew/kl_k3": [0.001, 0.0011] * 8 + [0.01] * 24, "policy/entropy": [1.0] * 40}
    found = judge(curves, steps=40)
    assert (found.collapsed, found.fell) == (34, 30)
    assert found.leads == {"skew/kl_k3": 14, "policy/entropy": None}
    assert found.false_alarms == {"skew/kl_k3": False, "policy/entropy": False}


def test_a_warning_without_a_collapse_is_a_false_alarm() -> None:
    curves = {"reward/mean": [0.8] * 40, "skew/kl_k3": [0.001, 0.0011] * 8 + [0.01] * 24}
    assert judge(curves, steps=40).false_alarms == {"skew/kl_k3": True}


def test_the_final_reward_is_of_the_last_tenth_of_the_planned_steps_counted_from_its_own_end() -> None:
    assert judge({"reward/mean": [0.0] * 9 + [1.0] * 3}, steps=30).final_reward == 1.0
