"""The training process's own side: it holds the trainers of all curves and answers requests, one line of JSON each.

A request begins a run, asks for a run's next step, looks at its last one, or ends a run; `tui.process` sends them. What
is looked at is what the trainer itself measured (`Trainer.look`), so it costs no further pass and cannot disagree with
the record. The process ends when there are no more requests.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import os
import select
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from skewsim.catalogue import find_form
from skewsim.errors import SkewsimError, UserError
from skewsim.learn.losses import LossInputs
from skewsim.learn.objectives import find_objective, objective_terms
from skewsim.learn.trainer import Trainer, TrainState
from skewsim.records import StepRecord
from skewsim.runs.recording import RunFolder, read_records, record
from skewsim.runs.shared import Shared, SharedTrainer
from skewsim.settings import Scenario
from tui.snapshot import LossSource, Snapshot, Worked

if TYPE_CHECKING:
    from skewsim.diagnose.causes import Diagnosis

_RECENT, _FIRST = 66, (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)
"""Versions of the weights that a watched run keeps for a diagnosis: the last `_RECENT`, which is more than the engine
may lag, and those of the `_FIRST` steps, under which most prompts were first cached."""


_EVERY, _MOST_BYTES = 5, 128 * 2**20
"""How often a watched run is kept as a checkpoint to go back to, and the memory for them; when that is full, every
other one is dropped, and from then on half as many are taken. The start is always kept."""


@dataclass(frozen=True)
class Kept:
    """A watched run as it was before a step, with the settings that it had."""

    scenario: Scenario
    state: TrainState


class Checkpoints:
    """What a run can go back to: its start, and every few steps after that, in bounded memory."""

    def __init__(self) -> None:
        self._every = _EVERY
        self._kept: dict[int, Kept] = {}

    def take(self, trainer: Trainer | SharedTrainer) -> None:
        """Keep the trainer as it is before its next step, if it is this step's turn."""
        step = trainer.step_number
        if step % self._every or step in self._kept:
            return
        self._kept[step] = Kept(trainer.scenario, trainer.state())
        while len(self._kept) > 1 and self._bytes() > _MOST_BYTES:
            self._every *= 2
            self._kept = {at: kept for at, kept in self._kept.items() if at % self._every == 0}

    def back(self, step: int) -> tuple[int, Kept]:
        """The nearest one at or before a step; those after it are forgotten, for the run goes on otherwise."""
        at = max(kept for kept in self._kept if kept <= max(step, 0))
        self._kept = {each: kept for each, kept in self._kept.items() if each <= at}
        return at, self._kept[at]

    def _bytes(self) -> int:
        return sum(tensor.nbytes for kept in self._kept.values() for tensor in kept.state.tensors.values())


class _Continued:
    """A trainer that goes on from a checkpoint. The records of the steps before that come first, all at once."""

    def __init__(self, trainer: Trainer | SharedTrainer, past: list[StepRecord]) -> None:
        self._trainer, self._past = trainer, past
        self.state, self.close, self.checkpoint_bytes = trainer.state, trainer.close, trainer.checkpoint_bytes

    @property
    def alive(self) -> bool:
        return bool(self._past) or bool(self._trainer.alive)

    @property
    def step_number(self) -> int:
        return self._trainer.step_number

    def step(self) -> list[StepRecord]:
        past, self._past = self._past, []
        return past or self._trainer.step()


