"""The loop: common random numbers, toggles, divergence, checkpoints, and what each fix moves."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import skewsim.learn.trainer as module
from skewsim.engine.rollouts import Rollouts
from skewsim.errors import UserError
from skewsim.learn.scoring import Scored, score_rollouts
from skewsim.learn.trainer import Trainer, train
from skewsim.records import StepRecord
from skewsim.runs.ensemble import Ensemble
from skewsim.scenarios import INITIAL_V1, find_scenario
from skewsim.settings import Scenario
from skewsim.skew.metrics import METRICS
from skewsim.sweeps.chunk import some_members
from skewsim.task import Scores, Task

SMALL = {"task.response_length": 6, "trainer.num_prompts": 4, "trainer.num_generations": 4, "steps": 4}


def _scenario(**values: object) -> Scenario:
    return Scenario().with_values(SMALL | {k.replace("__", "."): v for k, v in values.items()})


def _run(scenario: Scenario, *, seeds: tuple[int, ...] = (0,)) -> list[StepRecord]:
    return [r for records in train(scenario, seeds=seeds) for r in records]


def _numbers(records: list[StepRecord]) -> list[tuple]:
    return [(r.seed, r.step, *((k, v) for k, v in r.metrics.items() if not k.startswith("time/"))) for r in records]


def test_a_run_is_a_function_of_scenario_and_seed_bit_for_bit() -> None:
    assert _numbers(_run(_scenario())) == _numbers(_run(_scenario()))


def test_members_that_differ_in_nothing_coincide_bit_for_bit() -> None:
    records = _run(_scenario(), seeds=(3, 8, 3))
    by_member = [[r for i, r in enumerate(records) if i % 3 == m] for m in range(3)]
    assert _numbers(by_member[0]) == _numbers(by_member[2])
    assert _numbers(by_member[0]) != _numbers(by_member[1])


def test_a_members_curve_alone_equals_its_curve_among_others_to_1e_4() -> None:
    """Equal bit for bit where the BLAS uses the same kernel for one matrix as for many, which it does not promise."""
    alone = _run(_scenario(), seeds=(8,))
    among = [r for r in _run(_scenario(), seeds=(3, 8, 5)) if r.seed == 8]
    for a, b in zip(alone, among, strict=True):
        for key, value in a.metrics.items():
            if not key.startswith("time/") and value is not None:
                assert b.metrics[key] == pytest.approx(value, abs=1e-4, rel=1e-4), key


class Launches(TorchDispatchMode):
    """Counts the operations that torch starts, but for draws of random numbers, which each member has of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not str(func).startswith(("aten.rand", "aten._efficientzerotensor")):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "values",
    [
        {},
        INITIAL_V1,
        {"engine.top_p": 0.9, "engine.min_p": 0.1, "engine.repetition_penalty": 1.2},
        {"skew.noise": "normal", "skew.scale": 0.1},
        {"policy": "base_moe"},
    ],
)
def test_a_step_starts_as_many_operations_for_many_members_as_for_few(values: dict) -> None:
    """So that on a GPU no launch is one member's alone, neither in decode nor in learning."""
    found = []
    for members in (2, 7):
        trainer = Trainer(_scenario(**values), seeds=range(members))
        trainer.step()
        with Launches() as launches:
            trainer.step()
        found.append(launches.counts)
    assert found[0] == found[1]


def test_a_rollout_of_an_ensemble_is_that_of_each_members_own_weights() -> None:
    scenario = _scenario(**INITIAL_V1)
    together = Trainer(scenario, seeds=range(3))
    for _ in range(3):
        together.step()  # by now all weights differ
    state = together.state()
    rollouts = together.engine.generate(together._request(3))
    for member in range(3):
        own = some_members(state, [member])
        alone = Trainer(scenario, seeds=(member,), state=own)
        theirs = alone.engine.generate(alone._request(3))
        assert torch.equal(theirs.tokens[0], rollouts.tokens[member])
        torch.testing.assert_close(theirs.engine_logprobs[0], rollouts.engine_logprobs[member], rtol=0, atol=1e-4)


PACKED = {"trainer.packing": "leaking", "trainer.pack_size": 3}


