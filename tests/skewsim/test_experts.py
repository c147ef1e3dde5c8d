"""A mixture of experts computes what transformers' Qwen3-MoE computes, on the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from skewsim.errors import UserError
from skewsim.learn.scoring import response_logits
from skewsim.model.experts import Routes, mixed, shares
from skewsim.model.policy import MoEConfig, Policy, cast_weights

SMALL = MoEConfig(hidden_size=32, num_attention_heads=2, head_dim=16, moe_intermediate_size=24, num_experts=6)
GROUPED = SMALL.model_copy(update={"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 3})
UNNORMED = SMALL.model_copy(update={"norm_topk_prob": False})
GROUP, P = 4, 5


def random_policy(config: MoEConfig = SMALL, *, seed: int = 0) -> Policy:
    """Norms of heads that are no ones, and routers that are far from uniform."""
    stream = torch.Generator().manual_seed(seed)
    policy = Policy.random(config, generator=stream)
    for name, weight in config.views(policy.flat).items():
        if name.endswith(("q_norm", "k_norm")):
            weight.copy_(0.5 + torch.rand(weight.shape, generator=stream))
        if name.endswith("router"):
            weight.mul_(3)
    return policy


def tokens(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, 64, (1, 3, P), generator=stream).repeat_interleave(GROUP, dim=1)
    return prompts, torch.randint(1, 64, (1, 3 * GROUP, 6), generator=stream)


def attend_to_the_past(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention over all rows."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


def huggingface(policy: Policy, folder: Path) -> Qwen3MoeForCausalLM:
    policy.save(folder)
    return Qwen3MoeForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("config", [SMALL, GROUPED, UNNORMED], ids=["heads", "grouped heads", "probabilities as is"])
def test_logprobs_and_routes_equal_transformers_in_float32(config: MoEConfig, tmp_path: Path) -> None:
    policy = random_policy(config)
    prompts, responses = tokens()
    weights = policy.weights(dtype="float32", head_dtype="float32")
    ours = response_logits(weights, prompts, responses, group=GROUP).log_softmax(-1)
    model = huggingface(policy, tmp_path)
    with torch.no_grad():
        out = model(torch.cat([prompts[0], responses[0]], -1), output_router_logits=True)
    theirs = out.logits[:, P - 1 : -1].log_softmax(-1)
    assert (ours[0] - theirs).abs().max() < 1e-5
    routes = Routes()
    inputs = torch.cat([prompts, responses], -1)[:, :1]
    weights.hidden(inputs.flatten(1), torch.arange(inputs.shape[2]), attend_to_the_past, routes=routes)
    for layer, found in enumerate(out.router_logits):
        due = found[: inputs.shape[2]].topk(config.num_experts_per_tok).indices
        assert torch.equal(routes.chosen[0, :, layer], due)


def test_gradients_equal_transformers(tmp_path: Path) -> None:
    policy = random_policy()
    prompts, responses = tokens()
    model = huggingface(policy, tmp_path)
    logits = model(torch.cat([prompts[0], responses[0]], -1)).logits[:, P - 1 : -1]
    torch.nn.functional.cross_entropy(logits.reshape(-1, 64), responses.flatten()).backward()
    policy.flat.requires_grad_()
    weights = cast_weights(policy.config, policy.config.views(policy.flat), dtype="float32", head_dtype="float32")
    ours = response_logits(weights, prompts, responses, group=GROUP)
    torch.nn.functional.cross_entropy(ours.reshape(-1, 64), responses.flatten()).backward()
    gradient = Policy(policy.config, policy.flat.grad).named()
    for name, parameter in model.named_parameters():
        if "experts" not in name:  # stacked there
            assert (gradient[name] - parameter.grad).abs().max() < 5e-6, name
    for expert in range(SMALL.num_experts):
        down = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        stacked = dict(model.named_parameters())["model.layers.1.mlp.experts.down_proj"].grad
        assert (gradient[down] - stacked[expert]).abs().max() < 5e-6, expert


def test_bfloat16_differs_from_float32_as_transformers_bfloat16_does(tmp_path: Path) -> None:
    policy = random_policy()
    prompts, responses = tokens()
    exact = response_logits(policy.weights(dtype="float32", head_dtype="float32"), prompts, responses, group=GROUP)
    ours = response_logits(policy.weights(dtype="bfloat16", head_dtype="bfloat16"), prompts, responses, group=GROUP)
    model = huggingface(policy, tmp_path).to(torch.bfloat16)
    with torch.no_grad():
        theirs = model(torch.cat([prompts[0], responses[0]], -1)).logits[:, P - 1 : -1].float()
    our_error, their_error = (ours - exact).abs().median(), (theirs - exact).abs().median()
    assert 0.5 < our_error / their_error < 2


def test_the_experts_add_up_as_each_token_would_by_hand() -> None:
    stream = torch.Generator().manual_seed(1)
    x, logits = torch.randn(2, 5, 8, generator=stream), torch.randn(2, 5, 4, generator=stream)
    gate_up, down = torch.randn(2, 4 * 12, 8, generator=stream), torch.randn(2, 4 * 8, 6, generator=stream)
    routes = Routes()
    ours = mixed(x, gate_up, down, shares(logits, 2, normalize=True, routes=routes))
    for e in range(2):
        for r in range(5):
            probs = logits[e, r].double().softmax(-1)
            best = probs.topk(2).indices
            due = torch.zeros(8, dtype=torch.float64)
            for expert in best.tolist():
                both = gate_up[e].view(4, 12, 8)[expert].double() @ x[e, r].double()
                gate, up = both.chunk(2)
                inner = torch.nn.functional.silu(gate) * up
                due += probs[expert] / probs[best].sum() * (down[e].view(4, 8, 6)[expert].double() @ inner)
            assert torch.allclose(ours[e, r].double(), due, atol=1e-5)
            assert set(routes.chosen[e, r, 0].tolist()) == set(best.tolist())


def test_replayed_routes_are_used_and_what_the_router_would_choose_is_taken_down() -> None:
    logits = torch.tensor([[[3.0, 2.0, 1.0, 0.0]]])
    own, other = Routes(), Routes(replayed=torch.tensor([[[[2, 3]]]]))
    free, given = (shares(logits, 2, normalize=True, routes=r) for r in (own, other))
    assert (free > 0).tolist() == [[[True, True, False, False]]]
    assert (given > 0).tolist() == [[[False, False, True, True]]]
    assert torch.allclose(given[0, 0, 2:], torch.tensor([1.0, 0.0]).softmax(-1))
    assert torch.equal(own.chosen, other.chosen)
    zeros = shares(logits, 2, normalize=True, routes=Routes(replayed=torch.zeros(1, 1, 1, 2, dtype=torch.int64)))
    assert zeros.tolist() == [[[1.0, 0.0, 0.0, 0.0]]]


def test_a_saved_mixture_loads_unchanged(tmp_path: Path) -> None:
    policy = random_policy(GROUPED)
    policy.save(tmp_path)
    again = Policy.load(tmp_path)
    assert again.config == GROUPED
    assert torch.equal(again.flat, policy.flat)


def test_what_transformers_saves_loads_here(tmp_path: Path) -> None:
    policy = random_policy()
    huggingface(policy, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = Policy.load(tmp_path / "theirs")
    assert torch.equal(again.flat, policy.flat)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_experts_per_tok": 7}, "num_experts_per_tok=7: allowed: at most num_experts=6"),
        ({"mlp_only_layers": [0]}, "every layer has to be a mixture"),
        ({"num_experts": 5}, "mlp.gate.weight should be"),
        ({"num_experts": 0}, "num_experts=0; allowed: a whole number above 0"),
        ({"moe_intermediate_size": 2**29}, "moe_intermediate_size"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(changed: dict, said: str, tmp_path: Path) -> None:
    random_policy().save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError, match=said) as raised:
        Policy.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_the_balance_loss_is_that_of_transformers() -> None:
    logits = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0))
    for member in range(2):
        routes = Routes()
        shares(logits[member : member + 1], 2, normalize=True, routes=routes)
        due = load_balancing_loss_func((logits[member],), num_experts=6, top_k=2)
        assert torch.allclose(routes.balance_loss, due.reshape(1))
