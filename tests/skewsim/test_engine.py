"""The simulated engine's mechanisms, each against an oracle that shares no code with it: transformers' Llama over a
DynamicCache filled under one set of weights and continued under another, its logits warpers, and float64 formulas."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from skewsim.engine.kv_cache import round_fp8, truncate_fp8
from skewsim.engine.rollouts import FINISH_ABORT, FINISH_LENGTH, FINISH_STOP, RolloutRequest, Rollouts, WeightUpdate
from skewsim.engine.sampling import draw, process
from skewsim.engine.simulated import SimEngine
from skewsim.learn.scoring import score
from skewsim.settings import EngineSettings, Scenario, SkewSettings, TaskSettings
from skewsim.task import EOS, Task
from tests.skewsim.llama_oracle import huggingface, random_policy, replay

TASK = TaskSettings(response_length=8, pool_size=6)
GROUP = 4
A, B = random_policy(seed=1), random_policy(seed=2)
EXACT = 3e-5
"""Logits of size 8 in float32: 3 to 4 units in the last place, whatever kernels a machine has."""


def _scenario(*, task: TaskSettings = TASK, skew: SkewSettings | None = None, **engine: object) -> Scenario:
    return Scenario(task=task, skew=skew or SkewSettings(), engine=EngineSettings.model_validate(engine))


def _request(
    task: TaskSettings = TASK, *, step: int = 0, update: bool = False, at: int = 0, seeds=(0,)
) -> RolloutRequest:
    built = Task(task)
    ids = torch.arange(task.pool_size).expand(len(seeds), -1)
    new = WeightUpdate(B.flat.expand(len(seeds), -1), 1) if update else None
    return RolloutRequest(step, seeds, ids, built.pool[ids], GROUP, built.max_tokens, update=new, update_at=at)


def _rollout(request: RolloutRequest, **settings: object) -> Rollouts:
    engine = SimEngine()
    engine.start(_scenario(**settings), A, version=0)
    return engine.generate(request)


def _picked(logits: torch.Tensor, rollouts: Rollouts, *, temperature: float = 0.8) -> torch.Tensor:
    """Float64 logprobs of the sampled tokens from the oracle's logits before each of them."""
    scaled = logits.double() / temperature
    return scaled.log_softmax(-1).gather(-1, rollouts.tokens[0].unsqueeze(-1)).squeeze(-1)


def _skew_to(oracle: torch.Tensor, rollouts: Rollouts) -> float:
    return float((oracle - rollouts.engine_logprobs[0]).abs().max())


# -- the float32 engine is exact ------------------------------------------------------------------------------------


def test_float32_decode_equals_the_trainers_scoring() -> None:
    rollouts = _rollout(_request())
    scored = score(A.weights(dtype="float32", head_dtype="float32"), rollouts, group=GROUP, temperature=0.8)
    assert (scored.logprobs - rollouts.engine_logprobs).abs().max() < EXACT


def test_sampled_tokens_follow_the_reported_distribution() -> None:
    """Under truthful sampling sum_v p_v 1[v] averages to p: a chi-square over many draws."""
    logprobs = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    uniforms = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(1))
    counts = np.bincount(draw(logprobs.expand(1, 20_000, 16), uniforms)[0].numpy(), minlength=16)
    expected = logprobs.exp()[0, 0].double().numpy() * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # chi-square with 15 degrees of freedom, p = 0.001


# -- processing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.8, "min_p": 0.02}], ids=str
)
def test_processed_distribution_equals_transformers_warpers_in_vllms_order(settings: dict) -> None:
    engine = EngineSettings(temperature=0.7, **settings)
    logits = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * 3
    want = TemperatureLogitsWarper(0.7)(None, logits)
    if engine.min_p:
        want = MinPLogitsWarper(engine.min_p)(None, want)
    if engine.top_k:
        want = TopKLogitsWarper(engine.top_k)(None, want)
    if engine.top_p < 1:
        want = TopPLogitsWarper(engine.top_p)(None, want)
    found = process(logits, engine)
    assert torch.allclose(found.logprobs.exp(), want.softmax(-1), atol=1e-6)
    if settings:
        full = (logits.double() / 0.7).softmax(-1)
        mass = torch.where(want > -torch.inf, full, 0).sum(-1)
        assert torch.allclose(found.kept_mass.double(), mass, atol=1e-6)


