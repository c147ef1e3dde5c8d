"""A vLLM process as a `RolloutEngine`: settings in vLLM's words, weights in, rollouts out.

The same promises as the simulated engine: a rollout starts with the weights the engine holds, the next ones arrive at
a token boundary (or before, or after), and what that does to requests in flight follows `mode` and `clear_cache`.
Members (seeds) go through one worker one after another, each with its own weights loaded, its own sampling seeds and
its own prefix cache (a cache salt), so that a member never sees another's.

What a real engine cannot do is refused: injected skew, and settings that the version lacks. What it cannot tell is
None: the true log-probability of what it sampled from, and the mass that top-p kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.arguments import Size, refuse_update
from harness.client import Limits
from harness.engines import EngineSpec, find_spec, require
from harness.server_session import ServerSession
from harness.session import EngineSession, Request, Row, Update
from skewsim.engine.rollouts import FINISH_ABORT, FINISH_LENGTH, FINISH_STOP, RolloutRequest, Rollouts, WeightUpdate
from skewsim.errors import UserError
from skewsim.model.policy import Policy
from skewsim.seeding import Purpose, generator
from skewsim.settings import EngineSettings, Scenario
from skewsim.task import PAD, Task

FINISH = {"stop": FINISH_STOP, "length": FINISH_LENGTH, "abort": FINISH_ABORT}


class VllmEngine:
    """Rollouts from a real engine; `info` holds what it said of itself once it runs."""

    def __init__(
        self,
        engine: str | EngineSpec,
        *,
        root: Path | str | None = None,
        limits: Limits | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.spec = find_spec(engine) if isinstance(engine, str) else engine
        require(self.spec, root=root)
        self._root, self._limits = root, limits
        self._prepare(self.spec.name, progress)

    def _prepare(self, name: str, progress: Callable[[str], None] | None) -> None:
        self.name = name
        self.info: dict[str, Any] = {}
        self.version = -1
        self._say = progress or (lambda text: None)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._session: EngineSession | ServerSession | None = None
        self._shape: tuple[Any, ...] = ()
        self._size = Size(0, 0, 0)
        self._flat: Tensor | None = None
        self._held: tuple[int, int, Tensor] | None = None
        """Version, member and weights (D,) that the worker holds."""

    def start(self, scenario: Scenario, policy: Policy, *, version: int) -> None:
        """Begin, or go on after a toggle: weights stay as they are, and so do caches unless the change needs a new
        process (precision, logprobs mode, prefix caching, batch size)."""
        _refuse_injected(scenario, self.name)
        task, engine, trainer = Task(scenario.task), scenario.engine, scenario.trainer
        self._refuse(engine)
        self._settings, self._config, self._eos = engine, policy.config, task.eos_id
        self._support = trainer.correction.keep_sampling_mask and engine.truncates
        if self._support and engine.logprobs_mode != "processed_logprobs":
            raise UserError(
                f"trainer.correction.keep_sampling_mask=true with {self.name} needs "
                'engine.logprobs_mode="processed_logprobs", which shows what top-p left'
            )
        if self._flat is None:
            self._flat, self.version = policy.flat.detach().clone(), version
        size = Size(task.prompt_length, task.max_tokens, trainer.num_prompts * trainer.num_generations)
        # what only the requests carry may change without a new process
        fixed = engine.model_copy(update={"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "lag": 0})
        fixed = fixed.model_copy(update={"mode": "keep", "clear_cache": False, "update_at_token": None})
        shape = (fixed, self._support, policy.config)
        if not (self._session and self._session.alive and shape == self._shape and self._size.holds(size)):
            self._shape, self._size = shape, self._size.joined(size)
            self._launch()

    def _refuse(self, settings: EngineSettings) -> None:
        """What this engine cannot do in training."""
        refuse_update(self.spec, settings)

    def _launch(self) -> None:
        if self._session:
            self._session.close()
        assert self._flat is not None
        self._say(f"starting {self.name}")
        folder = self._write(self._flat, member=0, name="current")
        self._session = self._open(folder)
        self._held = (self.version, 0, self._flat[0])
        self.info = {"engine": self.name, **self._session.info, "overruled": self._session.overruled}
        for name, values in self._session.overruled.items():
            self._say(f"{self.name} runs with {name}={values['actual']}, though {values['asked']} was asked for")

    def _open(self, folder: Path) -> EngineSession | ServerSession:
        return EngineSession(
            self.spec,
            folder,
            self._settings,
            size=self._size,
            version=self.version,
            full_logprobs=self._support,
            root=self._root,
            limits=self._limits,
        )

    @property
    def session(self) -> EngineSession | ServerSession | None:
        """The process under it, once started."""
        return self._session

    def generate(self, request: RolloutRequest) -> Rollouts:
        """Sample for every member; afterwards all of them hold the updated weights."""
        out = _Buffer(request, self._config.vocab_size if self._support else None)
        for member, seed in enumerate(request.seeds):
            rows = self._rows(request, member, seed) if self._finite(request, member) else []
            for row in rows:
                out.write(member, row)
        if request.update:
            self._flat, self.version = request.update.flat.detach().clone(), request.update.version
        return out.rollouts(request)

    def close(self) -> None:
        """End the worker; start() would begin anew."""
        if self._session:
            self._session.close()
        self._session, self._flat = None, None
        if self._folder:
            self._folder.cleanup()
        self._folder = None

    def state(self) -> dict[str, Tensor]:
        """The weights that the engine holds and their version, for a checkpoint; cached prefixes are not in it."""
        assert self._flat is not None, "start() comes first"
        return {"flat": self._flat, "version": torch.tensor(self.version)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint; after start()."""
        self._flat, self.version = state["flat"], int(state["version"])

    def _finite(self, request: RolloutRequest, member: int) -> bool:
        """A member that has diverged answers nothing: vLLM cannot sample from weights that are no numbers."""
        assert self._flat is not None, "start() comes first"
        flats = [self._flat] + ([request.update.flat] if request.update else [])
        return all(bool(flat[member].isfinite().all()) for flat in flats)

    def _rows(self, request: RolloutRequest, member: int, seed: int) -> list[Row]:
        assert self._session is not None, "start() comes first"
        assert self._flat is not None
        update = request.update
        if update and request.update_at == 0:
            self._load(member, update, clear_cache=self._settings.clear_cache)
            update = None
        elif not self._holds(member):
            self._load(member, WeightUpdate(self._flat, self.version), clear_cache=False)
        rows = list(
            self._session.generate(
                self._requests(request, member, seed),
                self._settings,
                max_tokens=request.max_tokens,
                stop=() if self._eos is None else (self._eos,),
                update=self._in_flight(update, member, at=request.update_at) if update else None,
            )
        )
        if update:
            self._held = (update.version, member, update.flat[member].clone())
        return rows

    def _holds(self, member: int) -> bool:
        assert self._flat is not None
        if self._held is None or self._held[:2] != (self.version, member):
            return False
        return torch.equal(self._held[2], self._flat[member])

    def _load(self, member: int, weights: WeightUpdate, *, clear_cache: bool) -> None:
        """Give the worker a member's weights, between requests."""
        assert self._session is not None
        folder = self._write(weights.flat, member=member, name="current")
        self._session.update(folder, version=weights.version, clear_cache=clear_cache)
        self._held = (weights.version, member, weights.flat[member].clone())

    def _in_flight(self, update: WeightUpdate, member: int, *, at: int) -> Update:
        return Update(
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
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="skewsim-weights-")
        folder = Path(self._folder.name) / name
        Policy(self._config, flat).save(folder, member=member)
        return folder


