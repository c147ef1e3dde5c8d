"""Engine and trainer route a mixture of experts each at its own precision; replaying routes makes them agree again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skewsim.engine.rollouts import RolloutRequest, Rollouts, WeightUpdate
from skewsim.engine.simulated import SimEngine
from skewsim.errors import UserError
from skewsim.learn.base_policy import starting_policy
from skewsim.learn.look import look_at
from skewsim.learn.routing import decisions_differ, routing_metrics
from skewsim.learn.scoring import Pass, score
from skewsim.learn.trainer import Trainer
from skewsim.model.policy import Policy
from skewsim.runs.ensemble import Ensemble
from skewsim.settings import Scenario
from skewsim.task import Task

REPLAY = {"engine.enable_return_routed_experts": True, "trainer.router_replay": "R3"}
BFLOAT16 = {"engine.dtype": "bfloat16", "engine.moe_router_dtype": "bfloat16"}
QUIET = {"policy": "base_moe", "engine.lag": 0, "engine.update_at_token": None, "trainer.learning_rate": 0.0}
GROUP = 4
MANY = {"trainer.num_prompts": 12, "trainer.num_generations": 8}
"""Enough tokens for some of them to flip."""


def scenario(**values: object) -> Scenario:
    set_here = {"trainer.num_prompts": 4, "trainer.num_generations": GROUP, "steps": 2}
    return Scenario().with_values({**QUIET, **set_here, **values})


def rollouts_of(
    made: Scenario, *, seeds: tuple[int, ...] = (0,), prompts: int = 4, update: Policy | None = None
) -> Rollouts:
    task, engine = Task(made.task), SimEngine()
    engine.start(made, starting_policy(made).stacked(len(seeds)), version=0)
    ids = task.sample_prompts(seeds, step=0, num_prompts=prompts)
    late = None if update is None else WeightUpdate(update.flat, 1)
    return engine.generate(RolloutRequest(0, seeds, ids, task.pool[ids], GROUP, task.max_tokens, late, update_at=6))


def metrics(**values: object) -> dict[str, float | None]:
    (record,) = Trainer(scenario(**values)).step()
    return record.metrics


def test_in_float32_both_sides_route_alike() -> None:
    found = metrics()
    assert found["routing/decisions_differ"] == found["routing/tokens_differ"] == 0
    assert found["routing/rms_differ"] is None
    assert found["skew/kl_k3"] < 1e-9


def test_the_engines_routes_are_those_of_the_trainers_own_pass() -> None:
    made = scenario()
    rollouts = rollouts_of(made)
    scored = score(
        starting_policy(made).weights(dtype="float32", head_dtype="float32"), rollouts, group=GROUP, temperature=0.8
    )
    assert torch.equal(rollouts.true_routes.sort(-1).values, scored.routed_experts.sort(-1).values)


@pytest.mark.parametrize("pack", [{"trainer.packing": "isolated", "trainer.pack_size": 3}, {"trainer.dropout": 0.01}])
def test_routes_belong_to_their_tokens_however_the_trainer_lays_out_its_rows(pack: dict) -> None:
    made = scenario(**pack)
    rollouts, weights = rollouts_of(made), starting_policy(made).weights(dtype="float32", head_dtype="float32")
    how = replace(Pass.of(made), dropout=None)
    plain = score(weights, rollouts, group=GROUP, temperature=0.8)
    laid_out = score(weights, rollouts, group=GROUP, temperature=0.8, how=how)
    assert torch.equal(plain.routed_experts, laid_out.routed_experts)
    other = (rollouts.true_routes + 1) % 16
    replayed = [score(weights, rollouts, group=GROUP, temperature=0.8, how=h, replayed=other) for h in (Pass(), how)]
    assert (replayed[0].logprobs - replayed[1].logprobs).abs().max() < 1e-5
    assert (replayed[0].logprobs - plain.logprobs).abs().max() > 0.1


def test_a_router_in_bfloat16_flips_where_its_logits_are_close() -> None:
    policy = starting_policy(scenario())
    made = rollouts_of(scenario(), prompts=32)
    exact, rough = (
        score(
            policy.weights(dtype="float32", head_dtype="float32", router_dtype=dtype),
            made,
            group=GROUP,
            temperature=0.8,
        )
        for dtype in (None, "bfloat16")
    )
    assert torch.equal(exact.routed_experts, made.true_routes)
    assert 0 < decisions_differ(exact.routed_experts, rough.routed_experts, 12).float().mean() < 0.05


def test_tokens_that_were_routed_otherwise_have_more_skew_and_replay_takes_it_away() -> None:
    own, replayed = (metrics(**BFLOAT16, **MANY, **more) for more in ({}, REPLAY))
    assert own["routing/tokens_differ"] > 0
    assert own["routing/rms_differ"] > 1.5 * own["routing/rms_same"]
    assert replayed["routing/rms_differ"] < 0.6 * own["routing/rms_differ"]
    assert replayed["skew/kl_k3"] < own["skew/kl_k3"]


def test_with_only_the_router_in_bfloat16_replay_leaves_the_floor() -> None:
    own, replayed = (metrics(**{"engine.moe_router_dtype": "bfloat16"}, **MANY, **more) for more in ({}, REPLAY))
    assert own["routing/skew_share"] > 0.2
    assert replayed["skew/kl_k3"] < 0.2 * own["skew/kl_k3"]


def test_replay_of_the_own_routes_changes_no_number() -> None:
    """R3 on an engine that routes as the trainer does, and R2 before any update, compute what no replay computes."""
    own, r3 = metrics(), metrics(**REPLAY)
    for key in ("optim/loss", "optim/grad_norm", "skew/logprob_diff_mean"):
        assert own[key] == pytest.approx(r3[key], rel=1e-3, abs=1e-6)
    r2 = metrics(**{"trainer.router_replay": "R2"})
    assert own["optim/loss"] == pytest.approx(r2["optim/loss"], abs=1e-6)


def test_r2_replays_in_the_update_what_the_pass_before_it_chose() -> None:
    """After large steps the router chooses otherwise; under R2 the update still uses the old experts."""
    moving = {"trainer.learning_rate": 0.003, "trainer.num_iterations": 4, "trainer.old_logprobs": "recompute"}
    own, r2 = (metrics(**moving, **more) for more in ({}, {"trainer.router_replay": "R2"}))
    assert own["skew/kl_k3"] == r2["skew/kl_k3"]  # the pass before the update is the same
    assert own["update/ratio_std"] != r2["update/ratio_std"]


def test_old_logprobs_without_replay_beside_an_update_with_it_put_routing_into_the_update_ratio() -> None:
    shared = {**BFLOAT16, **REPLAY, "trainer.old_logprobs": "recompute", "trainer.num_minibatches": 1}
    right, fault = (metrics(**shared, **{"trainer.replay_old_logprobs": on}) for on in (True, False))
    assert right["update/ratio_std"] == pytest.approx(0, abs=1e-5)
    assert fault["update/ratio_std"] > 1e-3


@pytest.mark.parametrize("fault", ["zeros", "shifted", "padded"])
def test_replaying_wrong_routes_is_far_worse_than_replaying_none(fault: str) -> None:
    none, wrong = metrics(), metrics(**REPLAY, **{"engine.routed_experts_fault": fault})
    assert none["skew/kl_k3"] < 1e-9
    assert wrong["skew/kl_k3"] > 0.03


def test_the_faults_of_returned_routes_are_what_they_say() -> None:
    def returned(fault: str) -> tuple[torch.Tensor, torch.Tensor]:
        made = rollouts_of(
            scenario(**{"engine.enable_return_routed_experts": True, "engine.routed_experts_fault": fault})
        )
        return made.true_routes, made.routed_experts

    true, same = returned("none")
    assert torch.equal(true, same)
    assert not returned("zeros")[1].any()
    assert torch.equal(returned("shifted")[1][:, :, 1:], true[:, :, :-1])
    pad = 32 - true.shape[2]
    assert torch.equal(returned("padded")[1][:, :, pad:], true[:, :, :-pad])
    assert rollouts_of(scenario()).routed_experts is None


def test_routes_go_with_cached_keys_and_values_through_a_weight_update() -> None:
    """Without clearing, tokens before the update keep their routes; with it, all are computed anew."""
    stream = torch.Generator().manual_seed(5)
    old = starting_policy(scenario())
    new = Policy(old.config, old.flat + 0.05 * torch.randn(old.flat.shape, generator=stream))
    kept, cleared = (
        rollouts_of(scenario(**{"engine.lag": 1, "engine.update_at_token": 6, "engine.clear_cache": clear}), update=new)
        for clear in (False, True)
    )
    before = score(old.weights(dtype="float32", head_dtype="float32"), kept, group=GROUP, temperature=0.8)
    prompt = kept.prompts.shape[2]
    assert torch.equal(kept.true_routes[:, :, :prompt], before.routed_experts[:, :, :prompt])
    after = score(new.weights(dtype="float32", head_dtype="float32"), cleared, group=GROUP, temperature=0.8)
    same = (cleared.true_routes.sort(-1).values == after.routed_experts.sort(-1).values).float().mean()
    assert same > 0.999


def test_prefix_caching_returns_the_routes_that_were_stored() -> None:
    made = scenario(**{"engine.enable_prefix_caching": True})
    engine, task, policy = SimEngine(), Task(made.task), starting_policy(made)
    engine.start(made, policy, version=0)
    ids = task.sample_prompts((0,), step=0, num_prompts=4)
    request = RolloutRequest(0, (0,), ids, task.pool[ids], GROUP, task.max_tokens)
    first = engine.generate(request)
    moved = Policy(policy.config, policy.flat * 1.3)
    second = engine.generate(replace(request, update=WeightUpdate(moved.flat, 1), update_at=0))
    prefix = request.prompts.shape[2] - 1
    assert torch.equal(first.true_routes[:, :, :prefix], second.true_routes[:, :, :prefix])


def test_members_of_an_ensemble_route_as_they_would_alone() -> None:
    values = {**BFLOAT16, **REPLAY, "trainer.learning_rate": 5e-4}
    together = Ensemble([scenario(name="a", **values), scenario(name="b")], seeds=(0, 1))
    alone = Trainer(scenario(**values), seeds=(1,))
    among = next(r for r in together.step() if r.scenario == "a" and r.seed == 1)
    (record,) = alone.step()
    for key in ("skew/kl_k3", "routing/decisions_differ", "optim/loss", "optim/grad_norm"):
        assert among.metrics[key] == pytest.approx(record.metrics[key], rel=1e-4, abs=1e-7), key


def test_a_dense_policy_has_no_routing_metrics() -> None:
    assert not [key for key in metrics(policy="base") if key.startswith("routing/")]


def test_a_dense_policy_has_no_routes_to_replay() -> None:
    with pytest.raises(UserError, match=r"trainer.router_replay=.*policy.*base_moe"):
        Trainer(scenario(policy="base", **REPLAY))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trainer.router_replay": "R3"}, "needs engine.enable_return_routed_experts=true"),
        ({"trainer.router_replay": "R4"}, "trainer.router_replay='R4'"),
        (REPLAY | {"trainer.chat_template": "drop_thinking"}, "needs trainer.chat_template=keep_thinking"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(values: dict, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        scenario(**values)
    assert "\n" not in str(raised.value)


def test_a_look_scores_with_the_routes_that_the_trainer_replays() -> None:
    made = scenario(**BFLOAT16, **REPLAY)
    rollouts = rollouts_of(made)
    replayed = look_at(starting_policy(made), rollouts, made)
    own = look_at(starting_policy(made), replace(rollouts, routed_experts=None), made)
    assert np.abs(replayed.skew).mean() < np.abs(own.skew).mean()


@given(st.integers(0, 10**6))
def test_the_metrics_are_those_of_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (1, 3, 7, 2, 2)
    ours, theirs = (torch.tensor(rng.integers(0, 3, shape)) for _ in range(2))
    skew, mask = torch.tensor(rng.normal(size=(1, 3, 4))), torch.tensor(rng.integers(0, 2, (1, 3, 4)).astype(float))
    found = routing_metrics(decisions_differ(ours, theirs, 4), skew, mask)
    differ = np.array(
        [[[sorted(ours[0, n, 3 + t, i].tolist()) != sorted(theirs[0, n, 3 + t, i].tolist()) for i in range(2)]
          for t in range(4)] for n in range(3)]
    )  # fmt: skip
    live = mask[0].numpy() > 0
    square, other = skew[0].numpy() ** 2, differ.any(-1) & live
    due = {
        "routing/decisions_differ": differ[live].mean() if live.any() else 0.0,
        "routing/tokens_differ": other.sum() / max(live.sum(), 1),
        "routing/rms_differ": np.sqrt(square[other].mean()) if other.any() else np.nan,
        "routing/rms_same": np.sqrt(square[live & ~other].mean()) if (live & ~other).any() else np.nan,
        "routing/skew_share": square[other].sum() / square[live].sum() if live.any() else np.nan,
    }
    for key, value in due.items():
        assert float(found[key]) == pytest.approx(value, rel=1e-6, nan_ok=True), key
