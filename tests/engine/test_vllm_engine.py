"""A real vLLM engine runs the same scenario: its logprobs, updates and modes against the trainer's side.

Oracles: transformers' own forward pass, the simulator's, and, for an update in mid-sequence, the exact mixture (keys
and values made under the old weights, continued under the new ones) replayed with transformers' `DynamicCache`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.engines import choose, choose_local
from harness.probe import check_engine
from harness.requests import InFlightUpdate, Request, Size
from harness.session import EngineSession
from harness.vllm_engine import VllmEngine
from skewsim.engine.rollouts import FINISH_ABORT, FINISH_LENGTH, RolloutRequest, Rollouts, WeightUpdate
from skewsim.errors import EngineError
from skewsim.learn.scoring import score
from skewsim.model.policy import Policy, PolicyConfig
from skewsim.settings import Scenario
from skewsim.task import Task

pytestmark = pytest.mark.engine

FLOAT32 = Scenario().with_values({"engine.update_at_token": 6})
RAW = FLOAT32.with_values({"engine.logprobs_mode": "raw_logprobs", "engine.async_scheduling": True})
OLD, NEW = (Policy.random(PolicyConfig(), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
TASK = Task(FLOAT32.task)
GROUP = 4


def request(step: int = 0, *, seeds: tuple[int, ...] = (0,), at: int = 0, new: Tensor | None = None) -> RolloutRequest:
    ids = TASK.sample_prompts(seeds, step=step, num_prompts=8)
    update = None if new is None else WeightUpdate(new, 1)
    return RolloutRequest(step, seeds, ids, TASK.pool[ids], GROUP, TASK.max_tokens, update=update, update_at=at)


def skew(rollouts: Rollouts, policy: Policy, *, temperature: float = 0.8) -> Tensor:
    """Trainer minus engine, sampled tokens only, by the simulator's float32 forward pass."""
    weights = policy.weights(dtype="float32", head_dtype="float32")
    scored = score(weights, rollouts, group=GROUP, temperature=temperature)
    return (scored.logprobs - rollouts.engine_logprobs)[rollouts.mask > 0]


def by_position(rollouts: Rollouts, policy: Policy) -> Tensor:
    weights = policy.weights(dtype="float32", head_dtype="float32")
    scored = score(weights, rollouts, group=GROUP, temperature=0.8)
    return (scored.logprobs - rollouts.engine_logprobs).abs().mean((0, 1))


def started(engine: VllmEngine, scenario: Scenario, policy: Policy = OLD) -> VllmEngine:
    """The engine with these settings and weights of version 0, whatever it held before."""
    engine.start(scenario, policy, version=0)
    engine.restore({"flat": policy.flat.clone(), "version": torch.tensor(0)})
    return engine


@pytest.fixture(scope="module")
def engine(engine_name: str) -> Iterator[VllmEngine]:
    engine = VllmEngine(choose(engine_name))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tensor]:
    """transformers' logprobs (N, T) of rollouts; from position `at` on under NEW, on keys and values made under OLD."""
    from transformers import AutoModelForCausalLM, DynamicCache

    folder = tmp_path_factory.mktemp("policies")
    models: list[Any] = []
    for name, policy in (("old", OLD), ("new", NEW)):
        policy.save(folder / name)
        models.append(AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval())

    @torch.inference_mode()
    def run(rollouts: Rollouts, *, at: int) -> Tensor:
        prompts, tokens = rollouts.prompts[0], rollouts.tokens[0]
        ids, first = torch.cat([prompts, tokens], dim=1), prompts.shape[1] - 1
        cache = DynamicCache(config=models[0].config)
        parts = [models[0](ids[:, : first + at], past_key_values=cache).logits[:, first:]]
        parts.append(models[1](ids[:, first + at : -1], past_key_values=cache).logits)
        logprobs = (torch.cat(parts, dim=1) / 0.8).log_softmax(-1)
        return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    return run


