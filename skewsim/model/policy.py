"""A Llama-architecture policy with a leading ensemble axis (RMSNorm, RoPE, SwiGLU, no bias).

With `MoEConfig` its MLPs are mixtures of experts, and queries and keys are normed by head, as in Qwen3-MoE.

All members' weights are one flat float32 tensor ``(E, D)``, a row for each member; each weight matrix is a view into
it. So a copy, an optimiser step, a norm or a cosine is one operation. Trainer and engine use the same forward pass with
a different attention (`Attend`): the trainer computes a prompt once for all responses to it, the engine reads and
writes a key/value cache.

Numerics follow transformers' ``LlamaForCausalLM`` and ``Qwen3MoeForCausalLM``: norms and softmax in float32, everything
else in the given dtype, lm_head in a dtype of its own. Axes: E member, R rows (tokens), H width, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from skewsim.errors import FileFormatError, UserError, shown
from skewsim.files import atomic_writer, remove_leftovers
from skewsim.model.experts import Routes, mixed, shares
from skewsim.model.folder import check_folder, read_config
from skewsim.model.layers import rms_norm, swiglu
from skewsim.settings import one_line

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v) -> out: q, out (E, R, heads, d), k and v (E, R, kv_heads, d)."""
Drop = Callable[[Tensor], Tensor]
"""What happens to that which a layer adds to the residual stream: see `skewsim.model.dropout`."""


LONGEST = 512  # tokens of prompt and response; the longest task has 260


Size = Annotated[int, Field(ge=1, lt=2**31)]


class PolicyConfig(BaseModel):
    """The fields of a Hugging Face Llama `config.json` that the computation depends on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: Size = 64
    hidden_size: Size = 64
    intermediate_size: Size = 128
    num_hidden_layers: Size = 2
    num_attention_heads: Size = 2
    num_key_value_heads: Size = 2
    head_dim: Annotated[Size, Field(multiple_of=2)] = 32
    rope_theta: Annotated[float, Field(gt=0, le=1e30)] = 10_000.0
    rms_norm_eps: Annotated[float, Field(ge=0, le=1)] = 1e-5

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads}: allowed: a divisor of num_attention_heads"
            )
        return self

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each weight as stored here: q, k, v and gate, up are fused by rows."""
        h, d = self.hidden_size, self.head_dim
        q, kv = self.num_attention_heads * d, self.num_key_value_heads * d
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab_size, h)}
        for n in range(self.num_hidden_layers):
            shapes |= {f"{n}.attn_norm": (h,), f"{n}.qkv": (q + 2 * kv, h), f"{n}.o": (h, q)}
            shapes |= {f"{n}.mlp_norm": (h,)} | self._mlp_shapes(n)
        return shapes | {"norm": (h,), "lm_head": (self.vocab_size, h)}

    def _mlp_shapes(self, n: int) -> dict[str, tuple[int, ...]]:
        h, i = self.hidden_size, self.intermediate_size
        return {f"{n}.gate_up": (2 * i, h), f"{n}.down": (h, i)}

    def num_parameters(self) -> int:
        return sum(math.prod(s) for s in self.shapes().values())

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of flat (E, D), one for each weight, (E, *shape)."""
        sizes = [math.prod(s) for s in self.shapes().values()]
        parts = flat.split(sizes, dim=1)
        return {n: p.view(flat.shape[0], *s) for (n, s), p in zip(self.shapes().items(), parts, strict=True)}

    def huggingface_names(self) -> Iterator[tuple[str, str, int, int]]:
        """(name in a Hugging Face file, our name, first row, rows) of each weight."""
        shapes, d = self.shapes(), self.head_dim
        q, kv = self.num_attention_heads * d, self.num_key_value_heads * d
        yield "model.embed_tokens.weight", "embed", 0, self.vocab_size
        for n in range(self.num_hidden_layers):
            at = f"model.layers.{n}."
            yield at + "input_layernorm.weight", f"{n}.attn_norm", 0, self.hidden_size
            for part, first, rows in (("q", 0, q), ("k", q, kv), ("v", q + kv, kv)):
                yield at + f"self_attn.{part}_proj.weight", f"{n}.qkv", first, rows
            yield at + "self_attn.o_proj.weight", f"{n}.o", 0, shapes[f"{n}.o"][0]
            yield at + "post_attention_layernorm.weight", f"{n}.mlp_norm", 0, self.hidden_size
            yield from self._mlp_names(n, at)
        yield "model.norm.weight", "norm", 0, self.hidden_size
        yield "lm_head.weight", "lm_head", 0, self.vocab_size

    def _mlp_names(self, n: int, at: str) -> Iterator[tuple[str, str, int, int]]:
        i = self.intermediate_size
        yield at + "mlp.gate_proj.weight", f"{n}.gate_up", 0, i
        yield at + "mlp.up_proj.weight", f"{n}.gate_up", i, i
        yield at + "mlp.down_proj.weight", f"{n}.down", 0, self.hidden_size

    @property
    def route(self) -> tuple[int, int] | None:
        """Layers and experts of a token, (L, k); None: no mixture of experts."""
        return None

    @property
    def mlp_numbers(self) -> int:
        """Numbers that the backward pass of a layer's MLP needs of a row."""
        return 5 * self.intermediate_size

    def huggingface_fields(self) -> dict[str, Any]:
        """The fields of `config.json` that say which architecture this is."""
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


