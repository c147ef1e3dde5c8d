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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from skewsim.catalogue import find_form
from skewsim.errors import SkewsimError, UserError
from skewsim.learn.losses import LossInputs
from skewsim.learn.objectives import find_objective, objective_terms
from skewsim.learn.trainer import Trainer
from skewsim.records import StepRecord
from skewsim.runs.recording import RunFolder, record
from skewsim.runs.shared import Shared, SharedTrainer
from skewsim.settings import Scenario
from tui.snapshot import LossSource, Snapshot, Worked

if TYPE_CHECKING:
    from skewsim.diagnose.causes import Diagnosis

_RECENT, _FIRST = 66, (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)
"""Versions of the weights that a watched run keeps for a diagnosis: the last `_RECENT`, which is more than the engine
may lag, and those of the `_FIRST` steps, under which most prompts were first cached."""


class Run:
    """One curve's trainer, which goes on for as long as it is asked to.

    With a folder, a step is written to the run folder before it is shown; when the steps of the scenario are done, so
    is a checkpoint.
    """

    def __init__(
        self, scenario: Scenario, seeds: tuple[int, ...], out: Path | None, *, watched: bool, shared: Shared
    ) -> None:
        self._watched = watched
        self._trainer = shared.begin(scenario, seeds=seeds)
        self._seen: Snapshot | None = None
        folder = None
        if out is not None:
            folder = RunFolder(
                next_folder(out, "run" if watched else scenario.name), scenario, seeds=seeds, engine="sim", resume=False
            )
        self._steps = record(self._trainer, folder, steps=None, checkpoint_every=scenario.steps)
        self._weights: dict[int, torch.Tensor] = {}
        self._then: dict[int, torch.Tensor] = {}
        self._keep()

    def step(self, toggled: Scenario | None, *, look: bool) -> tuple[list[StepRecord], Snapshot | None] | None:
        """The next step's records, and its tokens if `look`; None once every member has diverged."""
        if toggled is not None:
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
            found = self._runs[number].step(toggled, look=request["look"])
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
