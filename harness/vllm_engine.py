"""vLLM as a `RolloutEngine`, in a process of ours or behind a server: weights go in, rollouts come out.

It keeps the promises of the simulated engine: a rollout starts with the weights that the engine holds, the next ones
arrive at a token boundary (or before the rollout, or after it), and what that does to requests under way is set by
`mode` and `clear_cache`. Members (seeds) go through one session one after another, each with its own weights loaded,
its own sampling seeds and its own prefix cache (by a cache salt), so that none sees another's.

A real engine refuses what it cannot do: injected skew, and settings that its version lacks. What it cannot tell is None
in the rollouts: the true log-probability under what it sampled from, and the mass that top-p kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.protocols import RealChoice, Session
from harness.requests import InFlightUpdate, Request, Row, Size, check_ids
from skewsim.engine.rollouts import FINISH_ABORT, FINISH_LENGTH, FINISH_STOP, RolloutRequest, Rollouts, WeightUpdate
from skewsim.errors import UserError
from skewsim.model.policy import Policy
from skewsim.seeding import Purpose, generator
from skewsim.settings import Scenario
from skewsim.task import PAD, Task

FINISH = {"stop": FINISH_STOP, "length": FINISH_LENGTH, "abort": FINISH_ABORT}
CHANGEABLE = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "lag": 0,
    "mode": "keep",
    "clear_cache": False,
    "update_at_token": None,
}
"""Settings that may change without a new session, since only requests and updates carry them. The values do not matter:
they stand for whatever is set when the settings of two sessions are compared."""


class VllmEngine:
    """Rollouts from a real engine; `info` holds what it said of itself, once it runs."""

    def __init__(self, choice: RealChoice, *, progress: Callable[[str], None] | None = None) -> None:
        self.choice, self.name = choice, choice.name
        self.info: dict[str, Any] = {}
        self.version = -1
        self._say = progress or (lambda text: None)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._session: Session | None = None
        self._shape: tuple[Any, ...] = ()
        self._size = Size(0, 0, 0)
        self._flat: Tensor | None = None
        self._held: tuple[int, int, Tensor] | None = None
        """Version, member and weights (D,) that the session holds; None: not known."""

    @property
    def session(self) -> Session:
        """What runs below it; after start()."""
        assert self._session is not None, "start() comes first"
        return self._session

    @property
    def flat(self) -> Tensor:
        """(E, D) the weights that the next rollout starts with; after start()."""
        assert self._flat is not None, "start() comes first"
        return self._flat

    def start(self, scenario: Scenario, policy: Policy, *, version: int) -> None:
        """Begin, or go on after a toggle: weights stay as they are, and so do caches, unless the change needs a new
        session (precision, logprobs mode, prefix caching, batch size)."""
        self.choice.check(scenario)
        task, trainer = Task(scenario.task), scenario.trainer
        self._settings, self._config, self._eos = scenario.engine, policy.config, task.eos_id
        self._support = trainer.correction.keep_sampling_mask and scenario.engine.truncates
        if self._flat is None:
            self._flat, self.version = policy.flat.detach().clone(), version
        size = Size(task.prompt_length, task.max_tokens, trainer.num_prompts * trainer.num_generations)
        shape = (scenario.engine.model_copy(update=CHANGEABLE), self._support, policy.config)
        if not (self._session and self._session.alive and shape == self._shape and self._size.holds(size)):
            self._shape, self._size = shape, self._size.joined(size)
            self._launch()
        if trainer.learning_rate > 0 and not self.session.takes_weights:
            self.close()
            raise UserError(
                f"trainer.learning_rate={trainer.learning_rate:g}: {self.name} takes no new weights; allowed "
                "is 0, or a vLLM server started with VLLM_SERVER_DEV_MODE=1"
            )

    def generate(self, request: RolloutRequest) -> Rollouts:
        """Sample for every member; afterwards all of them hold the updated weights."""
        out, update = _Buffer(request, self._config.vocab_size if self._support else None), request.update
        if update and not self.session.takes_weights and torch.equal(update.flat, self.flat):
            request = replace(request, update=None)  # nothing changes, so nothing has to be sent
        for member, seed in enumerate(request.seeds):
            rows = self._rows(request, member, seed) if self._finite(request, member) else []
            for row in rows:
                out.write(member, row)
        if update:
            self._flat, self.version = update.flat.detach().clone(), update.version
        return out.rollouts(request)

    def close(self) -> None:
        """End the session; start() would begin anew."""
        if self._session:
            self._session.close()
        self._session, self._flat = None, None
        if self._folder:
            self._folder.cleanup()
        self._folder = None

    def state(self) -> dict[str, Tensor]:
        """The weights that the engine holds and their version, for a checkpoint; cached prefixes are not in it."""
        return {"flat": self.flat, "version": torch.tensor(self.version)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint; after start()."""
        self._flat, self.version = state["flat"], int(state["version"])

    def _launch(self) -> None:
        if self._session:
            self._session.close()
        self._say(f"starting {self.name}")
        self._session = self.choice.session(
            self._write(self.flat, member=0, name="current"),
            self._settings,
            size=self._size,
            version=self.version,
            full_logprobs=self._support,
        )
        self._held = (self.version, 0, self.flat[0]) if self._session.started_here else None
        self.info = {"engine": self.name, **self._session.info, "overruled": self._session.overruled}
        for name, values in self._session.overruled.items():
            self._say(f"{self.name} runs with {name}={values['actual']}, though {values['asked']} was asked for")
        if not_known := self.info.get("not_known"):
            self._say(f"{self.name} does not tell its {', '.join(not_known)}")

    def _finite(self, request: RolloutRequest, member: int) -> bool:
        """Whether a member's weights are numbers. One that has diverged answers nothing: vLLM cannot sample from it."""
        flats = [self.flat] + ([request.update.flat] if request.update else [])
        return all(bool(flat[member].isfinite().all()) for flat in flats)

    def _rows(self, request: RolloutRequest, member: int, seed: int) -> Sequence[Row]:
        update = request.update
        if update and request.update_at == 0:
            self._load(member, update, clear_cache=self._settings.clear_cache)
            update = None
        elif not self._holds(member):
            self._load(member, WeightUpdate(self.flat, self.version), clear_cache=False)
        rows = list(
            self.session.generate(
                self._requests(request, member, seed),
                self._settings,
                max_tokens=request.max_tokens,
                stop=() if self._eos is None else (self._eos,),
                update=self._in_flight(update, member, at=request.update_at) if update else None,
            )
        )
        check_ids(rows, self._config.vocab_size)
        if update:
            self._held = (update.version, member, update.flat[member].clone())
        if (
            not self.session.takes_weights
        ):  # so it counts no versions: all tokens are of the weights it is trusted to have
            return [replace(row, versions=[self.version] * len(row.tokens)) for row in rows]
        return rows

    def _holds(self, member: int) -> bool:
        if self._held is None or self._held[:2] != (self.version, member):
            return False
        return torch.equal(self._held[2], self.flat[member])

    def _load(self, member: int, weights: WeightUpdate, *, clear_cache: bool) -> None:
        """Give the session a member's weights, between requests; one that takes none is trusted to have the first's."""
        if self.session.takes_weights:
            folder = self._write(weights.flat, member=member, name="current")
            self.session.update(folder, version=weights.version, clear_cache=clear_cache)
        elif not torch.equal(weights.flat[member], self.flat[0]):
            raise UserError(f"engine={self.name} takes no new weights, and members' weights differ; allowed: one seed")
        self._held = (weights.version, member, weights.flat[member].clone())

    def _in_flight(self, update: WeightUpdate, member: int, *, at: int) -> InFlightUpdate:
        return InFlightUpdate(
            folder=str(self._write(update.flat, member=member, name="next")),
            version=update.version,
            at=at,
            mode=self._settings.mode,
            clear_cache=self._settings.clear_cache,
        )

    def _requests(self, request: RolloutRequest, member: int, seed: int) -> list[Request]:
        prompts = request.prompts[member].repeat_interleave(request.num_generations, dim=0).tolist()
        stream = generator(seed, step=request.step, purpose=Purpose.SAMPLING)
        seeds = torch.randint(2**31, (len(prompts),), generator=stream).tolist()
        salted = len(request.seeds) > 1 and self._settings.enable_prefix_caching
        salt = f"member-{member}" if salted else None
        return [Request(i, p, s, salt) for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))]

    def _write(self, flat: Tensor, *, member: int, name: str) -> Path:
        """A member's weights as a Hugging Face folder; a server must see it under the same path."""
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="skewsim-weights-")
        folder = Path(self._folder.name) / name
        Policy(self._config, flat).save(folder, member=member)
        return folder


