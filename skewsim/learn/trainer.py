"""The training loop.

    for k in range(steps):
        rollouts  = engine.generate(prompts, weights of version k - lag, the next ones arriving on the way)
        rewards   = task.score(rollouts)
        old       = what the engine reported, or the trainer's own recomputation
        for each minibatch: loss(trainer, old, engine, advantages) -> gradient -> clip -> Adam
        yield one record for each living member

`Trainer` trains the seeds of one scenario as the members of one stacked ensemble; no number of a member depends on
another member. Toggling a setting gives the trainer a new scenario between two steps. A member whose loss or gradient
is not finite has diverged: its last record says at which step and why, and the other members continue.

Axes: E member, B prompts, G responses per prompt, N = B*G, T response tokens, D parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skewsim.engine.rollouts import FINISH_ABORT, RolloutEngine, RolloutRequest, Rollouts, WeightUpdate
from skewsim.engine.simulated import SimEngine
from skewsim.errors import UserError
from skewsim.learn.adam import Adam
from skewsim.learn.base_policy import starting_policy
from skewsim.learn.batch import Batch, some
from skewsim.learn.look import Look, take
from skewsim.learn.losses import LossInputs
from skewsim.learn.memory import StepSize, check_memory, free_on
from skewsim.learn.objectives import compute_loss
from skewsim.learn.rollout_metrics import merge, rollout_metrics
from skewsim.learn.scoring import Graded, Pass, Scored, grade, old_routes, score_rollouts
from skewsim.machine import keep_freed
from skewsim.model.dropout import Dropout
from skewsim.model.policy import Policy
from skewsim.records import StepRecord
from skewsim.settings import Scenario, changes
from skewsim.task import Task


@dataclass(frozen=True)
class TrainState:
    """Everything that the next step depends on, for a checkpoint."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def train(
    scenario: Scenario,
    engine: RolloutEngine | None = None,
    *,
    seeds: Sequence[int] | None = None,
    state: TrainState | None = None,
) -> Generator[list[StepRecord], Scenario | None, None]:
    """Train, and after every step yield one record for each seed that has not diverged (default: the scenario's seed).

    Send a scenario to the generator to change settings before the next step. To stop, stop iterating.
    """
    trainer = Trainer(scenario, engine, seeds=seeds, state=state)
    while trainer.alive and trainer.step_number < trainer.scenario.steps:
        toggled = yield trainer.step()
        if toggled is not None:
            trainer.toggle(toggled)