class MoEConfig(PolicyConfig):
    """The fields of a Hugging Face Qwen3-MoE `config.json`; every layer is a mixture of experts."""

    num_experts: Size = 16
    num_experts_per_tok: Size = 2
    moe_intermediate_size: Size = 16
    norm_topk_prob: bool = True

    @model_validator(mode="after")
    def _check_experts(self) -> Self:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok}: allowed: at most num_experts={self.num_experts}"
            )
        return self

    def _mlp_shapes(self, n: int) -> dict[str, tuple[int, ...]]:
        h, i, x, d = self.hidden_size, self.moe_intermediate_size, self.num_experts, self.head_dim
        heads = {f"{n}.q_norm": (d,), f"{n}.k_norm": (d,)}
        return heads | {f"{n}.router": (x, h), f"{n}.gate_up": (x * 2 * i, h), f"{n}.down": (x * h, i)}

    def _mlp_names(self, n: int, at: str) -> Iterator[tuple[str, str, int, int]]:
        h, i = self.hidden_size, self.moe_intermediate_size
        yield at + "self_attn.q_norm.weight", f"{n}.q_norm", 0, self.head_dim
        yield at + "self_attn.k_norm.weight", f"{n}.k_norm", 0, self.head_dim
        yield at + "mlp.gate.weight", f"{n}.router", 0, self.num_experts
        for expert in range(self.num_experts):
            one = f"{at}mlp.experts.{expert}."
            yield one + "gate_proj.weight", f"{n}.gate_up", 2 * i * expert, i
            yield one + "up_proj.weight", f"{n}.gate_up", 2 * i * expert + i, i
            yield one + "down_proj.weight", f"{n}.down", h * expert, h

    @property
    def route(self) -> tuple[int, int] | None:
        """Layers and experts of a token, (L, k)."""
        return self.num_hidden_layers, self.num_experts_per_tok

    @property
    def mlp_numbers(self) -> int:
        """Numbers that the backward pass of a layer's experts needs of a row: all experts compute every row."""
        return self.num_experts * (5 * self.moe_intermediate_size + self.hidden_size)

    def huggingface_fields(self) -> dict[str, Any]:
        """The fields of `config.json` that say which architecture this is."""
        every_layer = {"decoder_sparse_step": 1, "mlp_only_layers": []}
        return {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **every_layer}


