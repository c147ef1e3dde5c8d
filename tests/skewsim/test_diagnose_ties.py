"""Without routes in a log the model's own near ties tell routing from rounding, with the share that routes prove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulated_cases import simulated_log
from skewsim.diagnose import Diagnosis, diagnose, load_models, predict
from skewsim.diagnose.models import ModelScorer
from skewsim.diagnose.policies import PolicyScorer
from skewsim.diagnose.rows import Rows
from skewsim.diagnose.ties import Choices, Ties
from skewsim.learn.base_policy import model_folder, starting_policy
from skewsim.settings import Scenario
from skewsim.skew.sequences import SequenceLog, SequenceRecord

VOCAB, LENGTH, SEQUENCES = 16, 40, 60
TOKENS = LENGTH * SEQUENCES
QUIET = {"policy": "base_moe", "engine.lag": 0, "engine.update_at_token": None, "trainer.learning_rate": 0.0}
SIZE = {"trainer.num_prompts": 48, "trainer.num_generations": 8, "trainer.num_minibatches": 1, "task.pool_size": 4096}
ROUTES = {"engine.enable_return_routed_experts": True}


def ties_of(distance: np.ndarray, flipped: np.ndarray) -> Ties:
    """Ties of one layer in which rounding changes a gap by about 1."""
    changes = np.random.default_rng(9).normal(size=(len(distance), 1))
    return Ties(distance[:, None], changes, flipped.astype(np.int64))


@dataclass(eq=False)
class Known:
    """A scorer whose logits, and what bfloat16 does to its routers, are given."""

    table: np.ndarray
    found: Ties | None
    name: str = "known"
    vocab_size: int = VOCAB

    def logits(self, records: Sequence[SequenceRecord], **_: object) -> np.ndarray:
        return self.table

    def ties(self, records: Sequence[SequenceRecord], dtype: str) -> Ties | None:
        return self.found if dtype == "bfloat16" else None


def known(
    seed: int, *, flip: float = 0.3, rounding: float = 0.02, share: float = 0.02, at_ties: bool = True
) -> tuple[SequenceLog, Known, np.ndarray]:
    """A log with skew of size `rounding`, at a share of the tokens of size `flip`; the model flips half of these, and
    as many others that are near a tie. Returns the tokens with other experts too."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(TOKENS, VOCAB)).astype(np.float32) * 2
    token = rng.integers(0, VOCAB, TOKENS)
    trainer = (table.astype(np.float64) - np.log(np.exp(table.astype(np.float64)).sum(1, keepdims=True)))[
        np.arange(TOKENS), token
    ]
    near = rng.random(TOKENS) < 0.2
    other = (rng.random(TOKENS) < 5 * share) & near if at_ties else rng.random(TOKENS) < share
    size = np.where(other, flip, rounding) * rng.normal(size=TOKENS)
    engine = np.minimum(trainer - size * np.sqrt(1.5) * (1 - np.exp(trainer)), trainer / 4)
    distance = np.where(near, rng.random(TOKENS) * 3, 6 + rng.random(TOKENS) * 20)
    flipped = near & (rng.random(TOKENS) < np.where(other, 0.5, 0.05))
    records = [
        SequenceRecord(
            tokens=token[at], engine_logprobs=engine[at], trainer_logprobs=trainer[at], prompt_tokens=np.array([1])
        )
        for at in (slice(n * LENGTH, (n + 1) * LENGTH) for n in range(SEQUENCES))
    ]
    return SequenceLog(tuple(records)), Known(table, ties_of(distance, flipped)), other


def shares(found: Diagnosis) -> dict[str, float]:
    return {cause.name: cause.explained for cause in found.causes}


