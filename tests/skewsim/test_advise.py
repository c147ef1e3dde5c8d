"""`advise` against published figures, against simulation, and against each framework's own rule stated again."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewsim.errors import UserError
from skewsim.skew.advise import (
    BEARABLE,
    RULES,
    AdviseReport,
    AdviseRow,
    advise,
    effect,
    fires,
    judge,
    not_reached,
    simulate,
)
from skewsim.skew.drawn import Drawn, mixture_draw
from skewsim.skew.effect import Effect
from skewsim.skew.fitting import fit_profile
from skewsim.skew.healthy import ClosedForm
from skewsim.skew.metrics import skew_metrics
from skewsim.skew.mixture import expected, sigma_of, token_number
from skewsim.skew.noise_level import noise_of, sigma_by_name
from skewsim.skew.rules import Rule
from skewsim.skew.tokens import TokenTable

from .framework_rules import touched

NAMES = [f"{rule.framework}, {rule.rule}" for rule in RULES if rule.framework != "any"]
WITH_A_SETTING = [rule for rule in RULES if rule.framework != "any"]


def row(report: AdviseReport, framework: str, rule: str) -> AdviseRow:
    return next(row for row in report.rows if row.framework == framework and row.rule.startswith(rule))


def given_skew(d: np.ndarray) -> Drawn:
    """Sequences that are there already, as the rules look at them."""
    return Drawn.of(lambda rng, rows, tokens: d, len(d), d.shape[1], seed=0)


def logprobs(d: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(old, engine, advantages) with this skew; every advantage negative, for the masks of negative advantages."""
    engine = -np.random.default_rng(seed).exponential(1.0, d.shape)
    return engine + d, engine, -np.ones(len(d))


def table(d: np.ndarray) -> TokenTable:
    old, engine, _ = logprobs(d)
    ones = np.ones(d.shape)
    return TokenTable.from_rollouts(tokens=ones * 0, mask=ones, engine_logprobs=engine, trainer_logprobs=old)


# Published figures


def test_the_published_row_is_reproduced() -> None:
    """bf16 vLLM against bf16 Hugging Face, Qwen3-1.7B: rms 0.0449, mean length 1506, sequence ESS 0.048."""
    report = advise(0.0449, 1506)
    assert 1 - row(report, "verl", "geometric").fired == pytest.approx(0.46, abs=0.005)
    assert 1 - row(report, "slime", "geometric").fired == pytest.approx(0.05, abs=0.005)
    assert 1 - row(report, "SkyRL", "geometric").fired > 0.9999
    assert 1 - row(report, "GSPO", "paper").fired == pytest.approx(0.16, abs=0.005)
    assert row(report, "any", "sequence weight").ess == pytest.approx(0.048, abs=0.0005)


@pytest.mark.parametrize(("low", "high", "published"), [(0.8, 1.25, 8.233e-3), (1e-9, 2.0, 1.167e-5)])
def test_the_share_of_tokens_outside_a_band_is_within_a_factor_of_two_of_the_published(
    low: float, high: float, published: float
) -> None:
    """AknA13/train-infer-mismatch; a Gaussian of the same rms has 6.7e-7 outside the first band."""
    found = 1 - ClosedForm(0.0449, 1506).inside("token", "d", math.log(low), math.log(high))
    assert published / 2 < found < published * 2


def test_mean_size_and_k3_of_the_mixture_are_the_published_ones() -> None:
    assert expected(0.0449, np.abs) == pytest.approx(0.0139, rel=0.005)
    assert expected(0.0449, lambda d: token_number("k3", d)) == pytest.approx(1.002e-3, rel=0.01)
    assert expected(0.0449, np.exp) == pytest.approx(1.0, abs=1e-9)


def test_verls_sequence_mis_keeps_what_was_measured_within_its_two_bounds() -> None:
    """20.1 % of sequences measured inside [0.5, 2]."""
    assert 1 - row(advise(0.0449, 1506), "verl", "sequence MIS").fired == pytest.approx(0.201, abs=0.02)