CONFIGS = {"llama": PolicyConfig, "qwen3_moe": MoEConfig}
"""The architectures that a policy may have: `model_type` of a config.json -> the fields that are read."""


@dataclass(frozen=True)
class Weights:
    """The weights of all members at the precision of a computation; `tensors` as `PolicyConfig.shapes`.

    Only the rows of q and k have another order. Rotary embedding turns the numbers of a head in pairs. Hugging Face
    puts the two numbers of a pair half a head apart; here they are adjacent, so that they can be used as one complex
    number. Attention scores do not depend on the order.
    """

    config: PolicyConfig
    tensors: dict[str, Tensor]
    head_dtype: torch.dtype
    router_dtype: torch.dtype | None = None
    """In which a mixture's router computes; None: in that of the body."""

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors["norm"].dtype

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        drop: Drop | None = None,
        routes: Routes | None = None,
    ) -> Tensor:
        """Last hidden states (E, R, H) of token rows (E, R) at positions (R,); with dropout if `drop` is given.

        `routes` says which experts a mixture uses, and takes down which it chooses.
        """
        w, c = self.tensors, self.config
        turns = _turns(c, tokens.device)[positions]
        x = _embed(w["embed"], tokens)
        rows = x.shape[:2]
        heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        for n in range(c.num_hidden_layers):
            h = rms_norm(x, w[f"{n}.attn_norm"], c.rms_norm_eps)
            q, k, v = _linear(h, w[f"{n}.qkv"]).view(*rows, -1, c.head_dim).split([heads, kv_heads, kv_heads], dim=2)
            q, k = (_rotate(self._normed(f"{n}.{name}_norm", x), turns) for name, x in (("q", q), ("k", k)))
            attended = _linear(attend(n, q, k, v).reshape(*rows, -1), w[f"{n}.o"])
            x = x + (attended if drop is None else drop(attended))
            h = rms_norm(x, w[f"{n}.mlp_norm"], c.rms_norm_eps)
            mapped = self._mapped(n, h, routes)
            x = x + (mapped if drop is None else drop(mapped))
        return rms_norm(x, w["norm"], c.rms_norm_eps)

    def _normed(self, name: str, heads: Tensor) -> Tensor:
        """The heads (E, R, heads, d) of q or k, each normed in a mixture of experts and otherwise as they are."""
        if not isinstance(self.config, MoEConfig):
            return heads
        return rms_norm(heads.flatten(1, 2), self.tensors[name], self.config.rms_norm_eps).view(heads.shape)

    def _mapped(self, n: int, h: Tensor, routes: Routes | None) -> Tensor:
        """What the MLP of the n-th layer, or its mixture of experts, makes of rows (E, R, H)."""
        w, c = self.tensors, self.config
        if not isinstance(c, MoEConfig):
            return _linear(swiglu(_linear(h, w[f"{n}.gate_up"])), w[f"{n}.down"])
        dtype = self.router_dtype or self.dtype
        logits = _linear(h.to(dtype), w[f"{n}.router"].to(dtype))
        share = shares(logits, c.num_experts_per_tok, normalize=c.norm_topk_prob, routes=routes or Routes())
        return mixed(h, w[f"{n}.gate_up"], w[f"{n}.down"], share)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (E, R, V), computed and rounded in head_dtype."""
        return _linear(hidden.to(self.head_dtype), self.tensors["lm_head"]).float()


class Policy:
    """Float32 master weights of E members, `flat` (E, D)."""

    def __init__(self, config: PolicyConfig, flat: Tensor) -> None:
        assert flat.shape[1:] == (config.num_parameters(),), "flat must be (E, D)"
        self.config, self.flat = config, flat

    @classmethod
    def random(cls, config: PolicyConfig, *, generator: torch.Generator) -> Policy:
        """One member: normal weights of standard deviation 1/sqrt(fan-in), norms of one."""
        flat = torch.empty(1, config.num_parameters())
        for name, w in config.views(flat).items():
            if name.endswith("norm"):
                w.fill_(1.0)
            else:
                w.copy_(torch.randn(w.shape, generator=generator) / math.sqrt(w.shape[-1]))
        return cls(config, flat)

    @classmethod
    def load(cls, folder: str | Path) -> Policy:
        """One member from a Hugging Face folder. Raises FileFormatError with one line."""
        folder = Path(folder)
        config = _read_config(folder)
        stored = _read_weights(folder)
        stored.setdefault("lm_head.weight", stored.get("model.embed_tokens.weight", torch.empty(0)))
        shapes = config.shapes()
        for theirs, ours, _, rows in config.huggingface_names():
            due, found = (rows, *shapes[ours][1:]), tuple(stored[theirs].shape) if theirs in stored else "nothing"
            if due != found:
                raise FileFormatError(f"{folder}: {theirs} should be {due}, found {found}")
        flat = torch.empty(1, config.num_parameters())
        views = config.views(flat)
        for theirs, ours, first, rows in config.huggingface_names():
            views[ours][0, first : first + rows].copy_(stored[theirs])
        return cls(config, flat)

    def save(self, folder: str | Path, *, member: int = 0) -> None:
        """Write one member as a Hugging Face folder that transformers and vLLM load; each file atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        tensors = {name: tensor.contiguous() for name, tensor in self.named(member).items()}
        with atomic_writer(folder / "model.safetensors") as handle:
            handle.write(save(tensors, metadata={"format": "pt"}))
        with atomic_writer(folder / "config.json") as handle:
            handle.write(json.dumps(_huggingface_config(self.config), indent=1).encode() + b"\n")

    def named(self, member: int = 0) -> dict[str, Tensor]:
        """One member's weights under their Hugging Face names, float32 copies on the CPU."""
        views = self.config.views(self.flat.detach())
        return {
            theirs: views[ours][member, first : first + rows].cpu().clone()
            for theirs, ours, first, rows in self.config.huggingface_names()
        }

    def stacked(self, members: int, *, device: str = "cpu") -> Policy:
        """A copy with the same weights for each of ``members`` members."""
        return Policy(self.config, self.flat.expand(members, -1).clone().to(device))

    def weights(self, *, dtype: str, head_dtype: str, router_dtype: str | None = None) -> Weights:
        """A snapshot of the weights as an engine has them at a precision (no gradient).

        vLLM holds every weight in its dtype, the head's too; `head_dtype` is what the head is computed in
        (vllm/model_executor/layers/logits_processor.py). A trainer casts its float32 weights: `cast_weights`.
        """
        views = self.config.views(self.flat.detach())
        views["lm_head"] = views["lm_head"].to(getattr(torch, dtype))
        return cast_weights(self.config, views, dtype=dtype, head_dtype=head_dtype, router_dtype=router_dtype)