def test_raw_equals_processed_exactly_at_temperature_one_without_filters() -> None:
    raw = _rollout(_request(), temperature=1.0, logprobs_mode="raw_logprobs")
    processed = _rollout(_request(), temperature=1.0)
    assert torch.equal(raw.tokens, processed.tokens)
    assert torch.equal(raw.engine_logprobs, processed.engine_logprobs)


def test_raw_logprobs_are_those_of_temperature_one() -> None:
    rollouts = _rollout(_request(), temperature=0.6, logprobs_mode="raw_logprobs", top_k=5)
    scored = score(A.weights(dtype="float32", head_dtype="float32"), rollouts, group=GROUP, temperature=1.0)
    assert (scored.logprobs - rollouts.engine_logprobs).abs().max() < EXACT
    assert (rollouts.sampler_logprobs - rollouts.engine_logprobs).abs().max() > 0.1


def test_mean_ratio_under_top_p_not_renormalised_equals_the_kept_mass() -> None:
    """TRL pull request 7269: at top-p 0.8 the mean ratio is the kept mass, not one."""
    task = TaskSettings(response_length=8, pool_size=64)
    rollouts = _rollout(_request(task), task=task, top_p=0.8)
    scored = score(A.weights(dtype="float32", head_dtype="float32"), rollouts, group=GROUP, temperature=0.8)
    ratio = (scored.logprobs - rollouts.engine_logprobs).exp()
    assert float(ratio.mean()) == pytest.approx(float(rollouts.kept_mass.mean()), abs=1e-5)
    masked = score(
        A.weights(dtype="float32", head_dtype="float32"), rollouts, group=GROUP, temperature=0.8, sampling_mask=True
    )
    assert (masked.logprobs - rollouts.engine_logprobs).abs().max() < EXACT


# -- precision ------------------------------------------------------------------------------------------------------


def _mean_skew(**engine: object) -> float:
    rollouts = _rollout(_request(), **engine)
    scored = score(A.weights(dtype="float32", head_dtype="float32"), rollouts, group=GROUP, temperature=0.8)
    return float((scored.logprobs - rollouts.engine_logprobs).abs().mean())


def test_precisions_are_ordered_as_their_mantissas() -> None:
    exact, half, brain, head = (
        _mean_skew(),
        _mean_skew(dtype="float16", head_dtype="float16"),
        _mean_skew(dtype="bfloat16", head_dtype="bfloat16"),
        _mean_skew(head_dtype="bfloat16"),
    )
    fp8, int8 = _mean_skew(kv_cache_dtype="fp8"), _mean_skew(quantization="int8")
    assert exact < 1e-6 < half < head < brain < fp8
    assert half < int8
    # float16 has three more mantissa bits than bfloat16: a factor of 8, published 0.0449 / 0.0057 = 7.9
    assert 4 < brain / half < 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_is_the_nearest_number_of_the_format_or_the_next_one_towards_zero(dtype: torch.dtype) -> None:
    """The format by its definition: 4 bits of exponent with a bias of 7, 3 of mantissa, no infinities."""
    numbers = [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)]
    known = np.array(numbers[:-1])
    x = torch.cat([torch.randn(2000) * 4.0**power for power in range(-6, 5)] + [torch.tensor([0.0, 448, -9e9])])
    x = x.to(dtype)
    size, sign = x.double().abs().clamp(max=448).numpy(), np.sign(x.double().numpy())
    below = known[np.searchsorted(known, size, side="right") - 1]
    np.testing.assert_array_equal(truncate_fp8(x).double().numpy(), sign * below)
    nearest = np.abs(known - size[:, None]).min(1)
    np.testing.assert_array_equal(np.abs(round_fp8(x).double().numpy() - sign * size), nearest)


def test_an_fp32_head_on_one_side_only_widens_the_gap() -> None:
    rollouts = _rollout(_request(), head_dtype="bfloat16")
    both = score(A.weights(dtype="float32", head_dtype="bfloat16"), rollouts, group=GROUP, temperature=0.8)
    one_sided = score(A.weights(dtype="float32", head_dtype="float32"), rollouts, group=GROUP, temperature=0.8)
    gaps = [(s.logprobs - rollouts.engine_logprobs).abs().mean() for s in (both, one_sided)]
    assert gaps[0] < 0.2 * gaps[1]


