"""Keys and values: the cache of running requests, and the prefix cache that is kept after them.

`KVCache.extend` is the engine's only forward pass: prefill extends an empty cache by a prompt, decode extends it by one
token. Stored keys and values are not computed again, so after a weight update a request continues with those of the old
weights (stale KV).

A mixture of experts has its routes there too: the experts that each token went to when its keys and values were
computed, which is what vLLM returns for a token, cached or not.

`PrefixCache` keeps the keys and values of each prompt's whole blocks for the next request with that prompt (as in vLLM,
never those of the prompt's last token). Unless cleared, they are also kept through weight updates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skewsim.model.experts import Routes
from skewsim.model.policy import Policy, PolicyConfig, Weights
from skewsim.settings import EngineSettings
from skewsim.task import Task


class KVCache:
    """Keys and values of E*N sequences of equal length; layers (E, N, kv_heads, room, d)."""

    def __init__(
        self, config: PolicyConfig, keys: list[Tensor], values: list[Tensor], routes: Tensor | None, *, dtype: str
    ) -> None:
        self.config, self.keys, self.values, self.dtype = config, keys, values, dtype
        self.routes = routes
        """(E, N, room, L, k) the experts of each token; None if the policy is no mixture of experts."""
        self.length = 0

    @classmethod
    def empty(cls, weights: Weights, members: int, sequences: int, *, room: int, dtype: str = "auto") -> KVCache:
        """`dtype`: how keys and values are stored, one of `STORED`, or ``auto``: as they are."""
        c = weights.config
        shape = (members, sequences, c.num_key_value_heads, room, c.head_dim)
        like = weights.tensors["norm"]
        keys = [like.new_zeros(shape) for _ in range(c.num_hidden_layers)]
        route = None if c.route is None else torch.zeros(members, sequences, room, *c.route, dtype=torch.int64)
        routes = None if route is None else route.to(like.device)
        return cls(c, keys, [torch.zeros_like(k) for k in keys], routes, dtype=dtype)

    def repeated(self, times: int, *, room: int) -> KVCache:
        """A copy with each sequence repeated ``times`` times, repeats adjacent, and room for ``room`` more tokens."""

        def widen(x: Tensor, axis: int = 3) -> Tensor:
            members, sequences = x.shape[:2]
            wide = x.new_empty((members, sequences, times, *x.shape[2:axis], self.length + room, *x.shape[axis + 1 :]))
            wide.narrow(axis + 1, 0, self.length).copy_(x.narrow(axis, 0, self.length).unsqueeze(2))
            wide.narrow(axis + 1, self.length, room).zero_()
            return wide.flatten(1, 2)

        keys, values = ([widen(x) for x in held] for held in (self.keys, self.values))
        routes = None if self.routes is None else widen(self.routes, 2)
        wide = KVCache(self.config, keys, values, routes, dtype=self.dtype)
        wide.length = self.length
        return wide

    def extend(self, weights: Weights, tokens: Tensor) -> Tensor:
        """Append tokens (E, N, Q); returns the last token's hidden state (E, N, H)."""
        return self.extend_all(weights, tokens)[:, :, -1]

    def extend_all(self, weights: Weights, tokens: Tensor, routes: Routes | None = None) -> Tensor:
        """Append tokens (E, N, Q); returns each one's hidden state (E, N, Q, H). `routes` takes down what a mixture's
        routers choose."""
        members, sequences, new = tokens.shape
        start, end = self.length, self.length + new
        c = self.config
        room = self.keys[0].shape[3]
        seen = torch.arange(room, device=tokens.device) <= torch.arange(start, end, device=tokens.device).unsqueeze(1)
        future = ~seen  # over the cache's whole room, so that no slice of the cache has to be copied

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            def by_head(x: Tensor) -> Tensor:
                return x.reshape(members, sequences, new, -1, c.head_dim).transpose(2, 3)

            self.keys[layer][:, :, :, start:end] = self._stored(by_head(k))
            self.values[layer][:, :, :, start:end] = self._stored(by_head(v))
            return attention(by_head(q), self.keys[layer], self.values[layer], future).transpose(2, 3)

        positions = torch.arange(start, end, device=tokens.device).repeat(sequences)
        taken = Routes() if routes is None else routes
        hidden = weights.hidden(tokens.reshape(members, -1), positions, attend, routes=taken)
        if self.routes is not None:
            self.routes[:, :, start:end] = taken.chosen.view(members, sequences, new, *self.routes.shape[3:])
        self.length = end
        return hidden.view(members, sequences, new, -1)

    def recompute(self, weights: Weights, tokens: Tensor) -> None:
        """Empty the cache and fill it again with tokens (E, N, Q) under these weights."""
        self.length = 0
        self.extend(weights, tokens)

    def _stored(self, x: Tensor) -> Tensor:
        """x as the cache stores it."""
        return STORED[self.dtype](x) if self.dtype in STORED else x


def round_fp8(x: Tensor) -> Tensor:
    """x rounded to fp8 e4m3, in its own dtype (saturating, scale 1 as in vLLM)."""
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)


def truncate_fp8(x: Tensor) -> Tensor:
    """The same rounded towards zero, as vLLM's CPU kernels do (`float_to_fp8e4m3_scalar` in csrc/cpu/cpu_attn_fp8.hpp).

    Where the nearest number is too large, the next smaller one has the code before it.
    """
    nearest = x.clamp(-448, 448).to(torch.float8_e4m3fn)
    above = nearest.to(x.dtype).abs() > x.abs()
    return (nearest.view(torch.uint8) - above.to(torch.uint8)).view(torch.float8_e4m3fn).to(x.dtype)