class Run:
    """One curve's trainer, which goes on for as long as it is asked to.

    With a folder, a step is written to the run folder before it is shown; when the steps of the scenario are done, so
    is a checkpoint. A watched run can go back; its steps from there on are in a run folder of their own, after those
    that led there.
    """

    def __init__(
        self,
        scenario: Scenario,
        seeds: tuple[int, ...],
        out: Path | None,
        *,
        watched: bool,
        shared: Shared | None = None,
    ) -> None:
        self._scenario, self._watched, self._seeds, self._out = scenario, watched, seeds, out
        self._seen: Snapshot | None = None
        self._weights: dict[int, torch.Tensor] = {}
        self._then: dict[int, torch.Tensor] = {}
        self._checkpoints = Checkpoints()
        self._begin((shared or Shared()).begin(scenario, seeds=seeds), [])

    def _begin(self, trainer: Trainer | SharedTrainer, past: list[StepRecord]) -> None:
        self._trainer, self._folder = trainer, self._new_folder()
        experiment = _Continued(trainer, past if self._folder is not None else [])
        self._steps = record(experiment, self._folder, steps=None, checkpoint_every=self._scenario.steps)
        if self._folder is not None and past:
            next(self._steps)
        self._keep()

    def _new_folder(self) -> RunFolder | None:
        if self._out is None:
            return None
        path = next_folder(self._out, "run" if self._watched else self._scenario.name)
        return RunFolder(path, self._scenario, seeds=self._seeds, engine="sim", resume=False)

    def back(self, step: int) -> None:
        """Be as it was at the nearest checkpoint at or before a step."""
        at, kept = self._checkpoints.back(step)
        self.close()
        before = self._folder if at else None
        past = [] if before is None else [each for each in read_records(before.path) if each.step < at]
        self._weights = {v: w for v, w in self._weights.items() if v <= at}
        self._begin(Trainer(kept.scenario, seeds=self._seeds, state=kept.state), past)

    def step(
        self, toggled: Scenario | None, *, look: bool, back: int | None = None
    ) -> tuple[list[StepRecord], Snapshot | None] | None:
        """The next step's records, and its tokens if `look`; None once every member has diverged.

        With `back`, from the nearest checkpoint at or before that step.
        """
        if back is not None and self._watched:
            self.back(back)
        if toggled is not None and toggled != self._trainer.scenario:
            self._trainer.toggle(toggled)
        records = next(self._steps, None)
        seen = self.look() if look and records is not None else None
        self._keep()
        return None if records is None else (records, seen)

    def look(self) -> Snapshot | None:
        """The tokens of the step just done; None before the first one."""
        if self._trainer.step_number == 0:
            return None
        seen = self._seen
        if seen is None or seen.step != self._trainer.step_number - 1:
            self._seen = seen = take(self._trainer)
            # keep the weights that a diagnosis of this step needs, before they are dropped
            wanted = {seen.step, seen.step - 1, *_FIRST, *seen.weight_versions[seen.mask].tolist()}
            self._then = {v: w for v, w in self._weights.items() if v in wanted and v <= seen.step}
        return seen

    def _keep(self) -> None:
        if self._watched:
            now = self._trainer.step_number
            self._weights[now] = self._trainer.policy.flat.detach()[:1].cpu().clone()
            self._weights = {v: w for v, w in self._weights.items() if v > now - _RECENT or v in _FIRST}
            if self._trainer.alive:
                self._checkpoints.take(self._trainer)

    def diagnose(self) -> tuple[int, Diagnosis]:
        """The step last looked at, and the causes of its skew under its own and earlier weights. Raises UserError."""
        from skewsim.diagnose import diagnose
        from skewsim.diagnose.policies import policy_scorers

        seen = self._seen
        if seen is None:
            raise UserError("no step has been looked at yet")
        models = policy_scorers(self._trainer.policy.config, self._then)
        return seen.step, diagnose(seen.sequences, models=models)

    def close(self) -> None:
        """End the run; what was recorded is whole."""
        self._steps.close()
        self._trainer.close()


def take(trainer: Trainer | SharedTrainer) -> Snapshot:
    """A snapshot of the step just done, of the ensemble's first member."""
    look = trainer.look()
    return work_out(Snapshot(**vars(look), loss=loss_source(look.scenario)))


def loss_source(scenario: Scenario) -> LossSource:
    """The loss function of a scenario's objective, with its source."""
    function = find_objective(scenario.trainer).loss
    lines, start = inspect.getsourcelines(function)
    where = function.__module__.replace(".", "/")
    return LossSource(f"{where}.py:{start}", "".join(lines))


