"""The faults that the simulator can make are mechanisms: each against an oracle that shares no code with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.simulated_cases import DICE, STEPS, WHERE, make_simulated_case, simulated_log
from skewsim.diagnose import diagnose
from skewsim.engine.penalties import Penalties
from skewsim.engine.rollouts import RolloutRequest, Rollouts, WeightUpdate
from skewsim.engine.sampling import soft_capped
from skewsim.engine.simulated import SimEngine
from skewsim.engine.weight_sync import delivered
from skewsim.errors import UserError
from skewsim.learn.scoring import EXACT as EXACTLY
from skewsim.learn.scoring import Pass, response_logits, score
from skewsim.learn.trainer import Trainer
from skewsim.model.dropout import Dropout
from skewsim.model.policy import Policy
from skewsim.scenarios import FAULTS
from skewsim.settings import EngineSettings, Scenario, TaskSettings
from skewsim.task import ANSWER, SEP, SYNONYMS, Task
from tests.skewsim.llama_oracle import huggingface, random_policy

TASK = TaskSettings(response_length=8, pool_size=6)
GROUP = 4
A, B = random_policy(seed=1), random_policy(seed=2)
EXACT = 3e-5


def rollout(task: TaskSettings = TASK, *, update: bool = True, at: int = 0, **engine: object) -> Rollouts:
    running, built = SimEngine(), Task(task)
    running.start(Scenario(task=task, engine=EngineSettings.model_validate(engine)), A, version=0)
    ids = torch.arange(task.pool_size).unsqueeze(0)
    new = WeightUpdate(B.flat, 1) if update else None
    return running.generate(
        RolloutRequest(0, (0,), ids, built.pool[ids], GROUP, built.max_tokens, update=new, update_at=at)
    )


def float32_logprobs(policy: Policy, made: Rollouts, temperature: float = 0.8) -> torch.Tensor:
    weights = policy.weights(dtype="float32", head_dtype="float32")
    return score(weights, made, group=GROUP, temperature=temperature).logprobs


# -- updates that do not arrive ------------------------------------------------------------------------------------


def test_an_engine_without_updates_counts_the_new_version_and_serves_the_old_weights() -> None:
    made = rollout(weight_sync="none")
    assert bool((made.weight_versions == 1).all())
    assert (float32_logprobs(A, made) - made.engine_logprobs).abs().max() < EXACT
    assert (float32_logprobs(B, made) - made.engine_logprobs).abs().max() > 0.1


@pytest.mark.parametrize("how", ["base_only", "partial"])
def test_an_engine_with_some_of_the_tensors_serves_the_policy_made_of_them(how: str) -> None:
    """The oracle puts the Hugging Face tensors together by their names."""
    mixed = Policy(B.config, B.flat.clone())
    views, old = mixed.config.views(mixed.flat), A.config.views(A.flat)
    for name in views:
        adapter = "qkv" in name or name.endswith((".o", "gate_up", "down"))
        if adapter if how == "base_only" else name.startswith("1."):
            views[name].copy_(old[name])
    made = rollout(weight_sync=how)
    assert (float32_logprobs(mixed, made) - made.engine_logprobs).abs().max() < EXACT
    assert torch.equal(delivered(A.config, A.flat, B.flat, how), mixed.flat)


def test_stale_replicas_serve_their_sequences_under_the_first_weights_and_the_others_do_not() -> None:
    made = rollout(replicas=4, stale_replicas=1)
    assert made.replicas is not None
    stale = made.replicas[0] == 3
    assert stale.sum() * 4 == len(stale)
    old, new = (float32_logprobs(policy, made)[0] for policy in (A, B))
    assert (old - made.engine_logprobs[0])[stale].abs().max() < EXACT
    assert (new - made.engine_logprobs[0])[~stale].abs().max() < EXACT
    assert (new - made.engine_logprobs[0])[stale].abs().max() > 0.1
    assert bool((made.weight_versions == 1).all()), "the log claims the same version everywhere"


def test_a_run_with_stale_replicas_goes_on_from_a_checkpoint_as_if_never_stopped() -> None:
    scenario = Scenario().with_values({"engine.replicas": 2, "engine.stale_replicas": 1})
    whole = Trainer(scenario)
    for _ in range(2):
        whole.step()
    resumed = Trainer(scenario, state=whole.state())
    ours, theirs = (trainer.step()[0].metrics for trainer in (whole, resumed))
    for each in (ours, theirs):
        each.pop("time/step_s")
    assert ours == theirs


# -- processors of one side ----------------------------------------------------------------------------------------


def penalised(
    logits: np.ndarray, prompt: list[int], said: list[int], *, repetition: float, presence: float, frequency: float
) -> np.ndarray:
    """vLLM's three penalties, token by token in float64."""
    found = logits.astype(np.float64)
    for token in range(len(found)):
        if token in prompt or token in said:
            found[token] = found[token] / repetition if found[token] > 0 else found[token] * repetition
        found[token] -= frequency * said.count(token) + (presence if token in said else 0.0)
    return found