class _Buffer:
    """Rows of all members as they come, and at last the Rollouts."""

    def __init__(self, request: RolloutRequest, vocab_size: int | None) -> None:
        members, sequences = len(request.seeds), request.prompts.shape[1] * request.num_generations
        shape = (members, sequences, request.max_tokens)
        self.tokens = torch.full(shape, PAD, dtype=torch.int64)
        self.mask, self.logprobs = torch.zeros(shape), torch.zeros(shape)
        self.versions = torch.zeros(shape, dtype=torch.int64)
        self.finish = torch.full(shape[:2], FINISH_ABORT)
        self.support = torch.ones(*shape, vocab_size, dtype=torch.bool) if vocab_size else None

    def write(self, member: int, row: Row) -> None:
        here = (member, row.id, slice(0, len(row.tokens)))
        self.tokens[here] = torch.tensor(row.tokens, dtype=torch.int64)
        self.mask[here] = 1.0
        self.logprobs[here] = torch.tensor(row.logprobs, dtype=torch.float32)
        self.versions[here] = torch.tensor(row.versions, dtype=torch.int64)
        self.finish[member, row.id] = FINISH[row.finish]
        if self.support is not None:
            for t, kept in enumerate(row.support or []):
                self.support[member, row.id, t] = False
                self.support[member, row.id, t, kept] = True

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
        )


def _refuse_injected(scenario: Scenario, name: str) -> None:
    if scenario.skew.active:
        raise UserError(f"skew.noise={scenario.skew.noise!r}: {name} is real, nothing is injected; allowed: none")