# Simulation


@pytest.mark.parametrize(
    ("sigma", "length"),
    [pytest.param(0.0449, 1506, marks=pytest.mark.slow), (0.02, 64), (0.25, 100), (0.8, 3), (0.1, 1)],
)
def test_simulation_confirms_the_closed_forms(sigma: float, length: int) -> None:
    count = 4000
    closed, drawn = advise(sigma, length), simulate(sigma, length, sequences=count, seed=3)
    for exact, found in zip(closed.rows, drawn.rows, strict=True):
        error = math.sqrt(max(exact.fired * (1 - exact.fired), 1e-6) / count)
        assert found.fired == pytest.approx(exact.fired, abs=5 * error + 0.02), exact
        if exact.source.high is not None and exact.source.high < 10:  # without a bound no sample finds the tail
            assert found.ess == pytest.approx(exact.ess, abs=0.06), exact
            assert found.mean_weight == pytest.approx(exact.mean_weight, abs=0.06), exact
            assert found.bias == pytest.approx(exact.bias, abs=0.06), exact


@settings(max_examples=20, deadline=None)
@given(
    sigma=st.floats(0.005, 0.3),
    length=st.integers(1, 3000),
    low=st.floats(-3, -0.01),
    high=st.floats(0.01, 3),
    action=st.sampled_from(["truncate", "mask"]),
    fold=st.sampled_from(["token", "sum"]),
)
def test_moments_of_weights_equal_numerical_integration(
    sigma: float, length: int, low: float, high: float, action: str, fold: str
) -> None:
    form = ClosedForm(sigma, length)
    share, mean, scale = form._components(fold)  # type: ignore[arg-type]
    z = np.linspace(-14, 14, 400_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    found = np.zeros(3)
    for part, centre, width in zip(share, mean, scale, strict=True):
        x = centre + width * z
        exact = np.exp(x)
        inside = (x >= low) & (x <= high)
        w = np.exp(np.clip(x, low, high)) if action == "truncate" else exact * inside
        found += part * np.array([(w * density).sum(), (w**2 * density).sum(), (np.abs(w - exact) * density).sum()])
    got = form.effect(fold, "d", low, high, action)  # type: ignore[arg-type]
    reach = math.sqrt(length) * sigma < 3  # beyond, the integral's own grid ends before the ratio's mean does
    assert [got.mean, got.square] == pytest.approx(found[:2], rel=2e-3, abs=2e-4)
    if fold == "token" or reach:
        assert got.bias == pytest.approx(found[2], rel=5e-3, abs=2e-4)


# Each rule as its framework writes it


@pytest.mark.parametrize("rule", WITH_A_SETTING, ids=NAMES)
@pytest.mark.parametrize("sigma", [0.02, 0.2, 0.6])
def test_a_rule_touches_what_its_frameworks_own_code_touches(rule: Rule, sigma: float) -> None:
    """On random skew of every kind, a bias among them: the share touched, and the weights that are left."""
    rng = np.random.default_rng(int(sigma * 100))
    scale = sigma * rng.choice([0.1, 1.0, 4.0], size=(400, 30))
    d = scale * rng.standard_normal((400, 30)) + rng.normal(0, sigma / 5, (400, 1)) + sigma / 50
    old, engine, advantages = logprobs(d)
    hit, weights = touched(rule.framework, rule.text(rule.low, rule.high), old, engine, advantages)
    data, bounds = given_skew(d), (rule.low, rule.high)
    if rule.framework == "prime-rl":  # a bound on probabilities touches at most what the ratio's distance says
        assert hit.mean() <= fires(rule, data, bounds)
        return
    assert hit.ndim == (2 if rule.per == "tokens" else 1)
    assert hit.mean() == pytest.approx(fires(rule, data, bounds), abs=1e-12)
    found = effect(rule, data, bounds)
    assert found.mean == pytest.approx(weights.mean(), rel=1e-9)
    assert found.square == pytest.approx((weights**2).mean(), rel=1e-9)


def test_every_rule_is_met_by_data_that_it_touches_and_by_data_that_it_leaves_alone() -> None:
    still = simulate(1e-6, 100, sequences=300)
    wide = [simulate(sigma, 100, sequences=300) for sigma in (0.1, 1.0)]  # at 1 no sum is above its cap any more
    fired = {r.source for report in wide for r in report.rows if r.fired > 0}
    assert set(WITH_A_SETTING) <= fired
    assert [r.rule for r in still.rows if r.fired > 0] == []


SUGGESTED = [
    (0.0449, 256),
    *(
        pytest.param(*each, marks=pytest.mark.slow)
        for each in ((0.2, 12), (0.0449, 1506), (0.1, 100), (0.02, 4000), (0.0735, 1000))
    ),
]


@pytest.mark.parametrize(("sigma", "length"), SUGGESTED)
def test_a_suggestion_as_it_is_typed_touches_at_most_twice_what_it_promises(sigma: float, length: int) -> None:
    d = mixture_draw(sigma)(np.random.default_rng(7), max(3_000_000 // length, 3000), length)
    old, engine, advantages = logprobs(d)
    rows = [r for r in advise(sigma, length).rows if r.healthy is not None]
    assert rows
    for found in rows:
        hit, weights = touched(found.framework, found.healthy or "", old, engine, advantages)
        noise = 3 * math.sqrt(found.promised / hit.size)  # of the count itself
        assert hit.mean() <= 2 * found.promised + noise, found.healthy
        before = Effect(found.mean_weight, found.effect.square, found.bias)
        after = Effect(float(weights.mean()), float((weights**2).mean()), abs(1 - float(weights.mean())))
        assert after.harm < before.harm + 0.01, found.healthy


def test_verls_thresholds_are_of_the_inverse_ratio() -> None:
    """`-log ratio` is what verl bounds: low and high change places, which no symmetric default shows."""
    found = row(advise(0.0449, 1506), "verl", "geometric")
    assert found.bounds is not None
    low, high = found.bounds
    assert low is not None
    assert high is not None
    assert 1 - low > high - 1  # the mean log-ratio of healthy data is negative
    typed = [float(x) for x in (found.healthy or "").rpartition("=")[2].split("_")]
    assert typed == pytest.approx([1 / high, 1 / low], abs=1e-5)


# Harm


def test_a_summed_weight_on_long_data_is_sent_to_tokens_or_means_though_it_hardly_fires() -> None:
    for found in (row(advise(0.0735, 9000), who, "sequence") for who in ("verl", "SkyRL", "slime", "TRL")):
        assert found.fired < 0.001
        assert found.mean_weight < 0.0015
        assert found.ess < 0.001
        assert found.bias > 0.99
        assert found.bounds is None
        assert found.instead is not None
        assert "none helps" in found.advice
    assert row(advise(0.0735, 9000), "verl", "sequence TIS").mean_weight == pytest.approx(0.0007, abs=1e-4)
    assert row(advise(0.0735, 1000), "verl", "sequence TIS").instead == "rollout_is=token"


def test_a_summed_weight_on_short_or_quiet_data_may_stay_or_is_widened_to_least_harm() -> None:
    assert row(advise(0.01, 100), "verl", "sequence TIS").advice == "as it is"
    found = row(advise(0.0449, 256), "verl", "sequence MIS")
    assert found.bounds is not None
    data = ClosedForm(0.0449, 256)
    for part in np.linspace(0.2, 3.0, 15):
        low, high = (b ** float(part) for b in found.bounds if b is not None)
        assert effect(found.source, data, found.bounds).harm <= effect(found.source, data, (low, high)).harm + 0.01


@settings(max_examples=25, deadline=None)
@given(sigma=st.floats(0.003, 0.3), length=st.integers(1, 4000), rule=st.sampled_from(RULES))
def test_no_advice_does_more_harm_than_the_default(sigma: float, length: int, rule: Rule) -> None:
    data = ClosedForm(sigma, length)
    found = judge(rule, data, 1e-3)
    if found.bounds is not None:
        assert effect(rule, data, found.bounds).harm < found.effect.harm
        assert fires(rule, data, found.bounds) <= 1.05 * found.promised
    elif found.instead is None and not rule.instead:
        wide = not_reached(rule, data, 1e-3)
        assert found.effect.harm <= effect(rule, data, wide).harm + 1e-3
    if found.instead is not None and rule.action != "reject":
        assert found.effect.harm > BEARABLE


def test_wider_noise_fires_more_and_longer_sequences_lose_effective_samples() -> None:
    quiet, loud, long = advise(0.02, 500), advise(0.1, 500), advise(0.1, 5000)
    assert row(quiet, "verl", "sequence TIS").fired < row(loud, "verl", "sequence TIS").fired
    assert row(long, "any", "sequence").ess < row(loud, "any", "sequence").ess < row(quiet, "any", "sequence").ess


def test_json_has_exactly_the_promised_keys() -> None:
    data = json.loads(json.dumps(advise(0.0449, 1506).to_json(), allow_nan=False))
    assert list(data) == ["sigma", "length", "source", "rows"]
    said = {"framework", "rule", "setting", "default", "example", "per", "advice", "suggested", "suggested_touches"}
    for entry in data["rows"]:
        assert set(entry) - {"clipped", "kept"} == said | {"ess", "mean_weight", "bias"}
        assert len({"clipped", "kept"} & set(entry)) == 1
        for key in ("ess", "mean_weight", "bias"):
            assert 0 <= entry[key] <= 1 + 1e-5  # a lower bound lifts a mean weight a little above 1
        assert 0 <= entry.get("clipped", entry.get("kept")) <= 1
    assert {"verl", "slime", "Miles", "SkyRL", "NeMo-RL", "OpenRLHF", "TRL", "PipelineRL", "prime-rl"} <= {
        entry["framework"] for entry in data["rows"]
    }


@pytest.mark.parametrize("sigma", [1e-6, 0.0449, 2.0])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 1_000_000])
def test_the_whole_range_of_noise_and_length_has_finite_rows(sigma: float, length: int) -> None:
    for found in advise(sigma, length).rows:
        numbers = (found.fired, found.mean_weight, found.bias, found.ess, found.promised)
        assert all(math.isfinite(x) for x in numbers), found


def test_a_component_shared_by_a_sequence_fires_where_independent_noise_of_the_same_rms_does_not() -> None:
    """The geometric mean averages token noise away, but not a shift that the whole sequence shares."""
    rule = next(rule for rule in RULES if rule.framework == "SkyRL" and rule.fold == "mean")
    rng = np.random.default_rng(0)
    shared = given_skew(rng.normal(0, 0.02, (500, 1)) + np.zeros((500, 200)))
    independent = given_skew(rng.normal(0, 0.02, (500, 200)))
    assert judge(rule, shared, 1e-3).fired > 0.4
    assert judge(rule, independent, 1e-3).fired == 0


# The noise level, however it is known


@pytest.mark.parametrize("sigma", [0.003, 0.0449, 0.3])
@pytest.mark.parametrize("metric", ["logprob_diff_mean", "logprob_diff_std", "kl_k3", "mult_prob_error"])
def test_a_metric_of_healthy_data_gives_back_its_noise_level(metric: str, sigma: float) -> None:
    assert sigma_of(metric, measured(metric, sigma)) == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize("metric", ["kl_k1", "chi2_token", "ess"])
def test_a_metric_that_a_million_tokens_hardly_fix_gives_it_back_too(metric: str) -> None:
    assert sigma_of(metric, measured(metric, 0.3)) == pytest.approx(0.3, rel=0.1)


def measured(metric: str, sigma: float) -> float:
    """The metric of a million drawn tokens."""
    d = mixture_draw(sigma)(np.random.default_rng(3), 2000, 500)
    return skew_metrics(d, np.zeros_like(d), np.ones_like(d))[metric]


@pytest.mark.parametrize(
    ("text", "sigma"),
    [
        ("mismatch_kl/all/mean=0.001", 0.0447),
        ("train/gen_kl_error=0.001", 0.0447),
        ("rollout_corr/k3_kl=0.001", 0.0447),
        ("sampling/sampling_logp_difference/mean=0.0139", 0.0449),
        ("policy/rollout_train_logprobs_abs_diff_mean=0.0139", 0.0449),
        ("skew/kl_k1=0.001", 0.0447),
        ("token_mult_prob_error=1.0150", 0.0449),
        ("rms=0.0449", 0.0449),
    ],
)
def test_any_frameworks_metric_name_gives_the_noise_level(text: str, sigma: float) -> None:
    assert sigma_by_name(text) == pytest.approx(sigma, rel=0.01)


def test_a_log_is_its_own_noise_and_its_own_length() -> None:
    d = mixture_draw(0.1)(np.random.default_rng(0), 300, 80)
    level = noise_of(None, log=table(d).with_meta(source="table.npz"))
    assert level.length == 80
    report, closed = advise(level.noise, level.length), advise(0.1, 80)
    assert report.sigma == pytest.approx(0.1, rel=0.05)
    assert report.source == "table.npz"
    for found, exact in zip(report.rows, closed.rows, strict=True):
        assert found.fired == pytest.approx(exact.fired, abs=0.05), exact.rule


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "--sigma or --profile"),
        ({"sigma": 0.1, "k3": 0.1}, "--sigma and --k3"),
        ({"metric": "nosuch=1"}, "nosuch"),
        ({"metric": "kl_k3"}, "NAME=VALUE"),
        ({"metric": "kl_k3=x"}, "NAME=VALUE"),
        ({"metric": "pearson=0.9"}, "does not tell the noise level"),
        ({"mean_abs": 50.0}, "logprob_diff_mean=50"),
        ({"k3": -1.0}, "kl_k3=-1"),
    ],
)
def test_a_noise_level_that_is_none_is_one_line(given: dict[str, object], word: str) -> None:
    with pytest.raises(UserError) as caught:
        noise_of(100, **given)  # type: ignore[arg-type]
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sigma", "length", "tolerance", "word"),
    [
        (0.0, 10, 1e-3, "sigma"),
        (-1.0, 10, 1e-3, "sigma"),
        (math.nan, 10, 1e-3, "sigma"),
        (3.0, 10, 1e-3, "sigma"),
        (0.1, 0, 1e-3, "length"),
        (0.1, 9, 0.9, "tolerance"),
    ],
)
def test_a_value_out_of_range_is_one_line(sigma: float, length: int, tolerance: float, word: str) -> None:
    with pytest.raises(UserError) as caught:
        advise(sigma, length, tolerance=tolerance)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_profile_of_the_mixture_gives_the_closed_forms() -> None:
    """Monte Carlo from a profile's quantiles against the formula of the same sigma; token rules within a factor of
    two.
    """
    d = mixture_draw(0.1)(np.random.default_rng(0), 1000, 100)
    profile = fit_profile(table(d), name="mixture", provenance={}, bootstrap=0, kind="invented")
    drawn, closed = advise(profile, 100), advise(0.1, 100)
    assert drawn.sigma == pytest.approx(0.1, rel=0.05)
    for found, exact in zip(drawn.rows, closed.rows, strict=True):
        assert found.fired == pytest.approx(exact.fired, abs=0.06), exact.rule
        if exact.source.fold == "token" and exact.fired > 1e-4:
            assert exact.fired / 2 < found.fired < 2 * exact.fired, exact.rule