def test_penalties_equal_vllms_formulas_in_float64() -> None:
    rng = np.random.default_rng(0)
    settings = EngineSettings(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.25)
    logits = torch.from_numpy(rng.normal(0, 3, (1, 5, 16))).float()
    prompts = torch.from_numpy(rng.integers(0, 16, (1, 5, 4)))
    said = torch.from_numpy(rng.integers(0, 16, (1, 5, 7)))
    penalties = Penalties(prompts, 16, settings)
    for t in range(7):
        penalties.write(said[:, :, t])
    found = penalties.apply(logits)[0].numpy()
    for n in range(5):
        want = penalised(
            logits[0, n].numpy(),
            prompts[0, n].tolist(),
            said[0, n].tolist(),
            repetition=1.3,
            presence=0.4,
            frequency=0.25,
        )
        assert np.allclose(found[n], want, atol=1e-6)


def test_a_penalised_engine_reports_what_it_samples_from() -> None:
    """Token by token: the trainer's logits of the same context, penalised and divided by the temperature."""
    made = rollout(update=False, repetition_penalty=1.2, frequency_penalty=0.3)
    logits = response_logits(A.weights(dtype="float32", head_dtype="float32"), made.prompts, made.tokens, group=GROUP)
    for n in range(0, made.tokens.shape[1], 5):
        prompt, tokens = made.prompts[0, n].tolist(), made.tokens[0, n].tolist()
        for t, token in enumerate(tokens):
            scaled = penalised(logits[0, n, t].numpy(), prompt, tokens[:t], repetition=1.2, presence=0.0, frequency=0.3)
            scaled /= 0.8
            want = scaled[token] - np.logaddexp.reduce(scaled)
            assert want == pytest.approx(float(made.engine_logprobs[0, n, t]), abs=EXACT)


def test_raw_logprobs_are_those_before_the_penalties() -> None:
    made = rollout(update=False, repetition_penalty=1.2, logprobs_mode="raw_logprobs", temperature=1.0)
    assert (float32_logprobs(A, made, 1.0) - made.engine_logprobs).abs().max() < EXACT
    assert made.sampler_logprobs is not None
    assert (made.sampler_logprobs - made.engine_logprobs).abs().max() > 0.01


def test_a_softcap_bends_large_logits_and_keeps_small_ones() -> None:
    logits = torch.linspace(-200, 200, 401)
    found = soft_capped(logits, 30.0)
    assert np.allclose(found.numpy(), 30 * np.tanh(logits.double().numpy() / 30), atol=1e-5)
    made = rollout(update=False, logits_soft_cap=4.0)
    assert (float32_logprobs(A, made) - made.engine_logprobs).abs().max() > 0.1


# -- values that are filled in -------------------------------------------------------------------------------------


def test_a_placeholder_stands_at_the_last_token_of_every_response_that_ended_and_nowhere_else() -> None:
    task = TaskSettings(name="reverse_until_zero", response_length=8, pool_size=6)
    plain, filled = (rollout(task, update=False, placeholder_logprobs=how) for how in ("none", "eos"))
    assert torch.equal(plain.tokens, filled.tokens)
    changed = plain.engine_logprobs != filled.engine_logprobs
    last = (plain.mask.sum(2) - 1).long()
    assert torch.equal(changed.nonzero()[:, 2], last.flatten())
    assert bool((filled.engine_logprobs[changed] == 0).all())
    assert torch.equal(plain.sampler_logprobs, filled.sampler_logprobs)  # type: ignore[arg-type]


