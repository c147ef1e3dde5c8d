"""The replayed mixture is exact, and its scan names the simulated engine's update modes token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.mixture import find_swaps, mixture_logprobs
from skewsim.diagnose.models import ModelScorer
from skewsim.engine.rollouts import RolloutRequest, Rollouts, WeightUpdate
from skewsim.engine.simulated import SimEngine
from skewsim.model.policy import Policy, PolicyConfig
from skewsim.settings import Scenario
from skewsim.skew.sequences import SequenceRecord
from skewsim.task import Task

OLD, NEW = (Policy.random(PolicyConfig(), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
FLOOR = 1e-5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelScorer, ModelScorer]:
    root: Path = tmp_path_factory.mktemp("policies")
    for name, policy in (("old", OLD), ("new", NEW)):
        policy.save(root / name)
    return ModelScorer.from_folder(root / "old"), ModelScorer.from_folder(root / "new")


def rollouts(at: int, **settings: object) -> Rollouts:
    """Two prompts, two responses each, with new weights at a token, from the simulated engine."""
    values = {f"engine.{name}": value for name, value in settings.items()}
    scenario = Scenario().with_values({"engine.temperature": 1.0, **values})
    task, engine = Task(scenario.task), SimEngine()
    engine.start(scenario, OLD, version=0)
    ids = torch.tensor([[0, 1]])
    update = WeightUpdate(NEW.flat, 1)
    return engine.generate(
        RolloutRequest(0, (0,), ids, task.pool[ids], 2, task.max_tokens, update=update, update_at=at)
    )


def records(found: Rollouts) -> list[SequenceRecord]:
    each = zip(found.prompts[0], found.tokens[0], found.mask[0] > 0, found.engine_logprobs[0], strict=True)
    return [
        SequenceRecord(
            tokens=tokens[kept].numpy(), engine_logprobs=values[kept].double().numpy(), prompt_tokens=prompt.numpy()
        )
        for prompt, tokens, kept, values in each
    ]


@pytest.mark.parametrize("at", [1, 5, 11])
def test_keep_is_old_keys_and_values_under_new_weights_from_that_token_on(
    models: tuple[ModelScorer, ModelScorer], at: int
) -> None:
    swaps = find_swaps(*models, records(rollouts(at, mode="keep", clear_cache=False)))
    assert {(s.at, s.kept) for s in swaps} == {(at, True)}
    assert max(s.rms for s in swaps) < FLOOR
    assert min(s.runner_up for s in swaps) > 1e-3, "no other place explains it"


def test_a_cleared_cache_is_made_again_under_the_new_weights(models: tuple[ModelScorer, ModelScorer]) -> None:
    swaps = find_swaps(*models, records(rollouts(5, mode="keep", clear_cache=True)))
    assert {(s.at, s.kept) for s in swaps} == {(5, False)}
    assert max(s.rms for s in swaps) < FLOOR


def test_asynchronous_scheduling_swaps_one_token_later(models: tuple[ModelScorer, ModelScorer]) -> None:
    swaps = find_swaps(*models, records(rollouts(5, mode="keep", async_scheduling=True)))
    assert {(s.at, s.kept) for s in swaps} == {(6, True)}


def test_waiting_swaps_nothing_under_way(models: tuple[ModelScorer, ModelScorer]) -> None:
    found = records(rollouts(5, mode="wait"))
    swaps = find_swaps(*models, found)
    assert {s.at for s in swaps} == {len(found[0].tokens)}
    assert max(s.rms for s in swaps) < FLOOR


def test_lag_and_stale_keys_and_values_are_told_apart(models: tuple[ModelScorer, ModelScorer]) -> None:
    """After the boundary the engine is off against the old weights (lag) and against the new ones (stale cache)."""
    found = records(rollouts(5, mode="keep", clear_cache=False))
    old, new = models
    everything_old = mixture_logprobs(old, new, found, [12] * 4)
    everything_new = mixture_logprobs(old, new, found, [0] * 4, kept=False)
    exact = mixture_logprobs(old, new, found, [5] * 4)
    for record, lag, stale, replayed in zip(found, everything_old, everything_new, exact, strict=True):
        assert np.abs(lag - record.engine_logprobs)[:5].max() < FLOOR
        assert np.abs(lag - record.engine_logprobs)[5:].mean() > 0.05
        assert np.abs(stale - record.engine_logprobs)[5:].mean() > 0.01
        assert np.abs(replayed - record.engine_logprobs).max() < FLOOR