# -- weight updates -------------------------------------------------------------------------------------------------


def _parts(rollouts: Rollouts, at: int, folder: Path) -> tuple[object, object, torch.Tensor]:
    tokens = torch.cat([rollouts.prompts[0], rollouts.tokens[0, :, :-1]], -1)
    return huggingface(A, folder / "a"), huggingface(B, folder / "b"), tokens


@pytest.mark.parametrize(("asynchronous", "boundary"), [(False, 3), (True, 4)])
def test_keep_continues_on_old_keys_and_values_under_new_weights(
    asynchronous: bool, boundary: int, tmp_path: Path
) -> None:
    rollouts = _rollout(_request(update=True, at=3), mode="keep", clear_cache=False, async_scheduling=asynchronous)
    a, b, tokens = _parts(rollouts, boundary, tmp_path)
    p = rollouts.prompts.shape[2]
    cut = p + boundary - 1  # the token before the boundary is the first that the new weights read
    logits = replay([(a, tokens[:, :cut]), (b, tokens[:, cut:])])[:, p - 1 :]
    assert _skew_to(_picked(logits, rollouts), rollouts) < EXACT
    assert rollouts.weight_versions[0, 0].tolist() == [0] * boundary + [1] * (8 - boundary)
    wrong = replay([(a, tokens[:, : cut + 1]), (b, tokens[:, cut + 1 :])])[:, p - 1 :]
    assert _skew_to(_picked(wrong, rollouts), rollouts) > 1e-2


def test_keep_with_clear_cache_recomputes_everything_under_the_new_weights(tmp_path: Path) -> None:
    rollouts = _rollout(_request(update=True, at=3), mode="keep", clear_cache=True)
    a, b, tokens = _parts(rollouts, 3, tmp_path)
    p = rollouts.prompts.shape[2]
    logits = torch.cat([replay([(a, tokens)])[:, p - 1 : p + 2], replay([(b, tokens)])[:, p + 2 :]], 1)
    assert _skew_to(_picked(logits, rollouts), rollouts) < EXACT


def test_wait_finishes_under_the_old_weights_and_then_updates() -> None:
    engine = SimEngine()
    engine.start(_scenario(mode="wait"), A, version=0)
    with_update = engine.generate(_request(update=True, at=3))
    assert torch.equal(with_update.engine_logprobs, _rollout(_request()).engine_logprobs)
    assert (with_update.weight_versions == 0).all()
    assert engine.version == 1
    assert (engine.generate(_request(step=1)).weight_versions == 1).all()


def test_abort_returns_what_there_is_and_says_so() -> None:
    rollouts = _rollout(_request(update=True, at=3), mode="abort")
    assert (rollouts.mask.sum(-1) == 3).all()
    assert (rollouts.finish_reasons == FINISH_ABORT).all()
    assert torch.equal(rollouts.tokens[..., :3], _rollout(_request()).tokens[..., :3])


def test_abort_spares_what_had_finished() -> None:
    task = TaskSettings(name="reverse_until_zero", response_length=12, pool_size=64)
    scenario = Scenario(task=task, engine=EngineSettings(mode="abort"))
    from skewsim.learn.base_policy import starting_policy

    engine, base = SimEngine(), starting_policy(scenario)
    engine.start(scenario, base, version=0)
    request = dataclasses.replace(_request(task), update=WeightUpdate(base.flat, 1), update_at=6)
    rollouts = engine.generate(request)
    lengths = rollouts.mask.sum(-1)
    stopped = rollouts.finish_reasons == FINISH_STOP
    assert 0.1 < stopped.float().mean() < 0.9
    assert (lengths[~stopped] == 6).all()
    last = rollouts.tokens.gather(-1, (lengths.long() - 1).unsqueeze(-1)).squeeze(-1)
    assert (last[stopped] == EOS).all()


def test_an_update_before_the_rollout_is_a_plain_new_policy() -> None:
    engine = SimEngine()
    engine.start(_scenario(), B, version=1)
    assert torch.equal(engine.generate(_request()).tokens, _rollout(_request(update=True, at=0)).tokens)


