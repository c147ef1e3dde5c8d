"""The simulated rollout engine, which computes skew from its causes.

`SimEngine` does what vLLM does, with vLLM's setting names: prefill and decode over a real key/value cache at the
precision that is set; a prefix cache that is kept through a weight update unless it is cleared; updates that arrive at
a token boundary in mid-sequence; logprobs reported before or after the sampler's processing. So each of the four causes
of the V0-to-V1 divergence is computed, not put in as a number.

What an update does to running requests (vLLM, "Async Reinforcement Learning", pause_generation):
keep: they pause and continue under the new weights, with their old keys and values unless ``clear_cache``;
wait: they finish under the old weights first; abort: they end at once and return the tokens that they have.

Faults that people report can be switched on: updates that do not arrive (`weight_sync`, `stale_replicas`), penalties
and a softcap that the trainer does not have, logprobs that are filled in (`placeholders`).

Axes: E member, B prompts, G responses per prompt, N = B*G (prompt-major), P prompt, T response, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skewsim.engine.kv_cache import PrefixCache, prefill
from skewsim.engine.noise import NoiseModel
from skewsim.engine.placeholders import draw_missing, filled_in
from skewsim.engine.rollouts import FINISH_ABORT, FINISH_LENGTH, FINISH_STOP, RolloutRequest, Rollouts, WeightUpdate
from skewsim.engine.routed_experts import returned
from skewsim.engine.sampling import Sample, Sampler
from skewsim.engine.weight_sync import delivered
from skewsim.errors import UserError
from skewsim.model.policy import Policy, Weights
from skewsim.model.quantization import quantize
from skewsim.settings import EngineSettings, Scenario
from skewsim.skew.profile import load_profile
from skewsim.task import PAD, Task


def _refuse_real(engine: EngineSettings) -> None:
    """Raise UserError for settings of real engines only: here nothing is compiled, and batches change no number."""
    for name in ("enforce_eager", "max_num_seqs"):
        value = getattr(engine, name)
        if value != type(engine).model_fields[name].default:
            raise UserError(
                f"engine.{name}={value!r}: the simulated engine does not have it; real engines do (--engine)"
            )


class SimEngine:
    """The simulated engine; see the module's docstring."""

    def __init__(self) -> None:
        self.version = -1
        self._flat: Tensor | None = None
        self._stale: Tensor | None = None
        """(E, D) what replicas without updates serve; None if there are none."""
        self._prefixes: PrefixCache | None = None

    def start(self, scenario: Scenario, policy: Policy, *, version: int) -> None:
        engine, task = scenario.engine, Task(scenario.task)
        _refuse_real(engine)
        self._settings, self._config, self._eos, self._task = engine, policy.config, task.eos_id, task
        skew = scenario.skew
        profile = load_profile(skew.profile) if skew.profile else None
        self._noise = NoiseModel(skew, policy.config.vocab_size, profile) if skew.active else None
        self._sampler = Sampler(engine, skew, self._noise)
        if self._flat is None:
            self._flat, self.version = policy.flat.detach().clone(), version
        if engine.stale_replicas == 0:
            self._stale = None
        elif self._stale is None:
            self._stale = self._flat.clone()
        self._weights = self._cast(self._flat)
        if not engine.enable_prefix_caching:
            self._prefixes = None
        elif self._prefixes is None or not self._prefixes.fits(task, engine):
            self._prefixes = PrefixCache(policy, task, engine)

    def close(self) -> None:
        self._flat = self._stale = self._prefixes = None

    def state(self) -> dict[str, Tensor]:
        """Everything that the next rollout depends on, for a checkpoint."""
        assert self._flat is not None, "start() comes first"
        state = {"flat": self._flat, "version": torch.tensor(self.version)}
        if self._stale is not None:
            state["stale"] = self._stale
        return state | (self._prefixes.state() if self._prefixes else {})

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint; after start()."""
        self._flat, self.version = state["flat"], int(state["version"])
        self._stale = state.get("stale", self._stale)
        self._weights = self._cast(self._flat)
        if self._prefixes:
            self._prefixes.restore(state)

    @property
    def served(self) -> Weights:
        """The weights that the next rollout begins with, at the engine's precision."""
        return self._weights

    def generate(self, request: RolloutRequest) -> Rollouts:
        with torch.no_grad():
            return self._generate(request)

    def _generate(self, request: RolloutRequest) -> Rollouts:
        engine, update = self._settings, request.update
        if update and request.update_at == 0:
            self._load(update)
            update = None
        boundary = request.update_at + int(engine.async_scheduling) if update else request.max_tokens
        served = _Requests(self._weights, request, self._prefixes, engine)
        stale = None if self._stale is None else _Requests(self._cast(self._stale), request, None, engine)
        prompts = request.prompts.repeat_interleave(request.num_generations, dim=1)
        replicas = self._replicas(prompts)
        draws = self._sampler.begin(request, prompts, self._config.vocab_size)
        environment = self._environment(request)
        out = _Buffer.empty(prompts, request.max_tokens)
        aborted = False
        for t in range(request.max_tokens):
            if update and t == boundary and engine.mode != "wait":
                if engine.mode == "abort":
                    aborted = True
                    break
                self._load(update)
                update = None
                served.weights = self._weights
                if engine.clear_cache:  # compute keys and values again under the new weights
                    served.recompute(torch.cat([prompts, out.tokens[:, :, : t - 1]], -1))
            if t > 0:
                served.append(out.tokens[:, :, t - 1 : t])
            logits = served.logits
            if stale is not None:
                if t > 0:
                    stale.append(out.tokens[:, :, t - 1 : t])
                old = replicas >= engine.replicas - engine.stale_replicas
                logits = torch.where(old.unsqueeze(-1), stale.logits, logits)
            given = environment.get(t)
            sample = self._sampler.sample(logits, t, draws, given)
            out.write(t, sample, version=self.version, eos=self._eos, given=given is not None)
            if out.finished is not None and bool(out.finished.all()):
                break
        if update:
            self._load(update)
        made = out.rollouts(request, prompts, aborted=aborted)
        missing = draw_missing(request.seeds, request.step, made.mask, engine)
        ended = made.finish_reasons != FINISH_ABORT
        routes = served.routes
        if routes is not None and stale is not None and stale.routes is not None:
            old = replicas >= engine.replicas - engine.stale_replicas
            routes = torch.where(old[:, :, None, None, None], stale.routes, routes)
        return replace(
            made,
            true_routes=routes,
            routed_experts=returned(routes, engine),
            engine_logprobs=filled_in(made.engine_logprobs, made.mask, ended, engine, missing),
            replicas=replicas if engine.replicas > 1 else None,
        )

    def _environment(self, request: RolloutRequest) -> dict[int, Tensor]:
        """Response position -> the tokens (E, N) that the environment writes there; empty in tasks of one turn."""
        start, end = self._task.environment_at
        written = self._task.environment.to(request.prompt_ids.device)[request.prompt_ids] if start < end else None
        if written is None:
            return {}
        written = written.repeat_interleave(request.num_generations, dim=1)
        return {start + i: written[:, :, i] for i in range(end - start)}

    def _replicas(self, prompts: Tensor) -> Tensor:
        """(E, N) the replica that answers each sequence: they take them in turn."""
        turn = torch.arange(prompts.shape[1], device=prompts.device) % self._settings.replicas
        return turn.expand(prompts.shape[:2])

    def _load(self, update: WeightUpdate) -> None:
        assert self._flat is not None, "start() comes first"
        self._flat = delivered(self._config, self._flat, update.flat, self._settings.weight_sync)
        self.version = update.version
        self._weights = self._cast(self._flat)
        if self._prefixes and self._settings.clear_cache:
            self._prefixes.clear()

    def _cast(self, flat: Tensor) -> Weights:
        engine = self._settings
        weights = Policy(self._config, flat).weights(
            dtype=engine.dtype, head_dtype=engine.head_dtype, router_dtype=engine.moe_router_dtype
        )
        return quantize(weights, engine.quantization) if engine.quantization else weights