STORED = {"fp8": round_fp8, "fp8_truncated": truncate_fp8}
"""How an engine stores keys and values of 8 bits."""


def attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Softmax attention with float32 scores, as in flash kernels.

    q (..., h, Q, d), k and v (..., kv, L, d), hidden (Q, L).
    """
    groups = q.shape[-3] // k.shape[-3]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=-3), v.repeat_interleave(groups, dim=-3)
    scores = (q.float() @ k.float().transpose(-1, -2)).div_(math.sqrt(q.shape[-1])).masked_fill_(hidden, -math.inf)
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


class PrefixCache:
    """For each member, the keys and values of every pool prompt's whole blocks, as soon as they are computed."""

    def __init__(self, policy: Policy, task: Task, engine: EngineSettings) -> None:
        c = policy.config
        self.tokens = (task.prompt_length - 1) // engine.block_size * engine.block_size
        self._made_for = (task.settings, engine.dtype, engine.kv_cache_dtype)
        members = policy.flat.shape[0]
        shape = (c.num_hidden_layers * 2, members, len(task.pool), c.num_key_value_heads, self.tokens, c.head_dim)
        device = policy.flat.device
        self.store = torch.zeros(shape, dtype=getattr(torch, engine.dtype), device=device)
        self.filled = torch.zeros(shape[1:3], dtype=torch.bool, device=device)
        route = None if c.route is None else torch.zeros(*shape[1:3], self.tokens, *c.route, dtype=torch.int64)
        self.routes = None if route is None else route.to(device)

    def fits(self, task: Task, engine: EngineSettings) -> bool:
        """Whether the stored prefixes have the prompts and precision of these settings (asked after a toggle)."""
        tokens = (task.prompt_length - 1) // engine.block_size * engine.block_size
        made_for = (task.settings, engine.dtype, engine.kv_cache_dtype)
        return (self.tokens, self._made_for) == (tokens, made_for)

    def clear(self) -> None:
        self.filled.zero_()

    def hits(self, prompt_ids: Tensor) -> Tensor:
        """(E, B) bool: whether each prompt's prefix is stored."""
        return self.filled.gather(1, prompt_ids)

    def read(self, prompt_ids: Tensor, cache: KVCache) -> None:
        """Copy the stored prefixes of prompts (E, B) into an empty cache."""
        member = torch.arange(len(prompt_ids), device=prompt_ids.device).unsqueeze(1)
        for layer in range(len(cache.keys)):
            cache.keys[layer][:, :, :, : self.tokens] = self.store[2 * layer, member, prompt_ids]
            cache.values[layer][:, :, :, : self.tokens] = self.store[2 * layer + 1, member, prompt_ids]
        if self.routes is not None and cache.routes is not None:
            cache.routes[:, :, : self.tokens] = self.routes[member, prompt_ids]
        cache.length = self.tokens

    def keep(self, prompt_ids: Tensor, cache: KVCache, new: Tensor) -> None:
        """Store the prefixes of the prompts (E, B) for which ``new`` is true."""
        member, which = new.nonzero(as_tuple=True)
        ids = prompt_ids[member, which]
        for layer, (k, v) in enumerate(zip(cache.keys, cache.values, strict=True)):
            self.store[2 * layer, member, ids] = k[member, which, :, : self.tokens]
            self.store[2 * layer + 1, member, ids] = v[member, which, :, : self.tokens]
        if self.routes is not None and cache.routes is not None:
            self.routes[member, ids] = cache.routes[member, which, : self.tokens]
        self.filled[member, ids] = True

    def state(self) -> dict[str, Tensor]:
        state = {"prefix_store": self.store, "prefix_filled": self.filled}
        return state if self.routes is None else state | {"prefix_routes": self.routes}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.store, self.filled = state["prefix_store"], state["prefix_filled"]
        self.routes = state.get("prefix_routes", self.routes)


def prefill(
    weights: Weights, prompts: Tensor, prompt_ids: Tensor, prefixes: PrefixCache | None, engine: EngineSettings
) -> tuple[KVCache, Tensor]:
    """Keys and values of prompts (E, B, P) and the logits (E, B, V) after them; uses and fills the prefix cache."""
    members, sequences, length = prompts.shape
    dtype = engine.kv_cache_dtype
    fresh = KVCache.empty(weights, members, sequences, room=length, dtype=dtype)
    hidden = fresh.extend(weights, prompts)
    if prefixes is not None and prefixes.tokens > 0:
        hits = prefixes.hits(prompt_ids)
        if bool(hits.any()):
            reused = KVCache.empty(weights, members, sequences, room=length, dtype=dtype)
            prefixes.read(prompt_ids, reused)
            reused_hidden = reused.extend(weights, prompts[:, :, prefixes.tokens :])
            hit = hits.view(members, sequences, 1, 1, 1)
            fresh.keys = [torch.where(hit, r, f) for r, f in zip(reused.keys, fresh.keys, strict=True)]
            fresh.values = [torch.where(hit, r, f) for r, f in zip(reused.values, fresh.values, strict=True)]
            if fresh.routes is not None and reused.routes is not None:
                fresh.routes = torch.where(hit, reused.routes, fresh.routes)
            hidden = torch.where(hits.unsqueeze(-1), reused_hidden, hidden)
        prefixes.keep(prompt_ids, fresh, ~hits)
    return fresh, weights.logits(hidden)
