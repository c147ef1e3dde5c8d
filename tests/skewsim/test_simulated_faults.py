"""The faults that the simulator can make are mechanisms: each against an oracle that shares no code with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skewsim.engine.penalties import Penalties
from skewsim.engine.rollouts import RolloutRequest, Rollouts, WeightUpdate
from skewsim.engine.sampling import soft_capped
from skewsim.engine.simulated import SimEngine
from skewsim.engine.weight_sync import delivered
from skewsim.errors import UserError
from skewsim.learn.scoring import response_logits, score
from skewsim.learn.trainer import Trainer
from skewsim.model.policy import Policy
from skewsim.settings import EngineSettings, Scenario, TaskSettings
from skewsim.task import Task
from tests.skewsim.llama_oracle import random_policy

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