class Trainer:
    """Trains the seeds of one scenario as a stacked ensemble; see the module's docstring."""

    def __init__(
        self,
        scenario: Scenario,
        engine: RolloutEngine | None = None,
        *,
        seeds: Sequence[int] | None = None,
        state: TrainState | None = None,
    ) -> None:
        self.seeds = tuple(seeds) if seeds is not None else (scenario.seed,)
        self.step_number = 0
        self.alive = set(range(len(self.seeds)))
        self.engine = engine if engine is not None else SimEngine()
        self.scenario, self.task = scenario, Task(scenario.task)
        self._diverged: dict[int, str] = {}
        self._events: list[str] = []
        self._done: _Done | None = None
        self._dropout: Dropout | None = None
        self._ahead: Scored | None = None
        """The scores of the next minibatch with their graph, if the pass before the update has them."""
        start = starting_policy(scenario)
        _refuse_replay(scenario, start)
        size = StepSize.of(scenario, start.config, self.task, members=len(self.seeds))
        check_memory([size], free_on(scenario.device))
        keep_freed(size.bytes)
        self.policy = start.stacked(len(self.seeds), device=scenario.device)
        self.policy.flat.requires_grad_()
        self._reference = start.flat.detach().to(scenario.device)
        self._adam = Adam(self.policy.flat)
        self._published: dict[int, Tensor] = {0: self.policy.flat.clone()}
        self._engine_version = 0
        self.engine.start(scenario, self.policy, version=0)
        if state is not None:
            self._restore(state)

    # -- the loop -------------------------------------------------------------------------------------------

    def step(self) -> list[StepRecord]:
        """One rollout and its optimiser steps."""
        self._done = None
        began, k = time.perf_counter(), self.step_number
        scenario, trainer = self.scenario, self.scenario.trainer
        rollouts = self.engine.generate(self._request(k))
        scores = self.task.score(rollouts.prompt_ids, rollouts.tokens, rollouts.mask)
        graded = grade(scores, rollouts.mask, scenario)
        self._dropout = Dropout.of(trainer.dropout, self.seeds, k)
        with torch.no_grad():
            before = self._score(rollouts)
            reference = score_rollouts(self._start(), rollouts, scenario).logprobs if trainer.beta else None
        old = rollouts.engine_logprobs if trainer.old_logprobs == "rollout" else before.logprobs
        record = rollout_metrics(rollouts, scores, before, version=k)
        self._done = _Done(k, scenario, rollouts, before, graded, reference)
        mask = self._loss_mask(rollouts)
        replayed = {"R2": before.routed_experts, "R3": rollouts.routed_experts}.get(trainer.router_replay)
        record |= self._learn(Batch(rollouts, old, graded.advantages, graded.group_ids, mask, reference, replayed))
        self.step_number = k + 1
        self._publish()
        record["time/step_s"] = torch.full((len(self.seeds),), time.perf_counter() - began)
        return self._records(k, record)

    def _score(self, rollouts: Rollouts) -> Scored:
        """A rollout's scores before the update. Where the update's first pass would compute some of them again, they
        are computed with a graph and kept for it."""
        scenario, sequences = self.scenario, rollouts.tokens.shape[1]
        size = sequences // scenario.trainer.num_minibatches
        if not _passes_agree(scenario, size):
            routes = old_routes(rollouts, scenario)
            return score_rollouts(self.policy, rollouts, scenario, dropout=self._dropout, replayed=routes)
        with torch.enable_grad():
            self._ahead = score_rollouts(self.policy, some(rollouts, slice(size)), scenario)
        if size == sequences:
            return self._ahead.detached()
        rest = score_rollouts(self.policy, some(rollouts, slice(size, None)), scenario)
        return self._ahead.detached().followed_by(rest)

    def _learn(self, batch: Batch) -> dict[str, Tensor]:
        """All optimiser steps on one rollout; the metrics' means over them."""
        trainer = self.scenario.trainer
        seen: list[dict[str, Tensor]] = []
        for _ in range(trainer.num_iterations):
            for part in batch.minibatches(trainer.num_minibatches):
                seen.append(self._optimise(part, first=not seen))
        means = {key: merge(torch.stack([s[key] for s in seen]), key) for key in seen[-1]}
        return seen[0] | means  # the cosine is computed at the first step only

    def _optimise(self, part: Batch, *, first: bool) -> dict[str, Tensor]:
        """One optimiser step."""
        trainer = self.scenario.trainer
        scored, self._ahead = self._ahead, None
        if scored is None:
            scored = score_rollouts(
                self.policy, part.rollouts, self.scenario, dropout=self._dropout, replayed=part.replayed
            )
        inputs = part.loss_inputs(scored.logprobs)
        out = compute_loss(inputs, trainer)
        loss = torch.as_tensor(out.loss)
        found = {"optim/loss": loss.detach()} | {k: torch.as_tensor(v) for k, v in out.metrics.items()}
        truth = part.rollouts.sampler_logprobs if first else None
        gradient = self._gradient(loss, keep_graph=truth is not None)
        norm = gradient.norm(dim=1)
        found["optim/grad_norm"] = norm
        if truth is not None:
            found["optim/grad_cosine"] = self._cosine(gradient, truth, part, inputs)
        self._note_divergence(loss.detach(), norm)
        clipped = gradient * (trainer.max_grad_norm / (norm + 1e-6)).clamp_max(1.0).unsqueeze(1)
        self._adam.step(self.policy.flat, clipped, trainer)
        return found

    def _gradient(self, loss: Tensor, *, keep_graph: bool = False) -> Tensor:
        """The gradient (E, D) of each member's own loss (E,)."""
        (gradient,) = torch.autograd.grad(loss.sum(), self.policy.flat, retain_graph=keep_graph)
        return gradient

    def _cosine(self, used: Tensor, truth: Tensor, part: Batch, inputs: LossInputs) -> Tensor:
        """Cosine (E,) between the gradient used and the one with the logprobs that were really sampled from."""
        if torch.equal(truth, part.rollouts.engine_logprobs):
            return torch.ones(len(used), device=used.device)
        old = truth if self.scenario.trainer.old_logprobs == "rollout" else part.old
        told = replace(inputs, engine_logprobs=truth, old_logprobs=old)
        truthful = self._gradient(torch.as_tensor(compute_loss(told, self.scenario.trainer).loss))
        cosine = torch.nn.functional.cosine_similarity(used, truthful, dim=1)
        return torch.where(used.any(1) & truthful.any(1), cosine, torch.nan)  # no angle to a zero gradient

    # -- parts ----------------------------------------------------------------------------------------------

    def _request(self, k: int) -> RolloutRequest:
        scenario, engine = self.scenario, self.scenario.engine
        ids = self.task.sample_prompts(self.seeds, step=k, num_prompts=scenario.trainer.num_prompts)
        ids = ids.to(scenario.device)
        in_flight = engine.update_at_token is not None and engine.lag > 0
        version = max(0, k - engine.lag + int(in_flight))
        update = None
        if version > self._engine_version:
            update = WeightUpdate(self._published[version], version)
            self._engine_version = version
        return RolloutRequest(
            step=k,
            seeds=self.seeds,
            prompt_ids=ids,
            prompts=self.task.pool.to(scenario.device)[ids],
            num_generations=scenario.trainer.num_generations,
            max_tokens=self.task.max_tokens,
            update=update,
            update_at=engine.update_at_token or 0 if in_flight else 0,
        )

    def _publish(self) -> None:
        """Store the new weights for the engine, and delete versions that it no longer needs."""
        self._published[self.step_number] = self.policy.flat.clone()
        oldest = self.step_number - self.scenario.engine.lag
        self._published = {v: w for v, w in self._published.items() if v >= oldest}

    def _start(self) -> Policy:
        """The policy that training started from, for every member."""
        return Policy(self.policy.config, self._reference.expand(len(self.seeds), -1))

    def _loss_mask(self, rollouts: Rollouts) -> Tensor:
        if not self.scenario.trainer.mask_truncated_completions:
            return rollouts.mask
        cut = rollouts.finish_reasons == FINISH_ABORT
        return rollouts.mask * (~cut).unsqueeze(-1)

    def _note_divergence(self, loss: Tensor, norm: Tensor) -> None:
        for what, values in (("loss", loss), ("gradient norm", norm)):
            for member in (~values.isfinite()).nonzero().flatten().tolist():
                self._diverged.setdefault(member, f"{what} is {values[member].item()} at step {self.step_number}")

    def _records(self, k: int, found: dict[str, Tensor]) -> list[StepRecord]:
        """One record for each member that was alive when the step began."""
        names = list(found)
        table = torch.stack([found[n].detach().double().cpu() for n in names], dim=1).tolist()
        records = []
        for member in sorted(self.alive):
            values = {
                n: x if x == x and abs(x) != float("inf") else None for n, x in zip(names, table[member], strict=True)
            }
            records.append(
                StepRecord(
                    step=k,
                    scenario=self.scenario.name,
                    seed=self.seeds[member],
                    metrics=values,
                    events=list(self._events),
                    diverged=self._diverged.get(member),
                    sources=sources(self.scenario),
                )
            )
        self.alive -= self._diverged.keys()
        self._events = []
        return records

    # -- looking closer ---------------------------------------------------------------------------------------

    def look(self, member: int = 0) -> Look:
        """The tokens of the step just done, of one member (default: the first), with the numbers behind its record.

        Needs no further forward pass. Raises UserError before the first step.
        """
        return self.looking()(member)

    def looking(self) -> Callable[[int], Look]:
        """`look` at the step just done, also when further ones have been done. Raises UserError before the first."""
        if self._done is None:
            raise UserError("no step has been done yet: there is nothing to look at")
        return self._done.look

    # -- settings and state -----------------------------------------------------------------------------------

    def toggle(self, scenario: Scenario) -> None:
        """Use new settings from the next step on.

        Raises UserError if the task or the policy's shape changes, or if a step would no longer fit into the memory.
        """
        before = self.scenario
        fixed = ("policy", "logit_offset", "device", "task")
        for name in fixed:
            if getattr(before, name) != getattr(scenario, name):
                raise UserError(f"{name} cannot change while a run goes on; allowed: engine, skew, trainer, steps")
        _refuse_replay(scenario, self.policy)
        self._check_growth(scenario)
        self.scenario = scenario
        self._events += changes(before, scenario)
        self.engine.start(scenario, self.policy, version=self._engine_version)

    def _check_growth(self, scenario: Scenario) -> None:
        """UserError if what a step takes more than one does now is not free."""
        now, then = (self._size(each) for each in (self.scenario, scenario))
        free = free_on(scenario.device)
        if then.bytes > now.bytes and free is not None:
            check_memory([then], free + now.bytes)

    def _size(self, scenario: Scenario) -> StepSize:
        return StepSize.of(scenario, self.policy.config, self.task, members=len(self.seeds))

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def state(self) -> TrainState:
        """A checkpoint of everything that the next step depends on."""
        tensors = {"policy": self.policy.flat} | {f"adam.{n}": t for n, t in self._adam.moments.items()}
        tensors |= {f"published.{v}": w for v, w in self._published.items()}
        tensors |= {f"engine.{n}": t for n, t in self.engine.state().items()}
        meta = {
            "step": self.step_number,
            "seeds": list(self.seeds),
            "engine_version": self._engine_version,
            "diverged": {str(m): why for m, why in self._diverged.items()},
        }
        return TrainState({n: t.detach().cpu().clone() for n, t in tensors.items()}, meta)

    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint's tensors once every version of the weights that the engine may ask for is there."""
        return self._size(self.scenario).state

    def _restore(self, state: TrainState) -> None:
        device = self.scenario.device
        tensors = {n: t.to(device, copy=True) for n, t in state.tensors.items()}  # they are updated in place
        self.step_number = int(state.meta["step"])
        self._engine_version = int(state.meta["engine_version"])
        self._diverged = {int(m): why for m, why in state.meta["diverged"].items()}
        self.alive -= self._diverged.keys()
        with torch.no_grad():
            self.policy.flat.copy_(_alike(tensors, "policy", self.policy.flat))
        self._adam.moments = {n: _alike(tensors, f"adam.{n}", t) for n, t in self._adam.moments.items()}
        published = [name for name in tensors if name.startswith("published.")]
        self._published = {int(n.partition(".")[2]): _alike(tensors, n, self.policy.flat) for n in published}
        held = {n.removeprefix("engine."): t for n, t in tensors.items() if n.startswith("engine.")}
        self.engine.restore(held)