class _Requests:
    """All requests of one rollout, served under the same weights."""

    def __init__(
        self, weights: Weights, request: RolloutRequest, prefixes: PrefixCache | None, engine: EngineSettings
    ) -> None:
        cache, logits = prefill(weights, request.prompts, request.prompt_ids, prefixes, engine)
        self.weights = weights
        self._cache = cache.repeated(request.num_generations, room=request.max_tokens)
        self.logits = logits.repeat_interleave(request.num_generations, dim=1)
        """(E, N, V) of the next token."""

    @property
    def routes(self) -> Tensor | None:
        """(E, N, P+T-1, L, k) the experts of every token but the last; None if the policy is no mixture of experts."""
        routes = self._cache.routes
        return None if routes is None else routes[:, :, :-1]  # the last token is sampled and never computed

    def append(self, tokens: Tensor) -> None:
        """One more token (E, N, 1) of every sequence."""
        self.logits = self.weights.logits(self._cache.extend(self.weights, tokens))

    def recompute(self, tokens: Tensor) -> None:
        """Compute keys and values of prompts and responses (E, N, Q) again under the weights."""
        self._cache.recompute(self.weights, tokens)


@dataclass
class _Buffer:
    """The rollouts under construction, filled in token by token."""

    tokens: Tensor
    mask: Tensor
    engine_logprobs: Tensor
    sampler_logprobs: Tensor
    weight_versions: Tensor
    kept_mass: list[Tensor]
    support: list[Tensor]
    given: Tensor
    finished: Tensor | None = None

    @classmethod
    def empty(cls, prompts: Tensor, max_tokens: int) -> _Buffer:
        shape = (*prompts.shape[:2], max_tokens)
        zeros = torch.zeros(shape, device=prompts.device)
        return cls(
            tokens=torch.full(shape, PAD, dtype=torch.int64, device=prompts.device),
            mask=zeros,
            engine_logprobs=zeros.clone(),
            sampler_logprobs=zeros.clone(),
            weight_versions=torch.zeros_like(zeros, dtype=torch.int64),
            kept_mass=[],
            support=[],
            given=torch.zeros(shape, dtype=torch.bool, device=prompts.device),
        )

    def write(self, t: int, sample: Sample, *, version: int, eos: int | None, given: bool) -> None:
        """The t-th token of every sequence; `given`: the environment wrote it, and no logprob is reported."""
        self.given[:, :, t] = given
        live = torch.ones_like(sample.tokens, dtype=torch.bool) if self.finished is None else ~self.finished
        self.tokens[:, :, t] = torch.where(live, sample.tokens, PAD)
        self.mask[:, :, t] = 0.0 if given else live.float()
        told = live & (not given)
        self.engine_logprobs[:, :, t] = torch.where(told, sample.reported, 0.0)
        self.sampler_logprobs[:, :, t] = torch.where(told, sample.sampled, 0.0)
        self.weight_versions[:, :, t] = version
        if sample.support is not None and sample.kept_mass is not None:
            self.support.append(sample.support)
            self.kept_mass.append(sample.kept_mass)
        if eos is not None:
            self.finished = ~live | (sample.tokens == eos)

    def rollouts(self, request: RolloutRequest, prompts: Tensor, *, aborted: bool) -> Rollouts:
        cut = FINISH_ABORT if aborted else FINISH_LENGTH
        reasons = torch.full(prompts.shape[:2], cut, device=prompts.device)
        if self.finished is not None:
            reasons = torch.where(self.finished, FINISH_STOP, reasons)
        return Rollouts(
            prompt_ids=request.prompt_ids.repeat_interleave(request.num_generations, dim=1),
            prompts=prompts,
            tokens=self.tokens,
            mask=self.mask,
            engine_logprobs=self.engine_logprobs,
            sampler_logprobs=self.sampler_logprobs,
            weight_versions=self.weight_versions,
            finish_reasons=reasons,
            kept_mass=_padded(self.kept_mass, request.max_tokens, 1.0),
            support=_padded(self.support, request.max_tokens, True),
            given=self.given if bool(self.given.any()) else None,
        )


def _padded(parts: list[Tensor], length: int, value: float) -> Tensor | None:
    """Stack per-token parts along T and pad them with ``value`` to ``length``; None if there are none."""
    if not parts:
        return None
    return torch.stack(parts + [torch.full_like(parts[0], value)] * (length - len(parts)), dim=2)