def excess(log: SequenceLog, other: np.ndarray) -> float:
    """What the tokens with other experts have of the square above the others' level."""
    square = log.table().skew ** 2
    return float((square[other] - square[~other].mean()).sum() / square.sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_share_of_routing_is_that_of_the_tokens_with_other_experts(seed: int) -> None:
    log, model, other = known(seed)
    found = diagnose(log, models=[model])
    assert shares(found)["moe_routing"] == pytest.approx(excess(log, other), abs=0.05)
    assert sum(shares(found).values()) == pytest.approx(1, abs=0.02)
    assert "by the model's own near ties" in found.causes[0].evidence
    assert f"{(model.found.flips > 0).sum()} of {TOKENS} tokens" in found.causes[0].evidence


@pytest.mark.parametrize("seed", range(3))
def test_rounding_beside_routing_keeps_its_own_share(seed: int) -> None:
    log, model, other = known(seed, flip=0.2, rounding=0.03, share=0.03)
    found = shares(diagnose(log, models=[model]))
    assert set(found) == {"moe_routing", "compute_dtype"}
    assert found["moe_routing"] == pytest.approx(excess(log, other), abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_large_skew_that_is_not_at_the_ties_is_not_named_by_them(seed: int) -> None:
    log, model, _ = known(seed, at_ties=False)
    assert not [c for c in diagnose(log, models=[model]).causes if "near ties" in c.evidence]


@pytest.mark.parametrize("seed", range(3))
def test_equal_skew_at_ties_and_elsewhere_is_rounding(seed: int) -> None:
    log, model, _ = known(seed, flip=0.03, rounding=0.03)
    assert set(shares(diagnose(log, models=[model]))) == {"compute_dtype"}


def test_a_dense_model_says_nothing_of_ties() -> None:
    log, model, _ = known(0)
    assert not [c for c in diagnose(log, models=[replace(model, found=None)]).causes if "near ties" in c.evidence]


def test_skew_of_float32_is_healthy_wherever_it_lies() -> None:
    log, model, _ = known(0, flip=1e-4, rounding=1e-6)
    assert diagnose(log, models=[model]).verdict == "healthy"


def test_routes_in_the_log_are_believed_before_the_models_ties() -> None:
    log, model, other = known(0)
    parts = np.split(other.astype(np.int64), SEQUENCES)
    told = SequenceLog(
        tuple(replace(r, places={"routes_differ": part}) for r, part in zip(log.records, parts, strict=True))
    )
    found = diagnose(told, models=[model])
    assert "proven by the routes" in found.causes[0].evidence
    assert shares(found)["moe_routing"] == pytest.approx(excess(log, other), rel=1e-6)


def test_where_all_tokens_are_near_a_tie_the_share_is_said_to_be_a_lower_bound() -> None:
    log, model, other = known(1)
    model.found = ties_of(model.found.gaps[:, 0] / 20, model.found.flips)
    found = diagnose(log, models=[model])
    assert "lower bound" in found.causes[0].evidence
    assert 0.2 < shares(found)["moe_routing"] < excess(log, other) + 0.1


@given(st.integers(0, 10**6))
def test_gaps_and_flips_are_those_of_sorting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens, layers, experts = rng.integers(1, 5), rng.integers(1, 4), rng.integers(3, 7)
    k = int(rng.integers(1, experts))
    exact = rng.normal(size=(tokens, layers, experts))
    rounded = exact + 0.3 * rng.normal(size=exact.shape)
    order, after = (np.argsort(-each, -1) for each in (exact, rounded))
    found = Ties.of(Choices(exact, order[..., :k]), Choices(rounded, after[..., :k]))
    assert found is not None
    for n, layer in np.ndindex(int(tokens), int(layers)):
        last, first = order[n, layer, k - 1], order[n, layer, k]
        assert found.gaps[n, layer] == exact[n, layer, last] - exact[n, layer, first]
        changed = rounded[n, layer, last] - rounded[n, layer, first] - found.gaps[n, layer]
        assert found.changes[n, layer] == pytest.approx(changed)
    differ = [sum(set(order[n, i, :k]) != set(after[n, i, :k]) for i in range(layers)) for n in range(tokens)]
    assert found.flips.tolist() == differ


def test_routers_that_choose_by_more_than_their_logits_have_no_ties_here() -> None:
    """As where a bias is added before the choice, or experts are chosen by groups; or where all are used."""
    logits = np.random.default_rng(0).normal(size=(5, 2, 4))
    largest, smallest = np.argsort(-logits, -1)[..., :2], np.argsort(logits, -1)[..., :2]
    assert Ties.of(Choices(logits, largest), Choices(logits, largest)) is not None
    assert Ties.of(Choices(logits, smallest), Choices(logits, smallest)) is None
    every = np.broadcast_to(np.arange(4), (5, 2, 4))
    assert Ties.of(Choices(logits, every), Choices(logits, every)) is None


def records_of(vocab: int, *, lengths: tuple[int, ...] = (5, 9, 5, 7)) -> list[SequenceRecord]:
    """Sequences of several lengths; one has a token that the engine did not sample."""
    rng = np.random.default_rng(2)
    made = []
    for number, length in enumerate(lengths):
        sampled = np.ones(length, dtype=bool)
        sampled[2] = number != 1
        logprobs = np.where(sampled, -1.0, np.nan)
        prompt = rng.integers(3, vocab, 3 + number % 2)
        tokens = rng.integers(3, vocab, length)
        made.append(SequenceRecord(tokens=tokens, engine_logprobs=logprobs, prompt_tokens=prompt, mask=sampled))
    return made


def mixtral() -> ModelScorer:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=32, num_hidden_layers=3, num_local_experts=6, num_experts_per_tok=2, **shape)
    return ModelScorer("mixtral", MixtralForCausalLM(config).eval())


def shipped() -> ModelScorer:
    return ModelScorer.from_folder(model_folder("base_moe"))


@pytest.mark.parametrize("make", [shipped, pytest.param(mixtral, marks=pytest.mark.slow)])
def test_the_models_gaps_are_those_of_the_router_logits_that_transformers_returns(make) -> None:
    scorer = make()
    records = records_of(scorer.vocab_size)
    found = scorer.ties(records, "bfloat16")
    due, k = [], scorer.model.config.num_experts_per_tok
    for record in records:
        whole = torch.from_numpy(np.concatenate([record.prompt_tokens, record.tokens])).unsqueeze(0)
        with torch.inference_mode():
            told = scorer.model(input_ids=whole, output_router_logits=True).router_logits
        logits = torch.stack(told, 1)[np.flatnonzero(record.sampled) + len(record.prompt_tokens) - 1]
        ordered = logits.sort(-1, descending=True).values
        due.append((ordered[..., k - 1] - ordered[..., k]).numpy())
    assert np.abs(found.gaps - np.concatenate(due)).max() < 1e-5


def test_the_simulators_policy_tells_the_same_ties_as_transformers() -> None:
    records, policy = records_of(60), starting_policy(Scenario().with_values(QUIET))
    ours, theirs = PolicyScorer(0, policy).ties(records, "bfloat16"), shipped().ties(records, "bfloat16")
    assert np.abs(ours.gaps - theirs.gaps).max() < 1e-4
    spread = [np.median(np.abs(each.changes)) for each in (ours, theirs)]
    assert spread[0] == pytest.approx(spread[1], rel=0.5)


def test_a_long_log_is_gone_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    records, scorer = records_of(60), PolicyScorer(0, starting_policy(Scenario().with_values(QUIET)))
    log, whole = SequenceLog(tuple(records)), scorer.ties(records, "bfloat16")
    monkeypatch.setattr(predict, "PIECE", 60 * 10)
    monkeypatch.setattr(predict, "BUDGET", 1)
    said: list[str] = []
    models = predict.Models([scorer], log, lambda done, among, what: said.append(f"{done} of {among}: {what}"))
    found = models.ties(0, "bfloat16", Rows.from_log(log))
    assert np.abs(found.gaps - whole.gaps).max() < 1e-5
    assert said[-1] == "3 of 4: scoring with version 0, routers bfloat16"


def test_dense_models_have_no_ties() -> None:
    records, dense = records_of(60), Scenario().with_values(QUIET | {"policy": "base"})
    assert PolicyScorer(0, starting_policy(dense)).ties(records, "bfloat16") is None
    assert ModelScorer.from_folder(model_folder("base")).ties(records, "bfloat16") is None


def stripped(log: SequenceLog) -> SequenceLog:
    """The same without routes."""
    kept = (replace(r, places={k: v for k, v in r.places.items() if k != "routes_differ"}) for r in log.records)
    return SequenceLog(tuple(kept))


def simulated(seed: int, values: dict[str, object]) -> SequenceLog:
    return simulated_log(Scenario().with_values(QUIET | SIZE | ROUTES | values | {"seed": seed}), 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "values",
    [
        {"engine.dtype": "bfloat16"},
        {"engine.dtype": "bfloat16", "engine.head_dtype": "bfloat16"},
        {"engine.dtype": "float16"},
        {"trainer.dtype": "bfloat16"},
    ],
)
def test_a_simulated_engines_share_is_found_without_its_routes(values: dict[str, object], seed: int) -> None:
    log = simulated(seed, values)
    proven, found = diagnose(log), diagnose(stripped(log), models=load_models([model_folder("base_moe")]))
    assert shares(found)["moe_routing"] == pytest.approx(shares(proven)["moe_routing"], abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"engine.dtype": "bfloat16", "trainer.router_replay": "R3"},
        {"engine.dtype": "bfloat16", "trainer.dtype": "bfloat16"},
        {"engine.head_dtype": "bfloat16"},
        {"engine.logprobs_mode": "raw_logprobs", "engine.temperature": 0.7},
        {"engine.top_p": 0.9},
        {"trainer.dropout": 0.02},
        {"trainer.pack_size": 4},
    ],
)
def test_a_mixture_whose_engine_routes_as_the_trainer_has_no_routing(values: dict[str, object], seed: int) -> None:
    found = diagnose(stripped(simulated(seed, values)), models=load_models([model_folder("base_moe")]))
    assert "moe_routing" not in shares(found)


def test_folders_of_mixtures_are_found_by_name(tmp_path: Path) -> None:
    """A saved Mixtral is a mixture to `load_models` as the shipped one is."""
    mixtral().model.save_pretrained(tmp_path)
    (scorer,) = load_models([tmp_path])
    assert scorer.ties(records_of(32), "float16") is not None