@pytest.mark.parametrize(
    ("values", "passes"),
    [
        ({"trainer.num_minibatches": 1}, [16]),
        ({"trainer.num_minibatches": 2}, [8, 8, 8]),
        ({"trainer.num_minibatches": 4, "trainer.old_logprobs": "recompute"}, [4, 12, 4, 4, 4]),
        ({"trainer.num_minibatches": 2, "trainer.dropout": 0.1}, [16, 8, 8]),
        ({"trainer.num_minibatches": 2, **PACKED}, [16, 8, 8]),
    ],
)
def test_the_pass_before_the_update_serves_the_first_minibatch_too_where_both_are_the_same(
    values: dict, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(policy: object, rollouts: Rollouts, *rest: object, **more: object) -> Scored:
        seen.append(rollouts.tokens.shape[1])
        return score_rollouts(policy, rollouts, *rest, **more)

    monkeypatch.setattr(module, "score_rollouts", counted)
    scenario = _scenario(steps=2, **values)
    records = _run(scenario)
    assert seen == passes * 2
    monkeypatch.setattr(module, "_passes_agree", lambda *_: False)
    for ours, theirs in zip(records, _run(scenario), strict=True):
        mine, other = ({**each.metrics, "time/step_s": 0, "skew/kl_k3_lag0": 0} for each in (ours, theirs))
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_scenarios_side_by_side_do_not_touch_each_other() -> None:
    a, b = _scenario(name="a"), _scenario(name="b", engine__lag=3)
    ensemble = Ensemble([a, b], seeds=(0, 1))
    together: list[StepRecord] = []
    while ensemble.alive:
        together += ensemble.step()
    for scenario in (a, b):
        mine = [r for r in together if r.scenario == scenario.name]
        assert _numbers(mine) == _numbers(_run(scenario, seeds=(0, 1)))


def test_two_scenarios_coincide_until_the_setting_that_differs_acts() -> None:
    """At the first rollout there are no older weights yet, so a lag can only change later steps."""
    near, far = _run(_scenario(engine__lag=1)), _run(_scenario(engine__lag=4, engine__mode="wait"))
    assert _numbers(near)[0] == _numbers(far)[0]
    assert _numbers(near)[3] != _numbers(far)[3]


def test_every_metric_of_the_table_is_recorded_at_every_step() -> None:
    """Those of routing of a mixture of experts only."""
    dense = {key for key in METRICS if not key.startswith("routing/")}
    assert set(_run(_scenario(trainer__beta=0.01))[-1].metrics) == dense
    assert dense - set(_run(_scenario())[-1].metrics) == {"policy/kl_reference"}


@pytest.mark.slow
def test_a_kl_penalty_alone_brings_a_policy_back_to_where_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a reward the penalty is the whole gradient, and shrinks the distance that the first steps have made."""
    trainer = Trainer(_scenario(steps=60, trainer__learning_rate=1e-3))
    for _ in range(20):
        trainer.step()
    monkeypatch.setattr(Task, "score", lambda _, ids, tokens, mask: Scores(*2 * (torch.zeros(tokens.shape[:2]),)))
    trainer.toggle(_scenario(steps=60, trainer__learning_rate=3e-4, trainer__beta=1e-4))
    found = [trainer.step()[0].metrics["policy/kl_reference"] or 0.0 for _ in range(40)]
    assert found[-1] < 0.7 * found[0]


def test_records_survive_json() -> None:
    record = _run(_scenario())[-1]
    assert StepRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "objective", ["reinforce", "rloo", "reinforce_pp", "ppo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "dppo"]
)
@pytest.mark.parametrize("old", ["rollout", "recompute"])
def test_every_objective_trains_with_finite_numbers(objective: str, old: str) -> None:
    records = _run(_scenario(trainer__objective=objective, trainer__old_logprobs=old, steps=2))
    assert all(r.diverged is None and math.isfinite(r.metrics["optim/loss"] or 0) for r in records)


def test_with_no_lag_one_precision_and_no_minibatches_there_is_no_skew_and_no_clip() -> None:
    records = _run(_scenario(engine__lag=0, trainer__num_minibatches=1))
    for r in records:
        assert (r.metrics["skew/logprob_diff_max"] or 0) < 1e-4
        assert r.metrics["update/clip_rate"] == 0
        assert r.metrics["lag/mean"] == 0


@pytest.mark.parametrize(
    ("lag", "at", "mode", "expected"),
    [(1, 3, "keep", 0.5), (1, None, "keep", 1), (4, None, "keep", 4), (4, 3, "wait", 4), (4, 3, "keep", 3.5)],
)
def test_lag_is_trainer_version_minus_sampling_version(lag: int, at: int | None, mode: str, expected: float) -> None:
    records = _run(_scenario(engine__lag=lag, engine__update_at_token=at, engine__mode=mode, steps=8))
    assert records[-1].metrics["lag/mean"] == pytest.approx(expected)


def test_the_gradient_is_the_truthful_one_unless_the_report_is_wrong() -> None:
    truthful = _run(_scenario(engine__head_dtype="bfloat16"))
    raw = _run(_scenario(engine__logprobs_mode="raw_logprobs"))
    assert all(r.metrics["optim/grad_cosine"] == 1 for r in truthful)
    assert all((r.metrics["optim/grad_cosine"] or 0) < 0.999 for r in raw)


def test_a_toggle_takes_effect_at_the_step_boundary_and_is_recorded() -> None:
    loop = train(_scenario(name="x", steps=4))
    plain = _run(_scenario(name="x", steps=4))
    before = [next(loop)[0], next(loop)[0]]
    after = loop.send(_scenario(name="x", steps=4, engine__logprobs_mode="raw_logprobs"))[0]
    assert _numbers(before) == _numbers(plain[:2])
    assert after.events == ["engine.logprobs_mode: processed_logprobs -> raw_logprobs"]
    assert after.metrics["skew/bias"] != plain[2].metrics["skew/bias"]
    assert (
        after.metrics["reward/mean"] == plain[2].metrics["reward/mean"]
    )  # what is reported does not change what is sampled


def test_a_toggle_that_changes_the_task_is_refused_and_changes_nothing() -> None:
    trainer = Trainer(_scenario())
    with pytest.raises(UserError, match="task"):
        trainer.toggle(_scenario(task__response_length=8))
    assert _numbers(trainer.step()) == _numbers(_run(_scenario())[:1])


def test_every_engine_setting_can_be_toggled_in_mid_run() -> None:
    trainer = Trainer(_scenario(engine__enable_prefix_caching=True))
    for values in (
        INITIAL_V1,
        {"engine.dtype": "bfloat16"},
        {"engine.kv_cache_dtype": "fp8"},
        {"engine.lag": 0},
        {"engine.lag": 5},
        {"engine.quantization": "int8"},
        {"engine.enable_prefix_caching": False},
        {"engine.weight_sync": "partial", "engine.replicas": 2, "engine.stale_replicas": 1},
        {"engine.repetition_penalty": 1.1, "engine.stale_replicas": 0, "trainer.packing": "leaking"},
        {"engine.placeholder_logprobs": "eos", "trainer.dropout": 0.1},
    ):
        trainer.step()
        trainer.toggle(trainer.scenario.with_values(values))
    assert trainer.step()[0].diverged is None


def test_a_member_that_is_not_finite_ends_with_step_and_reason_and_the_others_go_on() -> None:
    trainer = Trainer(_scenario(steps=4), seeds=(0, 1, 2))
    undisturbed = _run(_scenario(steps=4), seeds=(0, 1, 2))
    trainer.step()
    trainer.policy.flat.data[1] = torch.nan
    second = trainer.step()
    assert [bool(r.diverged) for r in second] == [False, True, False]
    assert "step 1" in str(second[1].diverged)
    third = trainer.step()
    assert [r.seed for r in third] == [0, 2]
    assert _numbers(third) == [n for n in _numbers(undisturbed) if n[1] == 2 and n[0] != 1]


@pytest.mark.parametrize(
    "values",
    [{}, INITIAL_V1 | {"engine.lag": 3}, {"skew.noise": "student_t", "skew.scale": 0.1, "skew.drift": 0.1}],
    ids=["reference", "initial v1", "noise"],
)
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(values: dict) -> None:
    scenario = _scenario(steps=6).with_values(values)
    whole = _run(scenario, seeds=(0, 4))
    first = Trainer(scenario, seeds=(0, 4))
    records = [r for _ in range(3) for r in first.step()]
    again = Trainer(scenario, seeds=(0, 4), state=first.state())
    records += [r for _ in range(3) for r in again.step()]
    assert _numbers(records) == _numbers(whole)


def test_two_trainers_from_one_state_do_not_disturb_each_other() -> None:
    scenario = _scenario(steps=4)
    first = Trainer(scenario)
    first.step()
    state = first.state()
    one, other = Trainer(scenario, state=state), Trainer(scenario, state=state)
    alone = [r for _ in range(3) for r in one.step()]
    assert _numbers([r for _ in range(3) for r in other.step()]) == _numbers(alone)


def test_mask_truncated_completions_leaves_aborted_responses_out_of_the_loss() -> None:
    values = {"engine__mode": "abort", "engine__lag": 1, "engine__update_at_token": 3, "steps": 3}
    masked = _run(_scenario(trainer__mask_truncated_completions=True, **values))[-1]
    assert masked.metrics["response/aborted"] == 1
    assert masked.metrics["optim/grad_norm"] in (0, None)


def test_keep_sampling_mask_removes_the_skew_of_top_p() -> None:
    without = _run(_scenario(engine__top_p=0.8, engine__lag=0, trainer__num_minibatches=1))[0]
    kept = _run(
        _scenario(
            engine__top_p=0.8, engine__lag=0, trainer__num_minibatches=1, trainer__correction__keep_sampling_mask=True
        )
    )[0]
    assert (without.metrics["skew/bias"] or 0) < -0.01
    assert abs(kept.metrics["skew/bias"] or 1) < 1e-5


def test_one_adam_over_the_ensemble_is_adam_on_each_member() -> None:
    among = Trainer(_scenario(), seeds=(0, 1))
    alone = Trainer(_scenario(), seeds=(1,))
    for _ in range(3):
        among.step()
        alone.step()
    # where a gradient is nothing but rounding, Adam makes a step of it: a few parameters, by a fraction of the rate
    assert torch.allclose(among.policy.flat[1], alone.policy.flat[0], atol=5e-5)


def test_named_scenarios_are_all_valid_and_the_last_rung_is_the_reference() -> None:
    reference, last = find_scenario("v0_reference"), find_scenario("plus_fp32_head")
    assert reference.model_dump(exclude={"name"}) == last.model_dump(exclude={"name"})
