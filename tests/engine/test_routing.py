"""A real engine's routes: taken down by our plugin, they are the trainer's own in float32, and R3 replays them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.moe_engine import looks
from harness.engines import resolve_engine

pytestmark = pytest.mark.engine


def test_in_float32_the_engine_routes_as_the_trainer_does(engine_name: str) -> None:
    engine = resolve_engine(engine_name)
    try:
        own, _ = looks(engine, "float32", prompts=16)
    finally:
        engine.close()
    assert own.routes_differ is not None
    assert (own.routes_differ[own.mask] > 0).mean() < 0.002
    assert np.sqrt((own.skew[own.mask] ** 2).mean()) < 1e-4


def test_replaying_the_routes_of_bfloat16_takes_away_what_flipped_tokens_have(engine_name: str) -> None:
    engine = resolve_engine(engine_name)
    try:
        own, replayed = looks(engine, "bfloat16", prompts=48)
    finally:
        engine.close()
    assert own.routes_differ is not None
    live = own.mask
    other = own.routes_differ[live] > 0
    before, after = own.skew[live], replayed.skew[live]
    assert 0.002 < other.mean() < 0.2
    part = (before**2).sum() - other.size * (before[~other] ** 2).mean()
    assert (before**2).sum() - (after**2).sum() > 0.5 * part