def test_sequences_end_at_eos_in_a_task_of_varying_length(engine: VllmEngine) -> None:
    scenario = Scenario().with_values({"task.name": "reverse_until_zero"})
    task = Task(scenario.task)
    ids = task.sample_prompts((0,), step=0, num_prompts=8)
    asked = RolloutRequest(0, (0,), ids, task.pool[ids], GROUP, task.max_tokens)
    rollouts = started(engine, scenario).generate(asked)
    ends = (rollouts.tokens == task.eos_id) & (rollouts.mask > 0)
    assert ends.any()
    assert (rollouts.mask.sum(-1)[ends.any(-1)] == ends.float().argmax(-1)[ends.any(-1)] + 1).all()
    assert skew(rollouts, OLD).abs().mean() < 1e-5


def test_float32_agrees_with_the_trainer_to_the_numeric_floor(engine: VllmEngine) -> None:
    d = skew(started(engine, FLOAT32).generate(request()), OLD)
    assert d.numel() == 8 * GROUP * TASK.max_tokens
    assert d.abs().mean() < 1e-5


def test_the_same_request_gives_the_same_rollouts_bit_for_bit(engine: VllmEngine) -> None:
    first, second = (started(engine, FLOAT32).generate(request(step=3)) for _ in range(2))
    other = engine.generate(request(step=4))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.engine_logprobs, second.engine_logprobs)
    assert not torch.equal(first.tokens, other.tokens)


def test_keep_is_old_keys_under_new_weights_from_the_exact_token_on(
    engine: VllmEngine, replay: Callable[..., Tensor]
) -> None:
    rollouts = started(engine, FLOAT32).generate(request(at=6, new=NEW.flat))
    assert rollouts.weight_versions.unique(dim=1).tolist() == [[[0] * 6 + [1] * 6]]
    assert (rollouts.finish_reasons == FINISH_LENGTH).all()
    errors = {at: float((replay(rollouts, at=at) - rollouts.engine_logprobs[0]).abs().mean()) for at in range(1, 12)}
    assert errors[6] < 1e-5
    assert min(value for at, value in errors.items() if at != 6) > 0.01
    assert by_position(rollouts, NEW)[6:].min() > 0.01, "stale keys and values are skew against the new weights too"
    assert skew(engine.generate(request(step=1)), NEW).abs().mean() < 1e-5, "the next rollout is all new"


def test_clear_cache_recomputes_the_keys_under_the_new_weights(engine: VllmEngine) -> None:
    scenario = FLOAT32.with_values({"engine.clear_cache": True})
    rollouts = started(engine, scenario).generate(request(at=6, new=NEW.flat))
    assert rollouts.weight_versions.unique(dim=1).tolist() == [[[0] * 6 + [1] * 6]]
    assert by_position(rollouts, OLD)[:6].max() < 1e-5
    assert by_position(rollouts, NEW)[6:].max() < 1e-5


def test_wait_finishes_under_the_old_weights_and_then_updates(engine: VllmEngine) -> None:
    scenario = FLOAT32.with_values({"engine.mode": "wait"})
    rollouts = started(engine, scenario).generate(request(at=6, new=NEW.flat))
    assert (rollouts.weight_versions == 0).all()
    assert skew(rollouts, OLD).abs().mean() < 1e-5
    assert skew(engine.generate(request(step=1)), NEW).abs().mean() < 1e-5


def test_abort_ends_requests_at_the_boundary_with_what_they_have(engine: VllmEngine) -> None:
    scenario = FLOAT32.with_values({"engine.mode": "abort"})
    rollouts = started(engine, scenario).generate(request(at=6, new=NEW.flat))
    assert (rollouts.finish_reasons == FINISH_ABORT).all()
    assert (rollouts.mask.sum(-1) == 6).all()
    assert skew(rollouts, OLD).abs().mean() < 1e-5
    assert skew(engine.generate(request(step=1)), NEW).abs().mean() < 1e-5


def test_an_update_before_the_rollout_is_all_new(engine: VllmEngine) -> None:
    rollouts = started(engine, FLOAT32).generate(request(at=0, new=NEW.flat))
    assert (rollouts.weight_versions == 1).all()
    assert skew(rollouts, NEW).abs().mean() < 1e-5


