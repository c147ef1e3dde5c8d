"""Routes in a log tell routing from rounding: whose skew is whose, and with what share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from benchmarks.simulated_cases import make_simulated_case
from harness.logs import import_sequences
from skewsim.diagnose import Diagnosis, diagnose, load_models
from skewsim.diagnose.models import ModelScorer
from skewsim.diagnose.predict import Models
from skewsim.diagnose.rows import Rows
from skewsim.errors import UserError
from skewsim.learn.base_policy import model_folder
from skewsim.learn.trainer import Trainer
from skewsim.settings import Scenario
from skewsim.skew.sequences import SequenceLog, load_sequences
from skewsim.skew.tokens import TokenTable


def table(seed: int, *, flipped: float, flip: float, rounding: float = 0.01, routes: bool = True) -> TokenTable:
    """Truthful noise of size `rounding`; at a share `flipped` of the tokens it is `flip` instead."""
    rng = np.random.default_rng(seed)
    rows, length = 6000, 50
    trainer = -rng.exponential(0.7, rows)
    other = rng.random(rows) < flipped
    noise = np.where(other, flip, rounding) * rng.normal(size=rows) * np.sqrt(1.5) * (1 - np.exp(trainer))
    return TokenTable(
        sequence=np.arange(rows) // length,
        position=np.arange(rows) % length,
        token=rng.integers(0, 64, rows),
        engine_logprob=np.minimum(trainer - noise, trainer / 4),
        trainer_logprob=trainer,
        weight_version=np.zeros(rows, dtype=np.int64),
        routes_differ=other.astype(np.int64) if routes else None,
    )


def test_the_share_of_routing_is_what_flipped_tokens_have_above_the_others() -> None:
    made = table(0, flipped=0.02, flip=0.3)
    found = diagnose(made)
    other = made.routes_differ > 0
    square = made.skew**2
    due = (square[other] - square[~other].mean()).sum() / square.sum()
    assert found.verdict == "moe_routing"
    assert found.causes[0].explained == pytest.approx(due, rel=1e-6)
    assert "proven by the routes" in found.causes[0].evidence
    assert "router_replay.mode" in str(found.causes[0].fix)


def test_rounding_beside_routing_keeps_its_own_share() -> None:
    found = diagnose(table(1, flipped=0.02, flip=0.12, rounding=0.05))
    shares = {cause.name: cause.explained for cause in found.causes}
    assert set(shares) == {"moe_routing", "compute_dtype"}
    assert shares["moe_routing"] + shares["compute_dtype"] == pytest.approx(1, abs=0.1)


def test_tokens_routed_otherwise_without_more_skew_are_no_cause() -> None:
    """As under R3: the routers would choose otherwise, and what they chose was not used."""
    assert diagnose(table(2, flipped=0.05, flip=0.05, rounding=0.05)).verdict == "compute_dtype"


def test_where_both_sides_route_alike_a_heavy_tail_is_no_routing() -> None:
    tail = table(3, flipped=0.01, flip=1.0)
    alike = TokenTable(**tail.columns() | {"routes_differ": np.zeros(len(tail), dtype=np.int64)})
    assert "moe_routing" not in [cause.name for cause in diagnose(alike).causes]
    assert diagnose(tail).verdict == "moe_routing"


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_where_nearly_every_token_meets_a_flip_in_some_layer_that_is_routing_and_not_missing_routes(seed: int) -> None:
    """As published of a large mixture: 94 % of the tokens, in 6 of 48 layers on average."""
    made, rng = table(seed, flipped=0.94, flip=0.2), np.random.default_rng(seed)
    layers = np.where(made.routes_differ > 0, 1 + rng.poisson(5, len(made)), 0)
    found = diagnose(TokenTable(**made.columns() | {"routes_differ": layers}))
    said = " ".join((*found.notes, *(cause.evidence for cause in found.causes)))
    assert found.verdict == "moe_routing"
    assert "zeros" not in said


def test_tokens_whose_routes_are_not_known_are_on_neither_side() -> None:
    made = table(0, flipped=0.02, flip=0.3)
    unknown = np.arange(len(made)) % 3 == 0
    some = TokenTable(**made.columns() | {"routes_differ": np.where(unknown, -1, made.routes_differ)})
    found, other = diagnose(some), ~unknown & (made.routes_differ > 0)
    square, alike = made.skew**2, ~unknown & (made.routes_differ == 0)
    assert found.causes[0].explained == pytest.approx((square[other] - square[alike].mean()).sum() / square.sum())
    assert f"{other.sum()} of {(~unknown).sum()} tokens" in found.causes[0].evidence


def test_routes_that_differ_everywhere_are_no_routes() -> None:
    made = table(4, flipped=1.0, flip=1.0)
    found = diagnose(made)
    assert found.verdict == "moe_routing"
    assert "zeros, those of padding, or shifted" in found.causes[0].evidence
    assert not found.normal


def test_routes_in_a_log_show_a_mixture_whose_usual_size_is_normal_without_being_told() -> None:
    found = diagnose(table(0, flipped=0.02, flip=0.3))
    assert (found.verdict, found.normal) == ("moe_routing", True)
    assert not diagnose(table(0, flipped=0.02, flip=0.3), model_kind="dense").normal


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_the_simulators_cases_are_named(seed: int) -> None:
    case = make_simulated_case("moe_routing", seed)
    found = diagnose(case.log)
    assert found.verdict in case.accepted
    assert case.label in [cause.name for cause in found.causes]


def line(**more: object) -> dict[str, object]:
    whole = {"prompt_token_ids": [1, 2, 3], "token_ids": [4, 5], "engine_logprobs": [-0.1, -0.2]}
    return whole | {"trainer_logprobs": [-0.1, -0.3]} | more


def read(path: Path, *lines: dict[str, object]) -> SequenceLog:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return load_sequences(path)


def test_a_response_without_tokens_has_no_routes_and_its_file_is_read_again(tmp_path: Path) -> None:
    empty = line(token_ids=[], engine_logprobs=[], trainer_logprobs=None, engine_routed_experts=[])
    found = read(tmp_path / "log.jsonl", empty, line(engine_routed_experts=[[[0, 300]]] * 2))
    assert [r.engine_routes is None for r in found.records] == [True, False]
    assert found.records[1].engine_routes.dtype == np.uint16  # type: ignore[union-attr]
    found.save(tmp_path / "again.jsonl")
    assert len(load_sequences(tmp_path / "again.jsonl").records) == 2


def test_experts_in_a_log_are_counted_as_sets_before_each_token(tmp_path: Path) -> None:
    """Rows of the prompt but the last do not count; the order of a token's experts does not either."""
    engine = [[[0, 1]], [[0, 1]], [[2, 3]], [[4, 5]]]  # P + T - 1 rows, one layer, two experts
    trainer = [[[7, 6]], [[0, 1]], [[3, 2]], [[4, 6]]]
    found = read(
        tmp_path / "log.jsonl",
        line(engine_routed_experts=engine, trainer_routed_experts=trainer),
        line(engine_routed_experts=engine[2:], trainer_routed_experts=trainer[2:]),
        line(engine_routed_experts=engine),
    )
    made = found.table()
    assert made.routes_differ.tolist() == [0, 1, 0, 1, -1, -1]
    found.save(tmp_path / "again.jsonl")
    assert load_sequences(tmp_path / "again.jsonl").table().routes_differ.tolist() == made.routes_differ.tolist()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_experts_of_a_table_with_names_of_its_own_are_read(suffix: str, tmp_path: Path) -> None:
    path, routes = tmp_path / f"log{suffix}", [[[0, 1]], [[0, 1]], [[2, 3]], [[4, 5]]]
    row = {"ids": [4, 5], "lp": [-0.1, -0.2], "routed_experts": routes}
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row) + "\n")
    columns = {"token_ids": "ids", "engine_logprobs": "lp", "engine_routed_experts": "routed_experts"}
    (record,) = import_sequences(path, columns=columns)
    np.testing.assert_array_equal(record.engine_routes, routes[2:])


