"""`advise` against the published row, against simulation, and against its own promise that a setting does not fire."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewsim.errors import UserError
from skewsim.skew.advise import RULES, AdviseReport, AdviseRow, Sample, _closed_row, _sampled_row, advise, simulate
from skewsim.skew.fitting import fit_profile
from skewsim.skew.tokens import TokenTable


def row(report: AdviseReport, framework: str, rule: str) -> AdviseRow:
    return next(row for row in report.rows if row.framework == framework and row.rule.startswith(rule))


def test_the_published_row_is_reproduced() -> None:
    """bf16 vLLM against bf16 Hugging Face, Qwen3-1.7B: rms 0.0449, mean length 1506, sequence ESS 0.048."""
    report = advise(0.0449, 1506)
    assert 1 - row(report, "verl", "geometric").fired == pytest.approx(0.46, abs=0.005)
    assert 1 - row(report, "slime", "geometric").fired == pytest.approx(0.05, abs=0.005)
    assert 1 - row(report, "SkyRL", "geometric").fired > 0.9999
    assert 1 - row(report, "GSPO", "paper").fired == pytest.approx(0.16, abs=0.005)
    assert row(report, "any", "sequence weight").ess == pytest.approx(0.048, abs=0.0005)


@pytest.mark.parametrize(("sigma", "length"), [(0.0449, 1506), (0.02, 64), (0.25, 40), (0.8, 3)])
def test_simulation_confirms_the_closed_forms(sigma: float, length: int) -> None:
    count = 4000
    closed, drawn = advise(sigma, length), simulate(sigma, length, sequences=count, seed=3)
    for exact, found in zip(closed.rows, drawn.rows, strict=True):
        error = math.sqrt(max(exact.fired * (1 - exact.fired), 1e-6) / count)
        assert found.fired == pytest.approx(exact.fired, abs=5 * error + 0.004), exact
        if exact.rule != "sequence weight, unbounded" or length * sigma**2 < 0.5:  # its fourth moment needs more draws
            assert found.ess == pytest.approx(exact.ess, abs=0.03), exact


@settings(max_examples=25, deadline=None)
@given(sigma=st.floats(0.003, 0.3), length=st.integers(1, 4000))
def test_the_suggested_setting_does_not_fire(sigma: float, length: int) -> None:
    """A rule set to the suggestion, evaluated as a default would be, fires on at most the tolerance."""
    for row in advise(sigma, length).rows:
        if row.bounds is not None:
            moved = dataclasses.replace(row.source, low=row.bounds[0], high=row.bounds[1])
            assert _closed_row(moved, sigma, length, 1e-3).fired <= 1.05e-3


def test_wider_noise_fires_more_and_longer_sequences_lose_effective_samples() -> None:
    quiet, loud, long = advise(0.02, 500), advise(0.1, 500), advise(0.1, 5000)
    assert row(quiet, "verl", "sequence TIS").fired < row(loud, "verl", "sequence TIS").fired
    assert row(long, "any", "sequence").ess < row(loud, "any", "sequence").ess < row(quiet, "any", "sequence").ess


def test_json_has_exactly_the_promised_keys() -> None:
    data = json.loads(json.dumps(advise(0.0449, 1506).to_json()))
    assert list(data) == ["sigma", "length", "rows"]
    for entry in data["rows"]:
        assert set(entry) - {"clipped", "kept"} == {"framework", "rule", "setting", "ess"}
        assert len({"clipped", "kept"} & set(entry)) == 1
        assert 0 <= entry["ess"] <= 1
        assert 0 <= entry.get("clipped", entry.get("kept")) <= 1
    assert {"verl", "slime", "SkyRL", "NeMo-RL", "OpenRLHF", "TRL", "PipelineRL", "prime-rl"} <= {
        entry["framework"] for entry in data["rows"]
    }


def test_a_component_shared_by_a_sequence_fires_where_independent_noise_of_the_same_rms_does_not() -> None:
    """The geometric mean averages token noise away, but not a shift that the whole sequence shares."""
    rule = next(rule for rule in RULES if rule.framework == "SkyRL" and rule.statistic == "mean")

    def shared(rng: np.random.Generator, rows: int, tokens: int) -> np.ndarray:
        return rng.normal(0, 0.02, (rows, 1)) + np.zeros((rows, tokens))

    def independent(rng: np.random.Generator, rows: int, tokens: int) -> np.ndarray:
        return rng.normal(0, 0.02, (rows, tokens))

    fired = [_sampled_row(rule, Sample.draw(draw, 500, 200, 0), 1e-3).fired for draw in (shared, independent)]
    assert fired[0] > 0.4
    assert fired[1] == 0


@pytest.mark.parametrize(
    ("sigma", "length", "tolerance", "word"),
    [
        (0.0, 10, 1e-3, "sigma"),
        (-1.0, 10, 1e-3, "sigma"),
        (math.nan, 10, 1e-3, "sigma"),
        (0.1, 0, 1e-3, "length"),
        (0.1, 9, 0.9, "tolerance"),
    ],
)
def test_a_value_out_of_range_is_one_line(sigma: float, length: int, tolerance: float, word: str) -> None:
    with pytest.raises(UserError) as caught:
        advise(sigma, length, tolerance=tolerance)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_profile_of_gaussian_skew_gives_the_closed_forms() -> None:
    """The Monte Carlo from a profile's quantiles against the formula of the same sigma."""
    rng = np.random.default_rng(0)
    rows, length, sigma = 400, 100, 0.1
    shape = (rows, length)
    engine = -rng.exponential(1.0, shape)
    table = TokenTable.from_rollouts(
        tokens=np.zeros(shape),
        mask=np.ones(shape),
        engine_logprobs=engine,
        trainer_logprobs=engine + rng.normal(-(sigma**2) / 2, sigma, shape),
    )
    profile = fit_profile(table, name="gaussian", provenance={}, bootstrap=0, kind="invented")
    drawn, closed = advise(profile, length), advise(sigma, length)
    assert drawn.sigma == pytest.approx(sigma, rel=0.03)
    for found, exact in zip(drawn.rows, closed.rows, strict=True):
        assert found.fired == pytest.approx(exact.fired, abs=0.04), exact.rule
