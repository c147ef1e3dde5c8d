"""Claims about corrections: weights equal TRL's own or float64 formulas, rejection removes or zeroes as asked, weights
carry no gradient, and in bypass an objective's own ratio is never squared by a weight."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skewsim.learn.corrections import compute_weights
from skewsim.learn.losses import LossInputs
from skewsim.learn.objectives import compute_loss
from skewsim.settings import CorrectionSettings, TrainerSettings

from . import oracles

torch.set_num_threads(1)
SEEDS = range(5)
MIXED = CorrectionSettings(
    weight="token_tis", reject="k3", reject_high=0.05, veto=0.3, off_policy_mask=0.1, batch_normalize=True
)


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("trl", reason="TRL is the oracle; make test installs it")
    from . import trl_oracle

    return trl_oracle


def loss_inputs(p, **replaced):
    tensors = {
        "trainer_logprobs": torch.tensor(p.trainer, requires_grad=True),
        "old_logprobs": torch.tensor(p.old),
        "engine_logprobs": torch.tensor(p.engine),
        "mask": torch.tensor(p.mask),
        "advantages": torch.tensor(p.advantages),
        "group_ids": torch.tensor(p.group_ids),
    }
    return LossInputs(**(tensors | replaced))


def bypass_inputs(p):
    engine = torch.tensor(p.engine)
    return loss_inputs(p, old_logprobs=engine, engine_logprobs=engine)


def gradient(loss, inputs):
    (grad,) = torch.autograd.grad(loss.sum(), inputs.trainer_logprobs)
    return grad


def trl_problem(seed, drift=0.4):
    """No empty row, one of full length, and engine logprobs that float32 (in which TRL receives them) can hold."""
    p = oracles.problem(seed, drift=drift, empty_rows=False)
    p.mask[1] = 1
    p.engine = p.engine.astype(np.float32).astype(np.float64)
    return p


# TRL's own code

TRL_MODES = {
    "token_truncate": ({"weight": "token_tis", "weight_high": 1.3}, {"high": 1.3}),
    "token_truncate, both": ({"weight": "token_tis", "weight_low": 0.7, "weight_high": 1.3}, {"low": 0.7, "high": 1.3}),
    "token_mask": ({"weight": "token_mis", "weight_low": 0.5, "weight_high": 1.5}, {"low": 0.5, "high": 1.5}),
    "sequence_truncate": ({"weight": "sequence_tis", "weight_high": 1.5}, {"high": 1.5}),
    "sequence_mask": ({"weight": "sequence_mis", "weight_low": 0.0, "weight_high": 3.0}, {"high": 3.0}),
    "sequence_mask, both": (
        {"weight": "sequence_mis", "weight_low": 0.5, "weight_high": 3.0},
        {"low": 0.5, "high": 3.0},
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", TRL_MODES)
@pytest.mark.parametrize(
    ("objective", "theirs"),
    [
        ({"objective": "grpo"}, {"loss_type": "grpo"}),
        ({"objective": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
        ({"objective": "dr_grpo"}, {"loss_type": "dr_grpo"}),
        ({"objective": "cispo"}, {"loss_type": "cispo", "epsilon_high": 5.0}),
        (
            {"objective": "gspo", "gspo_form": "paper"},
            {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        ),
    ],
    ids=["grpo", "dapo", "dr_grpo", "cispo", "gspo"],
)
def test_importance_sampling_correction_equals_trls(trl, objective, theirs, mode, seed):
    p = trl_problem(seed)
    inputs = loss_inputs(p)
    ours, bounds = TRL_MODES[mode]
    generated = trl.generation(
        trl.GRPOTrainer, inputs, torch.tensor(p.rewards), generations=4, mode=mode.split(",")[0], **bounds
    )
    ratio = generated["importance_sampling_ratio"]
    correction = CorrectionSettings(masking="zero", **ours)
    weights, mask = compute_weights(inputs, correction)
    torch.testing.assert_close(weights, ratio * inputs.mask, rtol=1e-6, atol=1e-9)
    assert torch.equal(mask, inputs.mask)
    expected = trl.grpo_loss(inputs, ratio=ratio, **theirs).loss
    found = compute_loss(inputs, TrainerSettings(old_logprobs="recompute", correction=correction, **objective)).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient(found, inputs), gradient(expected, inputs), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_off_policy_sequence_mask_equals_trls(trl, loss_type, seed):
    inputs = loss_inputs(trl_problem(seed))
    expected = trl.grpo_loss(inputs, loss_type=loss_type, off_policy_mask_threshold=0.1).loss
    correction = CorrectionSettings(off_policy_mask=0.1, masking="zero")
    trainer = TrainerSettings(objective=loss_type, old_logprobs="recompute", correction=correction)
    outputs = compute_loss(inputs, trainer)
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient(outputs.loss, inputs), gradient(expected, inputs), rtol=1e-6, atol=1e-9)
    assert outputs.metrics["correction/kept"] < 1


def test_skew_sizes_equal_trls_metrics(trl):
    from skewsim.skew.metrics import skew_metrics

    p = trl_problem(0)
    inputs = loss_inputs(p)
    theirs = trl.generation_metrics(inputs, torch.tensor(p.rewards), generations=4)
    found = skew_metrics(p.old, p.engine, p.mask)
    assert found["logprob_diff_mean"] == pytest.approx(theirs["sampling/sampling_logp_difference/mean"], rel=1e-6)
    assert found["logprob_diff_max"] == pytest.approx(theirs["sampling/sampling_logp_difference/max"], rel=1e-6)


# float64 formulas


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weight", oracles.WEIGHT_RULES)
def test_weights_at_default_bounds_equal_the_float64_formula(weight, seed):
    p = oracles.problem(seed, drift=0.9)
    expected = oracles.weights(p, oracles.WEIGHT_RULES[weight])
    weights, mask = compute_weights(loss_inputs(p), CorrectionSettings(weight=weight))
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    np.testing.assert_array_equal(mask, expected > 0)


@pytest.mark.parametrize(("reject", "drift"), [("geometric", 0.002), ("k3", 0.15)])
def test_rejection_at_default_bounds_equals_the_float64_formula(reject, drift):
    seen = set()
    for seed in SEEDS:
        p = oracles.problem(seed, drift=drift)
        weights, mask = compute_weights(loss_inputs(p), CorrectionSettings(reject=reject))
        expected = oracles.weights(p, oracles.REJECT_RULES[reject])
        np.testing.assert_array_equal(weights, expected)
        np.testing.assert_array_equal(mask, expected)
        seen |= set(expected[p.mask > 0])
    assert seen == {0.0, 1.0}


def test_veto_rejects_a_sequence_for_one_token():
    p = oracles.problem(0, drift=0.0)
    p.old[3, 0] = p.engine[3, 0] + math.log(0.9e-4)
    p.old[5, 0] = p.engine[5, 0] + math.log(1.1e-4)
    p.old[6, p.mask[6] == 0] = -1000.0  # padding vetoes nothing
    weights, _ = compute_weights(loss_inputs(p), CorrectionSettings(veto=1e-4))
    expected = p.mask.copy()
    expected[3] = 0
    np.testing.assert_array_equal(weights, expected)


def test_off_policy_mask_spares_advantages_that_are_not_negative():
    p = oracles.problem(0, drift=0.0)
    p.trainer = p.engine - 0.1
    p.advantages[:6] = 0.0
    drop = CorrectionSettings(off_policy_mask=0.05)
    np.testing.assert_array_equal(compute_weights(loss_inputs(p), drop)[0], p.mask * (p.advantages >= 0)[:, None])
    near = CorrectionSettings(off_policy_mask=0.15)
    np.testing.assert_array_equal(compute_weights(loss_inputs(p), near)[0], p.mask)


def test_sequence_exponents_are_held_inside_twenty():
    p = oracles.problem(0, drift=0.0)
    p.old = p.engine + 100.0
    weights, _ = compute_weights(loss_inputs(p), CorrectionSettings(weight="sequence_tis", weight_high=1e9))
    np.testing.assert_allclose(weights[p.mask > 0], math.exp(20.0))


@pytest.mark.parametrize("weight", ["token_tis", "sequence_tis"])
def test_batch_normalisation_makes_the_mean_weight_one_after_truncation(weight):
    p = oracles.problem(1, drift=0.5)
    inputs = loss_inputs(p)
    raw, _ = compute_weights(inputs, CorrectionSettings(weight=weight))
    weights, _ = compute_weights(inputs, CorrectionSettings(weight=weight, batch_normalize=True))
    per_unit = weights[weights > 0] if weight == "token_tis" else weights[1:, 0]
    assert per_unit.mean().item() == pytest.approx(1.0)
    ratio = (weights / raw)[raw > 0]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


@pytest.mark.parametrize("weight", ["token_tis", "token_mis", "sequence_tis"])
def test_batch_normalisation_is_over_all_sampled_tokens_before_any_is_rejected(weight):
    """As in verl's compute_rollout_correction_weights and slime's compute_mis_weights."""
    p = oracles.problem(3, drift=0.5, empty_rows=False)
    raw = oracles.weights(p, oracles.WEIGHT_RULES[weight])
    per_token = weight.startswith("token")
    mean = raw[p.mask > 0].mean() if per_token else raw[:, 0].mean()
    correction = CorrectionSettings(
        weight=weight, reject="geometric", reject_low=0.8, reject_high=1.2, batch_normalize=True
    )
    kept = oracles.weights(p, oracles.kept_if(lambda ds: 0.8 <= math.exp(sum(ds) / len(ds)) <= 1.2))
    assert 0 < kept.sum() < p.mask.sum()
    weights, _ = compute_weights(loss_inputs(p), correction)
    np.testing.assert_allclose(weights, raw / mean * kept, rtol=1e-12)


def test_in_bypass_an_objective_with_a_ratio_takes_no_normalisation():
    p = oracles.problem(3, drift=0.5)
    inputs = loss_inputs(p, old_logprobs=torch.tensor(p.engine))
    correction = CorrectionSettings(weight="token_mis", masking="zero", batch_normalize=True)
    weights, _ = compute_weights(inputs, TrainerSettings(objective="grpo", correction=correction))
    assert set(weights.unique().tolist()) == {0.0, 1.0}


def test_corrections_compose():
    p = oracles.problem(2, drift=0.2)
    inputs = loss_inputs(p)
    parts = [{"weight": "token_tis"}, {"reject": "k3"}, {"veto": 0.7}, {"off_policy_mask": 0.05}]
    product = torch.ones_like(inputs.mask)
    for part in parts:
        product = product * compute_weights(inputs, CorrectionSettings(**part))[0]
    together = {key: value for part in parts for key, value in part.items()}
    assert torch.equal(compute_weights(inputs, CorrectionSettings(**together))[0], product)


# remove and zero


@pytest.mark.parametrize("objective", ["reinforce", "ppo", "grpo", "dr_grpo", "gspo", "cispo", "dppo"])
@pytest.mark.parametrize("correction", [{"weight": "sequence_mis"}, {"reject": "k3", "reject_high": 0.1}])
def test_removed_sequences_leave_numerator_and_denominator(objective, correction):
    inputs = loss_inputs(oracles.problem(1, drift=0.4))
    weights, mask = compute_weights(inputs, CorrectionSettings(**correction))
    stay = (mask.sum(-1) > 0) | (inputs.mask.sum(-1) == 0)
    assert 0 < stay.sum() < len(stay)
    smaller = LossInputs(**{key: value if value is None else value[stay] for key, value in vars(inputs).items()})
    trainer = TrainerSettings(
        objective=objective, old_logprobs="recompute", correction=CorrectionSettings(**correction, masking="remove")
    )
    torch.testing.assert_close(compute_loss(inputs, trainer).loss, compute_loss(smaller, trainer).loss)
    assert compute_loss(inputs, trainer).metrics["correction/kept"] == pytest.approx(
        (weights != 0).sum().item() / inputs.mask.sum().item()
    )


def test_zeroed_tokens_stay_in_the_denominator():
    inputs = loss_inputs(oracles.problem(1, drift=0.9))
    losses = {}
    for masking in ("remove", "zero"):
        correction = CorrectionSettings(weight="token_mis", masking=masking)
        weights, mask = compute_weights(inputs, correction)
        losses[masking] = compute_loss(
            inputs, TrainerSettings(objective="ppo", old_logprobs="recompute", correction=correction)
        ).loss.item()
        assert (mask.sum() == inputs.mask.sum()) == (masking == "zero")
    kept = (weights != 0).sum() / inputs.mask.sum()
    assert losses["zero"] == pytest.approx(losses["remove"] * kept.item())


# Bypass: the engine's logprobs are old


def test_in_bypass_reinforce_is_weighted_by_trainer_over_engine():
    p = oracles.problem(0, drift=0.5)
    inputs = bypass_inputs(p)
    trainer = TrainerSettings(objective="reinforce", correction=CorrectionSettings(weight="token_tis"))
    p.old = p.trainer  # d = old - engine of the formula is then trainer - engine
    expected = oracles.weights(p, oracles.WEIGHT_RULES["token_tis"])
    np.testing.assert_allclose(compute_weights(inputs, trainer)[0], expected, rtol=1e-12)
    assert compute_loss(inputs, trainer).loss.item() == pytest.approx(oracles.loss("reinforce", p, expected))


@pytest.mark.parametrize("objective", ["ppo", "grpo", "gspo", "cispo", "dppo"])
@pytest.mark.parametrize("weight", ["token_tis", "sequence_tis"])
def test_in_bypass_truncation_leaves_an_objective_with_a_ratio_as_it_is(objective, weight):
    inputs = bypass_inputs(oracles.problem(0, drift=0.5))
    corrected = TrainerSettings(objective=objective, correction=CorrectionSettings(weight=weight))
    plain = TrainerSettings(objective=objective)
    assert torch.equal(compute_loss(inputs, corrected).loss, compute_loss(inputs, plain).loss)


def test_in_bypass_masking_keeps_the_ratio_and_drops_tokens_far_from_the_engine():
    p = oracles.problem(0, drift=0.9)
    correction = CorrectionSettings(weight="token_mis")
    weights, _ = compute_weights(bypass_inputs(p), TrainerSettings(objective="ppo", correction=correction))
    rho = np.exp(p.trainer - p.engine)
    expected = (rho >= 0.5) & (rho <= 5.0) & (p.mask > 0)
    np.testing.assert_array_equal(weights, expected)
    assert 0 < expected.sum() < p.mask.sum()


def test_bypass_is_known_by_the_sampled_tokens_even_if_one_has_no_logprob():
    p = oracles.problem(0, drift=0.5)
    trainer = TrainerSettings(objective="reinforce", correction=CorrectionSettings(weight="token_tis"))
    expected = compute_weights(bypass_inputs(p), trainer)[0]
    old = torch.tensor(p.engine)
    old[torch.tensor(p.mask) == 0] = math.nan
    i, t = oracles.cells(p.mask)[0]
    p.engine[i, t] = old[i, t] = math.nan
    found = compute_weights(loss_inputs(p, old_logprobs=old), trainer)[0]
    elsewhere = torch.ones_like(old, dtype=torch.bool)
    elsewhere[i, t] = False
    assert torch.equal(found[elsewhere], expected[elsewhere])


def test_old_logprobs_that_are_not_the_engines_are_corrected_as_such():
    inputs = loss_inputs(oracles.problem(0))
    correction = CorrectionSettings(weight="token_tis")
    by_correction, _ = compute_weights(inputs, correction)
    by_trainer, _ = compute_weights(inputs, TrainerSettings(correction=correction))
    assert torch.equal(by_trainer, by_correction)


# Any settings


SETTINGS = st.builds(
    CorrectionSettings,
    weight=st.sampled_from(["none", "token_tis", "token_mis", "sequence_tis", "sequence_mis"]),
    reject=st.sampled_from(["none", "geometric", "k3"]),
    veto=st.sampled_from([None, 1e-4, 0.5]),
    off_policy_mask=st.sampled_from([None, 0.0, 0.2]),
    batch_normalize=st.booleans(),
    masking=st.sampled_from(["remove", "zero"]),
)


@settings(max_examples=100, deadline=None)
@given(
    correction=SETTINGS,
    objective=st.sampled_from(["reinforce", "rloo", "ppo", "grpo", "dapo", "gspo", "cispo", "dppo"]),
    old=st.sampled_from(["rollout", "recompute"]),
    seed=st.integers(0, 1000),
    drift=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_any_correction_gives_finite_loss_and_gradient_and_detached_weights(correction, objective, old, seed, drift):
    p = oracles.problem(seed, groups=2, drift=drift)
    p.trainer[p.mask == 0] = math.nan
    inputs = bypass_inputs(p) if old == "rollout" else loss_inputs(p)
    trainer = TrainerSettings(objective=objective, old_logprobs=old, correction=correction)
    weights, mask = compute_weights(inputs, trainer)
    assert not weights.requires_grad
    assert (weights >= 0).all()
    assert ((weights == 0) | (inputs.mask > 0)).all()
    assert ((mask > 0) <= (inputs.mask > 0)).all()
    if correction.masking == "remove":
        assert torch.equal(mask > 0, weights > 0)
    outputs = compute_loss(inputs, trainer)
    assert outputs.loss.isfinite()
    assert gradient(outputs.loss, inputs).isfinite().all()
    assert 0 <= outputs.metrics["correction/kept"] <= 1


@pytest.mark.parametrize("masking", ["remove", "zero"])
@pytest.mark.parametrize("objective", ["reinforce", "rloo", "ppo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "dppo"])
def test_a_batch_rejected_as_a_whole_has_no_gradient(objective, masking):
    inputs = loss_inputs(oracles.problem(0, drift=0.5))
    correction = CorrectionSettings(reject="k3", reject_high=0.0, masking=masking)
    outputs = compute_loss(
        inputs, TrainerSettings(objective=objective, old_logprobs="recompute", correction=correction)
    )
    assert outputs.metrics["correction/kept"] == 0
    if objective != "dppo" or masking == "remove":  # DPPO's penalty is no part of what a weight zeroes
        assert (gradient(outputs.loss, inputs) == 0).all()


@pytest.mark.parametrize("old", ["rollout", "recompute"])
def test_a_member_is_corrected_as_if_it_were_alone(old):
    members = [oracles.problem(seed, drift=0.2) for seed in SEEDS]
    alone = [bypass_inputs(p) if old == "rollout" else loss_inputs(p) for p in members]
    keys = ("trainer_logprobs", "old_logprobs", "engine_logprobs", "mask", "advantages")
    stacked = LossInputs(
        **{key: torch.stack([getattr(i, key) for i in alone]) for key in keys}, group_ids=alone[0].group_ids
    )
    trainer = TrainerSettings(objective="grpo", old_logprobs=old, correction=MIXED)
    weights, mask = compute_weights(stacked, trainer)
    assert 0 < mask.sum() < stacked.mask.sum()
    for e, inputs in enumerate(alone):
        expected = compute_weights(inputs, trainer)
        torch.testing.assert_close((weights[e], mask[e]), expected, rtol=1e-12, atol=0)


def test_no_correction_is_weight_one_on_every_sampled_token():
    inputs = loss_inputs(oracles.problem(0))
    weights, mask = compute_weights(inputs, TrainerSettings())
    assert torch.equal(weights, inputs.mask)
    assert torch.equal(mask, inputs.mask)