@pytest.mark.parametrize(
    ("engine", "trainer", "said"),
    [
        ([[[0, 1]]], [[[0, 1]]], r"engine_routed_experts has shape \(1, 1, 2\)"),
        ([[0, 1], [0, 1]], [[0, 1], [0, 1]], "allowed: whole numbers, .rows, layers, experts"),
        ([[[0, 1]], [[0, 1]]], [[[0]], [[1]]], "trainer_routed_experts"),
        ([[[0, 1]], [[0]]], [[[0, 1]], [[0, 1]]], "engine_routed_experts"),
        ("zeros", [[[0, 1]], [[0, 1]]], "engine_routed_experts"),
    ],
)
def test_experts_of_another_shape_are_one_line(engine: object, trainer: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as raised:
        read(tmp_path / "log.jsonl", line(engine_routed_experts=engine, trainer_routed_experts=trainer))
    assert "\n" not in str(raised.value)


SIMULATED = {
    "policy": "base_moe",
    "engine.enable_return_routed_experts": True,
    "engine.lag": 0,
    "engine.update_at_token": None,
    "trainer.learning_rate": 0.0,
    "trainer.num_minibatches": 1,
    "task.pool_size": 4096,
}
BFLOAT16 = {"engine.dtype": "bfloat16"}


def simulated(prompts: int = 16, **values: object) -> tuple[SequenceLog, SequenceLog]:
    """A step's log with what both sides' routes differ in, and with the routes that the engine returned instead."""
    trainer = Trainer(Scenario().with_values(SIMULATED | {"trainer.num_prompts": prompts} | values))
    trainer.step()
    both, routes = trainer.look().sequences, trainer._done.rollouts.routed_experts[0].numpy()  # type: ignore[union-attr, index]
    trainer.close()
    alone = [replace(r, places={}, engine_routes=own) for r, own in zip(both.records, routes, strict=True)]
    return both, SequenceLog(tuple(alone))


def by_model(log: SequenceLog) -> Diagnosis:
    return diagnose(log, models=load_models([model_folder("base_moe")]))


def test_the_engines_routes_alone_prove_routing_beside_the_models_own(tmp_path: Path) -> None:
    both, alone = simulated(**BFLOAT16)
    alone.save(tmp_path / "log.jsonl")
    proven, found = diagnose(both), by_model(load_sequences(tmp_path / "log.jsonl"))
    (of_both,), (of_model,) = ([c for c in each.causes if c.name == "moe_routing"] for each in (proven, found))
    assert of_model.explained == pytest.approx(of_both.explained, abs=0.01)
    counted = int((both.table().routes_differ > 0).sum())
    assert f"proven by the routes in the log: {counted} of" in of_model.evidence
    assert f"experts in {model_folder('base_moe').name} than in the engine" in of_model.evidence


def with_routes(log: SequenceLog, change: Callable[[np.ndarray], np.ndarray | None]) -> SequenceLog:
    changed = (replace(r, engine_routes=change(r.engine_routes)) for r in log.records)  # type: ignore[arg-type]
    return SequenceLog(tuple(changed))


@pytest.mark.parametrize(
    ("fault", "dense"),
    [("zeros", True), *(pytest.param(fault, False, marks=pytest.mark.slow) for fault in ("zeros", "shifted"))],
)
def test_routes_that_an_engine_returned_wrongly_are_seen_beside_the_models_own(fault: str, dense: bool) -> None:
    """zeros: nothing was captured; shifted: those of the row before. No rounding turns so many decisions round."""
    _, alone = simulated(4, **BFLOAT16, **{"engine.routed_experts_fault": fault})
    found = by_model(with_routes(alone, lambda routes: np.insert(routes, 1, 0, axis=1)) if dense else alone)
    said = " ".join((*found.notes, *(cause.evidence for cause in found.causes)))
    assert "the engine's routes are zeros, those of padding, or shifted" in said


@pytest.mark.slow
@pytest.mark.parametrize("values", [{"trainer.router_replay": "R3"}, {"engine.dtype": "float32"}])
def test_beside_the_models_own_routes_replayed_ones_and_those_of_float32_are_no_cause(
    values: dict[str, object],
) -> None:
    _, alone = simulated(**BFLOAT16 | values)
    assert "moe_routing" not in [cause.name for cause in by_model(alone).causes]


def test_layers_without_experts_are_left_out_and_routes_of_another_model_are_not_compared() -> None:
    """slime returns a row for every layer, with zeros where there is one MLP for all tokens."""
    _, alone = simulated(2, **BFLOAT16)
    between = with_routes(alone, lambda routes: np.insert(routes, 1, 0, axis=1))
    (model,) = load_models([model_folder("base_moe")])
    counts = [Models([model], each).routes_differ(Rows.from_log(each)) for each in (alone, between)]
    assert counts[0].max() > 0  # type: ignore[union-attr]
    np.testing.assert_array_equal(*counts)
    assert "are not compared" in " ".join(by_model(with_routes(alone, lambda routes: routes[:, :, :1])).notes)
    dense = diagnose(alone, models=[ModelScorer.from_folder(model_folder("base"))])
    assert "moe_routing" not in [cause.name for cause in dense.causes]


def test_routes_of_fewer_than_half_of_the_tokens_are_said_and_left_alone() -> None:
    _, alone = simulated(2, **BFLOAT16)
    few = SequenceLog(tuple(r if n % 3 == 0 else replace(r, engine_routes=None) for n, r in enumerate(alone.records)))
    found = by_model(few)
    assert "are there for fewer than half of the tokens" in " ".join(found.notes)
    assert "routes_differ" not in str(found.where)
