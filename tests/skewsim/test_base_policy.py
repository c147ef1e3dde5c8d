"""Pretraining is deterministic and learns; the shipped policies are what a scenario starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from skewsim.cli.simulate import pretrain as pretrain_command
from skewsim.engine.rollouts import RolloutRequest, Rollouts
from skewsim.engine.simulated import SimEngine
from skewsim.errors import UserError
from skewsim.learn.base_policy import SHIPPED_LENGTHS, pretrain, shipped_folder, starting_policy
from skewsim.model.policy import Policy, PolicyConfig
from skewsim.settings import Scenario, TaskSettings
from skewsim.task import Scores, Task


def _rollouts(settings: TaskSettings, policy: str = "base") -> Rollouts:
    scenario = Scenario(task=settings, policy=policy)
    task, engine = Task(settings), SimEngine()
    engine.start(scenario, starting_policy(scenario), version=0)
    ids = torch.arange(settings.pool_size).unsqueeze(0)
    request = RolloutRequest(0, (0,), ids, task.pool[ids], num_generations=2, max_tokens=task.max_tokens)
    return engine.generate(request)


def _scores(settings: TaskSettings, policy: str = "base") -> Scores:
    task, rollouts = Task(settings), _rollouts(settings, policy)
    return task.score(rollouts.prompt_ids, rollouts.tokens, rollouts.mask)


@pytest.mark.parametrize("length", [12, 32])
@pytest.mark.parametrize("name", ["reverse", "reverse_until_zero"])
def test_the_shipped_base_policy_solves_about_half_of_the_prompts(name: str, length: int) -> None:
    solved = _scores(TaskSettings(name=name, response_length=length, pool_size=128)).exact.mean()
    assert 0.25 < solved < 0.75


@pytest.mark.parametrize("name", ["reverse", "reverse_until_zero"])
def test_at_64_digits_the_shipped_base_policy_is_well_above_chance(name: str) -> None:
    partial = _scores(TaskSettings(name=name, response_length=64, pool_size=32)).partial.mean()
    assert partial > 0.25  # a tenth is chance; half of the answers right is out of reach for two layers


@pytest.mark.parametrize("name", ["reverse", "reverse_until_zero"])
def test_the_shipped_mixture_of_experts_solves_about_half_of_the_prompts(name: str) -> None:
    solved = _scores(TaskSettings(name=name, pool_size=128), "base_moe").exact.mean()
    assert 0.25 < solved < 0.75


@pytest.mark.parametrize("name", ["reverse", "reverse_until_zero"])
def test_no_expert_of_the_shipped_mixture_is_idle(name: str) -> None:
    routes = _rollouts(TaskSettings(name=name, pool_size=32), "base_moe").true_routes
    assert routes is not None
    for layer in range(2):
        busy = torch.bincount(routes[..., layer, :].flatten(), minlength=16) / routes[..., layer, :].numel()
        assert busy.min() > 0.002  # a sixteenth, if all had equally many


@pytest.mark.parametrize("task", [{"name": "two_turns", "response_length": 6}, {"response_length": 13}])
def test_where_no_mixture_is_shipped_it_is_one_line(task: dict) -> None:
    with pytest.raises(UserError, match="policy='base_moe': none is shipped for"):
        starting_policy(Scenario(task=TaskSettings(**task), policy="base_moe"))


@pytest.mark.parametrize("experts", [1, -2, 65])
def test_a_number_of_experts_that_makes_no_mixture_is_one_line(experts: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--num-experts {experts}: allowed: 0 .dense., or 2 to 64"):
        pretrain_command(num_experts=experts, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_scenario_starts_from_the_shortest_policy_that_covers_its_length() -> None:
    for length in (4, 12, 13, 33):
        chosen = shipped_folder(TaskSettings(response_length=length)).name
        assert chosen == f"reverse-{min(n for n in SHIPPED_LENGTHS if n >= length)}"


def test_pretraining_is_deterministic_and_learns() -> None:
    task = TaskSettings(response_length=4)
    first, second = (list(pretrain(task, seed=1, max_steps=60)) for _ in range(2))
    assert torch.equal(first[-1].policy.flat, second[-1].policy.flat)
    assert first[-1].loss < first[0].loss
    other = list(pretrain(task, seed=2, max_steps=20))
    assert not torch.equal(first[0].policy.flat, other[0].policy.flat)


def test_a_policy_whose_vocabulary_is_too_small_is_one_line(tmp_path: Path) -> None:
    small = PolicyConfig(vocab_size=32)
    Policy.random(small, generator=torch.Generator()).save(tmp_path)
    with pytest.raises(UserError, match="vocab_size=32"):
        starting_policy(Scenario(policy=str(tmp_path)))


def test_a_folder_saved_from_a_policy_starts_the_same_run(tmp_path: Path) -> None:
    scenario = Scenario()
    starting_policy(scenario).save(tmp_path)
    again = starting_policy(scenario.model_copy(update={"policy": str(tmp_path)}))
    assert torch.equal(again.flat, starting_policy(scenario).flat)
