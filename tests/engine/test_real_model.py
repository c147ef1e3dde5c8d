"""A real language model on a real engine: its float32 skew is the floor of two programs that compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.engines import choose
from harness.measure import measure
from harness.models import MODELS, find_model, installed
from skewsim.settings import EngineSettings

pytestmark = [pytest.mark.engine, pytest.mark.real]
NAME = "smollm2-135m"


@pytest.mark.parametrize(
    ("dtype", "mode", "temperature", "low", "high"),
    [
        ("float32", "processed_logprobs", 1.0, 0.0, 2e-5),
        ("bfloat16", "processed_logprobs", 1.0, 0.035, 0.07),
        ("bfloat16", "raw_logprobs", 0.7, 0.25, 0.6),
    ],
)
def test_a_real_model_shows_the_skew_of_its_precision_and_of_raw_logprobs(
    engine_name: str, tmp_path: Path, dtype: str, mode: str, temperature: float, low: float, high: float
) -> None:
    if not installed(MODELS[NAME]):
        pytest.skip(f"not installed: skewsim models install {NAME}")
    settings = EngineSettings.model_validate(
        {"dtype": dtype, "head_dtype": dtype, "logprobs_mode": mode, "temperature": temperature}
    )
    found = measure(
        choose(engine_name), find_model(NAME), out=tmp_path / "out", settings=settings, num_tokens=512, max_tokens=64
    )
    assert found.profile.provenance.model == "SmolLM2-135M-Instruct, weights rounded to Q4_1"
    assert low < found.profile.fit.rms.value < high  # type: ignore[operator]