def cast_weights(
    config: PolicyConfig, views: dict[str, Tensor], *, dtype: str, head_dtype: str, router_dtype: str | None = None
) -> Weights:
    """Weights at a precision; differentiable with respect to the views. router_dtype None: the body's."""
    body, head = getattr(torch, dtype), getattr(torch, head_dtype)
    tensors = {n: w.to(head if n == "lm_head" else body) for n, w in views.items()}
    order = _pairs(config, tensors["norm"].device)
    tensors |= {n: w.index_select(1, order) for n, w in tensors.items() if n.endswith("qkv")}
    by_head = order[: config.head_dim]  # the first head's rows, and so the order within any head
    tensors |= {n: w.index_select(1, by_head) for n, w in tensors.items() if n.endswith(("q_norm", "k_norm"))}
    return Weights(config, tensors, head, getattr(torch, router_dtype) if router_dtype else None)


@lru_cache
@torch.inference_mode(False)  # kept, and so used by a training step too
def _pairs(config: PolicyConfig, device: torch.device) -> Tensor:
    """Order of the rows of qkv that puts the two numbers of q or k that rotary embedding turns as a pair together."""
    d = config.head_dim
    within = torch.arange(d, device=device).view(2, -1).T.flatten()
    heads = torch.arange(config.num_attention_heads + config.num_key_value_heads, device=device)
    turned = (heads.unsqueeze(1) * d + within).flatten()
    kept = torch.arange(config.num_key_value_heads * d, device=device) + len(turned)
    return torch.cat([turned, kept])


