"""The logs under docs/examples are what the pages say of them."""

from __future__ import annotations

from pathlib import Path

from skewsim.diagnose import diagnose_path

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def test_a_real_models_raw_logprobs_at_temperature_0_7_are_known_as_such_without_the_model() -> None:
    found = diagnose_path(EXAMPLES / "smollm2-raw.jsonl")
    assert found.verdict == "raw_logprobs"
    assert (found.sequences, found.tokens) == (16, 1578)
    assert 0.35 < found.rms < 0.38