# -- the prefix cache -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 4])
def test_a_prefix_cache_that_is_not_reset_serves_stale_keys_and_values(block_size: int, tmp_path: Path) -> None:
    engine = SimEngine()
    engine.start(_scenario(enable_prefix_caching=True, block_size=block_size), A, version=0)
    engine.generate(_request())
    rollouts = engine.generate(_request(step=1, update=True, at=0))
    a, b, tokens = _parts(rollouts, 0, tmp_path)
    p = rollouts.prompts.shape[2]
    kept = (p - 1) // block_size * block_size
    logits = replay([(a, tokens[:, :kept]), (b, tokens[:, kept:])])[:, p - 1 :]
    assert _skew_to(_picked(logits, rollouts), rollouts) < EXACT
    fresh = replay([(b, tokens)])[:, p - 1 :]
    assert _skew_to(_picked(fresh, rollouts), rollouts) > 1e-2


@pytest.mark.parametrize(
    "settings", [{"clear_cache": True, "enable_prefix_caching": True}, {"enable_prefix_caching": False}]
)
def test_a_cleared_or_absent_prefix_cache_is_never_stale(settings: dict, tmp_path: Path) -> None:
    engine = SimEngine()
    engine.start(_scenario(**settings), A, version=0)
    engine.generate(_request())
    rollouts = engine.generate(_request(step=1, update=True, at=0))
    _, b, tokens = _parts(rollouts, 0, tmp_path)
    logits = replay([(b, tokens)])[:, rollouts.prompts.shape[2] - 1 :]
    assert _skew_to(_picked(logits, rollouts), rollouts) < EXACT


def test_at_fixed_weights_a_prefix_cache_changes_nothing() -> None:
    """Published: below 3e-4 (AknA13/train-infer-mismatch)."""
    engine = SimEngine()
    engine.start(_scenario(enable_prefix_caching=True), A, version=0)
    engine.generate(_request())
    again = engine.generate(_request(step=1))
    plain = _rollout(_request(step=1))
    assert torch.equal(again.tokens, plain.tokens)
    assert (again.engine_logprobs - plain.engine_logprobs).abs().max() < EXACT


# -- what is sampled and what is reported ---------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "low", "high"), [("sampled", 0.98, 1.02), ("reported", 1.06, 1.3)])
def test_importance_weights_average_to_one_only_if_the_noise_was_sampled_from(target, low: float, high: float) -> None:
    """E[exp(d)] = 1 for a truthful engine. With a wrong report it is not, and no importance weight corrects that."""
    task = TaskSettings(response_length=16, pool_size=128)
    skew = SkewSettings(noise="normal", scale=0.4, target=target)
    rollouts = _rollout(_request(task), task=task, skew=skew)
    scored = score(A.weights(dtype="float32", head_dtype="float32"), rollouts, group=GROUP, temperature=0.8)
    assert low < float((scored.logprobs - rollouts.engine_logprobs).exp().mean()) < high
    truthful = rollouts.sampler_logprobs == rollouts.engine_logprobs
    assert bool(truthful.all()) == (target == "sampled")


def test_a_members_rollout_does_not_depend_on_who_rides_along() -> None:
    skew = SkewSettings(noise="student_t", scale=0.1, sequence_scale=0.1)
    engine = SimEngine()
    engine.start(_scenario(skew=skew), A.stacked(3), version=0)
    among = engine.generate(_request(seeds=(5, 9, 5)))
    alone = _rollout(_request(seeds=(9,)), skew=skew)
    for name in ("tokens", "engine_logprobs", "sampler_logprobs"):
        values = getattr(among, name)
        assert torch.equal(values[0], values[2]), name
        assert torch.equal(values[1], getattr(alone, name)[0]), name


def test_without_eos_every_response_has_full_length() -> None:
    rollouts = _rollout(_request())
    assert (rollouts.mask == 1).all()
    assert (rollouts.finish_reasons == FINISH_LENGTH).all()


def test_state_and_restore_continue_bit_for_bit() -> None:
    scenario = _scenario(enable_prefix_caching=True)
    first, second = SimEngine(), SimEngine()
    for engine in (first, second):
        engine.start(scenario, A, version=0)
    first.generate(_request())
    second.restore({n: t.clone() for n, t in first.state().items()})
    request = _request(step=1, update=True, at=2)
    assert torch.equal(first.generate(request).engine_logprobs, second.generate(request).engine_logprobs)