def test_members_keep_to_their_own_weights_and_versions(engine: VllmEngine) -> None:
    alone = started(engine, FLOAT32).generate(request(seeds=(0,), at=6, new=NEW.flat))
    both = Policy(OLD.config, torch.cat([OLD.flat, NEW.flat]))
    swapped = torch.cat([NEW.flat, OLD.flat])
    rollouts = started(engine, FLOAT32, both).generate(request(seeds=(0, 0), at=6, new=swapped))
    assert torch.equal(rollouts.tokens[0], alone.tokens[0]), "a member is the same alone and among others"
    assert torch.equal(rollouts.engine_logprobs[0], alone.engine_logprobs[0])
    assert by_position(rollouts, both)[:6].max() < 1e-5
    assert skew(engine.generate(request(step=1, seeds=(0, 0))), Policy(OLD.config, swapped)).abs().mean() < 1e-5


def test_a_member_that_diverged_answers_nothing_and_the_others_go_on(engine: VllmEngine) -> None:
    both = Policy(OLD.config, torch.cat([OLD.flat, OLD.flat * torch.nan]))
    rollouts = started(engine, FLOAT32, both).generate(request(seeds=(0, 1)))
    assert rollouts.mask.sum((1, 2)).tolist() == [8 * GROUP * TASK.max_tokens, 0]
    assert skew(rollouts, OLD.stacked(2)).abs().mean() < 1e-5


def test_the_engine_itself_counts_weight_versions_as_the_worker_does(engine: VllmEngine, tmp_path: Path) -> None:
    NEW.save(tmp_path)
    started(engine, FLOAT32).generate(request())
    session = engine.session
    assert isinstance(session, EngineSession)
    update = InFlightUpdate(str(tmp_path), version=7, at=5, mode="keep", clear_cache=False)
    asked = [Request(i, prompt, seed=i) for i, prompt in enumerate(TASK.pool[:4].tolist())]
    rows = list(session.generate(asked, FLOAT32.engine, max_tokens=12, update=update))
    assert [row.versions for row in rows] == [[0] * 5 + [7] * 7] * 4
    assert [row.spans for row in rows] == [[["0", 0, 5], ["7", 5, 12]]] * 4


def test_decode_and_prefill_of_the_engine_agree_in_float32(engine: VllmEngine) -> None:
    rollouts = started(engine, FLOAT32.with_values({"engine.temperature": 1.0})).generate(request())
    session = engine.session
    assert isinstance(session, EngineSession)
    whole = torch.cat([rollouts.prompts[0], rollouts.tokens[0]], dim=1).tolist()
    prefill = torch.tensor([row[-TASK.max_tokens :] for row in session.score(whole)])
    assert (prefill - rollouts.engine_logprobs[0]).abs().mean() < 1e-5


def test_the_engines_own_choices_are_read_back(engine: VllmEngine) -> None:
    started(engine, RAW)
    assert engine.info["vllm"] == "0.32.0"
    assert engine.info["dtype"] == engine.info["head_dtype"] == "float32"
    assert engine.info["logprobs_mode"] == "raw_logprobs"
    assert engine.info["attention_backend"] == "CPU_ATTN"
    assert engine.info["overruled"] == {"async_scheduling": {"asked": True, "actual": False}}


def test_raw_logprobs_leave_the_temperature_out(engine: VllmEngine) -> None:
    raw = started(engine, RAW).generate(request())
    assert skew(raw, OLD, temperature=1.0).abs().mean() < 1e-5
    assert skew(raw, OLD, temperature=0.8).abs().mean() > 0.05