@lru_cache
@torch.inference_mode(False)
def _turns(config: PolicyConfig, device: torch.device) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) of each position: complex numbers of length 1 for all heads of q,
    one head after the other, (LONGEST, heads * d/2): one long row costs torch less than a short one for each head."""
    half = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    positions = torch.arange(LONGEST, device=device, dtype=torch.float32)
    angles = positions.unsqueeze(-1) * config.rope_theta**-half
    return torch.polar(torch.ones_like(angles), angles).repeat(1, config.num_attention_heads)


def _rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Multiply x (E, R, heads, d), as complex numbers and in float32, by turns (R, at least heads * d/2)."""
    pairs = torch.view_as_complex(x.float().flatten(2).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns[:, : pairs.shape[-1]]).view(x.shape).to(x.dtype)


def _embed(table: Tensor, tokens: Tensor) -> Tensor:
    """Rows (E, R, H) of each member's own embedding table (E, V, H) for tokens (E, R)."""
    members, vocab, width = table.shape
    offset = torch.arange(members, device=tokens.device).unsqueeze(1) * vocab
    return torch.nn.functional.embedding(tokens + offset, table.reshape(members * vocab, width))


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x (E, R, in) by each member's own weight (E, out, in); returns (E, R, out)."""
    return torch.bmm(x, weight.transpose(1, 2))


def _huggingface_config(config: PolicyConfig) -> dict[str, Any]:
    return {
        **config.huggingface_fields(),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": LONGEST,
        "torch_dtype": "float32",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **config.model_dump(),
    }


def folder_config(folder: Path) -> PolicyConfig:
    """The shape of the policy in a Hugging Face folder, borne out by its files. Raises UserError, FileFormatError."""
    config = _read_config(folder)
    check_folder(folder)
    return config


def _read_config(folder: Path) -> PolicyConfig:
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(
            f"policy={str(folder)!r}: no such folder; allowed: base, base_moe, random, or a Hugging Face folder"
        )
    data = read_config(folder)
    if data["model_type"] not in CONFIGS:
        raise FileFormatError(
            f"{path}: model_type={shown(data['model_type'], 80)!r}; the simulator's policy is a llama or a qwen3_moe"
        )
    if data.get("mlp_only_layers") or (data.get("decoder_sparse_step") or 1) != 1:
        raise FileFormatError(f"{path}: mlp_only_layers, decoder_sparse_step: every layer has to be a mixture here")
    rope_parameters = data.get("rope_parameters") or {}
    data = {name: value for name, value in data.items() if value is not None}
    data = {"rope_theta": rope_parameters.get("rope_theta", 10_000.0)} | data
    if data.get("hidden_size") and data.get("num_attention_heads"):
        data.setdefault("head_dim", data["hidden_size"] // data["num_attention_heads"])
        data.setdefault("num_key_value_heads", data["num_attention_heads"])
    if "num_local_experts" in data:  # transformers' other name
        data.setdefault("num_experts", data["num_local_experts"])
    try:
        return CONFIGS[data["model_type"]].model_validate(data)
    except ValidationError as error:
        raise FileFormatError(f"{path}: {one_line(error)}") from None


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileFormatError(f"{folder}: no model.safetensors; pickled weights (*.bin, *.pt) are not read")
    check_folder(folder)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError):
        raise FileFormatError(f"{path}: truncated, or not a safetensors file") from None