def _alike(tensors: dict[str, Tensor], name: str, here: Tensor) -> Tensor:
    """A tensor of a checkpoint. KeyError: it is missing; ValueError: it is of another kind."""
    found = tensors[name]
    if found.shape != here.shape or found.dtype != here.dtype:
        raise ValueError(f"{name} is {found.dtype} {tuple(found.shape)}, not {here.dtype} {tuple(here.shape)}")
    return found


def _refuse_replay(scenario: Scenario, policy: Policy) -> None:
    """Raises UserError where routes are to be replayed and the policy has none."""
    if scenario.trainer.router_replay != "disabled" and policy.config.route is None:
        raise UserError(
            f"trainer.router_replay={scenario.trainer.router_replay}: the policy is no mixture of experts; "
            "allowed: disabled, or policy=base_moe"
        )


@dataclass(frozen=True)
class _Done:
    """The rollout of the step just done and its scores, kept for `Trainer.look` until the next step."""

    step: int
    scenario: Scenario
    rollouts: Rollouts
    scored: Scored
    graded: Graded
    reference_logprobs: Tensor | None

    def look(self, member: int) -> Look:
        return take(
            self.rollouts,
            self.scored,
            self.graded,
            self.scenario,
            step=self.step,
            member=member,
            reference_logprobs=self.reference_logprobs,
        )


def _passes_agree(scenario: Scenario, minibatch: int) -> bool:
    """Whether the update's first pass over `minibatch` sequences computes what the pass before it does: with dropout no
    two passes agree, replayed routes may be others, and sequences have to be packed in the same rows."""
    trainer, how = scenario.trainer, Pass.of(scenario)
    return not trainer.dropout and trainer.router_replay == "disabled" and minibatch % how.pack_size == 0


def sources(scenario: Scenario) -> dict[str, str]:
    """Where each part of a scenario's skew comes from: computed, measured or invented."""
    skew = scenario.skew
    found = {"engine": "computed"}
    if skew.noise == "profile":
        found["noise"] = "measured"
    elif skew.active:
        found["noise"] = "invented"
    return found
