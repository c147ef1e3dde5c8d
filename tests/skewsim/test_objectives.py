"""Claims about objectives: loss, gradient and advantages equal TRL's own code where TRL has the variant, and float64
formulas elsewhere; members of an ensemble are independent; padding is never read; no token means no gradient."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from skewsim import catalogue
from skewsim.errors import UserError
from skewsim.learn.losses import LossInputs
from skewsim.learn.objectives import OBJECTIVES, compute_advantages, compute_loss, objective_terms
from skewsim.settings import CorrectionSettings, TrainerSettings

from . import oracles

torch.set_num_threads(1)
SEEDS = range(5)
NAMES = [name for name in OBJECTIVES if name != "rloo/clipped"]  # has no epsilon by default; tested against TRL


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("trl", reason="TRL is the oracle; make test installs it")
    from . import trl_oracle

    return trl_oracle


def trainer_settings(name, **more):
    """Decoupled settings of an objective; GSPO's form after a slash."""
    objective, _, form = name.partition("/")
    return TrainerSettings(
        objective=objective, old_logprobs="recompute", **({"gspo_form": form} if form else {}), **more
    )


def loss_inputs(p, **replaced):
    """LossInputs of an oracle's problem, float64, with a gradient on the trainer's logprobs."""
    tensors = {
        "trainer_logprobs": torch.tensor(p.trainer, requires_grad=True),
        "old_logprobs": torch.tensor(p.old),
        "engine_logprobs": torch.tensor(p.engine),
        "mask": torch.tensor(p.mask),
        "advantages": torch.tensor(p.advantages),
        "group_ids": torch.tensor(p.group_ids),
    }
    return LossInputs(**(tensors | replaced))


def rows(inputs, chosen):
    """The inputs of some of the sequences, or of all in another order."""
    return LossInputs(**{name: None if value is None else value[chosen] for name, value in vars(inputs).items()})


def gradient(loss, inputs):
    (grad,) = torch.autograd.grad(loss.sum(), inputs.trainer_logprobs)
    return grad


# TRL's own loss code