def work_out(seen: Snapshot) -> Snapshot:
    """The same with the loss of the token that skew moved most, by the objective's own function in float64."""
    settings, (row, t) = seen.scenario.trainer, seen.worst

    def one(values: Any) -> torch.Tensor:
        return torch.as_tensor(values[row : row + 1], dtype=torch.float64)

    inputs = LossInputs(
        trainer_logprobs=one(seen.trainer_logprobs),
        old_logprobs=one(seen.old_logprobs),
        engine_logprobs=one(seen.engine_logprobs),
        mask=one(seen.mask),
        advantages=one(seen.advantages),
        group_ids=torch.zeros(1, dtype=torch.int64),
    )
    terms = objective_terms(inputs, settings)
    loss = terms.loss if terms.penalty is None else terms.loss + terms.penalty

    def at(values: torch.Tensor) -> float:
        return float(values.expand_as(inputs.mask)[0, t])

    whole = find_form(settings).clip == "sequence_sum"  # each token carries a share of its sequence's loss
    return replace(
        seen,
        worked=Worked(
            loss=float((loss * inputs.mask).sum()) if whole else at(loss),
            clipped=None if terms.clipped is None else at(terms.clipped),
            low=terms.low,
            high=terms.high,
        ),
    )


def next_folder(out: Path, prefix: str) -> Path:
    """The first of run-001, run-002 ... that does not exist."""
    return next(path for number in itertools.count(1) if not (path := out / f"{prefix}-{number:03}").exists())


class RunHost:
    """The runs under way, by their numbers."""

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}
        self._shared = Shared()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for. An error is answered as {"failed": its one line}."""
        try:
            return self._answer(request)
        except SkewsimError as error:
            return {"failed": str(error)}
        except Exception as error:  # one run's error must not end the others
            return {"failed": f"{type(error).__name__}: {error}"}

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        number = request["run"]
        if "scenario" in request:
            out = Path(request["out"]) if request["out"] else None
            scenario, seeds = Scenario.model_validate(request["scenario"]), tuple(request["seeds"])
            self._runs[number] = Run(scenario, seeds, out, watched=request["watched"], shared=self._shared)
            return {}
        if "look" in request:
            toggled = Scenario.model_validate(request["toggle"]) if request["toggle"] else None
            found = self._runs[number].step(toggled, look=request["look"], back=request.get("back"))
            if found is None:
                return {"ended": True}
            records, seen = found
            answer: dict[str, Any] = {"records": [each.to_json() for each in records]}
            return answer | ({"seen": seen.to_json()} if seen is not None else {})
        if "glance" in request:
            glanced = self._runs[number].look() if number in self._runs else None
            return {"seen": glanced.to_json()} if glanced is not None else {}
        if "diagnose" in request:
            if number not in self._runs:
                raise UserError("the run has ended")
            step, causes = self._runs[number].diagnose()
            return {"step": step, "diagnosis": causes.to_plain()}
        run = self._runs.pop(number, None)
        if run is not None:
            run.close()
        return {}

    def close(self) -> None:
        """End every run and close its run folder."""
        for run in self._runs.values():
            run.close()


def _end_with_the_app(patience: float = 3.0) -> None:
    """Once the app is gone, end this process after `patience` seconds, in the middle of a step if necessary."""
    poll = select.poll()
    poll.register(0, 0)  # no events asked for: poll still reports when the other end is closed
    poll.poll()
    time.sleep(patience)
    os._exit(0)


def main(out: int) -> None:
    """Read requests from standard input, write answers to the file descriptor `out`, until there are no more."""
    threading.Thread(target=_end_with_the_app, daemon=True).start()
    answers = os.fdopen(out, "w")
    torch.set_num_threads(1)
    gc.freeze()  # imported modules are never freed: keep the collector from searching them
    gc.enable()
    worker = RunHost()
    try:
        with suppress(BrokenPipeError):  # the app has gone
            for line in sys.stdin:
                print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)
    finally:
        worker.close()
    os._exit(0)  # all files are closed, and the interpreter's own shutdown would take a tenth of a second