def test_a_worker_killed_in_mid_generation_is_one_error_and_the_rows_before_it_are_kept(
    engine: VllmEngine,
) -> None:
    started(engine, RAW).generate(request())
    session = engine.session
    assert isinstance(session, EngineSession)
    asked = [Request(i, TASK.pool[i % 64].tolist(), seed=i) for i in range(4096)]
    stream = session.generate(asked, RAW.engine, max_tokens=12)
    rows = [next(stream) for _ in range(100)]
    os.kill(session.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="was killed by SIGKILL during generate"):
        rows.extend(stream)
    assert 100 <= len(rows) < 4096
    assert all(len(row.tokens) == len(row.logprobs) == 12 for row in rows)
    assert not Path(f"/proc/{session.pid}").exists()
    assert skew(started(engine, RAW).generate(request()), OLD, temperature=1.0).abs().mean() < 1e-5, (
        "a new one takes over"
    )


def test_the_sampling_mask_is_the_simulators_support(engine: VllmEngine) -> None:
    from skewsim.engine.sampling import process
    from skewsim.learn.scoring import response_logits

    values = {"engine.top_p": 0.9, "engine.min_p": 0.02, "trainer.correction.keep_sampling_mask": True}
    scenario = FLOAT32.with_values(values)
    rollouts = started(engine, scenario).generate(request())
    weights = OLD.weights(dtype="float32", head_dtype="float32")
    logits = response_logits(weights, rollouts.prompts, rollouts.tokens, group=GROUP)
    expected = process(logits, scenario.engine)
    assert rollouts.support is not None
    assert expected.support is not None
    assert (rollouts.support == expected.support).float().mean() > 0.9999
    scored = score(weights, rollouts, group=GROUP, temperature=0.8, sampling_mask=True)
    assert (scored.logprobs - rollouts.engine_logprobs).abs().mean() < 1e-4


def test_a_stale_prefix_survives_an_update_unless_the_cache_is_cleared(engine: VllmEngine) -> None:
    values = {"task.response_length": 40, "engine.enable_prefix_caching": True}
    scenario = Scenario().with_values(values)
    task = Task(scenario.task)
    ids = torch.arange(8).unsqueeze(0)

    def rollouts(step: int, *, new: Tensor | None = None) -> Rollouts:
        update = None if new is None else WeightUpdate(new, 1)
        asked = RolloutRequest(step, (0,), ids, task.pool[ids], GROUP, task.max_tokens, update=update)
        return engine.generate(asked)

    started(engine, scenario)
    assert skew(rollouts(0), OLD).abs().mean() < 1e-5
    assert skew(rollouts(1), OLD).abs().mean() < 1e-5, "a cached prefix of the same weights changes nothing"
    stale = skew(rollouts(2, new=NEW.flat), NEW)
    assert stale.abs().mean() > 0.01
    started(engine, scenario.with_values({"engine.clear_cache": True}))
    rollouts(3, new=OLD.flat)
    rollouts(4)
    assert skew(rollouts(5, new=NEW.flat), NEW).abs().mean() < 1e-5


@pytest.mark.parametrize(
    ("dtype", "head", "low", "high"),
    [("bfloat16", "bfloat16", 5e-3, 0.1), ("float32", "bfloat16", 5e-4, 0.02), ("bfloat16", "float32", 5e-3, 0.1)],
)
def test_reduced_precision_is_skew_of_the_published_order(
    engine: VllmEngine, dtype: str, head: str, low: float, high: float
) -> None:
    scenario = FLOAT32.with_values({"engine.dtype": dtype, "engine.head_dtype": head})
    rollouts = started(engine, scenario).generate(request())
    assert (engine.info["dtype"], engine.info["head_dtype"]) == (dtype, head)
    assert low < float(skew(rollouts, OLD).abs().mean()) < high


def test_the_check_says_what_works(engine_name: str) -> None:
    found = check_engine(choose_local(engine_name))
    assert found.problem is None
    assert found.ok
    assert set(found.works.values()) == {True}


def test_a_model_that_vllm_cannot_load_is_one_error(engine_name: str, tmp_path: Path) -> None:
    OLD.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(EngineError, match="refused init") as caught:
        choose(engine_name).session(tmp_path, FLOAT32.engine, size=Size(14, 12, 4))
    assert "\n" not in str(caught.value)
