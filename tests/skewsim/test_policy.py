"""The policy is a Llama: transformers agrees on logits, files and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from skewsim.errors import UserError
from skewsim.learn.scoring import response_logits
from skewsim.model.policy import Policy, cast_weights
from tests.skewsim.llama_oracle import GROUPED, SMALL, huggingface, random_policy

PROMPTS, GROUP, P, T = 3, 4, 5, 6


def _tokens(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    # from 1: transformers gives the embedding of the padding token 0 no gradient
    prompts = torch.randint(1, 64, (1, PROMPTS, P), generator=stream).repeat_interleave(GROUP, dim=1)
    return prompts, torch.randint(1, 64, (1, PROMPTS * GROUP, T), generator=stream)


@pytest.mark.parametrize("config", [SMALL, GROUPED], ids=["heads", "grouped heads"])
def test_logits_equal_transformers_in_float32(config, tmp_path: Path) -> None:
    policy = random_policy(config)
    prompts, tokens = _tokens()
    ours = response_logits(policy.weights(dtype="float32", head_dtype="float32"), prompts, tokens, group=GROUP)
    with torch.no_grad():
        theirs = huggingface(policy, tmp_path)(torch.cat([prompts[0], tokens[0]], -1)).logits[:, P - 1 : -1]
    assert (
        ours[0] - theirs
    ).abs().max() < 3e-5  # logits of size 8: 3 to 4 units in the last place, whatever kernels a machine has


def test_gradients_equal_transformers(tmp_path: Path) -> None:
    policy = random_policy()
    prompts, tokens = _tokens()
    model = huggingface(policy, tmp_path)
    logits = model(torch.cat([prompts[0], tokens[0]], -1)).logits[:, P - 1 : -1]
    torch.nn.functional.cross_entropy(logits.reshape(-1, 64), tokens.flatten()).backward()
    policy.flat.requires_grad_()
    weights = cast_weights(policy.config, policy.config.views(policy.flat), dtype="float32", head_dtype="float32")
    ours = response_logits(weights, prompts, tokens, group=GROUP)
    torch.nn.functional.cross_entropy(ours.reshape(-1, 64), tokens.flatten()).backward()
    gradient = Policy(policy.config, policy.flat.grad).named()
    for name, parameter in model.named_parameters():
        assert (gradient[name] - parameter.grad).abs().max() < 5e-6, name


def test_bfloat16_differs_from_float32_as_transformers_bfloat16_does(tmp_path: Path) -> None:
    policy = random_policy()
    prompts, tokens = _tokens()
    exact = response_logits(policy.weights(dtype="float32", head_dtype="float32"), prompts, tokens, group=GROUP)
    ours = response_logits(policy.weights(dtype="bfloat16", head_dtype="bfloat16"), prompts, tokens, group=GROUP)
    model = huggingface(policy, tmp_path).to(torch.bfloat16)
    with torch.no_grad():
        theirs = model(torch.cat([prompts[0], tokens[0]], -1)).logits[:, P - 1 : -1].float()
    our_error, their_error = (ours - exact).square().mean().sqrt(), (theirs - exact).square().mean().sqrt()
    assert 0.5 < our_error / their_error < 2


def test_an_engines_float32_head_multiplies_what_it_holds_in_its_own_dtype(tmp_path: Path) -> None:
    """vLLM: ``F.linear(hidden.to(float32), lm_head.weight.to(float32))``, the weight being one of a bfloat16 model."""
    policy = random_policy()
    held = huggingface(policy, tmp_path).to(torch.bfloat16).lm_head.weight.float()
    exact = policy.config.views(policy.flat)["lm_head"][0]
    ours = policy.weights(dtype="bfloat16", head_dtype="float32")
    assert torch.equal(ours.tensors["lm_head"][0], held)
    assert not torch.equal(held, exact)
    assert torch.equal(policy.weights(dtype="float32", head_dtype="float32").tensors["lm_head"][0], exact)


def test_members_are_independent_bit_for_bit() -> None:
    a, b = random_policy(seed=1), random_policy(seed=2)
    both = Policy(SMALL, torch.cat([a.flat, b.flat, a.flat]))
    prompts, tokens = _tokens()
    alone = response_logits(a.weights(dtype="float32", head_dtype="float32"), prompts, tokens, group=GROUP)
    among = response_logits(
        both.weights(dtype="float32", head_dtype="float32"),
        prompts.expand(3, -1, -1),
        tokens.expand(3, -1, -1),
        group=GROUP,
    )
    assert torch.equal(among[0], among[2])
    assert torch.allclose(among[0], alone[0], atol=3e-5)


def test_a_saved_policy_loads_unchanged(tmp_path: Path) -> None:
    policy = random_policy(GROUPED)
    policy.save(tmp_path)
    again = Policy.load(tmp_path)
    assert torch.equal(again.flat, policy.flat)
    assert again.config == policy.config


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    for prepare, word in (
        (lambda: None, "config.json"),
        (lambda: (tmp_path / "config.json").write_text("{"), "truncated or no JSON"),
        (lambda: (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"})), "gpt2"),
        (
            lambda: (
                random_policy().save(tmp_path / "x") or (tmp_path / "x/config.json").rename(tmp_path / "config.json")
            ),
            "model.safetensors",
        ),
        (lambda: (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle"), "safetensors"),
    ):
        prepare()
        with pytest.raises(UserError, match=word) as caught:
            Policy.load(tmp_path)
        assert "\n" not in str(caught.value)
