"""Runs of yours kept as run folders: `--out DIR` makes DIR/run-001, run-002 ... one for each start from step 0.

Every step is handed to the operating system before the screen sees it, so a kill loses at most the step under way.
Toggles stand in the records' events.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from skewsim.settings import Scenario
from tui.driver import Training

if TYPE_CHECKING:
    from skewsim.trainer import Trainer


def recorder(out: Path) -> Callable[[Trainer, Scenario], Training]:
    """A training loop that writes what it yields."""

    def record(trainer: Trainer, scenario: Scenario) -> Training:
        from skewsim.recording import RunFolder

        folder = RunFolder(next_folder(out), scenario, seeds=trainer.seeds, engine="sim", resume=False)
        with folder:
            while trainer.alive and trainer.step_number < trainer.scenario.steps:
                records = trainer.step()
                folder.append(records)
                toggled = yield records
                if toggled is not None:
                    trainer.toggle(toggled)
            folder.checkpoint(trainer.state())

    return record


def next_folder(out: Path) -> Path:
    """The first of run-001, run-002 ... that does not exist."""
    number = 1
    while (out / f"run-{number:03}").exists():
        number += 1
    return out / f"run-{number:03}"