def test_a_response_that_an_update_cut_off_has_no_end_token_to_fill_in() -> None:
    made = rollout(at=3, mode="abort", placeholder_logprobs="eos")
    assert bool((made.engine_logprobs[made.mask > 0] != 0).all())


def test_missing_logprobs_are_a_share_of_the_tokens_with_the_sentinel() -> None:
    made = rollout(placeholder_logprobs="missing", placeholder_share=0.25, placeholder_value=-9999.0)
    share = float((made.engine_logprobs == -9999).float().mean())
    assert 0.15 < share < 0.35


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"engine.weight_sync": "some"}, "engine.weight_sync='some': Input should be 'full', 'none', 'base_only'"),
        ({"engine.stale_replicas": 1}, "stale_replicas=1 must be below replicas=1"),
        ({"engine.repetition_penalty": 0.0}, "engine.repetition_penalty=0.0: Input should be greater than 0"),
        ({"engine.presence_penalty": 2.5}, "engine.presence_penalty=2.5: Input should be less than or equal to 2"),
        ({"engine.placeholder_share": 2.0}, "engine.placeholder_share=2.0: Input should be less than or equal to 1"),
    ],
)
def test_a_mistake_is_one_line_with_setting_value_and_what_is_allowed(values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as error:
        Scenario().with_values(values)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


# -- a trainer that does not repeat itself -------------------------------------------------------------------------


def scored(made: Rollouts, how: Pass = EXACTLY, *, group: int = GROUP) -> torch.Tensor:
    weights = A.weights(dtype="float32", head_dtype="float32")
    return score(weights, made, group=group, temperature=0.8, how=how).logprobs


def test_dropout_drops_a_share_p_and_keeps_the_mean() -> None:
    ones = torch.ones(2, 200, 100)
    found = Dropout(0.25, [torch.Generator().manual_seed(n) for n in range(2)])(ones)
    assert found.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert abs(float(found.mean()) - 1) < 4 * np.sqrt(0.25 / 0.75 / found.numel())


def test_dropout_that_drops_nothing_changes_no_number() -> None:
    made = rollout(update=False)
    none = Dropout(0.0, [torch.Generator()])
    assert (scored(made, Pass(dropout=none)) - scored(made)).abs().max() < EXACT
    packed = Pass(pack_size=3)
    assert (scored(made, Pass(dropout=none, pack_size=3)) - scored(made, packed)).abs().max() < EXACT


def test_two_passes_of_a_trainer_with_dropout_differ_and_a_run_repeats_itself() -> None:
    values = {"trainer.dropout": 0.05, "trainer.old_logprobs": "recompute"}
    trainer = Trainer(Scenario().with_values(values), seeds=(0, 1))
    records = trainer.step()
    assert records[0].metrics["update/ratio_max"] != 1, "the loss's own pass has other masks than old logprobs"
    alone = Trainer(Scenario().with_values(values), seeds=(1,))
    ours, theirs = records[1].metrics, alone.step()[0].metrics
    assert all(
        ours[key] == pytest.approx(theirs[key], rel=1e-4) for key in ("skew/kl_k3", "optim/loss", "policy/entropy")
    )
    again = Trainer(Scenario().with_values(values), seeds=(0, 1))
    again.step()
    assert np.array_equal(again.look().trainer_logprobs, trainer.look().trainer_logprobs)


def cut(made: Rollouts) -> Rollouts:
    """The same rollouts with responses of 1 to 8 tokens."""
    length = torch.arange(made.mask.shape[1]) % made.mask.shape[2] + 1
    mask = (torch.arange(made.mask.shape[2]) < length.unsqueeze(1)).float().unsqueeze(0)
    return replace(made, mask=mask, tokens=torch.where(mask > 0, made.tokens, 0))


# -- packed rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 5])
def test_isolated_packs_have_the_logprobs_of_sequences_alone(size: int) -> None:
    """Answers of many lengths; the last row has room left."""
    made = cut(rollout(update=False))
    assert (scored(made, Pass(pack_size=size)) - scored(made)).abs().max() < EXACT


def test_leaking_packs_equal_transformers_over_the_concatenated_row(tmp_path: Path) -> None:
    """One causal attention over all of the row, positions that start again with each sequence."""
    made, size = rollout(update=False), 3
    found = scored(made, Pass(pack_size=size, leaking=True))[0]
    model, whole = huggingface(A, tmp_path), torch.cat([made.prompts, made.tokens], 2)[0, :, :-1]
    own, first = whole.shape[1], made.prompts.shape[2] - 1
    length = size * own
    causal = torch.full((length, length), -torch.inf).triu(1).view(1, 1, length, length)
    for start in range(0, len(whole) - size + 1, size):
        row = whole[start : start + size].reshape(1, -1)
        with torch.no_grad():
            logits = model(row, attention_mask=causal, position_ids=torch.arange(own).repeat(size).unsqueeze(0)).logits
        logprobs = (logits.view(size, own, -1)[:, first:] / 0.8).log_softmax(-1)
        want = logprobs.gather(2, made.tokens[0, start : start + size].unsqueeze(-1)).squeeze(-1)
        assert (want - found[start : start + size]).abs().max() < EXACT
    assert (found - scored(made)[0])[::size].abs().max() < EXACT, "the first of a row sees nobody else"
    assert (found - scored(made)[0])[1::size].abs().max() > 0.1


def test_padding_of_the_sequences_before_leaks_nothing() -> None:
    made = cut(rollout(update=False))
    other = replace(made, tokens=torch.where(made.mask > 0, made.tokens, 7))
    how = Pass(pack_size=4, leaking=True)
    assert torch.equal(scored(made, how), scored(other, how))


# -- two turns -----------------------------------------------------------------------------------------------------

TURNS = TaskSettings(name="two_turns", response_length=6, pool_size=6)


def test_the_environments_turn_is_in_the_context_and_in_no_loss() -> None:
    """The engine decodes through it; the trainer scores prompt, both answers and what stands between, exactly."""
    made, task = rollout(TURNS, update=False), Task(TURNS)
    start, end = task.environment_at
    assert (start, end, task.max_tokens) == (6, 14, 20)
    assert made.given is not None
    assert torch.equal(made.given[0, 0].nonzero().flatten(), torch.arange(start, end))
    assert torch.equal(made.tokens[0, ::GROUP, start:end], task.environment)
    assert torch.equal(made.mask == 0, made.given)
    assert (scored(made) - made.engine_logprobs).abs().max() < EXACT
    assert bool((made.engine_logprobs[made.given] == 0).all())


def test_right_answers_of_both_turns_earn_the_reward_and_one_wrong_turn_does_not() -> None:
    task = Task(TURNS)
    want = task.answers[2].view(1, 1, -1)
    tokens = torch.where(want < 0, task.environment[2].repeat(3)[:20].view(1, 1, -1), ANSWER + SYNONYMS * want)
    mask, which = (want >= 0).float(), torch.tensor([[2]])
    assert float(task.score(which, tokens, mask).exact) == 1
    tokens[..., -1] = SEP
    assert float(task.score(which, tokens, mask).exact) == 0
    assert float(task.score(which, tokens, mask).partial) == pytest.approx(11 / 12)


def test_a_template_that_drops_thinking_scores_the_second_turn_after_the_rendering_without_it() -> None:
    """The oracle renders the conversation again: prompt, the first answer without its thinking, the question."""
    made, task = rollout(TURNS, update=False), Task(TURNS)
    start, end = task.environment_at
    found = scored(made, Pass(rendered=(task.thinking, start, end)))
    assert (found - made.engine_logprobs)[:, :, :start].abs().max() < EXACT, "the first turn is not touched"
    rendered = replace(
        made,
        prompts=torch.cat([made.prompts, made.tokens[:, :, task.thinking : end]], 2),
        tokens=made.tokens[:, :, end:],
        mask=made.mask[:, :, end:],
        given=None,
    )
    assert (found[:, :, end:] - scored(rendered, group=1)).abs().max() < EXACT
    assert (found - made.engine_logprobs)[:, :, end:].abs().max() > 0.1


def test_a_log_of_two_turns_keeps_the_environments_tokens_with_mask_0_and_says_the_turn() -> None:
    values = {"task.name": "two_turns", "task.response_length": 6, "trainer.packing": "isolated", "engine.replicas": 2}
    trainer = Trainer(Scenario().with_values(values))
    trainer.step()
    look = trainer.look()
    record = look.sequences.records[5]
    assert record.sampled.tolist() == [True] * 6 + [False] * 8 + [True] * 6
    assert np.asarray(record.places["turn"])[record.sampled].tolist() == [0] * 6 + [1] * 6
    table = look.table
    assert np.array_equal(table.turn, table.position >= 14)
    assert np.array_equal(table.pack_index, table.sequence % 4)
    assert np.array_equal(table.replica, table.sequence % 2)


# -- seen, and named by the diagnosis ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_a_scenario_of_a_fault_is_diagnosed_by_its_name(name: str) -> None:
    found = diagnose(simulated_log(FAULTS[name].scenario(name), STEPS.get(name, 1)))
    assert found.verdict == name
    assert found.first.explained > 0.5
    if name in WHERE:
        assert found.where[0].column in WHERE[name]


@pytest.mark.parametrize("name", FAULTS)
def test_without_its_fault_a_scenario_has_no_skew(name: str) -> None:
    """The same run with every setting of the fault at its default: what was seen is the fault and nothing else."""
    off = {
        path: value_of(Scenario(), path)
        for path in FAULTS[name].values
        if path.startswith(("engine.", "trainer.")) and path not in ("engine.lag", "engine.update_at_token")
    }
    trainer = Trainer(FAULTS[name].scenario(name).with_values(off))
    assert trainer.step()[0].metrics["skew/logprob_diff_max"] < EXACT


def value_of(scenario: Scenario, path: str) -> object:
    section, _, field = path.partition(".")
    return getattr(getattr(scenario, section), field)


@pytest.mark.parametrize("label", [label for label in DICE if label not in STEPS])
def test_other_strengths_of_a_fault_are_diagnosed_too(label: str) -> None:
    case = make_simulated_case(label, 1)
    assert diagnose(case.log).verdict in case.accepted


@pytest.mark.slow
@pytest.mark.parametrize("label", DICE)
def test_most_simulated_cases_are_named_rightly(label: str) -> None:
    cases = [make_simulated_case(label, seed) for seed in range(100, 110)]
    assert sum(diagnose(case.log).verdict in case.accepted for case in cases) >= 9


@pytest.mark.parametrize(("cap", "temperature"), [(4.0, 1.0), (8.0, 0.7), (15.0, 0.7)])
def test_a_softcap_is_a_bend_in_equal_contexts_and_no_temperature(cap: float, temperature: float) -> None:
    values = {"engine.logits_soft_cap": cap, "engine.temperature": temperature, "engine.update_at_token": None}
    log = simulated_log(Scenario().with_values({**values, "engine.lag": 0, "seed": 1}), 1)
    assert diagnose(log).verdict == "one_sided_processor"


@pytest.mark.parametrize("seed", [10_007, 10_009])
def test_what_one_or_two_contexts_have_by_chance_is_no_bend(seed: int) -> None:
    """A slope and a bend explain more than 98 % of the skew in equal contexts there; nearly all of it is in two."""
    assert diagnose(make_simulated_case("stochastic_trainer", seed).log).verdict == "stochastic_trainer"


@pytest.mark.parametrize("penalty", [1.2, 1.5])
def test_a_repetition_penalty_is_named_in_longer_responses_too(penalty: float) -> None:
    values = {"engine.repetition_penalty": penalty, "task.response_length": 32}
    log = simulated_log(FAULTS["one_sided_processor"].scenario("one_sided_processor").with_values(values), 1)
    assert diagnose(log).verdict == "one_sided_processor"


@pytest.mark.parametrize("how", ["none", "base_only", "partial"])
def test_updates_that_never_arrive_are_no_stale_cache_where_prompts_come_again(how: str) -> None:
    """Prompts seen before are off because they come in later steps, in which new prompts are off as well."""
    start = FAULTS["weights_not_delivered"].scenario("weights_not_delivered")
    values = {"engine.weight_sync": how, "task.pool_size": Scenario().task.pool_size}
    assert diagnose(simulated_log(start.with_values(values), 4)).verdict == "weights_not_delivered"