class _Buffer:
    """Collects the rows of all members as they come, and makes them into Rollouts."""

    def __init__(self, request: RolloutRequest, vocab_size: int | None) -> None:
        members, sequences = len(request.seeds), request.prompts.shape[1] * request.num_generations
        shape = (members, sequences, request.max_tokens)
        self.tokens = torch.full(shape, PAD, dtype=torch.int64)
        self.mask, self.logprobs = torch.zeros(shape), torch.zeros(shape)
        self.versions = torch.zeros(shape, dtype=torch.int64)
        self.finish = torch.full(shape[:2], FINISH_ABORT)
        self.routes: Tensor | None = None
        self._shape, self._prompt = shape, request.prompts.shape[2]
        self.support = torch.ones(*shape, vocab_size, dtype=torch.bool) if vocab_size else None

    def write(self, member: int, row: Row) -> None:
        here = (member, row.id, slice(0, len(row.tokens)))
        self.tokens[here] = torch.tensor(row.tokens, dtype=torch.int64)
        self.mask[here] = 1.0
        self.logprobs[here] = torch.tensor(row.logprobs, dtype=torch.float32)
        self.versions[here] = torch.tensor(row.versions, dtype=torch.int64)
        self.finish[member, row.id] = FINISH[row.finish]
        if row.routes is not None:
            self._write_routes(here[:2], torch.tensor(row.routes))
        if self.support is not None:
            for t, kept in enumerate(row.support or []):
                self.support[member, row.id, t] = False
                self.support[member, row.id, t, kept] = True

    def _write_routes(self, at: tuple[int, int], routes: Tensor) -> None:
        """The experts (P+T-1, L, k) of one row; those of tokens past its end are 0."""
        if self.routes is None:
            self.routes = torch.zeros(
                *self._shape[:2], self._prompt + self._shape[2] - 1, *routes.shape[1:], dtype=torch.int64
            )
        self.routes[at][: len(routes)] = routes

    def rollouts(self, request: RolloutRequest) -> Rollouts:
        device, group = request.prompts.device, request.num_generations
        return Rollouts(
            prompt_ids=request.prompt_ids.repeat_interleave(group, dim=1),
            prompts=request.prompts.repeat_interleave(group, dim=1),
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            engine_logprobs=self.logprobs.to(device),
            weight_versions=self.versions.to(device),
            finish_reasons=self.finish.to(device),
            support=None if self.support is None else self.support.to(device),
            routed_experts=None if self.routes is None else self.routes.to(device),
        )
