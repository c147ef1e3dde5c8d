"""The gate: limits by any framework's name, one exit code."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest

from skewsim.diagnose import count_values
from skewsim.errors import UserError
from skewsim.skew.gate import gate, metric_names, table_metrics
from skewsim.skew.metrics import skew_metrics
from skewsim.skew.tokens import TokenTable


def table(sigma: float, *, seed: int = 0) -> TokenTable:
    rng = np.random.default_rng(seed)
    shape = (40, 25)
    engine = -2.0 - rng.exponential(1.0, shape)
    return TokenTable.from_rollouts(
        tokens=np.zeros(shape),
        mask=rng.random(shape) < 0.9,
        engine_logprobs=engine,
        trainer_logprobs=engine + rng.normal(-(sigma**2) / 2, sigma, shape),
    )


def test_a_limit_kept_passes_and_a_limit_broken_fails_with_code_one() -> None:
    quiet = table(0.03)
    assert gate(quiet, maximum=["kl_k3=1e-3"], minimum=["ess=0.9"]).exit_code == 0
    report = gate(table(0.3), maximum=["kl_k3=1e-3", "logprob_diff_max=100"])
    assert report.exit_code == 1
    assert [check.passed for check in report.checks] == [False, True, True, True], (
        "two limits, and two that hold always"
    )


def test_other_frameworks_names_mean_the_same_metric() -> None:
    rows = table(0.1)
    names = ["skew/kl_k3", "gen_kl_error", "rollout_corr/k3_kl", "mismatch_kl"]
    values = {gate(rows, maximum=[f"{name}=1"]).checks[0].value for name in names}
    assert len(values) == 1
    assert metric_names()["token_mult_prob_error"] == "mult_prob_error"


def test_the_metrics_of_a_table_do_not_depend_on_the_order_of_its_rows() -> None:
    rows = table(0.2)
    shuffled = rows.select(np.random.default_rng(1).permutation(len(rows)))
    for key, value in table_metrics(rows).items():
        assert table_metrics(shuffled)[key] == pytest.approx(value, abs=1e-12), key


def test_the_metrics_are_those_of_the_rollouts_the_table_came_from() -> None:
    rng = np.random.default_rng(3)
    engine, trainer, mask = -rng.exponential(1, (8, 5)), -rng.exponential(1, (8, 5)), rng.random((8, 5)) < 0.7
    rows = TokenTable.from_rollouts(
        tokens=np.zeros((8, 5)), mask=mask, engine_logprobs=engine, trainer_logprobs=trainer
    )
    assert table_metrics(rows) == pytest.approx(skew_metrics(trainer, engine, mask.astype(float)))


def test_rows_without_a_number_are_counted_and_left_out() -> None:
    rows = table(0.1)
    rows.trainer_logprob[:7] = np.nan
    report = gate(rows, maximum=["kl_k3=1"])
    assert report.left_out == 7
    assert math.isfinite(report.checks[0].value)
    assert json.loads(json.dumps(report.to_json()))["left_out"] == 7


@pytest.mark.parametrize("limit", ["kl_k3", "nope=1", "kl_k3=abc", "kl_k3=nan", "=1"])
def test_a_wrong_limit_is_the_users_mistake(limit: str) -> None:
    with pytest.raises(UserError, match="gate"):
        gate(table(0.1), maximum=[limit])


def test_nothing_to_check_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="no limit"):
        gate(table(0.1))
    empty = TokenTable.empty()
    with pytest.raises(UserError, match="finite"):
        gate(empty, maximum=["kl_k3=1"])


@pytest.mark.parametrize(
    ("value", "count"),
    [(np.nan, "nonfinite"), (-np.inf, "nonfinite"), (1.0, "placeholder"), (-9999.0, "placeholder")],
)
def test_values_that_are_no_log_probabilities_fail_unless_allowed_and_are_in_no_metric(
    value: float, count: str
) -> None:
    clean, rows = table(0.1), table(0.1)
    rows.engine_logprob[5:9] = value
    keep = np.ones(len(clean), dtype=bool)
    keep[5:9] = False
    _, filled = count_values(rows)
    report = gate(rows, maximum=["kl_k3=1"], placeholder=filled)
    assert report.exit_code == 1
    assert {check.metric: check.value for check in report.checks}[count] == 4
    assert report.checks[0].value == pytest.approx(table_metrics(clean.select(keep))["kl_k3"])
    assert gate(rows, maximum=["kl_k3=1", f"{count}=4"], placeholder=filled).exit_code == 0


def test_metrics_of_ragged_sequences_equal_those_of_padded_ones_and_take_the_memory_of_their_rows() -> None:
    rng = np.random.default_rng(0)
    lengths = np.r_[30_000, np.ones(5_000, dtype=int), rng.integers(1, 50, 100)]
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    rows, order = len(sequence), rng.permutation(lengths.sum())
    engine = np.log(rng.uniform(0.01, 1, rows))
    trainer = engine + rng.normal(0, 0.02, rows)
    table = TokenTable(
        sequence=sequence[order], position=np.zeros(rows), token=np.zeros(rows), engine_logprob=engine[order],
        trainer_logprob=trainer[order], weight_version=np.zeros(rows),
    )  # fmt: skip
    tracemalloc.start()
    found = table_metrics(table)
    assert tracemalloc.get_traced_memory()[1] < 100 * 8 * rows  # padded: 5,101 x 30,000 values in each array
    tracemalloc.stop()
    few = sequence > 5_000
    place = (sequence[few] - 5_001, np.concatenate([np.arange(length) for length in lengths[5_001:]]))
    padded = [np.zeros((100, 50)) for _ in range(3)]
    for array, values in zip(padded, (trainer[few], engine[few], np.ones(few.sum())), strict=True):
        array[place] = values
    small = table_metrics(table.select(table.sequence > 5_000))
    assert small == pytest.approx(skew_metrics(*padded), rel=1e-12)
    assert found["logprob_diff_max"] == np.abs(trainer - engine).max()
