"""A GRPO run on the real engine learns, and its metrics overlay the simulator's.

The two engines draw different random numbers (vLLM samples by its own method), so the curves agree as two seeds of one
experiment do; what both compute from the same weights (entropy, lag, skew's size) agrees more closely.
"""

from __future__ import annotations

import pytest

from harness.engines import resolve_engine
from skewsim.learn.trainer import train
from skewsim.settings import Scenario

pytestmark = pytest.mark.engine

SCENARIO = Scenario().with_values({"steps": 50})


def means(curve: list[float]) -> tuple[float, float]:
    """Mean of the first and of the last ten steps."""
    return sum(curve[:10]) / 10, sum(curve[-10:]) / 10


@pytest.fixture(scope="module")
def curves(engine_name: str) -> dict[str, dict[str, list[float]]]:
    found = {}
    for name in ("sim", engine_name):
        engine = resolve_engine(name)
        try:
            records = [step[0] for step in train(SCENARIO, engine)]
        finally:
            engine.close()
        assert [r.diverged for r in records] == [None] * 50
        found[name] = {key: [float(r.metrics[key] or 0) for r in records] for key in records[0].metrics}
    return found


def test_a_run_on_the_real_engine_learns(curves: dict[str, dict[str, list[float]]], engine_name: str) -> None:
    first, last = means(curves[engine_name]["reward/mean"])
    assert last > first + 0.15


@pytest.mark.parametrize(
    ("key", "tolerance"),
    [
        ("reward/mean", 0.2),
        ("policy/entropy", 0.12),
        ("skew/logprob_diff_mean", 0.012),
        ("update/clip_rate", 0.02),
        ("lag/mean", 1e-6),
    ],
)
def test_its_metrics_overlay_the_simulators(
    curves: dict[str, dict[str, list[float]]], engine_name: str, key: str, tolerance: float
) -> None:
    for real, simulated in zip(means(curves[engine_name][key]), means(curves["sim"][key]), strict=True):
        assert abs(real - simulated) < tolerance
