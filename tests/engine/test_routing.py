"""A real engine's routes: taken down by our plugin, they are the trainer's own in float32, and R3 replays them; where
they are not in the log, the model's near ties tell how much of the skew they make."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.moe_engine import looks
from benchmarks.near_ties import without_routes
from harness.engines import resolve_engine
from skewsim.diagnose import diagnose, load_models
from skewsim.learn.base_policy import model_folder
from skewsim.learn.look import Look
from skewsim.skew.sequences import SequenceLog

pytestmark = pytest.mark.engine


def looked(engine_name: str, dtype: str, *, prompts: int) -> tuple[Look, Look]:
    """The same rollout of a real engine, scored with the trainer's own routes and with the engine's."""
    engine = resolve_engine(engine_name)
    try:
        return looks(engine, dtype, prompts=prompts)
    finally:
        engine.close()


def test_in_float32_the_engine_routes_as_the_trainer_does(engine_name: str) -> None:
    own, _ = looked(engine_name, "float32", prompts=16)
    assert own.routes_differ is not None
    assert (own.routes_differ[own.mask] > 0).mean() < 0.002
    assert np.sqrt((own.skew[own.mask] ** 2).mean()) < 1e-4


def test_replaying_the_routes_of_bfloat16_takes_away_what_flipped_tokens_have(engine_name: str) -> None:
    own, replayed = looked(engine_name, "bfloat16", prompts=48)
    assert own.routes_differ is not None
    live = own.mask
    other = own.routes_differ[live] > 0
    before, after = own.skew[live], replayed.skew[live]
    assert 0.002 < other.mean() < 0.2
    part = (before**2).sum() - other.size * (before[~other] ** 2).mean()
    assert (before**2).sum() - (after**2).sum() > 0.5 * part


def shares(log: SequenceLog, *, model: bool) -> dict[str, float]:
    """What `diagnose` says by the routes in the log, or without them by the model."""
    models = load_models([model_folder("base_moe")]) if model else []
    return {
        cause.name: cause.explained for cause in diagnose(without_routes(log) if model else log, models=models).causes
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_models_near_ties_find_the_share_that_the_routes_prove(engine_name: str, dtype: str) -> None:
    own, _ = looked(engine_name, dtype, prompts=64)
    proven, found = (shares(own.sequences, model=model) for model in (False, True))
    assert found["moe_routing"] == pytest.approx(proven["moe_routing"], abs=0.12)


def test_the_models_near_ties_find_no_routing_in_float32(engine_name: str) -> None:
    own, _ = looked(engine_name, "float32", prompts=16)
    assert set(shares(own.sequences, model=True)) == {"healthy"}