TRL_VARIANTS = {
    "grpo": ("grpo", {}, {"loss_type": "grpo"}),
    "grpo, own bounds": ("grpo", {"epsilon": 0.1, "epsilon_high": 0.4}, {"epsilon_low": 0.1, "epsilon_high": 0.4}),
    "grpo, one bound for both": ("grpo", {"epsilon": 0.1}, {"epsilon_low": 0.1, "epsilon_high": 0.1}),
    "grpo, two-sided": ("grpo", {"delta": 1.5}, {"delta": 1.5}),
    "bnpo": ("ppo", {}, {"loss_type": "bnpo"}),
    "bnpo, two-sided": ("ppo", {"delta": 3.0}, {"loss_type": "bnpo", "delta": 3.0}),
    "bnpo for reinforce_pp": ("reinforce_pp", {}, {"loss_type": "bnpo"}),
    "dr_grpo": ("dr_grpo", {}, {"loss_type": "dr_grpo"}),
    "dapo": ("dapo", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "cispo": ("cispo", {}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "cispo, own cap": ("cispo", {"epsilon_high": 1.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
    "sapo": ("sapo", {}, {"loss_type": "sapo"}),
    "sapo, own temperatures": (
        "sapo",
        {"sapo_temperature_pos": 0.5, "sapo_temperature_neg": 3.0},
        {"loss_type": "sapo", "sapo_temperature_pos": 0.5, "sapo_temperature_neg": 3.0},
    ),
    "gspo": ("gspo/paper", {}, {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}),
    "luspo": (
        "gspo/pipelinerl",
        {},
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon_low": 2e-2, "epsilon_high": 2e-2},
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("variant", TRL_VARIANTS)
def test_loss_and_gradient_equal_trl(trl, variant, seed):
    name, ours, theirs = TRL_VARIANTS[variant]
    inputs = loss_inputs(oracles.problem(seed, drift=0.2 + 0.3 * seed))
    expected = trl.grpo_loss(inputs, **theirs).loss
    found = compute_loss(inputs, trainer_settings(name, **ours)).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient(found, inputs), gradient(expected, inputs), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variant", TRL_VARIANTS)
def test_the_kl_penalty_towards_the_reference_equals_trls_beta(trl, variant):
    name, ours, theirs = TRL_VARIANTS[variant]
    p = oracles.problem(1, drift=0.4)
    reference = torch.tensor(p.trainer + 0.5 * np.random.default_rng(1).normal(size=p.trainer.shape))
    inputs = loss_inputs(p, reference_logprobs=reference)
    expected = trl.grpo_loss(inputs, beta=0.04, **theirs)
    found = compute_loss(inputs, trainer_settings(name, beta=0.04, **ours))
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient(found.loss, inputs), gradient(expected.loss, inputs), rtol=1e-6, atol=1e-9)
    assert found.metrics["policy/kl_reference"] == pytest.approx(expected.metrics["kl"][0])


@pytest.mark.parametrize("variant", TRL_VARIANTS)
def test_the_kl_penalty_weighted_by_the_ratio_equals_trls(trl, variant):
    name, ours, theirs = TRL_VARIANTS[variant]
    p = oracles.problem(1, drift=0.4)
    reference = torch.tensor(p.trainer + 0.5 * np.random.default_rng(1).normal(size=p.trainer.shape))
    inputs = loss_inputs(p, reference_logprobs=reference)
    expected = trl.grpo_loss(inputs, beta=0.04, use_bias_correction_kl=True, **theirs).loss
    found = compute_loss(inputs, trainer_settings(name, beta=0.04, use_bias_correction_kl=True, **ours)).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient(found, inputs), gradient(expected, inputs), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_covariance_objectives_treat_a_few_tokens_as_no_other_objective_does(seed):
    inputs = loss_inputs(oracles.problem(seed, drift=0.3))
    plain = objective_terms(inputs, trainer_settings("ppo")).loss
    clipped = objective_terms(inputs, trainer_settings("clip_cov")).loss
    assert ((plain != clipped) & (inputs.mask > 0)).sum() == 1  # one token at least, 2 in 10,000 where there are more
    ratio = -(inputs.trainer_logprobs - inputs.old_logprobs).exp() * inputs.advantages.unsqueeze(-1)
    penalised = objective_terms(inputs, trainer_settings("kl_cov")).loss
    assert ((penalised - ratio > 1e-12) & (inputs.mask > 0)).sum() == 1


@pytest.mark.parametrize("masking", ["remove", "zero"])
def test_the_distance_from_the_reference_is_of_all_sampled_tokens_whatever_is_rejected(masking):
    p = oracles.problem(1, drift=0.4)
    reference = torch.tensor(p.trainer + 0.3)
    rejecting = CorrectionSettings(weight="token_mis", weight_low=0.9, weight_high=1.1, masking=masking)
    found = compute_loss(
        loss_inputs(p, reference_logprobs=reference), trainer_settings("grpo", beta=0.1, correction=rejecting)
    )
    assert found.metrics["correction/kept"] < 0.9
    assert found.metrics["policy/kl_reference"] == pytest.approx(math.exp(0.3) - 1.3)


def test_a_kl_penalty_without_a_reference_is_refused():
    with pytest.raises(UserError, match="beta needs reference_logprobs"):
        compute_loss(loss_inputs(oracles.problem(0)), trainer_settings("grpo", beta=0.1))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("variant", TRL_VARIANTS)
def test_clip_rates_by_side_equal_trl(trl, variant, seed):
    name, ours, theirs = TRL_VARIANTS[variant]
    inputs = loss_inputs(oracles.problem(seed, drift=0.5, empty_rows=False))
    expected = trl.grpo_loss(inputs, **theirs).metrics
    found = compute_loss(inputs, trainer_settings(name, **ours)).metrics
    if catalogue.OBJECTIVES[name].clip == "none":
        assert found["update/clip_rate"] == 0
    elif name == "cispo":
        assert found["update/clip_rate_high"] == pytest.approx(expected["cispo_clip_ratio"][0])
        assert found["update/clip_rate_low"] == 0
    else:
        assert found["update/clip_rate_low"] == pytest.approx(expected["clip_ratio/low_mean"][0])
        assert found["update/clip_rate_high"] == pytest.approx(expected["clip_ratio/high_mean"][0])


@pytest.mark.parametrize("seed", SEEDS)
def test_clipped_rloo_equals_trls_trainer(trl, seed):
    inputs = loss_inputs(oracles.problem(seed, drift=0.2, empty_rows=False))
    expected = trl.rloo_loss(inputs, epsilon=0.2)
    found = compute_loss(inputs, trainer_settings("rloo", epsilon=0.2))
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient(found.loss, inputs), gradient(expected.loss, inputs), rtol=1e-6, atol=1e-9)
    assert found.metrics["update/clip_rate_low"] == pytest.approx(expected.metrics["clip_ratio/low_mean"][0])


def test_rloos_gradient_on_policy_equals_trls(trl):
    inputs = loss_inputs(oracles.problem(0, drift=0.0))
    expected = trl.rloo_loss(inputs, epsilon=0.2).loss
    found = compute_loss(inputs, trainer_settings("rloo")).loss
    torch.testing.assert_close(gradient(found, inputs), gradient(expected, inputs), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "scale"), [("grpo", "group"), ("dapo", "group"), ("cispo", "group"), ("dr_grpo", "none")]
)
def test_group_advantages_equal_trls(trl, name, scale):
    p = oracles.problem(0, empty_rows=False)
    rewards = torch.tensor(p.rewards)
    expected = trl.generation(trl.GRPOTrainer, loss_inputs(p), rewards, generations=4, scale_rewards=scale)[
        "advantages"
    ]
    found = compute_advantages(rewards, torch.tensor(p.group_ids), trainer_settings(name))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_leave_one_out_advantages_equal_trls(trl):
    p = oracles.problem(0, empty_rows=False)
    rewards = torch.tensor(p.rewards)
    answer = trl.generation(trl.RLOOTrainer, loss_inputs(p), rewards, generations=4, normalize_advantages=False)
    found = compute_advantages(rewards, torch.tensor(p.group_ids), trainer_settings("rloo"))
    torch.testing.assert_close(found, answer["advantages"], rtol=1e-6, atol=1e-9)


# float64 formulas


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_equal_the_float64_formula(name, seed):
    p = oracles.problem(seed, groups=2, drift=0.3)
    inputs = loss_inputs(p)
    loss = compute_loss(inputs, trainer_settings(name)).loss
    assert loss.item() == pytest.approx(oracles.loss(name, p), rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(gradient(loss, inputs), oracles.gradient(name, p), rtol=1e-6, atol=1e-8)


def test_dual_clip_bounds_the_loss_of_a_negative_advantage():
    p = oracles.problem(1, groups=2, drift=1.5)
    expected = oracles.loss("ppo", p, delta=3.0)
    assert compute_loss(loss_inputs(p), trainer_settings("ppo", delta=3.0)).loss.item() == pytest.approx(expected)
    assert expected < oracles.loss("ppo", p)


@pytest.mark.parametrize("name", NAMES)
def test_advantages_equal_the_float64_formula(name):
    p = oracles.problem(4)
    order = np.random.default_rng(0).permutation(len(p.rewards))
    uneven = p.group_ids[order] // 2 * 2  # groups out of order ...
    uneven[p.group_ids[order] == 3] = 7  # ... and of different size
    found = compute_advantages(torch.tensor(p.rewards), torch.tensor(uneven), trainer_settings(name))
    np.testing.assert_allclose(found, oracles.advantages(name, p.rewards, uneven), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["reinforce_pp", "ppo"])
def test_whitening_over_tokens_is_a_whitening_of_every_token_by_its_sequences_value(name):
    """The tokens written out, in float64 numpy: mean off, divided by the unbiased standard deviation."""
    rng = np.random.default_rng(1)
    rewards, lengths = rng.normal(size=12), rng.integers(1, 40, 12)
    groups = np.repeat(np.arange(3), 4)
    base = rewards - (np.repeat(rewards.reshape(3, 4).mean(1), 4) if name == "reinforce_pp" else rewards.mean())
    tokens = np.repeat(base, lengths)
    expected = (base - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)
    over = trainer_settings(name, whiten_over="tokens")
    found = compute_advantages(torch.tensor(rewards), torch.tensor(groups), over, lengths=torch.tensor(lengths))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not np.allclose(
        found, compute_advantages(torch.tensor(rewards), torch.tensor(groups), trainer_settings(name))
    )
    alike = compute_advantages(torch.full((12,), 0.1), torch.tensor(groups), over, lengths=torch.tensor(lengths))
    assert (alike == 0).all()
    with pytest.raises(UserError, match="lengths"):
        compute_advantages(torch.tensor(rewards), torch.tensor(groups), over)


def test_only_an_objective_that_whitens_over_the_batch_heeds_what_is_whitened_over():
    rewards, groups = torch.rand(8), torch.arange(2).repeat_interleave(4)
    assert {name for name, each in OBJECTIVES.items() if each.centered is not None} == {"reinforce_pp", "ppo"}
    plain = compute_advantages(rewards, groups, trainer_settings("grpo"))
    assert torch.equal(plain, compute_advantages(rewards, groups, trainer_settings("grpo", whiten_over="tokens")))


def test_dapo_drops_groups_without_reward_spread_from_numerator_and_denominator():
    p = oracles.problem(2)
    rewards = torch.tensor(p.rewards)
    rewards[4:8] = 0.3
    advantages = compute_advantages(rewards, torch.tensor(p.group_ids), trainer_settings("dapo"))
    assert (advantages[4:8] == 0).all()
    stay = torch.tensor([i for i in range(16) if not 4 <= i < 8])
    inputs = loss_inputs(p, advantages=advantages)
    smaller = rows(inputs, stay)
    expected = compute_loss(smaller, trainer_settings("dapo")).loss
    torch.testing.assert_close(compute_loss(inputs, trainer_settings("dapo")).loss, expected)


def test_clip_rate_counts_what_the_clip_changes_whatever_the_advantage():
    old = torch.zeros(2, 2, dtype=torch.float64)
    trainer = torch.tensor([[1.5, 1.1], [0.5, 0.9]], dtype=torch.float64).log()
    inputs = LossInputs(
        trainer, old, old, torch.ones(2, 2), torch.tensor([1.0, 1.0], dtype=torch.float64), torch.tensor([0, 0])
    )
    found = compute_loss(inputs, trainer_settings("grpo")).metrics
    assert [found[f"update/clip_rate{side}"] for side in ("", "_low", "_high")] == [0.5, 0.0, 0.25]
    assert [found[f"update/ratio_{name}"] for name in ("mean", "min", "max")] == pytest.approx([1.0, 0.5, 1.5])
    assert found["update/ratio_std"] == pytest.approx(math.sqrt(0.13))


def test_dppo_counts_a_token_as_clipped_by_its_probability():
    engine = torch.tensor([[0.5, 0.001], [0.5, 0.9]], dtype=torch.float64).log()
    trainer = torch.tensor([[0.8, 0.1], [0.2, 0.8]], dtype=torch.float64).log()
    advantages = torch.tensor([1.0, 1.0], dtype=torch.float64)
    inputs = LossInputs(trainer, trainer, engine, torch.ones(2, 2), advantages, torch.tensor([0, 0]))
    found = compute_loss(inputs, trainer_settings("dppo")).metrics
    assert [found[f"update/clip_rate{side}"] for side in ("", "_low", "_high")] == [0.5, 0.0, 0.25]


# Ensembles, padding, empty batches


@pytest.mark.parametrize("name", NAMES)
def test_a_member_has_the_loss_and_gradient_it_has_alone(name):
    members = [oracles.problem(seed) for seed in SEEDS]
    for p in members:
        p.advantages = oracles.advantages(name, p.rewards, p.group_ids)
    stacked = {
        key: torch.stack([getattr(loss_inputs(p), key).detach() for p in members])
        for key in ("trainer_logprobs", "old_logprobs", "engine_logprobs", "mask", "advantages")
    }
    stacked["trainer_logprobs"].requires_grad_()
    together = LossInputs(**stacked, group_ids=torch.tensor(members[0].group_ids))
    outputs = compute_loss(together, trainer_settings(name))
    grads = gradient(outputs.loss, together)
    assert outputs.loss.shape == (len(members),)
    for e, p in enumerate(members):
        alone = loss_inputs(p)
        expected = compute_loss(alone, trainer_settings(name))
        torch.testing.assert_close(outputs.loss[e], expected.loss, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(grads[e], gradient(expected.loss, alone), rtol=1e-12, atol=1e-14)
        assert {k: v[e].item() for k, v in outputs.metrics.items()} == pytest.approx(expected.metrics, rel=1e-12)
        assert all(type(v) is float for v in expected.metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_float32_member_of_an_ensemble_is_bitwise_the_ensemble_of_one(name):
    members = [oracles.problem(seed, groups=8) for seed in SEEDS]
    keys = {"trainer": "trainer_logprobs", "old": "old_logprobs", "engine": "engine_logprobs", "mask": "mask"}
    stacked = {
        ours: torch.tensor(np.stack([getattr(p, key) for p in members]), dtype=torch.float32)
        for key, ours in (keys | {"advantages": "advantages"}).items()
    }

    def outcome(which):
        chosen = {key: value[which].clone() for key, value in stacked.items()}
        chosen["trainer_logprobs"].requires_grad_()
        inputs = LossInputs(**chosen, group_ids=torch.tensor(members[0].group_ids))
        loss = compute_loss(inputs, trainer_settings(name)).loss
        return loss.detach(), gradient(loss, inputs)

    losses, grads = outcome(slice(None))
    for e in range(len(members)):
        loss, grad = outcome(slice(e, e + 1))
        assert torch.equal(loss[0], losses[e])
        assert torch.equal(grad[0], grads[e])


@pytest.mark.parametrize("name", NAMES)
def test_advantages_of_a_member_are_bitwise_those_it_has_alone(name):
    rewards = torch.rand(6, 16, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(4).repeat_interleave(4)
    together = compute_advantages(rewards, groups, trainer_settings(name))
    assert all(
        torch.equal(together[e], compute_advantages(rewards[e], groups, trainer_settings(name))) for e in range(6)
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), name=st.sampled_from(NAMES), rubbish=st.sampled_from([math.nan, math.inf, -math.inf])
)
def test_what_stands_at_padding_is_never_read(seed, name, rubbish):
    p = oracles.problem(seed)
    clean = loss_inputs(p)
    expected = compute_loss(clean, trainer_settings(name))
    expected_grad = gradient(expected.loss, clean)
    for array in (p.trainer, p.old, p.engine):
        array[p.mask == 0] = rubbish
    dirty = loss_inputs(p)
    found = compute_loss(dirty, trainer_settings(name))
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(gradient(found.loss, dirty), expected_grad)
    assert found.metrics == expected.metrics


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_tokens_has_no_loss_and_no_gradient(name):
    p = oracles.problem(0)
    inputs = loss_inputs(p, mask=torch.zeros(16, 7, dtype=torch.float64))
    outputs = compute_loss(inputs, trainer_settings(name))
    assert outputs.loss.item() == 0
    assert (gradient(outputs.loss, inputs) == 0).all()
    assert math.isnan(outputs.metrics["update/ratio_mean"])
    assert math.isnan(outputs.metrics["update/ratio_min"])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), name=st.sampled_from([name for name in NAMES if name != "clip_cov"]))
def test_the_order_of_sequences_does_not_matter(seed, name):  # clip_cov draws its tokens by their place
    p = oracles.problem(seed)
    p.advantages = oracles.advantages(name, p.rewards, p.group_ids)
    inputs = loss_inputs(p)
    order = torch.tensor(np.random.default_rng(seed).permutation(16))
    shuffled = rows(inputs, order)
    torch.testing.assert_close(
        compute_loss(shuffled, trainer_settings(name)).loss, compute_loss(inputs, trainer_settings(name)).loss
    )


@pytest.mark.parametrize("name", NAMES)
def test_equal_rewards_teach_nothing(name):
    rewards = torch.full((12,), 0.1)
    groups = torch.arange(4).repeat_interleave(3)
    assert (compute_advantages(rewards, groups, trainer_settings(name)) == 0).all()


@settings(max_examples=60, deadline=None)
@given(rewards=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=12, max_size=12), name=st.sampled_from(NAMES))
def test_a_constant_added_to_every_reward_changes_no_advantage(rewards, name):
    groups = torch.arange(4).repeat_interleave(3)
    reward = torch.tensor(rewards, dtype=torch.float64)
    found = compute_advantages(reward + 2, groups, trainer_settings(name))
    torch.testing.assert_close(found, compute_advantages(reward, groups, trainer_settings(name)))
    assert found.sum().abs() < 1e-9


def test_every_objective_of_the_table_has_a_loss_and_every_loss_a_row():
    assert set(OBJECTIVES) == set(catalogue.OBJECTIVES)


@pytest.mark.parametrize("name", catalogue.objective_names())
def test_a_group_of_one_is_refused_where_the_table_says_that_groups_are_needed(name):
    form = catalogue.find_form(trainer_settings(name))
    if form.needs_groups:
        with pytest.raises(ValidationError, match=f"num_generations=1 leaves {name} without a group"):
            trainer_settings(name, num_generations=1)
    else:
        assert trainer_settings(name, num_generations=1).num_generations == 1


def test_without_groups_the_batch_is_the_baseline():
    rewards, alone = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.arange(4)
    expected = compute_advantages(rewards, torch.zeros(4, dtype=torch.int64), trainer_settings("reinforce_pp"))
    assert torch.equal(compute_advantages(rewards, alone, trainer_settings("reinforce_pp")), expected)
    assert (expected != 0).all()


def test_on_policy_every_ratio_objective_with_one_normaliser_has_reinforces_direction():
    p = oracles.problem(0, drift=0.0)
    p.old = p.trainer
    grads = {}
    for name in ("ppo", "reinforce_pp", "dapo", "cispo"):
        inputs = loss_inputs(p)
        grads[name] = gradient(compute_loss(inputs, trainer_settings(name)).loss, inputs)
    expected = torch.tensor(-p.advantages[:, None] * p.mask / p.mask.sum())
    for grad in grads.values():
        torch.testing.assert_close(grad, expected)


def test_shapes_that_do_not_fit_are_one_clear_error():
    p = oracles.problem(0)
    with pytest.raises(UserError, match=r"advantages has shape \(16, 7\); allowed: \(16,\)"):
        loss_inputs(p, advantages=torch.zeros(16, 7))
