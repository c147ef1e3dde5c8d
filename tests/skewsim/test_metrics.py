"""Claims about the metrics: each equals its formula, and the laws of Gaussian noise give the published figures."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skewsim.skew import metrics

from . import oracles

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_skew_metric_equals_its_float64_formula(seed):
    p = oracles.problem(seed)
    found = metrics.skew_metrics(torch.tensor(p.trainer), torch.tensor(p.engine), torch.tensor(p.mask))
    expected = oracles.skew(p.trainer, p.engine, p.mask)
    assert list(found) == list(expected) == list(metrics.SKEW_KEYS)
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_numpy_arrays_and_tensors_give_the_same_numbers():
    p = oracles.problem(0)
    from_numpy = metrics.skew_metrics(p.trainer[:, ::-1], p.engine[:, ::-1], p.mask[:, ::-1] > 0)
    from_torch = metrics.skew_metrics(*(torch.tensor(x[:, ::-1].copy()) for x in (p.trainer, p.engine, p.mask)))
    assert from_numpy == from_torch
    assert all(type(value) is float for value in from_numpy.values())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("leading", [(), (3,)], ids=["one", "stacked"])
def test_without_torch_the_numbers_are_the_same_up_to_rounding(seed, leading):
    p = oracles.problem(seed)
    arrays = [np.broadcast_to(x, (*leading, *x.shape)) for x in (p.trainer, p.engine, p.mask)]
    alone = metrics.batched_skew_metrics(*arrays)
    with_torch = metrics.batched_skew_metrics(*(torch.tensor(x) for x in arrays))
    assert list(alone) == list(with_torch)
    for name, value in alone.items():
        assert isinstance(value, np.ndarray | np.generic)
        np.testing.assert_allclose(value, with_torch[name].numpy(), rtol=1e-12, err_msg=name)


def test_without_torch_everything_works_on_arrays(monkeypatch):
    p = oracles.problem(1)
    p.engine[0, 0] = np.nan

    def everything():
        d = p.trainer - p.engine
        yield from metrics.skew_metrics(p.trainer, p.engine, p.mask).values()
        yield from metrics.skew_metrics(p.trainer, p.engine, 0 * p.mask).values()
        yield metrics.count_nonfinite(p.trainer, p.engine, p.mask)
        yield metrics.expected_skew_variance(np.exp(p.trainer[0]), 1, 0.1)
        yield from (x for row in metrics.by_probability(p.trainer, d, p.mask) for x in vars(row).values())

    with_torch = list(everything())
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_allclose(list(everything()), with_torch, rtol=1e-12)


def test_a_float32_batch_is_measured_in_float64():
    engine = torch.full((1, 3), -1.0)
    trainer = engine + torch.tensor([[1e-4, -1e-4, 0.0]])
    d = trainer.double() - engine.double()
    assert metrics.skew_metrics(trainer, engine, torch.ones(1, 3))["kl_k3"] == pytest.approx(
        (d.square() / 2).mean().item(), rel=1e-4
    )


def test_a_member_is_measured_as_if_it_were_alone():
    members = [oracles.problem(seed) for seed in SEEDS]
    stacked = [torch.tensor(np.stack([getattr(p, name) for p in members])) for name in ("trainer", "engine", "mask")]
    together = metrics.batched_skew_metrics(*stacked)
    for e in range(len(members)):
        alone = metrics.skew_metrics(*(x[e] for x in stacked))
        assert {name: value[e].item() for name, value in together.items()} == alone


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_token_that_is_not_finite_is_left_out_and_counted(bad):
    p = oracles.problem(3)
    i, t = oracles.cells(p.mask)[2]
    without = p.mask.copy()
    without[i, t] = 0
    expected = metrics.skew_metrics(p.trainer, p.engine, without)
    p.engine[i, t] = bad
    assert metrics.skew_metrics(p.trainer, p.engine, p.mask) == expected
    assert metrics.count_nonfinite(p.trainer, p.engine, p.mask) == 1
    assert metrics.count_nonfinite(p.trainer, p.engine, without) == 0


def test_nothing_to_measure_is_nan_and_not_zero():
    nothing = metrics.skew_metrics(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4))
    assert all(math.isnan(value) for value in nothing.values())


def test_equal_policies_have_no_skew():
    lp = -np.random.default_rng(0).exponential(1.0, (4, 5))
    found = metrics.skew_metrics(lp, lp, np.ones((4, 5)))
    ones = dict.fromkeys(("mult_prob_error", "ratio_mean", "ess", "ess_seq", "ppl_ratio", "pearson"), 1.0)
    assert found == pytest.approx(dict.fromkeys(found, 0.0) | ones, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), drift=st.floats(0.0, 3.0))
def test_bounds_that_hold_for_any_logprobs(seed, drift):
    p = oracles.problem(seed, drift=drift)
    found = metrics.skew_metrics(p.trainer, p.engine, p.mask)
    tokens, sequences = p.mask.sum(), (p.mask.sum(-1) > 0).sum()
    assert found["kl_k3"] >= 0
    assert found["kl_k1"] == -found["bias"]
    assert found["mult_prob_error"] >= max(1.0, found["ratio_mean"]) - 1e-12
    assert abs(found["bias"]) <= found["logprob_diff_mean"] <= found["logprob_diff_max"]
    assert 1 / tokens - 1e-12 <= found["ess"] <= 1 + 1e-12
    assert 1 / sequences - 1e-12 <= found["ess_seq"] <= 1 + 1e-12
    assert found["ess"] == pytest.approx(found["ratio_mean"] ** 2 / (1 + found["chi2_token"]), rel=1e-9)


def test_effective_sample_size_survives_ratios_that_overflow():
    d = torch.tensor([[800.0, 800.0, 0.0, 0.0]], dtype=torch.float64)
    assert metrics.skew_metrics(d - 900, torch.full_like(d, -900.0), torch.ones_like(d))["ess"] == pytest.approx(0.5)


def test_by_probability_sorts_tokens_into_the_published_bins():
    probability = np.array([0.005, 0.05, 0.3, 0.7, 0.95, 1.0, 0.3])
    d = np.array([0.4, -0.3, 0.2, 0.1, 0.01, -0.03, -0.1])
    table = metrics.by_probability(np.log(probability), d)
    assert [(b.low, b.high) for b in table] == [(0, 0.01), (0.01, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.0)]
    assert [b.tokens for b in table] == [1, 1, 2, 1, 2]
    assert [b.abs_mean for b in table] == pytest.approx([0.4, 0.3, 0.15, 0.1, 0.02])
    assert [b.bias for b in table] == pytest.approx([0.4, -0.3, 0.05, 0.1, -0.01])
    masked = metrics.by_probability(np.log(probability), d, probability > 0.01)
    assert masked[0].tokens == 0
    assert math.isnan(masked[0].abs_mean)


# Laws; the measured figures are those of github.com/AknA13/train-infer-mismatch (Qwen3-1.7B in bfloat16)


def test_laws_give_the_figures_measured_on_a_bfloat16_model():
    assert metrics.expected_kl(0.0449) == pytest.approx(1.00e-3, rel=0.02)
    assert metrics.expected_ess_seq(0.0449, 1506) == pytest.approx(0.0496, rel=0.05)


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [((0.999, 1.001), 0.46), ((0.9999, 1.0001), 0.05), ((0.99, 1.01), 1.0), ((1 - 3e-4, 1 + 4e-4), 0.16)],
    ids=["verl", "slime", "SkyRL", "GSPO paper"],
)
def test_noise_alone_passes_each_frameworks_bounds_at_the_published_rate(bounds, kept):
    assert metrics.expected_kept(0.0449, 1506, *bounds) == pytest.approx(kept, abs=0.005)


def test_noise_of_one_size_on_the_logits_falls_on_improbable_tokens():
    rng, sigma = np.random.default_rng(0), 0.155
    for p_token, published in ((0.005, 0.123), (0.05, 0.118), (0.3, 0.087), (0.7, 0.037)):
        p = np.full(50, (1 - p_token) / 49)
        p[0] = p_token
        eta = sigma * rng.normal(size=(40_000, 50))
        d = np.log(p[0]) - np.log(np.exp(np.log(p) + eta) @ np.ones(50)) + eta[:, 0] - np.log(p[0])
        variance = metrics.expected_skew_variance(p, 0, sigma)
        assert d.var() == pytest.approx(variance, rel=0.05)  # 0.7 % Monte Carlo, the rest second order in sigma
        assert math.sqrt(2 * variance / math.pi) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_laws_hold_for_simulated_gaussian_skew(sigma):
    rng, tokens = np.random.default_rng(1), 40
    d = rng.normal(-(sigma**2) / 2, sigma, (20_000, tokens))  # trainer - engine under the engine: E rho = 1
    engine = np.full_like(d, -1.0)
    found = metrics.skew_metrics(engine + d, engine, np.ones_like(d))
    assert found["kl_k3"] == pytest.approx(metrics.expected_kl(sigma), rel=0.02)
    assert found["kl_k1"] == pytest.approx(metrics.expected_kl(sigma), rel=0.15)
    assert found["ratio_mean"] == pytest.approx(1.0, abs=5 * sigma / math.sqrt(d.size))
    assert found["ess_seq"] == pytest.approx(metrics.expected_ess_seq(sigma, tokens), rel=0.03)
    kept = np.mean((np.exp(d.mean(-1)) >= 0.999) & (np.exp(d.mean(-1)) <= 1.001))
    assert kept == pytest.approx(metrics.expected_kept(sigma, tokens, 0.999, 1.001), abs=0.01)


def test_the_table_knows_every_skew_metric_once():
    assert set(metrics.SKEW_KEYS.values()) <= set(metrics.METRICS)
    assert all(key == metric.key and metric.formula and metric.description for key, metric in metrics.METRICS.items())
