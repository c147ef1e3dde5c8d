"""A `Look` agrees with its step's record, and can be diagnosed and fitted to a profile."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import skewsim
from skewsim.learn.look import Look, look_at
from skewsim.learn.trainer import Trainer
from skewsim.model.policy import Policy
from skewsim.records import StepRecord
from skewsim.settings import Scenario

HARD = {
    "engine.temperature": 0.7,
    "engine.top_p": 0.9,
    "engine.dtype": "bfloat16",
    "engine.lag": 2,
    "engine.update_at_token": 5,
    "trainer.beta": 0.01,
}


def last_step(
    values: dict[str, object], *, steps: int = 3, seeds: tuple[int, ...] = (0, 1)
) -> tuple[Trainer, list[StepRecord]]:
    trainer = Trainer(Scenario().with_values(values), seeds=seeds)
    for _ in range(steps):
        records = trainer.step()
    return trainer, records


@pytest.mark.parametrize(
    "values", [{}, HARD, {"trainer.old_logprobs": "recompute"}], ids=["plain", "hard", "recompute"]
)
@pytest.mark.parametrize("member", [0, 1])
def test_a_look_says_what_the_steps_record_says(values: dict[str, object], member: int) -> None:
    trainer, records = last_step(values)
    look, record = trainer.look(member), records[member].metrics
    assert look.step == records[member].step
    skew = skewsim.skew_metrics(look.trainer_logprobs, look.engine_logprobs, look.mask)
    assert skew["kl_k3"] == pytest.approx(record["skew/kl_k3"], rel=1e-9)
    assert skew["logprob_diff_max"] == record["skew/logprob_diff_max"]
    assert look.rewards.mean() == pytest.approx(record["reward/mean"], rel=1e-6)
    lag = (look.step - look.weight_versions)[look.mask]
    assert lag.mean() == pytest.approx(record["lag/mean"], rel=1e-6)
    assert (look.old_logprobs is look.engine_logprobs) == (trainer.scenario.trainer.old_logprobs == "rollout")
    assert (look.reference_logprobs is None) == (not trainer.scenario.trainer.beta)


def test_looking_changes_no_number_of_the_run() -> None:
    def run(look: bool) -> list[dict[str, object]]:
        trainer, rows = Trainer(Scenario(), seeds=(0,)), []
        for _ in range(3):
            rows += trainer.step()
            if look:
                trainer.look()
        return [{k: v for k, v in row.metrics.items() if not k.startswith("time/")} for row in rows]

    assert run(True) == run(False)


def test_a_rollout_looked_at_under_the_weights_of_then_is_the_steps_own_look() -> None:
    trainer, _ = last_step(HARD, steps=2)
    weights = trainer.policy.flat.detach().clone()
    rollouts = []
    generate = trainer.engine.generate
    trainer.engine.generate = lambda request: rollouts.append(generate(request)) or rollouts[-1]  # type: ignore[method-assign]
    trainer.step()
    own = trainer.look(1)
    again = look_at(Policy(trainer.policy.config, weights), rollouts[0], trainer.scenario, step=2, member=1)
    for name, value in vars(again).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(own, name), err_msg=name)


def test_the_table_and_the_sequences_hold_the_same_tokens() -> None:
    look = last_step(HARD)[0].look()
    table, sequences = look.table, look.sequences.table()
    for name in ("token", "engine_logprob", "trainer_logprob", "weight_version", "position"):
        np.testing.assert_array_equal(getattr(table, name), getattr(sequences, name), err_msg=name)
    assert len(table) == look.mask.sum()
    np.testing.assert_array_equal(table.skew, look.skew[look.mask])
    assert (table.square_mass >= np.exp(table.trainer_logprob) ** 2 - 1e-6).all()
    assert table.kept_mass is not None


def test_a_notebooks_ten_lines_from_a_scenario_to_a_diagnosis() -> None:
    trainer = skewsim.Trainer(skewsim.find_scenario("raw_bypass"))
    for _ in range(3):
        trainer.step()
    look = trainer.look()
    assert skewsim.diagnose(look.sequences).causes[0].name == "raw_logprobs"
    assert skewsim.fit_profile(look.table, name="mine", provenance={}, bootstrap=0).provenance.dtype == "float32"


def test_before_the_first_step_there_is_nothing_to_look_at() -> None:
    with pytest.raises(skewsim.UserError, match="no step has been done yet"):
        Trainer(Scenario()).look()


def test_a_trainer_an_ensemble_and_a_relay_are_experiments_and_so_is_anything_that_steps(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from skewsim.learn.trainer import TrainState
    from skewsim.runs.ensemble import Ensemble, Relay
    from skewsim.runs.experiment import Experiment
    from skewsim.runs.recording import RunFolder, read_records, record

    class Counting:
        alive, step_number = True, 0

        def step(self) -> list[StepRecord]:
            self.step_number += 1
            return [StepRecord(self.step_number - 1, "counting", 0, {"reward/mean": 1.0})]

        def state(self) -> TrainState:
            return TrainState({"n": torch.tensor([self.step_number])}, {})

        def close(self) -> None:
            pass

    members = [name for name in dir(Experiment) if not name.startswith("_")]
    for kind in (Trainer(Scenario()), Ensemble([Scenario()], seeds=(0,)), Relay):
        assert all(hasattr(kind, name) for name in members)
    folder = RunFolder(tmp_path / "run", Scenario(), seeds=(0,))
    assert len(list(record(Counting(), folder, steps=4))) == 4
    assert [row.step for row in read_records(tmp_path / "run")] == [0, 1, 2, 3]


def test_a_look_without_a_sampled_token_is_whole() -> None:
    empty = np.zeros((2, 3))
    look = Look(
        step=0, scenario=Scenario(), prompt_ids=np.zeros(2, np.int64), prompts=np.zeros((2, 4), np.int64),
        tokens=empty.astype(np.int64), mask=empty > 0, engine_logprobs=empty, trainer_logprobs=empty, square_mass=empty,
        weight_versions=empty.astype(np.int64), rewards=empty[:, 0], advantages=empty[:, 0],
    )  # fmt: skip
    assert len(look.table) == 0
    assert json.dumps(look.sequences.records[0].to_json())


def test_k3_at_lag_0_is_that_of_the_tokens_which_the_trainers_own_version_sampled() -> None:
    trainer, records = last_step({**HARD, "engine.lag": 1, "trainer.num_prompts": 2})
    for member, record in enumerate(records):
        look = trainer.look(member)
        fresh = look.mask & (look.weight_versions == look.step)
        d = (look.trainer_logprobs - look.engine_logprobs)[fresh].astype(np.float64)
        assert 0 < fresh.sum() < look.mask.sum()
        assert record.metrics["skew/kl_k3_lag0"] == pytest.approx(float((np.expm1(d) - d).mean()), rel=1e-9)


def test_where_every_token_has_a_lag_there_is_no_k3_at_lag_0() -> None:
    _, records = last_step({"engine.lag": 2, "engine.mode": "wait", "trainer.num_prompts": 2})
    assert records[0].metrics["lag/mean"] > 0
    assert records[0].metrics["skew/kl_k3_lag0"] is None
